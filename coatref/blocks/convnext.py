"""The ConvNeXt block of timm's coatnext models; it is not in the paper."""

from __future__ import annotations

from typing import Any

from coatref import tensors
from coatref.blocks.common import norm, pool, shortcut, shortcut_tensors
from coatref.primitives import Primitives
from coatref.registry import Array, namespace
from coatref.specification.parts import ConvNeXt, rounded
from coatref.specification.spec import Block
from coatref.tap import Tap, no_tap
from coatref.tensors import Tree


def convnext(p: Tree, x: Array, block: Block, *, ops: Primitives, tap: Tap = no_tap) -> Array:
    """x <- Shortcut(x) + gamma * Dense(act(Dense(Norm(DepthConv(x, stride))))) (timm's ConvNeXtBlock).

    The depthwise convolution goes from C to D channels with C groups (D is a multiple of C): its output channel d
    reads the input channel d // (D/C).

    Args:
        p: see `convnext_tensors`.
        x: (N, H, W, C).
        block: the block's spec, input width and stride.
        ops: the functions to compute with.
        tap: sees every intermediate value.

    Returns:
        (N, H', W', D).
    """
    spec = convnext_of(block)
    residual = shortcut(p, x, block, ops, tap)  # (N, H', W', D)
    y, stride = x, block.stride
    if spec.main_pool is not None and block.stride == 2:
        y, stride = tap("pool", pool(y, spec.main_pool, ops)), 1  # (N, H, W, C) -> (N, H', W', C)
    y = repeat_channels(y, spec.width // block.input_width)  # (N, H, W, C) -> (N, H, W, D)
    y = tap("depthwise", ops.depthwise_conv2d(y, **p["depthwise"], stride=stride, padding=spec.padding))
    y = tap("norm", norm(p["norm"], y, spec.norm, ops))
    y = tap("ffn.expand", ops.dense(y, **p["ffn"]["expand"]))  # D -> expanded
    y = tap("ffn.act", ops.activation(y, spec.activation))
    y = tap("ffn.shrink", ops.dense(y, **p["ffn"]["shrink"]))  # expanded -> D
    if spec.layer_scale is not None:
        y = tap("layer_scale", y * p["layer_scale"]["gamma"])
    return residual + y


def repeat_channels(x: Array, times: int) -> Array:
    """Each channel `times` times in a row. Shapes: (N, H, W, C) -> (N, H, W, times * C)."""
    return x if times == 1 else namespace(x).repeat(x, times, axis=-1)


def convnext_of(block: Block) -> ConvNeXt:
    """The block's spec as a ConvNeXt, for the type checker."""
    assert isinstance(block.run, ConvNeXt)
    return block.run


def convnext_tensors(block: Block) -> dict[str, Any]:
    """The parameter tree of one ConvNeXt block."""
    spec = convnext_of(block)
    expanded = rounded(spec.expansion * spec.width, "floor", 1)
    tree: dict[str, Any] = shortcut_tensors(block)
    tree["depthwise"] = tensors.layer((spec.kernel, spec.kernel, spec.width), spec.bias)
    tree["norm"] = tensors.norm(spec.norm, spec.width)
    tree["ffn"] = {
        "expand": tensors.layer((spec.width, expanded), spec.bias),
        "shrink": tensors.layer((expanded, spec.width), spec.bias),
    }
    if spec.layer_scale is not None:
        tree["layer_scale"] = tensors.layer_scale(spec.layer_scale, spec.width)
    return tree
