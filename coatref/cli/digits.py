"""`coatref forward` without arguments: the bundled checkpoint on bundled handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coatref import digits
from coatref.cli.engine import Engine, classify, seconds_text
from coatref.cli.output import console, print_json, size_text
from coatref.cli.timing import as_plain as plain_timings
from coatref.cli.timing import show_timings, timings
from coatref.specification.spec import Spec

CHUNK = 30  # digits at a time; within a quarter of the fastest from 15 to 60
PICTURES = 4  # digits drawn, side by side in 80 columns
SHADES, ASCII_SHADES = " ░▒▓█", " .:*#"


@dataclass(frozen=True)
class Results:
    """Digits with what they are and what they were taken for."""

    engine: Engine
    spec: Spec
    images: Any  # (M, 8, 8) uint8
    labels: Any  # (M,)
    predictions: Any  # (M,)
    seconds: float

    @property
    def right(self) -> int:
        """How many were recognised."""
        return int((self.predictions == self.labels).sum())


def classify_digits(engine: Engine, *, timed: bool, as_json: bool, quiet: bool) -> None:
    """Classify the digits that the bundled checkpoint has not seen, and print how many are right."""
    images, labels = digits.heldout()
    params = digits.checkpoint()
    outputs, seconds = classify(engine, engine.params(params), images, digits.upscale, CHUNK, quiet or as_json)
    results = Results(engine, params.spec, images, np.asarray(labels), outputs.argmax(axis=1), seconds)
    found = timings(engine, params, digits.upscale(images[:CHUNK])) if timed else []
    if as_json:
        print_json(as_plain(results) | ({"timings": plain_timings(found, CHUNK)} if timed else {}))
        return
    out = console()
    if not quiet:
        show_pictures(out, results)
    out.print(summary(results), soft_wrap=True)
    if timed:
        show_timings(found, CHUNK)


def as_plain(results: Results) -> dict[str, Any]:
    """Everything but the pictures for JSON."""
    return {
        "spec": results.spec.name,
        "image_size": list(results.spec.image_size),
        "engine": results.engine.described(),
        "seconds": results.seconds,
        "total": len(results.labels),
        "right": results.right,
        "labels": results.labels.tolist(),
        "predictions": results.predictions.tolist(),
    }


def summary(results: Results) -> str:
    """How many are right, how long it took, and what computed it."""
    count = len(results.labels)
    share = f"{results.right} of {count} right ({results.right / count:.1%})".replace("%", " %")
    return f"{share}, {seconds_text(results.seconds, results.engine)}"


def show_pictures(out: Console, results: Results) -> None:
    """A few digits as characters, above what they are and what they were taken for."""
    spec = results.spec
    out.print(
        f"{len(results.labels)} handwritten digits that the bundled checkpoint was not trained on, at "
        f"{size_text(spec.image_size)}"
    )
    out.print(f"Checkpoint: {spec.name}, {spec.num_parameters():,} parameters")
    out.print()
    out.print(pictures_table(results, SHADES if out.encoding.lower().startswith("utf") else ASCII_SHADES))
    out.print()


def pictures_table(results: Results, shades: str) -> Table:
    """The pictures side by side, their labels and predictions below."""
    shown = choose(results.predictions == results.labels)
    listing = Table.grid(padding=(0, 1))
    listing.add_column()
    for _ in shown:
        listing.add_column(no_wrap=True)
    listing.add_row("", *(Text(draw(results.images[index], shades)) for index in shown))
    listing.add_row("label", *(str(results.labels[index]) for index in shown))
    said = (Text(str(results.predictions[index])) for index in shown)
    wrong = (results.predictions[index] != results.labels[index] for index in shown)
    listing.add_row(
        "predicted",
        *(Text(f"{text} (wrong)", "bold red") if bad else text for text, bad in zip(said, wrong, strict=True)),
    )
    return listing


def choose(right: Any, count: int = PICTURES) -> list[int]:
    """Which digits to draw: the first ones that are right, and last the first one that is wrong, if any is."""
    good, bad = np.flatnonzero(right).tolist(), np.flatnonzero(~right).tolist()
    chosen = good[: count - min(len(bad), 1)]
    return [*chosen, *bad[: count - len(chosen)]]


def draw(image: Any, shades: str = SHADES) -> str:
    """An image as lines of characters, the more ink the greater the value; two for each pixel, since these are narrow.

    >>> print(draw(np.asarray([[0, 16], [8, 4]]), ASCII_SHADES))
      ##
    ::..
    """
    levels = np.rint(image / max(image.max(), 1) * (len(shades) - 1)).astype(int)
    return "\n".join("".join(shades[level] * 2 for level in row) for row in levels)
