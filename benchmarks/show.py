"""One case as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from benchmarks import goals, memory
from benchmarks.cases import Case
from benchmarks.forms import FORMS

HEADINGS = ("form", "median ms", "quartiles", "x timm eager", "goal", "", "error", "peak MiB")


def table(case: Case, forms: dict[str, dict[str, Any]], note: str) -> Table:
    """All forms of a case that were timed."""
    grid = Table(
        title=f"{case.key} on {case.device}: {note}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for number, heading in enumerate(HEADINGS):
        grid.add_column(heading, justify="left" if number in (0, 5) else "right", no_wrap=True)
    for name, entry in forms.items():
        if "median_ms" in entry:
            grid.add_row(*row(name, entry, case, forms))
    return grid


def note(record: dict[str, Any]) -> str:
    """What is to be known of a case beside its times."""
    rounds = f"{record['rounds']} rounds, in which other processes kept {record['others_cores']:.2f} cores busy"
    return rounds if record["quiet"] else f"{rounds}: a busy machine, of which no figure is to be trusted"


def left_out(forms: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each form that was not timed."""
    return [f"{FORMS[name].title}: {reason(entry)}" for name, entry in forms.items() if "median_ms" not in entry]


def row(name: str, entry: dict[str, Any], case: Case, forms: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The cells of one form that was timed."""
    low, high = entry["quartiles_ms"]
    goal, ratio = goals.goal_of(name, case), goals.ratio_of(name, case, forms)
    return (
        FORMS[name].title,
        f"{entry['median_ms']:.1f}",
        f"{low:.1f} to {high:.1f}",
        f"{entry['ratio']:.2f}" if "ratio" in entry else "",
        f"{goal.bound:.2f}" if goal else "",
        "" if goal is None or ratio is None else "reached" if goals.within(ratio, goal.bound) else "missed",
        f"{entry['error']:.1e}",
        mebibytes(memory.headline(entry.get("memory"), FORMS[name].compiles)),
    )


def reason(entry: dict[str, Any]) -> str:
    """Why a form has no time, in words."""
    if entry["state"] == "wrong":
        error = "not finite or of another shape" if entry["error"] is None else f"{entry['error']:.1e}"
        return f"refused, wrong: error {error}, allowed {entry['error_limit']:.1e}"
    return f"unavailable: {entry.get('reason', 'not timed')}"


def mebibytes(size: int | None) -> str:
    """Bytes as MiB."""
    return "" if size is None else f"{size / 2**20:.0f}"
