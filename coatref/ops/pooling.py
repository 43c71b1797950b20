"""Pooling."""

from __future__ import annotations

import math
from typing import Literal

from coatref.errors import InputError
from coatref.ops.window import WindowPadding, shifted
from coatref.registry import Array, device_of, namespace


def max_pool(x: Array, *, size: int = 2, stride: int = 2, padding: WindowPadding = "same") -> Array:
    """The largest value of each window; padding never wins.

    y[n, i, j, c] = max_{k, l < size} x[n, s*i + k - p, s*j + l - p, c], over positions inside the grid.

    Shapes: (N, H, W, C) -> (N, H', W', C). Raises ShapeError where the window does not fit.
    """
    xp = namespace(x)
    views = shifted(x, (size, size), stride, padding, -math.inf)
    y = views[0]
    for view in views[1:]:
        y = xp.maximum(y, view)
    return y


def avg_pool(
    x: Array,
    *,
    size: int = 2,
    stride: int = 2,
    padding: WindowPadding = "same",
    padded_zeros: Literal["excluded", "counted"] = "excluded",
) -> Array:
    """The mean of each window.

    y[n, i, j, c] = sum over the window's positions inside the grid of x, divided by their number ("excluded",
    TensorFlow's SAME) or by size^2 ("counted", torch's default `count_include_pad`).

    Shapes: (N, H, W, C) -> (N, H', W', C). Raises ShapeError where the window does not fit.
    """
    if padded_zeros not in ("excluded", "counted"):
        raise InputError(f"avg_pool takes padded_zeros 'excluded' or 'counted', got {padded_zeros!r:.80}.")
    xp = namespace(x)
    total = sum_of(shifted(x, (size, size), stride, padding, 0.0))
    if padded_zeros == "counted":
        return total / size**2
    inside = xp.ones((1, x.shape[1], x.shape[2], 1), dtype=x.dtype, device=device_of(x))
    return total / sum_of(shifted(inside, (size, size), stride, padding, 0.0))  # count is (1, H', W', 1)


def global_avg_pool(x: Array) -> Array:
    """The mean over all positions. Shapes: (N, H, W, C) -> (N, C)."""
    return namespace(x).mean(x, axis=(1, 2))


def sum_of(arrays: list[Array]) -> Array:
    """Elementwise sum, from the first to the last."""
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total
