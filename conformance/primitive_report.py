"""From the tried calls of a primitive to a report: verdict, findings and the smallest counterexample."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import coatref
from coatref.conformance.precision import Precision
from coatref.conformance.primitive_cases import Call
from coatref.conformance.primitive_diagnosis import Observed, diagnose
from coatref.conformance.report.results import CaseResult, Counterexample, Finding, Report, Stage, Verdict


@dataclass(frozen=True, eq=False)
class Tried:
    """One call as the candidate was handed it, the result, and the value in float64 (None where there was none)."""

    call: Call
    result: CaseResult
    found: Any = None


def report_of(
    name: str,
    target: str,
    precision: Precision,
    level: str,
    seed: int,
    done: list[Tried],
    allowed: Mapping[str, Any],
    seconds: float,
) -> Report:
    """All results as a report, with the mistake where one is known."""
    results = tuple(one.result for one in done)
    wrong = [one for one in done if one.result.verdict == "fail"]
    verdict: Verdict = "fail" if wrong else "pass"
    if not wrong and not any(result.verdict == "pass" for result in results):
        verdict = "cannot judge"
    margins = [result.margin for result in results if result.margin is not None]
    worst = max(results, key=lambda result: result.margin or (math.inf if result.problem else 0.0), default=None)
    smallest = min(wrong, key=lambda one: one.call.size, default=None)
    counterexample = None if smallest is None else counterexample_of(name, target, precision, smallest)
    findings = findings_of(name, done, wrong, precision, counterexample)
    summaries = {
        "pass": f"It conforms: {len(results)} calls agree with {name} within the rounding of {precision}.",
        "fail": f"It does not conform: {len(wrong)} of {len(results)} calls differ from {name}.",
        "cannot judge": f"It could not be judged: no call of {name} says anything in {precision}.",
    }
    stage = Stage(name, f"primitive {name}", verdict, max(margins, default=None), worst.case if worst else "")
    left_out = [f"options other than {key} = {value!r}, as asked" for key, value in allowed.items()]
    restriction = f" --level {level} --seed {seed} --dtype {precision.storage} --accumulate {precision.accumulate}"
    return Report(
        target=target,
        spec=name,
        spec_json="",
        precision={"storage": precision.storage, "accumulate": precision.accumulate},
        level=level,
        seed=seed,
        verdict=verdict,
        summary=summaries[verdict],
        not_covered=tuple(left_out),
        results=results,
        stages=(stage,),
        findings=findings,
        counterexample=counterexample,
        reproduce=f"coatref check {shlex.quote(target)}{restriction}",
        versions={"coatref": coatref.__version__, "numpy": np.__version__},
        seconds=seconds,
    )


def findings_of(
    name: str, done: list[Tried], wrong: list[Tried], precision: Precision, counterexample: Counterexample | None
) -> tuple[Finding, ...]:
    """The mistakes: those that reproduce all values, and what went wrong without a value."""
    found: list[Finding] = []
    seen = [
        Observed(one.call, one.found, one.result.verdict == "fail")
        for one in done
        if one.found is not None and np.all(np.isfinite(one.found)) and one.result.verdict != "cannot judge"
    ]
    cases = tuple(one.result.case for one in wrong if one.found is not None and np.all(np.isfinite(one.found)))
    if cases:
        mistakes = diagnose(name, seen, precision)
        if mistakes:
            sentence = f"The candidate {', and it '.join(mistake.sentence for mistake in mistakes)}."
            label = " + ".join(mistake.name for mistake in mistakes)
            found.append(Finding(name, (), sentence, mistake=label, cases=cases))
        else:
            smallest = counterexample.sentence if counterexample else ""
            sentence = f"No known mistake reproduces what it gives; the smallest counterexample is {smallest}."
            found.append(Finding(name, (), sentence, cases=cases))
    without = [one for one in wrong if one.found is not None and not np.all(np.isfinite(one.found))]
    if without:
        large = all("large" in one.result.case or "tails" in one.result.case for one in without)
        why = "the exponential of a large number overflows" if large else "NaN or infinity where numbers are finite"
        where = tuple(one.result.case for one in without)
        found.append(Finding(name, (), f"The candidate gives values that are not finite: {why}.", cases=where))
    problems: dict[str, list[str]] = {}
    for one in wrong:
        if one.result.problem:
            problems.setdefault(one.result.problem, []).append(one.result.case)
    for problem, names in list(problems.items())[:8]:
        found.append(Finding(name, (), f"In {len(names)} calls {problem}.", cases=tuple(names)))
    return tuple(found)


def counterexample_of(name: str, target: str, precision: Precision, one: Tried) -> Counterexample:
    """The smallest failing call, as a script."""
    shapes = ", ".join(f"{key} {array.shape}" for key, array in one.call.arrays().items())
    plain = {key: value for key, value in one.call.plain().items() if key != "block"}
    options = "".join(f", {key} {value!r}" for key, value in plain.items())
    comparison = one.result.comparisons[0] if one.result.comparisons else None
    what = one.result.problem
    if comparison is not None and comparison.found is not None:
        what = f"element {comparison.worst} is {comparison.found:.9g} and should be {comparison.expected:.9g}"
    elif comparison is not None:
        what = comparison.reason
    sentence = f"{name} with {shapes}{options}: {what}"
    call = one.call.recipe or "amplifier(...)"
    script = "\n".join(
        (
            "from coatref.conformance.primitive_judge import amplifier, drawn, show",
            "from coatref.conformance.targets.op import candidate",
            "",
            f"function = candidate({target!r}, storage={precision.storage!r})",
            f"show({name!r}, function, {call}, {precision.storage!r}, {precision.accumulate!r})",
            "",
        )
    )
    return Counterexample(sentence, one.result.case, script)
