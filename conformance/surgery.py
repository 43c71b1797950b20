"""Choosing parameters so that only one part of a network acts, and its output reaches the logits.

A block whose last layer is zero adds nothing: only its shortcut is left. A normalisation with gamma 0 gives its beta,
whatever comes in. An activation far on the right gives what comes in. With these three every other part of a network is
silenced or made transparent through its parameters alone, so a program that gives nothing but logits can be looked into.

All functions take a mutable mapping of their caller's, dotted name -> NumPy array, and put new arrays into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coatref.specification.parts import Activation, ConvNeXt, ConvStem, MBConv, Norm, Transformer
from coatref.specification.spec import Block, Spec

Flat = dict[str, Any]

# From here on an activation gives what comes in, to the last digit of float64.
LINEAR_FROM: dict[str, float] = {"gelu": 12.0, "gelu_tanh": 12.0, "silu": 40.0, "relu": 1.0, "mish": 40.0, "tanh": 0.0}


def branches(block: Block) -> list[str]:
    """The residual branches of a block: "s1.0" of a convolution, "s3.0.attn" and "s3.0.ffn" of a Transformer block."""
    if isinstance(block.run, Transformer):
        return [f"{block.name}.attn", f"{block.name}.ffn"]
    return [block.name]


def last_layer(block: Block, branch: str) -> str:
    """The layer that a branch ends with."""
    if isinstance(block.run, Transformer):
        return f"{block.name}.attn.o" if branch.endswith(".attn") else f"{block.name}.ffn.shrink"
    return f"{block.name}.shrink" if isinstance(block.run, MBConv) else f"{block.name}.ffn.shrink"


def zero(flat: Flat, prefix: str) -> None:
    """Every parameter of a layer becomes 0."""
    for name in [name for name in flat if name.startswith(f"{prefix}.")]:
        flat[name] = np.zeros_like(flat[name])


def silence(flat: Flat, spec: Spec, keep: Sequence[str] = ()) -> None:
    """Every residual branch but those in `keep` gives 0; layer scales become 1."""
    for block in spec.blocks():
        for branch in branches(block):
            if branch not in keep:
                zero(flat, last_layer(block, branch))
                if isinstance(block.run, MBConv) and block.run.shrink_norm is not None:
                    constant(flat, f"{block.name}.shrink_norm", 0.0)
            elif isinstance(block.run, MBConv) and block.run.shrink_norm is not None:
                transparent(flat, f"{block.name}.shrink_norm", block.run.shrink_norm)
        for name in (f"{block.name}.layer_scale", f"{block.name}.attn_scale", f"{block.name}.ffn_scale"):
            if f"{name}.gamma" in flat:
                flat[f"{name}.gamma"] = np.ones_like(flat[f"{name}.gamma"])


def empty_stream(flat: Flat, spec: Spec) -> None:
    """The stem gives 0, and shortcuts add nothing to it: only what the branches give is in the stream."""
    stem = spec.stem
    last = f"conv{len(stem.widths)}" if isinstance(stem, ConvStem) else "conv1"
    zero(flat, f"s0.{last}")
    if f"s0.norm{last[4:]}.gamma" in flat:
        constant(flat, f"s0.norm{last[4:]}", 0.0)
    for name in flat:
        if name.endswith(".shortcut.b"):
            flat[name] = np.zeros_like(flat[name])


def constant(flat: Flat, norm: str, values: Any) -> None:
    """A normalisation gives these values per channel, whatever comes in."""
    flat[f"{norm}.gamma"] = np.zeros_like(flat[f"{norm}.gamma"])
    flat[f"{norm}.beta"] = np.zeros_like(flat[f"{norm}.beta"]) + values


def transparent(flat: Flat, norm: str, spec: Norm, shift: float = 0.0) -> None:
    """A BatchNorm gives x + shift; a LayerNorm its normalised x + shift."""
    shape = flat[f"{norm}.gamma"].shape
    flat[f"{norm}.gamma"] = np.ones(shape)
    flat[f"{norm}.beta"] = np.full(shape, shift)
    if spec.kind == "batch":
        flat[f"{norm}.mean"] = np.zeros(shape)
        flat[f"{norm}.var"] = np.ones(shape)


def sensitive(flat: Flat, norm: str, spec: Norm, shift: float, random: np.random.Generator, gain: float = 1.0) -> None:
    """A BatchNorm of variances about as large as its epsilon; a LayerNorm as it is, for inputs of such a variance.

    The values that come in should be about as large as the root of epsilon.
    """
    shape = flat[f"{norm}.gamma"].shape
    flat[f"{norm}.gamma"] = gain * random.uniform(0.5, 1.5, shape)
    flat[f"{norm}.beta"] = shift + random.normal(size=shape) * 0.25
    if spec.kind == "batch":
        root = np.sqrt(spec.epsilon)
        flat[f"{norm}.mean"] = random.normal(size=shape) * root
        flat[f"{norm}.var"] = spec.epsilon * random.uniform(0.25, 1.0, shape)


def centre_only(flat: Flat, kernel: str) -> None:
    """A depthwise kernel that gives the value at its centre; it sees no padding."""
    w = np.zeros_like(flat[kernel])
    w[w.shape[0] // 2, w.shape[1] // 2, :] = 1.0
    flat[kernel] = w
    if kernel.replace(".w", ".b") in flat:
        flat[kernel.replace(".w", ".b")] = np.zeros_like(flat[kernel.replace(".w", ".b")])


def open_gate(flat: Flat, block: str) -> None:
    """Squeeze-excite multiplies by 1 (by 1/2 where its layers have no biases)."""
    for layer in ("reduce", "expand"):
        if f"{block}.se.{layer}.w" in flat:
            flat[f"{block}.se.{layer}.w"] = np.zeros_like(flat[f"{block}.se.{layer}.w"])
    if f"{block}.se.expand.b" in flat:
        flat[f"{block}.se.expand.b"] = np.full_like(flat[f"{block}.se.expand.b"], 40.0)


def integers(random: np.random.Generator, shape: tuple[int, ...], most: int = 3) -> np.ndarray:
    """Whole numbers from -most to most without 0."""
    return np.asarray(random.integers(1, most + 1, shape) * random.choice((-1, 1), shape), np.float64)


def linear_values(random: np.random.Generator, shape: tuple[int, ...], kind: Activation | None) -> np.ndarray:
    """Whole numbers that an activation leaves as they are."""
    return LINEAR_FROM[kind or "relu"] + random.integers(0, 8, shape).astype(np.float64)


def telling_values(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers where the forms of an activation differ most beside their size: most between -3.2 and -2.2, the rest up to 2."""
    kinds = random.random(shape)
    most, some = random.uniform(-3.2, -2.2, shape), random.uniform(-2.2, -0.5, shape)
    return np.where(kinds < 0.5, most, np.where(kinds < 0.75, some, random.uniform(0.25, 2.0, shape)))


