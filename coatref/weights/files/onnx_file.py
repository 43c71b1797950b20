"""The initialisers of an ONNX graph, read from the file itself: their bytes lie in it, or in a file beside it, as they are.

The numbers of fields are those of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

import numpy as np

from coatref.errors import FileFormatError
from coatref.weights.files.disk import beside, faults_of, opened, size_of
from coatref.weights.files.limits import LONGEST_NAME, MOST_SHARDS, MOST_TENSORS, refuse_bomb
from coatref.weights.files.protobuf import BYTES, VARINT, Field, Message, varints
from coatref.weights.files.stored import Content, Stored, is_shape, read_bytes, type_of, widened

LARGEST = 2**31 - 1  # bytes of a message of protocol buffers

GRAPH, PROPERTY = 7, 14  # in a model
NODE, INITIALIZER, SPARSE_INITIALIZER = 1, 5, 15  # in a graph
INPUT, OP_TYPE, ATTRIBUTE = 1, 4, 5  # in a node
ATTRIBUTE_NAME, ATTRIBUTE_INT = 1, 3
DIMS, DATA_TYPE, SEGMENT, NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 3, 8, 9, 13, 14  # in a tensor
FLOAT_DATA, INT32_DATA, INT64_DATA, DOUBLE_DATA, UINT64_DATA = 4, 5, 7, 10, 11
KEY, VALUE = 1, 2  # in an entry of external data, or of a model's properties

OURS = b"coatref."  # before the names of the properties that `coatref.export_onnx` writes
LONGEST_PROPERTY = 8 * 10**6  # bytes; the largest spec that there can be takes about 6 million

TYPES = {  # ONNX's number of a type -> safetensors' name, and the field of its values where they are not raw
    1: ("F32", FLOAT_DATA),
    2: ("U8", INT32_DATA),
    3: ("I8", INT32_DATA),
    4: ("U16", INT32_DATA),
    5: ("I16", INT32_DATA),
    6: ("I32", INT32_DATA),
    7: ("I64", INT64_DATA),
    9: ("BOOL", INT32_DATA),
    10: ("F16", INT32_DATA),  # as the number that its bits are
    11: ("F64", DOUBLE_DATA),
    12: ("U32", UINT64_DATA),
    13: ("U64", UINT64_DATA),
    16: ("BF16", INT32_DATA),  # likewise
}


@dataclass(frozen=True)
class Initializer:
    """What a graph says of an initialiser.

    Attributes:
        name: its name.
        kind: ONNX's number of its type.
        shape: its shape.
        data: its values in the file, or None.
        external: the entries that tell where they are outside, "location", "offset" and "length"; None: they are inside.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    data: Field | None
    external: dict[str, str] | None


def read_onnx(path: Path, held: contextlib.ExitStack) -> Content:
    """The initialisers of an ONNX graph, checked and not read yet, and what `coatref.export_onnx` says of the network.

    A dense layer's weight is (D, C) in torch, and exporters store it as (C, D) where the graph multiplies by it from the
    right. It is given as torch has it: an initialiser whose name ends in "weight", which is a matrix, and which the graph
    uses for nothing but that, comes transposed. Other libraries have their dense weights as (C, D) and call them otherwise;
    they, and matrices that lost their name ("onnx::MatMul_73"), come as they are. `right_operands` tells which they are.

    Initialisers of texts, of complex numbers and of less than a byte are passed over.

    Raises:
        FileNotFoundError: there is no such file, or a file that it names is missing.
        FileFormatError: it is damaged or no ONNX model, or says what cannot be of its values.
    """
    files = {path.name: opened(path, held)}
    with faults_of(path, "no ONNX model with its weights", "fetch it again"):
        graph = graph_of(files[path.name])
        right = right_operands(graph)
        tensors: dict[str, Stored] = {}
        for found in initializers(graph):
            if found.name in tensors or len(tensors) == MOST_TENSORS:
                raise FileFormatError(f"it has an initialiser {found.name!r:.100} twice, or more than {MOST_TENSORS}")
            if found.kind not in TYPES:
                continue
            tensor = internal(graph, found) if found.external is None else external(path, found, files, held)
            tensors[found.name] = turned(tensor) if found.name in right and found.name.endswith("weight") else tensor
        refuse_bomb(sum(tensor.nbytes for tensor in tensors.values()), sum(size_of(file) for file in files.values()))
        metadata = properties(files[path.name])
    return dict(tensors), metadata


