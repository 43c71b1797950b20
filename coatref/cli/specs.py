"""`coatref specs` and `coatref spec`: the named networks and their size."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coatref import specification
from coatref.cli.arguments import Json, parse_size
from coatref.cli.breakdown import Part, breakdown, comparisons
from coatref.cli.output import console, one_line, print_json, size_text, table
from coatref.specification.parts import Transformer
from coatref.specification.spec import Spec

GROUPS = {
    "paper": "The paper's family",
    "layouts": "Layouts compared in Sec. 2.2",
    "ablations": "Ablations and other readings",
    "timm": "timm's models",
    "kecam": "Models of keras_cv_attention_models",
    "google": "The paper's networks of Google's own blocks",
    "chinhsuanwu": "Models of chinhsuanwu/coatnet-pytorch",
    "hw666": "Models of hw666666666666/CoAtNet (MindSpore)",
}


def group_of(name: str) -> str:
    """Which group of `GROUPS` a named spec is in.

    >>> group_of("coatnet_0"), group_of("c-c-t-t"), group_of("coatnet_2/v1"), group_of("kecam/CoAtNet0")
    ('paper', 'layouts', 'ablations', 'kecam')
    """
    dialect, slash, _ = name.partition("/")
    if slash and dialect in GROUPS:
        return dialect
    if "/" in name:
        return "ablations"
    return "paper" if name.startswith("coatnet_") else "layouts"


def specs(as_json: Json = False) -> None:
    """List the named networks with their parameters and image size."""
    found = [specification.spec(name) for name in specification.specs()]
    if as_json:
        print_json(
            [
                {
                    "name": spec.name,
                    "group": group_of(spec.name),
                    "parameters": spec.num_parameters(),
                    "image_size": list(spec.image_size),
                }
                for spec in found
            ]
        )
        return
    out = console()
    out.print(specs_table(found))
    out.print("\nOne of them in detail: coatref spec NAME", style="dim")


def specs_table(found: list[Spec]) -> Table:
    """All named networks, group by group."""
    listing = table()
    listing.add_column("name")
    listing.add_column("parameters", justify="right")
    listing.add_column("image size", justify="right")
    for number, (group, title) in enumerate(GROUPS.items()):
        if number:
            listing.add_row()
        listing.add_row(Text(title, style="bold"))
        for spec in (spec for spec in found if group_of(spec.name) == group):
            listing.add_row(f"  {spec.name}", f"{spec.num_parameters():,}", size_text(spec.image_size))
    return listing


def spec(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A network that `coatref specs` lists.")],
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Image size, as 256x320, or 384 for a square.")
    ] = None,
    classes: Annotated[int | None, typer.Option("--classes", metavar="N", help="Classes of the head.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole spec as JSON; Spec.from_json reads it.")
    ] = False,
) -> None:
    """Show one network: its stages, their grids, and where parameters and multiply-adds are.

    Beside the totals stand the figures that the paper prints for that network, where it prints any.
    """
    chosen = specification.spec(name, image_size=parse_size(size), classes=classes)
    if as_json:
        print_json(json.loads(chosen.to_json()))
        return
    out = console()
    show_parts(out, chosen)
    show_comparisons(out, name)


def show_parts(out: Console, spec: Spec) -> None:
    """The table of stages with its totals."""
    out.print(
        Text.assemble((spec.name, "bold"), f", images of {size_text(spec.image_size)}, {spec.head.classes} classes"),
        soft_wrap=True,
    )
    out.print()
    out.print(parts_table(breakdown(spec)))
    for line in remarks(spec):
        out.print(line, style="dim")


def parts_table(parts: list[Part]) -> Table:
    """One row for each part and one for the sums."""
    listing = table(gap=0)  # CoAtNet-7 needs all of 80 columns
    listing.show_footer = True
    totals = [sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts)]
    listing.add_column("stage", footer="total")
    listing.add_column("blocks")
    for heading in ("width", "heads", "stride", "grid"):
        listing.add_column(heading, justify="right")
    for heading, total in zip(("parameters", "multiply-adds"), totals, strict=True):
        listing.add_column(heading, justify="right", footer=f"{total:,}", no_wrap=True)
    for part in parts:
        listing.add_row(
            part.stage,
            part.blocks,
            str(part.width),
            ", ".join(map(str, part.heads)),
            str(part.stride) if part.stage != "head" else "",
            size_text(part.grid),
            f"{part.parameters:,}",
            f"{part.multiply_adds:,}",
        )
    return listing


def remarks(spec: Spec) -> list[str]:
    """What the table cannot show."""
    runs = [run for stage in spec.stages for run in stage if isinstance(run, Transformer)]
    forms = dict.fromkeys(
        f"{run.attention.form} {size_text(run.attention.window)}" if run.attention.window else run.attention.form
        for run in runs
    )
    lines = [f"Attention: {', '.join(forms)}."] if set(forms) - {"global"} else []
    if any(len(part.heads) > 1 for part in breakdown(spec)):
        lines.append("Two numbers of heads: those of a stage's first block, then of the others.")
    return lines


def show_comparisons(out: Console, name: str) -> None:
    """The paper's figures beside ours, if it prints any."""
    found = comparisons(name)
    if not found:
        return
    listing = table(f"{one_line(name)} as published: our counts beside the paper's")
    listing.add_column("")
    for heading in ("ours", "paper", "difference"):
        listing.add_column(heading, justify="right")
    for row in found:
        unit, scale = ("M", 1e6) if row.what == "parameters" else ("G", 1e9)
        listing.add_row(
            row.what, f"{row.ours / scale:.2f} {unit}", f"{row.paper / scale:g} {unit}", f"{row.difference:+.1f} %"
        )
    out.print()
    out.print(listing)
