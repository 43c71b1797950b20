"""Small pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are aligned left and the others right."""
    rule = [":--" if number < left else "--:" for number in range(len(head))]
    return "\n".join("| " + " | ".join(cell or " " for cell in row) + " |" for row in (head, rule, *rows))


def joined(parts: Iterable[str]) -> str:
    """Paragraphs, tables and headings with a blank line between."""
    return "\n\n".join(part for part in parts if part) + "\n"


def code(text: str) -> str:
    """A word as code."""
    return f"`{text}`"
