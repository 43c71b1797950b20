"""Which initialiser of an ONNX graph holds which parameter.

Exporters keep the names of a module's parameters, sometimes behind a prefix, and dense weights may come transposed. What
they fold away (a BatchNorm into the convolution before it, a bias table gathered beforehand) is not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.conformance.precision import roundoff
from coatref.errors import FileFormatError, InputError
from coatref.params import Params, tensor_tree
from coatref.registry import missing
from coatref.specification.catalogue import spec as spec_named
from coatref.specification.catalogue import specs
from coatref.specification.parts import ConvStem, MBConv
from coatref.specification.spec import Spec
from coatref.tree import flatten
from coatref.weights import timm
from coatref.weights.places import to_ours

DIALECTS = ("coatref", "timm")
KINDS = {"FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}  # ONNX's types -> ours
NORM_BEHIND = {
    "expand": "expand_norm",
    "depthwise": "depthwise_norm",
    "conv1": "norm1",
}  # a convolution -> its BatchNorm

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Graph:
    """A parsed ONNX file.

    Attributes:
        model: the `onnx.ModelProto`, which is only read.
        arrays: name -> value of every floating initialiser, as NumPy holds it.
        types: name -> data type of each: "float32", "bfloat16", ...
    """

    model: Any
    arrays: Mapping[str, np.ndarray]
    types: Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """Where parameters are in a graph.

    Attributes:
        dialect: whose names they have: "coatref" or "timm".
        places: name in the dialect -> (name of the initialiser, whether it is transposed).
        absent: names in the dialect that no initialiser has.
    """

    dialect: str
    places: Mapping[str, tuple[str, bool]]
    absent: tuple[str, ...]


def read_graph(path: str) -> Graph:
    """Parse an ONNX file and what it keeps beside it.

    Raises:
        FileNotFoundError, FileFormatError: there is no such file, or it is no ONNX model.
        MissingDependencyError: onnx is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise missing("onnx", "onnx", "Reading an ONNX file") from None
    try:
        model = onnx.load(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no ONNX file {path}, or a file of its weights is not beside it.") from None
    except Exception as error:  # noqa: BLE001 - protobuf and onnx have many ways to say that a file is damaged
        raise FileFormatError(f"{path} is no ONNX model that can be read ({type(error).__name__}: {error}).") from None
    names = {getattr(onnx.TensorProto, kind): name for kind, name in KINDS.items()}
    arrays, types = {}, {}
    for tensor in model.graph.initializer:
        if tensor.data_type in names:
            types[tensor.name] = names[tensor.data_type]
            array = numpy_helper.to_array(tensor)
            arrays[tensor.name] = array.astype(np.float32) if types[tensor.name] == "bfloat16" else array
    return Graph(model, arrays, types)


def named_shapes(spec: Spec, dialect: str) -> Shapes:
    """Names and shapes of a spec's parameters in a dialect.

    Raises:
        KeyError: the spec has a layer for which the dialect has no name.
    """
    if dialect == "timm":
        return timm.expected(spec)
    return {name: tensor.shape for name, tensor in flatten(tensor_tree(spec))}


def find(graph: Graph, spec: Spec, dialect: str | None = None) -> Found:
    """The initialisers that hold a spec's parameters; of the dialects the one with more names, if none is given.

    Raises:
        InputError: the dialect is not known, or an initialiser has the name of a parameter and another shape.
    """
    if dialect not in (None, *DIALECTS):
        raise InputError(f"An ONNX file's weights have names of {' or '.join(DIALECTS)}, got {dialect!r:.80}.")
    best: Found | None = None
    for each in (dialect,) if dialect else DIALECTS:
        try:
            shapes = named_shapes(spec, each)
        except KeyError:
            continue
        found = match(graph, shapes, each)
        if best is None or len(found.places) > len(best.places):
            best = found
    if best is None:
        raise InputError(f"Spec {spec.name!r} has a layer for which {dialect} has no name.")
    return best


def match(graph: Graph, shapes: Shapes, dialect: str) -> Found:
    """The initialisers that have given names, all behind one prefix, and shapes.

    Raises:
        InputError: one has the name and another shape.
    """
    prefix = common_prefix(graph, shapes)
    places: dict[str, tuple[str, bool]] = {}
    for name, shape in shapes.items():
        own = prefix + name
        if own not in graph.arrays:
            continue
        found = graph.arrays[own].shape
        square = found == shape and len(shape) == 2 and shape[0] == shape[1] and dialect == "timm"
        if found == shape and not (square and is_transposed(graph, own)):
            places[name] = own, False
        elif len(found) == 2 and found[::-1] == shape[:2] and set(shape[2:]) <= {1}:
            places[name] = own, True
        else:
            raise InputError(
                f"The initialiser {own} has shape {found}, and {shape} was expected; is the spec, its image size or its "
                "number of classes another one?"
            )
    return Found(dialect, places, tuple(name for name in shapes if name not in places))


def common_prefix(graph: Graph, shapes: Shapes) -> str:
    """What stands before the most of the names, such as "model."; nothing where they stand as they are."""
    if set(shapes) & set(graph.arrays):
        return ""
    lasts: dict[str, list[str]] = {}
    for own in graph.arrays:
        lasts.setdefault(own.rpartition(".")[2], []).append(own)
    counts: Counter[str] = Counter()
    for name in shapes:
        for own in lasts.get(name.rpartition(".")[2], ()):
            if own.endswith(f".{name}"):
                counts[own[: -len(name)]] += 1
    return counts.most_common(1)[0][0] if counts else ""


def is_transposed(graph: Graph, name: str) -> bool:
    """Whether a square matrix is (C, D), as MatMul takes it on its right."""
    return any(
        node.op_type == "MatMul"
        and list(node.input)[1:] == [name]
        or node.op_type == "Gemm"
        and list(node.input)[1:2] == [name]
        and not any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        for node in graph.model.graph.node
    )


def in_dialect(graph: Graph, found: Found, shapes: Shapes) -> dict[str, np.ndarray]:
    """The parameters that were found, under the names and in the shapes of their dialect."""
    arrays = {}
    for name, (own, transposed) in found.places.items():
        array = graph.arrays[own]
        arrays[name] = (array.T if transposed else array).reshape(shapes[name])
    return arrays


def recognised(graph: Graph, size: tuple[int, int] | None) -> Spec:
    """The one named spec whose names and shapes all initialisers have.

    Args:
        graph: the parsed file.
        size: height and width of its images, where they are fixed.

    Raises:
        InputError: none fits, or several do.
    """
    fitting = []
    for name in specs():
        dialect = "timm" if name.startswith("timm/") else "coatref"
        changes: dict[str, Any] = {"image_size": size} if size else {}
        try:
            spec = spec_named(name, **changes)
            shapes = named_shapes(spec, dialect)
            classifier = "head.fc.bias" if dialect == "timm" else "head.classifier.b"
            prefix = common_prefix(graph, shapes)
            if prefix + classifier in graph.arrays:
                spec = spec_named(name, classes=graph.arrays[prefix + classifier].shape[0], **changes)
                shapes = named_shapes(spec, dialect)
            if not match(graph, shapes, dialect).absent:
                fitting.append(spec)
        except (InputError, KeyError, ValueError):
            continue
    if len(fitting) != 1:
        which = (
            f"{len(fitting)} specs fit: {', '.join(spec.name for spec in fitting)}" if fitting else "no named spec fits"
        )
        raise InputError(f"The network of an ONNX file is told by its initialisers, and {which}; pass --spec.")
    return fitting[0]


def wrong_tensors(model_path: str, params: Params, *, dialect: str | None = None) -> list[tuple[str, float]]:
    """Parameters that an ONNX file holds otherwise than it should.

    A convolution whose BatchNorm was folded into it is compared with what folding makes of it; parameters that are in no
    initialiser are passed over.

    Args:
        model_path: the file.
        params: what it should hold, NumPy arrays.
        dialect: whose names its initialisers have, "timm" or "coatref"; None: the one that fits.

    Returns:
        Dotted name and the largest difference relative to the largest number of the tensor, worst first, of every tensor
        that differs by more than rounding to the file's type.

    Raises:
        FileNotFoundError, FileFormatError, InputError, MissingDependencyError: as `read_graph` and `find`.
    """
    graph = read_graph(model_path)
    found = find(graph, params.spec, dialect)
    shapes = named_shapes(params.spec, found.dialect)
    arrays = in_dialect(graph, found, shapes)
    if found.dialect == "timm":
        places = [place for place in timm.places(params.spec) if place.theirs in arrays]
        held = {place.ours: to_ours(place, arrays[place.theirs]) for place in places}
        theirs = {place.ours: place.theirs for place in places}
    else:
        held, theirs = arrays, {name: name for name in arrays}
    right = {name: np.asarray(array, np.float64) for name, array in params.flatten().items()}
    wrong = []
    for name, array in held.items():
        kind = graph.types[found.places[theirs[name]][0]]
        expected = folded(name, right, held, params.spec)
        largest = float(np.max(np.abs(expected), initial=0.0)) or 1.0
        difference = float(np.max(np.abs(array.astype(np.float64) - expected), initial=0.0)) / largest
        if not difference <= 8 * roundoff(kind):
            wrong.append((name, difference))
    return sorted(wrong, key=lambda pair: -pair[1])


def folded(name: str, right: Mapping[str, np.ndarray], held: Collection[str], spec: Spec) -> np.ndarray:
    """A parameter as an exporter leaves it: with the BatchNorm behind it folded in, where that is in no initialiser."""
    layer, _, leaf = name.rpartition(".")
    place, _, last = layer.rpartition(".")
    behind = f"{place}.{NORM_BEHIND.get(last, '')}"
    if f"{behind}.var" not in right or f"{behind}.gamma" in held:
        return right[name]
    factor = right[f"{behind}.gamma"] / np.sqrt(right[f"{behind}.var"] + epsilon_of(spec, place))
    if leaf == "w":  # the last axis is that of the channels that go out
        scaled: np.ndarray = right[name] * factor
        return scaled
    moved: np.ndarray = (right[name] - right[f"{behind}.mean"]) * factor + right[f"{behind}.beta"]
    return moved


def epsilon_of(spec: Spec, place: str) -> float:
    """Epsilon of the norms inside a block or the stem."""
    if place == "s0" and isinstance(spec.stem, ConvStem):
        return spec.stem.norm.epsilon
    run = next(block.run for block in spec.blocks() if block.name == place)
    return run.inner_norm.epsilon if isinstance(run, MBConv) else 0.0
