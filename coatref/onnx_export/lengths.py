"""Lengths of axes in a graph that takes batches of any size: whole numbers, and multiples of the unknown batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from coatref.errors import ShapeError

Length = Union[int, "Batch"]


@dataclass(frozen=True)
class Batch:
    """So many times the number of images, which is known only when the graph runs; at least 1."""

    times: int = 1

    def __mul__(self, other: Length) -> Batch:
        if isinstance(other, Batch):
            raise ShapeError("An array with two axes as long as the batch cannot be flattened.")
        return Batch(self.times * other)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> Batch:
        if self.times % other:
            raise ShapeError(f"A batch of {self.times} N images is not known to be a multiple of {other}.")
        return Batch(self.times // other)

    def __mod__(self, other: int) -> int:
        self // other  # raises where the remainder depends on N
        return 0


Shape = tuple[Length, ...]


def total(shape: Shape) -> Length:
    """The number of elements."""
    count: Length = 1
    for length in shape:
        count = count * length
    return count


def broadcast(*shapes: Shape) -> Shape:
    """The shape of what arrays of these shapes give element by element.

    Raises:
        ShapeError: they do not go together.
    """
    axes = max(len(shape) for shape in shapes)
    padded = [(1,) * (axes - len(shape)) + shape for shape in shapes]
    result: list[Length] = []
    for lengths in zip(*padded, strict=True):
        long = {length for length in lengths if length != 1}
        if len(long) > 1:
            raise ShapeError(f"Arrays of shapes {', '.join(map(str, shapes))} do not go together.")
        result.append(long.pop() if long else 1)
    return tuple(result)


def filled_in(shape: tuple[Length, ...], whole: Length) -> Shape:
    """A shape with the length that is given as -1, from the number of all elements.

    Raises:
        ShapeError: that number is another.
    """
    rest = total(tuple(length for length in shape if length != -1))
    if -1 in shape:
        missing: Length = 1 if isinstance(whole, Batch) and whole == rest else _divided(whole, rest)
        shape = tuple(missing if length == -1 else length for length in shape)
    if total(shape) != whole:
        raise ShapeError(f"{whole} elements cannot have the shape {shape}.")
    return shape


def _divided(whole: Length, rest: Length) -> Length:
    """How many times `rest` goes into `whole`."""
    if isinstance(rest, Batch):
        if not isinstance(whole, Batch) or whole.times % rest.times:
            raise ShapeError(f"{whole} elements are no multiple of {rest}.")
        return whole.times // rest.times
    return whole // rest
