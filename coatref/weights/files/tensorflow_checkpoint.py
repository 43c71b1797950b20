"""TensorFlow checkpoints: an index, `NAME.index`, that tells where in the files `NAME.data-0000I-of-0000N` a tensor lies.

The index is a sorted table as LevelDB has it. Its last 48 bytes tell where a block is whose values tell where the other
blocks are; a block is entries of a key, of which only what differs from the key before is written, and a value, and then
numbers that help to search in it. The first key is empty and its value tells how many files of data there are; every other
is the name of a tensor, with its type, shape and place. Values are protocol buffers, of which few fields matter.

All of this is read here and not by TensorFlow, which is not needed: its own reader takes memory as the index says.
The checksums of blocks and tensors are not looked at.

Sources: tensorflow/core/protobuf/tensor_bundle.proto and types.proto; LevelDB, doc/table_format.md.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import numpy as np

from coatref.errors import FileFormatError
from coatref.weights.files.disk import opened, size_of
from coatref.weights.files.limits import LARGEST_HEADER, LONGEST_NAME, MOST_SHARDS, MOST_TENSORS
from coatref.weights.files.protobuf import varint
from coatref.weights.files.stored import DTYPES, MOST_AXES, Content, Stored, is_shape, read_bytes

ENDING = ".index"

FOOTER = 48  # bytes
MAGIC = 0xDB4775248B80FB57  # the last 8 of them
TRAILER = 5  # bytes behind a block: how it is packed, and a checksum
MOST_FIELDS = 100  # of a message; an entry of a tensor has 6, and its shape one for each axis
LONGEST_VALUE = 10_000  # bytes; that of a tensor takes about 30, and one stored in many slices more

TEXT = 7  # the type of a tensor of texts, such as the graph of objects that were saved: no weights
TYPES = {
    1: "F32",
    2: "F64",
    3: "I32",
    4: "U8",
    5: "I16",
    6: "I8",
    9: "I64",
    10: "BOOL",
    14: "BF16",
    17: "U16",
    19: "F16",
    22: "U32",
    23: "U64",
}

Fields = dict[int, list[int | bytes]]  # of a protocol buffer: number -> values, whole numbers or bytes


class Place(NamedTuple):
    """Where a tensor is."""

    shard: int
    start: int
    end: int
    dtype: str  # safetensors' name
    shape: tuple[int, ...]


def read_tensorflow(path: Path, held: contextlib.ExitStack) -> Content:
    """The tensors of a checkpoint, checked and not read yet, and no metadata. Tensors of texts are passed over.

    Args:
        path: of the index, or what the names of all its files begin with, as TensorFlow takes it.
        held: keeps the files open.

    Raises:
        FileNotFoundError: there is no such file, or a file of data is missing.
        FileFormatError: the index is damaged, or does not fit the files of data.
    """
    index = path if path.suffix.lower() == ENDING else path.with_name(path.name + ENDING)
    prefix = index.name[: -len(ENDING)]
    file = opened(index, held)
    try:
        if size_of(file) > LARGEST_HEADER:
            raise FileFormatError(f"it has {size_of(file)} bytes, more than the {LARGEST_HEADER} allowed")
        shards, places = places_of(file.read(LARGEST_HEADER))
    except FileFormatError as fault:
        raise FileFormatError(f"{index} is no index of a TensorFlow checkpoint: {fault}; fetch it again.") from None
    files = {}
    for number in sorted({place.shard for place in places.values()}):
        data = path.with_name(f"{prefix}.data-{number:05d}-of-{shards:05d}")
        try:
            files[number] = opened(data, held)
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no file {data}, of whose tensors {index} tells; fetch it too.") from None
    for number, file in files.items():
        refuse_overlaps(file.name, {name: each for name, each in places.items() if each.shard == number}, size_of(file))
    return {name: stored(files[place.shard], name, place) for name, place in places.items()}, {}


def stored(file: BufferedReader, name: str, place: Place) -> Stored:
    """A tensor by its place in a file, which has been checked."""
    read = functools.partial(read_bytes, file, name, place.dtype, place.shape, place.start)
    return Stored(name, place.dtype, place.shape, read)


def refuse_overlaps(file: str, places: Mapping[str, Place], size: int) -> None:
    """Refuse tensors that share bytes, or that end behind a file of `size` bytes; between them may be texts.

    Raises:
        FileFormatError: names the tensor.
    """
    position = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start < position or place.end > size:
            raise FileFormatError(
                f"{file} has {size} bytes and its index places tensor {name!r:.100} from {place.start} to {place.end}, "
                f"behind one that ends at {position}; fetch both again."
            )
        position = place.end


# --- the index ---


def places_of(index: bytes) -> tuple[int, dict[str, Place]]:
    """How many files of data there are, and where in them every tensor of numbers is.

    Raises:
        FileFormatError: the index is damaged, or says what no checkpoint says; the message is a part of a sentence.
    """
    rows = table(index)
    key, value = next(rows, (b"\0", b""))
    if key:
        raise FileFormatError("it does not begin with the number of files of data")
    header = fields(value)
    shards = number(header, 1)
    if not 0 < shards <= MOST_SHARDS or number(header, 2):
        raise FileFormatError(f"it tells of {shards} files of data, or of big-endian ones; 1 to {MOST_SHARDS} are read")
    places = {}
    for key, value in rows:
        try:
            name = key.decode()
        except UnicodeDecodeError:
            raise FileFormatError(f"its key {key!r:.100} is no text") from None
        entry = fields(value)
        if number(entry, 1) != TEXT:
            places[name] = place_of(name, entry, shards)
    return shards, places


def place_of(name: str, entry: Fields, shards: int) -> Place:
    """Where a tensor is, by its entry in the index.

    Raises:
        FileFormatError: its type, shape and place do not fit together; the message is a part of a sentence.
    """
    dtype = TYPES.get(number(entry, 1))
    if dtype is None:
        raise FileFormatError(f"tensor {name!r:.100} has type number {number(entry, 1)}; known are those of numbers")
    if 7 in entry:
        raise FileFormatError(f"tensor {name!r:.100} is stored in slices; save it without partitions")
    shape_fields = fields(message(entry, 2))
    axes = shape_fields.get(2, [])
    if len(axes) > MOST_AXES:
        raise FileFormatError(f"tensor {name!r:.100} has {len(axes)} axes, and {MOST_AXES} are allowed")
    shape = tuple(number(fields(axis), 1) if isinstance(axis, bytes) else -1 for axis in axes)
    if not is_shape(shape) or number(shape_fields, 3):
        raise FileFormatError(f"tensor {name!r:.100} has no shape of at most {MOST_AXES} whole numbers")
    shard, start, size = number(entry, 3), number(entry, 4), number(entry, 5)
    needed = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if size != needed or shard >= shards:
        raise FileFormatError(
            f"tensor {name!r:.100} takes {needed:.4g} bytes and has {size:.4g} in file {shard} of {shards}"
        )
    return Place(shard, start, start + size, dtype, shape)


def table(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of a table, in the order of the keys.

    Raises:
        FileFormatError: it is damaged, or has more entries than any checkpoint; the message is a part of a sentence.
    """
    if len(index) < FOOTER or int.from_bytes(index[-8:], "little") != MAGIC:
        raise FileFormatError(f"its {len(index)} bytes do not end as one does")
    footer = index[-FOOTER:-8]
    _, place = handle(footer, 0)  # of a block that tells of other things
    blocks, _ = handle(footer, place)
    previous, count, parts = None, itertools.count(1), itertools.count(1)
    for _, where in block(index, *blocks):
        if next(parts) > MOST_TENSORS:  # blocks without an entry would not be counted otherwise
            raise FileFormatError(f"it has more than {MOST_TENSORS} blocks")
        for key, value in block(index, *handle(where, 0)[0]):
            if previous is not None and key <= previous:  # also what keeps blocks from being read twice
                raise FileFormatError(f"its key {key!r:.100} is not in order")
            if next(count) > MOST_TENSORS:
                raise FileFormatError(f"it has more than {MOST_TENSORS} entries")
            previous = key
            yield key, value


