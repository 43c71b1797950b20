"""What every command prints through: consoles, tables, JSON, and the way numbers and sizes look."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from coatref.specification.grids import Grid


def console(*, stderr: bool = False) -> Console:
    """Where text goes; colour and width follow the terminal, and no text is taken for markup."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def table(title: str | None = None, gap: int = 1) -> Table:
    """An empty table in the style of all commands, with `gap` + 1 spaces between columns."""
    return Table(
        title=title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, gap, 0, 0),
        title_justify="left",
        title_style="bold",
    )


def print_json(value: Any) -> None:
    """A value as JSON on stdout; a number that JSON lacks is an error and no output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def one_line(text: str) -> str:
    """A text without line breaks and control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def size_text(size: Grid) -> str:
    """A height and width as "224x224"."""
    return f"{size[0]}x{size[1]}"
