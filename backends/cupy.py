"""CuPy: NumPy's interface on CUDA devices; kernels of our own for what its operations would do one by one."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from coatref.backends import cupy_steps
from coatref.backends.cupy_steps import Device, Product, Steps, kernel_names
from coatref.primitives import Form
from coatref.registry import Library

REAL = {16: 2, 32: 0, 64: 1}  # cudaDataType_t of so many bits
COMPUTE = {16: 68, 32: 68, 64: 70}  # cublasComputeType_t: CUBLAS_COMPUTE_32F (for float32 no TF32), ..._64F
GEMM_DEFAULT = -1  # cublasGemmAlgo_t


@functools.cache
def namespace() -> Any:
    """CuPy as array-api-compat wraps it."""
    import array_api_compat.cupy

    return array_api_compat.cupy


def erf(x: Any) -> Any:
    """`cupyx.scipy.special.erf`."""
    import cupyx.scipy.special

    return cupyx.scipy.special.erf(x)


def to_numpy(x: Any) -> Any:
    """A copy on the host."""
    return x.get()


def devices() -> tuple[str, ...]:
    """Every CUDA device."""
    import cupy

    return tuple(f"cuda:{index}" for index in range(cupy.cuda.runtime.getDeviceCount()))


# --- what the forms ask of a device ---


@functools.cache
def module(bits: int) -> Any:
    """The kernels for numbers of so many bits; CuPy compiles them when the first is asked for and keeps that on disk."""
    import cupy

    source = Path(__file__).with_name("cupy_kernels.cu").read_text(encoding="utf-8")
    options = ("-std=c++17", f"-DREAL={bits}")
    return cupy.RawModule(code=source, options=options, name_expressions=kernel_names(bits))


@functools.cache
def kernel(name: str, bits: int) -> Any:
    """One kernel."""
    return module(bits).get_function(name)


def launch(
    name: str, bits: int, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[int | float, ...], shared: int
) -> None:
    """On the current stream."""
    kernel(name, bits)(grid, block, arguments, shared_mem=shared)


@functools.cache
def factor(value: float, bits: int) -> tuple[int, Any]:
    """Where on the host cuBLAS finds a number, in the type that the product is computed in; and what keeps it there."""
    import numpy

    kept = numpy.asarray([value], numpy.float64 if bits == 64 else numpy.float32)
    return int(kept.ctypes.data), kept


@functools.cache
def blas() -> tuple[Any, Any, Any]:
    """cuBLAS as CuPy calls it: what gives the handle, and two products."""
    import cupy.cublas
    from cupy.cuda.device import get_cublas_handle

    return get_cublas_handle, cupy.cublas.cublas.gemmEx, cupy.cublas.cublas.gemmStridedBatchedEx


def product(p: Product) -> None:
    """cuBLAS's own entry, on the current stream: `cupy.matmul` takes several times as long to get there."""
    handle, gemm, batched = blas()
    real, compute, beta = REAL[p.bits], COMPUTE[p.bits], factor(0.0, p.bits)[0]
    sizes = (handle(), int(p.transposed), 0, p.m, p.n, p.k, factor(p.alpha, p.bits)[0])
    if p.batch == 1:
        gemm(*sizes, p.a, real, p.lda, p.b, real, p.ldb, beta, p.c, real, p.ldc, compute, GEMM_DEFAULT)
        return
    a, b, c = ((p.a, real, p.lda, p.stride_a), (p.b, real, p.ldb, p.stride_b), (p.c, real, p.ldc, p.stride_c))
    batched(*sizes, *a, *b, beta, *c, p.batch, compute, GEMM_DEFAULT)


def empty(shape: tuple[int, ...], like: Any) -> Any:
    """On the current device, which `on_its_device` has made that of `like`."""
    import cupy

    return cupy.empty(shape, like.dtype)


def scratch(count: int, like: Any) -> Any:
    """Bytes on the current device."""
    import cupy

    return cupy.empty((count,), cupy.uint8)


def contiguous(array: Any) -> Any:
    """The array with its numbers in order."""
    import cupy

    return array if array.flags.c_contiguous else cupy.ascontiguousarray(array)


STEPS = Steps(
    Device(
        empty=empty,
        scratch=scratch,
        contiguous=contiguous,
        address=lambda array: int(array.data.ptr),
        launch=launch,
        product=product,
    )
)


def on_its_device(form: Form) -> Form:
    """The form with the device of its first array as the current one, where kernels start and memory comes from."""

    @functools.wraps(form)
    def placed(*args: Any, **options: Any) -> Any:
        import cupy

        first = args[0] if args else next(options[name] for name in ("x", "q", "qkv") if name in options)
        device = first.device
        if device.id == cupy.cuda.runtime.getDevice():
            return form(*args, **options)
        with device:
            return form(*args, **options)

    return placed


@functools.cache
def fused(pool: Any = None) -> Any:
    """The steps of a prepared network; what is no step of an array (`lay_out`) needs no device."""
    plain = cupy_steps.fused(STEPS)
    forms = {name: on_its_device(form) for name, form in vars(plain).items() if form is not None and name != "lay_out"}
    return dataclasses.replace(plain, **forms)


LIBRARY = Library(
    name="cupy",
    install="'coatref[cupy]'",
    namespace=namespace,
    to_numpy=to_numpy,
    dtypes=("float16", "float32", "float64"),
    erf=erf,
    device=lambda x: x.device,
    devices=devices,
    primitives={name: on_its_device(form) for name, form in cupy_steps.primitives(STEPS).items()},
    fused=fused,
)
