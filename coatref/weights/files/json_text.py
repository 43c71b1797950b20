"""JSON of unknown origin."""

from __future__ import annotations

import json
from typing import Any

from coatref.errors import FileFormatError


def parsed(content: bytes) -> Any:
    """The value of a JSON text, whose length the caller has bounded.

    Raises:
        FileFormatError: it is no JSON in UTF-8, is nested too deeply, or repeats a key; the message is a part of a
            sentence.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"it is not the JSON that it should be ({str(error)[:200]})") from None


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused when a key stands twice (readers disagree on which one counts)."""
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise ValueError("it repeats a key in one object")
    return plain
