"""Mistakes in shortcuts, residual sums and layer scales."""

from __future__ import annotations

import re
from collections.abc import Callable

from coatref.conformance.mistakes.changed import Changed, shapes
from coatref.conformance.mistakes.edits import (
    Change,
    Seen,
    any_of,
    blocks_of,
    by_fields,
    chain,
    reading,
    require,
    tapping,
)
from coatref.conformance.mistakes.mistake import Mistake
from coatref.conformance.mistakes.pools import late_shortcut_pool
from coatref.registry import Array, namespace
from coatref.specification.parts import ConvNeXt, MBConv, Transformer
from coatref.specification.spec import Block, Spec

EQ4 = "Eq. (4) and (5); "
Sum = Callable[[Array, Array], Array]  # (what the shortcut carries, what the branch gives) -> the sum's place


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    name, clause, source, change = late_shortcut_pool()
    return (
        *projections(),
        Mistake(name, "shortcut", clause, source, change),
        *[residual(site, *row) for site in SITES for row in SUMS],
        *layer_scales(),
    )


def projections() -> tuple[Mistake, ...]:
    """The shortcut's own parts."""
    always = "kecam projects in the first block of every stage, timm and google only where the width changes"
    biases = "google and hw666 have this bias, kecam, chinhsuanwu and timm's coatnet_0_rw have none"
    every = ("MBConv", "Transformer", "ConvNeXt")
    normed = "Eq. (4) carries x; shilu10 and nesbit carry Norm(x), which makes a network with post-norm"
    return (
        by_fields(
            "projection-always",
            "shortcut",
            "projects the shortcut of every strided block, not only where the width changes",
            always,
            {f"{run}.projection": "always" for run in every},
        ),
        by_fields(
            "projection-when-width-changes",
            "shortcut",
            "projects the shortcut only where the width changes, not in every strided block",
            always,
            {f"{run}.projection": "when_width_changes" for run in every},
        ),
        by_fields(
            "projection-bias-ignored",
            "shortcut",
            "does not add the bias of the shortcuts' projections",
            biases,
            {f"{run}.projection_bias": False for run in every},
        ),
        by_fields(
            "mbconv-shortcut-from-normed",
            "shortcut",
            "carries the normalised input in the shortcuts of MBConv, not the input itself",
            normed,
            {"MBConv.residual_from": "normalised"},
        ),
        by_fields(
            "transformer-shortcut-from-normed",
            "shortcut",
            "carries the normalised values in the shortcuts of Transformer blocks, not the values themselves",
            normed,
            {"Transformer.residual_from": "normalised"},
        ),
        by_fields(
            "shortcut-from-input",
            "shortcut",
            "carries the input in all shortcuts, not the normalised input",
            normed,
            {"MBConv.residual_from": "input", "Transformer.residual_from": "input"},
        ),
        Mistake(
            "projection-skipped",
            "shortcut",
            "fills the missing channels of shortcuts with zeros, not projects them",
            "a common slip: option A of ResNet",
            zero_filled,
        ),
        Mistake(
            "shortcut-missing-at-stride",
            "shortcut",
            "has no shortcut in strided blocks",
            EQ4 + "lucidrains' MaxViT has none there, as in EfficientNet",
            unshort,
        ),
    )


def zero_filled(changed: Changed) -> Changed:
    """Projections that copy channels."""

    def edit(name: str, array: Array) -> Array:
        if name.endswith(".b"):
            return array * 0.0
        xp = namespace(array)
        return array * 0.0 + xp.eye(array.shape[0], array.shape[1], dtype=array.dtype)

    return reading(changed, r"s\d+\.\d+\.shortcut\.[wb]", edit)


def unshort(changed: Changed) -> Changed:
    """Strided blocks without shortcut."""
    names = [f"{block.name}.shortcut" for block in changed.spec.blocks() if block.stride == 2]
    require(changed, bool(names), "strided block")
    return tapping(changed, any_of(names), lambda name, value, seen: value * 0.0)


def convolutional(spec: Spec) -> list[Block]:
    """The blocks whose sum is that of their shortcut and one branch."""
    return blocks_of(spec, MBConv, ConvNeXt)


def transformers(spec: Spec) -> list[Block]:
    """The Transformer blocks."""
    return blocks_of(spec, Transformer)


