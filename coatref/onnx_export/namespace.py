"""The functions of the array API standard that the definition uses, on arrays that are recorded.

Where a full array of one number is asked for, an array with that one number is given: it broadcasts the same. Functions
that depend on no input in any network, such as `stack`, take known arrays alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coatref.errors import InputError
from coatref.onnx_export.arrays import (
    Recorded,
    cut,
    elementwise,
    graph_of,
    held,
    known,
    laid,
    permuted,
    reshaped,
)
from coatref.onnx_export.graph import operate, reduce
from coatref.onnx_export.lengths import broadcast

Array = Recorded
Axes = int | tuple[int, ...] | None

isdtype = np.isdtype
finfo = np.finfo


# --- element by element ---


def abs(x: Array) -> Array:
    """|x|, element by element."""
    return elementwise("Abs", np.abs, x)


def exp(x: Array) -> Array:
    """e^x, element by element."""
    return elementwise("Exp", np.exp, x)


def log1p(x: Array) -> Array:
    """log(1 + x): for what is not known as Log(1 + x), whose error is one of 1 where x is small."""
    return known(np.log1p(x.known)) if x.known is not None else elementwise("Log", np.log, 1.0 + x)


def sign(x: Array) -> Array:
    """-1, 0 or 1, as the number is below, at or above zero."""
    return elementwise("Sign", np.sign, x)


def sqrt(x: Array) -> Array:
    """The square root of each number."""
    return elementwise("Sqrt", np.sqrt, x)


def tanh(x: Array) -> Array:
    """The hyperbolic tangent."""
    return elementwise("Tanh", np.tanh, x)


def maximum(x: Array, y: Array) -> Array:
    """The larger of two numbers."""
    return elementwise("Max", np.maximum, x, y)


def minimum(x: Array, y: Array) -> Array:
    """The smaller of two numbers."""
    return elementwise("Min", np.minimum, x, y)


def clip(x: Array, low: float, high: float) -> Array:
    """The nearest number from `low` to `high`."""
    return elementwise("Min", np.minimum, elementwise("Max", np.maximum, x, low), high)


def where(condition: Array, x: Array, y: Array) -> Array:
    """x where the condition holds, else y."""
    return elementwise("Where", np.where, condition, x, y, dtype=x.dtype)


def copysign(x: Array, y: Array) -> Array:
    """|x| with the sign of y; a negative zero counts as a positive one."""
    return where(y < 0.0, -abs(x), abs(x))


def zeros_like(x: Array) -> Array:
    """Zero, which broadcasts to any shape."""
    return known(0, x.dtype)


# --- shapes ---


def reshape(x: Array, shape: Sequence[Any]) -> Array:
    """The elements, row by row, in another shape."""
    return reshaped(x, shape)


def permute_dims(x: Array, axes: Sequence[int]) -> Array:
    """Axes in another order."""
    return permuted(x, axes)


def broadcast_to(x: Array, shape: Sequence[Any]) -> Array:
    """An array that broadcasts against the shape as the full one would: with as many axes."""
    broadcast(x.shape, tuple(shape))
    if x.known is not None and all(isinstance(length, int) for length in shape):
        return known(np.broadcast_to(x.known, tuple(shape)))
    return reshaped(x, (1,) * (len(shape) - x.ndim) + x.shape)


def flip(x: Array, *, axis: tuple[int, ...]) -> Array:
    """Backwards along some axes."""
    backwards = {each: range(x.shape[each])[::-1] for each in axis}  # type: ignore[arg-type]  # never the batch
    return cut(x, backwards)


def concat(arrays: Sequence[Array], *, axis: int) -> Array:
    """Arrays one behind the other."""
    first, graph = arrays[0], graph_of(*arrays)
    axis %= first.ndim
    length = int(np.sum([each.shape[axis] for each in arrays]))
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    parts = (laid(graph, each) for each in arrays)
    return held(graph, shape, first.dtype, operate(graph, "Concat", *parts, axis=axis))


def stack(arrays: Sequence[Array], *, axis: int) -> Array:
    """Known arrays along a new axis."""
    return known(np.stack([numbers(each) for each in arrays], axis=axis))


def take(x: Array, indices: Array, *, axis: int) -> Array:
    """The elements at known places along an axis."""
    graph, places = graph_of(x), numbers(indices)
    shape = (*x.shape[:axis], len(places), *x.shape[axis + 1 :])
    value = operate(graph, "Gather", x.value, laid(graph, known(places)), axis=x.order.index(axis))
    return Recorded(shape, x.dtype, graph, value, x.order)


def repeat(x: Array, times: int, *, axis: int) -> Array:
    """Each element along an axis so many times in a row."""
    axis %= x.ndim
    length: Any = x.shape[axis]  # never the batch
    return take(x, known(np.repeat(np.arange(length), times)), axis=axis)


# --- known arrays ---


def arange(start: int, stop: int | None = None, *, device: Any = None) -> Array:
    """Whole numbers in a row."""
    return known(np.arange(start) if stop is None else np.arange(start, stop))


def astype(x: Array, dtype: Any) -> Array:
    """A known array in another type."""
    return known(numbers(x).astype(dtype))


def numbers(x: Array) -> np.ndarray:
    """The numbers of a known array.

    Raises:
        InputError: they are not known.
    """
    if x.known is None:
        raise InputError("This function takes known arrays alone in the ONNX graphs that coatref writes.")
    return np.asarray(x.known)


# --- sums ---


def matmul(x: Array, y: Array) -> Array:
    """The matrix product over the last two axes."""
    graph = graph_of(x, y)
    shape = (*broadcast(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
    return held(graph, shape, x.dtype, operate(graph, "MatMul", laid(graph, x), laid(graph, y)))


def reduced(operator: str, x: Array, axis: Axes, keepdims: bool) -> Array:
    """An array reduced along some axes."""
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = tuple(each % x.ndim for each in axes)
    places = tuple(sorted(x.order.index(each) for each in axes))
    value = reduce(graph_of(x), operator, x.value, places, keepdims=keepdims)
    if keepdims:
        shape = tuple(1 if each in axes else length for each, length in enumerate(x.shape))
        return Recorded(shape, x.dtype, x.graph, value, x.order)
    left = [each for each in range(x.ndim) if each not in axes]
    order = tuple(left.index(each) for each in x.order if each in left)
    return Recorded(tuple(x.shape[each] for each in left), x.dtype, x.graph, value, order)


def mean(x: Array, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """The mean along some axes, or of all numbers."""
    return reduced("ReduceMean", x, axis, keepdims)


def sum(x: Array, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """The sum along some axes, or of all numbers."""
    return reduced("ReduceSum", x, axis, keepdims)


def max(x: Array, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """The largest number along some axes, or of all."""
    return reduced("ReduceMax", x, axis, keepdims)
