"""Primitives called with a choice that does not exist, or a shape that does not fit: refused, never taken silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coatref import attention, ops
from coatref.errors import InputError, ShapeError

X = np.ones((2, 4, 6, 3))
Q = np.ones((2, 1, 3, 4))


@pytest.mark.parametrize(
    "call",
    [
        lambda odd: ops.conv2d(X, np.ones((3, 3, 3, 5)), padding=odd),
        lambda odd: ops.depthwise_conv2d(X, np.ones((3, 3, 3)), padding=odd),
        lambda odd: ops.max_pool(X, padding=odd),
        lambda odd: ops.avg_pool(X, padded_zeros=odd),
        lambda odd: ops.activation(X, odd),
        lambda odd: attention.resize_table(np.ones((2, 3, 5)), 5, 7, odd),
        lambda odd: attention.relative_attention(Q, Q, Q, scale_site=odd),
        lambda odd: attention.relative_attention(Q, Q, Q, np.ones((1, 3, 3)), add=odd),
    ],
)
def test_unknown_choices(call: Callable[[Any], Any]) -> None:
    with pytest.raises(InputError, match="'sideways'"):
        call("sideways")


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 1, 1, 3), (1, 3), ()])
def test_key_masks_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="key_mask"):
        attention.relative_attention(Q, Q, Q, key_mask=np.ones(shape, dtype=bool))


@pytest.mark.parametrize("grid", [(5, 4), (4, 5), (8, 4)])
def test_windows_that_make_up_no_grid(grid: tuple[int, int]) -> None:
    with pytest.raises(ShapeError):
        attention.merge_windows(np.ones((3, 2, 2, 5)), *grid)
