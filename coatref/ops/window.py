"""Sliding windows over a grid: what convolution and pooling have in common."""

from __future__ import annotations

from typing import Literal

from coatref.errors import ShapeError
from coatref.registry import Array, device_of, namespace
from coatref.specification.grids import padding_amounts

WindowPadding = Literal["same", "symmetric", "valid"]


def pad_axis(x: Array, axis: int, before: int, after: int, value: float) -> Array:
    """`before` and `after` rows of `value` added along one axis; the standard has no pad."""
    if before == 0 and after == 0:
        return x
    xp = namespace(x)

    def block(length: int) -> Array:
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        return xp.full(shape, value, dtype=x.dtype, device=device_of(x))

    parts = ([block(before)] if before else []) + [x] + ([block(after)] if after else [])
    return xp.concat(parts, axis=axis)


def shifted(x: Array, kernel: tuple[int, int], stride: int, padding: WindowPadding, value: float) -> list[Array]:
    """The kh*kw views of a grid that a sliding window sees.

    shifted[k*kw + l][n, i, j, c] = x_padded[n, s*i + k, s*j + l, c]

    Args:
        x: (N, H, W, C).
        kernel: (kh, kw).
        stride: s, on both axes.
        padding: see `coatref.specification.grids.padding_amounts`.
        value: what stands in the padding.

    Returns:
        kh*kw arrays (N, H', W', C), in row order of the window.

    Raises:
        ShapeError: x is no grid, or the window does not fit into it.
    """
    if x.ndim != 4:
        raise ShapeError(f"A grid (N, H, W, C) was expected, got an array of shape {x.shape}.")
    (kh, kw), (height, width) = kernel, x.shape[1:3]
    x = pad_axis(x, 1, *padding_amounts(height, kh, stride, padding), value)
    x = pad_axis(x, 2, *padding_amounts(width, kw, stride, padding), value)
    rows, columns = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1  # H', W'
    if x.shape[1] < kh or x.shape[2] < kw:
        raise ShapeError(f"A {kh}x{kw} window with padding {padding!r} does not fit into a {height}x{width} grid.")
    last_row, last_column = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    return [
        x[:, k : k + last_row : stride, m : m + last_column : stride, :]  # (N, H, W, C) -> (N, H', W', C)
        for k in range(kh)
        for m in range(kw)
    ]
