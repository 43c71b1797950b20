"""Where one of our tensors is in another project's: the one form that every table of names is brought to.

Every layout met so far is our array with its axes split, put into another order and merged again:

    theirs = ours.reshape(split).transpose(order).reshape(whole)

with axes turned round behind it where offsets are counted the other way, and a fused q|k|v is three of these, stacked along
a new axis before the last step. So a table needs no code of its own to be read forwards and backwards, and export is the
inverse of import by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How an array of ours is laid out elsewhere: `whole` is the shape there."""

    split: Shape
    order: tuple[int, ...]
    whole: Shape
    flipped: tuple[int, ...] = ()  # axes of `whole` that run backwards there


class Place(NamedTuple):
    """Where one of our tensors is in theirs."""

    ours: str  # dotted name
    theirs: str  # their name
    shape: Shape  # of ours
    layout: Layout  # of theirs; of its own part alone where it is fused
    part: int | None = None  # of a fused q|k|v: 0, 1, 2
    stacked: int = 0  # the axis along which the three parts are stacked, before they are merged into `fused`
    fused: Shape = ()

    @property
    def their_shape(self) -> Shape:
        """Shape of the whole tensor that holds it."""
        return self.layout.whole if self.part is None else self.fused


# --- layouts: from the shape of ours, in the letters of coatref/ops/__init__.py ---


def same(shape: Shape) -> Layout:
    """As ours: kernels (kh, kw, C, D), dense weights (C, D), vectors, tables (heads, 2H-1, 2W-1)."""
    return Layout(shape, tuple(range(len(shape))), shape)


def torch_kernel(shape: Shape) -> Layout:
    """(kh, kw, C, D) -> (D, C, kh, kw)."""
    kh, kw, c, d = shape
    return Layout(shape, (3, 2, 0, 1), (d, c, kh, kw))


def torch_depthwise(shape: Shape) -> Layout:
    """(kh, kw, C) -> (C, 1, kh, kw)."""
    kh, kw, c = shape
    return Layout(shape, (2, 0, 1), (c, 1, kh, kw))


def torch_linear(shape: Shape) -> Layout:
    """(C, D) -> (D, C)."""
    return Layout(shape, (1, 0), shape[::-1])


def torch_pointwise(shape: Shape) -> Layout:
    """(C, D) -> (D, C, 1, 1), a 1x1 convolution."""
    return Layout(shape, (1, 0), (*shape[::-1], 1, 1))


def torch_weight(shape: Shape, dense: bool) -> Layout:
    """A weight of any kind as torch has it; `dense` tells a dense layer from a 1x1 convolution."""
    kinds: dict[int, Callable[[Shape], Layout]] = {
        2: torch_linear if dense else torch_pointwise,
        3: torch_depthwise,
        4: torch_kernel,
    }
    return kinds[len(shape)](shape)


def keras_weight(shape: Shape, dense: bool) -> Layout:
    """A weight of any kind as Keras has it: (kh, kw, C, D), depthwise (kh, kw, C, 1), dense (C, D), 1x1 (1, 1, C, D)."""
    whole = {2: shape if dense else (1, 1, *shape), 3: (*shape, 1), 4: shape}[len(shape)]
    return Layout(shape, tuple(range(len(shape))), whole)


def heads_last_table(shape: Shape) -> Layout:
    """(heads, 2H-1, 2W-1) -> ((2H-1)(2W-1), heads)."""
    heads, rows, columns = shape
    return Layout((heads, rows * columns), (1, 0), (rows * columns, heads))


def heads_first_table(shape: Shape) -> Layout:
    """(heads, 2H-1, 2W-1) -> (heads, (2H-1)(2W-1))."""
    heads, rows, columns = shape
    return Layout(shape, (0, 1, 2), (heads, rows * columns))


def heads_out(shape: Shape, d: int) -> Layout:
    """The output channels of q, k or v by heads: (C, heads*D) -> (C, heads, D), and (heads*D,) -> (heads, D)."""
    return Layout(shape, tuple(range(len(shape))), (*shape[:-1], shape[-1] // d, d))


def heads_in(shape: Shape, d: int) -> Layout:
    """The input channels of the output projection by heads: (heads*D, C) -> (heads, D, C)."""
    return Layout(shape, (0, 1), (shape[0] // d, d, *shape[1:]))


# --- between the two ---


def expected(places: Iterable[Place]) -> dict[str, Shape]:
    """Their names and shapes."""
    return {place.theirs: place.their_shape for place in places}


def arranged(place: Place, array: np.ndarray) -> np.ndarray:
    """Ours in their layout: a view where that can be."""
    layout = place.layout
    array = array.reshape(layout.split).transpose(layout.order).reshape(layout.whole)
    return np.flip(array, layout.flipped) if layout.flipped else array


def to_ours(place: Place, array: np.ndarray) -> np.ndarray:
    """One of our arrays from theirs that holds it: a view where that can be."""
    layout = place.layout
    if place.part is not None:
        parts = list(layout.whole)
        parts.insert(place.stacked, 3)
        array = np.take(array.reshape(parts), place.part, axis=place.stacked)
    if layout.flipped:
        array = np.flip(array, layout.flipped)
    transposed = tuple(layout.split[axis] for axis in layout.order)
    return array.reshape(transposed).transpose(np.argsort(layout.order)).reshape(place.shape)


def to_theirs(places: Iterable[Place], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All of their arrays from ours, by name: the inverse of `to_ours`. Views of ours where that can be."""
    theirs: dict[str, np.ndarray] = {}
    for name, group in groups(places).items():
        parts = [arranged(place, arrays[place.ours]) for place in group]
        if group[0].part is None:
            theirs[name] = parts[0]
        else:
            theirs[name] = np.stack(parts, axis=group[0].stacked).reshape(group[0].fused)
    return theirs


def groups(places: Iterable[Place]) -> dict[str, list[Place]]:
    """Their name -> the places in it: one, or those of q, k and v in this order."""
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.theirs, []).append(place)
    return {name: sorted(group, key=lambda place: place.part or 0) for name, group in found.items()}


def read(places: Iterable[Place], fetch: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Our names and arrays, one of their tensors after the other, each fetched once and kept no longer than needed."""
    for name, group in groups(places).items():
        array = fetch(name)
        for place in group:
            yield place.ours, to_ours(place, array)


def fused_heads_first(shape: Shape, part: int, d: int, tail: Shape) -> dict[str, Any]:
    """What places q, k or v in torch's fused (3*heads*D, C, ...): output channels are [head][q, k, v][channel].

    Args:
        shape: (C, heads*D) of a weight or (heads*D,) of a bias.
        part: 0, 1, 2 for q, k, v.
        d: D, channels of a head.
        tail: axes of length 1 behind, (1, 1) for a 1x1 convolution.
    """
    inner = shape[-1]
    split = (inner // d, d) if len(shape) == 1 else (shape[0], inner // d, d)
    order, whole = ((0, 1), split) if len(shape) == 1 else ((1, 2, 0), (inner // d, d, shape[0]))
    behind = tail if len(shape) == 2 else ()
    return {
        "layout": Layout(split, order, whole),
        "part": part,
        "stacked": 1,
        "fused": (3 * inner, *shape[:-1], *behind),
    }


def fused_in_blocks(layout: Layout, axis: int, part: int) -> dict[str, Any]:
    """What places q, k or v in a tensor that holds all of q, all of k and all of v one after the other along an axis."""
    fused = list(layout.whole)
    fused[axis] *= 3
    return {"layout": layout, "part": part, "stacked": axis % len(fused), "fused": tuple(fused)}
