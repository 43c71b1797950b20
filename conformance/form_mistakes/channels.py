"""Mistakes in norms, activations, softmax and squeeze-excite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from coatref import ops
from coatref.conformance.form_mistakes.form_mistake import FormMistake, Wrap, option
from coatref.primitives import Form

EPSILONS = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12)


def norm(kind: str) -> Iterator[FormMistake]:
    """Those of both norms."""
    for epsilon in EPSILONS:
        sentence = f"uses epsilon {epsilon:g} whatever it is given"
        yield FormMistake(f"epsilon-{epsilon:g}", sentence, option(epsilon=epsilon))
    yield FormMistake("epsilon-missing", "leaves epsilon out", option(epsilon=1e-300))
    outside = "adds epsilon to the standard deviation, not to the variance"
    yield FormMistake("epsilon-outside-root", outside, outside_root(kind))
    yield FormMistake("gamma-missing", "leaves gamma out", norm_arguments(lambda g, b: (np.ones_like(g), b)))
    yield FormMistake("gamma-plus-one", "scales by 1 + gamma, not by gamma", norm_arguments(lambda g, b: (1 + g, b)))
    yield FormMistake("beta-missing", "leaves beta out", norm_arguments(lambda g, b: (g, 0 * b)))
    yield FormMistake("gamma-beta-swapped", "swaps gamma and beta", norm_arguments(lambda g, b: (b, g)))


def norm_arguments(change: Callable[[Any, Any], tuple[Any, Any]]) -> Wrap:
    """Another gamma and beta."""
    return lambda form: lambda x, gamma, beta, *rest, **more: form(x, *change(gamma, beta), *rest, **more)


def outside_root(kind: str) -> Wrap:
    """Epsilon added after the root: a variance for which the right form gives the same."""

    def wrap(form: Form) -> Form:
        def batch(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, *, epsilon: float) -> Any:
            return form(x, gamma, beta, mean, (np.sqrt(var) + epsilon) ** 2 - epsilon, epsilon=epsilon)

        def layer(x: Any, gamma: Any, beta: Any, *, epsilon: float) -> Any:
            root = np.std(x, axis=-1, keepdims=True)
            factor = np.sqrt(root**2 + epsilon) / (root + epsilon)
            return (form(x, gamma, 0 * beta, epsilon=epsilon)) * factor + beta

        return batch if kind == "batch" else layer

    return wrap


def batch_norm() -> Iterator[FormMistake]:
    """Those of BatchNorm."""
    yield from norm("batch")

    def own_statistics(form: Form) -> Form:
        def run(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, *, epsilon: float) -> Any:
            axes = tuple(range(x.ndim - 1))
            return form(x, gamma, beta, np.mean(x, axes), np.var(x, axes), epsilon=epsilon)

        return run

    yield FormMistake("batch-statistics", "normalises by the batch's own mean and variance", own_statistics)
    deviation = "takes the running variance for a standard deviation"
    yield FormMistake(
        "variance-as-deviation",
        deviation,
        lambda form: lambda x, gamma, beta, mean, var, *, epsilon: form(x, gamma, beta, mean, var**2, epsilon=epsilon),
    )
    unshifted = "does not subtract the mean"
    yield FormMistake(
        "mean-missing",
        unshifted,
        lambda form: lambda x, gamma, beta, mean, var, *, epsilon: form(x, gamma, beta, 0 * mean, var, epsilon=epsilon),
    )


def layer_norm() -> Iterator[FormMistake]:
    """Those of LayerNorm."""
    yield from norm("layer")

    def unbiased(form: Form) -> Form:
        def run(x: Any, gamma: Any, beta: Any, *, epsilon: float) -> Any:
            c = x.shape[-1]
            if c == 1:
                return form(x, gamma, beta, epsilon=epsilon)
            scale = math.sqrt((c - 1) / c)
            return form(x, gamma * scale, beta, epsilon=epsilon * (c - 1) / c)

        return run

    yield FormMistake("variance-unbiased", "divides the variance by C - 1, not by C", unbiased)

    def rms(form: Form) -> Form:
        def run(x: Any, gamma: Any, beta: Any, *, epsilon: float) -> Any:
            return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * gamma + beta

        return run

    yield FormMistake("mean-missing", "does not subtract the mean (RMSNorm)", rms)

    def over_grid(form: Form) -> Form:
        def run(x: Any, gamma: Any, beta: Any, *, epsilon: float) -> Any:
            axes = tuple(range(1, x.ndim))
            root = np.sqrt(np.var(x, axes, keepdims=True) + epsilon)
            return (x - np.mean(x, axes, keepdims=True)) / root * gamma + beta

        return run

    yield FormMistake(
        "over-the-grid", "normalises over the whole grid, not over the channels of each position", over_grid
    )


def activation() -> Iterator[FormMistake]:
    """Those of activations."""
    names = {
        "gelu": "exact GELU",
        "gelu_tanh": "tanh-GELU",
        "silu": "SiLU",
        "relu": "ReLU",
        "mish": "Mish",
        "tanh": "tanh",
    }
    for asked, asked_words in names.items():
        for done, done_words in names.items():
            if asked != done:
                yield FormMistake(
                    f"{done}-for-{asked}",
                    f"computes {done_words} where {asked_words} is asked for",
                    instead(asked, done),
                )
    for asked in ("gelu", "gelu_tanh"):
        sentence = f"computes x sigmoid(1.702 x) where {names[asked]} is asked for"
        yield FormMistake(f"sigmoid-for-{asked}", sentence, instead(asked, "sigmoid"))
    for done, words in names.items():
        yield FormMistake(f"{done}-always", f"computes {words} whatever is asked for", always(done))


def instead(asked: str, done: str) -> Wrap:
    """Another activation where one is asked for."""

    def wrap(form: Form) -> Form:
        def run(x: Any, kind: str) -> Any:
            if kind != asked:
                return form(x, kind)
            return form(1.702 * x, "silu") / 1.702 if done == "sigmoid" else form(x, done)

        return run

    return wrap


def always(done: str) -> Wrap:
    """The same activation for all."""
    return lambda form: lambda x, kind: form(x, done)


def softmax() -> Iterator[FormMistake]:
    """Those of the softmax."""
    first = "normalises over the queries (axis -2), not over the keys"
    yield FormMistake("over-queries", first, lambda form: lambda x: np.swapaxes(form(np.swapaxes(x, -1, -2)), -1, -2))
    yield FormMistake("base-2", "takes powers of 2, not of e", lambda form: lambda x: form(x * math.log(2)))
    quiet = "adds 1 to the sum of the exponentials"
    yield FormMistake("plus-one", quiet, lambda form: with_one_more)


def with_one_more(x: Any) -> Any:
    """exp(x_k) / (1 + sum_l exp(x_l))."""
    top = np.maximum(np.max(x, axis=-1, keepdims=True), 0.0)
    exponentials = np.exp(x - top)
    return exponentials / (np.exp(-top) + np.sum(exponentials, axis=-1, keepdims=True))


def squeeze_excite() -> Iterator[FormMistake]:
    """Those of squeeze-excite."""
    for kind in ("silu", "relu", "gelu", "gelu_tanh"):
        yield FormMistake(f"activation-{kind}", f"uses {kind} whatever activation it is given", option(activation=kind))

    def hard(x: Any, reduce: Any, expand: Any, *, activation: str) -> Any:
        hidden = ops.activation(ops.dense(ops.global_avg_pool(x), **reduce), activation)
        return x * np.clip(ops.dense(hidden, **expand) / 6 + 0.5, 0, 1)[:, None, None, :]

    def bare(x: Any, reduce: Any, expand: Any, *, activation: str) -> Any:
        return ops.squeeze_excite(x, reduce, expand, activation=activation) / np.where(x == 0, 1.0, x)

    def summed(x: Any, reduce: Any, expand: Any, *, activation: str) -> Any:
        reduce = {**reduce, "w": reduce["w"] * (x.shape[1] * x.shape[2])}
        return ops.squeeze_excite(x, reduce, expand, activation=activation)

    yield FormMistake("hard-sigmoid", "gates by a hard sigmoid, not by the sigmoid", lambda form: hard)
    yield FormMistake("gate-alone", "gives the gate alone, not x times the gate", lambda form: bare)
    yield FormMistake("sum", "feeds the sum over positions to the gate, not the mean", lambda form: summed)
