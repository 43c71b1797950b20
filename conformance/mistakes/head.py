"""Mistakes in the head and in what comes out of it."""

from __future__ import annotations

import dataclasses

from coatref import ops
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.mistakes.edits import Change, by_fields, chain, reading, require, square_transposed, tapping
from coatref.conformance.mistakes.effective import with_grids
from coatref.conformance.mistakes.mistake import Mistake
from coatref.primitives import Form
from coatref.registry import Array, namespace
from coatref.specification.grids import Grid

FIG_4 = "Fig. 4: global pool, then FC; "


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    return (*norm_and_pool(), *hidden(), *classifier(), *output())


def last_grid(changed: Changed) -> Grid:
    """The grid that the head pools."""
    return with_grids(changed.spec)[-1][2]


def pooling(form: Form, square_only: bool = False) -> Change:
    """Another global pool."""

    def change(changed: Changed) -> Changed:
        height, width = last_grid(changed)
        require(changed, height * width > 1, "several positions under its global pool")
        require(changed, not square_only or height != width, "grid that is not square under its global pool")
        return changed.but(forms=dataclasses.replace(changed.forms, global_avg_pool=form))

    return change


def channels_first_view(x: Array) -> Array:
    """The memory of (N, H, W, C) read as (N, C, H*W)."""
    xp = namespace(x)
    return xp.mean(xp.reshape(x, (x.shape[0], x.shape[3], -1)), axis=-1)


def over_batch(x: Array) -> Array:
    """The mean over positions and images, for every image."""
    xp = namespace(x)
    return xp.mean(x, axis=(0, 1, 2))[None, :] + xp.zeros_like(x[:, 0, 0, :])


def square(x: Array) -> Array:
    """The mean over the square at the start of the grid."""
    side = min(x.shape[1], x.shape[2])
    return namespace(x).mean(x[:, :side, :side, :], axis=(1, 2))


def norm_and_pool() -> tuple[Mistake, ...]:
    """The norm and the pool."""
    order = "google, timm's coatnet_N and hw666 pool first, sup3rgiu and timm's own normalise first; the two differ"

    def pool(name: str, form: Form, clause: str, source: str) -> Mistake:
        return Mistake(f"global-pool-{name}", "global pool", clause, FIG_4 + source, pooling(form, name == "square"))

    return (
        by_fields(
            "head-norm-then-pool",
            "head norm",
            "normalises before the global pool, not after it",
            FIG_4 + order,
            {"Head.order": "norm_then_pool"},
        ),
        by_fields(
            "head-pool-then-norm",
            "head norm",
            "normalises after the global pool, not before it",
            FIG_4 + order,
            {"Head.order": "pool_then_norm"},
        ),
        pool(
            "max",
            lambda x: namespace(x).max(x, axis=(1, 2)),
            "takes the maximum of all positions, not the mean",
            "a slip",
        ),
        pool("sum", lambda x: namespace(x).sum(x, axis=(1, 2)), "sums all positions, does not average them", "a slip"),
        pool(
            "first", lambda x: x[:, 0, 0, :], "takes the first position, not the mean of all", "the class token of ViT"
        ),
        pool(
            "channels-first-view",
            channels_first_view,
            "averages its channels-last features as if they lay channels first in memory",
            "a common slip: view or reshape in place of permute",
        ),
        pool("over-batch", over_batch, "averages over the images of the batch too", "a common slip: the wrong axes"),
        pool(
            "square",
            square,
            "averages over a square of positions, not over all of a grid that is not square",
            "chinhsuanwu pools windows of ih // 32",
        ),
        Mistake(
            "final-norm-added",
            "blocks",
            "standardises the channels of each position after the last stage, where nothing stands",
            "lucid 3 has a LayerNorm at the end of each Transformer stage",
            extra_norm,
        ),
    )


def extra_norm(changed: Changed) -> Changed:
    """A LayerNorm without parameters after the last stage."""
    name = f"s{len(changed.spec.stages)}"

    def standardise(x: Array) -> Array:
        xp = namespace(x)
        centred = x - xp.mean(x, axis=-1, keepdims=True)
        return centred / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + 1e-5)

    return tapping(changed, name, lambda n, value, seen: standardise(value))


def hidden() -> tuple[Mistake, ...]:
    """The hidden layer, besides its activation."""
    return (
        by_fields(
            "head-hidden-missing",
            "head hidden",
            "has no hidden layer before the classifier",
            FIG_4 + "google, timm's coatnet_N and hw666 have a dense layer and tanh between the two",
            {"Head.hidden": None},
        ),
        Mistake(
            "head-hidden-bias-ignored",
            "head hidden",
            "does not add the bias of the head's hidden layer",
            "a common slip",
            lambda changed: reading(changed, r"head\.hidden\.b", lambda name, b: b * 0.0),
        ),
        square_transposed(
            "head-hidden-kernel-transposed", "head hidden", r"head\.hidden\.w", "the head's hidden layer"
        ),
    )


def classifier() -> tuple[Mistake, ...]:
    """The classifier."""
    return (
        by_fields(
            "classifier-bias-missing",
            "classifier",
            "does not add the bias of the classifier",
            "chinhsuanwu has none, the others do",
            {"Head.bias": False},
        ),
        Mistake(
            "classifier-classes-shifted",
            "classifier",
            "gives the logits one class late, the last one first",
            "a common slip: TensorFlow's ImageNet has a background class 0",
            lambda changed: reading(changed, r"head\.classifier\.[wb]", lambda n, a: namespace(a).roll(a, 1, axis=-1)),
        ),
    )


def output() -> tuple[Mistake, ...]:
    """What comes out."""

    def on_output(form: Form, needs: str = "") -> Change:
        def change(changed: Changed) -> Changed:
            require(changed, not needs or changed.spec.head.output == needs, f"output of {needs}")
            return changed.but(output=chain(changed.output, form))

        return change

    return (
        by_fields(
            "output-probabilities",
            "output",
            "gives probabilities, not logits",
            "kecam and sup3rgiu apply a softmax by default",
            {"Head.output": "probabilities"},
        ),
        by_fields(
            "output-logits",
            "output",
            "gives logits, not probabilities",
            "kecam and sup3rgiu apply a softmax by default, torch code none",
            {"Head.output": "logits"},
        ),
        Mistake(
            "output-log-probabilities",
            "output",
            "gives logarithms of probabilities, not logits",
            "a common slip: log_softmax for torch's NLLLoss",
            on_output(lambda y: namespace(y).log(ops.softmax(y)), "logits"),
        ),
        Mistake(
            "output-batch-reversed",
            "output",
            "gives the images of a batch in reverse order",
            "a common slip in batching",
            on_output(lambda y: namespace(y).flip(y, axis=0)),
        ),
    )
