"""A report taken apart by kind of check, as pytest shows it: one test for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from coatref.conformance.report.results import CaseResult, Check, Report
from coatref.errors import CoatrefError

CHECKS: tuple[Check, ...] = get_args(Check)
STALE = "expected failures"  # the test that looks for entries of `expected_failed` that are no longer true

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
    return f"{report.target}: {' '.join(report.summary.split())}"


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

    A report that does not pass makes at least one kind fail, unless every failure was expected.

    Args:
        report: the judgement.
        check: one of CHECKS, or STALE.
        expected: name of a case, of a mistake that was found, or of a kind of check -> why it is expected to fail.
    """
    if check == STALE:
        lines = stale(report, expected)
        return KindResult(check, report, (), "fail" if lines else "pass", "\n".join(lines))
    cases = tuple(case for case in report.results if case.check == check)
    wrong = [case for case in cases if case.verdict == "fail" or (case.verdict != "pass" and not report.conforms)]
    reasons = {case.case: reason for case in wrong if (reason := why_expected(report, case, expected)) is not None}
    surprising = [case for case in wrong if case.case not in reasons]
    if surprising:
        return KindResult(check, report, cases, "fail", failure_text(report, surprising))
    if wrong:
        return KindResult(check, report, cases, "expected", "; ".join(dict.fromkeys(reasons.values())))
    if not report.conforms and all(case.verdict == "pass" for case in report.results):
        return KindResult(check, report, cases, "fail", failure_text(report, []))  # no case says why
    if not any(case.verdict == "pass" for case in cases):
        reason = "; ".join(dict.fromkeys(case.problem for case in cases if case.problem))
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
    """What a failed test prints: the verdict, the cases, the mistakes that explain them, the command to repeat it."""
    names = {case.case for case in cases}
    findings = [finding for finding in report.findings if not cases or not finding.cases or names & set(finding.cases)]
    lines = [verdict_line(report)]
    for case in cases:
        lines += ["", *case_lines(case)]
    for finding in findings:
        where = f" in {', '.join(finding.places)}" if finding.places else ""
        lines += ["", f"found{where}: {finding.sentence}" + (f" [{finding.mistake}]" if finding.mistake else "")]
    if report.conforms_to:
        lines += ["", f"It conforms to {report.conforms_to}."]
    if report.reproduce:
        lines += ["", f"reproduce: {report.reproduce}"]
    return "\n".join(lines)


def case_lines(case: CaseResult) -> list[str]:
    """One case in a few lines: what it shows, and its worst values."""
    size = "x".join(map(str, case.image))
    lines = [f"{case.verdict}: {case.case} ({case.spec}, images {size}): {case.about}"]
    if case.problem:
        lines.append(f"  {case.problem}")
    wrong = [comparison for comparison in case.comparisons if comparison.verdict != "pass"]
    for comparison in wrong[:5]:
        margin = "" if comparison.margin is None else f", {comparison.margin:.3g} times what rounding explains"
        lines.append(f"  {comparison.value}: {comparison.reason or comparison.verdict}{margin}")
    if len(wrong) > 5:
        lines.append(f"  and {len(wrong) - 5} more values")
    return lines
