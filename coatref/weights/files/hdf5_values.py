"""Datasets and texts of an HDF5 file, from the messages of an object header (see `hdf5_objects`)."""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from typing import NamedTuple

import numpy as np

from coatref.errors import FileFormatError
from coatref.weights.files.hdf5_objects import (
    ATTRIBUTE,
    DATASPACE,
    DATATYPE,
    EXTERNAL,
    FILTERS,
    LAYOUT,
    UNDEFINED,
    Messages,
    Metadata,
    entries,
    later,
    number,
)
from coatref.weights.files.stored import Stored, is_shape, native, read_bytes, type_of, widened

INTEGER, FLOAT, STRING, OPAQUE, ENUMERATION, OF_ANY_LENGTH = 0, 1, 3, 5, 8, 9  # classes of types
COMPACT, CONTIGUOUS, CHUNKED = 0, 1, 2  # classes of layouts
DEFLATE, SHUFFLE = 1, 2  # filters
MOST_CHUNKS = 10**5  # of a dataset
SLACK = 64  # bytes; numbers that do not pack hardly grow by deflate, a few bytes may double
LONGEST_TEXT = 4096  # bytes

FLOATS: dict[
    tuple[int, ...], str
] = {  # bytes; places and sizes in bits: sign, exponent (at, of), mantissa (at, of); what the exponent is too large by
    (2, 15, 10, 5, 0, 10, 15): "F16",
    (2, 15, 7, 8, 0, 7, 127): "BF16",
    (4, 31, 23, 8, 0, 23, 127): "F32",
    (8, 63, 52, 11, 0, 52, 1023): "F64",
}


class Type(NamedTuple):
    """The type of numbers: safetensors' name of it, and the end of a number that comes first, "<" or ">"."""

    dtype: str
    order: str


class Chunk(NamedTuple):
    """A block of a dataset: the index of its first number, and where its bytes are."""

    first: tuple[int, ...]
    address: int
    size: int


def dataset(metadata: Metadata, name: str, found: Messages) -> tuple[Stored, int]:
    """A dataset, checked and not read yet, and how many bytes its values take when they are read.

    Raises:
        FileFormatError: it is damaged, holds no numbers, or its values are not in the file; the message is a part of a
            sentence.
    """
    if found.has(EXTERNAL):
        raise FileFormatError(f"the values of dataset {name!r:.100} are in another file")
    shape = shape_of(name, found.one(DATASPACE))
    kind = number_type(found.one(DATATYPE), text_attribute(metadata, found, "dtype"))
    if kind is None:
        raise FileFormatError(f"dataset {name!r:.100} is not of numbers that coatref knows")
    width = type_of(kind.dtype).itemsize
    needed, layout = math.prod(shape) * width, found.one(LAYOUT)
    version, place = number(layout, 0, 1), number(layout, 1, 1)
    if version != 3:
        raise later(f"layout {version}")
    if place == CHUNKED:
        return chunked(metadata, name, found, shape, kind)
    if place == CONTIGUOUS:
        address, size = number(layout, 2, 8), number(layout, 10, 8)
        if size != needed or (needed and (address == UNDEFINED or address + size > metadata.size)):
            raise FileFormatError(f"dataset {name!r:.100} takes {needed:.4g} bytes, which are not all in the file")
        start = metadata.start + (address if needed else 0)
        fetch = functools.partial(read_bytes, metadata.file, name, kind.dtype, shape, start, kind.order)
        return Stored(name, kind.dtype, shape, fetch), needed
    if place != COMPACT or number(layout, 2, 2) != needed or len(layout) < 4 + needed:
        raise FileFormatError(f"dataset {name!r:.100} takes {needed:.4g} bytes, which are not with it")
    return Stored(name, kind.dtype, shape, functools.partial(array_of, layout[4 : 4 + needed], kind, shape)), needed


def array_of(content: bytes, kind: Type, shape: tuple[int, ...]) -> np.ndarray:
    """The array that bytes are."""
    array = np.frombuffer(content, type_of(kind.dtype, kind.order)).reshape(shape)
    return widened(array) if kind.dtype == "BF16" else native(array)


def shape_of(name: str, space: bytes) -> tuple[int, ...]:
    """The shape that a dataspace message says.

    Raises:
        FileFormatError: it says none; the message is a part of a sentence.
    """
    version, rank = number(space, 0, 1), number(space, 1, 1)
    begin = {1: 8, 2: 4}.get(version, 0)
    if not begin or (version == 2 and number(space, 3, 1) == 2):
        raise FileFormatError(f"dataset {name!r:.100} has no shape")
    shape = tuple(number(space, begin + 8 * axis, 8) for axis in range(rank))
    if not is_shape(shape):
        raise FileFormatError(f"dataset {name!r:.100} has an absurd shape")
    return shape


