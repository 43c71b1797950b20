"""The probes: one case for each part of a network, in which only that part is new to what the cases before it used.

They stand in order from the output backwards, so the first that fails names the part: everything behind it has passed.
Probes on an "empty" stream make their own signal inside one branch and see nothing of stem, shortcuts and residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from coatref.conformance import surgery
from coatref.conformance.cases import Case, drawn_images, drawn_params, stored_params
from coatref.conformance.precision import Precision
from coatref.conformance.report.results import Check
from coatref.conformance.surgery import Flat, centred, fan_in, integers, linear_values, telling_values
from coatref.ops import activation
from coatref.specification.parts import ConvNeXt, ConvStem, MBConv, Transformer
from coatref.specification.spec import Block, Spec

Random = np.random.Generator
GAIN = 2.0  # the size of signals that go through an activation which an earlier probe has looked at
Build = Callable[[Flat, Spec, Block, Random], None]


@dataclass(frozen=True)
class Probe:
    """How one probe is built.

    Attributes:
        name: of the probe, without the place.
        primitive: that it looks at.
        check: "wiring" where all numbers on the way are whole, else "amplifier".
        kind: the blocks that have it; None for stem and head.
        where: which of them: any, only those with or without a stride, or only those that change width or grid or keep both.
        branch: ".attn" or ".ffn" of a Transformer block, "" of the others; None: no branch is active.
        stream: "empty", or "image" for what the stem makes of an image.
        build: chooses the parameters; it raises `Absent` where the spec has no such part.
    """

    name: str
    primitive: str
    check: Check
    kind: type | None
    where: Literal["any", "strided", "plain", "changing", "keeping"]
    branch: str | None
    stream: Literal["empty", "image"]
    build: Build


class Absent(Exception):
    """A spec has no such part."""


def need(present: Any) -> None:
    """Refuse to build a probe for a part that is absent."""
    if not present:
        raise Absent


# --- the branch of an MBConv block, from its end backwards ---


def mbconv_base(flat: Flat, spec: Spec, block: Block, random: Random) -> float:
    """All of the branch transparent: constants go through it unchanged. Gives where its activation is linear."""
    run = mbconv(block)
    linear = surgery.LINEAR_FROM[run.activation]
    for norm in ("expand_norm", "depthwise_norm"):
        surgery.transparent(flat, f"{block.name}.{norm}", run.inner_norm)
    surgery.transparent(flat, f"{block.name}.pre_norm", run.pre_norm)
    surgery.centre_only(flat, f"{block.name}.depthwise.w")
    surgery.open_gate(flat, block.name)
    surgery.fill(flat, f"{block.name}.shrink", lambda shape: centred(random, shape, 1.0))
    return linear


def mbconv(block: Block) -> MBConv:
    """The block's spec as an MBConv."""
    assert isinstance(block.run, MBConv)
    return block.run


def expanded(flat: Flat, block: Block) -> tuple[int, ...]:
    """Shape of one value for each expanded channel."""
    return (flat[f"{block.name}.expand.w"].shape[1],)


