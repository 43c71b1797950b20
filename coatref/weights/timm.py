"""timm's names and layouts (its `maxxvit.py`, 1.0.31), as a table from our dotted names to theirs.

Their arrays are torch's: convolution kernels (D, C, kh, kw), 1x1 convolutions (D, C, 1, 1) or dense layers (D, C).
Stages count from 0 there and from 1 here; our "s1.0" is their "stages.0.blocks.0".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from coatref.params import tensor_tree
from coatref.specification.parts import ConvNeXt, MBConv
from coatref.specification.spec import Block, Spec
from coatref.tree import flatten

# Buffers that hold no parameter: the batch counter of torch's BatchNorm, and indices that old files carry.
IGNORED = ("num_batches_tracked", "relative_position_index", "rel_coords_log")

# our name of a layer -> theirs; a block's shortcut is the same in all kinds of block
STEM = {"conv1": "stem.conv1", "norm1": "stem.norm1", "conv2": "stem.conv2"}

MBCONV = {
    "shortcut": "shortcut.expand",
    "pre_norm": "pre_norm",
    "expand": "conv1_1x1",
    "expand_norm": "norm1",
    "depthwise": "conv2_kxk",
    "depthwise_norm": "norm2",
    "se.reduce": "se.fc1",  # "se_early" where squeeze-excite stands before the norm
    "se.expand": "se.fc2",
    "shrink": "conv3_1x1",
}

CONVNEXT = {
    "shortcut": "shortcut.expand",
    "depthwise": "conv_dw",
    "norm": "norm",
    "ffn.expand": "mlp.fc1",
    "ffn.shrink": "mlp.fc2",
    "layer_scale": "ls",
}

TRANSFORMER = {
    "shortcut": "shortcut.expand",
    "attn_norm": "norm1",  # "norm1.norm" in a block with a stride, whose "norm1.down" has no parameters
    "attn.q": "attn.qkv",
    "attn.k": "attn.qkv",
    "attn.v": "attn.qkv",
    "attn.o": "attn.proj",
    "attn.relative_bias": "attn.rel_pos",
    "attn.relative_bias.hidden": "attn.rel_pos.mlp.fc1",
    "attn.relative_bias.out": "attn.rel_pos.mlp.fc2",
    "attn_scale": "ls1",
    "ffn_norm": "norm2",
    "ffn.expand": "mlp.fc1",
    "ffn.shrink": "mlp.fc2",
    "ffn_scale": "ls2",
}

LEAVES = {
    "w": "weight",
    "b": "bias",
    "gamma": "weight",
    "beta": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "table": "relative_position_bias_table",
}


class Entry(NamedTuple):
    """Where one of our tensors is in timm's state dict."""

    ours: str
    theirs: str
    shape: tuple[int, ...]  # of ours
    their_shape: tuple[int, ...]
    part: int | None  # of a fused qkv: 0, 1, 2 for q, k, v
    head_size: int


def head_names(spec: Spec) -> dict[str, str]:
    """The head's layers: in timm's own models the norm stands outside the head."""
    if spec.head.order == "norm_then_pool":
        return {"norm": "norm", "classifier": "head.fc"}
    return {"norm": "head.norm", "hidden": "head.pre_logits.fc", "classifier": "head.fc"}


def layer_name(block: Block, layer: str) -> str:
    """timm's name of a layer of a block, inside the block."""
    run = block.run
    if isinstance(run, MBConv):
        early = run.squeeze_excite is not None and run.squeeze_excite.place == "before_norm"
        return MBCONV[layer].replace("se.", "se_early." if early else "se.")
    if isinstance(run, ConvNeXt):
        return CONVNEXT[layer]
    if layer == "attn_norm" and block.stride == 2:
        return "norm1.norm"
    return TRANSFORMER[layer]


def entries(spec: Spec) -> Iterator[Entry]:
    """Every tensor of the spec with its place in timm's state dict."""
    blocks = {block.name: block for block in spec.blocks()}
    for ours, tensor in flatten(tensor_tree(spec)):
        scope, _, rest = ours.partition(".")
        path, _, leaf = rest.rpartition(".")
        part, head_size = None, 1
        if scope == "s0":
            layer = STEM[path]
        elif scope == "head":
            layer = head_names(spec)[path]
        else:
            index, _, path = path.partition(".")
            block = blocks[f"{scope}.{index}"]
            layer = f"stages.{int(scope[1:]) - 1}.blocks.{index}.{layer_name(block, path)}"
            if path in ("attn.q", "attn.k", "attn.v"):
                part, head_size = "qkv".index(path[-1]), block.run.attention.head_size  # type: ignore[union-attr]
        name = "gamma" if layer.rpartition(".")[2] in ("ls", "ls1", "ls2") else LEAVES[leaf]
        shape = their_shape(ours, leaf, tensor.shape, 1 if part is None else 3)
        yield Entry(ours, f"{layer}.{name}", tensor.shape, shape, part, head_size)


