"""The names and layouts of keras_cv_attention_models (kecam 1.4.3), as a table from our dotted names to theirs.

Two layouts of the same tensors:

- "keras", its .h5 files: "LAYER/LEAF"; kernels (kh, kw, C, D), depthwise ones (kh, kw, C, 1), dense layers (C, D).
- "torch", the `state_dict()` of its torch backend: "LAYER.LEAF"; kernels (D, C, kh, kw), depthwise ones (C, 1, kh, kw),
  dense layers (D, C), and the vectors of a LayerNorm as (C, 1, 1).

Both hold q, k and v in one kernel, all of q before all of k before all of v, and a relative-bias table as
(heads, (2H-1)(2W-1)). Runs and blocks count from 1 there; the two runs of one of our stages are two of their stacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from coatref.errors import InputError
from coatref.params import tensor_tree
from coatref.specification.parts import MBConv
from coatref.specification.spec import Spec
from coatref.tree import flatten

Layout = Literal["keras", "torch"]

IGNORED = "num_batches_tracked"  # the batch counter of torch's BatchNorm

STEM = {"conv1": "stem_1_conv", "norm1": "stem_1_bn", "conv2": "stem_2_conv"}

MBCONV = {
    "shortcut": "shortcut_conv",
    "pre_norm": "preact_bn",
    "expand": "expand_conv",
    "expand_norm": "expand_bn",
    "depthwise": "MB_dw_conv",
    "depthwise_norm": "MB_dw_bn",
    "se.reduce": "se_1_conv",
    "se.expand": "se_2_conv",
    "shrink": "MB_pw_conv",
}

TRANSFORMER = {
    "shortcut": "shortcut_conv",
    "attn_norm": "preact_ln",
    "attn.q": "mhsa_qkv_conv",
    "attn.k": "mhsa_qkv_conv",
    "attn.v": "mhsa_qkv_conv",
    "attn.o": "mhsa_output",
    "attn.relative_bias": "mhsa_pos_emb",
    "ffn_norm": "ffn_preact_ln",
    "ffn.expand": "ffn_1_conv",
    "ffn.shrink": "ffn_2_conv",
}

HEAD = {"classifier": "predictions"}

KERAS_LEAVES = {
    "w": "kernel",  # "depthwise_kernel" in a depthwise convolution
    "b": "bias",
    "gamma": "gamma",
    "beta": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
    "table": "positional_embedding",
}

TORCH_LEAVES = {
    "w": "weight",
    "b": "bias",
    "gamma": "weight",
    "beta": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "table": "positional_embedding",
}


class Entry(NamedTuple):
    """Where one of our tensors is in theirs."""

    ours: str
    layer: str  # their name of the layer, "stack_3_block_1_mhsa_qkv_conv"
    leaf: str  # the last part of our name
    shape: tuple[int, ...]  # of ours
    part: int | None  # of a fused qkv: 0, 1, 2 for q, k, v

    @property
    def depthwise(self) -> bool:
        """Whether it is a depthwise kernel."""
        return self.leaf == "w" and len(self.shape) == 3

    def name(self, layout: Layout) -> str:
        """Their name of the tensor that holds it."""
        if layout == "torch":
            return f"{self.layer}.{TORCH_LEAVES[self.leaf]}"
        return f"{self.layer}/{'depthwise_' if self.depthwise else ''}{KERAS_LEAVES[self.leaf]}"

    def keras_shape(self) -> tuple[int, ...]:
        """The shape of ours in Keras' layout, before q, k and v are put together."""
        if self.depthwise:
            return (*self.shape, 1)
        if self.leaf == "w" and len(self.shape) == 2 and self.layer.endswith("_conv"):
            return (1, 1, *self.shape)  # their 1x1 convolutions are our dense layers
        if self.leaf == "table":
            heads, rows, columns = self.shape
            return heads, rows * columns
        return self.shape


def entries(spec: Spec) -> Iterator[Entry]:
    """Every tensor of the spec with its place in theirs.

    Raises:
        KeyError: the spec has a layer for which they have no name.
    """
    layers = block_layers(spec)
    for ours, tensor in flatten(tensor_tree(spec)):
        scope, _, rest = ours.partition(".")
        path, _, leaf = rest.rpartition(".")
        part = None
        if scope == "s0":
            layer = STEM[path]
        elif scope == "head":
            layer = HEAD[path]
        else:
            index, _, path = path.partition(".")
            stack, names = layers[f"{scope}.{index}"]
            layer = f"{stack}_{names[path]}"
            part = "qkv".index(path[-1]) if path in ("attn.q", "attn.k", "attn.v") else None
        yield Entry(ours, layer, leaf, tensor.shape, part)


