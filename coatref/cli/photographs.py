"""`coatref forward --weights` and `coatref classify`: a checkpoint's likeliest classes for photographs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from rich.text import Text

from coatref.cli.engine import Engine, classify, seconds_text
from coatref.cli.output import console, one_line, print_json, size_text, table
from coatref.cli.timing import as_plain as plain_timings
from coatref.cli.timing import show_timings, timings
from coatref.images import photograph, preprocess
from coatref.labels import class_names
from coatref.specification.spec import Spec
from coatref.weights import load
from coatref.weights.sources import located

MOST = 5  # classes shown
CHUNK = 8  # images at a time on an accelerator; a CPU is faster with one
LONGEST_NAME = 120  # characters of a class's name shown; ImageNet's have at most 121
BUNDLED = "china.jpg"  # what `photograph` opens


@dataclass(frozen=True)
class Guess:
    """A class that an image may be of.

    The name is None where none is known, and the logit where the network gives probabilities itself.
    """

    index: int
    name: str | None
    probability: float
    logit: float | None


@dataclass(frozen=True)
class Results:
    """What was computed on what, and the likeliest classes of each image by its name."""

    engine: Engine
    spec: Spec
    weights: str
    bundled: bool  # whether the image is the bundled one, for want of another
    guesses: list[tuple[str, list[Guess]]]
    seconds: float


def classify_photographs(
    engine: Engine,
    source: str,
    spec: str | None,
    images: Sequence[Path],
    size: tuple[int, int] | None,
    *,
    most: int = MOST,
    batch: int | None = None,
    timed: bool = False,
    as_json: bool,
    quiet: bool,
) -> None:
    """Classify images, or the bundled photograph where there are none, and print the likeliest classes of each.

    Args:
        engine: what computes.
        source: of the checkpoint, as for `coatref.load`.
        spec: what the checkpoint is; None: what it says itself.
        images: their files.
        size: height and width to run at; None: the checkpoint's own.
        most: how many classes to print of each image.
        batch: images at a time; None: what is fastest, as far as known.
        timed: whether to time the forms as well.
        as_json, quiet: how to print.
    """
    path, config = located(source)
    params = load(path, spec, dtype=engine.dtype)
    if size is not None and size != params.spec.image_size:
        params = params.resize(*size)
    found = params.spec
    classes = class_names(found.head.classes, config)

    def prepare(some: list[Any]) -> Any:
        dtype = cast('Literal["float32", "float64"]', engine.dtype)
        return preprocess(some, found, dtype=dtype)

    items: list[Any] = list(images) or [photograph()]
    chunk = batch or (1 if engine.on_cpu else CHUNK)
    outputs, seconds = classify(engine, engine.params(params), items, prepare, chunk, quiet or as_json)
    names = [str(path) for path in images] or [BUNDLED]
    guesses = [(name, likeliest(row, found, most, classes)) for name, row in zip(names, outputs, strict=True)]
    results = Results(engine, found, source, not images, guesses, seconds)
    some = items[:chunk]
    forms = timings(engine, params, prepare(some)) if timed else []
    if as_json:
        print_json(as_plain(results) | ({"timings": plain_timings(forms, len(some))} if timed else {}))
        return
    if quiet:
        show_lines(results)
    else:
        show_tables(results)
    if timed:
        show_timings(forms, len(some))


def likeliest(output: Any, spec: Spec, most: int, names: Sequence[str] | None) -> list[Guess]:
    """The likeliest classes of one image, at most `most`, best first; of equal ones the first."""
    values = np.asarray(output, dtype=np.float64)
    best = [int(index) for index in np.argsort(-values, kind="stable")[:most]]
    name = (lambda index: None) if names is None else names.__getitem__
    if spec.head.output == "probabilities":
        return [Guess(index, name(index), float(values[index]), None) for index in best]
    powers = np.exp(values - values.max())
    return [Guess(index, name(index), float(powers[index] / powers.sum()), float(values[index])) for index in best]


def as_plain(results: Results) -> dict[str, Any]:
    """Everything for JSON."""
    return {
        "spec": results.spec.name,
        "weights": results.weights,
        "image_size": list(results.spec.image_size),
        "engine": results.engine.described(),
        "seconds": results.seconds,
        "images": [
            {"image": name, "bundled": results.bundled, "top": [dataclasses.asdict(guess) for guess in guesses]}
            for name, guesses in results.guesses
        ],
    }


def show_lines(results: Results) -> None:
    """One line for each image: its name and the likeliest class."""
    out = console()
    for name, (best, *_) in results.guesses:
        called = "" if best.name is None else f" ({shown_name(best.name)})"
        out.print(f"{one_line(name)}: class {best.index}{called}, {best.probability:.2%}", soft_wrap=True)


def show_tables(results: Results) -> None:
    """A table for each image, and what computed it."""
    out, spec = console(), results.spec
    title = Text.assemble((one_line(spec.name), "bold"), f" from {one_line(results.weights)}, ")
    out.print(title + Text(f"images at {size_text(spec.image_size)}"), soft_wrap=True)
    if results.bundled:
        out.print(f"No --image was given: this is the bundled photograph, {BUNDLED}.")
    for name, guesses in results.guesses:
        out.print()
        out.print(Text(one_line(name), style="bold"), soft_wrap=True)
        listing = table()
        for heading in ("class", "probability", "logit"):
            listing.add_column(heading, justify="right")
        if guesses[0].name is not None:
            listing.add_column("name")
        for guess in guesses:
            logit = "" if guess.logit is None else f"{guess.logit:.4f}"
            called = [] if guess.name is None else [shown_name(guess.name)]
            listing.add_row(str(guess.index), f"{guess.probability:.2%}", logit, *called)
        out.print(listing)
    count = len(results.guesses)
    out.print()
    out.print(f"{count} image{'s' * (count != 1)}, {seconds_text(results.seconds, results.engine)}", soft_wrap=True)


def shown_name(name: str) -> str:
    """The name of a class, which a file gave, on one line of bounded length.

    >>> shown_name("tench,\\n Tinca \\x1b[31mtinca"), len(shown_name("x" * 1000))
    ('tench, Tinca ?[31mtinca', 120)
    """
    line = one_line(name)
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 3]}..."