def number_type(content: bytes, said: str | None) -> Type | None:
    """The type that a datatype message says, None for one that is not of numbers.

    Args:
        content: of the message.
        said: what Keras says of the type in an attribute: numbers that it writes as opaque are "bfloat16" then.

    Raises:
        FileFormatError: it is damaged; the message is a part of a sentence.
    """
    kind, size = number(content, 0, 1) & 15, number(content, 4, 4)
    low, sign = number(content, 1, 1), number(content, 2, 1)
    order = ">" if low & 1 else "<"
    if kind == ENUMERATION:  # counts as its integers; h5py's bool is one
        return number_type(content[8:], None) if number(content, 8, 1) & 15 == INTEGER else None
    if kind == OPAQUE:
        return Type("BF16", "<") if size == 2 and said == "bfloat16" else None
    if kind not in (INTEGER, FLOAT) or number(content, 8, 2) or number(content, 10, 2) != 8 * size:
        return None
    if kind == INTEGER:
        return Type(f"{'I' if low & 8 else 'U'}{8 * size}", order) if size in (1, 2, 4, 8) else None
    places = tuple(number(content, 12 + at, 1) for at in range(4))
    dtype = FLOATS.get((size, sign, *places, number(content, 16, 4)))
    return (
        None if dtype is None or low & 0x70 != 0x20 else Type(dtype, order)
    )  # the leading bit of the mantissa implied


