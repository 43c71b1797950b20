"""The kill matrix as a document: which check finds which mistake in which type, and the figures that must be reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import coatref
from coatref.conformance.mistakes.catalogue import mistakes

if TYPE_CHECKING:
    from coatref.conformance.selftest import Row, SelfTest

LETTERS = {"wiring": "W", "amplifier": "A", "random": "R", "law": "L", "as given": "G"}
TYPES = ("float64", "float32", "float16", "bfloat16")

# (mistake, type) -> why nothing can show it there. They count as not found all the same.
EQUIVALENT = {
    ("parameters-in-float16", "float16"): "the parameters are handed over as numbers of float16, which rounding keeps",
    ("parameters-in-float16", "bfloat16"): "float16 holds the 8 bits of numbers of bfloat16 from 2^-17 to 65504",
    (
        "parameters-in-bfloat16",
        "bfloat16",
    ): "the parameters are handed over as numbers of bfloat16, which rounding keeps",
}


def share(hits: int, of: int) -> float:
    """A part of a whole; all of nothing."""
    return hits / of if of else 1.0


def requirements(test: SelfTest) -> list[tuple[str, str, bool]]:
    """Every figure that must be reached: what it is, what was found, whether it is reached."""
    found: list[tuple[str, str, bool]] = []
    for dtype in TYPES:
        rows = [row for row in test.rows if row.dtype == dtype]
        if rows:
            least = 1.0 if dtype in ("float64", "float32") else 0.95
            dead = sum(row.dead for row in rows)
            found.append(
                (
                    f"mistakes found in {dtype} (at least {least:.0%})",
                    of(dead, len(rows)),
                    share(dead, len(rows)) >= least,
                )
            )
    named = [row for row in test.rows if row.dtype == "float32"]
    located, exact = sum(row.located for row in named), sum(all(row.exact) for row in named)
    what = "in float32, from logits alone"
    found.append(
        (f"right part named {what} (at least 95 %)", of(located, len(named)), share(located, len(named)) >= 0.95)
    )
    found.append(
        (f"exact mistake named {what} (at least 90 %)", of(exact, len(named)), share(exact, len(named)) >= 0.9)
    )
    both = sum(all(row.exact) for row in test.together)
    found.append(
        (
            "both of two mistakes named (at least 80 %)",
            of(both, len(test.together)),
            share(both, len(test.together)) >= 0.8,
        )
    )
    alarms = sum(run.verdict == "fail" for run in test.honest)
    least_runs = 2000 if test.level == "full" else 1
    found.append(
        (
            f"false alarms in at least {least_runs} honest runs (none)",
            f"{alarms} of {len(test.honest)}",
            alarms == 0 and len(test.honest) >= least_runs,
        )
    )
    return found


def of(hits: int, whole: int) -> str:
    """A count and its share."""
    return f"{hits} of {whole} ({100 * share(hits, whole):.1f} %)"


def document(test: SelfTest) -> str:
    """The whole document."""
    alone = sum(row.located_without for row in test.rows if row.dtype == "float32" and not row.reshaped)
    f32 = sum(row.dtype == "float32" and not row.reshaped for row in test.rows)
    lines = [
        "# Kill matrix",
        "",
        "What `coatref check` finds and what it does not, measured on mistakes that were planted into the definition, and how",
        "often it blames right implementations. Written by `coatref selftest --level full --write docs/kill-matrix.md`;",
        f"this one is of level {test.level}, seed {test.seed}, coatref {coatref.__version__}, and took {test.seconds / 60:.0f} minutes.",
        "",
        "Each mistake is planted into a small network of the first spec in which it can be made, and the candidate gives",
        "nothing but logits. Half types are accumulated in float32, every value rounded to the half type. In float32 the",
        "candidate is diagnosed too; in bfloat16 it is seen which checks fail, in float64 and float16 which one fails first.",
        "",
        "| figure | found | |",
        "|---|---|---|",
        *(
            f"| {what} | {value} | {'reached' if reached else '**not reached**'} |"
            for what, value, reached in requirements(test)
        ),
        "",
        f"Without the catalogue, by the first failing probe alone, the part is named for {of(alone, f32)} in float32.",
        "",
        *honest(test),
        "## Mistakes",
        "",
        "W wiring, A amplifier, R random and other pictures, L laws, G as given: the kinds of checks that fail. `=` the exact",
        "mistake (or one that computes the same) is named, `~` only its part, `?` neither (float32); `s` its parameters have other",
        "shapes.",
        "",
        "| mistake | part | spec | " + " | ".join(TYPES) + " |",
        "|---|---|---|" + "---|" * len(TYPES),
        *matrix(test.rows),
        "",
        *survivors(test.rows),
        *homeless(test),
        *couples(test.together),
    ]
    return "\n".join(lines) + "\n"


def matrix(rows: Sequence[Row]) -> list[str]:
    """One line for each mistake."""
    cells = {(row.mistakes[0], row.dtype): row for row in rows}
    lines = []
    for mistake in mistakes():
        mine = [cells.get((mistake.name, dtype)) for dtype in TYPES]
        if any(mine):
            spec = next(row.spec for row in mine if row is not None)
            texts = " | ".join("" if row is None else cell(row) for row in mine)
            lines.append(f"| {mistake.name} | {mistake.primitive} | {spec} | {texts} |")
    return lines


def cell(row: Row) -> str:
    """What became of one mistake in one type."""
    if not row.dead:
        return "**passes**"
    letters = "".join(LETTERS[kind] for kind in row.killed if kind in LETTERS)
    mark = "" if row.dtype != "float32" else " =" if all(row.exact) else " ~" if row.located else " ?"
    return f"{letters}{mark}{' s' if row.reshaped else ''}"


def homeless(test: SelfTest) -> list[str]:
    """The mistakes that none of the small networks has a place for."""
    planted = {row.mistakes[0] for row in test.rows}
    names = [mistake.name for mistake in mistakes() if mistake.name not in planted]
    if not names or test.level != "full":
        return []
    return [
        "## Mistakes that were not planted",
        "",
        "They are the other way round of conventions that these networks already have, or need a part that none has:",
        f"{', '.join(names)}.",
        "",
    ]


def survivors(rows: Sequence[Row]) -> list[str]:
    """The mistakes that pass somewhere, with what they are."""
    alive = {row.mistakes[0] for row in rows if not row.dead}
    if not alive:
        return []
    lines = ["## Mistakes that pass", ""]
    for mistake in mistakes():
        if mistake.name in alive:
            types = ", ".join(row.dtype for row in rows if row.mistakes[0] == mistake.name and not row.dead)
            lines.append(f"- {mistake.name} in {types}: the candidate {mistake.sentence}.")
            proofs = [f"{dtype}: {why}" for (name, dtype), why in EQUIVALENT.items() if name == mistake.name]
            lines += [f"  Equivalent in {proof}." for proof in proofs]
    return [*lines, ""]


def couples(rows: Sequence[Row]) -> list[str]:
    """The pairs of mistakes of which one was not named."""
    missed = [row for row in rows if not all(row.exact)]
    if not rows:
        return []
    lines = [
        "## Two mistakes at once",
        "",
        f"{len(rows)} random pairs in float32; both are named in all but these:",
        "",
    ]
    lines += [f"- {' and '.join(row.mistakes)}: named {', '.join(row.named) or 'nothing'}" for row in missed]
    return [*lines, ""]


def honest(test: SelfTest) -> list[str]:
    """The honest runs by precision."""
    lines = [
        "## Honest runs",
        "",
        "| precision | runs | pass | cannot judge | fail | largest margin |",
        "|---|---|---|---|---|---|",
    ]
    for precision in dict.fromkeys(run.precision for run in test.honest):
        mine = [run for run in test.honest if run.precision == precision]
        counts = [sum(run.verdict == verdict for run in mine) for verdict in ("pass", "cannot judge", "fail")]
        largest = max((run.margin for run in mine if run.margin is not None), default=0.0)
        lines.append(f"| {precision} | {len(mine)} | {counts[0]} | {counts[1]} | {counts[2]} | {largest:.2f} |")
    return [*lines, ""]
