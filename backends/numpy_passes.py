"""Elementwise work on NumPy arrays: passes over tiles that stay in the cache, written in place.

NumPy computes `x / (1 + exp(-x))` in four passes over x. On an array larger than the cache each pass goes out to memory;
over tiles of `TILE` numbers all four run in the second-level cache, which is 2 to 4 times as fast on large activations.
The arrays that these functions write into are made by their callers in `coatref.backends`.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
# (y, t, u, out): out <- act(y), with t and u as scratch, of y's shape; out may be y, and may be laid out in another way
InPlace = Callable[[Array, Array, Array, Array], None]

TILE = 32768  # numbers; y with its two scratch tiles takes 384 KiB in float32

# Odd polynomials x P(x^2) with the least weighted error for 0 < x <= 6 and 4; `docs/derive_gelu.py` fits and prints them.
# fmt: off
MINUS_LOG_ODDS32 = (  # -ln(Phi(x) / Phi(-x)), so that x Phi(x) = x / (1 + exp(x P)); off by 0.48 units of 2^-24 |x|
    -1.5957698829669635, -0.072666168996323, 6.51897463394241e-05, 0.0001106124846984202,
    -7.929507610867104e-06, 2.6452820354461825e-07, -3.5123844937230996e-09,
)
ARTANH_ERF32 = (  # artanh(erf(x)), so that erf(x) = tanh(x P); off by 1.60 units of 2^-24 |erf(x)|
    1.128379274499361, 0.10276905397705385, -0.00019182693606084575, -0.0006197878118311497,
    8.763845519110508e-05, -5.6686527525810495e-06, 1.418620569153233e-07,
)
# fmt: on
MINUS_TANH_GELU = (
    -2.0 * math.sqrt(2.0 / math.pi),
    -2.0 * math.sqrt(2.0 / math.pi) * 0.044715,
)  # of the tanh form of GELU


def odd_polynomial(coefficients: tuple[float, ...], x: Array, square: Array, out: Array) -> None:
    """out <- x (c0 + c1 x^2 + c2 x^4 + ...), by Horner's rule; `square` becomes x^2."""
    np.multiply(x, x, out=square)
    *rest, last = coefficients
    np.multiply(square, last, out=out)
    for c in reversed(rest[1:]):
        out += c
        out *= square
    out += rest[0]
    out *= x


def logistic(y: Array, t: Array, out: Array) -> None:
    """out <- y / (1 + exp(t)); where the exponential overflows the quotient is the right zero. Writes t."""
    np.exp(t, out=t)
    t += 1.0
    np.divide(y, t, out=out)


def silu(y: Array, t: Array, u: Array, out: Array) -> None:
    """x / (1 + exp(-x)), with full relative accuracy in both tails."""
    np.negative(y, out=t)
    logistic(y, t, out)


def gelu(y: Array, t: Array, u: Array, out: Array) -> None:
    """x Phi(x): in float32 as x / (1 + exp(x P(x^2))), 6 times as fast as by SciPy's erf; in float64 by SciPy's erf."""
    if y.dtype == np.float32:
        odd_polynomial(MINUS_LOG_ODDS32, y, u, t)
        logistic(y, t, out)
        return
    import scipy.special

    np.multiply(y, math.sqrt(0.5), out=t)
    scipy.special.erf(t, out=t)
    t += 1.0
    t *= 0.5
    np.multiply(y, t, out=out)


def gelu_tanh(y: Array, t: Array, u: Array, out: Array) -> None:
    """x/2 (1 + tanh(z)) = x / (1 + exp(-2 z)), z = sqrt(2/pi) (x + 0.044715 x^3)."""
    odd_polynomial(MINUS_TANH_GELU, y, u, t)
    logistic(y, t, out)


def mish(y: Array, t: Array, u: Array, out: Array) -> None:
    """x tanh(ln(1 + e^x)) = x n / (n + 2), n = e^x (e^x + 2); from x = 20 on the quotient is 1 in either type."""
    np.minimum(y, 20.0, out=t)
    np.exp(t, out=t)
    np.add(t, 2.0, out=u)
    t *= u
    np.add(t, 2.0, out=u)
    t /= u
    np.multiply(y, t, out=out)


def relu(y: Array, t: Array, u: Array, out: Array) -> None:
    """ReLU: max(x, 0)."""
    np.maximum(y, 0.0, out=out)


def tanh(y: Array, t: Array, u: Array, out: Array) -> None:
    """Hyperbolic tangent."""
    np.tanh(y, out=out)


IN_PLACE: dict[str, InPlace] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "relu": relu,
    "mish": mish,
    "tanh": tanh,
}


@functools.cache
def loops() -> Any:
    """`coatref.backends.numpy_kernels`, or None where numba cannot be imported; `no_loops` says why."""
    return None if no_loops() else importlib.import_module("coatref.backends.numpy_kernels")


