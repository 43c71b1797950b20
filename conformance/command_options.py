"""Options of the judge's commands, as typer takes them: each a type with its flag and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecOption = Annotated[
    str | None,
    typer.Option("--spec", metavar="SPEC", help="What it claims to compute: a name, or a JSON file of a spec."),
]
SpecOfCases = Annotated[
    str, typer.Option("--spec", metavar="SPEC", help="What will be judged: a name, or a JSON file of a spec.")
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="TYPE", help="Type it stores values in: float64, float32, float16 or bfloat16."),
]
Accumulate = Annotated[
    str | None,
    typer.Option("--accumulate", metavar="TYPE", help="Type of its sums; by default what its kind of target does."),
]
Level = Annotated[str, typer.Option("--level", metavar="LEVEL", help="quick, default or deep.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of everything that is drawn at random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the verdict alone, without progress.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all as JSON; - is stdout, with nothing else there.")
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the report as a page for a browser.")
]
Target = Annotated[
    str | None,
    typer.Argument(metavar="TARGET", help="What is judged, as KIND:WHAT; the array libraries here if left out."),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="Its weights: a checkpoint, as for coatref forward.")
]

PANEL = "Options of some kinds of target"
Dialect = Annotated[
    str | None,
    typer.Option(
        "--dialect", metavar="NAME", rich_help_panel=PANEL, help="Whose names its parameters have: coatref, timm ..."
    ),
]
Mapping = Annotated[
    str | None,
    typer.Option(
        "--mapping", metavar="MODULE:NAME", rich_help_panel=PANEL, help="Your own function from our parameters to its."
    ),
]
Names = Annotated[
    str | None,
    typer.Option(
        "--names", metavar="FILE", rich_help_panel=PANEL, help="JSON: names of traced values, its own to ours."
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout", metavar="LAYOUT", rich_help_panel=PANEL, help="Of the images that it takes: NHWC or NCHW."
    ),
]
Timeout = Annotated[
    str | None,
    typer.Option("--timeout", metavar="SECONDS", rich_help_panel=PANEL, help="That one run of a program may take."),
]
Jit = Annotated[
    str | None,
    typer.Option("--jit", metavar="yes|no", rich_help_panel=PANEL, help="Whether a JAX function is compiled."),
]
AnySpec = Annotated[
    str | None,
    typer.Option("--any-spec", metavar="yes|no", rich_help_panel=PANEL, help="Whether a function computes every spec."),
]
