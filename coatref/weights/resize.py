"""Parameters for images of another size: relative-bias tables by the paper's interpolation, or by timm's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from coatref.errors import InputError
from coatref.params import Params, from_flat, tensor_tree, to_host
from coatref.registry import library_of, place, sealed
from coatref.tree import flatten

Resize = Literal["paper", "timm"]


def size_of(image_size: Any) -> tuple[int, int] | None:
    """Height and width of an image size given as both, as one number for a square, or not at all.

    Raises:
        InputError: it is none of these.
    """
    if image_size is None:
        return None
    sides = (image_size, image_size) if type(image_size) is int else image_size
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise InputError(
            f"image_size is a height and a width in pixels, or one number for a square, got {image_size!r:.80}."
        )
    return sides[0], sides[1]


def refuse_unknown_method(method: Any) -> None:
    """Refuse a way to resize tables that there is not.

    Raises:
        InputError: names those that there are.
    """
    if not isinstance(method, str) or method not in get_args(Resize):
        raise InputError(f"Relative-bias tables are resized as {' or '.join(get_args(Resize))}, got {method!r:.80}.")


def resize(params: Params, size: tuple[int, int], method: Resize = "paper") -> Params:
    """Parameters for images of another size.

    Args:
        params: of any library.
        size: height and width in pixels.
        method: "paper" is `Params.resize`; "timm" is `geometric_resize` of every table, in float32 on the host.

    Raises:
        InputError: the method is not known.
        SizeError: the size has no meaning under the spec.
    """
    refuse_unknown_method(method)
    if method == "paper" or size == params.spec.image_size:
        return params if size == params.spec.image_size else params.resize(*size)
    spec = params.spec.replace(image_size=size)
    arrays = params.flatten()
    changed: dict[str, Any] = {}
    for name, tensor in flatten(tensor_tree(spec)):
        array = arrays[name]
        if tuple(array.shape) != tensor.shape:
            _, rows, columns = tensor.shape
            table = geometric_resize(to_host(name, array), rows, columns)
            library = library_of(array)
            array = sealed(place(library, table, array.dtype, library.device(array)))
        changed[name] = array
    return from_flat(spec, changed)


def geometric_resize(table: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A relative-bias table at other offsets, as timm 1.0.31 does it (`resize_rel_pos_bias_table`, after BEiT).

    The table's own offsets are laid out in geometric progression, 0, 1, 1 + q, 1 + q + q^2, ... on both sides, with q
    such that the outermost come to lie at the outermost of the new ones; between them it is linear, in both directions.

    Computed in float32 whatever the type of the table, step by step as timm does, and given back in that type.

    Shapes: (heads, 2H-1, 2W-1) -> (heads, rows, columns).
    """
    source = table.astype(np.float32)
    axes = [
        neighbours(offsets(length, target), np.arange(target, dtype=np.float32) - np.float32(target // 2))
        for length, target in zip(table.shape[1:], (rows, columns), strict=True)
    ]
    (y, dy), (x, dx) = axes
    numerator = np.zeros((table.shape[0], rows, columns), np.float32)
    for i in range(2):
        for j in range(2):  # a corner counts as much as the target is away from the opposite one
            weight = dy[1 - i][:, None] * dx[1 - j][None, :]  # (rows, columns)
            numerator += source[:, y[i][:, None], x[j][None, :]] * weight
    denominator = (dy[0] + dy[1])[:, None] * (dx[0] + dx[1])[None, :]
    resized: np.ndarray = (numerator / denominator).astype(table.dtype)
    return resized


def offsets(length: int, target: int) -> np.ndarray:
    """Where the `length` offsets of a table come to lie among `target` new ones, whose middle is 0 and whose step is 1.

    Returns:
        (length,) in float32, ascending.
    """
    half, reach = length // 2, target // 2
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2.0
        if (1.0 - q**half) / (1.0 - q) > reach:
            right = q
        else:
            left = q
    places: list[float] = []
    current = 1.0
    for index in range(half):
        places.append(current)
        current += q ** (index + 1)
    return np.asarray([*(-place for place in reversed(places)), 0.0, *places], np.float32)


def neighbours(points: np.ndarray, targets: np.ndarray) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """The point left and right of each target, and how far these are; beyond the outermost, that one alone."""
    right = np.minimum(np.searchsorted(points, targets, side="left"), len(points) - 1)
    left = np.clip(right - 1, 0, len(points) - 1)
    to_left, to_right = np.maximum(targets - points[left], 0), np.maximum(points[right] - targets, 0)
    both = (to_left == 0) & (to_right == 0)
    to_left[both] = to_right[both] = 1
    return (left, right), (to_left, to_right)
