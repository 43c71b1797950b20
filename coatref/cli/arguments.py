"""Arguments that several commands take."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from coatref.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


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
