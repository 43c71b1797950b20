"""Mistakes in the norms, for each place where one stands."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from coatref.conformance.mistakes.changed import Changed, shapes
from coatref.conformance.mistakes.edits import (
    Change,
    blocks_of,
    by_fields,
    chain,
    in_block,
    mark,
    reading,
    require,
    respec,
    where_marked,
    with_fields,
)
from coatref.conformance.mistakes.mistake import Mistake
from coatref.primitives import Form
from coatref.registry import Array, namespace
from coatref.specification.parts import Transformer

# site -> (primitive, field of the norm, pattern of its parameters without the last part of the name)
SITES = {
    "stem-norm": ("stem norm", "ConvStem.norm", r"s0\.norm\d+"),
    "pre-norm": ("mbconv pre-norm", "MBConv.pre_norm", r"s\d+\.\d+\.pre_norm"),
    "inner-norm": ("mbconv norm", "MBConv.inner_norm", r"s\d+\.\d+\.(expand|depthwise)_norm"),
    "convnext-norm": ("convnext", "ConvNeXt.norm", r"s\d+\.\d+\.norm"),
    "attention-norm": ("attention norm", "Transformer.attention_norm", r"s\d+\.\d+\.attn_norm"),
    "ffn-norm": ("ffn norm", "Transformer.ffn_norm", r"s\d+\.\d+\.ffn_norm"),
    "head-norm": ("head norm", "Head.norm", r"head\.norm"),
}
WORDS = {
    "stem-norm": "norm of the stem",
    "pre-norm": "norm before each MBConv branch",
    "inner-norm": "norms inside the MBConv branch",
    "convnext-norm": "norm of the ConvNeXt blocks",
    "attention-norm": "norm before attention",
    "ffn-norm": "norm before the feed-forward network",
    "head-norm": "norm of the head",
}
EPSILONS = ("1e-3", "1e-5", "1e-6", "1e-12")
OPEN = "the paper states no epsilon; "


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    made: list[Mistake] = []
    for site in SITES:
        made += [epsilon(site, value) for value in EPSILONS]
        made += [other_kind(site, kind) for kind in ("layer", "batch")]
        made += [of_form(site, *row) for row in FORMS]
        made += [of_parameters(site, *row) for row in PARAMETERS]
    return (*made, *in_one_block())


def epsilon(site: str, value: str) -> Mistake:
    """A norm with another epsilon."""
    primitive, path, _ = SITES[site]
    return by_fields(
        f"{site}-eps-{value}",
        primitive,
        f"adds {value} to the variance in the {WORDS[site]}, not the spec's epsilon",
        OPEN + "TensorFlow's BatchNorm has 1e-3, torch's norms 1e-5, timm's LayerNorm 1e-6, ViT code of Google 1e-12",
        {f"{path}.epsilon": float(value)},
    )


def other_kind(site: str, kind: str) -> Mistake:
    """LayerNorm for BatchNorm (its statistics are dropped), or BatchNorm with fresh statistics for LayerNorm."""
    primitive, path, _ = SITES[site]
    kinds = {"batch": "BatchNorm", "layer": "LayerNorm"}
    other = kinds["layer" if kind == "batch" else "batch"]
    return by_fields(
        f"{site}-is-{kind}-norm",
        primitive,
        f"computes the {WORDS[site]} as a {kinds[kind]}, not as a {other}",
        "Sec. 2.2 and App. A.2: BatchNorm in MBConv, LayerNorm in attention and FFN; Holidays1999/CoAtNetMindSpore swaps "
        "them, timm's coatnet_bn_0 has BatchNorm throughout",
        {f"{path}.kind": kind},
    )


def standardised(x: Array, axes: tuple[int, ...], gamma: Array, beta: Array, epsilon: float) -> Array:
    """x centred and scaled by its own mean and variance over some axes."""
    xp = namespace(x)
    centred = x - xp.mean(x, axis=axes, keepdims=True)
    variance = xp.mean(centred * centred, axis=axes, keepdims=True)
    return centred / xp.sqrt(variance + epsilon) * gamma + beta


def layer_eps_outside(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
    """LayerNorm that divides by sqrt(v) + epsilon."""
    xp = namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    return centred / (xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True)) + epsilon) * gamma + beta


def layer_unbiased(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
    """LayerNorm with the variance of C - 1."""
    xp = namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.sum(centred * centred, axis=-1, keepdims=True) / max(x.shape[-1] - 1, 1)
    return centred / xp.sqrt(variance + epsilon) * gamma + beta


def layer_uncentred(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
    """RMSNorm: the mean is not taken away."""
    xp = namespace(x)
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + epsilon) * gamma + beta


def layer_over_grid(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
    """One mean and variance for all positions and channels of an image (GroupNorm with one group)."""
    return standardised(x, tuple(range(1, x.ndim)), gamma, beta, epsilon)


def layer_over_positions(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
    """A mean and variance for each channel over all positions (InstanceNorm)."""
    return standardised(x, (1, 2), gamma, beta, epsilon)


def batch_eps_outside(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Array:
    """BatchNorm that divides by sqrt(var) + epsilon."""
    return (x - mean) * (gamma / (namespace(x).sqrt(var) + epsilon)) + beta


def batch_own_statistics(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Array:
    """BatchNorm as in training."""
    return standardised(x, tuple(range(x.ndim - 1)), gamma, beta, epsilon)


def left_out(x: Array, **_: Any) -> Array:
    """No norm at all."""
    return x


# name, form of LayerNorm, form of BatchNorm (None: it cannot be made there), clause, source, whether it needs a grid
FORMS: tuple[tuple[str, Form | None, Form | None, str, str, bool], ...] = (
    (
        "eps-outside-root",
        layer_eps_outside,
        batch_eps_outside,
        "divides by sqrt(variance) + epsilon, not by sqrt(variance + epsilon), in the {}",
        "a common slip; Adam's form, and that of PyTorch code written by hand with x.std()",
        False,
    ),
    (
        "missing",
        left_out,
        left_out,
        "leaves out the {}",
        "Sec. 2.2 (pre-activation); xmu-xiaoma666 has no norms, sayannath no pre-norm, lucidrains' MaxViT no MBConv pre-norm",
        False,
    ),
    (
        "unbiased",
        layer_unbiased,
        None,
        "divides the squares by C - 1, not by C, for the variance in the {}",
        "a common slip: torch.var and torch.std are unbiased by default",
        False,
    ),
    ("uncentred", layer_uncentred, None, "does not subtract the mean in the {}", "a common slip: RMSNorm", False),
    (
        "over-grid",
        layer_over_grid,
        None,
        "takes mean and variance over all positions and channels, not over the channels of each position, in the {}",
        "a common slip: GroupNorm with one group in place of LayerNorm on channels-first arrays",
        True,
    ),
    (
        "over-positions",
        layer_over_positions,
        None,
        "takes mean and variance over the positions of each channel, not over the channels of each position, in the {}",
        "a common slip: LayerNorm on the wrong axes of channels-first arrays",
        True,
    ),
    (
        "batch-statistics",
        None,
        batch_own_statistics,
        "uses mean and variance of the batch, not the running statistics, in the {}",
        "a common slip: the model was not put into evaluation mode",
        False,
    ),
)


def of_form(
    site: str, what: str, layer: Form | None, batch: Form | None, clause: str, source: str, grid: bool
) -> Mistake:
    """A norm of one site computed in another way."""
    primitive, path, pattern = SITES[site]
    name = f"{site}-{what}"
    forms: dict[str, Form] = {
        kind: form for kind, form in (("layer_norm", layer), ("batch_norm", batch)) if form is not None
    }

    def change(changed: Changed) -> Changed:
        names = shapes(changed.spec)
        here = any(re.fullmatch(rf"{pattern}\.gamma", each) for each in names)
        batch_here = any(re.fullmatch(rf"{pattern}\.mean", each) for each in names)
        kind = "batch_norm" if batch_here else "layer_norm"
        require(changed, here and kind in forms, f"norm in which one {clause.format(WORDS[site])}")
        flat = grid and site == "head-norm" and changed.spec.head.order == "pool_then_norm"
        require(changed, not flat, "positions where the head's norm stands")
        form = where_marked(name, "epsilon", getattr(changed.forms, kind), forms[kind])
        spec = with_fields(changed.spec, {f"{path}.epsilon": mark(name)})
        return changed.but(spec=spec, forms=dataclasses.replace(changed.forms, **{kind: form}))

    return Mistake(name, primitive, clause.format(WORDS[site]), source, change)


Edit = Callable[[str, Array], Array]

# name, last part of the parameters' names, their edit, clause, source
PARAMETERS: tuple[tuple[str, str, Edit, str, str], ...] = (
    ("no-mean", "mean", lambda n, a: a * 0.0, "does not subtract the running mean in the {}", "a common slip"),
    (
        "var-as-std",
        "var",
        lambda n, a: a * a,
        "takes the running variance for a standard deviation in the {}",
        "a common slip in conversion of weights",
    ),
    (
        "statistics-not-loaded",
        "mean|var",
        lambda n, a: a * 0.0 + (1.0 if n.endswith("var") else 0.0),
        "normalises with mean 0 and variance 1, not with the running statistics, in the {}",
        "a common slip: buffers left out when weights are loaded",
    ),
    (
        "gamma-plus-one",
        "gamma",
        lambda n, a: a + 1.0,
        "scales by 1 + gamma, not by gamma, in the {}",
        "a common slip: the zero-centred gamma of some JAX libraries",
    ),
    ("no-beta", "beta", lambda n, a: a * 0.0, "does not add beta in the {}", "a common slip: a norm without bias"),
)


def of_parameters(site: str, what: str, last: str, edit: Edit, clause: str, source: str) -> Mistake:
    """A norm of one site that uses its parameters wrongly."""
    primitive, _, pattern = SITES[site]
    return Mistake(
        f"{site}-{what}",
        primitive,
        clause.format(WORDS[site]),
        source,
        lambda changed: reading(changed, rf"{pattern}\.({last})", edit),
    )


def in_one_block() -> tuple[Mistake, ...]:
    """An epsilon that is wrong in the last Transformer block only, and norms in the wrong number."""

    def last(path: str) -> Change:
        def change(changed: Changed) -> Changed:
            blocks = blocks_of(changed.spec, Transformer)
            require(changed, bool(blocks), "Transformer block")
            return respec(changed, lambda spec: in_block(spec, blocks[-1].name, {f"{path}.epsilon": 1e-3}))

        return change

    def swapped(changed: Changed) -> Changed:
        pattern = r"s\d+\.\d+\.(attn|ffn)_norm\.(gamma|beta|mean|var)"
        of = shapes(changed.spec)
        pairs = {n: partner(n) for n in of if re.fullmatch(pattern, n) and of.get(partner(n)) == of[n]}
        require(changed, bool(pairs), "block whose two norms have one width")
        return changed.but(read=chain(changed.read, lambda flat: {n: flat[pairs.get(n, n)] for n in flat}))

    return (
        Mistake(
            "last-attention-norm-eps-1e-3",
            "attention norm",
            "adds 1e-3 to the variance in the norm before attention of its last Transformer block, not the spec's epsilon",
            OPEN + "a common slip: one block made by another constructor",
            last("Transformer.attention_norm"),
        ),
        Mistake(
            "last-ffn-norm-eps-1e-3",
            "ffn norm",
            "adds 1e-3 to the variance in the norm before the last feed-forward network, not the spec's epsilon",
            OPEN + "a common slip: one block made by another constructor",
            last("Transformer.ffn_norm"),
        ),
        Mistake(
            "attention-and-ffn-norm-swapped",
            "attention norm",
            "uses the parameters of the norm before attention before the feed-forward network, and the other way round",
            "a common slip in conversion of weights",
            swapped,
        ),
    )


def partner(name: str) -> str:
    """The parameter of the other norm of a Transformer block."""
    return name.replace("attn_norm", "ffn_norm") if "attn_norm" in name else name.replace("ffn_norm", "attn_norm")
