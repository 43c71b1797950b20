"""The names and layouts of Google's code (see `coatref.specification.google`), as a table from our dotted names to theirs.

Both code bases hold the same tensors: convolution kernels (kh, kw, C, D), depthwise ones (kh, kw, C, 1), dense layers
(C, D), q, k and v by heads as (C, heads, D), the output projection as (heads, D, C), relative-bias tables as
(heads, 2H-1, 2W-1), key minus query. Stages and blocks count from 0: our "s1.0" is their "block_00_00", and a stage of two
runs is two of theirs. Variables of the two differ in the stem and the head:

- "google", google-research/maxvit, as its graphs and so its checkpoints have them: "maxvit/stem/conv_0/kernel";
- "tfmodels", the `variables` of tensorflow/models' ClassificationModel around the backbone: "conv_0/kernel".

What TensorFlow makes of these names is understood too: a ":0" behind them, scopes in front of them, and the paths that
`tf.train.Checkpoint` gives ("backbone/_blocks/0/0/_pre_norm/gamma/.ATTRIBUTES/VARIABLE_VALUE").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from coatref.errors import InputError
from coatref.params import tensor_tree
from coatref.specification import google
from coatref.specification.parts import ConvStem, MBConv, RelativeBias, Transformer
from coatref.specification.spec import Spec
from coatref.tree import flatten
from coatref.weights import places as layouts
from coatref.weights.dialect import Dialect, Measured, measured
from coatref.weights.places import Place, Shape

Layout = Literal["google", "tfmodels"]

BLOCK = re.compile(r"maxvit/block_(\d+)_(\d+)/")
STEM_KERNEL = re.compile(r"(?:maxvit/stem/)?conv_\d+/kernel")

MBCONV = {
    "shortcut": "shortcut_conv",
    "pre_norm": "pre_norm",
    "expand": "expand_conv",
    "expand_norm": "expand_norm",
    "depthwise": "depthwise_conv",
    "depthwise_norm": "depthwise_norm",
    "se.reduce": "se/reduce_conv2d",
    "se.expand": "se/expand_conv2d",
    "shrink": "shrink_conv",
}

TRANSFORMER = {
    "shortcut": "shortcut_proj",
    "attn_norm": "attn_layer_norm",
    "attn.q": "attention/q",
    "attn.k": "attention/k",
    "attn.v": "attention/v",
    "attn.o": "attention/o",
    "attn.relative_bias": "attention",
    "ffn_norm": "ffn_layer_norm",
    "ffn.expand": "ffn/expand_dense",
    "ffn.shrink": "ffn/shrink_dense",
}

HEAD = {
    "google": {"norm": "final_layer_norm", "hidden": "inner_dense", "classifier": "logit_dense"},
    "tfmodels": {"norm": "final_layer_norm", "hidden": "pre_logits", "classifier": "dense"},
}

# The scope of a layer of the stem, a block or the head, where it has one.
SCOPES = {
    "google": {
        "conv": "maxvit/stem/",
        "norm": "maxvit/stem/",
        "block": "maxvit/",
        "final_layer_norm": "maxvit/",
        "inner_dense": "maxvit/cls_head/",
        "logit_dense": "maxvit/cls_head/",
    },
    "tfmodels": {"block": "maxvit/", "final_layer_norm": "maxvit/", "pre_logits": "maxvit/"},
}

LEAVES = {
    "w": "kernel",  # "depthwise_kernel" in a depthwise convolution, "weight" in their own dense layer
    "b": "bias",
    "gamma": "gamma",
    "beta": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
    "table": "relative_bias",
}

# --- names that TensorFlow makes of them ---

# The innermost scope that a layer of theirs has, and all that is behind it; one layer has all its variables directly in it.
LAYER = re.compile(
    r"(?:^|/)(block_\d+_\d+/.+|(?:(?:conv|norm)_\d+|final_layer_norm|inner_dense|logit_dense|pre_logits|dense(?:_\d+)?)/\w+)$"
)

AVERAGED = "/ExponentialMovingAverage"  # behind the name of a variable whose moving average it is

# Variables that only training has: optimizers', which have the optimizer's name in front or behind, and counters.
OPTIMIZER = re.compile(r"(?:^|/)(?:Adam|AdamW|AdamWeightDecay|LAMB|LARS|Momentum|RMSProp|RMSprop|SGD)(?:_\d+)?(?:/|$)")
COUNTERS = ("global_step", "beta1_power", "beta2_power", "iteration", "learning_rate", "save_counter")

# Paths of objects: the attributes from a checkpoint's root to a variable, and behind it what is kept of it.
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
SLOT = "/.OPTIMIZER_SLOT/"  # before the optimizer's own path to a variable that belongs to another one
AVERAGED_SLOT = "/average"  # of their ExponentialMovingAverage optimizer
ROOTS = ("optimizer/", "global_step", "save_counter", "_CHECKPOINTABLE_OBJECT_GRAPH")

BLOCK_PATH = re.compile(r"(?:^|/)_blocks/(\d+)/(\d+)/(.+)$")
STEM_PATH = re.compile(r"(?:^|/)_stem/layer_with_weights-(\d+)/(\w+)$")  # convolutions, and norms between them
HEAD_PATHS = {
    "_final_layer_norm": "final_layer_norm",
    "_cls_head/layer_with_weights-0": "inner_dense",
    "_cls_head/layer_with_weights-1": "logit_dense",
    "_dense": "pre_logits",
    "layer_with_weights-1": "dense",  # of ClassificationModel, whose number 0 is the backbone
}

# Attributes of a block that are not the layer's name behind an underscore.
ATTRIBUTES = {
    "_q_proj": "q",
    "_k_proj": "k",
    "_v_proj": "v",
    "_o_proj": "o",
    "_se_reduce": "reduce_conv2d",
    "_se_expand": "expand_conv2d",
}


class Variable(NamedTuple):
    """What a name in a checkpoint stands for."""

    name: str  # without any scope before the layer's own
    averaged: bool = False


def places(spec: Spec, layout: str) -> Iterator[Place]:
    """Every tensor of the spec with its place in theirs.

    Raises:
        KeyError: the spec has a layer for which they have no name.
    """
    blocks = block_layers(spec)
    stem = stem_layers(spec)
    for ours, tensor in flatten(tensor_tree(spec)):
        scope, _, rest = ours.partition(".")
        path, _, leaf = rest.rpartition(".")
        name, shape = LEAVES[leaf], tensor.shape
        if scope == "s0":
            layer, laid = stem[path], convolution(leaf, shape)
        elif scope == "head":
            layer, laid = HEAD[layout][path], layouts.same(shape)
            if leaf == "w" and layout == "google":
                name = "weight"
        else:
            index, _, path = path.partition(".")
            block, run = blocks[f"{scope}.{index}"]
            if isinstance(run, MBConv):
                layer, laid = f"{block}/{MBCONV[path]}", convolution(leaf, shape)
                name = f"depthwise_{name}" if leaf == "w" and len(shape) == 3 else name
            else:
                layer, laid = f"{block}/{TRANSFORMER[path]}", dense(path, leaf, shape, run)
                name = "weight" if leaf == "w" else name
        yield Place(ours, scoped(f"{layer}/{name}", layout), shape, laid)


def stem_layers(spec: Spec) -> dict[str, str]:
    """Our names of the stem's layers -> theirs; they have no norm behind the last convolution."""
    count = len(spec.stem.widths) if isinstance(spec.stem, ConvStem) else 0
    convolutions = {f"conv{number + 1}": f"conv_{number}" for number in range(count)}
    return convolutions | {f"norm{number + 1}": f"norm_{number}" for number in range(count - 1)}


