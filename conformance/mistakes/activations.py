"""Mistakes in the activations, for each place where one stands."""

from __future__ import annotations

import re
from collections.abc import Callable

from coatref import ops
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.mistakes.edits import (
    Seen,
    any_of,
    blocks_of,
    by_fields,
    in_block,
    require,
    respec,
    tapping,
)
from coatref.conformance.mistakes.mistake import Mistake
from coatref.registry import Array
from coatref.specification.parts import ConvNeXt, ConvStem, MBConv, Transformer
from coatref.specification.spec import Spec

WORDS = {
    "gelu": "the exact GELU",
    "gelu_tanh": "the tanh form of GELU",
    "silu": "SiLU",
    "relu": "ReLU",
    "mish": "Mish",
    "tanh": "tanh",
}
FORM = ("gelu", "gelu_tanh", "silu", "relu", "mish")
# site -> (primitive, field, forms that it is mistaken for, words)
SITES = {
    "stem-activation": ("stem activation", "ConvStem.activation", FORM, "in the stem"),
    "pre-activation": ("mbconv pre-activation", "MBConv.pre_norm_activation", FORM[:4], "after the pre-norm of MBConv"),
    "mbconv-activation": ("mbconv activation", "MBConv.activation", FORM, "inside MBConv"),
    "se-activation": ("squeeze-excite", "SqueezeExcite.activation", FORM, "in squeeze-excite"),
    "ffn-activation": ("ffn activation", "FeedForward.activation", FORM, "in the feed-forward network"),
    "convnext-activation": ("convnext", "ConvNeXt.activation", FORM[:4], "in the ConvNeXt blocks"),
    "head-activation": ("head hidden", "Hidden.activation", ("gelu", "gelu_tanh", "silu", "relu"), "in the head"),
}
SOURCE = (
    "Sec. 2.2 says GELU and not which form: torch and Keras default to the exact one, google-research/maxvit takes the tanh "
    "form, timm's own CoAtNets SiLU, with ReLU in squeeze-excite"
)


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    made = [other_form(site, form) for site, (_, _, forms, _) in SITES.items() for form in forms]
    for site in PLACES:
        made += [at_site(site, *row) for row in WRONG]
    return (*made, *more())


def other_form(site: str, form: str) -> Mistake:
    """Another activation at one site."""
    primitive, path, _, where = SITES[site]
    source = (
        "Fig. 4 has no hidden layer; google's code has tanh, hosein's GELU" if site == "head-activation" else SOURCE
    )
    return by_fields(
        f"{site}-{form.replace('_', '-')}",
        primitive,
        f"uses {WORDS[form]} {where}, not the spec's activation",
        source,
        {path: form},
    )


def named(spec: Spec, kind: type, *parts: str) -> list[str]:
    """Trace names of parts of all blocks of a kind."""
    return [f"{block.name}.{part}" for block in blocks_of(spec, kind) for part in parts]


def stem_names(spec: Spec) -> list[str]:
    """Trace names of the stem's activations."""
    if not isinstance(spec.stem, ConvStem):
        return []
    count = len(spec.stem.widths) - (spec.stem.after_last == "nothing")
    return [f"s0.act{number}" for number in range(1, count + 1)]


# site -> (primitive, names of the activations in a trace, the field that holds it, words)
Names = Callable[[Spec], list[str]]
PLACES: dict[str, tuple[str, Names, str]] = {
    "stem-activation": ("stem activation", stem_names, "in the stem"),
    "expand-activation": (
        "mbconv activation",
        lambda spec: named(spec, MBConv, "expand_act"),
        "after the expansion of MBConv",
    ),
    "depthwise-activation": (
        "mbconv activation",
        lambda spec: named(spec, MBConv, "depthwise_act"),
        "after the depthwise convolution of MBConv",
    ),
    "ffn-activation": (
        "ffn activation",
        lambda spec: named(spec, Transformer, "ffn.act"),
        "in the feed-forward network",
    ),
    "convnext-activation": (
        "convnext",
        lambda spec: named(spec, ConvNeXt, "ffn.act"),
        "in the ConvNeXt blocks",
    ),
    "head-activation": (
        "head hidden",
        lambda spec: ["head.hidden_act"] if spec.head.hidden is not None else [],
        "in the head",
    ),
}


def quick_gelu(x: Array) -> Array:
    """The sigmoid form of GELU, x sigmoid(1.702 x)."""
    return x * ops.sigmoid(1.702 * x)