def block_layers(spec: Spec) -> dict[str, tuple[str, Mapping[str, str]]]:
    """Our name of a block -> their name of it, "stack_S_block_B", and the names of its layers."""
    found: dict[str, tuple[str, Mapping[str, str]]] = {}
    stack = 0
    for number, stage in enumerate(spec.stages, start=1):
        position = 0
        for run in stage:
            stack += 1
            names = MBCONV if isinstance(run, MBConv) else TRANSFORMER
            for index in range(run.depth):
                found[f"s{number}.{position}"] = f"stack_{stack}_block_{index + 1}", names
                position += 1
    return found


def expected(spec: Spec, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Their names and shapes for a spec."""
    found: dict[str, tuple[int, ...]] = {}
    for entry in entries(spec):
        shape = entry.keras_shape()
        if entry.part is not None:
            shape = (*shape[:-1], 3 * shape[-1])
        if layout == "torch":
            shape = tuple(shape[axis] for axis in torch_axes(entry, len(shape))) + trailing(entry)
        found[entry.name(layout)] = shape
    return found


def torch_axes(entry: Entry, axes: int) -> tuple[int, ...]:
    """The axes of the array in Keras' layout, in torch's order."""
    if entry.leaf != "w":
        return tuple(range(axes))
    return {2: (1, 0), 4: (2, 3, 0, 1) if entry.depthwise else (3, 2, 0, 1)}[axes]


def trailing(entry: Entry) -> tuple[int, ...]:
    """Axes of length 1 that torch's layout has behind those of Keras."""
    return (1, 1) if entry.layer.endswith("_ln") else ()


def layout_of(names: Mapping[str, object]) -> Layout:
    """The layout that names belong to: only Keras' have slashes."""
    return "keras" if any("/" in name for name in names) else "torch"


def relevant(state_dict: Mapping[str, object]) -> dict[str, str]:
    """Plain name of each tensor that holds a parameter or a statistic -> the name that it is given under.

    Taken off are what files put in front of and behind Keras' names ("LAYER/LAYER/kernel:0"), torch's leaves in an .h5
    file that the torch backend wrote ("LAYER/weight"), and the number of the dense layer in a classifier with a softmax
    behind it ("predictions.0.weight").

    Raises:
        InputError: two names are the same one then.
    """
    found: dict[str, str] = {}
    keras = layout_of(state_dict) == "keras"
    for name in state_dict:
        if name.endswith(IGNORED):
            continue
        plain = keras_name(name) if keras else name.replace("predictions.0.", "predictions.")
        if plain in found:
            raise InputError(f"The names {found[plain]} and {name} are the same tensor, {plain}; give one of them.")
        found[plain] = name
    return found


def keras_name(name: str) -> str:
    """A name of an .h5 file as "LAYER/LEAF"."""
    *_, layer, leaf = ["", *name.partition(":")[0].split("/")]
    kernel = "depthwise_kernel" if layer.endswith("dw_conv") else "kernel"
    norm = layer.endswith(("_bn", "_ln"))
    torch = {
        "weight": "gamma" if norm else kernel,
        "bias": "beta" if norm else "bias",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    return f"{layer}/{torch.get(leaf, leaf)}"


def to_ours(entry: Entry, array: np.ndarray, layout: Layout) -> np.ndarray:
    """One of our arrays from theirs that holds it."""
    if layout == "torch":
        array = array.reshape(array.shape[: array.ndim - len(trailing(entry))])
        array = array.transpose(np.argsort(torch_axes(entry, array.ndim)))
    if entry.part is not None:  # output channels are [q, k, v][head][channel of the head]
        array = np.split(array, 3, axis=-1)[entry.part]
    return array.reshape(entry.shape)


def to_theirs(spec: Spec, arrays: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """All of their arrays from ours, by name: the inverse of `to_ours`. Views of ours, except for a fused qkv.

    Raises:
        KeyError: the spec has a layer for which they have no name.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries(spec):
        groups.setdefault(entry.name(layout), []).append(entry)
    theirs: dict[str, np.ndarray] = {}
    for name, group in groups.items():  # one entry, or q, k and v in this order
        parts = [arrays[entry.ours].reshape(entry.keras_shape()) for entry in group]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        if layout == "torch":
            array = array.transpose(torch_axes(group[0], array.ndim))
            array = array.reshape(array.shape + trailing(group[0]))
        theirs[name] = array
    return theirs
