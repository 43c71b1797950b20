"""`onnx:model.onnx`: an ONNX file, computed by onnxruntime on the CPU and judged with the weights that are in it.

Its weights are the graph's initialisers, under timm's names (as `torch.onnx.export` keeps them) or ours. Where every
parameter is an initialiser, other parameters can be put in their place and the file is judged like any implementation.
Where an exporter has folded some away, it is judged as given, with `weights` that say what it should hold.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision, declared
from coatref.conformance.target import Output, Target
from coatref.conformance.targets.onnx_weights import (
    KINDS,
    Found,
    Graph,
    find,
    in_dialect,
    named_shapes,
    read_graph,
    recognised,
    wrong_tensors,
)
from coatref.conformance.targets.spelling import command, refuse_options, versions
from coatref.errors import FileFormatError, InputError
from coatref.params import Params
from coatref.registry import missing
from coatref.specification.grids import grids
from coatref.specification.spec import Spec
from coatref.weights.convert import convert
from coatref.weights.export import views
from coatref.weights.files import path_of
from coatref.weights.own_file import spec_of

__all__ = ["make", "wrong_tensors"]

LARGEST_MESSAGE = 2 * 10**9  # bytes that protobuf can hold in one piece
SHOWN = 6  # names in a message


@dataclass(frozen=True)
class Entrance:
    """The input of a graph: its name, type, whether channels come first, and lengths that are fixed (else None)."""

    name: str
    dtype: str
    channels_first: bool
    batch: int | None
    size: tuple[int, int] | None


def make(
    argument: str,
    *,
    spec: Spec | None = None,
    weights: Params | None = None,
    precision: Precision | None = None,
    options: Mapping[str, str] | None = None,
) -> Target:
    """An ONNX file as a target.

    Args:
        argument: path of the file.
        spec: that it claims to compute; None: that of a file from `coatref.export_onnx`, else the named one whose names and
            shapes the initialisers have.
        weights: what the file should hold; needed where it lacks some parameters.
        precision: that is declared; None: that of the graph's input.
        options: "dialect", "timm" or "coatref": whose names the initialisers have; "names": a JSON file with an object of
            names of values in the graph to names of `coatref.trace`, which become outputs.

    Raises:
        FileNotFoundError, FileFormatError: there is no such file, or it is no ONNX model.
        InputError: the spec is not known, the initialisers do not fit it, or some are missing and no weights are given.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    options = dict(options or {})
    refuse_options("onnx", options, ("dialect", "names"))
    try:
        import onnxruntime
    except ImportError:
        raise missing("onnxruntime", "onnx", "Running an ONNX file") from None
    graph = read_graph(argument)
    if spec is None and weights is not None:
        spec = weights.spec
    if spec is None:  # a file from `coatref.export_onnx` says it
        spec = spec_of({each.key: each.value for each in graph.model.metadata_props}, argument)
    if spec is None:
        spec = recognised(graph, entrance(graph, 3).size)
    way_in = entrance(graph, spec.channels)
    precision = agreed(argument, way_in, precision)
    if way_in.size not in (None, spec.image_size):
        raise InputError(
            f"{argument} takes images of {way_in.size}, and spec {spec.name!r} was claimed for {spec.image_size}; "
            "claim the spec with the image size of the file."
        )
    found = find(graph, spec, options.get("dialect"))
    if found.absent and weights is None:
        raise InputError(
            f"{argument} has no initialiser for {len(found.absent)} of the parameters of {spec.name!r} "
            f"({', '.join(found.absent[:SHOWN])}{', ...' if len(found.absent) > SHOWN else ''}): the exporter has folded or "
            "renamed them; pass --weights with what it should hold, or export it anew with "
            "torch.onnx.export(..., dynamo=True, optimize=False) or (..., dynamo=False, do_constant_folding=False)."
        )
    held = weights
    if not found.absent:
        arrays = in_dialect(graph, found, named_shapes(spec, found.dialect))
        held = convert(arrays, spec, dialect=found.dialect, allow_non_finite=True)
    outputs = output_names(graph, options.get("names"))

    def run(params: Params, x: np.ndarray) -> Output:
        """Logits and named values for these parameters, or for the file's own where it has them baked in."""
        model = graph.model if found.absent else with_parameters(graph, found, params)
        return compute(model, way_in, outputs, np.asarray(x), params.spec)

    return Target(
        name=f"onnx:{argument}",
        spec=spec,
        run=run,
        precision=precision,
        params=held,
        takes_params=not found.absent,
        any_batch=way_in.batch is None,
        differing=() if weights is None else tuple(wrong_tensors(argument, weights, dialect=options.get("dialect"))),
        command=command(f"onnx:{argument}", spec=spec, precision=precision, options=options),
        versions=versions("onnx") | {"onnxruntime": str(onnxruntime.__version__)},
    )