# name, value before the activation to what takes its place (None: the activation of the activation), clause, source
WRONG: tuple[tuple[str, Callable[[Array], Array] | None, str, str], ...] = (
    ("missing", lambda x: x, "has no activation {}", "a common slip; sayannath and others leave some out"),
    ("doubled", None, "applies the activation {} twice", "a common slip: inside the layer and again after it"),
    (
        "quick-gelu",
        quick_gelu,
        "uses x sigmoid(1.702 x) {}, not the spec's activation",
        "Hendrycks & Gimpel 2016 give this form too; OpenAI's CLIP uses it",
    ),
)


def activation_at(spec: Spec, name: str) -> str:
    """The activation that a spec has at a place of the trace."""
    if name.startswith("s0.") and isinstance(spec.stem, ConvStem):
        return spec.stem.activation
    if name.startswith("head.") and spec.head.hidden is not None:
        return spec.head.hidden.activation
    run = next(block.run for block in spec.blocks() if name.startswith(f"{block.name}."))
    return run.ffn.activation if isinstance(run, Transformer) else run.activation


def at_site(site: str, what: str, form: Callable[[Array], Array] | None, clause: str, source: str) -> Mistake:
    """An activation missing, applied twice or of a form that no spec has."""
    primitive, names, where = PLACES[site]

    def change(changed: Changed) -> Changed:
        there = names(changed.spec)
        require(changed, bool(there), f"activation {where}")
        repeats = all(activation_at(changed.spec, name) == "relu" for name in there)
        require(changed, form is not None or not repeats, f"activation {where} that changes what it gave")
        kinds = {name: activation_at(changed.spec, name) for name in there}

        def edit(name: str, value: Array, seen: Seen) -> Array:
            return ops.activation(value, kinds[name]) if form is None else form(seen["previous"])

        return tapping(changed, any_of(there), edit)

    return Mistake(f"{site}-{what}", primitive, clause.format(where), source, change)


def more() -> tuple[Mistake, ...]:
    """Activations where there should be none, and the other way round."""

    def added(pattern: str, last: str, kind: type, form: str) -> Callable[[Changed], Changed]:
        def change(changed: Changed) -> Changed:
            require(changed, bool(blocks_of(changed.spec, kind)), f"{kind.__name__} block")
            return tapping(changed, any_of(named(changed.spec, kind, last)), lambda n, v, s: ops.activation(v, form))

        return change

    def stem_added(changed: Changed) -> Changed:
        stem = changed.spec.stem
        require(changed, isinstance(stem, ConvStem) and stem.after_last == "nothing", "bare last stem convolution")
        assert isinstance(stem, ConvStem)  # for the type checker
        name = re.escape(f"s0.conv{len(stem.widths)}")
        return tapping(changed, name, lambda n, v, s: ops.activation(v, stem.activation))

    def last_ffn(changed: Changed) -> Changed:
        blocks = blocks_of(changed.spec, Transformer)
        require(changed, bool(blocks), "Transformer block")
        block = blocks[-1]
        assert isinstance(block.run, Transformer)  # for the type checker
        other = "gelu" if block.run.ffn.activation == "gelu_tanh" else "gelu_tanh"
        return respec(changed, lambda spec: in_block(spec, block.name, {"FeedForward.activation": other}))

    return (
        by_fields(
            "pre-activation-missing",
            "mbconv pre-activation",
            "has no activation after the pre-norm of MBConv",
            "timm's coatnet_0_rw has one, its nano models and google-research/maxvit have none",
            {"MBConv.pre_norm_activation": None},
        ),
        Mistake(
            "stem-activation-after-last",
            "stem convolution",
            "applies the activation after the last convolution of the stem too",
            "chinhsuanwu, sup3rgiu and their copies; the paper is silent",
            stem_added,
        ),
        Mistake(
            "shrink-activation",
            "shrink",
            "applies an activation after the last 1x1 convolution of MBConv",
            "a common slip: MobileNetV2's linear bottleneck has none",
            added("shrink", "shrink", MBConv, "relu"),
        ),
        Mistake(
            "ffn-activation-after-second",
            "ffn",
            "applies an activation after the second dense layer of the feed-forward network too",
            "a common slip: xmu-xiaoma666's ReLU multilayer perceptrons",
            added("ffn.shrink", "ffn.shrink", Transformer, "relu"),
        ),
        Mistake(
            "last-ffn-activation-other-gelu",
            "ffn activation",
            "uses the other form of GELU in the feed-forward network of its last Transformer block",
            SOURCE,
            last_ffn,
        ),
    )
