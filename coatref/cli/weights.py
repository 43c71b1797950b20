"""`coatref export` and `coatref convert-weights`: parameters in other projects' names and layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from coatref.cli.arguments import Json, parse_size
from coatref.cli.output import console, one_line, print_json, size_text
from coatref.errors import InputError
from coatref.params import Params
from coatref.weights.dialects import DIALECTS
from coatref.weights.load import load
from coatref.weights.represent import represented
from coatref.weights.resize import Resize
from coatref.weights.written import write_dialect

EXPORT_EXAMPLES = """Examples:

coatref export mine.safetensors theirs.safetensors --dialect timm

coatref export hf-hub:timm/coatnet_0_rw_224.sw_in1k arrays.npz

coatref export coatnet0.h5 copy.h5 --dialect kecam"""
CONVERT_EXAMPLES = """Examples:

coatref convert-weights model.pth model.safetensors --to timm

coatref convert-weights hf-hub:timm/coatnet_0_rw_224.sw_in1k own.safetensors --to coatref

coatref convert-weights model.safetensors larger.safetensors --to timm --size 288 --resize timm"""

Source = Annotated[
    str, typer.Argument(metavar="IN", help="Checkpoint: a file, a folder of the hub's layout, or hf-hub:OWNER/NAME.")
]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .safetensors, .npz or .h5.")]
SpecName = Annotated[
    str | None, typer.Option("--spec", metavar="NAME", help="What the checkpoint is, where its tensors leave it open.")
]
LayoutName = Annotated[
    str | None,
    typer.Option("--layout", metavar="NAME", help="Of the dialects that have several: kecam's torch or keras."),
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", metavar="TYPE", help="float16, float32 or float64; else as the checkpoint.")
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="HxW", help="Resize relative-bias tables for another image size.")
]
ResizeName = Annotated[
    str, typer.Option("--resize", metavar="HOW", help="paper (bilinear) or timm (its geometric grid).")
]


def export(
    source: Source,
    target: Target,
    dialect: Annotated[
        str, typer.Option("--dialect", metavar="NAME", help=f"Whose names and layouts: {', '.join(DIALECTS)}.")
    ] = "coatref",
    spec: SpecName = None,
    layout: LayoutName = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint's parameters under a dialect's names, whatever network they are of.

    To have them as a network that the other project can compute, use convert-weights, which refuses what it cannot.
    """
    refuse_unknown(dialect)
    params = load(source, spec, dtype=dtype)
    written(params, target, dialect, layout, source, as_json)


def convert_weights(
    source: Source,
    target: Target,
    to: Annotated[
        str, typer.Option("--to", metavar="DIALECT", help=f"Whose weights they become: {', '.join(DIALECTS)}.")
    ],
    spec: SpecName = None,
    layout: LayoutName = None,
    dtype: Dtype = None,
    size: Size = None,
    resize: ResizeName = "paper",
    as_json: Json = False,
) -> None:
    """Convert a checkpoint to another dialect or file format, if that can hold it.

    The dialect must have a network that computes the same; where it has none, the conventions in the way are named and
    nothing is written.
    """
    refuse_unknown(to)
    how: Resize = resize  # type: ignore[assignment]  # load refuses another one
    params = load(source, spec, dtype=dtype, image_size=parse_size(size), resize=how)
    written(represented(params, to), target, to, layout, source, as_json)


def refuse_unknown(dialect: str) -> None:
    """Refuse a dialect that there is not, before anything is loaded.

    Raises:
        InputError: names those that there are.
    """
    if dialect not in DIALECTS:
        raise InputError(f"There is no dialect {dialect!r:.80}; known are {', '.join(DIALECTS)}.")


def written(params: Params, target: Path, dialect: str, layout: str | None, source: str, as_json: bool) -> None:
    """Write parameters in a dialect, and say what was written."""
    if Path(source).exists() and target.exists() and Path(source).samefile(target):
        raise InputError(f"{target} is the file that is read; write to another one.")
    chosen = write_dialect(params, target, dialect, layout=layout)
    first = next(iter(params.flatten().values()))
    facts = {
        "spec": params.spec.name,
        "dialect": dialect,
        "layout": chosen,
        "tensors": len(params.flatten()),
        "parameters": params.spec.num_parameters(),
        "dtype": str(first.dtype),
        "image_size": list(params.spec.image_size),
        "bytes": target.stat().st_size,
        "file": str(target),
    }
    if as_json:
        print_json(facts)
        return
    console().print(
        Text.assemble(
            (one_line(str(target)), "bold"),
            f": {one_line(params.spec.name)} for images of {size_text(params.spec.image_size)} in the names of {dialect}"
            f"{f' ({chosen})' if len(DIALECTS[dialect].layouts) > 1 else ''}, {facts['parameters']:,} parameters, "
            f"{facts['dtype']}, {facts['bytes']:,} bytes",
        ),
        soft_wrap=True,
    )