def properties(file: BufferedReader) -> dict[str, str]:
    """Names and texts of the model's properties that are ours.

    Raises:
        FileFormatError: one is damaged, too long or there twice; the message is a part of a sentence.
    """
    model = Message(file, 0, size_of(file))
    found: dict[str, str] = {}
    for part in model.fields():
        if part.number != PROPERTY:
            continue
        entry = model.inside(part)
        parts = {each.number: each for each in entry.fields() if each.kind == BYTES}
        if KEY not in parts or parts[KEY].end - parts[KEY].begin > LONGEST_NAME or VALUE not in parts:
            continue
        key = entry.content(parts[KEY], LONGEST_NAME)
        if not key.startswith(OURS):
            continue
        try:
            name, text = key.decode(), entry.content(parts[VALUE], LONGEST_PROPERTY).decode()
        except UnicodeDecodeError:
            raise FileFormatError(f"its property {key!r:.100} is no text") from None
        if name in found:
            raise FileFormatError(f"it has the property {name:.100} twice")
        found[name] = text
    return found


def graph_of(file: BufferedReader) -> Message:
    """The graph of a model.

    Raises:
        FileFormatError: there is none, or more than one; the message is a part of a sentence.
    """
    size = size_of(file)
    if size > LARGEST:
        raise FileFormatError(
            f"it has {size} bytes, and {LARGEST} are allowed; larger weights are kept in a file beside it"
        )
    model = Message(file, 0, size)
    graphs = [model.inside(found) for found in model.fields() if found.number == GRAPH]
    if len(graphs) != 1:
        raise FileFormatError(f"it has {len(graphs)} graphs")
    return graphs[0]


def right_operands(graph: Message) -> frozenset[str]:
    """Names of the values by which a graph multiplies from the right, in MatMul or Gemm, and that it uses for nothing else.

    Where one is the weight of a dense layer, it is stored as (C, D).

    Raises:
        FileFormatError: the graph is damaged; the message is a part of a sentence.
    """
    right: set[str] = set()
    others: set[str] = set()
    for found in graph.fields():
        if found.number != NODE:
            continue
        node = graph.inside(found)
        parts = list(node.fields())
        inputs = [node.text(part) for part in parts if part.number == INPUT]
        kinds = [node.text(part) for part in parts if part.number == OP_TYPE]
        turned_in_it = any(turns(node.inside(part)) for part in parts if part.number == ATTRIBUTE)
        multiplies = kinds == ["MatMul"] or (kinds == ["Gemm"] and not turned_in_it)
        for index, name in enumerate(inputs):
            (right if multiplies and index == 1 else others).add(name)
    return frozenset(right - others)


def turns(attribute: Message) -> bool:
    """Whether an attribute says that Gemm transposes what is on its right."""
    parts = list(attribute.fields())
    names = [attribute.content(part, LONGEST_NAME) for part in parts if part.number == ATTRIBUTE_NAME]
    return names == [b"transB"] and any(part.value for part in parts if part.number == ATTRIBUTE_INT)


def initializers(graph: Message) -> Iterator[Initializer]:
    """What a graph says of each initialiser.

    Raises:
        FileFormatError: one is damaged, sparse or in segments; the message is a part of a sentence.
    """
    for found in graph.fields():
        if found.number == SPARSE_INITIALIZER:
            raise FileFormatError("it has a sparse initialiser; save it dense")
        if found.number == INITIALIZER:
            yield initializer(graph.inside(found))


def initializer(tensor: Message) -> Initializer:
    """What a message says of its tensor.

    Raises:
        FileFormatError: it is damaged, or in segments; the message is a part of a sentence.
    """
    name, kind, located = "", 0, 0
    dims: list[int] = []
    data: list[Field] = []
    entries: dict[str, str] = {}
    for part in tensor.fields():
        if part.number == DIMS:
            dims += [part.value] if part.kind == VARINT else varints(tensor.content(part, LONGEST_NAME)).tolist()
        elif part.number == DATA_TYPE:
            kind = part.value
        elif part.number == NAME:
            name = tensor.text(part)
        elif part.number == DATA_LOCATION:
            located = part.value
        elif part.number == EXTERNAL_DATA:
            entry = tensor.inside(part)
            texts = {each.number: entry.text(each) for each in entry.fields()}
            entries[texts.get(KEY, "")] = texts.get(VALUE, "")
        elif part.number == SEGMENT:
            raise FileFormatError("it has an initialiser in segments")
        elif part.number in (RAW_DATA, FLOAT_DATA, INT32_DATA, INT64_DATA, DOUBLE_DATA, UINT64_DATA):
            data.append(part)
    if not 0 < len(name) <= LONGEST_NAME or not is_shape(dims):
        raise FileFormatError(f"it has an initialiser {name!r:.100} with no name of at most {LONGEST_NAME} or no shape")
    if len(data) > 1 or located not in (0, 1) or (located == 1 and data):
        raise FileFormatError(f"its initialiser {name!r:.100} has its values in more than one place")
    return Initializer(name, kind, tuple(dims), data[0] if data else None, entries if located == 1 else None)


