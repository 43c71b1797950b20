"""Arguments that several commands take."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from coatref.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results in single lines, without progress.")]

CHECKPOINT = "Checkpoint: a file, a folder with one and its config.json, or hf-hub:OWNER/NAME."
SpecName = Annotated[
    str | None, typer.Option("--spec", metavar="NAME", help="What the checkpoint is, unless it says so itself.")
]
RunSize = Annotated[
    str | None,
    typer.Option("--size", metavar="HxW", help="Run at another image size; relative-bias tables are interpolated."),
]

Backend = Annotated[str, typer.Option("--backend", metavar="LIBRARY", help="Array library: numpy, torch, jax or cupy.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="TYPE", help="float32 or float64.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="Such as cpu or cuda:0; see coatref info.")
]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width from "HxW", or from "N" for a square.

    Raises:
        InputError: the text is neither.

    >>> parse_size("256x320"), parse_size("384")
    ((256, 320), (384, 384))
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text.strip().lower())
    if match is None:
        raise InputError(
            f"--size {text!r} is no image size; give height x width in pixels as 256x320, or 384 for a square."
        )
    height, width = int(match[1]), int(match[2] or match[1])
    return height, width
