"""`coatref info`: versions, and what can compute here."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from typing import Any

from rich.table import Table
from rich.text import Text

import coatref
from coatref.cli.arguments import Json
from coatref.cli.engine import devices_of, version_of
from coatref.cli.output import console, one_line, print_json
from coatref.errors import CoatrefError
from coatref.registry import library

NEEDED = ("numpy", "array-api-compat", "scipy", "threadpoolctl", "safetensors", "pillow", "typer", "rich")
OPTIONAL = ("numba", "torch", "jax", "timm", "array-api-strict", "scikit-learn", "hypothesis", "pytest")


def info(as_json: Json = False) -> None:
    """Show versions, and the array libraries with their data types and devices."""
    found = {
        "coatref": coatref.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: installed(name) for name in (*NEEDED, *OPTIONAL)},
        "libraries": [describe(name) for name in library_names()],
    }
    if as_json:
        print_json(found)
    else:
        show(found)


def installed(distribution: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(name: str) -> dict[str, Any]:
    """What an array library has here, or why it cannot be used."""
    try:
        found = library(name)
        refused = {dtype: found.refuse_dtype(dtype) for dtype in found.dtypes}
        return {
            "name": name,
            "version": version_of(found),
            "dtypes": list(found.dtypes),
            "refused_dtypes": {dtype: reason for dtype, reason in refused.items() if reason},
            "devices": list(devices_of(found)),
            "erf": "standard form" if found.erf is None else "own",
            "fast_forms": sorted(found.primitives),
            "forms": fast_forms().forms(found),
            "without": dict(found.without()),
            "unavailable": None,
        }
    except CoatrefError as error:
        return {"name": name, "unavailable": one_line(str(error))}
    except Exception as error:  # noqa: BLE001 - whatever a library that is half installed, or without its driver, raises
        return {"name": name, "unavailable": one_line(f"{type(error).__name__}: {error}")}


def library_names() -> list[str]:
    """The registered array libraries; one that has several modules of arrays comes once."""
    found: list[str] = fast_forms().names()
    return found


def fast_forms() -> Any:
    """`coatref.backends.describe`, found by name: no import leads from here to the fast forms."""
    return importlib.import_module("coatref.backends.describe")


def show(found: dict[str, Any]) -> None:
    """Everything as text."""
    out = console()
    out.print(f"coatref {found['coatref']}, Python {found['python']}, {found['platform']}", soft_wrap=True)
    packages = found["packages"]
    for title, names in (("needed", NEEDED), ("optional", OPTIONAL)):
        listed = ", ".join(f"{name} {packages[name] or 'not installed'}" for name in names)
        out.print(f"{title}: {listed}")
    for entry in found["libraries"]:
        out.print()
        out.print(library_grid(entry))


def library_grid(entry: dict[str, Any]) -> Table:
    """One array library, its name on the left."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(min_width=24, no_wrap=True)
    grid.add_column(overflow="fold")
    lines = available(entry) if not entry["unavailable"] else [f"not to be had: {entry['unavailable']}"]
    name = Text(f"{entry['name']} {entry.get('version', '')}", style="bold")
    grid.add_row(name, lines[0])
    for line in lines[1:]:
        grid.add_row("", line)
    return grid


def available(entry: dict[str, Any]) -> list[str]:
    """What a library has, line by line."""
    erf = "its own" if entry["erf"] == "own" else "the standard form of coatref.special"
    refused = [f"{dtype} only on request: {reason}" for dtype, reason in entry["refused_dtypes"].items()]
    return [
        f"data types: {', '.join(entry['dtypes'])}",
        *refused,
        f"devices: {', '.join(entry['devices'])}",
        f"error function: {erf}",
        *form_lines(entry),
    ]


def form_lines(entry: dict[str, Any]) -> list[str]:
    """Which form serves what, in words."""
    own = entry["fast_forms"]
    rest = [name for name in entry["forms"]["primitives"] if name not in own]
    steps = [name for name, place in entry["forms"]["steps"].items() if place != "the primitives"]
    return [
        f"fast forms: {', '.join(own) or 'none'}",
        *([f"by the definition: {', '.join(rest)}"] if own and rest else []),
        f"prepared: {('own steps ' + ', '.join(steps)) if steps else 'in steps made of its primitives'}",
        *(f"without {name}: {reason}" for name, reason in entry["without"].items()),
    ]
