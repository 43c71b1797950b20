"""The static term w_{i-j} of Eq. (3): from a table of offsets to one number for each pair of positions (App. A.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from coatref.errors import ShapeError
from coatref.ops.activation import relu
from coatref.ops.dense import dense
from coatref.registry import Array, device_of, namespace

Orientation = Literal["query_minus_key", "key_minus_query", "transposed"]


def relative_offsets(height: int, width: int, xp: Any, device: Any = None) -> tuple[Array, Array]:
    """Row and column offset of every query position from every key position of a grid.

    rows[i*W + j, k*W + l] = i - k and columns[i*W + j, k*W + l] = j - l, for query (i, j) and key (k, l).

    Returns:
        Two integer arrays (H*W, H*W), from -(H-1) to H-1 and from -(W-1) to W-1.
    """
    position = xp.arange(height * width, device=device)  # (H*W,), row by row
    row, column = position // width, position % width
    return row[:, None] - row[None, :], column[:, None] - column[None, :]


def oriented(table: Array, orientation: Orientation) -> Array:
    """A table in the paper's orientation, query minus key: P[heads, i-k + H-1, j-l + W-1] for query (i, j), key (k, l).

    "key_minus_query" (google-research/maxvit) is flipped along both offsets; "transposed" has its two offsets in the
    other order. The paper's own is returned as it is.
    """
    xp = namespace(table)
    if orientation == "key_minus_query":
        return xp.flip(table, axis=(1, 2))
    if orientation == "transposed":
        return xp.permute_dims(table, (0, 2, 1))  # (heads, 2W-1, 2H-1) -> (heads, 2H-1, 2W-1)
    return table


def gather_bias(table: Array, height: int, width: int) -> Array:
    """The bias between all pairs of positions, by looking each offset up in the table.

    bias[h, i*W + j, k*W + l] = P[h, i-k + H-1, j-l + W-1]   (App. A.1, there 1-based)

    Args:
        table: P, (heads, 2H-1, 2W-1), query minus key.
        height: H.
        width: W.

    Returns:
        (heads, H*W, H*W): queries along axis 1, keys along axis 2.

    Raises:
        ShapeError: the table was made for another grid.
    """
    rows, columns = 2 * height - 1, 2 * width - 1
    if tuple(table.shape[1:]) != (rows, columns):
        raise ShapeError(
            f"A relative-bias table for a {height}x{width} grid has shape (heads, {rows}, {columns}), got {table.shape}."
        )
    xp = namespace(table)
    row_offset, column_offset = relative_offsets(height, width, xp, device_of(table))
    index = (row_offset + (height - 1)) * columns + (column_offset + (width - 1))  # (H*W, H*W)
    flat = xp.reshape(table, (table.shape[0], rows * columns))
    bias = xp.take(flat, xp.reshape(index, (-1,)), axis=1)  # (heads, H*W*H*W)
    return xp.reshape(bias, (table.shape[0], height * width, height * width))


def log_coordinates(height: int, width: int, xp: Any, dtype: Any, device: Any = None) -> Array:
    """Log-spaced offsets that the bias MLP is fed with (timm's RelPosMlp in mode "cr", after Swin V2).

    coordinates[a, b] = (f(a - (H-1)), f(b - (W-1))) with f(d) = sign(d) ln(1 + |d|).

    Returns:
        (2H-1, 2W-1, 2), rows first; query minus key, like a table.
    """

    def spaced(length: int) -> Array:
        offset = xp.astype(xp.arange(-(length - 1), length, device=device), dtype)  # (2*length-1,)
        return xp.sign(offset) * xp.log1p(xp.abs(offset))

    rows = xp.broadcast_to(spaced(height)[:, None], (2 * height - 1, 2 * width - 1))
    columns = xp.broadcast_to(spaced(width)[None, :], (2 * height - 1, 2 * width - 1))
    return xp.stack([rows, columns], axis=-1)


def log_mlp_bias_table(hidden: Mapping[str, Array], out: Mapping[str, Array], height: int, width: int) -> Array:
    """A relative-bias table computed by a small MLP from log-spaced offsets, for any grid.

    P[:, a, b] = out(relu(hidden(coordinates[a, b])))

    Args:
        hidden: dense layer {"w": (2, hidden), "b": (hidden,)}.
        out: dense layer {"w": (hidden, heads), "b": (heads,)}.
        height: H.
        width: W.

    Returns:
        (heads, 2H-1, 2W-1).
    """
    w = hidden["w"]
    xp = namespace(w)
    coordinates = log_coordinates(height, width, xp, w.dtype, device_of(w))
    return xp.permute_dims(dense(relu(dense(coordinates, **hidden)), **out), (2, 0, 1))