# --- what goes in and out ---


def entrance(graph: Graph, channels: int) -> Entrance:
    """The graph's input for images.

    Raises:
        InputError: it has none, several, or one that is no batch of images.
    """
    import onnx

    initialised = {tensor.name for tensor in graph.model.graph.initializer}
    inputs = [value for value in graph.model.graph.input if value.name not in initialised]
    if len(inputs) != 1:
        raise InputError(f"An ONNX file is judged by its one input for images, and this has {len(inputs)} inputs.")
    kind = onnx.TensorProto.DataType.Name(inputs[0].type.tensor_type.elem_type)
    sides = [side.dim_value or None for side in inputs[0].type.tensor_type.shape.dim]
    if len(sides) != 4 or kind not in KINDS or channels not in (sides[1], sides[3]):
        raise InputError(
            f"The input {inputs[0].name} of the ONNX file should be a floating batch of images with {channels} channels "
            f"along axis 1 or 3, and it is {kind} of shape {sides} (None where it is free)."
        )
    first = sides[1] == channels
    height, width = sides[2:] if first else sides[1:3]
    size = (height, width) if height is not None and width is not None else None
    return Entrance(inputs[0].name, KINDS[kind], first, sides[0], size)


def agreed(path: str, way_in: Entrance, precision: Precision | None) -> Precision:
    """The declared precision, which must store what the graph takes.

    Raises:
        InputError: it stores another type.
    """
    if precision is None:
        return declared(way_in.dtype)
    if precision.storage != way_in.dtype:
        raise InputError(
            f"{path} takes {way_in.dtype} and was declared to store {precision.storage}; judge it with --dtype {way_in.dtype}."
        )
    return precision


def output_names(graph: Graph, names: str | None) -> dict[str, str]:
    """Name of a value in the graph -> name under which it is given: "logits" first.

    Raises:
        InputError: the file of names is no JSON object of texts, or names no value of the graph.
        FileNotFoundError: there is no such file.
    """
    outputs = [value.name for value in graph.model.graph.output]
    logits = "logits" if "logits" in outputs else outputs[0]
    chosen = {logits: "logits"} | {name: name for name in outputs if name != logits}
    if names is None:
        return chosen
    path = path_of(names)
    try:
        more = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}.") from None
    if not isinstance(more, dict) or not all(isinstance(value, str) for value in more.values()):
        raise InputError(f"{path} should hold one JSON object: names of values in the graph to names of coatref.trace.")
    known = {name for node in graph.model.graph.node for name in node.output}
    if unknown := [name for name in more if name not in known]:
        raise InputError(f"{path} names {', '.join(unknown[:SHOWN])}, which no node of the graph computes.")
    return chosen | {name: value for name, value in more.items() if name != logits}


# --- running ---


