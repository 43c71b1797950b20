"""docs/performance.md, from all files of results that are present."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import plot, results
from benchmarks.cases import Case
from benchmarks.machine import ROOT
from benchmarks.markdown import joined
from benchmarks.render_cases import case_section, goals_section, growth_section
from benchmarks.render_limits import limits_section
from benchmarks.render_method import method_section, surroundings_section

PAGE, PLOT = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.svg"

HEAD = """# Performance

How fast each form of coatref computes beside what people use today, on the machines named below. `python -m benchmarks`
measures and writes this page; nothing in it is written by hand. Figures of another machine come in as a JSON file in
`benchmarks/results/` and `python -m benchmarks --render`."""


def written(tell: Callable[[str], None]) -> None:
    """Write the page and its plot."""
    found = {name: each for name, each in results.everything().items() if each["cases"]}
    if not found:
        tell(f"There are no results in {results.FOLDER}; run python -m benchmarks first.")
        return
    plotted = plot.written(found, PLOT)
    PAGE.write_text(page(found, plotted))
    tell(f"wrote {PAGE.relative_to(ROOT)}" + (f" and {PLOT.relative_to(ROOT)}" if plotted else ""))


def page(found: dict[str, dict[str, Any]], plotted: bool) -> str:
    """The whole page."""
    parts = [HEAD, goals_section(found)]
    if plotted:
        parts.append(f"![Time relative to timm eager, and growth with resolution and batch]({PLOT.name})")
    parts.append(method_section())
    for name, each in found.items():
        parts += [f"## Results: {title(name, each)}", surroundings_section(each)]
        parts += [case_section(record) for record in each["cases"].values() if Case(**record["case"]).main]
        parts += [growth_section(each), limits_section(each)]
    return joined(parts)


def title(name: str, each: dict[str, Any]) -> str:
    """What a file of results is about."""
    return "CPU" if name == "cpu" else str(each["gpu"]["name"])
