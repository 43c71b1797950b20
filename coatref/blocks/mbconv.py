"""MBConv, the convolution block (Sec. 2.1 and Eq. (5) of the paper)."""

from __future__ import annotations

from typing import Any

from coatref import tensors
from coatref.blocks.common import norm, pool, shortcut, shortcut_tensors
from coatref.primitives import Primitives
from coatref.registry import Array
from coatref.specification.parts import MBConv, rounded
from coatref.specification.spec import Block
from coatref.tap import Tap, no_tap
from coatref.tensors import Tree


def mbconv(p: Tree, x: Array, block: Block, *, ops: Primitives, tap: Tap = no_tap) -> Array:
    """An inverted bottleneck with pre-activation: x <- Shortcut(x) + Conv(DepthConv(Conv(Norm(x), stride))), Eq. (5).

    Inside the branch stand, as in google-research/maxvit: norm and activation after the expansion and after the
    depthwise convolution, then squeeze-excite, then the 1x1 convolution back to the block's width.

    Args:
        p: see `mbconv_tensors`.
        x: (N, H, W, C).
        block: the block's spec, input width and stride.
        ops: the functions to compute with.
        tap: sees every intermediate value.

    Returns:
        (N, H', W', D).
    """
    spec = mbconv_of(block)
    normalised = tap("pre_norm", norm(p["pre_norm"], x, spec.pre_norm, ops))
    residual = shortcut(p, x if spec.residual_from == "input" else normalised, block, ops, tap)  # (N, H', W', D)

    y = normalised
    if spec.pre_norm_activation is not None:
        y = tap("pre_act", ops.activation(y, spec.pre_norm_activation))
    if spec.main_pool is not None and block.stride == 2:
        y = tap("pool", pool(y, spec.main_pool, ops))  # (N, H, W, C) -> (N, H', W', C)
    stride = block.stride if spec.stride_at == "expand" else 1
    y = y[:, ::stride, ::stride, :]  # a 1x1 convolution of stride 2 sees one position in four
    y = tap("expand", ops.dense(y, **p["expand"]))  # C -> expanded
    y = tap("expand_norm", norm(p["expand_norm"], y, spec.inner_norm, ops))
    y = tap("expand_act", ops.activation(y, spec.activation))

    stride = block.stride if spec.stride_at == "depthwise" else 1
    y = tap("depthwise", ops.depthwise_conv2d(y, **p["depthwise"], stride=stride, padding=spec.padding))
    se = spec.squeeze_excite
    if se is not None and se.place == "before_norm":
        y = tap("se", ops.squeeze_excite(y, **p["se"], activation=se.activation))
    y = tap("depthwise_norm", norm(p["depthwise_norm"], y, spec.inner_norm, ops))
    y = tap("depthwise_act", ops.activation(y, spec.activation))
    if se is not None and se.place == "after_activation":
        y = tap("se", ops.squeeze_excite(y, **p["se"], activation=se.activation))

    y = tap("shrink", ops.dense(y, **p["shrink"]))  # expanded -> D
    if spec.shrink_norm is not None:
        y = tap("shrink_norm", norm(p["shrink_norm"], y, spec.shrink_norm, ops))
    if spec.layer_scale is not None:
        y = tap("layer_scale", y * p["layer_scale"]["gamma"])
    return residual + y


def mbconv_of(block: Block) -> MBConv:
    """The block's spec as an MBConv, for the type checker."""
    assert isinstance(block.run, MBConv)
    return block.run


def widths(block: Block) -> tuple[int, int | None]:
    """The expanded width and the hidden width of squeeze-excite (None without it)."""
    spec = mbconv_of(block)
    base = {"input": block.input_width, "output": spec.width}
    expanded = rounded(spec.expansion * base[spec.expansion_from], spec.expansion_rounding, spec.expansion_divisor)
    se = spec.squeeze_excite
    if se is None:
        return expanded, None
    return expanded, rounded(se.ratio * (base | {"expanded": expanded})[se.of], se.rounding, se.divisor)


def mbconv_tensors(block: Block) -> dict[str, Any]:
    """The parameter tree of one MBConv block."""
    spec = mbconv_of(block)
    expanded, hidden = widths(block)
    tree: dict[str, Any] = shortcut_tensors(block)
    tree["pre_norm"] = tensors.norm(spec.pre_norm, block.input_width)
    tree["expand"] = tensors.layer((block.input_width, expanded), spec.expand_bias)
    tree["expand_norm"] = tensors.norm(spec.inner_norm, expanded)
    tree["depthwise"] = tensors.layer((spec.kernel, spec.kernel, expanded), spec.depthwise_bias)
    tree["depthwise_norm"] = tensors.norm(spec.inner_norm, expanded)
    if spec.squeeze_excite is not None and hidden is not None:
        bias = spec.squeeze_excite.bias
        tree["se"] = {
            "reduce": tensors.layer((expanded, hidden), bias),
            "expand": tensors.layer((hidden, expanded), bias),
        }
    tree["shrink"] = tensors.layer((expanded, spec.width), spec.shrink_bias)
    if spec.shrink_norm is not None:
        tree["shrink_norm"] = tensors.norm(spec.shrink_norm, spec.width)
    if spec.layer_scale is not None:
        tree["layer_scale"] = tensors.layer_scale(spec.layer_scale, spec.width)
    return tree
