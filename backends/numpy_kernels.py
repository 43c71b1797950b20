"""Compiled loops for NumPy's forms in float32, used where numba is installed: pip install 'coatref[numba]'.

NumPy makes one pass over a tile for each operation, each a call that takes Python's lock; two threads wait for it a
thousand times in a forward pass. A compiled loop does a whole chain in one call without the lock: SiLU takes 0.5 ns a
number and not 1.4, GELU 0.8 and not 3, a depthwise convolution with its activation 1.2 and not 4.

numba has no vector form of exp, so `exponential` is a polynomial that LLVM can vectorise. The functions are compiled when this
module is first imported (some seconds) and kept on disk by numba.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np


def module(name: str) -> Any:
    """A module, or None where it is absent; nothing below is called then (`coatref.backends.numpy_passes.loops`)."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


numba, extending, ir = module("numba"), module("numba.extending"), module("llvmlite.ir")
types: Any = None if numba is None else numba.types
intrinsic: Any = (lambda function: function) if extending is None else extending.intrinsic

Array = Any
F = TypeVar("F", bound=Callable[..., Any])
f32 = np.float32

CODES = {None: 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu": 4}  # activations that there are loops for

# Sums may be put together with products and signs of zero neglected, but nothing is reordered (`exponential` rounds by
# adding and taking away a large number) and NaN stays NaN.
EXACT = {"contract", "nsz", "arcp"}
REORDERED = EXACT | {"reassoc"}  # where only sums are taken


def signatures() -> dict[str, Any]:
    """The types of the loops: with them everything is compiled at import, and nothing again for a read-only array."""
    if types is None:
        return {}
    read = [types.Array(types.float32, ndim, "C", readonly=True) for ndim in range(5)]
    write = [types.Array(types.float32, ndim, "C") for ndim in range(5)]
    integer, void = types.int64, types.void
    return {
        "activate_in_place": void(write[1], integer),
        "by_column": void(write[2], read[1], read[1], integer),
        "by_row": void(write[2], read[1], integer),
        "depthwise": void(read[4], read[3], read[1], integer, integer, integer, write[4], integer),
        "exponentials": void(write[2], read[2], types.boolean, write[1]),
    }


SIGNATURES = signatures()


def loop(flags: set[str], **options: Any) -> Callable[[F], F]:
    """Compile a function that runs without Python's lock; a division by zero gives infinity, so no check is needed."""

    def compiled(function: F) -> F:
        if numba is None:
            return function
        given = [SIGNATURES[function.__name__]] if function.__name__ in SIGNATURES else []
        made: F = numba.njit(*given, fastmath=flags, nogil=True, error_model="numpy", **options)(function)
        return made

    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def _scaled_by_power(typingctx: Any, p: Any, m: Any) -> Any:
    """p 2^n, n the whole number in the low bits of m = n + 1.5 2^23; infinite for n = 128."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[1], ir.IntType(32))
        bits = builder.add(bits, ir.Constant(ir.IntType(32), 127))
        power = builder.bitcast(builder.shl(bits, ir.Constant(ir.IntType(32), 23)), ir.FloatType())
        return builder.fmul(arguments[0], power)

    return types.float32(types.float32, types.float32), generate


@loop(EXACT, inline="always")
def exponential(z: Any) -> Any:
    """exp(z) in float32 as 2^n exp(f), |f| <= ln 2 / 2, by Cephes' polynomial; within 1 ULP, 0 below -87, infinite from 89.

    ln 2 is taken away in two parts, so that f is exact to the last bit.
    """
    z = f32(89.0) if z > f32(89.0) else z  # noqa: FURB136 - a comparison leaves NaN as it is
    z = f32(-87.0) if z < f32(-87.0) else z  # noqa: FURB136
    m = z * f32(1.44269504) + f32(12582912.0)  # 1.5 * 2^23: the sum is rounded to a whole number
    n = m - f32(12582912.0)
    f = z - n * f32(0.693359375)
    f = f + n * f32(2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * f + f32(1.3981999507e-3)
    p = p * f + f32(8.3334519073e-3)
    p = p * f + f32(4.1665795894e-2)
    p = p * f + f32(1.6666665459e-1)
    p = p * f + f32(5.0000001201e-1)
    p = p * f * f + f + f32(1.0)
    return _scaled_by_power(p, m)


@loop(EXACT, inline="always")
def silu(v: Any) -> Any:
    """x / (1 + exp(-x))."""
    return v / (f32(1.0) + exponential(-v))


@loop(EXACT, inline="always")
def gelu(v: Any) -> Any:
    """x / (1 + exp(x P(x^2))), P that of `numpy_passes.MINUS_LOG_ODDS32`."""
    u = v * v
    p = f32(-3.5123844937230996e-09)
    p = p * u + f32(2.6452820354461825e-07)
    p = p * u + f32(-7.929507610867104e-06)
    p = p * u + f32(0.0001106124846984202)
    p = p * u + f32(6.51897463394241e-05)
    p = p * u + f32(-0.072666168996323)
    p = p * u + f32(-1.5957698829669635)
    return v / (f32(1.0) + exponential(p * v))


@loop(EXACT, inline="always")
def gelu_tanh(v: Any) -> Any:
    """x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3)))."""
    return v / (f32(1.0) + exponential(v * (v * v * f32(-0.07135481282636) + f32(-1.5957691216057308))))


@loop(EXACT, cache=True)
def activate_in_place(y: Array, code: int) -> None:
    """y <- act(y). With one array LLVM knows that nothing overlaps, else it takes the loop without vectors."""
    length = y.shape[0]
    if code == 1:
        for c in range(length):
            y[c] = silu(y[c])
    elif code == 2:
        for c in range(length):
            y[c] = gelu(y[c])
    elif code == 3:
        for c in range(length):
            y[c] = gelu_tanh(y[c])
    elif code == 4:
        for c in range(length):
            y[c] = y[c] if y[c] > f32(0.0) or y[c] != y[c] else f32(0.0)


@loop(EXACT, cache=True)
def by_column(y: Array, scale: Array, shift: Array, code: int) -> None:
    """y <- act(y scale + shift). Shapes: y (P, C), scale and shift (C,)."""
    for p in range(y.shape[0]):
        for c in range(y.shape[1]):
            y[p, c] = y[p, c] * scale[c] + shift[c]
        activate_in_place(y[p], code)


@loop(EXACT, cache=True)
def by_row(y: Array, shift: Array, code: int) -> None:
    """y <- act(y + shift). Shapes: y (D, P), shift (D,)."""
    for d in range(y.shape[0]):
        more = shift[d]
        for p in range(y.shape[1]):
            y[d, p] = y[d, p] + more
        activate_in_place(y[d], code)


@loop(EXACT, cache=True)
def depthwise(x: Array, w: Array, shift: Array, top: int, left: int, stride: int, out: Array, code: int) -> None:
    """out <- act(depthwise conv(x) + shift), zeros outside the grid, which are never written down.

    Shapes: x (N, H, W, C), w (kh, kw, C), shift (C,), out (N, H', W', C).
    """
    for n in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                y = out[n, i, j]
                for c in range(y.shape[0]):
                    y[c] = shift[c]
                for k in range(w.shape[0]):
                    row = i * stride + k - top
                    if row < 0 or row >= x.shape[1]:
                        continue
                    for m in range(w.shape[1]):
                        column = j * stride + m - left
                        if column < 0 or column >= x.shape[2]:
                            continue
                        seen, tap = x[n, row, column], w[k, m]
                        for c in range(y.shape[0]):
                            y[c] += seen[c] * tap[c]
                activate_in_place(y, code)


@loop(REORDERED, cache=True)
def largest_of_sum(row: Array, bias: Array, biased: bool) -> Any:
    """row <- row + bias; the largest of them. Shapes: (K,)."""
    if biased:
        for k in range(row.shape[0]):
            row[k] += bias[k]
    largest = row[0]
    for k in range(row.shape[0]):
        largest = row[k] if row[k] > largest else largest  # noqa: FURB136 - as above
    return largest


@loop(REORDERED, cache=True)
def sum_of(row: Array) -> Any:
    """The sum of a row (K,)."""
    total = f32(0.0)
    for k in range(row.shape[0]):
        total += row[k]
    return total


@loop(EXACT, cache=True)
def exponentials(logits: Array, bias: Array, biased: bool, sums: Array) -> None:
    """logits <- exp(logits + bias - their largest), row by row; sums <- the sums.

    Shapes: (Q, K), (Q, K) or anything of one row where there is no bias, (Q,).
    """
    for q in range(logits.shape[0]):
        row = logits[q]
        largest = largest_of_sum(row, bias[q if biased else 0], biased)
        for k in range(row.shape[0]):
            row[k] = exponential(row[k] - largest)
        sums[q] = sum_of(row)
