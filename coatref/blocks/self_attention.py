"""Self-attention of a grid: projections, heads and the relative bias around `relative_attention`."""

from __future__ import annotations

import math
from typing import Any

from coatref import tensors
from coatref.attention import log_mlp_bias_table, merge_windows, oriented, split_windows
from coatref.primitives import Primitives
from coatref.registry import Array, namespace
from coatref.specification.grids import Grid
from coatref.specification.parts import Attention, RelativeBias
from coatref.tap import Tap, no_tap
from coatref.tensors import Tensor, Tree


def self_attention(p: Tree, x: Array, spec: Attention, *, ops: Primitives, tap: Tap = no_tap) -> Array:
    """Attention of every position of a grid (or window) to every other: o(concat over heads of Eq. (3)).

    Args:
        p: {"q": {"w", "b"}, "k", "v", "o", "relative_bias"}; see `self_attention_tensors`.
        x: (N, H, W, C).
        spec: form, heads, scale and relative bias.
        ops: the functions to compute with.
        tap: sees "q", "k", "v" (N, heads, H*W, D), "bias" (heads, H*W, H*W), "logits", "weights", "heads" and "o".

    Returns:
        (N, H, W, D) with D the width of "o".
    """
    height, width = x.shape[1:3]
    if spec.window is not None:
        x = split_windows(x, spec.window)  # (N, H, W, C) -> (N * windows, h, w, C)
    grid: Grid = tuple(x.shape[1:3])
    heads = p["q"]["w"].shape[1] // spec.head_size
    q, k, v = (tap(name, split_heads(ops.dense(x, **p[name]), heads)) for name in ("q", "k", "v"))
    if spec.form == "linear":
        y = ops.linear_attention(q, k, v)
    else:
        y = ops.relative_attention(
            q,
            k,
            v,
            gathered_bias(p, spec.relative_bias, grid, ops, tap),
            scale=scale_factor(spec, heads),
            scale_site=spec.scale_site,
            add=spec.relative_bias.add if spec.relative_bias is not None else "pre_softmax",
            tap=tap,
        )  # (N, heads, H*W, D)
    y = tap("heads", merge_heads(y, grid))  # (N, H, W, heads * D)
    y = tap("o", ops.dense(y, **p["o"]))  # heads * D -> D of the block
    return merge_windows(y, height, width) if spec.window is not None else y


def split_heads(x: Array, heads: int) -> Array:
    """Channels to heads; channel h*D + d is channel d of head h. Shapes: (N, H, W, heads*D) -> (N, heads, H*W, D)."""
    xp = namespace(x)
    n, height, width, channels = x.shape
    x = xp.reshape(x, (n, height * width, heads, channels // heads))
    return xp.permute_dims(x, (0, 2, 1, 3))


def merge_heads(x: Array, grid: Grid) -> Array:
    """The inverse of `split_heads`. Shapes: (N, heads, H*W, D) -> (N, H, W, heads*D)."""
    xp = namespace(x)
    n, heads, _, size = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (n, *grid, heads * size))


def gathered_bias(p: Tree, spec: RelativeBias | None, grid: Grid, ops: Primitives, tap: Tap) -> Array | None:
    """The bias of all pairs of positions, (heads, H*W, H*W) or (1, H*W, H*W) where all heads share it; None without."""
    if spec is None:
        return None
    if spec.kind == "table":
        table = p["relative_bias"]["table"]
    else:
        table = log_mlp_bias_table(**p["relative_bias"], height=grid[0], width=grid[1])
    return tap("bias", ops.gather_bias(oriented(table, spec.orientation), *grid))


def scale_factor(spec: Attention, heads: int) -> float:
    """The number that the attention logits are multiplied by; d is the head size."""
    d = spec.head_size
    factors = {"1/sqrt(d)": 1 / math.sqrt(d), "1/sqrt(heads*d)": 1 / math.sqrt(heads * d), "sqrt(d)": math.sqrt(d), "1": 1.0}
    return factors[spec.scale]


def table_shape(spec: RelativeBias, heads: int, grid: Grid) -> tuple[int, int, int]:
    """Shape of the relative-bias table as it is stored."""
    rows, columns = 2 * grid[0] - 1, 2 * grid[1] - 1
    stored = (columns, rows) if spec.orientation == "transposed" else (rows, columns)
    return (heads if spec.sharing == "per_head" else 1, *stored)


def self_attention_tensors(spec: Attention, input_width: int, output_width: int, grid: Grid) -> dict[str, Any]:
    """The parameter tree of self-attention on `grid` (height, width)."""
    heads = spec.head_count(input_width, output_width)
    inner = heads * spec.head_size
    tree: dict[str, Any] = {name: tensors.layer((input_width, inner), spec.qkv_bias) for name in ("q", "k", "v")}
    tree["o"] = tensors.layer((inner, output_width), spec.output_bias)
    bias = spec.relative_bias
    if bias is not None and bias.hidden is None:
        tree["relative_bias"] = {"table": Tensor(table_shape(bias, heads, spec.window or grid), "table")}
    elif bias is not None and bias.hidden is not None:
        tree["relative_bias"] = {
            "hidden": tensors.layer((2, bias.hidden), True),
            "out": tensors.layer((bias.hidden, heads if bias.sharing == "per_head" else 1), True),
        }
    return tree
