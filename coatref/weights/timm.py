"""timm's names and layouts (its `maxxvit.py`, 1.0.31), as a table from our dotted names to theirs.

Their arrays are torch's: convolution kernels (D, C, kh, kw), 1x1 convolutions (D, C, 1, 1) or dense layers (D, C).
Stages count from 0 there and from 1 here; our "s1.0" is their "stages.0.blocks.0".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from coatref.params import tensor_tree
from coatref.specification import timm
from coatref.specification.parts import ConvNeXt, MBConv, Transformer
from coatref.specification.spec import Block, Spec
from coatref.tree import flatten
from coatref.weights import places as layouts
from coatref.weights.dialect import Dialect, Measured, measured, unwrapped
from coatref.weights.places import Place, Shape

# Buffers that hold no parameter: the batch counter of torch's BatchNorm, and indices that old files carry.
IGNORED = ("num_batches_tracked", "relative_position_index", "rel_coords_log")

BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")

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


def places(spec: Spec, layout: str = "torch") -> Iterator[Place]:
    """Every tensor of the spec with its place in timm's state dict.

    Raises:
        KeyError: the spec has a layer for which timm has no name.
    """
    blocks = {block.name: block for block in spec.blocks()}
    for ours, tensor in flatten(tensor_tree(spec)):
        scope, _, rest = ours.partition(".")
        path, _, leaf = rest.rpartition(".")
        fused = {}
        if scope == "s0":
            layer = STEM[path]
        elif scope == "head":
            layer = head_names(spec)[path]
        else:
            index, _, path = path.partition(".")
            block = blocks[f"{scope}.{index}"]
            layer = f"stages.{int(scope[1:]) - 1}.blocks.{index}.{layer_name(block, path)}"
            if path in ("attn.q", "attn.k", "attn.v") and isinstance(block.run, Transformer):
                d = block.run.attention.head_size
                fused = layouts.fused_heads_first(tensor.shape, "qkv".index(path[-1]), d, (1, 1))
        name = "gamma" if layer.rpartition(".")[2] in ("ls", "ls1", "ls2") else LEAVES[leaf]
        yield Place(ours, f"{layer}.{name}", tensor.shape, **({"layout": laid_out(ours, tensor.shape)} | fused))


def laid_out(ours: str, shape: Shape) -> layouts.Layout:
    """Layout of timm's tensor: dense layers are 1x1 convolutions but in the head and the bias MLP."""
    leaf = ours.rpartition(".")[2]
    if leaf == "w":
        return layouts.torch_weight(shape, dense=ours.startswith("head.") or ".relative_bias." in ours)
    return layouts.heads_last_table(shape) if leaf == "table" else layouts.same(shape)


def expected(spec: Spec) -> dict[str, Shape]:
    """timm's names and shapes for a spec."""
    return layouts.expected(places(spec))


def plain(names: Mapping[str, object], ema: bool = True) -> dict[str, str]:
    """Plain name of each tensor that holds a parameter or a statistic -> the name that it is given under."""
    return {name: given for name, given in unwrapped(names).items() if name.rpartition(".")[2] not in IGNORED}


def sizes(shapes: Mapping[str, Shape]) -> Measured | None:
    """Depths, widths and classes that the shapes tell of."""
    return measured(shapes, BLOCK, (("conv3_1x1.weight", 0), ("mlp.fc2.weight", 0)), ("head.fc.weight", 0))


DIALECT = Dialect(
    name="timm",
    project="timm",
    layouts=("torch",),
    places=places,
    plain=plain,
    sizes=sizes,
    specs=timm.names,
)
