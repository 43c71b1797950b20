"""S0, the stem."""

from __future__ import annotations

from typing import Any

from coatref import tensors
from coatref.blocks.common import norm
from coatref.primitives import Primitives
from coatref.registry import Array
from coatref.specification.parts import ConvStem, PatchStem, Stem
from coatref.tap import Tap, no_tap
from coatref.tensors import Tree


def stem(p: Tree, x: Array, spec: Stem, *, ops: Primitives, tap: Tap = no_tap) -> Array:
    """Convolutions of the image, the first with stride 2 (Fig. 4), or the non-overlapping patches of ViT.

    Args:
        p: {"conv1": {"w", "b"}, "norm1": {...}, "conv2": ...}; see `stem_tensors`.
        x: (N, H, W, 3).
        spec: widths, norm, activation, biases and padding.
        ops: the functions to compute with.
        tap: sees "conv1", "norm1", "act1", "conv2", ...

    Returns:
        (N, H', W', C): H' = ceil(H/2) for convolutions, H/patch for patches.
    """
    if isinstance(spec, PatchStem):
        x = ops.conv2d(x, **p["conv1"], stride=spec.patch, padding="valid")  # (N, H, W, 3) -> (N, H/patch, W/patch, C)
        return tap("conv1", x)
    for number in range(1, len(spec.widths) + 1):
        x = ops.conv2d(x, **p[f"conv{number}"], stride=2 if number == 1 else 1, padding=spec.padding)
        x = tap(f"conv{number}", x)  # (N, H', W', C)
        if normalised(spec, number):
            x = tap(f"norm{number}", norm(p[f"norm{number}"], x, spec.norm, ops))
            x = tap(f"act{number}", ops.activation(x, spec.activation))
    return x


def normalised(spec: ConvStem, number: int) -> bool:
    """Whether norm and activation follow the convolution of that number, counted from 1."""
    return number < len(spec.widths) or spec.after_last == "norm_and_activation"


def stem_tensors(spec: Stem, channels: int) -> dict[str, Any]:
    """The parameter tree of the stem, for images of `channels`."""
    if isinstance(spec, PatchStem):
        return {"conv1": tensors.layer((spec.patch, spec.patch, channels, spec.width), spec.bias)}
    tree: dict[str, Any] = {}
    for number, (width, bias) in enumerate(zip(spec.widths, spec.bias, strict=True), start=1):
        tree[f"conv{number}"] = tensors.layer((spec.kernel, spec.kernel, channels, width), bias)
        if normalised(spec, number):
            tree[f"norm{number}"] = tensors.norm(spec.norm, width)
        channels = width
    return tree
