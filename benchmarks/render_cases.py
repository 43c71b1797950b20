"""The tables of the page: goals, one case, growth."""

from __future__ import annotations

from typing import Any

from benchmarks import goals, memory
from benchmarks.cases import Case
from benchmarks.forms import BASELINE, FORMS, GROWING
from benchmarks.markdown import joined, table
from benchmarks.show import mebibytes, note, reason

Results = dict[str, dict[str, Any]]


def goals_section(found: Results) -> str:
    """Every goal beside what was measured."""
    rows = [row for each in found.values() for record in each["cases"].values() for row in goal_rows(record)]
    if not rows:
        return ""
    missed = [row for row in rows if "missed" in row[-1]]
    summary = f"{len(rows) - len(missed)} of {len(rows)} are reached."
    head = ("form", "network", "case", "baseline", "ratio", "goal", "verdict")
    return joined(
        ["## Goals", "Ratios of medians in the same run; lower is better. " + summary, table(head, rows, left=4)]
    ).rstrip()


def goal_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """The goals of one case, of time and of memory."""
    case, forms = Case(**record["case"]), record["forms"]
    found = []
    for name in forms:
        goal, ratio = goals.goal_of(name, case), goals.ratio_of(name, case, forms)
        if goal is not None:
            found.append((FORMS[name].title, FORMS[goal.baseline].title, ratio, goal.bound))
    for name in forms:
        ratio = goals.memory_ratio(name, forms)
        if case.main and ratio is not None:
            found.append((f"{FORMS[name].title}: memory", FORMS[BASELINE].title, ratio, 1.0))
    where = f"{case.label} ({case.device})"
    return [
        (
            title,
            case.model,
            where,
            baseline,
            "" if ratio is None else f"{ratio:.2f}",
            f"{bound:.2f}",
            word(ratio, bound),
        )
        for title, baseline, ratio, bound in found
    ]


def word(ratio: float | None, bound: float) -> str:
    """A verdict."""
    if ratio is None:
        return "not measured"
    return "reached" if goals.within(ratio, bound) else "**missed**"


def case_section(record: dict[str, Any]) -> str:
    """One case: every form's time, ratio, error and memory."""
    case, forms = Case(**record["case"]), record["forms"]
    head = ("form", "median ms", "quartiles ms", "ratio", "error", "memory: first run MiB", "later run MiB")
    rows = [cells(name, entry) for name, entry in forms.items() if "median_ms" in entry]
    left = [f"- {FORMS[name].title}: {reason(entry)}" for name, entry in forms.items() if "median_ms" not in entry]
    return joined([f"### {words(case)}", f"{note(record).capitalize()}.", table(head, rows), "\n".join(left)]).rstrip()


def cells(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    """One form that was timed."""
    measured, (low, high) = entry.get("memory") or {}, entry["quartiles_ms"]
    return (
        FORMS[name].title,
        f"{entry['median_ms']:.1f}",
        f"{low:.1f} to {high:.1f}",
        f"{entry['ratio']:.2f}" if "ratio" in entry else "",
        f"{entry['error']:.1e}",
        "compiles" if FORMS[name].compiles and "first" in measured else mebibytes(measured.get("first")),
        mebibytes(measured.get("later")),
    )


def words(case: Case) -> str:
    """A case in words."""
    threads = f", {case.threads} thread{'s' if case.threads > 1 else ''}" if case.device == "cpu" else ""
    size = "" if case.size == 224 else f", {case.size} pixels"
    return f"{case.model}{size}, batch {case.batch}{threads}, {case.dtype}"


def growth_section(each: dict[str, Any]) -> str:
    """Time and memory of the main forms by resolution and by batch."""
    cases = [(Case(**record["case"]), record["forms"]) for record in each["cases"].values()]
    cases = [
        (case, forms)
        for case, forms in cases
        if case.dtype == "float32" and (case.device != "cpu" or case.threads == 2)
    ]
    if not cases:
        return ""
    model = cases[0][0].model
    of_model = [pair for pair in cases if pair[0].model == model]
    sizes = sorted((pair for pair in of_model if pair[0].batch == 1), key=lambda pair: pair[0].size)
    batches = sorted((pair for pair in of_model if pair[0].size == 224), key=lambda pair: pair[0].batch)
    parts = []
    if len(sizes) > 1:
        parts += [
            "By resolution, batch 1: ms an image (peak MiB).",
            growth_table([f"{case.size} px" for case, _ in sizes], sizes),
        ]
    if len(batches) > 2:
        parts += [
            "By batch, 224 pixels: ms an image (peak MiB).",
            growth_table([f"batch {case.batch}" for case, _ in batches], batches),
        ]
    return joined([f"### Growth of {model}", *parts]).rstrip() if parts else ""


def growth_table(head: list[str], pairs: list[tuple[Case, dict[str, Any]]]) -> str:
    """Forms down, cases across."""
    rows = [(FORMS[name].title, *(growth_cell(name, case, forms) for case, forms in pairs)) for name in GROWING]
    return table(("form", *head), [row for row in rows if any(row[1:])])


def growth_cell(name: str, case: Case, forms: dict[str, Any]) -> str:
    """Time of an image and peak memory of the whole batch."""
    entry = forms.get(name, {})
    if "median_ms" not in entry:
        return ""
    size = memory.headline(entry.get("memory"), FORMS[name].compiles)
    return f"{entry['median_ms'] / case.batch:.1f}" + (f" ({mebibytes(size)})" if size is not None else "")
