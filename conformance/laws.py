"""Laws that every right implementation obeys: the same input gives the same output, and what is renamed stays the same.

Each law changes a case in a way that changes the output in a known way, and nothing else: the answer to the changed case
is that of the first one, so nothing has to be computed anew to judge it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.conformance.cases import Case
from coatref.conformance.surgery import Flat
from coatref.params import from_flat
from coatref.specification.parts import MBConv, Transformer


@dataclass(frozen=True)
class Law:
    """One law.

    Attributes:
        name: of the changed case.
        about: the law in one sentence.
        change: the case that is given instead.
        undo: of the output of the changed case, the output that the first one should have.
    """

    name: str
    about: str
    change: Callable[[Case], Case]
    undo: Callable[[Any], Any]


def laws(case: Case, seed: int) -> Iterator[Law]:
    """The laws that apply to a case."""
    yield Law("law: repetition", "The same input gives the same output twice.", same, same)
    if case.x.shape[0] > 1:
        yield Law(
            "law: order of images",
            "Images in another order give the same outputs in that order: none sees another.",
            lambda c: dataclasses.replace(c, x=c.x[::-1].copy()),
            lambda output: output[::-1],
        )
    classes = np.random.default_rng([seed, 1]).permutation(case.spec.head.classes)
    yield Law(
        "law: order of classes",
        "Classes in another order give the same logits in that order.",
        lambda c: renumbered_classes(c, classes),
        lambda output: output[:, np.argsort(classes)],
    )
    yield Law(
        "law: order of hidden channels",
        "Expanded channels, hidden channels of feed-forward networks and heads have no order.",
        lambda c: renumbered_channels(c, seed),
        same,
    )


def same(value: Any) -> Any:
    """The value itself."""
    return value


def with_flat(case: Case, flat: Flat) -> Case:
    """The case with other parameters."""
    return dataclasses.replace(case, params=from_flat(case.spec, flat))


def renumbered_classes(case: Case, order: np.ndarray) -> Case:
    """The classifier's columns in another order."""
    flat = dict(case.params.flatten())
    for name in ("head.classifier.w", "head.classifier.b"):
        if name in flat:
            flat[name] = flat[name][..., order]
    return with_flat(case, flat)


def renumbered_channels(case: Case, seed: int) -> Case:
    """Every hidden axis of every branch in another order, in all tensors that have it."""
    flat = dict(case.params.flatten())
    random = np.random.default_rng([seed, 2])

    def take(prefix: str, order: np.ndarray, axis: int, kinds: tuple[str, ...]) -> None:
        for kind in kinds:
            if (name := f"{prefix}.{kind}") in flat:
                flat[name] = np.take(flat[name], order, axis=axis)

    for block in case.spec.blocks():
        name = block.name
        if isinstance(block.run, MBConv):
            order = random.permutation(flat[f"{name}.expand.w"].shape[1])
            take(f"{name}.expand", order, -1, ("w", "b"))
            take(f"{name}.depthwise", order, -1, ("w", "b"))
            for norm in ("expand_norm", "depthwise_norm"):
                take(f"{name}.{norm}", order, 0, ("gamma", "beta", "mean", "var"))
            take(f"{name}.se.reduce", order, 0, ("w",))
            take(f"{name}.se.expand", order, -1, ("w", "b"))
            take(f"{name}.shrink", order, 0, ("w",))
            continue
        order = random.permutation(flat[f"{name}.ffn.expand.w"].shape[1])
        take(f"{name}.ffn.expand", order, -1, ("w", "b"))
        take(f"{name}.ffn.shrink", order, 0, ("w",))
        if isinstance(block.run, Transformer):
            size = block.run.attention.head_size
            heads = random.permutation(block.run.attention.head_count(block.input_width, block.run.width))
            channels = (heads[:, None] * size + np.arange(size)[None, :]).reshape(-1)
            for part in ("q", "k", "v"):
                take(f"{name}.attn.{part}", channels, -1, ("w", "b"))
            take(f"{name}.attn.o", channels, 0, ("w",))
            bias = block.run.attention.relative_bias
            if bias is not None and bias.sharing == "per_head":
                take(f"{name}.attn.relative_bias", heads, 0, ("table",))
                take(f"{name}.attn.relative_bias.out", heads, -1, ("w", "b"))
    return with_flat(case, flat)