def their_shape(ours: str, leaf: str, shape: tuple[int, ...], fused: int) -> tuple[int, ...]:
    """Shape of timm's tensor; `fused` tensors stand in one along the output channels."""
    if leaf == "w" and len(shape) == 4:
        kh, kw, c, d = shape
        return d, c, kh, kw
    if leaf == "w" and len(shape) == 3:
        kh, kw, c = shape
        return c, 1, kh, kw
    if leaf == "w":
        c, d = shape
        dense = ours.startswith("head.") or ".relative_bias." in ours
        return (d, c) if dense else (fused * d, c, 1, 1)
    if leaf == "table":
        heads, rows, columns = shape
        return rows * columns, heads
    return (fused * shape[0],)


def expected(spec: Spec) -> dict[str, tuple[int, ...]]:
    """timm's names and shapes for a spec."""
    return {entry.theirs: entry.their_shape for entry in entries(spec)}


def relevant(names: Mapping[str, object]) -> list[str]:
    """The names that hold a parameter or a statistic."""
    return [name for name in names if name.rpartition(".")[2] not in IGNORED]


def to_ours(entry: Entry, array: np.ndarray) -> np.ndarray:
    """One of our arrays from timm's that holds it."""
    if entry.part is not None:  # output channels are [head][q, k, v][channel of the head]
        heads = array.shape[0] // (3 * entry.head_size)
        array = array.reshape(heads, 3, entry.head_size, -1)[:, entry.part]  # (heads, D, C) or (heads, D, 1)
        array = array.reshape(heads * entry.head_size, -1)
    if len(entry.shape) == 1:
        return array.reshape(entry.shape)
    if len(entry.shape) == 2:
        return array.reshape(entry.shape[::-1]).T  # (D, C) -> (C, D)
    if entry.ours.endswith(".table"):  # row (di + H-1) * (2W-1) + (dj + W-1), one column for each head
        return array.T.reshape(entry.shape)
    if len(entry.shape) == 3:
        return array[:, 0].transpose(1, 2, 0)  # (C, 1, kh, kw) -> (kh, kw, C)
    return array.transpose(2, 3, 1, 0)  # (D, C, kh, kw) -> (kh, kw, C, D)


def to_theirs(spec: Spec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All of timm's arrays from ours, by name: the inverse of `to_ours`. Views of ours, except for a fused qkv.

    Raises:
        KeyError: the spec has a layer for which timm has no name.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries(spec):
        groups.setdefault(entry.theirs, []).append(entry)
    return {
        name: separate(group[0], arrays[group[0].ours])
        if group[0].part is None
        else fused(group[0], {entry.part: arrays[entry.ours] for entry in group})
        for name, group in groups.items()
    }


def fused(entry: Entry, ours: Mapping[int | None, np.ndarray]) -> np.ndarray:
    """timm's array from q, k and v, numbered 0, 1, 2: output channels are [head][q, k, v][channel of the head]."""
    d = entry.head_size
    parts = [ours[part].T.reshape(-1, d, *ours[part].shape[:-1]) for part in range(3)]  # (heads, D, C) or (heads, D)
    return np.stack(parts, axis=1).reshape(entry.their_shape)


def separate(entry: Entry, array: np.ndarray) -> np.ndarray:
    """timm's array from the one of ours that it holds alone."""
    if len(entry.shape) == 1:
        return array
    if len(entry.shape) == 2:
        return array.T.reshape(entry.their_shape)  # (C, D) -> (D, C) or (D, C, 1, 1)
    if entry.ours.endswith(".table"):
        return array.reshape(entry.shape[0], -1).T  # (heads, 2H-1, 2W-1) -> (rows * columns, heads)
    if len(entry.shape) == 3:
        return array.transpose(2, 0, 1)[:, None]  # (kh, kw, C) -> (C, 1, kh, kw)
    return array.transpose(3, 2, 0, 1)  # (kh, kw, C, D) -> (D, C, kh, kw)
