"""What a candidate computes instead: the smallest change of the definition that gives what it gives.

Every known mistake and every change of one spec field is put into the definition, and the outputs are compared with the
candidate's on the cases that it failed. One that explains a failed case, and breaks none that passed, is found; with it in
place the search goes on for what is still unexplained, so that several mistakes are found one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coatref.conformance.cases import Case
from coatref.conformance.error_model.verdict import compare
from coatref.conformance.evaluate import OUTPUT, Answer, answer
from coatref.conformance.mistakes.changed import Changed, compute
from coatref.conformance.mistakes.mistake import Mistake
from coatref.conformance.precision import Precision
from coatref.conformance.run_case import Outcome

Memo = dict[tuple[str, ...], Any]  # (case, mistakes...) -> output in float64, or None where they cannot be made
CLOSER = 0.5  # a change is looked at more closely if it leaves at most this part of the error
LOOKED_AT = 10  # changes confirmed for one case
COMPARED = 6  # of them, compared on all other cases too


@dataclass(frozen=True)
class Diagnosis:
    """The mistakes found.

    Attributes:
        mistakes: in the order they were found.
        evidence: name of a mistake -> names of the cases that it was found in or that it explains.
        unexplained: failed cases that no known change reproduces.
        complete: whether the search was not cut for time.
    """

    mistakes: tuple[Mistake, ...] = ()
    evidence: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unexplained: tuple[Outcome, ...] = ()
    complete: bool = True


@dataclass(frozen=True)
class Search:
    """What a search goes over.

    Attributes:
        outcomes: every case that was run and gave an output.
        hypotheses: changes to try.
        precision: as declared.
        probes: of the error model, to confirm.
        memo: outputs computed before; the caller's own, and filled by the search.
        until: time.perf_counter() at which to stop.
    """

    outcomes: Sequence[Outcome]
    hypotheses: Sequence[Mistake]
    precision: Precision
    probes: int
    memo: Memo
    until: float


def diagnose(search: Search) -> Diagnosis:
    """Find the mistakes behind the failed cases."""
    found: list[Mistake] = []
    failing = [outcome for outcome in search.outcomes if outcome.failed and outcome.answer is not None]
    failing.sort(key=lambda outcome: outcome.case.primitive == "")  # those that look at one part first
    evidence: dict[str, list[str]] = {}
    open_cases, progress = failing, True
    complete = True
    while open_cases and progress:
        progress = False
        for outcome in list(open_cases):
            if time.perf_counter() > search.until:
                complete = False
                break
            if found and explained(search, outcome, found):
                for mistake in relevant(search, outcome, found):
                    evidence.setdefault(mistake.name, []).append(outcome.case.name)
                open_cases = [each for each in open_cases if each is not outcome]
                continue
            best = best_change(search, outcome, found)
            if best is not None:
                found.append(best)
                evidence.setdefault(best.name, []).append(outcome.case.name)
                open_cases = [each for each in open_cases if each is not outcome]
                progress = True
        if not complete:
            break
    return Diagnosis(
        tuple(found), {name: tuple(cases) for name, cases in evidence.items()}, tuple(open_cases), complete
    )


def relevant(search: Search, outcome: Outcome, found: Sequence[Mistake]) -> list[Mistake]:
    """Those of several mistakes without which a case is no longer explained."""
    if len(found) == 1:
        return list(found)
    return [
        mistake
        for mistake in found
        if not explained(search, outcome, [other for other in found if other is not mistake])
    ]


def best_change(search: Search, outcome: Outcome, found: Sequence[Mistake]) -> Mistake | None:
    """The change that, with those found before, explains a case, and most of the others; None if there is none.

    Changes of the part that the case looks at are tried first, and suffice if one of them fits all cases.
    """
    wrong = error(outcome, None)
    if wrong == float("inf"):  # nothing can be nearer to what is not finite, or of another shape
        return None
    named = {each.name for each in found}
    untried = [mistake for mistake in search.hypotheses if mistake.name not in named]
    same_part = [mistake for mistake in untried if mistake.primitive == outcome.case.primitive]
    close: list[tuple[float, Mistake]] = []
    best = None
    for part in (same_part, [mistake for mistake in untried if mistake.primitive != outcome.case.primitive]):
        for mistake in part:
            if time.perf_counter() > search.until:
                break
            left = error(outcome, output(search, outcome.case, [*found, mistake]))
            if left <= CLOSER * wrong:
                close.append((left, mistake))
        best = best_of(search, outcome, found, close)
        if best is not None and fits_everywhere(search, [*found, best]):
            break
    return best


def best_of(
    search: Search, outcome: Outcome, found: Sequence[Mistake], close: Sequence[tuple[float, Mistake]]
) -> Mistake | None:
    """The change among near ones that explains a case, and most of the others."""
    nearest = sorted(close, key=lambda pair: pair[0])[:LOOKED_AT]
    fitting = [mistake for _, mistake in nearest if explained(search, outcome, [*found, mistake])]
    if len(fitting) <= 1:
        return fitting[0] if fitting else None
    scores = [(score(search, [*found, mistake]), -place, mistake) for place, mistake in enumerate(fitting[:COMPARED])]
    return max(scores, key=lambda entry: entry[:2])[2]


def fits_everywhere(search: Search, mistakes: Sequence[Mistake]) -> bool:
    """Whether mistakes give what the candidate gives in every case, failed or passed."""
    compared = [outcome for outcome in search.outcomes if outcome.answer is not None]
    return all(quickly_explained(search, outcome, mistakes) for outcome in compared)


def score(search: Search, mistakes: Sequence[Mistake]) -> float:
    """Failed cases explained, less twice the passed ones broken."""
    total = 0.0
    for outcome in search.outcomes:
        if outcome.answer is None:
            continue
        fits = quickly_explained(search, outcome, mistakes)
        total += float(fits) if outcome.failed else (0.0 if fits else -2.0)
    return total


def quickly_explained(search: Search, outcome: Outcome, mistakes: Sequence[Mistake]) -> bool:
    """Whether the mistakes give the candidate's output to within the rounding of the definition."""
    assert outcome.answer is not None
    changed = output(search, outcome.case, mistakes)
    if changed is None or changed.shape != outcome.answer.expected[OUTPUT].shape or not np.all(np.isfinite(changed)):
        return False
    deviations = plain_answer(search, outcome).deviations[OUTPUT]
    return compare(OUTPUT, outcome.found[OUTPUT], changed, deviations, search.precision).verdict == "pass"


