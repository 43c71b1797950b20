"""Checkpoints of torch, of which nothing is unpickled and for which torch is not needed.

From torch 1.6 on, a checkpoint is a zip archive of members that are not packed:

    NAME/data.pkl    a pickle of everything but the numbers
    NAME/data/KEY    the numbers of a storage, which tensors of the pickle refer to by its key
    NAME/byteorder   "little" or "big"; where there is none, little
    ...              versions and the like

Before, it was one stream: pickles of a number that marks the format, of a version, of facts about the machine, of everything
but the numbers, and of a list of keys; and then for each key eight bytes that count the numbers, and the numbers.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import zipfile
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from coatref.errors import FileFormatError
from coatref.weights.files.archive import content_of, damage_told, open_archive, place_of
from coatref.weights.files.disk import faults_of, opened, size_of
from coatref.weights.files.limits import LARGEST_HEADER, refuse_bomb
from coatref.weights.files.pickled import Other, Storage, Tensor, read_pickle
from coatref.weights.files.stored import Content, Stored, is_shape, read_bytes, type_of

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict")  # where training scripts put averaged weights ...
PLAIN = ("state_dict", "model_state_dict", "model")  # ... and the others; the first that is there is taken
MAGIC = 0x1950A86A20F9469CFC6C  # the number that marks the older format

Places = dict[str, tuple[int, int]]  # key of a storage -> where its numbers begin and end in the file


def read_torch(path: Path, held: contextlib.ExitStack, *, ema: bool = True) -> Content:
    """A torch checkpoint: a mapping of tensors, bare or as one of the entries that training scripts give it.

    Args:
        path: of the file.
        held: what keeps it open.
        ema: take the averaged weights where there are some.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is damaged, holds something else, or would have to be unpickled.
    """
    file = opened(path, held)
    with faults_of(path, "no torch file of weights only", "a file that needs unpickling is refused"):
        zipped = file.read(4) == b"PK\3\4"
        content, places, order = read_zipped(file) if zipped else read_stream(file)
        tensors = state_dict(content, ema)
        if not isinstance(tensors, Mapping):
            raise FileFormatError(f"it holds a {type(tensors).__name__} and not a mapping of names to tensors")
        for name, value in tensors.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                told = f"a key that is a {name.name}" if isinstance(name, Other) else f"{name!r:.100}"
                raise FileFormatError(
                    f"it holds a {type(value).__name__} under {told} and should hold a mapping of names to tensors, "
                    f"bare or under {', '.join(map(repr, PLAIN))}; save the state_dict() alone"
                )
        found = {name: stored(file, name, tensor, places, order) for name, tensor in tensors.items()}
        refuse_bomb(sum(cost(tensor) for tensor in tensors.values()), size_of(file))
    return dict(found), {}


def read_zipped(file: BufferedReader) -> tuple[Any, Places, str]:
    """What the pickle of a zip archive describes, where its storages are, and their byte order, "<" or ">".

    Raises:
        FileFormatError: it is damaged, or packed, or no checkpoint; the message is a part of a sentence.
    """
    size = size_of(file)
    with contextlib.ExitStack() as held, damage_told():
        archive = open_archive(file, held)
        members = {member.filename: member for member in archive.infolist()}
        unpacked = sum(member.file_size for member in members.values())
        if unpacked > size:
            raise FileFormatError(f"it has {size} bytes and would unpack to {unpacked}")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise FileFormatError("it has packed members, which torch does not write")
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise FileFormatError(f"it has {len(pickles)} members DATA/data.pkl, and not one")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in members:
            raise FileFormatError(
                "it is a TorchScript archive, a program with its weights; save the state_dict() alone"
            )
        if members[pickles[0]].file_size > LARGEST_HEADER:
            raise FileFormatError(f"its pickle is longer than the {LARGEST_HEADER} bytes allowed")
        content = read_pickle(io.BytesIO(content_of(archive, members[pickles[0]])))
        order = members.get(folder + "byteorder")
        big = order is not None and order.file_size == 3 and content_of(archive, order) == b"big"
        data = {
            name.removeprefix(folder + "data/"): members[name] for name in members if name.startswith(folder + "data/")
        }
        places = {key: place_of(file, member) for key, member in data.items()}
    return content, places, ">" if big else "<"


def read_stream(file: BufferedReader) -> tuple[Any, Places, str]:
    """What the main pickle of the older format describes, where its storages are, and their byte order, "<" or ">".

    Raises:
        FileFormatError: it is damaged, or no checkpoint; the message is a part of a sentence.
    """
    file.seek(0)
    pickles, size = io.BytesIO(file.read(LARGEST_HEADER)), size_of(file)
    if read_pickle(pickles) != MAGIC:
        raise FileFormatError("it does not begin as one")
    read_pickle(pickles)  # the version
    machine = read_pickle(pickles)
    content = read_pickle(pickles)
    keys = read_pickle(pickles)
    if not isinstance(keys, list) or not isinstance(machine, dict):
        raise FileFormatError("it has no list of storages, or no facts about the machine")
    little = machine.get("little_endian") is not False
    storages = {storage.key: storage for storage in all_storages(content)}
    places: Places = {}
    position = pickles.tell()
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.dtype is None or key in places:
            told = repr(key)[:100] if isinstance(key, str) else type(key).__name__
            raise FileFormatError(f"it has a storage {told} that no tensor refers to, or twice")
        file.seek(position)
        count = int.from_bytes(file.read(8), "little" if little else "big")
        begin = position + 8
        position = begin + count * type_of(storage.dtype).itemsize
        if count != storage.count or position > size:
            raise FileFormatError(f"its storage {key!r:.100} ends beyond it, or has another size than its tensors say")
        places[key] = begin, position
    return content, places, "<" if little else ">"


def all_storages(content: Any) -> list[Storage]:
    """Every storage that something in a checkpoint refers to."""
    found: list[Storage] = []
    seen: set[int] = set()
    todo = [content]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            found.append(value.storage)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            todo.extend(value.values() if isinstance(value, dict) else value)
    return found


def state_dict(content: Any, ema: bool) -> Any:
    """What a checkpoint holds as its tensors: an entry of it, or itself."""
    for _ in range(2):  # an entry may be a checkpoint again, {"model": {"state_dict": ...}}
        for wrapper in (*(AVERAGED if ema else ()), *PLAIN):
            if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    return content


def stored(file: BufferedReader, name: str, tensor: Tensor, places: Places, order: str) -> Stored:
    """A tensor, checked against its storage.

    Raises:
        FileFormatError: it goes beyond its storage, or that is not in the file; the message is a part of a sentence.
    """
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    width = type_of(tensor.dtype).itemsize
    begin, end = places.get(storage.key, (0, -1))
    count = storage.count if storage.dtype is not None else (end - begin) // width  # that one counts in bytes
    if end - begin != count * width:
        raise FileFormatError(f"the storage of tensor {name!r:.100} is not in it, or has another size")
    if not is_shape(shape) or len(strides) != len(shape):
        raise FileFormatError(f"tensor {name!r:.100} has no shape, or not a stride for each axis")
    if span(tensor) and tensor.offset + span(tensor) > count:
        raise FileFormatError(f"tensor {name!r:.100} goes beyond its storage of {count} numbers")
    fetch = functools.partial(fetched, file, name, tensor, begin + tensor.offset * width, order)
    return Stored(name, tensor.dtype, shape, fetch)


def span(tensor: Tensor) -> int:
    """How many numbers of a storage there are from the first of a tensor to the last one."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True))


def cost(tensor: Tensor) -> int:
    """How many bytes are read or made for a tensor, of which a stride of 0 makes many from few, a long one few from many."""
    return max(span(tensor), math.prod(tensor.shape)) * type_of(tensor.dtype).itemsize


def fetched(file: BufferedReader, name: str, tensor: Tensor, start: int, order: str) -> np.ndarray:
    """The array of a tensor, whose first number is at `start` in the file.

    Raises:
        FileFormatError: the file has been cut since it was opened.
    """
    shape = tensor.shape
    flat = read_bytes(file, name, tensor.dtype, (span(tensor),), start, order)
    axes = [axis for axis, length in enumerate(shape) if length != 1]  # a stride along the others may be anything
    if 0 in shape or [tensor.strides[axis] for axis in axes] == [in_order(shape)[axis] for axis in axes]:
        return flat.reshape(shape)
    strides = [tensor.strides[axis] * flat.itemsize if axis in axes else 0 for axis in range(len(shape))]
    return np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False).copy()


def in_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of an array in C order, in numbers."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
