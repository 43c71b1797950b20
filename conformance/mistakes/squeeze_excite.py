"""Mistakes in squeeze-and-excitation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from coatref import ops
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.mistakes.edits import Change, blocks_of, by_fields, in_block, require, respec
from coatref.conformance.mistakes.mistake import Mistake
from coatref.registry import Array, namespace
from coatref.specification.parts import MBConv

SE = "squeeze-excite"
Squeeze = Callable[[Array], Array]  # (N, H, W, C) -> (N, C)
Apply = Callable[[Array, Array], Array]  # x (N, H, W, C) and gate before its sigmoid (N, 1, 1, C) -> (N, H, W, C)


def mean(x: Array) -> Array:
    """The mean over positions."""
    return ops.global_avg_pool(x)


def gated(x: Array, gate: Array) -> Array:
    """Scale by the sigmoid of the gate."""
    return x * ops.sigmoid(gate)


def hard_sigmoid(gate: Array) -> Array:
    """min(max(x + 3, 0), 6) / 6."""
    xp = namespace(gate)
    return xp.minimum(ops.relu(gate + 3.0), xp.full_like(gate, 6.0)) / 6.0


def over_everything(x: Array) -> Array:
    """The mean over positions and channels, for every channel."""
    xp = namespace(x)
    return xp.mean(x, axis=(1, 2, 3))[:, None] + xp.zeros_like(x[:, 0, 0, :])


def over_batch(x: Array) -> Array:
    """The mean over positions and images."""
    xp = namespace(x)
    return xp.mean(x, axis=(0, 1, 2))[None, :] + xp.zeros_like(x[:, 0, 0, :])


def soft(gate: Array) -> Array:
    """Softmax over channels."""
    return ops.softmax(gate)


# name, squeeze, application of the gate, clause, source
FORMS: tuple[tuple[str, Squeeze, Apply, str, str], ...] = (
    (
        "hard-sigmoid",
        mean,
        lambda x, gate: x * hard_sigmoid(gate),
        "gates squeeze-excite by the hard sigmoid, not by the sigmoid",
        "Hu et al. 2018 have the sigmoid; MobileNetV3 the hard one",
    ),
    (
        "no-sigmoid",
        mean,
        lambda x, gate: x * gate,
        "has no sigmoid at the gate of squeeze-excite",
        "a common slip; Hu et al. 2018 have one",
    ),
    (
        "softmax-gate",
        mean,
        lambda x, gate: x * soft(gate),
        "gates squeeze-excite by a softmax over channels, not by a sigmoid",
        "a common slip; Hu et al. 2018 have the sigmoid",
    ),
    (
        "max",
        lambda x: namespace(x).max(x, axis=(1, 2)),
        gated,
        "squeezes by the maximum over positions, not by the mean",
        "a common slip; Hu et al. 2018 have the mean",
    ),
    (
        "sum",
        lambda x: namespace(x).sum(x, axis=(1, 2)),
        gated,
        "squeezes by the sum over positions, not by the mean",
        "a common slip; Hu et al. 2018 have the mean",
    ),
    (
        "over-channels",
        over_everything,
        gated,
        "averages over channels too in squeeze-excite, not over positions alone",
        "shilu10 averages over channels",
    ),
    (
        "over-batch",
        over_batch,
        gated,
        "averages over the images of the batch too in squeeze-excite, not over positions alone",
        "a common slip: the wrong axes",
    ),
    (
        "residual",
        mean,
        lambda x, gate: x + x * ops.sigmoid(gate),
        "adds the gated values of squeeze-excite to its input, not puts them in its place",
        "a common slip",
    ),
    (
        "added",
        mean,
        lambda x, gate: x + ops.sigmoid(gate),
        "adds the gate of squeeze-excite, not multiplies by it",
        "a common slip; ChristophReich1996/MaxViT once swapped the two in a residual",
    ),
)


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    return (*[of_form(*row) for row in FORMS], *fields(), last_missing())


def of_form(what: str, squeeze: Squeeze, use: Apply, clause: str, source: str) -> Mistake:
    """Squeeze-excite computed in another way."""

    def form(x: Array, reduce: Mapping[str, Array], expand: Mapping[str, Array], *, activation: str) -> Array:
        gate = ops.dense(ops.activation(ops.dense(squeeze(x), **reduce), activation), **expand)  # (N, C)
        return use(x, gate[:, None, None, :])

    def change(changed: Changed) -> Changed:
        require(changed, has_se(changed), SE)
        return changed.but(forms=dataclasses.replace(changed.forms, squeeze_excite=form))

    return Mistake(f"se-{what}", SE, clause, source, change)


def has_se(changed: Changed) -> bool:
    """Whether a spec has squeeze-excite anywhere."""
    runs = [block.run for block in blocks_of(changed.spec, MBConv)]
    return any(isinstance(run, MBConv) and run.squeeze_excite is not None for run in runs)


def fields() -> tuple[Mistake, ...]:
    """What spec fields express."""
    widths = "Table 3 has a quarter and does not say of what: google takes the output, timm's own the expanded width, kecam the input"
    early = "timm's coatnet_0_rw has it before the norm (se_early), google and the rest after the activation"
    rounding = "google takes int(), tensorflow's own garden another rounding, kecam and timm multiples of 8"
    made: list[tuple[str, str, str, dict[str, Any]]] = [
        (
            "missing",
            "has no squeeze-excite",
            "Sec. 2.2 and Table 3; sayannath and toy versions have none",
            {"MBConv.squeeze_excite": None},
        ),
        (
            "bias-ignored",
            "does not add the biases of squeeze-excite",
            "chinhsuanwu's squeeze-excite has none, the others do",
            {"SqueezeExcite.bias": False},
        ),
        (
            "before-norm",
            "places squeeze-excite between the depthwise convolution and its norm, not after the activation",
            early,
            {"SqueezeExcite.place": "before_norm"},
        ),
        (
            "after-activation",
            "places squeeze-excite after the activation, not between depthwise convolution and norm",
            early,
            {"SqueezeExcite.place": "after_activation"},
        ),
        (
            "rounded-down",
            "rounds the width of squeeze-excite down, not as the spec says",
            rounding,
            {"SqueezeExcite.rounding": "floor"},
        ),
        (
            "rounded-to-nearest",
            "rounds the width of squeeze-excite to the nearest number, not as the spec says",
            rounding,
            {"SqueezeExcite.rounding": "nearest"},
        ),
        (
            "rounded-to-8",
            "rounds the width of squeeze-excite to a multiple of 8, not as the spec says",
            rounding,
            {"SqueezeExcite.rounding": "make_divisible"},
        ),
        (
            "ratio-1-16",
            "squeezes to a sixteenth, not as the spec says",
            "Table 3: 0.25; Hu et al. 2018 and nesbit take a sixteenth",
            {"SqueezeExcite.ratio": 0.0625},
        ),
    ]
    for base in ("input", "output", "expanded"):
        clause = f"takes the width of squeeze-excite from the {base} width, not from the spec's"
        made.append((f"of-{base}", clause, widths, {"SqueezeExcite.of": base}))
    return tuple(by_fields(f"se-{what}", SE, clause, source, changes) for what, clause, source, changes in made)


def last_missing() -> Mistake:
    """Squeeze-excite missing in one block."""

    def change() -> Change:
        def last(changed: Changed) -> Changed:
            require(changed, has_se(changed), SE)
            name = blocks_of(changed.spec, MBConv)[-1].name
            return respec(changed, lambda spec: in_block(spec, name, {"MBConv.squeeze_excite": None}))

        return last

    return Mistake("last-se-missing", SE, "has no squeeze-excite in its last MBConv block", "a common slip", change())
