"""Mistakes in convolutions, dense layers and pools."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from coatref import ops
from coatref.conformance.form_mistakes.form_mistake import FormMistake, Wrap, option
from coatref.ops.window import pad_axis
from coatref.primitives import Form
from coatref.specification.grids import padding_amounts


def weights(change: Callable[[Any], Any]) -> Wrap:
    """Another kernel."""
    return lambda form: lambda x, w, b=None, **rest: form(x, change(w), b, **rest)


def no_bias(form: Form) -> Form:
    """The bias left out."""
    return lambda x, w, b=None, **rest: form(x, w, None, **rest)


def padded_first(value: float) -> Wrap:
    """SAME padding whose odd row stands at the beginning."""

    def wrap(form: Form) -> Form:
        def run(x: Any, *args: Any, stride: int = 1, padding: str = "same", **rest: Any) -> Any:
            if padding != "same":
                return form(x, *args, stride=stride, padding=padding, **rest)
            w = args[0] if args else rest.get("w")
            size = rest["size"] if w is None else w.shape[0]
            for axis in (1, 2):
                before, after = padding_amounts(x.shape[axis], size, stride, "same")
                x = pad_axis(x, axis, after, before, value)
            return form(x, *args, stride=stride, padding="valid", **rest)

        return run

    return wrap


def padded_with_zeros(form: Form) -> Form:
    """Padding of a maximum with zeros, which win over negative numbers."""

    def run(x: Any, *, size: int, stride: int, padding: Any) -> Any:
        for axis in (1, 2):
            x = pad_axis(x, axis, *padding_amounts(x.shape[axis], size, stride, padding), 0.0)
        return form(x, size=size, stride=stride, padding="valid")

    return run


def late_phase(form: Form) -> Form:
    """A stride that keeps the last position of each window of positions and not the first."""

    def run(x: Any, *args: Any, stride: int = 1, padding: Any = "same", **rest: Any) -> Any:
        full = form(x, *args, stride=1, padding=padding, **rest)
        return full[:, stride - 1 :: stride, stride - 1 :: stride]

    return run


def paddings() -> Iterator[FormMistake]:
    """Another padding: where a certain one is asked for, or always."""
    done_words = {
        "symmetric": "pads (k-1)//2 rows on each side",
        "same": "pads like TensorFlow's SAME, the odd row at the end,",
        "valid": "pads nothing",
    }
    for asked, asked_words in (("same", "SAME"), ("symmetric", "symmetric"), ("valid", "no")):
        for done, words in done_words.items():
            if asked != done:
                sentence = f"{words} where {asked_words} padding is asked for"
                yield FormMistake(f"padding-{done}-for-{asked}", sentence, padding_instead(asked, done))
    for done, words in done_words.items():
        yield FormMistake(f"padding-{done}", f"{words} whatever padding it is given", option(padding=done))


def padding_instead(asked: str, done: str) -> Wrap:
    """Another padding where one is asked for."""

    def wrap(form: Form) -> Form:
        def run(*args: Any, padding: str = "same", **rest: Any) -> Any:
            return form(*args, padding=done if padding == asked else padding, **rest)

        return run

    return wrap


def convolution() -> Iterator[FormMistake]:
    """Those of both kinds of convolution."""
    yield from paddings()
    first = "puts the odd row of SAME padding at the beginning, not at the end"
    yield FormMistake("padding-at-beginning", first, padded_first(0.0))
    flipped = "flips the kernel, as in a mathematical convolution, where networks correlate"
    yield FormMistake("kernel-flipped", flipped, weights(lambda w: np.flip(w, (0, 1))))
    turned = "swaps rows and columns of the kernel"
    yield FormMistake("kernel-transposed", turned, weights(lambda w: np.swapaxes(w, 0, 1)))
    yield FormMistake("bias-missing", "leaves the bias out", no_bias)
    yield FormMistake("stride-missing", "ignores the stride", option(stride=1))
    phase = "takes a stride's last positions where its first ones belong"
    yield FormMistake("stride-phase", phase, late_phase)


def dense() -> Iterator[FormMistake]:
    """Those of a dense layer."""
    yield FormMistake("bias-missing", "leaves the bias out", no_bias)
    yield FormMistake("bias-twice", "adds the bias twice", doubled_bias)


def doubled_bias(form: Form) -> Form:
    """The bias added twice."""
    return lambda x, w, b=None, **rest: form(x, w, None if b is None else 2 * b, **rest)


def pool() -> Iterator[FormMistake]:
    """Those of both kinds of pool."""
    yield from paddings()
    yield FormMistake("stride-missing", "ignores the stride", option(stride=1))
    yield FormMistake("size-2", "takes windows of 2x2 whatever size it is given", option(size=2))


def max_pool() -> Iterator[FormMistake]:
    """Those of a maximum."""
    yield FormMistake("padding-zeros", "pads with zeros, which win over negative numbers", padded_with_zeros)
    first = "puts the odd row of SAME padding at the beginning, not at the end"
    yield FormMistake("padding-at-beginning", first, padded_first(-math.inf))
    yield FormMistake("mean", "takes the mean of a window, not its maximum", lambda form: ops.avg_pool)
    yield from pool()


def avg_pool() -> Iterator[FormMistake]:
    """Those of a mean."""
    counted = "counts padded zeros in the mean where they are excluded"
    yield FormMistake("padding-counted", counted, option(padded_zeros="counted"))
    excluded = "excludes padded zeros from the mean where they count"
    yield FormMistake("padding-excluded", excluded, option(padded_zeros="excluded"))
    yield FormMistake("maximum", "takes the maximum of a window, not its mean", maximum)
    yield from pool()


def maximum(form: Form) -> Form:
    """A maximum in place of a mean."""
    return lambda x, *, padded_zeros="", **rest: ops.max_pool(x, **rest)


def global_avg_pool() -> Iterator[FormMistake]:
    """Those of the global mean."""
    yield FormMistake("sum", "sums over positions where the mean is taken", lambda form: lambda x: np.sum(x, (1, 2)))
    maximal = "takes the maximum over positions, not the mean"
    yield FormMistake("maximum", maximal, lambda form: lambda x: np.max(x, (1, 2)))
    swapped = "averages over columns and channels"
    yield FormMistake("wrong-axes", swapped, lambda form: lambda x: np.mean(x, (2, 3)))
