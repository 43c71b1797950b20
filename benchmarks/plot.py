"""The plot of the page: ratios of the first network, and growth with resolution and batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cases import BATCHES, SIZES, Case
from benchmarks.forms import FORMS, GROWING

LABELS = ("b1-t2", "b1-t1", "b8-t2")
LEFT_OUT = ("onnx-reference", "planted-mistake")  # the first is about 80 times as slow


def written(found: dict[str, dict[str, Any]], path: Path) -> bool:
    """Write the plot of the CPU's results; False where there are none, or no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    cases = found.get("cpu", {}).get("cases", {})
    if not cases:
        return False
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "coatref",
            "svg.fonttype": "none",
            "font.size": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    from matplotlib import pyplot

    figure, (ratios, sizes, batches) = pyplot.subplots(
        1, 3, figsize=(12, 4.2), width_ratios=(2.2, 1, 1), layout="constrained"
    )
    model = Case(**next(iter(cases.values()))["case"]).model
    draw_ratios(ratios, cases, model)
    draw_growth(sizes, cases, model, [(size, 1) for size in SIZES], 0, "pixels, batch 1")
    draw_growth(batches, cases, model, [(224, batch) for batch in BATCHES], 1, "batch, 224 pixels")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def draw_ratios(axes: Any, cases: dict[str, Any], model: str) -> None:
    """Bars: the time of each form relative to timm eager's."""
    drawn = [label for label in LABELS if f"{model}/{label}" in cases]
    names = [name for name in FORMS if name not in LEFT_OUT]
    names = [
        name for name in names if any("ratio" in cases[f"{model}/{label}"]["forms"].get(name, {}) for label in drawn)
    ]
    for number, label in enumerate(drawn):
        forms = cases[f"{model}/{label}"]["forms"]
        places = [place + (number - 1) * 0.27 for place in range(len(names))]
        axes.barh(places, [forms.get(name, {}).get("ratio", 0) for name in names], 0.25, label=label)
    axes.set_yticks(range(len(names)), [FORMS[name].title for name in names])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(f"time relative to timm eager, {model}, float32")
    if drawn:
        axes.legend(frameon=False)


def draw_growth(
    axes: Any, cases: dict[str, Any], model: str, points: list[tuple[int, int]], by: int, title: str
) -> None:
    """Lines: milliseconds an image by size (by=0) or batch (by=1)."""
    for name in GROWING:
        known = []
        for size, batch in points:
            entry = cases.get(Case(model, size, batch).key, {}).get("forms", {}).get(name, {})
            if "median_ms" in entry:
                known.append(((size, batch)[by], entry["median_ms"] / batch))
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", markersize=3, label=FORMS[name].title)
    axes.set_xscale("log", base=2)
    axes.set_xticks([point[by] for point in points], [str(point[by]) for point in points])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(title)
    axes.set_ylabel("ms an image")
    if axes.lines:
        axes.legend(frameon=False)
