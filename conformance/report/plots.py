"""How errors lie against their bounds: error versus magnitude on logarithmic axes, and a histogram of error over bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from coatref.conformance.report.markup import Markup, joined, section, tag
from coatref.conformance.report.results import CaseResult, Report, Scatter
from coatref.conformance.report.words import counted, line

_MORE = 5  # cases that are drawn besides the worst
_BELOW = 1e4  # errors that are smaller than the smallest bound by more than this lie at the edge
_POINTS = 600  # elements that are drawn of one case
_WIDTH, _HEIGHT = 360.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 12.0, 40.0  # margins around a plot
_DECADES = (-6, 3)  # of error over bound that the histogram tells apart, two bars for each

Point = tuple[float, float]


def plots(report: Report) -> Markup:
    """The section with the drawings of the worst case, and of some others; empty where no case has elements."""
    drawn = sorted((case for case in report.results if case.scatter.magnitude), key=_rank)
    if not drawn:
        return joined()
    others = joined(*(_case(case) for case in drawn[1 : _MORE + 1]))
    more = tag("details", tag("summary", counted(min(len(drawn) - 1, _MORE), "more case")), others)
    return section(
        "Errors and their bounds",
        tag("p", "Elements of the logits in the case with the largest margin.", class_="note"),
        _case(drawn[0]),
        more if len(drawn) > 1 else "",
        anchor="errors",
    )


def ratio(error: float, bound: float) -> float:
    """Error over bound; 0 for no error, whatever the bound.

    >>> ratio(1.0, 4.0), ratio(0.0, 0.0), ratio(1.0, 0.0)
    (0.25, 0.0, inf)
    """
    if error == 0:
        return 0.0
    return math.inf if bound == 0 else error / bound


def _rank(case: CaseResult) -> tuple[bool, float]:
    """Failing cases first, then larger margins first; NaN is the largest."""
    margin = case.margin
    return case.verdict != "fail", 0.0 if margin is None else -math.inf if math.isnan(margin) else -margin


def _case(case: CaseResult) -> Markup:
    """Both drawings of one case."""
    drawings = tag("div", _scatter(case.scatter), _histogram(case.scatter), class_="pair")
    return tag("div", tag("h3", line(case.case)), drawings)


def _over(scatter: Scatter) -> list[bool]:
    """Of each element, whether its error is beyond its bound or no number."""
    return [not ratio(error, bound) <= 1 for error, bound in zip(scatter.error, scatter.bound, strict=False)]


def _scatter(scatter: Scatter) -> Markup:
    """Error versus magnitude, and the bound of each element."""
    over = _over(scatter)
    kept = _kept(over)
    across = _Axis([scatter.magnitude[index] for index in kept], _LEFT, _WIDTH - _RIGHT)
    heights = [values[index] for values in (scatter.error, scatter.bound) for index in kept]
    bound = min((value for value in scatter.bound if value > 0), default=0.0)
    up = _Axis(heights, _HEIGHT - _BOTTOM, _TOP, least=bound / _BELOW)
    bounds = "".join(
        f"M{across.at(scatter.magnitude[index]) - 2.5:.1f} {up.at(scatter.bound[index]):.1f}h5" for index in kept
    )
    places = [(across.at(scatter.magnitude[index]), up.at(scatter.error[index]), over[index]) for index in kept]
    within = "".join(f"M{x:.1f} {y:.1f}h0" for x, y, beyond in places if not beyond)
    beyond = "".join(f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6" for x, y, beyond in places if beyond)
    text = f"Error versus magnitude of {counted(len(over), 'element')}; {sum(over)} beyond their bound."
    drawing = tag(
        "svg",
        tag("title", text),
        *_grid(across, up),
        tag("path", d=bounds, class_="bounds"),
        tag("path", d=within, class_="within"),
        tag("path", d=beyond, class_="beyond"),
        tag("text", "|expected|", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6, class_="axis middle"),
        tag("text", "|error|", x=10.0, y=_HEIGHT / 2, class_="axis middle", transform=f"rotate(-90 10 {_HEIGHT / 2})"),
        viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
        role="img",
        aria_label=text,
    )
    legend = tag(
        "ul",
        tag("li", tag("span", "\N{BLACK CIRCLE}", class_="within", aria_hidden="true"), "within its bound"),
        tag("li", tag("span", "\N{MULTIPLICATION X}", class_="beyond", aria_hidden="true"), "beyond its bound"),
        tag("li", tag("span", "\N{EM DASH}", class_="bounds", aria_hidden="true"), "bound"),
        class_="legend",
    )
    return tag("figure", tag("figcaption", text), drawing, legend)


def _kept(over: Sequence[bool]) -> list[int]:
    """Which elements are drawn: all of a few; of many, every so-manieth of those within and beyond their bounds."""
    chosen: list[int] = []
    for side in (False, True):
        places = [index for index, beyond in enumerate(over) if beyond is side]
        step = max(1, math.ceil(2 * len(places) / _POINTS))
        chosen += places[::step]
    return chosen


class _Axis:
    """A logarithmic axis; what is smaller than `least` lies at its start, and what is not finite at its end."""

    def __init__(self, values: Iterable[float], start: float, end: float, least: float = 0.0) -> None:
        sizes = [math.log10(max(value, least)) for value in values if 0 < value < math.inf]
        self.low = math.floor(min(sizes, default=0.0))
        self.high = max(math.ceil(max(sizes, default=1.0)), self.low + 1)
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        """Where a value lies."""
        if not math.isfinite(value):
            return self.end
        power = math.log10(value) if value > 0 else -math.inf
        return self.start if power < self.low - 1e-9 else self._at_power(power)

    def _at_power(self, power: float) -> float:
        """Where a power of ten lies; the smallest a little inside, to keep it apart from zero."""
        inset = 8.0 if self.end > self.start else -8.0
        share = (power - self.low) / (self.high - self.low)
        return self.start + inset + share * (self.end - self.start - inset)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Places and texts of at most six powers of ten."""
        step = math.ceil((self.high - self.low) / 5)
        for power in range(self.low, self.high + 1, step):
            yield self._at_power(power), f"1e{power}"


