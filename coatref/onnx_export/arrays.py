"""Arrays without numbers: what is computed with them is written down as operators of an ONNX graph.

They have the functions of the array API standard that the definition uses (`coatref.onnx_export.namespace`), so
`coatref.forward` runs on them as on any others. What depends on no input, such as the index of a bias table, is computed
at once, by NumPy. A permutation of axes is only noted, and carried out where an operator needs its axes in another order:
two that undo each other cost nothing, and a grid stays as convolutions take it, channels first, from one to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.errors import InputError
from coatref.onnx_export.graph import Graph, constant, operate
from coatref.onnx_export.lengths import Batch, Shape, broadcast, filled_in, total

Order = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Recorded:
    """An array in a graph that is being recorded.

    Attributes:
        shape: with a `Batch` where the number of images enters.
        dtype: NumPy's.
        graph, value: where it is computed, and the name of the value that holds it; None for a known one.
        order: the axis of `shape` that each axis of the value is.
        known: its numbers, where they depend on no input and no parameter.
    """

    shape: Shape
    dtype: np.dtype[Any]
    graph: Graph | None = None
    value: str = ""
    order: Order = ()
    known: Any = None

    device = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        from coatref.onnx_export import namespace

        return namespace

    def __add__(self, other: Any) -> Recorded:
        return elementwise("Add", np.add, self, other)

    def __radd__(self, other: Any) -> Recorded:
        return elementwise("Add", np.add, other, self)

    def __sub__(self, other: Any) -> Recorded:
        return elementwise("Sub", np.subtract, self, other)

    def __rsub__(self, other: Any) -> Recorded:
        return elementwise("Sub", np.subtract, other, self)

    def __mul__(self, other: Any) -> Recorded:
        return elementwise("Mul", np.multiply, self, other)

    def __rmul__(self, other: Any) -> Recorded:
        return elementwise("Mul", np.multiply, other, self)

    def __truediv__(self, other: Any) -> Recorded:
        return elementwise("Div", np.true_divide, self, other)

    def __floordiv__(self, other: Any) -> Recorded:
        return elementwise(None, np.floor_divide, self, other)

    def __mod__(self, other: Any) -> Recorded:
        return elementwise(None, np.remainder, self, other)

    def __neg__(self) -> Recorded:
        return elementwise("Neg", np.negative, self)

    def __lt__(self, other: Any) -> Recorded:
        return elementwise("Less", np.less, self, other, dtype="bool")

    def __gt__(self, other: Any) -> Recorded:
        return elementwise("Greater", np.greater, self, other, dtype="bool")

    def __getitem__(self, key: Any) -> Recorded:
        return sliced(self, key)


def known(values: Any, dtype: Any = None) -> Recorded:
    """An array whose numbers are known."""
    array = np.asarray(values, dtype)
    return Recorded(array.shape, array.dtype, order=tuple(range(array.ndim)), known=array)


def held(graph: Graph, shape: Shape, dtype: Any, value: str, order: Order | None = None) -> Recorded:
    """An array that is a value of a graph."""
    return Recorded(shape, np.dtype(dtype), graph, value, tuple(range(len(shape))) if order is None else order)


def graph_of(*arrays: Recorded) -> Graph:
    """The graph that arrays are in."""
    return next(array.graph for array in arrays if array.graph is not None)


def laid(graph: Graph, x: Recorded, order: Order | None = None) -> str:
    """The value of an array with its axes in an order; None: in that of its shape."""
    order = tuple(range(x.ndim)) if order is None else order
    if x.known is not None:
        return constant(graph, np.transpose(x.known, order))
    if x.order == order:
        return x.value
    return operate(graph, "Transpose", x.value, perm=tuple(x.order.index(axis) for axis in order))


def permuted(x: Recorded, axes: Sequence[int]) -> Recorded:
    """Axis k of the result is axis axes[k] of x; nothing is recorded."""
    if x.known is not None:
        return known(np.transpose(x.known, axes))
    shape = tuple(x.shape[axis] for axis in axes)
    return Recorded(shape, x.dtype, x.graph, x.value, tuple(list(axes).index(axis) for axis in x.order))


def reshaped(x: Recorded, shape: Sequence[Any]) -> Recorded:
    """The elements, row by row, in another shape; one length may be -1."""
    if x.known is not None:
        return known(np.reshape(x.known, tuple(shape)))
    full = filled_in(tuple(shape), total(x.shape))
    if full == x.shape:
        return x
    graph = graph_of(x)
    target = constant(graph, np.asarray([-1 if isinstance(each, Batch) else each for each in full], np.int64))
    return held(graph, full, x.dtype, operate(graph, "Reshape", laid(graph, x), target))


def elementwise(operator: str | None, function: Callable[..., Any], *operands: Any, dtype: Any = None) -> Recorded:
    """An operation on elements that stand at the same place, numbers among the operands taken for arrays.

    Args:
        operator: ONNX's name of it; None: it is for known arrays alone.
        function: NumPy's form of it.
        operands: arrays and numbers.
        dtype: of the result; None: that of the first array.

    Raises:
        InputError: there is no such operator.
        ShapeError: the shapes do not go together.
    """
    like = next(each for each in operands if isinstance(each, Recorded))
    arrays = [each if isinstance(each, Recorded) else known(each, like.dtype) for each in operands]
    if all(each.known is not None for each in arrays):
        return known(function(*(each.known for each in arrays)))
    if operator is None:
        raise InputError(f"{function.__name__} cannot be part of the ONNX graphs that coatref writes.")
    graph = graph_of(*arrays)
    shape = broadcast(*(each.shape for each in arrays))
    orders = {each.order for each in arrays if each.known is None and each.shape == shape}
    order = orders.pop() if len(orders) == 1 else tuple(range(len(shape)))
    value = operate(graph, operator, *(beside(graph, each, order) for each in arrays))
    return Recorded(shape, np.dtype(like.dtype if dtype is None else dtype), graph, value, order)


def beside(graph: Graph, x: Recorded, order: Order) -> str:
    """The value of an array such that it broadcasts against values whose axes stand in an order."""
    if order != tuple(range(len(order))) and 0 < x.ndim < len(order):
        x = reshaped(x, (1,) * (len(order) - x.ndim) + x.shape)
    return laid(graph, x, order if x.ndim == len(order) else None)


def sliced(x: Recorded, key: Any) -> Recorded:
    """x[key], for a key of slices and whole numbers; of a known array any key of NumPy's."""
    if x.known is not None:
        return known(x.known[key])
    keys = key if isinstance(key, tuple) else (key,)
    keys = keys + (slice(None),) * (x.ndim - len(keys))
    ranges, shape = {}, list(x.shape)
    for axis, part in enumerate(keys):
        if part == slice(None):
            continue
        length = x.shape[axis]
        if isinstance(length, Batch):
            raise InputError("An axis as long as the batch cannot be cut in the ONNX graphs that coatref writes.")
        taken = range(length)[part] if isinstance(part, slice) else range(part % length, part % length + 1)
        shape[axis] = len(taken)
        if taken != range(length):
            ranges[axis] = taken
    if ranges:
        x = cut(x, ranges)
    left = tuple(length for length, part in zip(shape, keys, strict=True) if isinstance(part, slice))
    return reshaped(x, left) if len(left) < x.ndim else x


def cut(x: Recorded, ranges: dict[int, range]) -> Recorded:
    """Some positions along some axes: axis -> which. Backwards is allowed."""
    graph = graph_of(x)
    starts, ends, axes, steps = ([], [], [], [])  # type: tuple[list[int], list[int], list[int], list[int]]
    for axis, taken in ranges.items():
        starts.append(taken.start)
        ends.append(taken.stop if taken.stop >= 0 else -(2**31))  # before the first one
        axes.append(x.order.index(axis))
        steps.append(taken.step)
    numbers = (constant(graph, np.asarray(each, np.int64)) for each in (starts, ends, axes, steps))
    shape = tuple(len(ranges[axis]) if axis in ranges else length for axis, length in enumerate(x.shape))
    return Recorded(shape, x.dtype, graph, operate(graph, "Slice", x.value, *numbers), x.order)