def block_layers(spec: Spec) -> dict[str, tuple[str, MBConv | Transformer]]:
    """Our name of a block -> their name of it, "block_SS_BB", and the run that it is in.

    Raises:
        KeyError: a run has blocks of a kind that they lack.
    """
    found: dict[str, tuple[str, MBConv | Transformer]] = {}
    runs = [(f"s{number}", run) for number, stage in enumerate(spec.stages, start=1) for run in stage]
    position: dict[str, int] = {}
    for number, (stage, run) in enumerate(runs):
        if not isinstance(run, (MBConv, Transformer)):
            raise KeyError(run.kind)
        for index in range(run.depth):
            place = position.get(stage, 0)
            found[f"{stage}.{place}"] = f"block_{number:02d}_{index:02d}", run
            position[stage] = place + 1
    return found


def convolution(leaf: str, shape: Shape) -> layouts.Layout:
    """Layout of a tensor of a layer of convolutions; our dense ones are 1x1 there."""
    return layouts.keras_weight(shape, dense=False) if leaf == "w" else layouts.same(shape)


def dense(path: str, leaf: str, shape: Shape, run: Transformer) -> layouts.Layout:
    """Layout of a tensor of a Transformer block."""
    attention = run.attention
    if leaf == "table" and attention.relative_bias is not None:
        return table(shape, attention.relative_bias)
    if path in ("attn.q", "attn.k", "attn.v"):
        return layouts.heads_out(shape, attention.head_size)
    if path == "attn.o" and leaf == "w":
        return layouts.heads_in(shape, attention.head_size)
    return layouts.same(shape)


