"""Which form serves which primitive and which step, library by library."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from coatref.backends.fused import Fused, from_primitives
from coatref.errors import CoatrefError
from coatref.primitives import DEFINITION, Primitives
from coatref.registry import Library, library, registered


def describe() -> dict[str, dict[str, Any]]:
    """What computes each primitive of `coatref.forward`, and each step of prepared parameters, on every known library.

    Returns:
        Name of the library -> {
            "unavailable": why the library cannot be used here, or None; the rest is there only with None,
            "primitives": name in `coatref.primitives.Primitives` -> the module and function that serve it; the definition's
                are in `coatref.ops` and `coatref.attention`,
            "steps": name in `coatref.backends.fused.Fused` -> likewise; "the primitives" where a step is made of these,
            "without": form that the library could have -> why it has not,
        }
    """
    return {name: described(name) for name in names()}


def names() -> list[str]:
    """The registered libraries; one whose arrays come from several modules is named once."""
    places: dict[str, str] = {}
    for name, place in registered().items():
        places.setdefault(place, name)
    return list(places.values())


def described(name: str) -> dict[str, Any]:
    """One entry of `describe`."""
    try:
        found = library(name)
    except CoatrefError as error:
        return {"unavailable": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a library that is half installed, or without its driver, raises
        return {"unavailable": f"{type(error).__name__}: {error}"}
    return {"unavailable": None, **forms(found), "without": dict(found.without())}


def forms(found: Library) -> dict[str, dict[str, str]]:
    """The functions that serve a library, by name."""
    served = dataclasses.replace(DEFINITION, **found.primitives)
    steps: Fused = found.fused(None) if found.fused is not None else from_primitives(served)
    return {
        "primitives": {field.name: place(getattr(served, field.name)) for field in dataclasses.fields(Primitives)},
        "steps": {
            field.name: step_place(getattr(steps, field.name), served)
            for field in dataclasses.fields(Fused)
            if field.name != "lay_out"
        },
    }


def place(function: Callable[..., Any]) -> str:
    """The dotted name of a function, also of one with some arguments given."""
    while isinstance(function, functools.partial):
        function = function.func
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", repr(function))
    return f"{module}.{name}" if module else str(name)


def step_place(function: Callable[..., Any] | None, served: Primitives) -> str:
    """The same for a step, unless it is made of primitives or is one."""
    if function is None or function in dataclasses.astuple(served):
        return "the primitives"
    found = place(function)
    return "the primitives" if found.startswith("coatref.backends.fused.") else found
