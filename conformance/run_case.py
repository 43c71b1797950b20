"""One case given to a candidate: its output, and the comparisons with the definition's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coatref.conformance.cases import Case
from coatref.conformance.error_model.verdict import scatter
from coatref.conformance.evaluate import OUTPUT, Answer, answer, comparisons
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.precision import FORMATS, Precision, as_stored
from coatref.conformance.report.results import CaseResult, Comparison, Scatter, Verdict
from coatref.conformance.target import Target
from coatref.errors import LibraryError, WeightsError
from coatref.params import Params, from_flat
from coatref.registry import library_of


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        case: that was run.
        result: for the report.
        found: the candidate's values in float64; empty where it gave none that can be compared.
        answer: the definition's; None where the candidate gave nothing to compare it with.
    """

    case: Case
    result: CaseResult
    found: Mapping[str, Any] = field(default_factory=dict)
    answer: Answer | None = None

    @property
    def failed(self) -> bool:
        """Whether the case shows a mistake."""
        return self.result.verdict == "fail"


NO_SCATTER = Scatter()


class Unusable(Exception):
    """A candidate's output cannot be compared with anything."""


def handed(params: Params, precision: Precision) -> Params:
    """Parameters as a candidate gets them: in the storage type."""
    return from_flat(params.spec, {name: as_stored(a, precision.storage) for name, a in params.flatten().items()})


def outputs(target: Target, case: Case) -> dict[str, Any]:
    """The candidate's values in float64.

    Raises:
        Unusable: it fails, or gives no logits, or values that are no floating arrays; the message is a clause.
    """
    stored = handed(case.params, target.precision)
    try:
        given = target.run(stored, as_stored(case.x, target.precision.storage))
    except WeightsError as error:
        raise Unusable(f"it does not take the parameters of the spec: {error}") from error
    except (Exception, SystemExit) as error:  # a program that leaves must not leave with the judge
        raise Unusable(f"it raised {type(error).__name__}: {str(error)[:400]}") from error
    if not isinstance(given, Mapping) or OUTPUT not in given:
        kind = f"{', '.join(map(str, given))}" if isinstance(given, Mapping) else type(given).__name__
        raise Unusable(f"it gave no {OUTPUT!r} (it gave: {kind or 'nothing'})")
    return {str(name): widened(str(name), value, target.precision) for name, value in given.items()}


def widened(name: str, value: Any, precision: Precision) -> np.ndarray:
    """A value of any array library as NumPy float64.

    Raises:
        Unusable: it is no array, or not floating, or of a narrower type than declared.
    """
    try:
        array = value if isinstance(value, np.ndarray) else library_of(value).to_numpy(value)
    except LibraryError:
        raise Unusable(f"its {name!r} is no array but {type(value).__name__}") from None
    except Exception as error:  # each library has its own
        raise Unusable(f"its {name!r} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    array = np.asarray(array)
    dtype = array.dtype.name
    if dtype not in FORMATS:
        raise Unusable(f"its {name!r} has the data type {dtype}, and {precision.storage} was declared")
    declared, given = FORMATS[precision.storage][0], FORMATS[dtype][0]
    if given < declared:
        raise Unusable(f"its {name!r} has the data type {dtype}, narrower than the declared {precision.storage}")
    return array.astype(np.float64)


def run_case(target: Target, case: Case, probes: int, seed: int, known: Answer | None = None) -> Outcome:
    """Give a case to a candidate and compare.

    Args:
        target: the candidate.
        case: parameters and images.
        probes: of the error model.
        seed: of the probes.
        known: the definition's answer where it was computed before; only used where the candidate gives nothing but its
            output, since traced values change what the definition is run on.
    """
    began = time.perf_counter()
    try:
        found = outputs(target, case)
        if case.primitive:  # a probe isolates one part by itself, and is judged by what reaches the output
            found = {OUTPUT: found[OUTPUT]}
    except Unusable as problem:
        return Outcome(case, result_of(case, "fail", (), str(problem), began))
    if known is None or set(found) != {OUTPUT}:
        known = answer(Changed(case.spec), case.params, case.x, target.precision, found, probes, seed)
    compared = tuple(comparisons(found, known, target.precision))
    unknown = sorted(set(found) - set(known.expected))
    if unknown:
        names = ", ".join(unknown[:5])
        compared += (Comparison(unknown[0], "fail", reason=f"a trace of this spec has no value named {names}"),)
    drawn = scatter(found[OUTPUT], known.expected[OUTPUT], known.deviations[OUTPUT], target.precision)
    return Outcome(case, result_of(case, verdict_of(compared), compared, "", began, drawn), found, known)


def verdict_of(compared: tuple[Comparison, ...]) -> Verdict:
    """Fail if any fails, else pass if any passes."""
    verdicts = {each.verdict for each in compared}
    return "fail" if "fail" in verdicts else "pass" if "pass" in verdicts else "cannot judge"


def result_of(
    case: Case,
    verdict: Verdict,
    compared: tuple[Comparison, ...],
    problem: str,
    began: float,
    drawn: Scatter = NO_SCATTER,
) -> CaseResult:
    """A case and what came of it, for the report."""
    return CaseResult(
        case.name,
        case.check,
        case.about,
        case.spec.name,
        (case.x.shape[0], case.x.shape[1], case.x.shape[2]),
        verdict,
        compared,
        problem,
        drawn,
        seconds=time.perf_counter() - began,
    )