def with_parameters(graph: Graph, found: Found, params: Params) -> Any:
    """A copy of the model in which the initialisers hold other parameters.

    Raises:
        InputError: the parameters are of other shapes than the graph's.
    """
    import onnx
    from onnx import helper, numpy_helper

    arrays = views(params, found.dialect)
    shapes = {name: array.shape for name, array in arrays.items()}
    wanted = {own: (name, transposed) for name, (own, transposed) in found.places.items()}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        if tensor.name not in wanted:
            continue
        name, transposed = wanted[tensor.name]
        if name not in arrays or arrays[name].size != graph.arrays[tensor.name].size:
            raise InputError(
                f"Initialiser {tensor.name} has shape {tuple(tensor.dims)} and the parameters give {shapes.get(name)}; "
                "an ONNX file computes one network only."
            )
        array = arrays[name]
        if transposed:
            array = array.reshape(array.shape[:2]).T
        array = np.ascontiguousarray(array, dtype=np.float64).reshape(graph.arrays[tensor.name].shape)
        if graph.types[tensor.name] == "bfloat16":
            changed = helper.make_tensor(tensor.name, tensor.data_type, list(tensor.dims), array.ravel().tolist())
        else:
            changed = numpy_helper.from_array(array.astype(graph.types[tensor.name]), tensor.name)
        tensor.CopyFrom(changed)
    return model


def compute(model: Any, way_in: Entrance, outputs: Mapping[str, str], x: np.ndarray, spec: Spec) -> Output:
    """Run a model on images (N, H, W, channels); a fixed batch is filled up with the last image.

    Raises:
        FileFormatError: onnxruntime refuses the model.
        InputError: it fails on the images.
    """
    session = session_of(model, list(outputs))
    images = np.transpose(x, (0, 3, 1, 2)) if way_in.channels_first else x
    images = np.ascontiguousarray(images)
    step = way_in.batch or len(images)
    parts: list[Sequence[np.ndarray]] = []
    for start in range(0, len(images), step):
        part = images[start : start + step]
        short = step - len(part)
        filled = np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short else part
        try:
            values = session.run(list(outputs), {way_in.name: filled})
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common class that is public
            raise InputError(
                f"onnxruntime cannot run the file on images {x.shape}: {type(error).__name__}: {str(error)[:500]}"
            ) from None
        parts.append([np.asarray(value)[: len(part)] for value in values])
    whole = [np.concatenate(values) for values in zip(*parts, strict=True)]
    lengths = set(grids(spec, x.shape[1], x.shape[2]).values())
    return {
        name: channels_last(value, lengths, way_in.channels_first)
        for name, value in zip(outputs.values(), whole, strict=True)
    }


def session_of(model: Any, outputs: Sequence[str]) -> Any:
    """An onnxruntime session of a model, with more outputs where they are asked for.

    Raises:
        FileFormatError: onnxruntime refuses the model.
    """
    import onnx
    import onnxruntime

    given = {value.name for value in model.graph.output}
    extra = [onnx.ValueInfoProto(name=name) for name in outputs if name not in given]
    if extra:
        wider = onnx.ModelProto()
        wider.CopyFrom(model)
        wider.graph.output.extend(extra)
        model = wider
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors alone
    try:
        if model.ByteSize() < LARGEST_MESSAGE:
            return onnxruntime.InferenceSession(model.SerializeToString(), settings, ["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory(prefix="coatref-") as folder:
            path = os.path.join(folder, "model.onnx")
            onnx.save(model, path, save_as_external_data=True)
            return onnxruntime.InferenceSession(path, settings, ["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common class that is public
        raise FileFormatError(f"onnxruntime refuses the file: {type(error).__name__}: {str(error)[:500]}") from None


def channels_last(value: np.ndarray, lengths: set[tuple[int, int]], channels_first: bool) -> np.ndarray:
    """A traced value with its channels last.

    A value with four axes is a grid where two neighbouring axes have the lengths of one; where both ways are possible,
    that of the input is taken. Attention's values, (N, heads, positions, D), are left as they are.
    """
    if value.ndim != 4:
        return value
    first, last = value.shape[2:4] in lengths, value.shape[1:3] in lengths
    if (first and not last) or (first and last and channels_first):
        return np.transpose(value, (0, 2, 3, 1))
    return value
