"""The judgement: cases given to a candidate, verdicts, where it goes wrong and what it computes instead."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from coatref.conformance.counterexample import counterexample
from coatref.conformance.diagnosis import Diagnosis, Search, diagnose
from coatref.conformance.evaluate import OUTPUT
from coatref.conformance.findings import findings, stages
from coatref.conformance.looking import Known, Progress, closer_look, fixed_cases, look
from coatref.conformance.mistakes.catalogue import mistakes
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.mistakes.lattice import lattice
from coatref.conformance.mistakes.mistake import Mistake, applies
from coatref.conformance.precision import declared
from coatref.conformance.report.results import Report
from coatref.conformance.suite import LEVELS
from coatref.conformance.target import Target
from coatref.conformance.telling import (
    conforms_elsewhere,
    excludes,
    misshapen,
    other_weights,
    overall,
    reproduce,
    shown_spec,
    summary,
    versions,
    without_repetition,
)
from coatref.errors import InputError
from coatref.params import Params
from coatref.specification.catalogue import resolve
from coatref.specification.spec import Spec


def check(
    target: str | Target | Callable[..., Any],
    *,
    spec: Spec | str | None = None,
    weights: Params | None = None,
    dtype: str = "float32",
    accumulate: str | None = None,
    level: str = "default",
    seed: int = 0,
    progress: Progress | None = None,
    known: Known | None = None,
) -> Report:
    """Judge a candidate; see `coatref.check`.

    Args:
        target: as `coatref.check` takes it.
        spec, weights, dtype, accumulate, level, seed, progress: likewise.
        known: answers computed before, and kept for later judgements; for judging many candidates of one spec.

    Raises:
        InputError: an argument cannot be used.
    """
    if level not in LEVELS:
        raise InputError(f"check takes the levels {', '.join(LEVELS)}, got {level!r:.80}.")
    began = time.perf_counter()
    judged = as_target(target, spec, weights, dtype, accumulate)
    known = known or Known()
    outcomes, missing = look(judged, LEVELS[level], seed, progress, known)
    failed = [outcome for outcome in outcomes if outcome.failed]
    diagnosis, elsewhere, found = Diagnosis(), "", []
    if failed:
        if progress is not None:
            progress(len(outcomes), len(outcomes), "diagnosis")
        until = time.perf_counter() + LEVELS[level].seconds
        outcomes = closer_look(judged, outcomes, LEVELS[level], seed, until, known)
        if judged.spec not in known.hypotheses:
            known.hypotheses[judged.spec] = hypotheses_of(judged.spec)
        hypotheses = known.hypotheses[judged.spec]
        comparable = [outcome for outcome in outcomes if outcome.answer is not None]
        diagnosis = diagnose(Search(comparable, hypotheses, judged.precision, 6, known.memo, until))
        elsewhere = conforms_elsewhere(judged, outcomes, seed, until, known)
        found = without_repetition([*misshapen(judged), *findings(outcomes, diagnosis)])
    held, wrong = other_weights(judged)
    found = [*wrong, *found]
    results = (*held, *(outcome.result for outcome in outcomes))
    verdict = overall(results)
    return Report(
        target=judged.name,
        spec=judged.spec.name,
        spec_json=judged.spec.to_json(),
        precision={"storage": judged.precision.storage, "accumulate": judged.precision.accumulate},
        level=level,
        seed=seed,
        verdict=verdict,
        summary=summary(judged, verdict, results, found, elsewhere),
        excludes=excludes(judged, results) if verdict == "pass" else (),
        not_covered=tuple(missing),
        results=results,
        stages=tuple(stages(shown_spec(judged, outcomes), outcomes)),
        findings=tuple(found),
        conforms_to=elsewhere,
        counterexample=counterexample(judged, outcomes, seed) if failed else None,
        reproduce=reproduce(judged, level, seed),
        versions=versions(judged),
        seconds=time.perf_counter() - began,
    )


def hypotheses_of(spec: Spec) -> tuple[Mistake, ...]:
    """The mistakes that can be made in a spec: the catalogue's, and changes of one field that are not among them."""
    known = [mistake for mistake in mistakes() if applies(mistake, spec)]
    plain = Changed(spec)
    changed = [mistake.change(plain) for mistake in known]
    # of those that change nothing else; how parameters are read follows from the spec
    specs = {each.spec for each in changed if each == plain.but(spec=each.spec, read=each.read)}
    return (*known, *(m for m in lattice(spec) if applies(m, spec) and m.change(plain).spec not in specs))


def as_target(
    target: str | Target | Callable[..., Any],
    spec: Spec | str | None,
    weights: Params | None,
    dtype: str,
    accumulate: str | None,
) -> Target:
    """What is judged, from any of the forms that `check` takes."""
    if isinstance(target, Target):
        changes: dict[str, Any] = {} if spec is None else {"spec": resolve(spec)}
        if weights is not None:
            changes["params"] = weights
        return dataclasses.replace(target, **changes)
    if isinstance(target, str):
        from coatref.conformance.targets.resolve import resolve as resolve_target

        precision = dtype if accumulate is None else declared(dtype, accumulate)
        return resolve_target(target, spec=spec, weights=weights, precision=precision)
    if not callable(target):
        raise InputError(f"check takes a text, a Target or a function (params, x), got {type(target).__name__}.")
    if spec is None:
        raise InputError("check needs the spec that a function computes; pass spec=..., such as spec='coatnet_0'.")

    def run(params: Params, x: np.ndarray) -> Mapping[str, Any]:
        given = target(params, x)
        return given if isinstance(given, Mapping) else {OUTPUT: given}

    name = f"python:{getattr(target, '__module__', '')}:{getattr(target, '__qualname__', 'function')}"
    return Target(name, resolve(spec), run, declared(dtype, accumulate), weights, command=name)


def cases(
    spec: Spec | str,
    *,
    dtype: str = "float32",
    accumulate: str | None = None,
    level: str = "default",
    seed: int = 0,
) -> Iterator[tuple[str, str, str, Params, np.ndarray]]:
    """The cases that a target "results:DIR" is judged by: name, check, about, parameters, images.

    Raises:
        InputError: the level, spec or type is not known.
    """
    if level not in LEVELS:
        raise InputError(f"cases takes the levels {', '.join(LEVELS)}, got {level!r:.80}.")

    def nothing(params: Params, x: np.ndarray) -> Mapping[str, Any]:
        return {}

    target = Target("cases", resolve(spec), nothing, declared(dtype, accumulate))
    target = dataclasses.replace(target, variant=lambda other: dataclasses.replace(target, spec=other))
    for _, case, _ in fixed_cases(target, LEVELS[level], seed):
        yield case.name, case.check, case.about, case.params, case.x