def chunked(metadata: Metadata, name: str, found: Messages, shape: tuple[int, ...], kind: Type) -> tuple[Stored, int]:
    """A dataset in chunks, packed or not, and how many bytes they take when they are read.

    Raises:
        FileFormatError: they are not all there, or packed otherwise than by deflate; the message is a part of a sentence.
    """
    layout, width = found.one(LAYOUT), type_of(kind.dtype).itemsize
    rank = number(layout, 2, 1) - 1
    sizes = tuple(number(layout, 11 + 4 * axis, 4) for axis in range(rank + 1))
    if rank != len(shape) or rank == 0 or sizes[-1] != width or 0 in sizes:
        raise FileFormatError(f"dataset {name!r:.100} has chunks of another kind than itself")
    steps = sizes[:-1]
    expected = math.prod(-(-length // step) for length, step in zip(shape, steps, strict=True))
    unpacked = math.prod(steps) * width
    filters = filters_of(name, found, width)
    if expected > MOST_CHUNKS:
        raise FileFormatError(f"dataset {name!r:.100} has {expected} chunks, and {MOST_CHUNKS} are allowed")
    tree = number(layout, 3, 8)
    chunks: list[Chunk] = []
    for key, address in entries(metadata, tree, 1, 16 + 8 * rank) if expected else ():
        size, mask, behind = number(key, 0, 4), number(key, 4, 4), number(key, 8 + 8 * rank, 8)
        index = tuple(number(key, 8 + 8 * axis, 8) for axis in range(rank))
        fits = size <= 2 * unpacked + SLACK if DEFLATE in filters else size == unpacked
        if mask or behind or address + size > metadata.size or not fits or len(chunks) == expected:
            raise FileFormatError(
                f"a chunk of dataset {name!r:.100} is not as large as it should be, or not in the file, or one too many"
            )
        chunks.append(Chunk(index, address, size))
    ranges = [range(0, length, step) for length, step in zip(shape, steps, strict=True)]
    starts = itertools.product(*ranges) if expected else ()  # it takes each range into memory, be another one empty
    if [chunk.first for chunk in chunks] != list(starts):
        raise FileFormatError(f"dataset {name!r:.100} has {expected} chunks, which are not all there, or not in order")
    fetch = functools.partial(assembled, metadata, name, kind, shape, steps, filters, tuple(chunks))
    return Stored(name, kind.dtype, shape, fetch), max(expected * unpacked, math.prod(shape) * width)


def filters_of(name: str, found: Messages, width: int) -> tuple[int, ...]:
    """Numbers of the filters that a dataset of numbers of so many bytes went through, in their order.

    Raises:
        FileFormatError: one is none of HDF5's own without loss, or is for other numbers; the message is a part of a sentence.
    """
    if not found.has(FILTERS):
        return ()
    content = found.one(FILTERS)
    version, count, position, filters = number(content, 0, 1), number(content, 1, 1), 8, []
    if version != 1:
        raise later(f"filters {version}")
    for _ in range(count):
        length, values = number(content, position + 2, 2), number(content, position + 6, 2)
        filters.append(number(content, position, 2))
        if filters[-1] == SHUFFLE and (values != 1 or number(content, position + 8 + length, 4) != width):
            raise FileFormatError(f"dataset {name!r:.100} is shuffled as numbers of another size")
        position += 8 + length + 4 * (values + values % 2)
    if set(filters) - {DEFLATE, SHUFFLE} or len(set(filters)) != len(filters):
        raise FileFormatError(
            f"dataset {name!r:.100} is packed by filters {filters}, of which deflate and shuffle are read"
        )
    return tuple(filters)


def assembled(
    metadata: Metadata,
    name: str,
    kind: Type,
    shape: tuple[int, ...],
    steps: tuple[int, ...],
    filters: tuple[int, ...],
    chunks: tuple[Chunk, ...],
) -> np.ndarray:
    """The array of a dataset in chunks.

    Raises:
        FileFormatError: a chunk is damaged, or the file has been cut since it was opened.
    """
    array = np.empty(shape, type_of(kind.dtype, kind.order))
    for chunk in chunks:
        metadata.file.seek(metadata.start + chunk.address)
        content = metadata.file.read(chunk.size)
        part = unpacked(content, array.dtype, steps, filters)
        if part is None:
            raise FileFormatError(
                f"A chunk of dataset {name:.100} of {metadata.file.name} is damaged; fetch the file again."
            )
        place = tuple(slice(begin, begin + step) for begin, step in zip(chunk.first, steps, strict=True))
        target = array[place]
        target[...] = part[tuple(slice(length) for length in target.shape)]
    return widened(array) if kind.dtype == "BF16" else native(array)


def unpacked(content: bytes, dtype: np.dtype, shape: tuple[int, ...], filters: tuple[int, ...]) -> np.ndarray | None:
    """A chunk from its bytes, by the filters in reverse; None where they do not give so many numbers."""
    size = math.prod(shape) * dtype.itemsize
    for each in reversed(filters):
        if each == DEFLATE:
            try:
                content = zlib.decompressobj().decompress(content, size + 1)
            except zlib.error:
                return None
        elif len(content) == size:  # shuffled: first bytes of all numbers, then second ones, ...
            content = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
    return np.frombuffer(content, dtype).reshape(shape) if len(content) == size else None


def text_attribute(metadata: Metadata, found: Messages, wanted: str) -> str | None:
    """The text in an attribute of an object; None where it has no such attribute, or one that is no single text.

    Raises:
        FileFormatError: it is damaged; the message is a part of a sentence.
    """
    for kind, content in found.pairs:
        if kind != ATTRIBUTE:
            continue
        version = number(content, 0, 1)
        if version not in (1, 2, 3):
            raise FileFormatError(f"an attribute of its object at byte {found.address} is of no known version")
        position, multiple = 8 + (version == 3), 8 if version == 1 else 1
        parts = []
        for at in (2, 4, 6):  # name, type and shape
            length = number(content, at, 2)
            parts.append(content[position : position + length])
            position += -(-length // multiple) * multiple
        if parts[0].rstrip(b"\0") == wanted.encode():
            return text_of(metadata, parts[1], parts[2], content[position:])
    return None


def text_of(metadata: Metadata, datatype: bytes, space: bytes, data: bytes) -> str | None:
    """The text in the data of an attribute, None where it is no single text.

    Raises:
        FileFormatError: it is damaged; the message is a part of a sentence.
    """
    kind, size = number(datatype, 0, 1) & 15, number(datatype, 4, 4)
    if number(space, 1, 1) != 0 or size > LONGEST_TEXT:
        return None
    if kind == STRING:
        content = data[:size].partition(b"\0")[0]
    elif kind == OF_ANY_LENGTH and number(datatype, 1, 1) & 15 == 1:
        content = heap_object(metadata, number(data, 4, 8), number(data, 12, 4))[: number(data, 0, 4)]
    else:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise FileFormatError("it has an attribute whose text is none") from None


def heap_object(metadata: Metadata, address: int, index: int) -> bytes:
    """An object of a global heap.

    Raises:
        FileFormatError: there is none; the message is a part of a sentence.
    """
    if address not in metadata.heaps:
        head = metadata.take(address, 16)
        if head[:4] != b"GCOL":
            raise FileFormatError(f"it has no texts at byte {address}, where they should be")
        content, found, position = metadata.take(address, number(head, 8, 8)), {}, 16
        while position + 16 <= len(content):
            size = number(content, position + 8, 8)
            found[number(content, position, 2)] = content[position + 16 : position + 16 + size]
            position += 16 + -(-size // 8) * 8
        metadata.heaps[address] = found
    if index not in metadata.heaps[address]:
        raise FileFormatError(f"it has no text {index} at byte {address}, where one should be")
    return metadata.heaps[address][index]