@functools.cache
def no_loops() -> str | None:
    """Why there are no compiled loops here, or None."""
    try:
        importlib.import_module("numba")
    except ImportError as error:
        return f"numba cannot be imported ({error}); run: pip install 'coatref[numba]'"
    return None


def compiled(y: Array, act: str | None) -> Any:
    """The compiled loops, if they do this activation on arrays like y, which is contiguous; else None."""
    found = loops() if y.dtype == np.float32 and y.size else None
    return found if found is not None and act in found.CODES else None


def plain(vector: Array | None, length: int, missing: float) -> Array:
    """A vector as the compiled loops take it: contiguous, and there."""
    return np.full(length, missing, np.float32) if vector is None else np.ascontiguousarray(vector.reshape(-1))


def finish_by_loops(found: Any, y: Array, act: str | None, scale: Array | None, shift: Array | None) -> None:
    """`finish` in place for y (R, W), by compiled loops: a shift (R, 1) goes by rows, everything else by columns."""
    code = found.CODES[act]
    if scale is None and shift is None:
        found.activate_in_place(y.reshape(-1), code)
    elif scale is None and shift is not None and shift.shape == (y.shape[0], 1):
        found.by_row(y, plain(shift, y.shape[0], 0.0), code)
    else:
        found.by_column(y, plain(scale, y.shape[1], 1.0), plain(shift, y.shape[1], 0.0), code)


def finish(
    y: Array, act: str | None, *, scale: Array | None = None, shift: Array | None = None, out: Array | None = None
) -> None:
    """out <- act(y scale + shift), over tiles of rows.

    Args:
        y: (R, ...), contiguous; overwritten.
        act: an activation by name, or None.
        scale, shift: of y's number of axes, each of their axes y's length or 1; or None.
        out: of y's shape, with any strides; None: y itself.
    """
    if act is None and scale is None and shift is None and out is None:
        return
    if y.ndim == 2 and out is None and (found := compiled(y, act)) is not None:
        finish_by_loops(found, y, act, scale, shift)
        return
    out = y if out is None else out
    rows = max(1, TILE // max(1, y[:1].size))
    scratch = np.empty((2, min(rows, y.shape[0]), *y.shape[1:]), y.dtype)

    def part(array: Array, start: int) -> Array:
        return array[start : start + rows] if array.shape[0] > 1 else array

    with np.errstate(over="ignore", invalid="ignore"):  # see `logistic`; and infinity as an input, which gives NaN
        for start in range(0, y.shape[0], rows):
            tile = y[start : start + rows]
            if scale is not None:
                tile *= part(scale, start)
            if shift is not None:
                tile += part(shift, start)
            target = out[start : start + rows]
            if act is not None:
                IN_PLACE[act](tile, scratch[0, : len(tile)], scratch[1, : len(tile)], target)
            elif out is not y:
                target[...] = tile


def elementwise(x: Array, act: str) -> Array:
    """act(x), for x of any shape and strides, as a new array."""
    y = np.array(x, order="C", copy=True, ndmin=1)
    flat = y.reshape(-1, 1)
    if flat.size:
        finish(flat, act)
    return y.reshape(x.shape)


def erf32(x: Array) -> Array:
    """The Gauss error function of float32 numbers, as tanh(x Q(x^2)); a quarter of the time of SciPy's."""
    y = np.array(x, order="C", copy=True, ndmin=1)
    flat = y.reshape(-1)
    t, u = np.empty((2, min(TILE, flat.size)), y.dtype)
    for start in range(0, flat.size, TILE):
        tile = flat[start : start + TILE]
        odd_polynomial(ARTANH_ERF32, tile, u[: tile.size], t[: tile.size])
        np.tanh(t[: tile.size], out=tile)
    return y.reshape(x.shape)


def standardise(x: Array, epsilon: float, axis: int) -> Array:
    """LayerNorm without its affine part over one axis of a 2-D array, as a new array laid out like x.

    (x - m) / sqrt(v + epsilon), m and v the mean and biased variance; the sums are products with a vector of ones, which
    BLAS does in a fifth of the time of NumPy's reductions.
    """
    length = x.shape[axis]
    mean = total(x, axis) / length
    centred = x - np.expand_dims(mean, axis)
    letters = "ij,ij->j" if axis == 0 else "ij,ij->i"
    root = np.sqrt(np.einsum(letters, centred, centred) / length + epsilon)
    centred *= np.expand_dims(1.0 / root, axis).astype(x.dtype, copy=False)
    return centred


def total(x: Array, axis: int) -> Array:
    """The sum of a 2-D array along one axis, by BLAS."""
    ones = np.ones(x.shape[axis], x.dtype)
    return ones @ x if axis == 0 else x @ ones
