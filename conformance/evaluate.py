"""The definition's answer to a case, and the spread that honest rounding gives each compared value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coatref.conformance.error_model import probes as model
from coatref.conformance.error_model.verdict import compare
from coatref.conformance.mistakes.changed import Changed, compute
from coatref.conformance.precision import Precision
from coatref.conformance.report.results import Comparison
from coatref.params import Params, from_flat
from coatref.tap import Tap

OUTPUT = "logits"  # what a candidate's output is called, also where its head gives probabilities


@dataclass(frozen=True)
class Answer:
    """What the definition (or a changed one) gives for a case.

    Attributes:
        expected: name -> value in float64, in order of computation; the last is the output.
        deviations: name -> how far each probe was off; empty without probes.
        last: name -> magnitude of the rounding that ends the computation of a value, which its spread is no less than.
        overflow: whether some value does not fit into the declared storage type.
    """

    expected: Mapping[str, Any]
    deviations: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    overflow: bool = False
    last: Mapping[str, Any] = field(default_factory=dict)


def answer(
    changed: Changed,
    params: Params,
    x: Any,
    precision: Precision,
    traced: Mapping[str, Any],
    probes: int,
    seed: int = 0,
) -> Answer:
    """Run a definition on a case, and its probes.

    A value in `traced` is the candidate's own: it is compared with what the definition makes of the candidate's earlier
    values, and then stands in its place, so every part of the network is judged on the inputs that it really had.

    Args:
        changed: the definition, or one with known mistakes.
        params: of the claimed spec, NumPy float64 arrays.
        x: (N, H, W, channels), float64.
        precision: as declared.
        traced: name in a trace -> the candidate's value in float64.
        probes: how many.
        seed: of the probes.
    """
    own = {name: value for name, value in traced.items() if name != OUTPUT}
    blocks = frozenset(block.name for block in changed.spec.blocks())
    recorded = model.Recorded()
    inject = model.record(precision, recorded)
    expected: dict[str, Any] = {}
    last: dict[str, Any] = {}
    expected[OUTPUT] = run(changed, params, x, inject, precision, blocks, own, expected, (recorded, last))
    deviations: dict[str, list[Any]] = {name: [] for name in expected}
    for number in range(probes):
        random = np.random.default_rng([seed, number])
        moved = model.replay(recorded.magnitudes, random, precision)
        other = from_flat(params.spec, model.shaken(params.flatten(), precision, random))
        values: dict[str, Any] = {}
        values[OUTPUT] = run(changed, other, x, moved, precision, blocks, own, values)
        for name, value in values.items():
            deviations[name].append(value - expected[name])
    return Answer(expected, deviations if probes else {}, recorded.overflow, last)


def run(
    changed: Changed,
    params: Params,
    x: Any,
    inject: model.Inject,
    precision: Precision,
    blocks: frozenset[str],
    own: Mapping[str, Any],
    seen: dict[str, Any],
    noting: tuple[model.Recorded, dict[str, Any]] | None = None,
) -> Any:
    """One run with errors injected; writes every value that the candidate has too into `seen`.

    With `noting`, the magnitude recorded last before each of these values is written down too, where it is of its shape.
    """
    sums = model.sums(inject, precision, blocks, params.flatten())

    def tap(name: str, value: Any) -> Any:
        value = sums(name, value)
        if name not in own:
            return value
        seen[name] = value
        if noting is not None and noting[0].magnitudes:
            size = noting[0].magnitudes[-1].size
            if np.shape(size) == np.shape(value):
                noting[1][name] = size
        return own[name] if own[name].shape == value.shape and np.all(np.isfinite(own[name])) else value

    watched: Tap = tap
    with np.errstate(all="ignore"):  # amplified cases may overflow, which is looked for in the values
        return compute(changed.but(forms=model.injected(inject, precision, changed.forms)), params, x, watched)


def comparisons(found: Mapping[str, Any], answer: Answer, precision: Precision) -> list[Comparison]:
    """Every value that candidate and definition both have, compared."""
    result = []
    replayed = len(answer.expected) > 1
    for name, expected in answer.expected.items():
        if answer.overflow:
            result.append(Comparison(name, "cannot judge", reason=f"some value does not fit into {precision.storage}"))
        else:
            deviations = answer.deviations[name]
            least = answer.last.get(name, 0.0)
            result.append(compare(name, found[name], expected, deviations, precision, replayed=replayed, least=least))
    return result


def explains(found: Any, answer: Answer, precision: Precision) -> bool:
    """Whether an answer's output agrees with a candidate's within honest rounding."""
    verdict = compare(OUTPUT, found, answer.expected[OUTPUT], answer.deviations[OUTPUT], precision)
    return verdict.verdict == "pass" and verdict.margin is not None and not math.isinf(verdict.margin)
