"""Finding what a user means by "package.module:name", as `python -m` would from the current directory."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from coatref.errors import InputError


@contextlib.contextmanager
def importable_from_here() -> Iterator[None]:
    """The current directory in front of `sys.path`, which is put back afterwards."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def imported(text: str, what: str) -> tuple[ModuleType, Any]:
    """The module and the object that a text names.

    Args:
        text: "package.module:name"; the name may have dots.
        what: that it should be, for messages.

    Raises:
        InputError: the text is not of that form, or there is no such module or name, or importing it fails.
    """
    place, colon, name = text.partition(":")
    if not (place and colon and name):
        raise InputError(f"{what} is written package.module:name, got {text!r:.200}.")
    with importable_from_here():
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise failed(text, what, error) from error  # the module is there, and imports one that is not
            raise InputError(
                f"{what} {text!r:.200} was asked for, and there is no module {error.name!r}; it was looked for in "
                f"{os.getcwd()} and where Python finds packages: run from the folder that holds it, or install it."
            ) from None
        except Exception as error:
            raise failed(text, what, error) from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            similar = difflib.get_close_matches(part, dir(found), n=3, cutoff=0.5)
            advice = f"; similar names: {', '.join(similar)}" if similar else ""
            raise InputError(f"{what} {text!r:.200} was asked for, and {place} has no {name!r}{advice}.")
        found = getattr(found, part)
    return module, found


def imported_function(text: str, what: str) -> tuple[ModuleType, Any]:
    """As `imported`, for what can be called.

    Raises:
        InputError: as there, or it cannot be called.
    """
    module, found = imported(text, what)
    if not callable(found):
        raise InputError(f"{what} {text!r:.200} must be a function, and is a {type(found).__name__}.")
    return module, found


def failed(text: str, what: str, error: Exception) -> InputError:
    """The error for a module whose own code fails."""
    return InputError(
        f"{what} {text!r:.200} was asked for, and importing it failed with {type(error).__name__}: {str(error)[:300]}; "
        "try it with python -c 'import ...'."
    )