# site -> (blocks, name of the sum in a block, name of what the shortcut carries, words)
SITES: dict[str, tuple[Callable[[Spec], list[Block]], str, str, str]] = {
    "mbconv-residual": (convolutional, "", ".shortcut", "the convolution blocks"),
    "attention-residual": (transformers, ".attn_sum", ".shortcut", "attention"),
    "ffn-residual": (transformers, "", ".attn_sum|.ffn_norm", "the feed-forward network"),
}
# name, sum, clause, source
SUMS: tuple[tuple[str, Sum, str, str], ...] = (
    ("missing", lambda x, y: y, "has no residual around {}", EQ4 + "xmu-xiaoma666 and zhixin have none"),
    ("doubled", lambda x, y: x + x + y, "adds the residual around {} twice", EQ4 + "hosein adds it twice in MBConv"),
    (
        "multiplied",
        lambda x, y: x * y,
        "multiplies by the residual around {}, not adds it",
        EQ4 + "ChristophReich1996/MaxViT did so at first",
    ),
    (
        "subtracted",
        lambda x, y: x - y,
        "subtracts the branch of {} from its residual, not adds it",
        EQ4 + "a common slip",
    ),
    (
        "branch-scaled",
        lambda x, y: x + 0.8 * y,
        "multiplies the branch of {} by a keep probability of 0.8, not by 1, at inference",
        "stochastic depth (App. A.2) is for training only; hosein has train and evaluation the wrong way round",
    ),
    (
        "branch-missing",
        lambda x, y: x,
        "leaves out the branch of {} and carries its input on",
        "stochastic depth (App. A.2) is for training only; hosein skips blocks in evaluation",
    ),
)


def residual(site: str, what: str, combine: Sum, clause: str, source: str) -> Mistake:
    """A residual sum made in another way."""
    blocks, sum_name, carried_names, where = SITES[site]

    def change(changed: Changed) -> Changed:
        found = blocks(changed.spec)
        require(changed, bool(found), f"residual around {where}")
        carried = {block.name + sum_name: block.name + carried_by(block, carried_names) for block in found}

        def edit(name: str, value: Array, seen: Seen) -> Array:
            x = seen[carried[name]]
            return combine(x, value - x)

        return tapping(changed, any_of(list(carried)), edit, keep=any_of(list(carried.values())))

    return Mistake(f"{site}-{what}", "residual", clause.format(where), source, change)


def carried_by(block: Block, names: str) -> str:
    """What the shortcut of a block carries: of two names the second, where it carries what is normalised."""
    first, _, second = names.partition("|")
    normed = isinstance(block.run, Transformer) and block.run.residual_from == "normalised"
    return second if second and normed else first


def layer_scales() -> tuple[Mistake, ...]:
    """Factors on residual branches."""
    who = (
        "not in the paper; timm's coatnet_rmlp_2_rw, coatnet_3_rw and coatnext have it, julius has one number a branch"
    )
    pattern = r"s\d+\.\d+\.(layer|attn|ffn)_scale\.gamma"

    def with_gamma(edit: Callable[[Array], Array], only: str = pattern) -> Change:
        return lambda changed: reading(changed, only, lambda name, gamma: edit(gamma))

    def first_for_both(changed: Changed) -> Changed:
        names = [name for name in shapes(changed.spec) if re.fullmatch(r"s\d+\.\d+\.ffn_scale\.gamma", name)]
        require(changed, bool(names), "layer scale in Transformer blocks")
        from_other = {name: name.replace("ffn_", "attn_") for name in names}
        return changed.but(
            read=chain(changed.read, lambda flat: {name: flat[from_other.get(name, name)] for name in flat})
        )

    return (
        by_fields(
            "layer-scale-missing",
            "layer scale",
            "does not multiply the branches by their layer scale",
            who,
            {f"{run}.layer_scale": None for run in ("MBConv", "Transformer", "ConvNeXt")},
        ),
        Mistake(
            "layer-scale-doubled",
            "layer scale",
            "multiplies the branches by their layer scale twice",
            who,
            with_gamma(lambda gamma: gamma * gamma),
        ),
        Mistake(
            "layer-scale-plus-one",
            "layer scale",
            "multiplies the branches by 1 + gamma, not by gamma",
            who,
            with_gamma(lambda gamma: gamma + 1.0),
        ),
        Mistake(
            "layer-scale-ffn-missing",
            "layer scale",
            "does not multiply the feed-forward branch by its layer scale",
            who,
            with_gamma(lambda gamma: gamma * 0.0 + 1.0, r"s\d+\.\d+\.ffn_scale\.gamma"),
        ),
        Mistake(
            "layer-scale-shared",
            "layer scale",
            "multiplies the feed-forward branch by the layer scale of attention",
            who,
            first_for_both,
        ),
    )
