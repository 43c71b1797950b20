"""Cutting a grid into windows, for local attention: option (B) of Sec. 2.1, which the paper did not take."""

from __future__ import annotations

from coatref.errors import ShapeError
from coatref.registry import Array, namespace


def split_windows(x: Array, window: tuple[int, int]) -> Array:
    """Non-overlapping windows of a grid, as images of a longer batch.

    Shapes: (N, H, W, C) -> (N * H/h * W/w, h, w, C), for windows of (h, w); windows of one image stand together, row by
    row. Raises ShapeError where they do not tile the grid.
    """
    xp = namespace(x)
    (n, height, width, channels), (h, w) = x.shape, window
    if height % h or width % w:
        raise ShapeError(f"Windows of {h}x{w} do not tile a {height}x{width} grid.")
    x = xp.reshape(x, (n, height // h, h, width // w, w, channels))
    x = xp.permute_dims(x, (0, 1, 3, 2, 4, 5))  # (N, H/h, W/w, h, w, C)
    return xp.reshape(x, (n * (height // h) * (width // w), h, w, channels))


def merge_windows(x: Array, height: int, width: int) -> Array:
    """The inverse of `split_windows`, for a grid of height x width.

    Shapes: (N * H/h * W/w, h, w, C) -> (N, H, W, C). Raises ShapeError where they do not make up whole grids.
    """
    xp = namespace(x)
    count, h, w, channels = x.shape
    if height % h or width % w or count % ((height // h) * (width // w)):
        raise ShapeError(f"{count} windows of {h}x{w} are no whole number of {height}x{width} grids.")
    n = count // ((height // h) * (width // w))
    x = xp.reshape(x, (n, height // h, width // w, h, w, channels))
    x = xp.permute_dims(x, (0, 1, 3, 2, 4, 5))  # (N, H/h, h, W/w, w, C)
    return xp.reshape(x, (n, height, width, channels))
