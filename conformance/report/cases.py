"""The tables of cases and comparisons on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable

from coatref.conformance.report import words
from coatref.conformance.report.markup import Markup, joined, section, tag
from coatref.conformance.report.results import CaseResult, Comparison, Report
from coatref.conformance.report.words import line, number

_OPEN = 3  # failing cases whose comparisons are shown without a click
_ROWS = {"fail": 40, "cannot judge": 10, "pass": 5}  # comparisons that are shown of a case
_WORDS = {"pass": "pass", "fail": "FAIL", "cannot judge": "not judged"}


def cases(report: Report) -> Markup:
    """Failing cases in detail, then the table of all cases, then the comparisons of the others."""
    failing = words.failing(report)
    parts = []
    if failing:
        shown = (_detail(case, opened=place < _OPEN) for place, case in enumerate(failing))
        parts.append(section(f"Failing cases ({len(failing)} of {len(report.results)})", *shown, anchor="failing"))
    if report.results:
        others = [case for case in report.results if case.verdict != "fail" and case.comparisons]
        closed = tag("details", tag("summary", "Comparisons of the other cases"), *(map(_detail, others)))
        parts.append(section("All cases", _table(report.results), closed if others else "", anchor="cases"))
    return joined(*parts)


def _verdict(verdict: str) -> Markup:
    """A verdict as a cell, told by a mark and a word."""
    mark = tag("span", words.MARKS[verdict], class_="mark", aria_hidden="true")
    return tag("td", mark, " ", _WORDS[verdict], class_=f"is-{verdict.replace(' ', '-')}")


def _scrolling(label: str, head: Iterable[str], rows: Iterable[Markup]) -> Markup:
    """A table in a box of its own, which scrolls sideways where it is too wide."""
    columns = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head)))
    table = tag("table", columns, tag("tbody", *rows))
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _table(results: Iterable[CaseResult]) -> Markup:
    """One row for each case."""
    rows = (
        tag(
            "tr",
            tag("th", line(case.case), scope="row"),
            _verdict(case.verdict),
            tag("td", number(case.margin), class_="figure"),
            tag("td", line(case.check)),
            tag("td", "x".join(map(str, case.image))),
            tag("td", line(case.spec)),
            tag("td", f"{case.seconds:.2f}", class_="figure"),
            tag("td", line(case.problem) or line(case.about), class_="wide"),
        )
        for case in results
    )
    head = ("case", "verdict", "error/bound", "check", "images", "spec", "seconds", "what it would show")
    return _scrolling("All cases", head, rows)


def _detail(case: CaseResult, opened: bool = False) -> Markup:
    """One case with its comparisons; first of all the value that fails first."""
    first = words.first_failure(case)
    worst = ""
    if first is not None:
        reason = line(first.reason) or "The error exceeds its bound."
        worst = joined(
            tag("p", tag("b", line(first.value)), f" fails first. {reason}"),
            tag("p", tag("code", words.element(first))) if words.element(first) else "",
        )
    margin = "" if case.margin is None else f", error/bound {number(case.margin)}"
    return tag(
        "details",
        tag("summary", tag("b", line(case.case)), f" ({'x'.join(map(str, case.image))}{margin})"),
        tag("p", line(case.about)) if case.about else "",
        tag("p", line(case.problem), class_="problem") if case.problem else "",
        worst,
        _comparisons(case) if case.comparisons else "",
        open=opened,
    )


def _comparisons(case: CaseResult) -> Markup:
    """The comparisons of a case in order of computation: all of a few, else those that matter most."""
    most = _ROWS[case.verdict]
    ranked = sorted(range(len(case.comparisons)), key=lambda place: _rank(case.comparisons[place]))
    shown = [case.comparisons[place] for place in sorted(ranked[:most])]
    left = len(case.comparisons) - len(shown)
    head = (
        "value",
        "verdict",
        "error/bound",
        "element",
        "rms",
        "bias",
        "worst",
        "expected",
        "found",
        "bound",
        "elements",
    )
    note = tag(
        "p", f"{words.counted(left, 'comparison')} with smaller margins left out; the JSON has all.", class_="note"
    )
    return joined(_scrolling(f"Comparisons of {line(case.case)}", head, map(_row, shown)), note if left else "")


def _rank(comparison: Comparison) -> tuple[bool, float]:
    """Failing values first, then larger margins first; NaN is the largest."""
    margin = comparison.margin
    size = 0.0 if margin is None else math.inf if math.isnan(margin) else margin
    return comparison.verdict != "fail", -size


def _row(comparison: Comparison) -> Markup:
    """One comparison."""
    margins = (comparison.margin, comparison.element_margin, comparison.rms_margin, comparison.bias_margin)
    values = (comparison.expected, comparison.found)
    return tag(
        "tr",
        tag("th", line(comparison.value), scope="row", title=line(comparison.reason) or None),
        _verdict(comparison.verdict),
        *(tag("td", number(margin), class_="figure") for margin in margins),
        tag("td", ", ".join(map(str, comparison.worst)) or "-"),
        *(tag("td", number(value, 7), class_="figure") for value in values),
        tag("td", number(comparison.bound), class_="figure"),
        tag("td", f"{comparison.elements:,}", class_="figure"),
    )
