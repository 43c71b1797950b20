"""A report as one self-contained HTML page: no script, nothing loaded from elsewhere, readable on a phone."""

from __future__ import annotations

import importlib.resources
import json

from coatref.conformance.report import words
from coatref.conformance.report.cases import cases
from coatref.conformance.report.heat_maps import pair
from coatref.conformance.report.markup import Markup, joined, section, tag
from coatref.conformance.report.network import network
from coatref.conformance.report.plots import plots
from coatref.conformance.report.results import Finding, Report
from coatref.conformance.report.words import line

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # a browser runs and loads nothing, whatever the texts hold


def page(report: Report) -> str:
    """The whole page, as text to be written in UTF-8."""
    title = f"{words.HEADLINES[report.verdict]}: {line(report.target)}"
    style = (importlib.resources.files("coatref.conformance.report") / "page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} - coatref"),
        tag("style", Markup(style)),  # ours, and without a closing tag in it
    )
    body = (
        _verdict(report),
        _findings(report),
        network(report),
        plots(report),
        cases(report),
        _counterexample(report),
        _sentences("What this pass excludes" if report.conforms else "What is excluded", report.excludes),
        _sentences("What was not covered", report.not_covered),
        _reproduce(report),
    )
    content = tag("body", tag("main", *body))
    return f'<!DOCTYPE html>\n<html lang="en">{head}{content}</html>\n'


def _verdict(report: Report) -> Markup:
    """What was judged and what came out."""
    kind = report.verdict.replace(" ", "-")
    facts = (
        ("target", report.target),
        ("claims to be", report.spec),
        ("precision", words.precision(report.precision)),
        ("cases", words.tally(report)),
        ("level", f"{report.level}, seed {report.seed}, {report.seconds:.1f} s"),
    )
    other = (
        tag("p", "It conforms to ", tag("strong", line(report.conforms_to)), f", not to {line(report.spec)}.")
        if report.conforms_to
        else ""
    )
    return tag(
        "header",
        tag(
            "h1",
            tag("span", words.MARKS[report.verdict], class_="mark", aria_hidden="true"),
            words.HEADLINES[report.verdict],
        ),
        tag("p", words.headline(report), class_="headline"),
        other,
        tag("dl", *(joined(tag("dt", label), tag("dd", line(value))) for label, value in facts), class_="facts"),
        class_=f"verdict {kind}",
    )


def _findings(report: Report) -> Markup:
    """The diagnosis."""
    if not report.findings:
        if report.verdict != "fail":
            return joined()
        return section(
            "What is wrong", tag("p", "No mistake could be named; see the failing cases."), anchor="findings"
        )
    shown = (_finding(place, finding) for place, finding in enumerate(report.findings, start=1))
    return section("What is wrong", *shown, anchor="findings")


def _finding(place: int, finding: Finding) -> Markup:
    """One mistake: its sentence, where it is, and what that rests on."""
    rows = (joined(tag("dt", label), tag("dd", content)) for label, content in words.evidence(finding))
    return tag(
        "article",
        tag("h3", tag("span", str(place), class_="number"), line(finding.primitive) or "not identified"),
        tag("p", line(finding.sentence)),
        tag("dl", *rows, class_="facts"),
        "" if finding.heat_map is None else pair(finding.heat_map),
        class_="finding",
        id=f"finding-{place}",
    )


def _counterexample(report: Report) -> Markup:
    """The smallest failing configuration, as a script."""
    smallest = report.counterexample
    if smallest is None:
        return joined()
    saved = tag("p", "Its inputs and outputs are saved in ", tag("code", line(smallest.file)), ".")
    return section(
        "Smallest failing configuration",
        tag("p", f"{line(smallest.sentence)} (case {line(smallest.case)})"),
        saved if smallest.file else "",
        _box(smallest.script, "Script that shows the failure"),
        anchor="counterexample",
    )


def _sentences(title: str, sentences: tuple[str, ...]) -> Markup:
    """A list of sentences."""
    if not sentences:
        return joined()
    anchor = "excludes" if title.endswith(("excludes", "excluded")) else "not-covered"
    return section(title, tag("ul", *(tag("li", line(sentence)) for sentence in sentences)), anchor=anchor)


def _reproduce(report: Report) -> Markup:
    """The command, the versions, and the spec."""
    versions = (
        tag("tr", tag("th", line(name), scope="row"), tag("td", line(version)))
        for name, version in report.versions.items()
    )
    return section(
        "Reproduce",
        _box(report.reproduce, "Command line") if report.reproduce else tag("p", "No command line was given."),
        tag(
            "details",
            tag("summary", f"The spec {line(report.spec)} as JSON"),
            _box(_indented(report.spec_json), "Spec"),
        ),
        tag("h3", "Versions"),
        tag("div", tag("table", tag("tbody", *versions)), class_="scroll") if report.versions else "",
        anchor="reproduce",
    )


def _box(content: str, label: str) -> Markup:
    """Text as it is, in a box of its own that scrolls, with the keyboard too."""
    return tag("pre", tag("code", content), class_="scroll", tabindex="0", role="region", aria_label=label)


def _indented(text: str) -> str:
    """JSON text with line breaks; any other text as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
