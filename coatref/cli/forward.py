"""`coatref forward`: images in, classes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coatref.cli.arguments import Json, parse_size
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
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", help="Checkpoint: .safetensors, or .pth, .pt or .bin where torch is."
        ),
    ] = None,
    spec: Annotated[
        str | None, typer.Option("--spec", metavar="NAME", help="What the checkpoint is, unless it says so itself.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="Image to classify; may be given several times."),
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", metavar="LIBRARY", help="Array library: numpy, torch, jax or cupy.")
    ] = "numpy",
    dtype: Annotated[str, typer.Option("--dtype", metavar="TYPE", help="float32 or float64.")] = "float32",
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Such as cpu or cuda:0; see coatref info.")
    ] = None,
    definition: Annotated[
        bool, typer.Option("--definition", help="Compute by the definition alone, without the library's fast forms.")
    ] = False,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="Run at another image size; relative-bias tables are interpolated."),
    ] = None,
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
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results in single lines, without progress.")
    ] = False,
) -> None:
    """Classify images: the five likeliest classes of each, with probability and logit.

    Without arguments: bundled handwritten digits, which the bundled checkpoint was not trained on; counts the right ones.

    With --weights and no --image: the bundled photograph.

    The time is that of the forward pass alone, without reading and preparing; with --time the forms are timed as well.
    """
    if dtype not in ("float32", "float64"):
        raise InputError(f"--dtype {dtype!r} is not known; it is float32 or float64.")
    wanted = parse_size(size)
    if weights is None:
        given = [name for name, value in (("--spec", spec), ("--image", image), ("--size", size)) if value]
        if given:
            raise InputError(f"{' and '.join(given)} needs a checkpoint; name one with --weights FILE.")
        engine = make_engine(backend, dtype, device, definition, threads)
        classify_digits(engine, timed=timed, as_json=as_json, quiet=quiet)
        return
    engine = make_engine(backend, dtype, device, definition, threads)
    classify_photographs(engine, weights, spec, image or [], wanted, timed=timed, as_json=as_json, quiet=quiet)
