"""A report on a terminal: the verdict first, then where, what, and how to see it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coatref.conformance.report import words
from coatref.conformance.report.results import Report, Stage
from coatref.conformance.report.words import line, number

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

STYLES = {"pass": "green", "fail": "red", "cannot judge": "yellow"}
_LOWEST, _HIGHEST = 1e-4, 1e4  # ends of the bars; 1 is in the middle
_BAR = 11  # characters, an odd number: the limit has the one in the middle
_WIDE = 110  # columns from which the table of stages names the worst case too
_CASES = 6  # failing cases that are told of
_SENTENCES = 12  # of what is excluded or not covered


def render(report: Report, console: Console, *, quiet: bool = False) -> None:
    """Print a report.

    Args:
        report: what to show.
        console: where to; `coatref.cli.output.console` makes them. Colour and width are its own.
        quiet: only the verdict, on one line.
    """
    _verdict(report, console, quiet=quiet)
    if quiet:
        return
    if report.stages:
        console.print()
        console.print(_stages(report, plain=console.options.ascii_only, wide=console.width >= _WIDE))
    _findings(report, console)
    _failures(report, console)
    _counterexample(report, console)
    _sentences("What this pass excludes" if report.conforms else "What is excluded", report.excludes, console)
    _sentences("Not covered", report.not_covered, console)
    if report.reproduce:
        _heading("Reproduce", console)
        console.print(_text("  " + words.printable(report.reproduce)), soft_wrap=True)


def _text(content: str, style: str = "") -> Text:
    """Text that is never taken for markup, whatever the console does."""
    from rich.text import Text

    return Text(content, style=style)


def _row(content: RenderableType, indent: int) -> RenderableType:
    """Something that is indented, on later lines too."""
    from rich.padding import Padding

    return Padding(content, (0, 0, 0, indent), expand=False)


def _item(marker: str, content: Text) -> RenderableType:
    """An entry of a list, whose later lines begin under its first word."""
    from rich.table import Table

    entry = Table.grid(padding=(0, 1, 0, 0))
    entry.add_row(_text(marker), content)
    return _row(entry, 2)


def _heading(title: str, console: Console) -> None:
    console.print()
    console.print(_text(title, "bold"))


def _verdict(report: Report, console: Console, *, quiet: bool) -> None:
    """The verdict on one line; then what was done, and which other spec would fit."""
    from rich.text import Text

    word = _text(words.HEADLINES[report.verdict], f"bold {STYLES[report.verdict]}")
    console.print(Text.assemble(word, "  ", words.headline(report)), soft_wrap=quiet)
    if quiet:
        return
    if report.conforms_to:
        console.print(_text(f"It conforms to {line(report.conforms_to)}, not to {line(report.spec)}.", "bold"))
    done = (
        f"spec {line(report.spec)}",
        words.precision(report.precision),
        f"level {line(report.level)}",
        f"seed {report.seed}",
        words.tally(report),
        f"{report.seconds:.1f} s",
    )
    console.print(_text("; ".join(done), "dim"))


def _stages(report: Report, *, plain: bool, wide: bool) -> Table:
    """One row for each part of the network, with its margin as a figure and a bar; `plain`: in ASCII."""
    from coatref.cli.output import table

    listing = table(gap=1)
    listing.add_column("stage", overflow="fold")
    listing.add_column("what it is")
    listing.add_column("error/bound", justify="right", no_wrap=True)
    limit = "|" if plain else "│"
    listing.add_column(f"{'1':^{_BAR}}".rstrip(), no_wrap=True)
    listing.add_column("verdict", no_wrap=True)
    if wide:
        listing.add_column("worst case")
    for stage in report.stages:
        style = STYLES[stage.verdict]
        cells = (
            _text(line(stage.name), "bold" if stage.verdict == "fail" else ""),
            _text(line(stage.about)),
            _text(number(stage.margin)),
            _text(_bar(stage, "#" if plain else "█", limit), style),
            _text(words.stage_word(stage), style),
            _text(line(stage.case), "dim"),
        )
        listing.add_row(*cells[: len(listing.columns)])
    return listing


def _bar(stage: Stage, full: str, limit: str) -> str:
    """A margin on a logarithmic scale, with a mark where the bound is."""
    filled = 0 if stage.margin is None else round(words.log_share(stage.margin, _LOWEST, _HIGHEST) * _BAR)
    middle = _BAR // 2
    if stage.margin is not None:  # a bar passes the mark exactly where the margin passes 1
        filled = max(filled, middle + 2) if not stage.margin <= 1 else min(filled, middle)
    return "".join(limit if place == middle else full if place < filled else " " for place in range(_BAR)).rstrip()


def _findings(report: Report, console: Console) -> None:
    """What is wrong, in words, with what that rests on."""
    if not report.findings:
        return
    _heading("Diagnosis", console)
    for place, finding in enumerate(report.findings, start=1):
        name = line(finding.primitive) or "not identified"
        console.print(_item(f"{place}.", _text(f"{name}: {line(finding.sentence)}", STYLES["fail"])))
        for label, content in words.evidence(finding):
            console.print(_row(_text(f"{label}: {content}"), 5))
        if finding.heat_map is not None:
            console.print(_row(_text(f"bias table: {line(finding.heat_map.title)}; the HTML page draws it"), 5))


def _failures(report: Report, console: Console) -> None:
    """The cases that fail, each with the value where its fault enters."""
    found = words.failing(report)
    if not found:
        return
    _heading(f"Failing cases ({len(found)} of {len(report.results)})", console)
    for case in found[:_CASES]:
        count, height, width = case.image
        console.print(_row(_text(f"{line(case.case)} ({count}x{height}x{width}): {line(case.about)}"), 2))
        if case.problem:
            console.print(_row(_text(line(case.problem), STYLES["fail"]), 5))
        worst = words.first_failure(case)
        if worst is None:
            continue
        reason = f"{line(worst.value)} fails first: {line(worst.reason) or 'the error exceeds its bound'}"
        for content in (reason, words.element(worst), words.figures(worst)):
            if content:
                console.print(_row(_text(content), 5))
    if len(found) > _CASES:
        console.print(_row(_text(f"and {len(found) - _CASES} more; --json and --html tell of all.", "dim"), 2))


def _counterexample(report: Report, console: Console) -> None:
    """The smallest failing configuration: where it was saved, or else the script itself."""
    smallest = report.counterexample
    if smallest is None:
        return
    _heading("Smallest failing configuration", console)
    console.print(_row(_text(f"{line(smallest.sentence)} (case {line(smallest.case)})"), 2))
    if smallest.file:
        console.print(_text(f"  saved in {line(smallest.file)}"), soft_wrap=True)
    elif smallest.script:
        for row in words.printable(smallest.script).expandtabs(4).splitlines():
            console.print(_text(f"    {row}"), soft_wrap=True)


def _sentences(title: str, sentences: tuple[str, ...], console: Console) -> None:
    """A list of sentences."""
    if not sentences:
        return
    _heading(title, console)
    for sentence in sentences[:_SENTENCES]:
        console.print(_item("-", _text(line(sentence))))
    if len(sentences) > _SENTENCES:
        console.print(_row(_text(f"and {len(sentences) - _SENTENCES} more", "dim"), 2))
