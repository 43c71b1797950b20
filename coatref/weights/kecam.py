"""The names and layouts of keras_cv_attention_models (kecam 1.4.3), as a table from our dotted names to theirs.

Two layouts of the same tensors:

- "keras", its .h5 files: "LAYER/LEAF"; kernels (kh, kw, C, D), depthwise ones (kh, kw, C, 1), dense layers (C, D).
- "torch", the `state_dict()` of its torch backend: "LAYER.LEAF"; kernels (D, C, kh, kw), depthwise ones (C, 1, kh, kw),
  dense layers (D, C), and the vectors of a LayerNorm as (C, 1, 1).

Both hold q, k and v in one kernel, all of q before all of k before all of v, and a relative-bias table as
(heads, (2H-1)(2W-1)). Runs and blocks count from 1 there; the two runs of one of our stages are two of their stacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

from coatref.errors import InputError
from coatref.params import tensor_tree
from coatref.specification import kecam
from coatref.specification.parts import MBConv
from coatref.specification.spec import Spec
from coatref.tree import flatten
from coatref.weights import places as layouts
from coatref.weights.dialect import Dialect, Measured, measured, unwrapped
from coatref.weights.places import Place, Shape

Layout = Literal["keras", "torch"]

BLOCK = re.compile(r"stack_(\d+)_block_(\d+)_")

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


def places(spec: Spec, layout: str) -> Iterator[Place]:
    """Every tensor of the spec with its place in theirs.

    Raises:
        KeyError: the spec has a layer for which they have no name.
    """
    blocks = block_layers(spec)
    for ours, tensor in flatten(tensor_tree(spec)):
        scope, _, rest = ours.partition(".")
        path, _, leaf = rest.rpartition(".")
        fused = {}
        if scope == "s0":
            layer = STEM[path]
        elif scope == "head":
            layer = HEAD[path]
        else:
            index, _, path = path.partition(".")
            stack, names = blocks[f"{scope}.{index}"]
            layer = f"{stack}_{names[path]}"
        laid = laid_out(layer, leaf, tensor.shape, layout)
        if path in ("attn.q", "attn.k", "attn.v"):  # output channels are [q, k, v][head][channel of the head]
            fused = layouts.fused_in_blocks(laid, 0 if layout == "torch" else len(laid.whole) - 1, "qkv".index(path[-1]))
        yield Place(ours, their_name(layer, leaf, tensor.shape, layout), tensor.shape, **({"layout": laid} | fused))


def their_name(layer: str, leaf: str, shape: Shape, layout: str) -> str:
    """Their name of a tensor of a layer."""
    if layout == "torch":
        return f"{layer}.{TORCH_LEAVES[leaf]}"
    return f"{layer}/{'depthwise_' if leaf == 'w' and len(shape) == 3 else ''}{KERAS_LEAVES[leaf]}"


def laid_out(layer: str, leaf: str, shape: Shape, layout: str) -> layouts.Layout:
    """Layout of a tensor of a layer; their 1x1 convolutions are our dense layers."""
    if leaf == "table":
        return layouts.heads_first_table(shape)
    dense = not layer.endswith("_conv")
    if leaf == "w":
        return layouts.torch_weight(shape, dense) if layout == "torch" else layouts.keras_weight(shape, dense)
    if layout == "torch" and layer.endswith("_ln"):
        return layouts.Layout(shape, (0,), (*shape, 1, 1))
    return layouts.same(shape)


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


def expected(spec: Spec, layout: str) -> dict[str, Shape]:
    """Their names and shapes for a spec."""
    return layouts.expected(places(spec, layout))


def layout_of(names: Mapping[str, object]) -> Layout:
    """The layout that names belong to: only Keras' have slashes."""
    return "keras" if any("/" in name for name in names) else "torch"


def plain(names: Mapping[str, object], ema: bool = True) -> dict[str, str]:
    """Plain name of each tensor that holds a parameter or a statistic -> the name that it is given under.

    Taken off are what files put in front of and behind Keras' names ("LAYER/LAYER/kernel:0"), torch's leaves in an .h5
    file that the torch backend wrote ("LAYER/weight"), and the number of the dense layer in a classifier with a softmax
    behind it ("predictions.0.weight").

    Raises:
        InputError: two names are the same one then.
    """
    found: dict[str, str] = {}
    keras = layout_of(names) == "keras"
    for bare, given in unwrapped(names).items():
        if bare.endswith(IGNORED):
            continue
        name = keras_name(bare) if keras else bare.replace("predictions.0.", "predictions.")
        if name in found:
            raise InputError(f"The names {found[name]} and {given} are the same tensor, {name}; give one of them.")
        found[name] = given
    return found


def keras_name(name: str) -> str:
    """A name of an .h5 file as "LAYER/LEAF"."""
    *_, layer, leaf = ["", *name.partition(":")[0].split("/")]
    kernel = "depthwise_kernel" if layer.endswith("dw_conv") else "kernel"
    norm = layer.endswith(("_bn", "_ln"))
    leaves = {
        "kernel": kernel,  # Keras 3 calls a depthwise one so too
        "weight": "gamma" if norm else kernel,
        "bias": "beta" if norm else "bias",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    return f"{layer}/{leaves.get(leaf, leaf)}"


def sizes(shapes: Mapping[str, Shape]) -> Measured | None:
    """Depths, widths and classes that the shapes tell of."""
    if layout_of(shapes) == "torch":
        return measured(shapes, BLOCK, (("MB_pw_conv.weight", 0), ("ffn_2_conv.weight", 0)), ("predictions.weight", 0))
    return measured(shapes, BLOCK, (("MB_pw_conv/kernel", 3), ("ffn_2_conv/kernel", 3)), ("predictions/kernel", 1))


DIALECT = Dialect(
    name="kecam",
    project="keras_cv_attention_models",
    layouts=("torch", "keras"),
    places=places,
    plain=plain,
    layout_of=layout_of,
    sizes=sizes,
    specs=kecam.names,
)
