"""`coatref forward --time`: how long each form of the forward pass takes, one beside the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.cli.engine import Engine
from coatref.cli.output import console, table
from coatref.model import forward
from coatref.params import Params
from coatref.prepared import prepare

LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 3, 30, 3.0  # rounds of all forms, and how long to go on with them


@dataclass(frozen=True)
class Timing:
    """What one form of the forward pass took for one batch, in seconds."""

    form: str
    median: float
    fastest: float
    rounds: int


def timings(engine: Engine, params: Params, batch: Any) -> list[Timing]:
    """Time the definition, the fast forms and the prepared ones on one batch, in turns.

    Each is run once beforehand, which is when libraries compile.

    Args:
        engine: what computes; its `definition` leaves the other forms out.
        params: as they were loaded.
        batch: a NumPy array (N, H, W, C).
    """
    x = engine.array(batch)
    forms = {name: waited(engine, run) for name, run in the_forms(engine, params, x).items()}
    for run in forms.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    began = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() - began > SECONDS:
            break
        for name, run in forms.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return [Timing(name, statistics.median(took), min(took), len(took)) for name, took in seconds.items()]


def the_forms(engine: Engine, params: Params, x: Any) -> dict[str, Callable[[], Any]]:
    """Name of a form -> the forward pass by it, on arrays of the engine's library."""
    moved = params.to(xp=engine.library.name, dtype=engine.dtype, device=engine.device)

    def definition(params: Params, x: Any) -> Any:
        return forward(params, x, backend="definition")

    if engine.compiles:
        import jax

        definition = jax.jit(definition)
    forms: dict[str, Callable[[], Any]] = {"definition": lambda: definition(moved, x)}
    if not engine.definition:
        ready = prepare(moved)
        forms["fast forms"] = lambda: engine.forward(moved, x)
        forms["fast forms, prepared"] = lambda: engine.forward(ready, x)
    return forms


def waited(engine: Engine, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same, with its result brought to the host: some libraries return before they have computed."""
    return lambda: np.asarray(engine.library.to_numpy(run()))


def as_plain(found: list[Timing], images: int) -> list[dict[str, Any]]:
    """The timings for JSON."""
    return [
        {
            "form": timing.form,
            "images": images,
            "median_seconds": timing.median,
            "fastest_seconds": timing.fastest,
            "rounds": timing.rounds,
        }
        for timing in found
    ]


def show_timings(found: list[Timing], images: int) -> None:
    """A table of the timings, for a batch of so many images."""
    out, first = console(), found[0]
    out.print()
    out.print(
        f"Forward pass of {images} image{'s' * (images != 1)}, {first.rounds} rounds in turns after a first run:",
        soft_wrap=True,
    )
    listing = table()
    listing.add_column("form")
    for heading in ("median", "fastest", "to the definition"):
        listing.add_column(heading, justify="right")
    for timing in found:
        ratio = f"{timing.median / first.median:.2f}"
        listing.add_row(timing.form, f"{timing.median * 1e3:.1f} ms", f"{timing.fastest * 1e3:.1f} ms", ratio)
    out.print(listing)
