"""All known mistakes, by name, and where each axis of the dialects is among them."""

from __future__ import annotations

import difflib
import functools

from coatref.conformance.mistakes import (
    activations,
    attention,
    convolution,
    feed_forward,
    head,
    norms,
    pools,
    relative_bias,
    shortcuts,
    squeeze_excite,
    stem,
    whole,
)
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.mistakes.edits import Change
from coatref.conformance.mistakes.mistake import Mistake
from coatref.errors import InputError

# Every axis on which published CoAtNets differ -> mistakes that are made along it.
AXES: dict[str, tuple[str, ...]] = {
    "memory layout": ("image-channels-first-view", "global-pool-channels-first-view", "image-transposed"),
    "stem bias": ("stem-bias-ignored",),
    "stem second norm": ("stem-norm-after-last", "stem-norm-after-last-missing", "stem-activation-after-last"),
    "stem padding": ("stem-padding-same", "stem-padding-symmetric", "stem-padding-replicate", "stem-stride-phase"),
    "stem norm and activation": ("stem-norm-missing", "stem-norm-is-layer-norm", "stem-activation-relu"),
    "pre-norm activation": ("pre-activation-silu", "pre-activation-missing"),
    "expansion base": ("expansion-of-input", "expansion-of-output"),
    "expansion factor": ("expansion-1", "expansion-6"),
    "stride site": ("stride-at-expand", "stride-at-depthwise", "stride-at-pool", "expand-stride-phase"),
    "pool kind": (
        "attention-pool-max",
        "attention-pool-avg",
        "shortcut-pool-max",
        "shortcut-pool-avg",
        "mbconv-pool-max",
    ),
    "pool window": ("attention-pool-3x3", "shortcut-pool-3x3", "mbconv-pool-3x3", "attention-pool-2x2"),
    "pool rounding": ("pools-floor", "pools-ceil"),
    "pool padding counted": ("shortcut-pool-zeros-counted", "attention-pool-zeros-counted"),
    "projection": ("projection-always", "projection-when-width-changes", "projection-skipped"),
    "projection bias": ("projection-bias-ignored",),
    "squeeze-excite base": ("se-of-input", "se-of-output", "se-of-expanded", "se-ratio-1-16"),
    "squeeze-excite rounding": ("se-rounded-down", "se-rounded-to-nearest", "se-rounded-to-8"),
    "squeeze-excite activation": ("se-activation-relu", "se-activation-silu", "se-activation-gelu"),
    "squeeze-excite bias": ("se-bias-ignored",),
    "squeeze-excite place": ("se-before-norm", "se-after-activation"),
    "squeeze-excite off": ("se-missing", "last-se-missing"),
    "activation": (
        "mbconv-activation-gelu",
        "mbconv-activation-gelu-tanh",
        "mbconv-activation-silu",
        "mbconv-activation-relu",
        "mbconv-activation-mish",
        "ffn-activation-gelu",
        "ffn-activation-gelu-tanh",
    ),
    "norm epsilon": tuple(f"{site}-eps-{value}" for site in norms.SITES for value in norms.EPSILONS),
    "norm kind": tuple(f"{site}-is-{kind}-norm" for site in norms.SITES for kind in ("layer", "batch")),
    "norm after the projection": ("shrink-norm-added", "shrink-norm-missing"),
    "order of norm and pool": ("pool-then-norm", "norm-then-pool"),
    "heads": ("heads-from-input", "heads-from-output", "heads-fixed-8", "head-size-16", "head-size-64"),
    "scale": ("scale-missing", "scale-inverted", "scale-by-width", "scale-by-input-head-size", "scale-twice"),
    "scale site": ("scale-after-bias",),
    "order of fused qkv": ("qkv-heads-first-read-as-qkv-first", "qkv-qkv-first-read-as-heads-first"),
    "order of heads": ("heads-split-interleaved", "heads-merged-interleaved", "heads-merged-untransposed"),
    "qkv and output bias": ("qkv-bias-missing", "output-bias-missing"),
    "bias orientation": (
        "bias-key-minus-query",
        "bias-transposed",
        "bias-rows-flipped",
        "bias-columns-flipped",
        "bias-xy-grid",
        "bias-xy-transposed",
    ),
    "bias none or shared": ("bias-missing", "bias-shared-by-heads", "bias-one-table", "bias-of-first-block"),
    "bias by an MLP": ("bias-mlp-log-base-2", "bias-mlp-swapped", "bias-sigmoid"),
    "bias before or after the softmax": ("bias-after-softmax", "bias-before-softmax"),
    "feed-forward base": ("ffn-of-input", "ffn-of-output"),
    "feed-forward bias": ("ffn-bias-missing", "ffn-expand-bias-ignored", "ffn-shrink-bias-ignored"),
    "source of the residual": (
        "mbconv-shortcut-from-normed",
        "transformer-shortcut-from-normed",
        "shortcut-from-input",
    ),
    "layer scale": ("layer-scale-missing", "layer-scale-doubled"),
    "head order": ("head-norm-then-pool", "head-pool-then-norm", "head-norm-missing"),
    "head hidden layer": ("head-hidden-missing", "head-activation-missing", "head-activation-gelu"),
    "head bias": ("classifier-bias-missing",),
    "head softmax": ("output-probabilities", "output-logits"),
}

PARTS = (
    stem,
    convolution,
    pools,
    norms,
    activations,
    squeeze_excite,
    shortcuts,
    attention,
    relative_bias,
    feed_forward,
    head,
    whole,
)


@functools.cache
def mistakes() -> tuple[Mistake, ...]:
    """Every known mistake, from the stem to the output."""
    return tuple(each for part in PARTS for each in part.mistakes())


def mistake(name: str) -> Mistake:
    """The mistake of that name.

    Raises:
        InputError: there is none; the message names similar ones.
    """
    known = {each.name: each for each in mistakes()}
    if name not in known:
        similar = difflib.get_close_matches(str(name)[:80], known, n=3, cutoff=0.5)
        advice = (
            f"similar names: {', '.join(similar)}" if similar else "coatref.conformance.mistakes.catalogue lists them"
        )
        raise InputError(f"There is no mistake named {name!r:.80}; {advice}.")
    return known[name]


def combined(first: Mistake, second: Mistake) -> Change:
    """The change that makes both mistakes, the first one first.

    It raises `NotApplicable` where either cannot be made, the second in what the first has left.
    """

    def change(changed: Changed) -> Changed:
        return second.change(first.change(changed))

    return change
