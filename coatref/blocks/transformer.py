"""The Transformer block with relative attention (Sec. 2.1, Eq. (3) and (4) of the paper)."""

from __future__ import annotations

from typing import Any

from coatref import tensors
from coatref.blocks.common import norm, pool, shortcut, shortcut_tensors
from coatref.blocks.self_attention import self_attention, self_attention_tensors
from coatref.primitives import Primitives
from coatref.registry import Array
from coatref.specification.grids import Grid
from coatref.specification.parts import Transformer, rounded
from coatref.specification.spec import Block
from coatref.tap import Tap, inside, no_tap
from coatref.tensors import Tree


def transformer(p: Tree, x: Array, block: Block, *, ops: Primitives, tap: Tap = no_tap) -> Array:
    """x <- Proj(Pool(x)) + Attention(Pool(Norm(x))), Eq. (4), then x <- x + FFN(Norm(x)).

    Only a block with a stride pools, and only one that changes the width (or is told to) projects.

    Args:
        p: see `transformer_tensors`.
        x: (N, H, W, C).
        block: the block's spec, input width and stride.
        ops: the functions to compute with.
        tap: sees every intermediate value.

    Returns:
        (N, H', W', D).
    """
    spec = transformer_of(block)
    if spec.norm_pool_order == "norm_then_pool":
        normalised = tap("attn_norm", norm(p["attn_norm"], x, spec.attention_norm, ops))
        y = tap("attn_pool", pool(normalised, spec.main_pool, ops)) if block.stride == 2 else normalised  # (N, H', W', C)
    else:
        pooled = tap("attn_pool", pool(x, spec.main_pool, ops)) if block.stride == 2 else x  # (N, H', W', C)
        y = normalised = tap("attn_norm", norm(p["attn_norm"], pooled, spec.attention_norm, ops))
    residual = shortcut(p, x if spec.residual_from == "input" else normalised, block, ops, tap)  # (N, H', W', D)
    y = self_attention(p["attn"], y, spec.attention, ops=ops, tap=inside(tap, "attn"))  # (N, H', W', C) -> D
    if spec.layer_scale is not None:
        y = tap("attn_scale", y * p["attn_scale"]["gamma"])
    x = tap("attn_sum", residual + y)

    normalised = tap("ffn_norm", norm(p["ffn_norm"], x, spec.ffn_norm, ops))
    y = tap("ffn.expand", ops.dense(normalised, **p["ffn"]["expand"]))  # D -> expanded
    y = tap("ffn.act", ops.activation(y, spec.ffn.activation))
    y = tap("ffn.shrink", ops.dense(y, **p["ffn"]["shrink"]))  # expanded -> D
    if spec.layer_scale is not None:
        y = tap("ffn_scale", y * p["ffn_scale"]["gamma"])
    return (x if spec.residual_from == "input" else normalised) + y


def transformer_of(block: Block) -> Transformer:
    """The block's spec as a Transformer, for the type checker."""
    assert isinstance(block.run, Transformer)
    return block.run


def expanded_width(block: Block) -> int:
    """Hidden width of the feed-forward network."""
    spec = transformer_of(block)
    base = block.input_width if spec.ffn.expansion_from == "input" else spec.width
    return rounded(spec.ffn.expansion * base, "floor", 1)


def transformer_tensors(block: Block, grid: Grid) -> dict[str, Any]:
    """The parameter tree of one Transformer block whose attention works on `grid` (height, width)."""
    spec, expanded = transformer_of(block), expanded_width(block)
    tree: dict[str, Any] = shortcut_tensors(block)
    tree["attn_norm"] = tensors.norm(spec.attention_norm, block.input_width)
    tree["attn"] = self_attention_tensors(spec.attention, block.input_width, spec.width, grid)
    if spec.layer_scale is not None:
        tree["attn_scale"] = tensors.layer_scale(spec.layer_scale, spec.width)
    tree["ffn_norm"] = tensors.norm(spec.ffn_norm, spec.width)
    tree["ffn"] = {
        "expand": tensors.layer((spec.width, expanded), spec.ffn.bias),
        "shrink": tensors.layer((expanded, spec.width), spec.ffn.bias),
    }
    if spec.layer_scale is not None:
        tree["ffn_scale"] = tensors.layer_scale(spec.layer_scale, spec.width)
    return tree
