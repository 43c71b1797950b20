"""Resizing a relative-bias table to another grid, as the paper does for finetuning at a larger size (App. A.1)."""

from __future__ import annotations

from typing import Any, Literal

from coatref.errors import InputError
from coatref.ops.dense import matmul
from coatref.registry import Array, device_of, namespace


def resize_table(
    table: Array, rows: int, columns: int, sampling: Literal["half_pixel", "align_corners"] = "half_pixel"
) -> Array:
    """Bilinear interpolation of each head's table to rows x columns offsets.

    resized[h] = R P[h] C^T, where each row of R (and of C) holds the two weights of `interpolation_matrix`.

    The paper says "bilinear" and no more. "half_pixel" is TensorFlow 2's `tf.image.resize`, which google-research/maxvit
    uses, and torch's `align_corners=False`; "align_corners" keeps the outermost offsets in place. Neither smooths when
    the table shrinks.

    Shapes: (heads, 2H-1, 2W-1) -> (heads, rows, columns), with rows = 2H'-1 and columns = 2W'-1 for the new grid.
    """
    if sampling not in ("half_pixel", "align_corners"):
        raise InputError(f"resize_table samples at 'half_pixel' or 'align_corners', got {sampling!r:.80}.")
    xp = namespace(table)
    r = interpolation_matrix(table.shape[1], rows, sampling, xp, table)  # (rows, 2H-1)
    c = interpolation_matrix(table.shape[2], columns, sampling, xp, table)  # (columns, 2W-1)
    r, c = (xp.broadcast_to(m, (table.shape[0], *m.shape)) for m in (r, c))
    return matmul(matmul(r, table), xp.permute_dims(c, (0, 2, 1)))


def interpolation_matrix(
    source: int, target: int, sampling: Literal["half_pixel", "align_corners"], xp: Any, like: Array
) -> Array:
    """The linear map that interpolates `source` samples at `target` places.

    Target t lies at s = (t + 1/2) source/target - 1/2 ("half_pixel") or s = t (source-1)/(target-1) ("align_corners") on
    the source's axis, held between 0 and source - 1; source sample m has the weight max(0, 1 - |s - m|).

    Returns:
        (target, source), in the dtype and on the device of `like`; every row sums to 1.
    """

    def axis(length: int) -> Array:
        return xp.astype(xp.arange(length, device=device_of(like)), like.dtype)

    if sampling == "half_pixel":
        place = (axis(target) + 0.5) * (source / target) - 0.5  # (target,)
    else:
        place = axis(target) * ((source - 1) / max(target - 1, 1))
    place = xp.clip(place, 0.0, float(source - 1))
    distance = xp.abs(place[:, None] - axis(source)[None, :])  # (target, source)
    return xp.maximum(1.0 - distance, xp.zeros_like(distance))
