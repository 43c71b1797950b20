"""A relative-bias table as it should be read and as it is read, as two SVG heat maps on one scale of colour."""

from __future__ import annotations

import math

from coatref.conformance.report.markup import Markup, joined, tag
from coatref.conformance.report.results import HeatMap
from coatref.conformance.report.words import line, number

Rows = tuple[tuple[float, ...], ...]

_LONGEST = 48  # rows and columns that are drawn
_SIDE = 220.0  # of a drawing, in its own units
_LOW, _MIDDLE, _HIGH = (33, 102, 172), (247, 247, 247), (178, 24, 43)  # blue, white, red: a colour-blind reader's too


def pair(table: HeatMap) -> Markup:
    """Both tables side by side, with a legend; where few entries differ, they are framed."""
    values = [value for rows in (table.expected, table.found) for row in rows for value in row]
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0
    different = _different(table)
    cells = sum(len(row) for row in table.expected)
    framed = different if 2 * len(different) <= cells else frozenset()  # frames around most cells would hide the rest
    cut = max((len(values) for rows in (table.expected, table.found) for values in (rows, *rows)), default=0) > _LONGEST
    return tag(
        "div",
        tag("h4", line(table.title)),
        tag("p", f"{len(different)} of {cells} entries differ{'; they are framed' if framed else ''}.", class_="note"),
        tag("p", f"Only the first {_LONGEST} rows and columns are drawn.", class_="note") if cut else "",
        tag(
            "div",
            _drawing("expected", table.expected, largest, frozenset()),
            _drawing("found", table.found, largest, framed),
            class_="pair",
        ),
        _legend(largest),
        class_="heat",
    )


def shade(value: float, largest: float) -> str:
    """The colour of a value between -largest (blue) and largest (red); grey for what is no number.

    >>> shade(0.0, 2.0), shade(-2.0, 2.0), shade(float("nan"), 1.0)
    ('#f7f7f7', '#2166ac', '#808080')
    """
    if math.isnan(value):
        return "#808080"
    share = max(-1.0, min(1.0, value / largest))
    end = _HIGH if share > 0 else _LOW
    mixed = (round(middle + abs(share) * (extreme - middle)) for middle, extreme in zip(_MIDDLE, end, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _different(table: HeatMap) -> frozenset[tuple[int, int]]:
    """Row and column of the entries found that are not the expected ones, up to rounding."""
    places = set()
    for row, values in enumerate(table.found):
        for column, found in enumerate(values):
            known = row < len(table.expected) and column < len(table.expected[row])
            if not known or not math.isclose(found, table.expected[row][column], rel_tol=1e-2, abs_tol=1e-6):
                places.add((row, column))
    return frozenset(places)


def _drawing(name: str, rows: Rows, largest: float, framed: frozenset[tuple[int, int]]) -> Markup:
    """One table: a square for each entry, which tells its value when pointed at."""
    shown = [row[:_LONGEST] for row in rows[:_LONGEST]]
    columns = max((len(row) for row in shown), default=0)
    size = _SIDE / max(columns, len(shown), 1)
    squares = [
        tag(
            "rect",
            tag("title", f"{name}, row {row}, column {column}: {number(value, 5)}"),
            x=size * column,
            y=size * row,
            width=size,
            height=size,
            fill=shade(value, largest),
        )
        for row, values in enumerate(shown)
        for column, value in enumerate(values)
    ]
    frames = "".join(
        f"M{size * column + size / 8:.2f} {size * row + size / 8:.2f}h{size * 3 / 4:.2f}v{size * 3 / 4:.2f}"
        f"h{-size * 3 / 4:.2f}z"
        for row, column in sorted(framed)
        if row < len(shown) and column < len(shown[row])
    )
    marks = tag("path", d=frames, class_="frame", stroke_width=max(0.6, size / 12)) if frames else joined()
    box = f"0 0 {max(size * columns, 1.0):.2f} {max(size * len(shown), 1.0):.2f}"
    text = f"{name}: heat map of {len(rows)} rows and {max(map(len, rows), default=0)} columns"
    drawn = tag("svg", *squares, marks, viewBox=box, role="img", aria_label=text)
    return tag("figure", tag("figcaption", name), drawn)


def _legend(largest: float) -> Markup:
    """The scale of colour, with the values at its ends and in its middle."""
    steps = 21
    rects = [
        tag("rect", x=10.0 * step, y=0, width=10.5, height=12, fill=shade(2 * step / (steps - 1) - 1, 1.0))
        for step in range(steps)
    ]
    scale = tag("svg", *rects, viewBox=f"0 0 {10 * steps} 12", role="img", aria_label="scale of colours")
    ends = (tag("span", number(value)) for value in (-largest, 0.0, largest))
    return tag("div", scale, tag("div", *ends, class_="ends"), class_="scale")