def explained(search: Search, outcome: Outcome, mistakes: Sequence[Mistake]) -> bool:
    """Whether the mistakes give the candidate's output to within the rounding of the definition with them."""
    if quickly_explained(search, outcome, mistakes):
        return True
    changed = output(search, outcome.case, mistakes)
    if changed is None or error(outcome, changed) > CLOSER * error(outcome, None):
        return False
    case = outcome.case
    try:
        own = answer(composed(case, mistakes), case.params, case.x, search.precision, {}, search.probes)
    except Exception:  # noqa: BLE001 - a change whose rounding cannot be modelled is compared as above only
        return False
    if own.overflow or not np.all(np.isfinite(own.expected[OUTPUT])):
        return False
    return (
        compare(OUTPUT, outcome.found[OUTPUT], own.expected[OUTPUT], own.deviations[OUTPUT], search.precision).verdict
        == "pass"
    )


def plain_answer(search: Search, outcome: Outcome) -> Answer:
    """The definition's answer to a case when none of the candidate's values stand in for its own."""
    assert outcome.answer is not None
    if set(outcome.answer.expected) == {OUTPUT}:
        return outcome.answer
    key = (outcome.case.name, "the definition, unforced")
    if key not in search.memo:
        case = outcome.case
        search.memo[key] = answer(Changed(case.spec), case.params, case.x, search.precision, {}, search.probes)
    known: Answer = search.memo[key]
    return known


def error(outcome: Outcome, output: Any) -> float:
    """Root mean square difference of the candidate's output from another; from the definition's for None."""
    assert outcome.answer is not None
    expected = outcome.answer.expected[OUTPUT] if output is None else output
    found = outcome.found[OUTPUT]
    if found.shape != np.shape(expected) or not (np.all(np.isfinite(found)) and np.all(np.isfinite(expected))):
        return float("inf")
    return float(np.sqrt(np.mean(np.square(found - expected))))


def composed(case: Case, mistakes: Iterable[Mistake]) -> Changed:
    """The definition of a case with mistakes put in."""
    changed = Changed(case.spec)
    for mistake in mistakes:
        changed = mistake.change(changed)
    return changed


def output(search: Search, case: Case, mistakes: Sequence[Mistake]) -> Any:
    """The output of the definition with mistakes put in, in float64; None where they cannot be made or run."""
    several = case.check in ("random", "law")  # a name that stands for other parameters or images with another spec
    key = (case.name, case.spec.to_json() if several else "", *(mistake.name for mistake in mistakes))
    if key not in search.memo:
        try:
            with np.errstate(all="ignore"):
                search.memo[key] = compute(composed(case, mistakes), case.params, case.x)
        except Exception:  # noqa: BLE001 - a change that cannot be computed explains nothing
            search.memo[key] = None
    return search.memo[key]
