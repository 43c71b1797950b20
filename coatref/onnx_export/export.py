"""`coatref.export_onnx`: a network with its parameters as an ONNX file."""

from __future__ import annotations

import importlib.util
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from coatref.errors import FileFormatError, InputError, WeightsError
from coatref.onnx_export.files import LARGEST_MESSAGE, put_in_place, workplace, write
from coatref.onnx_export.model import model_of
from coatref.onnx_export.record import recorded
from coatref.params import Params, to_host
from coatref.registry import missing
from coatref.weights.files import path_of

OnnxDtype = Literal["float16", "float32", "float64"]
Layout = Literal["NHWC", "NCHW"]

DEFAULT_OPSET = OLDEST_OPSET = 17  # the first with LayerNormalization
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Exported:
    """What was written, or would have been.

    Attributes:
        path: of the file.
        spec: name of the network.
        dtype, layout, opset: as asked for.
        operators: how many nodes compute.
        size: bytes of all files.
        external: whether the parameters stand in a file of their own, "NAME.data".
        seconds: for making and writing it.
        agreement: what the judge says of it (`coatref.conformance.exported.Agreement`); None where it was not asked.
    """

    path: Path
    spec: str
    dtype: str
    layout: str
    opset: int
    operators: int
    size: int
    external: bool
    seconds: float
    agreement: Any = None

    @property
    def kept(self) -> bool:
        """Whether the file is there under its name: unless the judge does not let it pass."""
        return self.agreement is None or self.agreement.verdict == "pass"


def export_onnx(
    params: Params,
    path: str | os.PathLike[str],
    *,
    dtype: OnnxDtype = "float32",
    layout: Layout = "NHWC",
    opset: int = DEFAULT_OPSET,
    external: bool | None = None,
    validate: bool = True,
    seed: int = 0,
) -> Exported:
    """Write a network as an ONNX file, and keep it only if onnxruntime computes with it what the definition does.

    The input "images" is (N, H, W, C) as `forward` takes it, or (N, C, H, W), for any N and the spec's image size; the
    output is "logits" (or "probabilities"), (N, classes). Initialisers have the dotted names of the parameters and
    intermediate values those of `trace`; the metadata has the spec's JSON under "coatref.spec".

    Random images, in batches of 2 and 1, go through onnxruntime on the CPU and through the definition in float64. The bound
    for the difference is derived from the data type by the judge's error model (docs/error-model.md).

    Args:
        params: of any library; cast to `dtype`.
        path: ends in `.onnx`.
        dtype: of images, parameters and all that is computed.
        layout: of the images.
        opset: version of ONNX's operators, from 17.
        external: whether parameters go to a file of their own beside it, "NAME.data"; None: where there are more than
            2 GB, which an ONNX file cannot hold.
        validate: False writes it unseen, which needs no onnxruntime and no definition's time.
        seed: of the images.

    Returns:
        What was written and how well it agrees.

    Raises:
        InputError: an argument cannot be used.
        WeightsError: a parameter is not finite, or too large for `dtype`.
        FileFormatError: the file does not compute what the definition does, or that could not be told; it is not kept.
        MissingDependencyError: onnx, or for the validation onnxruntime, is not installed.
        OSError: the file cannot be written.
    """
    result = exported(
        params, path, dtype=dtype, layout=layout, opset=opset, external=external, validate=validate, seed=seed
    )
    if not result.kept:
        raise FileFormatError(f"{result.path} was not kept: {result.agreement.told()}.")
    return result


def exported(
    params: Params,
    path: str | os.PathLike[str],
    *,
    dtype: str,
    layout: str,
    opset: int,
    external: bool | None,
    validate: bool,
    seed: int,
) -> Exported:
    """As `export_onnx`, but a file that does not pass is told by the result, and is not there."""
    target = checked(params, path, dtype, layout, opset, validate)
    began = time.perf_counter()
    arrays = cast(params, dtype)
    graph, output = recorded(params.spec, dtype, layout, opset)
    model = model_of(graph, output, params.spec, dtype, layout)
    aside = sum(array.nbytes for array in arrays.values()) > LARGEST_MESSAGE if external is None else external
    agreement = None
    with workplace(target) as folder:
        made = folder / target.name
        write(model, arrays, made, external=aside)
        size = sum(each.stat().st_size for each in folder.iterdir())
        seconds = time.perf_counter() - began
        if validate:
            judge = importlib.import_module("coatref.conformance.exported")  # no import leads from here to the judge
            agreement = judge.agreement(made, params.spec, arrays, dtype=dtype, layout=layout, seed=seed)
        result = Exported(
            target, params.spec.name, dtype, layout, opset, len(graph.nodes), size, aside, seconds, agreement
        )
        if result.kept:
            put_in_place(made, target)
    return result


def checked(params: Any, path: Any, dtype: str, layout: str, opset: int, validate: bool) -> Path:
    """Refuse arguments that cannot be used, before anything is computed; the path, links followed.

    Raises:
        InputError, FileNotFoundError, MissingDependencyError: as `export_onnx`.
    """
    if not isinstance(params, Params):
        raise InputError(f"export_onnx takes coatref Params, got {type(params).__name__}.")
    for what, value, choices in (("dtype", dtype, OnnxDtype), ("layout", layout, Layout)):
        if value not in get_args(choices):
            raise InputError(f"An ONNX file's {what} is one of {', '.join(get_args(choices))}, got {value!r:.80}.")
    target = path_of(path)
    if target.suffix.lower() != ".onnx":
        raise InputError(
            f"{target} ends in {target.suffix!r}; export_onnx writes a .onnx file, which is known by that."
        )
    target = Path(os.path.realpath(target))  # so that a link stays one
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent} to write {target.name} to; make it first.")
    if target.is_dir():
        raise InputError(f"{target} is a folder; give the name of a file.")
    try:
        import onnx
    except ImportError:
        raise missing("onnx", "onnx", "Writing an ONNX file") from None
    if validate and importlib.util.find_spec("onnxruntime") is None:
        raise missing("onnxruntime", "onnx", "Validating an ONNX file")
    newest = onnx.defs.onnx_opset_version()
    if type(opset) is not int or not OLDEST_OPSET <= opset <= newest:
        raise InputError(f"The opset is a whole number from {OLDEST_OPSET} to {newest}, got {opset!r:.80}.")
    return target


def cast(params: Params, dtype: str) -> dict[str, np.ndarray]:
    """The parameters as NumPy arrays of a data type, by dotted name.

    Raises:
        WeightsError: some are not finite, or too large for the type.
    """
    host = {name: to_host(name, array) for name, array in params.flatten().items()}
    if odd := [name for name, array in host.items() if not np.all(np.isfinite(array))]:
        raise WeightsError(
            f"{len(odd)} tensors hold NaN or infinite values: {', '.join(odd[:SHOWN])}; no file of them can be validated, "
            "export finite weights."
        )
    with np.errstate(over="ignore"):  # looked for below
        arrays = {name: np.asarray(array, dtype) for name, array in host.items()}
    if large := [name for name, array in arrays.items() if not np.all(np.isfinite(array))]:
        raise WeightsError(
            f"{len(large)} tensors hold values too large for {dtype}: {', '.join(large[:SHOWN])}; take a wider dtype."
        )
    return arrays
