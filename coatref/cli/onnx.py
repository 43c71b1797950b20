"""`coatref onnx`: a network with its weights as an ONNX file."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from coatref.cli.arguments import Json, parse_size
from coatref.cli.output import console, one_line, print_json, size_text
from coatref.errors import FileFormatError
from coatref.onnx_export.export import DEFAULT_OPSET, Exported, exported
from coatref.specification.spec import Spec
from coatref.weights import load

EXAMPLES = """Examples:

coatref onnx mine.safetensors mine.onnx

coatref onnx timm.safetensors net.onnx --spec timm/coatnet_0_rw_224 --layout NCHW

coatref onnx mine.safetensors half.onnx --size 256x320 --dtype float16 --json

coatref check onnx:net.onnx --spec timm/coatnet_0_rw_224"""


def onnx(
    params: Annotated[str, typer.Argument(metavar="PARAMS", help="Checkpoint, as for coatref forward --weights.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, which ends in .onnx.")],
    spec: Annotated[
        str | None, typer.Option("--spec", metavar="NAME", help="What the checkpoint is, unless it says so itself.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="TYPE", help="float16, float32 or float64.")] = "float32",
    layout: Annotated[
        str,
        typer.Option("--layout", metavar="NHWC|NCHW", help="Whether the file's images have channels last or first."),
    ] = "NHWC",
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="For another image size; relative-bias tables are interpolated."),
    ] = None,
    opset: Annotated[
        int, typer.Option("--opset", metavar="N", help="Version of ONNX's operators, from 17.")
    ] = DEFAULT_OPSET,
    external: Annotated[
        bool,
        typer.Option("--external", help="Parameters in a file of their own beside it, as always where they pass 2 GB."),
    ] = False,
    validate: Annotated[
        bool, typer.Option("--validate/--no-validate", help="Compare onnxruntime with NumPy, and keep what agrees.")
    ] = True,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of the random images that are compared.")
    ] = 0,
    as_json: Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results in single lines, without progress.")
    ] = False,
) -> None:
    """Write a network with its weights as an ONNX file, and keep it if onnxruntime computes the same as NumPy.

    Input "images" with a free batch axis, output "logits" (or "probabilities"), initialisers under coatref's names.

    Random images go through onnxruntime on the CPU, in batches of 2 and 1, and through NumPy in float64. How far they may
    differ is derived from the data type, as coatref check does it.

    Exit codes: 0 the file is there, 1 it does not agree and is not kept, 2 an error.
    """
    wanted = parse_size(size)
    loaded = load(params, spec)
    if wanted is not None and wanted != loaded.spec.image_size:
        loaded = loaded.to(dtype="float64").resize(*wanted)  # rounded once, to the file's type
    given: dict[str, Any] = {"dtype": dtype, "layout": layout, "opset": opset, "seed": seed, "validate": validate}
    err = console(stderr=True)
    busy = err.status("validating ..." if validate else "writing ...") if err.is_terminal and not quiet else None
    with busy or contextlib.nullcontext():
        result = exported(loaded, out, external=external or None, **given)
    if not result.kept and result.agreement.verdict != "fail":
        raise FileFormatError(f"{result.path} was not kept: {result.agreement.told()}.")
    if as_json:
        print_json(as_plain(result, loaded.spec))
    else:
        show(result, loaded.spec, out, quiet=quiet)
    if not result.kept:
        raise typer.Exit(1)


def as_plain(result: Exported, spec: Spec) -> dict[str, Any]:
    """Everything for JSON."""
    plain = dataclasses.asdict(result) | {"path": str(result.path), "kept": result.kept}
    return plain | {"image_size": list(spec.image_size), "parameters": spec.num_parameters()}


def show(result: Exported, spec: Spec, out: Path, *, quiet: bool) -> None:
    """What was written and how well it agrees, in a line or in three."""
    told = "not validated" if result.agreement is None else result.agreement.told()
    line = f"{one_line(str(out))}: {told}" if result.kept else f"NOT KEPT  {one_line(str(out))}: {told}"
    text = console()
    if quiet or not result.kept:
        text.print(line, soft_wrap=True)
        return
    axes = "N, H, W, C" if result.layout == "NHWC" else "N, C, H, W"
    text.print(
        f"{one_line(spec.name)}, images ({axes}) of {size_text(spec.image_size)} in {result.dtype}", soft_wrap=True
    )
    text.print(
        f"{result.operators} operators of opset {result.opset}, {result.size / 1e6:.1f} MB"
        f"{f', parameters in {out.name}.data' if result.external else ''}, made in {result.seconds:.1f} s",
        soft_wrap=True,
    )
    after = "" if result.agreement is None else f", found in {result.agreement.seconds:.0f} s"
    text.print(f"{line}{after}", soft_wrap=True)
