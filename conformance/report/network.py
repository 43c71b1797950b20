"""The network drawn from stem to logits, one box for each part, coloured by its margin."""

from __future__ import annotations

import itertools

from coatref.conformance.report import words
from coatref.conformance.report.markup import Markup, joined, section, tag
from coatref.conformance.report.results import Report, Stage
from coatref.conformance.report.words import line, number

_LOWEST, _HIGHEST = 1e-4, 1e4  # ends of the bars; 1 is in the middle

# Upper ends of the steps of colour, and what the legend says of each; beyond the last one "m7".
_STEPS = (
    (0.01, "up to 0.01"),
    (0.1, "up to 0.1"),
    (0.5, "up to 0.5"),
    (1.0, "up to 1: passes"),
    (10.0, "up to 10: fails"),
    (1e3, "up to 1000"),
    (1e6, "up to 1e6"),
)


def network(report: Report) -> Markup:
    """The section with the drawing; empty where the report has no stages."""
    if not report.stages:
        return joined()
    groups = itertools.groupby(report.stages, key=lambda stage: stage.name.partition(".")[0])
    rows = [
        tag("li", tag("h3", line(name)), tag("ol", *(_box(report, stage) for stage in stages), class_="blocks"))
        for name, stages in groups
    ]
    return section(
        "The network, from stem to logits",
        tag("p", "The figure is the largest error over its bound; up to 1 conforms.", class_="note"),
        _legend(),
        tag("ol", *rows, class_="network"),
        anchor="network",
    )


def colour(margin: float | None) -> str:
    """The class of the colour of a margin.

    >>> colour(None), colour(0.0), colour(1.0), colour(1.001), colour(float("nan")), colour(float("inf"))
    ('none', 'm0', 'm3', 'm4', 'm7', 'm7')
    """
    if margin is None:
        return "none"
    return f"m{next((step for step, (end, _) in enumerate(_STEPS) if margin <= end), len(_STEPS))}"


def _box(report: Report, stage: Stage) -> Markup:
    """One part of the network, with links to the findings about it."""
    word = words.stage_word(stage)
    findings = [
        tag(
            "a",
            str(place),
            href=f"#finding-{place}",
            class_="number",
            title=f"finding {place}: {line(found.primitive)}",
        )
        for place, found in enumerate(report.findings, start=1)
        if stage.name in found.places
    ]
    shade = colour(stage.margin)
    if stage.verdict == "fail" and shade in ("none", "m0", "m1", "m2", "m3"):
        shade = "m7"  # it fails for another reason than its margin, such as a value that is missing
    figure = "" if stage.margin is None else number(stage.margin)
    return tag(
        "li",
        tag("div", tag("b", line(stage.name)), *findings, tag("span", _mark(stage), class_="mark", aria_hidden="true")),
        tag("div", line(stage.about), class_="about"),
        tag("div", tag("span", figure, class_="figure"), " ", tag("span", word, class_="word")),
        _bar(stage.margin),
        class_=f"block {shade}" + (" failed" if stage.verdict == "fail" else ""),
        title=f"worst in {line(stage.case)}" if stage.case else None,
    )


def _mark(stage: Stage) -> str:
    """A sign of the verdict."""
    return "\N{EN DASH}" if words.stage_word(stage) == "not looked at" else words.MARKS[stage.verdict]


def _bar(margin: float | None) -> Markup:
    """A margin as a bar on a logarithmic scale, with a mark where the bound is."""
    if margin is None:
        return joined()
    share = max(0.02, words.log_share(margin, _LOWEST, _HIGHEST))
    return tag("div", tag("span", style=f"width:{100 * share:.1f}%"), class_="bar", aria_hidden="true")


def _legend() -> Markup:
    """What the colours mean."""
    steps = [*(text for _, text in _STEPS), "more"]
    entries = [
        tag("li", tag("span", class_=f"swatch m{place}", aria_hidden="true"), text) for place, text in enumerate(steps)
    ]
    unknown = tag("li", tag("span", class_="swatch none", aria_hidden="true"), "not looked at")
    return tag("ul", *entries, unknown, class_="legend", aria_label="Colours of the boxes")
