"""Mistakes in the relative bias and in both kinds of attention."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from coatref import ops
from coatref.conformance.form_mistakes.form_mistake import FormMistake, Wrap, option, result
from coatref.primitives import Form


def gather_bias() -> Iterator[FormMistake]:
    """Those of the table of relative biases."""
    for name, words, axes in (
        ("key-minus-query", "reads the table by key minus query, not by query minus key (App. A.1)", (1, 2)),
        ("rows-flipped", "reads the row offset as key minus query, not as query minus key (App. A.1)", (1,)),
        ("columns-flipped", "reads the column offset as key minus query, not as query minus key (App. A.1)", (2,)),
        ("heads-reversed", "gives the heads in reversed order", (0,)),
    ):
        yield FormMistake(name, words, table_changed(functools.partial(np.flip, axis=axes)))
    swapped = "swaps row and column offset, which shows on grids that are not square"
    yield FormMistake("offsets-swapped", swapped, table_changed(reread))
    first = "uses the first head's table for all heads"
    yield FormMistake("first-head", first, table_changed(lambda t: np.broadcast_to(t[:1], t.shape)))
    stride = "takes steps of 2W in the flat table where a row has 2W-1 entries"
    yield FormMistake("row-length", stride, table_changed(longer_rows))


def table_changed(change: Callable[[Any], Any]) -> Wrap:
    """Another table."""
    return lambda form: lambda table, height, width: form(change(table), height, width)


def reread(table: Any) -> Any:
    """The flat table read with columns outside and rows inside."""
    heads, rows, columns = table.shape
    return np.swapaxes(table.reshape(heads, columns, rows), 1, 2)


def longer_rows(table: Any) -> Any:
    """The flat table read with one entry too many in a row; what lies beyond its end is its last entry."""
    heads, rows, columns = table.shape
    index = np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)[None, :]
    return table.reshape(heads, -1)[:, np.minimum(index, rows * columns - 1)]


def attention(change: Callable[..., Any]) -> Wrap:
    """Other q, k, v, bias or options."""

    def wrap(form: Form) -> Form:
        def run(q: Any, k: Any, v: Any, bias: Any = None, **rest: Any) -> Any:
            q, k, v, bias, changed = change(q, k, v, bias, rest)
            return form(q, k, v, bias, **(rest | changed))

        return run

    return wrap


def scaled(factor: Callable[[Any, float], float]) -> Wrap:
    """Another scale, from q and the scale that is given."""
    return attention(lambda q, k, v, bias, o: (q, k, v, bias, {"scale": factor(q, o.get("scale", 1.0))}))


def biased(change: Callable[[Any, Any, float], Any]) -> Wrap:
    """Another bias, from the bias, q and the scale."""
    return attention(
        lambda q, k, v, bias, o: (q, k, v, None if bias is None else change(bias, q, o.get("scale", 1.0)), {})
    )


def square_transposed(bias: Any) -> Any:
    """A bias with queries and keys in the other order, where there are as many of both."""
    return (
        np.swapaxes(bias, 1, 2)
        if bias.shape[1] == bias.shape[2]
        else bias.reshape(bias.shape[0], bias.shape[2], bias.shape[1]).swapaxes(1, 2)
    )


def relative_attention() -> Iterator[FormMistake]:
    """Those of attention with a relative bias."""
    size = "(paper 2.1: d is the size of one head)"
    for name, words, factor in (
        ("scale-by-width", f"scales the logits by 1/sqrt(heads*d), not by 1/sqrt(d) {size}", by_width),
        ("scale-over-sqrt-heads", "divides the scale that it is given by sqrt(heads)", over_heads),
        ("scale-missing", "leaves out the scale of the logits", lambda q, s: 1.0),
        ("scale-inverse", "scales the logits by sqrt(d), not by 1/sqrt(d)", lambda q, s: math.sqrt(q.shape[3])),
        ("scale-own", "scales by 1/sqrt(d) whatever scale it is given", lambda q, s: 1 / math.sqrt(q.shape[3])),
        ("scale-by-d", "scales the logits by 1/d, not by 1/sqrt(d)", lambda q, s: 1 / q.shape[3]),
        ("scale-by-keys", "scales by 1/sqrt(queries), not by 1/sqrt(d)", lambda q, s: 1 / math.sqrt(q.shape[2])),
        ("scale-twice", "applies the scale twice", lambda q, s: s * s),
    ):
        yield FormMistake(name, words, scaled(factor))
    for name, words, change in (
        ("bias-missing", "leaves the bias out", lambda b, q, s: 0 * b),
        ("bias-transposed", "adds bias[key, query], not bias[query, key]", lambda b, q, s: square_transposed(b)),
        ("bias-flipped", "reads the bias from its end", lambda b, q, s: np.flip(b, (1, 2))),
        ("bias-negated", "subtracts the bias", lambda b, q, s: -b),
        ("bias-scaled", "scales the bias like the logits", lambda b, q, s: s * b),
        ("bias-first-head", "uses the first head's bias for all heads", lambda b, q, s: b[:1]),
        ("bias-twice", "adds the bias twice", lambda b, q, s: 2 * b),
        ("bias-heads-reversed", "adds the heads' biases in reversed order", lambda b, q, s: np.flip(b, 0)),
    ):
        yield FormMistake(name, words, biased(change))
    late = "adds the bias after the softmax, not before"
    yield FormMistake("bias-after-softmax", late, option(add="post_softmax"))
    early = "adds the bias before the softmax, not after"
    yield FormMistake("bias-before-softmax", early, option(add="pre_softmax"))
    both = "scales logits and bias together"
    yield FormMistake("scale-with-bias", both, option(scale_site="logits_and_bias"))
    alone = "scales the logits without the bias where both are to be scaled"
    yield FormMistake("scale-without-bias", alone, option(scale_site="query"))
    for name, words, order in (
        ("q-k-swapped", "swaps q and k", (1, 0, 2)),
        ("k-v-swapped", "swaps k and v", (0, 2, 1)),
        ("values-from-keys", "takes k for v", (0, 1, 1)),
    ):
        yield FormMistake(name, words, permuted(order))
    yield FormMistake("mask-missing", "ignores the key mask", option(key_mask=None))
    first = "takes the softmax over the queries, not over the keys"
    yield FormMistake("softmax-over-queries", first, lambda form: over_queries)
    base = "takes powers of 2 in the softmax, not of e"
    yield FormMistake("softmax-base-2", base, lambda form: powers_of_two)
    yield FormMistake("heads-reversed", "gives the heads in reversed order", result(lambda y: np.flip(y, 1)))


def by_width(q: Any, scale: float) -> float:
    """1/sqrt(heads*d)."""
    return 1 / math.sqrt(q.shape[1] * q.shape[3])


def over_heads(q: Any, scale: float) -> float:
    """The given scale over sqrt(heads)."""
    return scale / math.sqrt(q.shape[1])


def permuted(order: tuple[int, int, int]) -> Wrap:
    """q, k and v in another order, where their shapes allow it."""

    def change(q: Any, k: Any, v: Any, bias: Any, o: Any) -> Any:
        given = (q, k, v)
        q, k, v = (given[index] for index in order)
        if k.shape != v.shape or (bias is not None and bias.shape[1:] != (q.shape[2], k.shape[2])):
            return (*given, bias, {})
        return q, k, v, bias, {}

    return attention(change)


def plain_logits(q: Any, k: Any, bias: Any, scale: float, scale_site: str, key_mask: Any, early: bool) -> Any:
    """Logits of attention."""
    logits = scale * (q @ np.swapaxes(k, 2, 3))
    if bias is not None and early:
        logits = logits + (scale if scale_site == "logits_and_bias" else 1.0) * bias
    if key_mask is not None:
        logits = np.where(key_mask.reshape(-1, 1, 1, k.shape[2]), logits, -1e300)
    return logits


def attention_with(form: Form) -> Form:
    """Attention whose softmax is another function of the logits."""

    def run(
        q: Any,
        k: Any,
        v: Any,
        bias: Any = None,
        *,
        scale: float = 1.0,
        scale_site: str = "query",
        add: str = "pre_softmax",
        key_mask: Any = None,
        tap: Any = None,
    ) -> Any:
        """Attention whose weights another function makes of the logits."""
        weights = form(plain_logits(q, k, bias, scale, scale_site, key_mask, add == "pre_softmax"))
        if bias is not None and add == "post_softmax":
            added = np.broadcast_to(bias, weights.shape)
            weights = weights + (added if key_mask is None else added * key_mask.reshape(-1, 1, 1, k.shape[2]))
        return weights @ v

    return run


over_queries = attention_with(lambda x: np.swapaxes(ops.softmax(np.swapaxes(x, 2, 3)), 2, 3))
powers_of_two = attention_with(lambda x: ops.softmax(x * math.log(2)))


def linear_attention() -> Iterator[FormMistake]:
    """Those of linear attention."""

    def with_features(phi: Callable[[Any], Any], normalised: bool = True) -> Wrap:
        def run(q: Any, k: Any, v: Any) -> Any:
            a, b = phi(q), phi(k)
            y = a @ (np.swapaxes(b, 2, 3) @ v)
            return y / np.sum(a * np.sum(b, axis=2, keepdims=True), axis=-1, keepdims=True) if normalised else y

        return lambda form: run

    def elu(t: Any) -> Any:
        return np.where(t > 0, t + 1, np.exp(np.minimum(t, 0)))

    yield FormMistake("relu", "maps q and k by relu, not by elu + 1", with_features(lambda t: np.maximum(t, 0) + 1e-6))
    yield FormMistake("exp", "maps q and k by exp, not by elu + 1", with_features(np.exp))
    yield FormMistake("softmax", "computes attention with a softmax", lambda form: softmax_attention)
    yield FormMistake("sum-missing", "does not divide by the sum of the weights", with_features(elu, False))


def softmax_attention(q: Any, k: Any, v: Any) -> Any:
    """Plain attention of scale 1."""
    return ops.softmax(q @ np.swapaxes(k, 2, 3)) @ v