def shrink(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Whole constants after the depthwise convolution, a whole kernel behind them."""
    mbconv_base(flat, spec, block, random)
    values = linear_values(random, expanded(flat, block), mbconv(block).activation)
    surgery.constant(flat, f"{block.name}.depthwise_norm", values)
    surgery.fill(flat, f"{block.name}.shrink", lambda shape: integers(random, shape))


def shrink_scale(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The same, with a layer scale."""
    need(f"{block.name}.layer_scale.gamma" in flat)
    shrink(flat, spec, block, random)
    name = f"{block.name}.layer_scale.gamma"
    flat[name] = random.uniform(0.5, 1.5, flat[name].shape)


def shrink_norm(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """A normalisation after the last layer, at variances as large as its epsilon."""
    norm = mbconv(block).shrink_norm
    need(norm)
    shrink(flat, spec, block, random)
    assert norm is not None
    surgery.fill(flat, f"{block.name}.shrink", lambda shape: fan_in(random, shape, np.sqrt(norm.epsilon) / 12))
    surgery.sensitive(flat, f"{block.name}.shrink_norm", norm, 0.0, random)


def depthwise_activation(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The second activation where its forms differ most."""
    mbconv_base(flat, spec, block, random)
    values = telling_values(random, expanded(flat, block))
    surgery.constant(flat, f"{block.name}.depthwise_norm", values)
    band(flat, f"{block.name}.shrink", random, activation(values, mbconv(block).activation))


def band(flat: Flat, layer: str, random: Random, values: Any) -> None:
    """A layer that adds up channels of similar values, without a bias; see `surgery.banded`."""
    flat[f"{layer}.w"] = surgery.banded(random, flat[f"{layer}.w"].shape, values)
    if f"{layer}.b" in flat:
        flat[f"{layer}.b"] = np.zeros_like(flat[f"{layer}.b"])


def gate(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Squeeze-excite on constants: both layers, both activations, their biases."""
    run = mbconv(block)
    need(run.squeeze_excite)
    linear = mbconv_base(flat, spec, block, random)
    values = linear_values(random, expanded(flat, block), run.activation)
    late = run.squeeze_excite is not None and run.squeeze_excite.place == "after_activation"
    surgery.constant(flat, f"{block.name}.{'depthwise' if late else 'expand'}_norm", values)
    surgery.fill(flat, f"{block.name}.se.reduce", lambda shape: fan_in(random, shape, 2 / max(linear, 1.0)))
    surgery.fill(flat, f"{block.name}.se.expand", lambda shape: fan_in(random, shape, 2.0))


def depthwise_norm(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The second normalisation at variances as large as its epsilon."""
    run = mbconv(block)
    mbconv_base(flat, spec, block, random)
    root = np.sqrt(run.inner_norm.epsilon)
    surgery.constant(flat, f"{block.name}.expand_norm", random.normal(size=expanded(flat, block)) * root)
    surgery.sensitive(flat, f"{block.name}.depthwise_norm", run.inner_norm, 0.0, random, GAIN)


def depthwise_edges(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The depthwise kernel on constants: the sum of its entries, and what padding makes of it at the edges."""
    run = mbconv(block)
    mbconv_base(flat, spec, block, random)
    values = linear_values(random, expanded(flat, block), run.activation)
    surgery.constant(flat, f"{block.name}.expand_norm", values)
    surgery.fill(flat, f"{block.name}.depthwise", lambda shape: integers(random, shape))


def expand_activation(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The first activation where its forms differ most."""
    mbconv_base(flat, spec, block, random)
    values, kind = telling_values(random, expanded(flat, block)), mbconv(block).activation
    surgery.constant(flat, f"{block.name}.expand_norm", values)
    surgery.transparent(flat, f"{block.name}.depthwise_norm", mbconv(block).inner_norm)
    band(flat, f"{block.name}.shrink", random, activation(activation(values, kind), kind))


def expand_norm(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The first normalisation at variances as large as its epsilon."""
    run = mbconv(block)
    mbconv_base(flat, spec, block, random)
    surgery.constant(
        flat, f"{block.name}.pre_norm", linear_values(random, (block.input_width,), run.pre_norm_activation)
    )
    level = surgery.LINEAR_FROM[run.pre_norm_activation or "relu"] + 4.0
    gain = np.sqrt(run.inner_norm.epsilon) / level
    surgery.fill(flat, f"{block.name}.expand", lambda shape: fan_in(random, shape, gain))
    surgery.sensitive(flat, f"{block.name}.expand_norm", run.inner_norm, 0.0, random, GAIN)


def expansion(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The expansion of constants that no activation changes."""
    run = mbconv(block)
    mbconv_base(flat, spec, block, random)
    surgery.constant(
        flat, f"{block.name}.pre_norm", linear_values(random, (block.input_width,), run.pre_norm_activation)
    )
    surgery.fill(flat, f"{block.name}.expand", lambda shape: centred(random, shape, GAIN / 2))
    surgery.transparent(flat, f"{block.name}.expand_norm", run.inner_norm)


def pre_activation(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Negative constants after the first normalisation, which an activation there would change."""
    run = mbconv(block)
    mbconv_base(flat, spec, block, random)
    surgery.constant(flat, f"{block.name}.pre_norm", telling_values(random, (block.input_width,)))
    surgery.fill(flat, f"{block.name}.expand", lambda shape: fan_in(random, shape, GAIN))
    surgery.transparent(flat, f"{block.name}.expand_norm", run.inner_norm)


def pre_norm(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The first normalisation, of zeros, at variances as large as its epsilon."""
    run = mbconv(block)
    need(run.pre_norm.kind == "batch")
    expansion(flat, spec, block, random)
    surgery.sensitive(flat, f"{block.name}.pre_norm", run.pre_norm, 0.0, random, GAIN)


def varied_expansion(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The branch on a picture, with a plain depthwise kernel: which positions it takes, and how it pools."""
    run = mbconv(block)
    mbconv_base(flat, spec, block, random)
    surgery.transparent(flat, f"{block.name}.pre_norm", run.pre_norm)
    surgery.fill(flat, f"{block.name}.expand", lambda shape: centred(random, shape, GAIN))
    surgery.transparent(flat, f"{block.name}.expand_norm", run.inner_norm)


def pooled_expansion(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The pool of the branch on a picture, before an activation that bends: the mean of all positions hides it else."""
    need(mbconv(block).stride_at == "pool")
    varied_expansion(flat, spec, block, random)
    surgery.fill(flat, f"{block.name}.expand", lambda shape: fan_in(random, shape, 8.0))
    surgery.fill(flat, f"{block.name}.shrink", lambda shape: fan_in(random, shape, 4.0))


def varied_depthwise(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The depthwise kernel on a picture: its orientation and its stride."""
    varied_expansion(flat, spec, block, random)
    surgery.fill(flat, f"{block.name}.depthwise", lambda shape: fan_in(random, (*shape, 1))[..., 0])
    surgery.transparent(flat, f"{block.name}.depthwise_norm", mbconv(block).inner_norm)


def varied_gate(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Squeeze-excite on a picture: what it takes of all positions, and where in the branch it stands."""
    need(mbconv(block).squeeze_excite)
    varied_depthwise(flat, spec, block, random)
    surgery.transparent(flat, f"{block.name}.depthwise_norm", mbconv(block).inner_norm, 0.5)
    surgery.fill(flat, f"{block.name}.se.reduce", lambda shape: fan_in(random, shape, 4.0))
    surgery.fill(flat, f"{block.name}.se.expand", lambda shape: fan_in(random, shape, 2.0))


# --- a ConvNeXt block ---


def convnext_constant(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The branch after its normalisation, on constants."""
    surgery.constant(flat, f"{block.name}.norm", random.normal(size=flat[f"{block.name}.norm.gamma"].shape))


def convnext_activation(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The activation where its forms differ most."""
    assert isinstance(block.run, ConvNeXt)
    values = ffn_values(flat, block, lambda shape: telling_values(random, shape), norm="norm")
    band(flat, f"{block.name}.ffn.shrink", random, activation(values, block.run.activation))


def convnext_norm(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The normalisation of values whose variance is about as large as its epsilon."""
    assert isinstance(block.run, ConvNeXt)
    norm = block.run.norm
    surgery.sensitive(flat, f"{block.name}.norm", norm, 0.0, random)
    if norm.kind == "layer":
        root = float(np.sqrt(norm.epsilon))
        small_stream(flat, spec, root)
        surgery.fill(flat, f"{block.name}.ffn.shrink", lambda shape: fan_in(random, shape, 2.0 * root))
        surgery.fill(
            flat, f"{block.name}.depthwise", lambda shape: fan_in(random, (*shape, 1))[..., 0] * small(shape, root)
        )


def small(shape: tuple[int, ...], root: float) -> float:
    """The factor for a bias beside a signal of size `root`; kernels keep theirs."""
    return root if len(shape) == 1 else 1.0


def convnext_picture(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The whole branch on a picture."""


# --- a Transformer block, from its end backwards ---


def transformer(block: Block) -> Transformer:
    """The block's spec as a Transformer block."""
    assert isinstance(block.run, Transformer)
    return block.run


def first_channel(flat: Flat, norm: str) -> None:
    """A normalisation that gives 1 in its first channel and 0 in all others."""
    values = np.zeros_like(flat[f"{norm}.beta"])
    values[0] = 1.0
    surgery.constant(flat, norm, values)


def ffn_values(flat: Flat, block: Block, values: Callable[[tuple[int, ...]], Any], norm: str = "ffn_norm") -> Any:
    """Chosen constants before the activation of the feed-forward network: its bias, or else its kernel's first row.

    Returns them.
    """
    name = f"{block.name}.ffn.expand"
    first_channel(flat, f"{block.name}.{norm}")
    w = np.zeros_like(flat[f"{name}.w"])
    chosen = values(w[0].shape)
    if f"{name}.b" in flat:
        flat[f"{name}.b"] = chosen
    else:
        w[0] = chosen
    flat[f"{name}.w"] = w
    return chosen


def ffn_shrink(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Whole constants before the last layer, a whole kernel in it."""
    kind = transformer(block).ffn.activation
    ffn_values(flat, block, lambda shape: linear_values(random, shape, kind))
    surgery.fill(flat, f"{block.name}.ffn.shrink", lambda shape: integers(random, shape))


def ffn_scale(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The same, with a layer scale."""
    name = f"{block.name}.ffn_scale.gamma"
    need(name in flat)
    ffn_shrink(flat, spec, block, random)
    flat[name] = random.uniform(0.5, 1.5, flat[name].shape)


def ffn_activation(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The activation where its forms differ most."""
    values = ffn_values(flat, block, lambda shape: telling_values(random, shape))
    band(flat, f"{block.name}.ffn.shrink", random, activation(values, transformer(block).ffn.activation))


def ffn_expand(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The first layer, on constants that differ from channel to channel."""
    surgery.constant(flat, f"{block.name}.ffn_norm", random.normal(size=flat[f"{block.name}.ffn_norm.beta"].shape))
    surgery.fill(flat, f"{block.name}.ffn.expand", lambda shape: fan_in(random, shape, 1.5))
    surgery.fill(flat, f"{block.name}.ffn.shrink", lambda shape: fan_in(random, shape, 2.0))


def attention_output(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Whole values at every position, so that any weights that add up to 1 give them back; a whole kernel behind."""
    first_channel(flat, f"{block.name}.attn_norm")
    no_table(flat, block)
    for name in ("q", "k", "v"):
        surgery.zero(flat, f"{block.name}.attn.{name}")
    w = flat[f"{block.name}.attn.v.w"].copy()
    w[0] = integers(random, w[0].shape)
    flat[f"{block.name}.attn.v.w"] = w
    surgery.fill(flat, f"{block.name}.attn.o", lambda shape: integers(random, shape))


def attention_scale(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The same, with a layer scale."""
    name = f"{block.name}.attn_scale.gamma"
    need(name in flat)
    attention_output(flat, spec, block, random)
    flat[name] = random.uniform(0.5, 1.5, flat[name].shape)


def attention_values(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """v of constants that differ from channel to channel, with its bias."""
    attention_output(flat, spec, block, random)
    surgery.constant(flat, f"{block.name}.attn_norm", random.normal(size=flat[f"{block.name}.attn_norm.beta"].shape))
    surgery.fill(flat, f"{block.name}.attn.v", lambda shape: fan_in(random, shape))
    surgery.fill(flat, f"{block.name}.attn.o", lambda shape: fan_in(random, shape, 2.0))


def attention_sum(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The same values everywhere under weights that differ: what does not add up to 1, on average over queries, shows."""
    need(transformer(block).attention.relative_bias)
    table = {name: value for name, value in flat.items() if ".attn.relative_bias" in name}
    attention_values(flat, spec, block, random)
    flat.update({name: value for name, value in table.items() if name.startswith(block.name)})


def no_table(flat: Flat, block: Block) -> None:
    """No relative bias."""
    for name in [name for name in flat if name.startswith(f"{block.name}.attn.relative_bias")]:
        flat[name] = np.zeros_like(flat[name])


def even_attention(flat: Flat, block: Block, random: Random) -> None:
    """Every position attends to all alike; v and o keep the size of what goes through."""
    no_table(flat, block)
    for name in ("q", "k"):
        surgery.zero(flat, f"{block.name}.attn.{name}")
    surgery.fill(flat, f"{block.name}.attn.v", lambda shape: fan_in(random, shape))
    surgery.fill(flat, f"{block.name}.attn.o", lambda shape: fan_in(random, shape, 2.0))
    surgery.transparent(flat, f"{block.name}.attn_norm", transformer(block).attention_norm)


def small_stream(flat: Flat, spec: Spec, size: float) -> None:
    """What the stem gives is about as large as `size`, and shortcuts add nothing to it."""
    stem = spec.stem
    last = f"s0.conv{len(stem.widths)}" if isinstance(stem, ConvStem) else "s0.conv1"
    flat[f"{last}.w"] = flat[f"{last}.w"] * size
    if f"{last}.b" in flat:
        flat[f"{last}.b"] = flat[f"{last}.b"] * size
    if isinstance(stem, ConvStem) and stem.after_last != "nothing":
        norm = f"s0.norm{len(stem.widths)}"
        flat[f"{norm}.gamma"], flat[f"{norm}.beta"] = flat[f"{norm}.gamma"] * size, flat[f"{norm}.beta"] * size
    for name in flat:
        if name.endswith(".shortcut.b"):
            flat[name] = np.zeros_like(flat[name])


def attention_norm(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The normalisation of values whose variance is about as large as its epsilon, under even attention."""
    norm = transformer(block).attention_norm
    even_attention(flat, block, random)
    surgery.sensitive(flat, f"{block.name}.attn_norm", norm, 0.0, random)
    if norm.kind == "layer":
        small_stream(flat, spec, float(np.sqrt(norm.epsilon)))
        gain = 2.0 * float(np.sqrt(norm.epsilon))
        surgery.fill(flat, f"{block.name}.attn.o", lambda shape: fan_in(random, shape, gain))


def ffn_norm(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The second normalisation, of values whose variance is about as large as its epsilon."""
    norm = transformer(block).ffn_norm
    surgery.sensitive(flat, f"{block.name}.ffn_norm", norm, 0.0, random)
    surgery.fill(flat, f"{block.name}.ffn.expand", lambda shape: fan_in(random, shape))
    gain = 2.0
    if norm.kind == "layer":
        small_stream(flat, spec, float(np.sqrt(norm.epsilon)))
        gain = 2.0 * float(np.sqrt(norm.epsilon))
    surgery.fill(flat, f"{block.name}.ffn.shrink", lambda shape: fan_in(random, shape, gain))


def pooled_attention(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Even attention in a block with a stride: how it pools, and whether before or after the normalisation."""
    even_attention(flat, block, random)
    norm = f"{block.name}.attn_norm"
    flat[f"{norm}.gamma"] = integers(random, flat[f"{norm}.gamma"].shape, 2)  # of both signs: max pools see the order
    run = transformer(block)
    if run.norm_pool_order == "pool_then_norm" and run.attention_norm.kind == "layer":
        root = float(np.sqrt(run.attention_norm.epsilon))  # else the normalisation takes away how much the pool gives
        small_stream(flat, spec, root)
        surgery.fill(flat, f"{block.name}.attn.o", lambda shape: fan_in(random, shape, 2.0 * root))


def mixed_values(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The relative bias alone: no queries, an uneven table."""
    bias = transformer(block).attention.relative_bias
    need(bias)
    table = {name: value * 2.0 for name, value in flat.items() if name.startswith(f"{block.name}.attn.relative_bias")}
    even_attention(flat, block, random)
    flat.update(table)


def queries(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Queries and keys without a relative bias: their scale, and how heads are cut."""
    even_attention(flat, block, random)
    for name in ("q", "k"):
        surgery.fill(flat, f"{block.name}.attn.{name}", lambda shape: fan_in(random, shape, 2.0))


def all_attention(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Queries, keys and relative bias together."""
    need(transformer(block).attention.relative_bias)
    table = {name: value * 1.5 for name, value in flat.items() if name.startswith(f"{block.name}.attn.relative_bias")}
    queries(flat, spec, block, random)
    flat.update(table)


# --- head, stem, shortcuts ---


def classifier(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Whole features and a whole kernel."""
    features(flat, spec, block, random)
    if spec.head.norm is not None:
        surgery.constant(flat, "head.norm", integers(random, flat["head.norm.beta"].shape))
    if spec.head.hidden is not None:
        flat["head.hidden.w"] = np.zeros_like(flat["head.hidden.w"])
        act = spec.head.hidden.activation
        shape = flat["head.hidden.b"].shape
        flat["head.hidden.b"] = (
            20.0 * random.choice((-1.0, 1.0), shape) if act == "tanh" else linear_values(random, shape, act)
        )
    surgery.fill(flat, "head.classifier", lambda shape: integers(random, shape))


def features(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """A signal of constants from the network's last branch."""
    if isinstance(block.run, Transformer):
        ffn_shrink(flat, spec, block, random)
        surgery.fill(flat, f"{block.name}.ffn.shrink", lambda shape: fan_in(random, shape, 1 / 12))
    elif isinstance(block.run, MBConv):
        shrink(flat, spec, block, random)
        surgery.fill(flat, f"{block.name}.shrink", lambda shape: fan_in(random, shape, 1 / 12))
    else:
        convnext_constant(flat, spec, block, random)


def hidden(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The dense layer before the classifier, and its activation."""
    need(spec.head.hidden is not None)
    features(flat, spec, block, random)
    if spec.head.norm is not None:
        surgery.constant(flat, "head.norm", random.normal(size=flat["head.norm.beta"].shape))


def head_norm(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The head's normalisation of features whose variance is about as large as its epsilon."""
    norm = spec.head.norm
    need(norm)
    assert norm is not None
    features(flat, spec, block, random)
    last = surgery.last_layer(block, surgery.branches(block)[-1])
    root = float(np.sqrt(norm.epsilon))
    surgery.fill(flat, last, lambda shape: fan_in(random, shape, root / 12))
    surgery.sensitive(flat, "head.norm", norm, 0.0, random)


def stem_constant(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The second convolution of the stem on constants: its edges show the padding."""
    stem = spec.stem
    need(isinstance(stem, ConvStem) and len(stem.widths) > 1)
    assert isinstance(stem, ConvStem)
    values = linear_values(random, flat["s0.norm1.beta"].shape, stem.activation)
    surgery.constant(flat, "s0.norm1", values)
    gain = 1 / max(surgery.LINEAR_FROM[stem.activation], 1.0)
    surgery.fill(flat, "s0.conv2", lambda shape: fan_in(random, shape, gain))


def stem_activation(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The stem's activation where its forms differ most."""
    stem_constant(flat, spec, block, random)
    assert isinstance(spec.stem, ConvStem)
    values = telling_values(random, flat["s0.norm1.beta"].shape)
    surgery.constant(flat, "s0.norm1", values)
    band(flat, "s0.conv2", random, activation(values, spec.stem.activation))


def stem_norm(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """The stem's normalisation at variances as large as its epsilon."""
    stem_constant(flat, spec, block, random)
    assert isinstance(spec.stem, ConvStem)
    root = float(np.sqrt(spec.stem.norm.epsilon))
    surgery.fill(flat, "s0.conv1", lambda shape: fan_in(random, shape, root))
    surgery.sensitive(flat, "s0.norm1", spec.stem.norm, 0.0, random, GAIN)
    surgery.fill(flat, "s0.conv2", lambda shape: centred(random, shape))


def stem_picture(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Both convolutions of the stem on a picture."""
    stem = spec.stem
    if not isinstance(stem, ConvStem):
        return
    if "s0.norm1.gamma" in flat:
        surgery.transparent(flat, "s0.norm1", stem.norm)
        surgery.fill(flat, "s0.conv1", lambda shape: fan_in(random, shape, GAIN))
        surgery.fill(flat, "s0.conv2", lambda shape: centred(random, shape))


def baseline(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """Stem, shortcuts and head on a picture; all branches silent."""


def passed_on(flat: Flat, spec: Spec, block: Block, random: Random) -> None:
    """A signal of constants made in the block before, through this block's shortcut."""
    before = [each for each in spec.blocks()]
    index = [each.name for each in before].index(block.name)
    need(index > 0)
    source = before[index - 1]
    if isinstance(source.run, Transformer):
        surgery.fill(flat, f"{source.name}.ffn.shrink", lambda shape: fan_in(random, shape))
    elif isinstance(source.run, MBConv):
        surgery.fill(flat, f"{source.name}.shrink", lambda shape: fan_in(random, shape))
    else:
        surgery.fill(flat, f"{source.name}.ffn.shrink", lambda shape: fan_in(random, shape))
    features(flat, spec, source, random)


M, T, X = MBConv, Transformer, ConvNeXt
PROBES = (
    Probe("classifier", "classifier", "wiring", None, "any", "last", "empty", classifier),
    Probe("hidden layer", "head hidden", "amplifier", None, "any", "last", "empty", hidden),
    Probe("last layer", "ffn", "wiring", T, "any", ".ffn", "empty", ffn_shrink),
    Probe("head norm", "head norm", "amplifier", None, "any", "last", "empty", head_norm),
    Probe("layer scale", "layer scale", "wiring", T, "any", ".ffn", "empty", ffn_scale),
    Probe("activation", "ffn activation", "amplifier", T, "any", ".ffn", "empty", ffn_activation),
    Probe("first layer", "ffn", "amplifier", T, "any", ".ffn", "empty", ffn_expand),
    Probe("output projection", "attention output", "wiring", T, "any", ".attn", "empty", attention_output),
    Probe("attention layer scale", "layer scale", "wiring", T, "any", ".attn", "empty", attention_scale),
    Probe("values", "attention values", "amplifier", T, "any", ".attn", "empty", attention_values),
    Probe("sum of weights", "softmax", "amplifier", T, "any", ".attn", "empty", attention_sum),
    Probe("shrink", "shrink", "wiring", M, "any", "", "empty", shrink),
    Probe("layer scale", "layer scale", "wiring", M, "any", "", "empty", shrink_scale),
    Probe("norm after shrink", "shrink", "amplifier", M, "any", "", "empty", shrink_norm),
    Probe("second activation", "mbconv activation", "amplifier", M, "any", "", "empty", depthwise_activation),
    Probe("second norm", "mbconv norm", "amplifier", M, "any", "", "empty", depthwise_norm),
    Probe("squeeze-excite", "squeeze-excite", "amplifier", M, "any", "", "empty", gate),
    Probe("depthwise edges", "depthwise convolution", "wiring", M, "any", "", "empty", depthwise_edges),
    Probe("first activation", "mbconv activation", "amplifier", M, "any", "", "empty", expand_activation),
    Probe("first norm", "mbconv norm", "amplifier", M, "any", "", "empty", expand_norm),
    Probe("expansion", "expansion", "amplifier", M, "any", "", "empty", expansion),
    Probe("pre-activation", "mbconv pre-activation", "amplifier", M, "any", "", "empty", pre_activation),
    Probe("pre-norm", "mbconv pre-norm", "amplifier", M, "any", "", "empty", pre_norm),
    Probe("convnext", "convnext", "amplifier", X, "any", "", "empty", convnext_constant),
    Probe("activation", "convnext", "amplifier", X, "any", "", "empty", convnext_activation),
    Probe("residual", "residual", "wiring", T, "keeping", "before", "empty", passed_on),
    Probe("residual", "residual", "wiring", M, "keeping", "before", "empty", passed_on),
    Probe("residual", "residual", "wiring", X, "keeping", "before", "empty", passed_on),
    Probe("shortcut", "shortcut", "amplifier", T, "changing", "before", "empty", passed_on),
    Probe("shortcut", "shortcut", "amplifier", M, "changing", "before", "empty", passed_on),
    Probe("shortcut", "shortcut", "amplifier", X, "changing", "before", "empty", passed_on),
    Probe("second convolution", "stem convolution", "amplifier", None, "any", None, "image", stem_constant),
    Probe("stem activation", "stem activation", "amplifier", None, "any", None, "image", stem_activation),
    Probe("stem norm", "stem norm", "amplifier", None, "any", None, "image", stem_norm),
    Probe("stem", "stem convolution", "amplifier", None, "any", None, "image", stem_picture),
    Probe("picture", "shortcut", "amplifier", None, "any", None, "image", baseline),
    Probe("expansion of a picture", "expansion", "amplifier", M, "plain", "", "image", varied_expansion),
    Probe("stride", "expansion", "amplifier", M, "strided", "", "image", varied_expansion),
    Probe("pool", "mbconv pool", "amplifier", M, "strided", "", "image", pooled_expansion),
    Probe("depthwise kernel", "depthwise convolution", "amplifier", M, "plain", "", "image", varied_depthwise),
    Probe("depthwise stride", "depthwise convolution", "amplifier", M, "strided", "", "image", varied_depthwise),
    Probe("squeeze-excite of a picture", "squeeze-excite", "amplifier", M, "any", "", "image", varied_gate),
    Probe("convnext picture", "convnext", "amplifier", X, "plain", "", "image", convnext_picture),
    Probe("norm", "convnext", "amplifier", X, "plain", "", "image", convnext_norm),
    Probe("convnext stride", "convnext", "amplifier", X, "strided", "", "image", convnext_picture),
    Probe("attention norm", "attention norm", "amplifier", T, "plain", ".attn", "image", attention_norm),
    Probe("ffn norm", "ffn norm", "amplifier", T, "any", ".ffn", "image", ffn_norm),
    Probe("attention pool", "attention pool", "amplifier", T, "strided", ".attn", "image", pooled_attention),
    Probe("relative bias", "relative bias", "amplifier", T, "any", ".attn", "image", mixed_values),
    Probe("queries and keys", "attention logits", "amplifier", T, "any", ".attn", "image", queries),
    Probe("attention", "attention logits", "amplifier", T, "any", ".attn", "image", all_attention),
)


def probe_cases(
    spec: Spec, precision: Precision, seed: int, places: Callable[[Probe, list[Block]], list[Block]]
) -> Iterator[Case]:
    """The probes of a spec, in order.

    Args:
        spec: whose parts are looked at.
        precision: that parameters and images are rounded to.
        seed: of all random numbers.
        places: which of the blocks that a probe fits are looked at.
    """
    blocks = list(spec.blocks())
    drawn = drawn_params(spec, seed, precision).flatten()
    x = drawn_images(spec, seed, 1, precision)
    for number, probe in enumerate(PROBES):
        fitting = [blocks[-1]] if probe.kind is None else [block for block in blocks if fits(probe, block)]
        for block in places(probe, fitting) if probe.kind is not None else fitting:
            flat = dict(drawn)
            random = np.random.default_rng([seed, number])
            surgery.silence(flat, spec, keep(probe, spec, block))
            if probe.stream == "empty":
                surgery.empty_stream(flat, spec)
            try:
                probe.build(flat, spec, block, random)
            except Absent:
                continue
            if spec.head.output == "probabilities":
                calm(flat)
            place = block.name if probe.kind is not None else ("head" if probe.stream == "empty" else "s0")
            yield Case(
                f"{probe.name} in {place}",
                probe.check,
                first_sentence(probe.build),
                probe.primitive,
                place,
                spec,
                stored_params(spec, flat, precision),
                x,
            )


def fits(probe: Probe, block: Block) -> bool:
    """Whether a block has what a probe looks at."""
    assert probe.kind is not None
    if not isinstance(block.run, probe.kind):
        return False
    strided, changing = block.stride == 2, block.stride == 2 or block.projected
    which = {"any": True, "strided": strided, "plain": not strided, "changing": changing, "keeping": not changing}
    return which[probe.where]


def keep(probe: Probe, spec: Spec, block: Block) -> list[str]:
    """The residual branches that act in a probe."""
    if probe.branch is None:
        return []
    blocks = list(spec.blocks())
    if probe.branch == "last":
        return surgery.branches(blocks[-1])[-1:]
    if probe.branch == "before":
        index = [each.name for each in blocks].index(block.name)
        return surgery.branches(blocks[index - 1])[-1:] if index else []
    return [f"{block.name}{probe.branch}"]


def calm(flat: Flat) -> None:
    """Logits small enough for a softmax to show all of them."""
    most = float(np.max(np.sum(np.abs(flat["head.classifier.w"]), axis=0)))
    flat["head.classifier.w"] = flat["head.classifier.w"] * (8.0 / most)


def first_sentence(build: Build) -> str:
    """What a builder says of itself."""
    return (build.__doc__ or "").strip().split("\n")[0]


def last_fitting(probe: Probe, blocks: list[Block]) -> list[Block]:
    """The last fitting block of the network: one place for each probe."""
    return blocks[-1:]


def everywhere(probe: Probe, blocks: list[Block]) -> list[Block]:
    """Every fitting block."""
    return blocks