def _grid(across: _Axis, up: _Axis) -> Iterator[Markup]:
    """The frame, with lines and figures at powers of ten."""
    floor, ceiling = _HEIGHT - _BOTTOM, _TOP
    for x, text in across.ticks():
        yield tag("path", d=f"M{x:.1f} {ceiling:.1f}V{floor:.1f}", class_="grid")
        yield tag("text", text, x=x, y=floor + 14, class_="tick middle")
    for y, text in up.ticks():
        yield tag("path", d=f"M{_LEFT:.1f} {y:.1f}H{_WIDTH - _RIGHT:.1f}", class_="grid")
        yield tag("text", text, x=_LEFT - 4, y=y + 4, class_="tick end")


def _histogram(scatter: Scatter) -> Markup:
    """How many elements use how much of their bound, in steps of half a decade."""
    low, high = _DECADES
    edges = [0.0, *(10 ** (half / 2) for half in range(2 * low, 2 * high + 1)), math.inf]
    counts = [0] * (len(edges) - 1)
    for error, bound in zip(scatter.error, scatter.bound, strict=False):
        share = ratio(error, bound)
        place = next((index for index, end in enumerate(edges[1:]) if share <= end), len(counts) - 1)
        counts[place] += 1
    step = (_WIDTH - _LEFT - _RIGHT) / len(counts)
    floor, room = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP - 14
    tallest = max(counts) or 1
    bars = [
        tag(
            "rect",
            tag("title", f"error/bound {start:.2g} to {end:.2g}: {counted(count, 'element')}"),
            x=_LEFT + step * index + 1,
            y=floor - room * count / tallest,
            width=step - 2,
            height=room * count / tallest,
            class_="beyond-bar" if start >= 1 else "within-bar",
        )
        for index, (count, (start, end)) in enumerate(zip(counts, pairwise(edges), strict=True))
        if count
    ]
    ticks = [
        tag("text", f"1e{power}" if power else "1", x=_place(power, step), y=floor + 14, class_="tick middle")
        for power in range(low, high + 1, 3)
    ]
    limit = _place(0, step)
    beyond = sum(_over(scatter))
    text = f"Error over bound of {counted(sum(counts), 'element')}; {beyond} beyond 1."
    drawing = tag(
        "svg",
        tag("title", text),
        tag("path", d=f"M{_LEFT:.1f} {floor:.1f}H{_WIDTH - _RIGHT:.1f}", class_="grid"),
        *bars,
        tag("path", d=f"M{limit:.1f} {_TOP:.1f}V{floor:.1f}", class_="limit"),
        tag("text", "passes", x=limit - 5, y=_TOP + 8, class_="tick end"),
        tag("text", "fails", x=limit + 5, y=_TOP + 8, class_="tick"),
        *ticks,
        tag("text", str(tallest), x=_LEFT - 4, y=floor - room + 4, class_="tick end"),
        tag("text", "0", x=_LEFT - 4, y=floor + 4, class_="tick end"),
        tag("text", "error/bound", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6, class_="axis middle"),
        viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
        role="img",
        aria_label=text,
    )
    return tag("figure", tag("figcaption", text), drawing)


def _place(power: int, step: float) -> float:
    """Where a power of ten lies in the histogram, whose first bar is for all that is smaller than any."""
    return _LEFT + step * (1 + 2 * (power - _DECADES[0]))
