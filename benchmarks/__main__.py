"""`python -m benchmarks`: measure, keep the results, and render docs/performance.md from all that are kept."""

from __future__ import annotations

import math
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import campaign, cases, plan, render, results, show
from benchmarks.cases import Case
from benchmarks.forms import FORMS
from benchmarks.plan import Plan

CUDA_SECONDS = 150  # after which no further cases begin on a GPU, which is lent for minutes


class Device(StrEnum):
    """Where to measure."""

    cpu = "cpu"
    cuda = "cuda"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
out = Console(highlight=False, markup=False, emoji=False)
if not out.is_terminal:
    out.width = 140  # a file has no width of its own


def listed(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [part for part in text.split(",") if part]


def labels_of(text: str, device: str, quick: bool) -> list[str]:
    """Labels of cases; "main" and "growth" stand for the groups of these names."""
    groups = {"main": cases.MAIN[device], "growth": cases.GROWTH[device]}
    wanted = listed(text) or (cases.QUICK[device] if quick else ["main", "growth"])
    return [label for part in wanted for label in groups.get(part, (part,))]


@app.command()
def main(
    quick: Annotated[
        bool, typer.Option(help="One case of one model, few rounds; shown, and kept only with --json.")
    ] = False,
    models: Annotated[str, typer.Option(help="timm's names, with commas.")] = "",
    forms: Annotated[str, typer.Option(help=f"With commas: {', '.join(FORMS)}. Kept only with --json.")] = "",
    configs: Annotated[
        str, typer.Option(help="With commas: main, growth, or labels such as b8-t2, f64-b1-t2, 384px-b1-t2.")
    ] = "",
    rounds: Annotated[int | None, typer.Option(min=1, help="Timed turns of each form in each case.")] = None,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    render_only: Annotated[
        bool, typer.Option("--render", help="Only write docs/performance.md from what is kept.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option(help="Keep the results in this file instead, and render nothing.")
    ] = None,
    limits: Annotated[bool, typer.Option(help="Measure the machine's limits and the stages too (CPU).")] = True,
) -> None:
    """Measure every form of CoAtNet beside its peers, in interleaved processes, and write docs/performance.md."""
    began = time.monotonic()
    if render_only:
        render.written(out.print)
        return
    try:
        steps, chosen = planned(quick, models, forms, configs, rounds, device.value)
        around = campaign.surroundings(device.value)
    except (ValueError, RuntimeError) as error:
        out.print(f"error: {error}")
        raise typer.Exit(2) from None
    keep = json or (None if quick or forms else results.path_for(device.value, around.get("gpu")))

    def kept(new: dict[str, Any]) -> None:
        if keep is not None:
            results.write(keep, results.merged(results.read(keep), around | new))

    def done(case: Case, record: dict[str, Any]) -> None:
        out.print(show.table(case, record["forms"], show.note(record)))
        for line in show.left_out(record["forms"]):
            out.print(line, soft_wrap=True)
        kept({"cases": {case.key: record}})

    with tempfile.TemporaryDirectory(prefix="coatref-benchmarks-") as folder, out.status("") as status:
        campaign.carried_out(steps, Path(folder), status_or_line(status), done)
        if device is Device.cpu and limits and not quick and not forms:
            kept(campaign.limits_and_breakdown(chosen, status.update))
    out.print(f"{time.monotonic() - began:.0f} s")
    if keep is not None and json is None:
        render.written(out.print)


def planned(
    quick: bool, models: str, forms: str, configs: str, rounds: int | None, device: str
) -> tuple[Plan, list[str]]:
    """The plan that the options mean, and its models.

    Raises:
        ValueError: a form or a label is not known.
    """
    unknown = [name for name in listed(forms) if name not in FORMS]
    if unknown:
        raise ValueError(f"There is no form {unknown[0]!r}; there are {', '.join(FORMS)}.")
    cuda = device == "cuda"
    chosen = listed(models) or list(cases.MODELS[:1] if quick or cuda else cases.MODELS)
    steps = plan.planned(device, chosen, labels_of(configs, device, quick), listed(forms))
    if quick or cuda:
        return Plan(
            steps, rounds or (5 if quick else 15), 8, time.monotonic() + CUDA_SECONDS if cuda else math.inf
        ), chosen
    return Plan(steps, rounds or 15, 30), chosen


def status_or_line(status: Any) -> Any:
    """How progress is told: in place on a terminal, else the workers' states line by line."""

    def tell(text: str) -> None:
        if out.is_terminal:
            status.update(text)
        elif ": round " not in text:
            out.print(text, soft_wrap=True)

    return tell


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