def handle(data: bytes, start: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where they end in the data."""
    offset, place = varint(data, start)
    size, place = varint(data, place)
    return (offset, size), place


def block(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of a block.

    Raises:
        FileFormatError: it is damaged; the message is a part of a sentence.
    """
    if offset + size + TRAILER > len(index) - FOOTER or size < 4:
        raise FileFormatError(f"a block of {size} bytes at byte {offset} has no room in it")
    if index[offset + size]:
        raise FileFormatError(f"the block at byte {offset} is packed, as TensorFlow does not pack it")
    starts = int.from_bytes(index[offset + size - 4 : offset + size], "little")
    end = size - 4 - 4 * starts  # where the places to start a search from begin
    if end < 0:
        raise FileFormatError(f"the block at byte {offset} is shorter than it says")
    data = index[offset : offset + end]
    key, place = b"", 0
    while place < end:
        shared, place = varint(data, place)
        own, place = varint(data, place)
        length, place = varint(data, place)
        if max(shared - len(key), place + own + length - end, shared + own - LONGEST_NAME, length - LONGEST_VALUE) > 0:
            raise FileFormatError(f"an entry in the block at byte {offset} is longer than it can be")
        key = key[:shared] + data[place : place + own]
        place += own + length
        yield key, data[place - length : place]


# --- protocol buffers ---


def fields(data: bytes) -> Fields:
    """The fields of a protocol buffer: whole numbers of every kind, and bytes.

    Raises:
        FileFormatError: it is damaged; the message is a part of a sentence.
    """
    found: Fields = {}
    place, count = 0, 0
    while place < len(data):
        tag, place = varint(data, place)
        count += 1
        if count > MOST_FIELDS:
            raise FileFormatError(f"a message in it has more than {MOST_FIELDS} fields")
        kind = tag & 7
        if kind == 0:
            value: int | bytes
            value, place = varint(data, place)
        else:
            length = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                length, place = varint(data, place)
            if length is None or place + length > len(data):
                raise FileFormatError("a field in it is longer than it can be, or of no known kind")
            value, place = data[place : place + length], place + length
        found.setdefault(tag >> 3, []).append(value)
    return found


def number(found: Fields, field: int) -> int:
    """A field that is a whole number, 0 where there is none; the last one counts, as in all protocol buffers.

    Raises:
        FileFormatError: it is none; the message is a part of a sentence.
    """
    value = found.get(field, [0])[-1]
    if isinstance(value, bytes):
        raise FileFormatError(f"field {field} of an entry is no number")
    return value


def message(found: Fields, field: int) -> bytes:
    """A field that is bytes, none where there is none.

    Raises:
        FileFormatError: it is a number; the message is a part of a sentence.
    """
    value = found.get(field, [b""])[-1]
    if not isinstance(value, bytes):
        raise FileFormatError(f"field {field} of an entry is no message")
    return value
