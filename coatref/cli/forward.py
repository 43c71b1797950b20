"""`coatref forward`: images in, classes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coatref.cli.arguments import CHECKPOINT, Backend, Device, Dtype, Json, Quiet, RunSize, SpecName, parse_size
from coatref.cli.digits import classify_digits
from coatref.cli.engine import make_engine
from coatref.cli.photographs import classify_photographs
from coatref.errors import InputError

EXAMPLES = """Examples:

coatref forward

coatref forward --backend torch --dtype float64

coatref forward --backend numpy --threads 1 --time

coatref forward --weights mine.safetensors --image cat.jpg --image dog.jpg

coatref forward --weights timm.safetensors --spec timm/coatnet_0_rw_224 --size 256x320 --json"""


def forward(
    weights: Annotated[str | None, typer.Option("--weights", metavar="SOURCE", help=CHECKPOINT)] = None,
    spec: SpecName = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="Image to classify; may be given several times."),
    ] = None,
    backend: Backend = "numpy",
    dtype: Dtype = "float32",
    device: Device = None,
    definition: Annotated[
        bool, typer.Option("--definition", help="Compute by the definition alone, without the library's fast forms.")
    ] = False,
    size: RunSize = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", help="Threads of NumPy's fast forms; else COATREF_NUM_THREADS, else all cores."
        ),
    ] = None,
    timed: Annotated[
        bool,
        typer.Option("--time", help="Also time the definition, the fast forms and the prepared ones, in turns."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Classify images: the five likeliest classes of each, with probability and logit.

    Without arguments: bundled handwritten digits, which the bundled checkpoint was not trained on; counts the right ones.

    With --weights and no --image: the bundled photograph.

    The time is that of the forward pass alone, without reading and preparing; with --time the forms are timed as well.
    """
    wanted = parse_size(size)
    if weights is None:
        given = [name for name, value in (("--spec", spec), ("--image", image), ("--size", size)) if value]
        if given:
            raise InputError(f"{' and '.join(given)} needs a checkpoint; name one with --weights SOURCE.")
        engine = make_engine(backend, dtype, device, definition, threads)
        classify_digits(engine, timed=timed, as_json=as_json, quiet=quiet)
        return
    engine = make_engine(backend, dtype, device, definition, threads)
    classify_photographs(engine, weights, spec, image or [], wanted, timed=timed, as_json=as_json, quiet=quiet)