def table(shape: Shape, bias: RelativeBias) -> layouts.Layout:
    """Layout of a relative-bias table: theirs is key minus query, and has no axis of heads where they share it."""
    order = (0, 2, 1) if bias.orientation == "transposed" else (0, 1, 2)
    whole = tuple(shape[axis] for axis in order)
    flipped = () if bias.orientation == "key_minus_query" else (-2, -1)
    return layouts.Layout(shape, order, whole if bias.sharing == "per_head" else whole[1:], flipped)


def scoped(variable: str, layout: str) -> str:
    """A variable of a layer, "LAYER/.../LEAF", with the scope before it; unchanged where it is no layer of theirs."""
    layer = variable.partition("/")[0]
    scopes = SCOPES[layout]
    return scopes.get(layer, scopes.get(layer.partition("_")[0], "")) + variable


def expected(spec: Spec, layout: str) -> dict[str, Shape]:
    """Their names and shapes for a spec."""
    return layouts.expected(places(spec, layout))


# --- names that TensorFlow makes of them ---


def variable(name: str) -> Variable | None:
    """What a name stands for; None: something that only training has."""
    path, value, _ = name.partition(VALUE)
    if value:
        return object_variable(path)
    bare = name.partition(":")[0]
    averaged = bare.endswith(AVERAGED)
    bare = bare.removesuffix(AVERAGED)
    if OPTIMIZER.search(bare) or bare in COUNTERS or bare.startswith(ROOTS):
        return None
    layer = LAYER.search(bare)
    return Variable(re.sub(r"^dense_\d+/", "dense/", layer[1]) if layer else bare, averaged)


def object_variable(path: str) -> Variable | None:
    """What the path of an object in a checkpoint stands for; None: something that only training has."""
    path, slot, kept = path.partition(SLOT)
    if path.startswith(ROOTS) or (slot and not kept.endswith(AVERAGED_SLOT)):
        return None
    return Variable(layer_variable(path), bool(slot))


def layer_variable(path: str) -> str:
    """The variable at a path of attributes, as "LAYER/.../LEAF"; the path itself where it is none of theirs."""
    block, stem = BLOCK_PATH.search(path), STEM_PATH.search(path)
    if block is not None:
        attributes = block[3].split("/")
        layers = (ATTRIBUTES.get(each, each.removeprefix("_")) for each in attributes)
        return "/".join((f"block_{int(block[1]):02d}_{int(block[2]):02d}", *layers))
    if stem is not None:
        number = int(stem[1])
        return f"{'norm' if number % 2 else 'conv'}_{number // 2}/{stem[2]}"
    layer, _, leaf = path.rpartition("/")
    for attribute, name in HEAD_PATHS.items():
        if f"/{layer}".endswith(f"/{attribute}"):
            return f"{name}/{leaf}"
    return path


def layout_of(names: Mapping[str, object]) -> Layout:
    """The layout that names belong to: the two differ in the names of the head."""
    layers = {found.name.partition("/")[0] for found in map(variable, names) if found is not None}
    return "tfmodels" if layers & {"pre_logits", "dense"} else "google"


def plain(names: Mapping[str, object], ema: bool = True) -> dict[str, str]:
    """Plain name of each tensor that holds a parameter or a statistic -> the name that it is given under.

    Where there is a moving average of a variable it is taken, or with `ema` False left. Left too are the variables of
    optimizers, and counters.

    Raises:
        InputError: two names are the same variable.
    """
    layout = layout_of(names)
    own: dict[str, str] = {}
    averaged: dict[str, str] = {}
    for given in names:
        found = variable(given)
        if found is None:
            continue
        copies, name = averaged if found.averaged else own, scoped(found.name, layout)
        if name in copies:
            raise InputError(f"The names {copies[name]} and {given} are the same tensor, {name}; give one of them.")
        copies[name] = given
    return own | averaged if ema else own


def sizes(shapes: Mapping[str, Shape]) -> Measured | None:
    """Depths, widths and classes that the shapes tell of: of S0, then of every block type."""
    classifier = "dense/kernel" if "dense/kernel" in shapes else "maxvit/cls_head/logit_dense/weight"
    found = measured(shapes, BLOCK, (("shrink_conv/kernel", 3), ("shrink_dense/weight", 1)), (classifier, 1))
    stem = [shape[-1] for name, shape in shapes.items() if STEM_KERNEL.fullmatch(name) and shape]
    if found is None or found.depths is None or found.widths is None or not stem:
        return None
    return found._replace(depths=(len(stem), *found.depths), widths=(stem[0], *found.widths))


DIALECT = Dialect(
    name="google",
    project="Google's maxvit code",
    layouts=("google", "tfmodels"),
    places=places,
    plain=plain,
    layout_of=layout_of,
    sizes=sizes,
    specs=google.names,
)
