"""A report taken apart by kind of check, as pytest shows it: one test for each kind."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from coatref.conformance.report.results import CaseResult, Check, Report
from coatref.conformance.report.words import HEADLINES, headline
from coatref.errors import CoatrefError

CHECKS: tuple[Check, ...] = get_args(Check)
STALE = "expected failures"  # the test that looks for entries of `expected_failed` that are no longer true

WIDTH = 100  # columns of a failed test's message

Status = Literal["pass", "fail", "skip", "expected"]


@dataclass(frozen=True)
class KindResult:
    """What one kind of check found: the value that a parametrized test is called with.

    Attributes:
        check: "wiring", "amplifier", ... or "expected failures".
        report: the whole judgement.
        cases: those of this kind.
        status: "expected" where every failing case was expected to fail.
        message: why it is not "pass"; "" where it is.
    """

    check: str
    report: Report
    cases: tuple[CaseResult, ...]
    status: Status
    message: str = ""


def id_of(check: str) -> str:
    """A kind of check as part of the name of a test.

    >>> id_of("as given")
    'as-given'
    """
    return check.replace(" ", "-")


def verdict_line(report: Report) -> str:
    """The judgement in one line."""
    return f"{HEADLINES[report.verdict]}  {headline(report)}"


def judged_once(stash: Any, key: Any, judge: Callable[[], Report]) -> Report:
    """The report under a key of a mapping, judged when first asked for; an error is kept there too, and raised again.

    Raises:
        CoatrefError, OSError: the target could not be judged at all.
    """
    if key not in stash:
        try:
            stash[key] = judge()
        except (CoatrefError, OSError) as error:
            stash[key] = error
    found: Report | Exception = stash[key]
    if isinstance(found, Exception):
        raise found
    return found


def kind_result(report: Report, check: str, expected: Mapping[str, str]) -> KindResult:
    """What a kind of check found.

    A report that does not pass makes at least one kind fail, unless every failure was expected. A case that could not be
    judged counts only where the whole could not.

    Args:
        report: the judgement.
        check: one of CHECKS, or STALE.
        expected: name of a case, of a mistake that was found, or of a kind of check -> why it is expected to fail.
    """
    if check == STALE:
        lines = stale(report, expected)
        return KindResult(check, report, (), "fail" if lines else "pass", "\n".join(lines))
    cases = tuple(case for case in report.results if case.check == check)
    wrong = [case for case in cases if case.verdict in ("fail", report.verdict) and case.verdict != "pass"]
    reasons = {case.case: reason for case in wrong if (reason := why_expected(report, case, expected)) is not None}
    surprising = [case for case in wrong if case.case not in reasons]
    if surprising:
        return KindResult(check, report, cases, "fail", failure_text(report, surprising))
    if wrong:
        return KindResult(check, report, cases, "expected", "; ".join(dict.fromkeys(reasons.values())))
    if not report.conforms and all(case.verdict == "pass" for case in report.results):
        return KindResult(check, report, cases, "fail", failure_text(report, []))  # no case says why
    if not any(case.verdict == "pass" for case in cases):
        reason = "; ".join(dict.fromkeys(why_unjudged(case) for case in cases))
        return KindResult(check, report, cases, "skip", reason or f"the judgement has no case of the kind {check!r}")
    return KindResult(check, report, cases, "pass")


def why_expected(report: Report, case: CaseResult, expected: Mapping[str, str]) -> str | None:
    """The reason for which a case was expected to fail; None where it was not."""
    found = [finding.mistake for finding in report.findings if case.case in finding.cases]
    return next((expected[name] for name in (case.case, *found, case.check) if name in expected), None)


def stale(report: Report, expected: Mapping[str, str]) -> list[str]:
    """A sentence for each expected failure that did not come."""
    failing = {case.case for case in report.results if case.verdict != "pass"}
    failing |= {case.check for case in report.results if case.verdict != "pass"}
    failing |= {finding.mistake for finding in report.findings}
    ran = {case.case for case in report.results} | {case.check for case in report.results}
    return [
        f"stale expected failure: {name} no longer fails; remove it"
        if name in ran
        else f"stale expected failure: {name} is no case that ran and no mistake that was found; remove it"
        for name in expected
        if name not in failing
    ]


def failure_text(report: Report, cases: list[CaseResult]) -> str:
    """What a failed test prints: the report on these cases, and on the mistakes that explain them.

    Args:
        report: the judgement.
        cases: that fail or could not be judged; empty: the report is not one of cases, and all of it is shown.
    """
    from rich.console import Console

    from coatref.conformance.report.text import render

    names = {case.case for case in cases}
    if cases:
        smallest = report.counterexample
        report = dataclasses.replace(
            report,
            results=tuple(cases),
            findings=tuple(found for found in report.findings if not found.cases or names & set(found.cases)),
            counterexample=smallest if smallest is not None and smallest.case in names else None,
        )
    report = dataclasses.replace(report, stages=(), excludes=(), not_covered=())
    text = io.StringIO()
    render(report, Console(file=text, width=WIDTH, no_color=True, markup=False, highlight=False, emoji=False))
    unjudged = [line for case in cases if case.verdict == "cannot judge" for line in unjudged_lines(case)]
    return "\n".join([text.getvalue().rstrip(), *unjudged])


def unjudged_lines(case: CaseResult) -> list[str]:
    """A case that could not be judged, and why, in two lines."""
    return [f"Not judged: {case.case}: {case.about}", f"  {why_unjudged(case)}"]


def why_unjudged(case: CaseResult) -> str:
    """Why a case could not be judged."""
    reasons = dict.fromkeys(comparison.reason for comparison in case.comparisons if comparison.reason)
    return case.problem or "; ".join(list(reasons)[:3]) or f"{case.case} could not be judged"
