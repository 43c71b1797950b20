"""safetensors files."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from coatref.errors import FileFormatError
from coatref.weights.files.disk import faults_of, opened, size_of
from coatref.weights.files.json_text import parsed
from coatref.weights.files.limits import LARGEST_HEADER
from coatref.weights.files.stored import DTYPES, MOST_AXES, Content, Stored, is_count, is_shape, read_bytes, type_of


def read_safetensors(path: Path, held: contextlib.ExitStack) -> Content:
    """The tensors and metadata of a safetensors file, checked and not read yet.

    A file is eight bytes of header length, the header in JSON, and the tensors' bytes one after the other without a gap.

    Raises:
        FileNotFoundError, FileFormatError: there is no such file, or it is not whole.
    """
    file = opened(path, held)
    size = size_of(file)
    with faults_of(path, "no whole safetensors file"):
        header, start = read_header(file, size)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise FileFormatError("its metadata is not a mapping of texts to texts")
        places = {name: place_of(name, entry, start) for name, entry in header.items()}
        refuse_gaps(places, start, size)
    return {name: stored(file, name, header[name], begin) for name, (begin, _) in places.items()}, metadata


def read_header(file: BufferedReader, size: int) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file of `size` bytes, and where the tensors start.

    Raises:
        FileFormatError: it is not whole, too long, or no JSON object; the message is a part of a sentence.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise FileFormatError(f"it has {size} bytes and its header should take {length} after the first 8")
    if length > LARGEST_HEADER:
        raise FileFormatError(f"its header of {length} bytes is longer than the {LARGEST_HEADER} allowed")
    try:
        header = parsed(file.read(length))
    except FileFormatError as fault:
        raise FileFormatError(f"in its header, {fault}") from None
    if not isinstance(header, dict):
        raise FileFormatError(f"its header is a JSON {type(header).__name__} and not an object")
    return header, 8 + length


def place_of(name: str, entry: Any, start: int) -> tuple[int, int]:
    """Where a tensor's bytes begin and end in the file, by its entry in the header.

    Raises:
        FileFormatError: the entry is incomplete, or its type, shape and place do not fit together.
    """
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise FileFormatError(f"tensor {name!r:.100} lacks a type, a shape or a place") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FileFormatError(f"tensor {name!r:.100} has the type {dtype!r:.50}; known are {', '.join(DTYPES)}")
    if not is_shape(shape):
        raise FileFormatError(f"tensor {name!r:.100} has no shape of at most {MOST_AXES} whole numbers")
    needed = math.prod(shape) * type_of(dtype).itemsize
    if not is_count(begin) or not is_count(end) or end - begin != needed:
        raise FileFormatError(
            f"tensor {name!r:.100} takes {needed:.4g} bytes and has its place from {begin!r:.30} to {end!r:.30}"
        )
    return start + begin, start + end


def refuse_gaps(places: Mapping[str, tuple[int, int]], start: int, size: int) -> None:
    """Refuse tensors that do not lie one after the other from `start` to the end of the file.

    Raises:
        FileFormatError: two overlap, bytes between them or at the end belong to none, or the file ends too early.
    """
    position = start
    for name, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
        if begin != position:
            raise FileFormatError(f"tensor {name!r:.100} starts at byte {begin} where byte {position} should come")
        position = end
    if position != size:
        raise FileFormatError(f"it has {size} bytes and its header tells of {position}")


def stored(file: BufferedReader, name: str, entry: Mapping[str, Any], start: int) -> Stored:
    """A tensor by its entry in the header, which has been checked, and the place where its bytes begin."""
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    return Stored(name, dtype, shape, functools.partial(read_bytes, file, name, dtype, shape, start))