def internal(graph: Message, found: Initializer) -> Stored:
    """An initialiser whose values are in the file.

    Raises:
        FileFormatError: they are not as many as its shape says; the message is a part of a sentence.
    """
    dtype, field = TYPES[found.kind]
    needed = math.prod(found.shape) * type_of(dtype).itemsize
    data = found.data
    if data is not None and (data.kind != BYTES or data.number not in (RAW_DATA, field)):
        raise FileFormatError(f"the values of its initialiser {found.name!r:.100} are not packed as those of {dtype}")
    if data is not None and data.number not in (RAW_DATA, FLOAT_DATA, DOUBLE_DATA):
        fetch = functools.partial(decoded, graph.file, found, data, dtype)
        if not math.prod(found.shape) <= data.end - data.begin <= 10 * math.prod(found.shape):
            raise FileFormatError(f"its initialiser {found.name!r:.100} has not the values that its shape says")
        return Stored(found.name, dtype, found.shape, fetch)
    begin, end = (0, 0) if data is None else (data.begin, data.end)
    if end - begin != needed:
        raise FileFormatError(f"its initialiser {found.name!r:.100} takes {needed:.4g} bytes and has {end - begin}")
    fetch = functools.partial(read_bytes, graph.file, found.name, dtype, found.shape, begin)
    return Stored(found.name, dtype, found.shape, fetch)


def decoded(file: BufferedReader, found: Initializer, data: Field, dtype: str) -> np.ndarray:
    """The array of an initialiser whose values are varints: numbers, or for 16-bit floats the numbers that their bits are.

    Raises:
        FileFormatError: they are not as many as its shape says, or the file has been cut since it was opened.
    """
    try:
        content = Message(file, data.begin, data.end).content(data, data.end - data.begin)
        numbers = varints(content, f"u{type_of(dtype).itemsize}")
        if len(numbers) != math.prod(found.shape):
            raise FileFormatError(f"its shape says {math.prod(found.shape)} values and it has {len(numbers)}")
    except FileFormatError as fault:
        raise FileFormatError(
            f"Initialiser {found.name:.100} of {file.name} is damaged: {fault}; fetch it again."
        ) from None
    array = numbers.view(type_of(dtype, "=")).reshape(found.shape)
    return widened(array) if dtype == "BF16" else array


def external(path: Path, found: Initializer, files: dict[str, BufferedReader], held: contextlib.ExitStack) -> Stored:
    """An initialiser whose values are in a file beside the model, which is opened and put into `files`.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it lies elsewhere, or has not so many bytes; the message is a part of a sentence.
    """
    entries = found.external or {}
    location, (dtype, _) = entries.get("location", ""), TYPES[found.kind]
    needed = math.prod(found.shape) * type_of(dtype).itemsize
    place = beside(path, location)
    if location not in files:
        if len(files) > MOST_SHARDS:
            raise FileFormatError(f"it names more than {MOST_SHARDS} files")
        files[location] = opened(place, held)
    begin = count_of(entries.get("offset", "0"))
    length = count_of(entries.get("length", str(needed)))
    if length != needed or begin + needed > size_of(files[location]):
        raise FileFormatError(
            f"its initialiser {found.name!r:.100} takes {needed:.4g} bytes, and is said to have {length:.4g} from {begin:.4g} "
            f"on of {location}, which has {size_of(files[location])}"
        )
    fetch = functools.partial(read_bytes, files[location], found.name, dtype, found.shape, begin)
    return Stored(found.name, dtype, found.shape, fetch)


def count_of(text: str) -> int:
    """A number of bytes from its digits.

    Raises:
        FileFormatError: it is none; the message is a part of a sentence.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise FileFormatError(f"it has {text!r:.50} where a number of bytes should be")
    return int(text)


def turned(tensor: Stored) -> Stored:
    """A matrix transposed, anything else as it is."""
    if len(tensor.shape) != 2:
        return tensor
    return replace(tensor, shape=tensor.shape[::-1], fetch=lambda: tensor.fetch().T)
