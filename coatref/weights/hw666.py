"""The names and layouts of hw666666666666/CoAtNet (MindSpore), as a table from our dotted names to theirs.

Names are MindSpore's, as `net.parameters_dict()` and `mindspore.load_checkpoint` have them; arrays are laid out as torch's:
convolution kernels (D, C, kh, kw), depthwise ones (C, 1, kh, kw), dense layers (D, C). q, k and v are three dense layers,
and a relative-bias table is ours as it is. A part of a `SequentialCell` has its place in it as its name.

Their checkpoint files (.ckpt) are not read here: `{name: p.asnumpy() for name, p in load_checkpoint(path).items()}`, where
MindSpore is installed, is the mapping that `coatref.convert` takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from coatref.params import tensor_tree
from coatref.specification import hw666
from coatref.specification.parts import MBConv
from coatref.specification.spec import Spec
from coatref.tree import flatten
from coatref.weights import places as layouts
from coatref.weights.dialect import Dialect, Measured, measured, unwrapped
from coatref.weights.places import Place, Shape

AVERAGED = "ema."  # before the name of an averaged copy, beside the parameter itself

# What a checkpoint of its training holds besides: the optimiser's moments, and the counters of its steps.
MOMENTS = ("adam_m.", "adam_v.")
COUNTERS = (
    "global_step",
    "learning_rate",
    "scale_sense",
    "current_iterator_step",
    "last_overflow_iterator_step",
    "epoch_num",
    "step_num",
)

BLOCK = re.compile(r"s([1-9]\d*)\.(\d+)\.")

STEM = {"conv1": "conv.0", "norm1": "conv.1", "conv2": "conv.3"}

MBCONV = {
    "shortcut": "proj",
    "pre_norm": "norm",
    "expand": "conv.0",
    "expand_norm": "conv.1",
    "depthwise": "conv.3",
    "depthwise_norm": "conv.4",
    "se.reduce": "conv.6.se.1",
    "se.expand": "conv.6.se.3",
    "shrink": "conv.7",
}

TRANSFORMER = {
    "shortcut": "proj",
    "attn_norm": "attn_norm",
    "attn.q": "attn.q",
    "attn.k": "attn.k",
    "attn.v": "attn.v",
    "attn.o": "attn.proj",
    "attn.relative_bias": "attn.relative_position_bias",
    "ffn_norm": "ffn_norm",
    "ffn.expand": "ffn.ffn.0",
    "ffn.shrink": "ffn.ffn.3",
}

HEAD = {"norm": "final_layer_norm", "hidden": "cls_head.0", "classifier": "cls_head.2"}

LEAVES = {
    "w": "weight",
    "b": "bias",
    "gamma": "gamma",
    "beta": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
    "table": "relative_position_bias_table",
}


def places(spec: Spec, layout: str = "torch") -> Iterator[Place]:
    """Every tensor of the spec with its place among theirs.

    Raises:
        KeyError: the spec has a layer for which they have no name.
    """
    names = {block.name: MBCONV if isinstance(block.run, MBConv) else TRANSFORMER for block in spec.blocks()}
    for ours, tensor in flatten(tensor_tree(spec)):
        scope, _, rest = ours.partition(".")
        path, _, leaf = rest.rpartition(".")
        dense = True
        if scope == "s0":
            layer = f"s0.{STEM[path]}"
        elif scope == "head":
            layer = HEAD[path]
        else:
            index, _, path = path.partition(".")
            own = names[f"{scope}.{index}"]
            layer, dense = f"{scope}.{index}.{own[path]}", own is TRANSFORMER  # an MBConv has 1x1 convolutions
        laid = layouts.torch_weight(tensor.shape, dense) if leaf == "w" else layouts.same(tensor.shape)
        yield Place(ours, f"{layer}.{LEAVES[leaf]}", tensor.shape, laid)


def expected(spec: Spec) -> dict[str, Shape]:
    """Their names and shapes for a spec."""
    return layouts.expected(places(spec))


def plain(names: Mapping[str, object], ema: bool = True) -> dict[str, str]:
    """Plain name of each tensor that holds a parameter or a statistic -> the name that it is given under.

    Where there is an averaged copy of a tensor ("ema.NAME") it is taken, or with `ema` False left.
    """
    found = {name: given for name, given in unwrapped(names).items() if belongs(name)}
    averaged = {name.removeprefix(AVERAGED): given for name, given in found.items() if name.startswith(AVERAGED)}
    own = {name: given for name, given in found.items() if not name.startswith(AVERAGED)}
    return own | averaged if ema else own


def belongs(name: str) -> bool:
    """Whether a name is none of those that only training has."""
    return name not in COUNTERS and not name.startswith(MOMENTS)


def sizes(shapes: Mapping[str, Shape]) -> Measured | None:
    """Depths, widths and classes that the shapes tell of; the stem always has two convolutions."""
    found = measured(shapes, BLOCK, (("conv.7.weight", 0), ("attn.proj.weight", 0)), ("cls_head.2.weight", 0))
    stem = shapes.get("s0.conv.0.weight")
    if found is None or found.depths is None or found.widths is None or not stem:
        return None
    return Measured((2, *found.depths), (stem[0], *found.widths), found.classes)


DIALECT = Dialect(
    name="hw666",
    project="hw666666666666/CoAtNet",
    layouts=("torch",),
    places=places,
    plain=plain,
    sizes=sizes,
    specs=hw666.names,
)
