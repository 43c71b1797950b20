"""The names and layouts of chinhsuanwu/coatnet-pytorch and its copies, as a table from our dotted names to theirs.

Their arrays are torch's: convolution kernels (D, C, kh, kw), depthwise ones (C, 1, kh, kw), dense layers (D, C). q, k and v
are one dense layer, all of q before all of k before all of v, and a relative-bias table is ((2H-1)(2W-1), heads). A part
of a `Sequential` has its place in it as its name: our "s1.0.expand" is their "s1.0.conv.fn.0".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from coatref.params import tensor_tree
from coatref.specification import chinhsuanwu
from coatref.specification.parts import MBConv
from coatref.specification.spec import Spec
from coatref.tree import flatten
from coatref.weights import places as layouts
from coatref.weights.dialect import Dialect, Measured, measured, unwrapped
from coatref.weights.places import Place, Shape

# Buffers that hold no parameter: the batch counter of torch's BatchNorm, and the indices into the tables.
IGNORED = ("num_batches_tracked", "relative_index")

BLOCK = re.compile(r"s(\d+)\.(\d+)\.")

STEM = {"conv": "0", "norm": "1"}  # inside "s0.N"; N counts from 0 there, and in our "conv1" and "norm1" from 1

MBCONV = {
    "shortcut": "proj",
    "pre_norm": "conv.norm",
    "expand": "conv.fn.0",
    "expand_norm": "conv.fn.1",
    "depthwise": "conv.fn.3",
    "depthwise_norm": "conv.fn.4",
    "se.reduce": "conv.fn.6.fc.0",
    "se.expand": "conv.fn.6.fc.2",
    "shrink": "conv.fn.7",
    "shrink_norm": "conv.fn.8",
}

TRANSFORMER = {
    "shortcut": "proj",
    "attn_norm": "attn.1.norm",
    "attn.q": "attn.1.fn.to_qkv",
    "attn.k": "attn.1.fn.to_qkv",
    "attn.v": "attn.1.fn.to_qkv",
    "attn.o": "attn.1.fn.to_out.0",
    "attn.relative_bias": "attn.1.fn",
    "ffn_norm": "ff.1.norm",
    "ffn.expand": "ff.1.fn.net.0",
    "ffn.shrink": "ff.1.fn.net.3",
}

HEAD = {"classifier": "fc"}

LEAVES = {
    "w": "weight",
    "b": "bias",
    "gamma": "weight",
    "beta": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "table": "relative_bias_table",
}

CONVOLUTIONS = ("proj", "conv.fn.0", "conv.fn.7")  # 1x1; the other weights of two axes are dense layers


def places(spec: Spec, layout: str = "torch") -> Iterator[Place]:
    """Every tensor of the spec with its place in their state dict.

    Raises:
        KeyError: the spec has a layer for which they have no name.
    """
    names = {block.name: MBCONV if isinstance(block.run, MBConv) else TRANSFORMER for block in spec.blocks()}
    for ours, tensor in flatten(tensor_tree(spec)):
        path, _, leaf = ours.rpartition(".")
        layer = layer_name(path, names)
        laid = laid_out(layer, leaf, tensor.shape)
        fused = {}
        if path.endswith((".attn.q", ".attn.k", ".attn.v")):  # output channels are [q, k, v][head][channel of the head]
            fused = layouts.fused_in_blocks(laid, 0, "qkv".index(path[-1]))
        yield Place(ours, f"{layer}.{LEAVES[leaf]}", tensor.shape, **({"layout": laid} | fused))


def layer_name(path: str, names: Mapping[str, Mapping[str, str]]) -> str:
    """Their name of a layer, from ours ("s1.0.expand") and the names of the layers of each block."""
    scope, _, rest = path.partition(".")
    if scope == "head":
        return HEAD[rest]
    if scope == "s0":
        return f"s0.{int(rest[4:]) - 1}.{STEM[rest[:4]]}"
    index, _, layer = rest.partition(".")
    return f"{scope}.{index}.{names[f'{scope}.{index}'][layer]}"


def laid_out(layer: str, leaf: str, shape: Shape) -> layouts.Layout:
    """Layout of a tensor of a layer."""
    if leaf == "w":
        return layouts.torch_weight(shape, dense=not layer.endswith(CONVOLUTIONS))
    return layouts.heads_last_table(shape) if leaf == "table" else layouts.same(shape)


def expected(spec: Spec) -> dict[str, Shape]:
    """Their names and shapes for a spec."""
    return layouts.expected(places(spec))


def plain(names: Mapping[str, object], ema: bool = True) -> dict[str, str]:
    """Plain name of each tensor that holds a parameter or a statistic -> the name that it is given under."""
    return {name: given for name, given in unwrapped(names).items() if name.rpartition(".")[2] not in IGNORED}


def sizes(shapes: Mapping[str, Shape]) -> Measured | None:
    """Depths, widths and classes that the shapes tell of."""
    widths = (("s0.0.0.weight", 0), ("conv.fn.7.weight", 0), ("to_out.0.weight", 0))
    return measured(shapes, BLOCK, widths, ("fc.weight", 0))


DIALECT = Dialect(
    name="chinhsuanwu",
    project="chinhsuanwu/coatnet-pytorch",
    layouts=("torch",),
    places=places,
    plain=plain,
    sizes=sizes,
    specs=chinhsuanwu.names,
)
