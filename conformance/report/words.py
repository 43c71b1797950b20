"""What the terminal and the page say alike: the verdict in words, the numbers as text, and what to show first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from coatref.conformance.report.results import CaseResult, Comparison, Finding, Report, Stage

HEADLINES = {"pass": "CONFORMS", "fail": "FAILS", "cannot judge": "CANNOT BE JUDGED"}
MARKS = {"pass": "\N{CHECK MARK}", "fail": "\N{MULTIPLICATION X}", "cannot judge": "?"}  # beside colour and words
_VERBS = {
    "pass": "{target} computes {spec} in {precision}",
    "fail": "{target} does not compute {spec} in {precision}",
    "cannot judge": "{target} could not be compared with {spec} in {precision}",
}
_SHOWN_NAMES = 8


def printable(text: str) -> str:
    """A text with every control character, and every one that reorders text, replaced; line breaks and tabs stay.

    >>> printable("a" + chr(27) + "[31m" + chr(0x202E)) == "a" + chr(0xFFFD) + "[31m" + chr(0xFFFD)
    True
    """
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def line(text: str) -> str:
    """A text on one line, without control characters."""
    return printable(" ".join(text.split()))


def headline(report: Report) -> str:
    """The verdict in one sentence that names the target."""
    summary = line(report.summary)
    if line(report.target) in summary and summary:
        return summary
    verb = _VERBS[report.verdict].format(
        target=line(report.target), spec=line(report.spec), precision=precision(report.precision)
    )
    return f"{verb}: {summary}" if summary else f"{verb}."


def precision(declared: Mapping[str, str]) -> str:
    """A declared precision in words.

    >>> precision({"storage": "bfloat16", "accumulate": "float32"}), precision({})
    ('bfloat16 accumulated in float32', 'an undeclared precision')
    """
    storage, accumulate = (line(declared.get(name, "")) for name in ("storage", "accumulate"))
    if not storage:
        return "an undeclared precision"
    return storage if accumulate in ("", storage) else f"{storage} accumulated in {accumulate}"


def number(value: float | None, digits: int = 3) -> str:
    """A number as short text, "-" for none.

    >>> [number(x) for x in (None, 0.0, 0.31234, 41.0, 1.5e-9, 123456.0, math.inf, math.nan)]
    ['-', '0', '0.312', '41', '1.5e-9', '1.23e5', 'inf', 'nan']
    """
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(float(value))
    size = abs(value)
    text = f"{value:.{digits}g}" if 1e-4 <= size < 10 ** max(digits, 4) else f"{value:.{digits - 1}e}"
    if "e" not in text:
        return text
    mantissa, _, power = text.partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(power)}"


def listed(names: tuple[str, ...], most: int = _SHOWN_NAMES) -> str:
    """Names with commas, at most so many of them.

    >>> listed(("a", "b", "c"), most=2)
    'a, b and 1 more'
    """
    shown = ", ".join(line(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "case"), counted(0, "case")
    ('1 case', '0 cases')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def tally(report: Report) -> str:
    """How many cases there were, and how they came out."""
    counts = {verdict: sum(case.verdict == verdict for case in report.results) for verdict in HEADLINES}
    parts = [f"{counts['fail']} failed"] * bool(counts["fail"]) + [f"{counts['pass']} passed"] * bool(counts["pass"])
    parts += [f"{counts['cannot judge']} not judged"] * bool(counts["cannot judge"])
    return ", ".join([counted(len(report.results), "case"), *parts])


def stage_word(stage: Stage) -> str:
    """The verdict on a stage in a word or two."""
    if stage.verdict == "cannot judge":
        return "not looked at" if stage.margin is None else "cannot judge"
    return "FAIL" if stage.verdict == "fail" else "pass"


def failing(report: Report) -> tuple[CaseResult, ...]:
    """The cases that fail, in their order."""
    return tuple(case for case in report.results if case.verdict == "fail")


def first_failure(case: CaseResult) -> Comparison | None:
    """The first comparison of a case that fails, in order of computation: where a fault enters."""
    return next((found for found in case.comparisons if found.verdict == "fail"), None)


def evidence(finding: Finding) -> Iterator[tuple[str, str]]:
    """Label and text of what a finding rests on, beside its sentence."""
    if finding.places:
        yield "where", listed(finding.places)
    for name, value in finding.fields.items():
        yield "spec field", f"{line(name)} = {line(value)}"
    if finding.tensors:
        yield "tensors", listed(finding.tensors)
    if finding.mistake:
        yield "known mistake", line(finding.mistake)
    if finding.cases:
        yield "shown by", listed(finding.cases, most=4)


def element(comparison: Comparison) -> str:
    """The worst element of a comparison in one line; "" where none was compared."""
    if comparison.expected is None and comparison.found is None:
        return ""
    index = ", ".join(str(step) for step in comparison.worst)
    place = f"{line(comparison.value)}[{index}]" if comparison.worst else line(comparison.value)
    text = f"{place}: expected {number(comparison.expected, 7)}, found {number(comparison.found, 7)}"
    if comparison.expected is not None and comparison.found is not None:
        text += f", error {number(abs(comparison.found - comparison.expected))}"
    return text if comparison.bound is None else f"{text}, bound {number(comparison.bound)}"


def figures(comparison: Comparison) -> str:
    """How far each of the three margins is used, such as "margin 41: element 41, rms 3.1, bias 0.2"."""
    parts = (
        ("element", comparison.element_margin),
        ("rms", comparison.rms_margin),
        ("bias", comparison.bias_margin),
    )
    known = ", ".join(f"{name} {number(value)}" for name, value in parts if value is not None)
    total = f"margin {number(comparison.margin)}" if comparison.margin is not None else ""
    return ": ".join(part for part in (total, known) if part)


def log_share(value: float, low: float, high: float) -> float:
    """Where a value lies between two others on a logarithmic scale, from 0 to 1; NaN is at the top.

    >>> log_share(1.0, 1e-3, 1e3), log_share(0.0, 1e-3, 1e3), log_share(math.inf, 1e-3, 1e3)
    (0.5, 0.0, 1.0)
    """
    if math.isnan(value) or value >= high:
        return 1.0
    if value <= low:
        return 0.0
    return math.log(value / low) / math.log(high / low)
