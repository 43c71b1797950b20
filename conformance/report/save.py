"""Reports as files, which appear under their name only when they are whole."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from coatref.conformance.report.as_json import dumps
from coatref.conformance.report.html import page
from coatref.conformance.report.results import Report


def save_json(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report as JSON, replacing what was there.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    _write(dumps(report), path)


def save_html(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report as one self-contained HTML page, replacing what was there.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    _write(page(report), path)


def _write(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text beside its place, then move it there."""
    target = Path(os.path.realpath(path))  # so that a link stays one
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent} to write {target.name} to; make it first.")
    temporary = target.with_name(f".coatref-{secrets.token_hex(8)}")
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