def banded(random: np.random.Generator, shape: tuple[int, ...], values: np.ndarray, bands: int = 6) -> np.ndarray:
    """A kernel whose every column adds up channels of similar values, so that what is wrong with these adds up too.

    The columns differ in their bands, since a normalisation behind them would take away what they have in common.

    Args:
        random: source of random numbers.
        shape: of the kernel, (..., C, D); only its centre is filled where it has a height and a width.
        values: (C,), what comes in from each channel, in size; a column gives about 1.
        bands: into how many groups the channels are cut by value.
    """
    groups = [group for group in np.array_split(np.argsort(values), bands) if group.size]
    w = np.zeros(shape[-2:])
    for column in range(shape[-1]):
        group = groups[int(random.integers(len(groups)))]
        weights = random.uniform(0.5, 1.5, group.size)
        w[group, column] = (
            random.choice((-1.0, 1.0)) * weights / max(float(np.sum(weights * np.abs(values[group]))), 1e-6)
        )
    kernel = np.zeros(shape)
    kernel[tuple(length // 2 for length in shape[:-2])] = w
    return kernel


def fan_in(random: np.random.Generator, shape: tuple[int, ...], gain: float = 1.0) -> np.ndarray:
    """A normal kernel that keeps the size of what goes through it, times `gain`."""
    return np.asarray(random.normal(size=shape) * gain / np.sqrt(np.prod(shape[:-1])))


def centred(random: np.random.Generator, shape: tuple[int, ...], gain: float = 1.0) -> np.ndarray:
    """Such a kernel whose columns sum to 0: what all its inputs have in common, such as a shift, does not come through.

    So a signal on a shift is as large, beside what rounding makes of it, as without the shift. A bias is normal.
    """
    w = fan_in(random, shape, gain)
    return w - np.mean(w, axis=tuple(range(w.ndim - 1)), keepdims=True) if w.ndim > 1 else w


def fill(flat: Flat, layer: str, make: Callable[[tuple[int, ...]], Any]) -> None:
    """New values for the kernel and the bias (if there is one) of a layer."""
    for name in (f"{layer}.w", f"{layer}.b"):
        if name in flat:
            flat[name] = make(flat[name].shape)


def last_block(spec: Spec, kind: type, *, strided: bool | None = None) -> Block | None:
    """The last block of a kind, with a stride or without where that is asked for."""
    found = [
        block
        for block in spec.blocks()
        if isinstance(block.run, kind) and (strided is None or (block.stride == 2) == strided)
    ]
    return found[-1] if found else None


CONVOLUTIONS = (MBConv, ConvNeXt)
