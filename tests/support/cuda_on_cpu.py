"""The CUDA kernels of coatref's CuPy forms, compiled by g++ and run on the CPU, and a `Device` of NumPy arrays on them.

So the forms run where there is no GPU, as they are: their Python, every index of every kernel, the order of arguments.
What it cannot see is what a GPU does otherwise: its own rounding of elementary functions, and threads that run at a time.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = Any
HALF = """
inline A wide(T x) { _Float16 y; std::memcpy(&y, &x, 2); return static_cast<A>(y); }
inline T narrow(A x) { const _Float16 y = static_cast<_Float16>(x); T z; std::memcpy(&z, &y, 2); return z; }
"""
EXPORTS = """
static const cuda::Entry entries[] = {{{entries}}};
extern "C" int arguments_of(int i) {{ return entries[i].arguments; }}
extern "C" unsigned long long floating_of(int i) {{ return entries[i].floating; }}
extern "C" int launch(int i, const unsigned* grid, const unsigned* block, void** given, unsigned long long shared) {{
  return cuda::launch(entries[i], grid, block, given, shared);
}}
"""


def absence() -> str | None:
    """Why the kernels cannot be run on this CPU, or None."""
    return None if shutil.which("g++") else "needs g++, which is not on the path, to run CUDA kernels on the CPU"


def source_of_kernels() -> str:
    """The file of kernels."""
    found = importlib.util.find_spec("coatref.backends.cupy_steps")
    assert found is not None and found.origin is not None
    return Path(found.origin).with_name("cupy_kernels.cu").read_text(encoding="utf-8")


class Kernels:
    """All kernels for numbers of so many bits; `change` may plant a fault in their source first."""

    def __init__(self, bits: int, names: tuple[str, ...], change: Callable[[str], str] = str) -> None:
        self.place = {name: index for index, name in enumerate(names)}
        source = change(source_of_kernels())
        if bits == 16:
            source = source.replace("#ifndef COATREF_ON_CPU\n", f"{HALF}#ifndef COATREF_ON_CPU\n", 1)
        header = Path(__file__).with_name("cuda_on_cpu.hpp")
        listed = ", ".join(f'cuda::entry("{name}", {name})' for name in names)
        with tempfile.TemporaryDirectory() as folder:
            code, built = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
            code.write_text(f'#include "{header}"\n{source}{EXPORTS.format(entries=listed)}', encoding="utf-8")
            options = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-DREAL={bits}", "-w", "-o", str(built), str(code)]
            run = subprocess.run(["g++", *options], check=False, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr[:4000]
            self.library = ctypes.CDLL(str(built))
        self.library.floating_of.restype = ctypes.c_ulonglong

    def launch(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Any, shared: int) -> None:
        """Run a kernel, with the limits of a GPU checked."""
        index = self.place[name]
        grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
        assert min(*grid, *block) >= 1 and max(grid[1:]) < 2**16 and grid[0] < 2**31, (name, grid, block)
        assert block[0] * block[1] * block[2] <= 1024 and block[2] <= 64 and shared <= 48 * 1024, (name, block, shared)
        assert len(arguments) == self.library.arguments_of(index), name
        floating = self.library.floating_of(index)
        held: list[Any] = []
        for number, argument in enumerate(arguments):
            kind = float if floating >> number & 1 else int
            assert type(argument) is kind, f"{name}: argument {number} is {argument!r} and goes in as {kind.__name__}"
            held.append(ctypes.c_double(argument) if kind is float else ctypes.c_longlong(int(argument)))
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(each) for each in held))
        sizes = [(ctypes.c_uint * 3)(*each) for each in (grid, block)]
        stuck = self.library.launch(index, *sizes, pointers, ctypes.c_ulonglong(shared))
        assert not stuck, f"{name}: some threads wait for others that never come"


@functools.cache
def kernels(bits: int) -> Kernels:
    """The kernels as they are."""
    from coatref.backends.cupy_steps import kernel_names

    return Kernels(bits, kernel_names(bits))


GUARD = 64  # bytes before and after an array, which nobody may write


def guarded(shape: tuple[int, ...], dtype: Any) -> Array:
    """A new array of NaN amid bytes of which `unharmed` tells whether they were written."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    around = np.full(count + 2 * GUARD + 16, 0xFF, np.uint8)
    begin = GUARD + -(around.ctypes.data + GUARD) % 16
    return around[begin : begin + count].view(dtype).reshape(shape)


def unharmed(array: Array) -> bool:
    """Whether the bytes around an array of `guarded` are as they were."""
    around = array
    while around.base is not None:
        around = around.base
    begin = array.ctypes.data - around.ctypes.data
    return bool(np.all(around[:begin] == 0xFF) and np.all(around[begin + array.nbytes :] == 0xFF))


def numbers(address: int, count: int, bits: int) -> Array:
    """`count` numbers at an address."""
    kind: Any = {16: np.uint16, 32: np.float32, 64: np.float64}[bits]
    memory: Any = (ctypes.c_char * (count * bits // 8)).from_address(address)
    found = np.frombuffer(memory, kind)
    return found.view(np.float16) if bits == 16 else found


def matrices(address: int, rows: int, columns: int, ld: int, stride: int, count: int, bits: int) -> Array:
    """(count, rows, columns) of cuBLAS's matrices in columns, as a view."""
    assert ld >= rows, "cuBLAS refuses a leading dimension below the number of rows"
    flat = numbers(address, (count - 1) * stride + (columns - 1) * ld + rows, bits)
    item = bits // 8
    return np.lib.stride_tricks.as_strided(flat, (count, rows, columns), (stride * item, item, ld * item))


def product(p: Any) -> None:
    """cuBLAS's gemmStridedBatchedEx: computed in float32 for float16."""
    a = matrices(p.a, *((p.k, p.m) if p.transposed else (p.m, p.k)), p.lda, p.stride_a, p.batch, p.bits)
    b = matrices(p.b, p.k, p.n, p.ldb, p.stride_b, p.batch, p.bits)
    c = matrices(p.c, p.m, p.n, p.ldc, p.stride_c, p.batch, p.bits)
    kind = np.float64 if p.bits == 64 else np.float32
    a, b = a.astype(kind), b.astype(kind)
    c[...] = (kind(p.alpha) * (np.swapaxes(a, 1, 2) if p.transposed else a) @ b).astype(c.dtype)


def device(of: Callable[[int], Kernels] = kernels) -> Any:
    """A device of NumPy arrays. Whatever a kernel writes beside an array of the forms is seen when the next one starts."""
    from coatref.backends.cupy_steps import Device

    made: list[Array] = []

    def empty(shape: tuple[int, ...], like: Array) -> Array:
        return kept(guarded(shape, like.dtype))

    def kept(array: Array) -> Array:
        made.append(array)
        del made[:-16]
        return array

    def launch(name: str, bits: int, grid: Any, block: Any, arguments: Any, shared: int) -> None:
        of(bits).launch(name, grid, block, arguments, shared)
        assert all(map(unharmed, made)), f"{name} writes beside an array"

    return Device(
        empty=empty,
        scratch=lambda count, like: kept(guarded((count,), np.uint8)),
        contiguous=np.ascontiguousarray,
        address=lambda array: int(array.ctypes.data),
        launch=launch,
        product=product,
    )
