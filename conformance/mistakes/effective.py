"""What a spec computes at its image size, without what makes no difference there."""

from __future__ import annotations

import dataclasses
from typing import Any

from coatref.blocks.self_attention import scale_factor
from coatref.conformance.mistakes.changed import shapes
from coatref.specification.grids import Grid, grids, padding_amounts
from coatref.specification.parts import Attention, ConvNeXt, ConvStem, Head, MBConv, PatchStem, Pool, Run, Transformer
from coatref.specification.spec import Block, Spec


def effective(spec: Spec) -> dict[str, Any]:
    """Facts by dotted name; two specs with equal facts are the same function of image and parameters.

    A 2x2 pool pads only odd grids, a stride-1 block has no pool, BatchNorm and an average commute: such differences of
    fields are no differences here. The comparison may still call two equal functions different.

    Raises:
        SizeError: the spec has no meaning at its image size.
    """
    facts: dict[str, Any] = {"shapes": shapes(spec), "s0": stem_facts(spec)}
    for block, grid_in, grid_out in with_grids(spec):
        facts[block.name] = block_facts(block, grid_in, grid_out)
    facts["head"] = head_facts(spec.head)
    return facts


def with_grids(spec: Spec) -> list[tuple[Block, Grid, Grid]]:
    """Every block with the grids that come into and go out of it."""
    grid = grids(spec, *spec.image_size)
    blocks = list(spec.blocks())
    before = ["s0", *(block.name for block in blocks)]
    return [(block, grid[name], grid[block.name]) for name, block in zip(before, blocks, strict=False)]


def stem_facts(spec: Spec) -> tuple[Any, ...]:
    """Facts of the stem."""
    stem = spec.stem
    if isinstance(stem, PatchStem):
        return (stem,)
    strides, grid, amounts = [2] + [1] * (len(stem.widths) - 1), spec.image_size, []
    for stride in strides:
        amounts.append(tuple(padding_amounts(length, stem.kernel, stride, stem.padding) for length in grid))
        grid = (-(-grid[0] // stride), -(-grid[1] // stride))  # both paddings give this for an odd kernel
    normed = len(stem.widths) > 1 or stem.after_last == "norm_and_activation"
    return stem_rest(stem), tuple(amounts), (stem.norm, stem.activation) if normed else None


def stem_rest(stem: ConvStem) -> tuple[Any, ...]:
    """What of a stem needs no grid."""
    return stem.widths, stem.kernel, stem.after_last, stem.bias, stem.kernel % 2 or stem.padding


def pool_facts(pool: Pool, grid: Grid) -> tuple[Any, ...]:
    """Facts of a pool of stride 2 on a grid."""
    amounts = tuple(padding_amounts(length, pool.size, 2, pool.padding) for length in grid)
    outputs = tuple((sum(pair) + length - pool.size) // 2 + 1 for pair, length in zip(amounts, grid, strict=True))
    padded = any(
        pair[0] or (count - 1) * 2 + pool.size > length
        for pair, count, length in zip(amounts, outputs, grid, strict=True)
    )
    counted = pool.padded_zeros if padded and pool.kind == "avg" else None
    before = tuple(pair[0] for pair in amounts)  # what is added behind the last window is never seen
    return pool.kind if pool.size > 1 else "one", pool.size, before, outputs, counted


def block_facts(block: Block, grid_in: Grid, grid_out: Grid) -> dict[str, Any]:
    """Facts of a block whose input and output have these grids."""
    run: Run = block.run
    facts: dict[str, Any] = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    for name in (
        "depth",
        "stride",
        "projection",
        "main_pool",
        "shortcut_pool",
        "norm_pool_order",
        "stride_at",
        "padding",
    ):
        facts.pop(name, None)
    facts["stride"], facts["projected"] = block.stride, block.projected
    if not block.projected:
        facts.pop("projection_bias")
    if block.stride == 2:
        facts["shortcut_pool"] = pool_facts(run.shortcut_pool, grid_in)
        if run.main_pool is not None:
            facts["main_pool"] = pool_facts(run.main_pool, grid_in)
    if isinstance(run, Transformer):
        if block.stride == 2 and not (run.attention_norm.kind == "batch" and run.main_pool.kind == "avg"):
            facts["norm_pool_order"] = run.norm_pool_order
        facts["attention"] = attention_facts(run.attention, block, grid_out)
        facts["ffn"] = (run.ffn.activation, run.ffn.bias)  # widths are among the shapes
        return facts
    for name in ("expansion", "expansion_from", "expansion_rounding", "expansion_divisor"):
        facts.pop(name, None)
    if isinstance(run, MBConv) and (se := run.squeeze_excite) is not None:
        facts["squeeze_excite"] = (se.activation, se.bias, se.place)
    facts["depthwise"] = depthwise_facts(run, block, grid_in, grid_out)
    return facts


def depthwise_facts(run: MBConv | ConvNeXt, block: Block, grid_in: Grid, grid_out: Grid) -> tuple[Any, ...]:
    """Where the stride of a block is, and what padding its depthwise convolution has."""
    strided = block.stride == 2 and run.stride_at == "depthwise"
    grid, stride = (grid_in, 2) if strided else (grid_out, 1)
    amounts = tuple(padding_amounts(length, run.kernel, stride, run.padding)[0] for length in grid)
    return run.stride_at if block.stride == 2 else None, amounts


def attention_facts(attention: Attention, block: Block, grid: Grid) -> tuple[Any, ...]:
    """Facts of an attention on a grid."""
    heads = attention.head_count(block.input_width, block.run.width)
    window = attention.window or grid
    rest = (heads, attention.head_size, attention.form, window, attention.qkv_bias, attention.output_bias)
    bias = attention.relative_bias
    if window == (1, 1) and attention.form != "linear" and (bias is None or bias.add == "pre_softmax"):
        return rest  # one position: the softmax of one logit is 1
    outside = bias is not None and bias.add == "pre_softmax" and attention.scale_site == "logits_and_bias"
    sharing = bias.sharing if bias is not None and heads > 1 else None
    static = bias and (bias.kind, bias.hidden, sharing, bias.orientation, bias.add)
    return (*rest, scale_factor(attention, heads), outside and attention.scale != "1", static)


def head_facts(head: Head) -> tuple[Any, ...]:
    """Facts of a head; a BatchNorm and the mean over positions can be swapped."""
    order = head.order if head.norm is not None and head.norm.kind == "layer" else None
    hidden = head.hidden and (head.hidden.width, head.hidden.activation)
    return head.classes, head.norm, order, hidden, head.bias, head.output
