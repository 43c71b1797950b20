"""Writing HDF5 files as Keras 2 has its weights in them, with NumPy alone.

The HDF5 library is not used: where a write fails in the middle, on a full disk, it can crash the process that it is in. A file
is its superblock, then the object headers, groups and attributes, then the numbers one after the other, of the form that the
library writes unless told otherwise (see `coatref.weights.files.hdf5_objects`): any version of it reads the file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from coatref.errors import InputError
from coatref.weights.files.hdf5_objects import (
    ATTRIBUTE,
    DATASPACE,
    DATATYPE,
    DEEPEST,
    LAYOUT,
    SIGNATURE,
    SYMBOL_TABLE,
    UNDEFINED,
)

LARGEST_ATTRIBUTE = 64512  # bytes, as Keras divides its attributes; HDF5 has room for 64 kB
KERAS_VERSION = "2.15.0"  # the last of the versions that write files of this layout by default
LEAVES = ("bias", "beta", "moving_mean", "moving_variance")  # in the order of a layer's weights, behind kernel or gamma

SUPERBLOCK = 96  # bytes
CHILDREN, MEMBERS = 32, 8  # that they have at most
SMALLEST_HEAP = 4096  # bytes
NODE, PART = 32 + 16 * CHILDREN, 8 + 40 * MEMBERS  # bytes of a node of a tree, and of a part of a group

FLOATS = {  # bytes -> bits: that of the sign, first of the exponent, how many; bits of the mantissa; the exponent's bias
    2: (15, 10, 5, 10, 15),
    4: (31, 23, 8, 23, 127),
    8: (63, 52, 11, 52, 1023),
}


@dataclass(frozen=True)
class Group:
    """A group: its attributes, each a text or a list of texts, and the groups and arrays in it."""

    attributes: dict[str, str | list[str]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Blocks:
    """What has been laid out: blocks of bytes, arrays, and where the next array will be."""

    content: bytearray
    arrays: list[np.ndarray]
    position: int


def write_hdf5(file: BinaryIO, arrays: Mapping[str, np.ndarray], put: Callable[[BinaryIO, np.ndarray], None]) -> None:
    """Write a file of weights as Keras 2 does: /LAYER/LAYER/LEAF:0, and attributes that say what is there in which order.

    Args:
        file: open for writing.
        arrays: by "LAYER/LEAF", integers and floats.
        put: writes the bytes of an array, little-endian and in C order.

    Raises:
        InputError: a name is not "LAYER/LEAF".
        OSError: the file cannot be written.
    """
    root = keras_groups(arrays)
    content, placed = laid_out(root, len(laid_out(root, 0)[0]))  # addresses all take 8 bytes, whatever they are
    file.write(content)
    for array in placed:
        put(file, array)
        file.write(bytes(-array.nbytes % 8))


def keras_groups(arrays: Mapping[str, np.ndarray]) -> Group:
    """The groups of a file of weights.

    Raises:
        InputError: a name is not "LAYER/LEAF".
    """
    layers: dict[str, list[str]] = {}
    for name in arrays:
        layer, slash, leaf = name.partition("/")
        plain = all(part.strip(".") for part in name.split("/")) and not set(name) & set("\0:")
        if not slash or not plain or name.count("/") > DEEPEST - 2:
            raise InputError(
                f"Weights are written to .h5 files under names LAYER/LEAF without a colon, got {name!r:.100}."
            )
        layers.setdefault(layer, []).append(leaf)
    root = Group({"backend": "tensorflow", "keras_version": KERAS_VERSION, **divided("layer_names", list(layers))})
    for layer, given in layers.items():
        leaves = sorted(given, key=lambda leaf: LEAVES.index(leaf) if leaf in LEAVES else -1)
        root.groups[layer] = Group(divided("weight_names", [f"{layer}/{leaf}:0" for leaf in leaves]))
        for leaf in leaves:
            group = root.groups[layer]
            *parents, last = [layer, *leaf.split("/")]
            for parent in parents:
                group = group.groups.setdefault(parent, Group())
            group.arrays[f"{last}:0"] = arrays[f"{layer}/{leaf}"]
    return root


def divided(name: str, values: list[str]) -> dict[str, str | list[str]]:
    """A list as one attribute, or where HDF5 has no room for it as several: "layer_names0", "layer_names1" and so on."""
    longest = max((len(value.encode()) for value in values), default=1)
    step = max(1, LARGEST_ATTRIBUTE // longest)
    if len(values) <= step:
        return {name: values}
    return {f"{name}{begin // step}": values[begin : begin + step] for begin in range(0, len(values), step)}


def laid_out(root: Group, start: int) -> tuple[bytes, list[np.ndarray]]:
    """Everything of a file but its numbers, and the arrays in their order, if they begin at byte `start`."""
    blocks = Blocks(bytearray(SUPERBLOCK), [], start)
    address = put_group(blocks, root)
    head = SIGNATURE + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + struct.pack("<HHL", MEMBERS // 2, CHILDREN // 2, 0)
    head += struct.pack("<4Q", 0, UNDEFINED, blocks.position, UNDEFINED) + struct.pack("<2Q2L16x", 0, address, 0, 0)
    blocks.content[:SUPERBLOCK] = head
    return bytes(blocks.content), blocks.arrays


def add(blocks: Blocks, content: bytes) -> int:
    """Lay out a block of bytes behind the others, and give its address."""
    address = len(blocks.content)
    blocks.content += padded(content)
    return address


def padded(content: bytes) -> bytes:
    """Bytes with zeros behind them, to a multiple of 8."""
    return content + bytes(-len(content) % 8)


def put_group(blocks: Blocks, group: Group) -> int:
    """Lay out a group and everything in it, and give the address of its object header."""
    places = {name: put_group(blocks, member) for name, member in group.groups.items()}
    places |= {name: put_array(blocks, array) for name, array in group.arrays.items()}
    encoded = sorted((name.encode(), place) for name, place in places.items())
    names, offsets = bytes(8), []  # the empty name comes first
    for name, _ in encoded:
        offsets.append(len(names))
        names += padded(name + b"\0")
    segment = add(blocks, names)
    heap = add(blocks, b"HEAP" + struct.pack("<4x3Q", len(names), 1, segment))  # 1: nothing in it is free
    parts = []  # the greatest name of each, and its address
    for begin in range(0, len(encoded), MEMBERS):
        chosen = range(begin, min(begin + MEMBERS, len(encoded)))
        entries = b"".join(struct.pack("<2Q2L16x", offsets[index], encoded[index][1], 0, 0) for index in chosen)
        part = b"SNOD" + struct.pack("<BxH", 1, len(chosen)) + entries
        parts.append((offsets[chosen[-1]], add(blocks, part.ljust(PART, b"\0"))))
    table = message(SYMBOL_TABLE, struct.pack("<2Q", put_tree(blocks, parts), heap))
    return put_header(blocks, [table, *(attribute(blocks, name, value) for name, value in group.attributes.items())])


def put_tree(blocks: Blocks, parts: list[tuple[int, int]], level: int = 0) -> int:
    """Lay out a tree whose leaves point to the parts of a group, and give the address of its root."""
    nodes: list[tuple[int, int]] = []
    first = len(blocks.content)
    count = max(1, -(-len(parts) // CHILDREN))
    for index in range(count):
        chosen = parts[CHILDREN * index : CHILDREN * (index + 1)]
        before = first + NODE * (index - 1) if index > 0 else UNDEFINED
        behind = first + NODE * (index + 1) if index < count - 1 else UNDEFINED
        least = parts[CHILDREN * index - 1][0] if index > 0 else 0
        content = b"TREE" + struct.pack("<2BH3Q", 0, level, len(chosen), before, behind, least)
        content += b"".join(struct.pack("<2Q", place, greatest) for greatest, place in chosen)
        nodes.append((chosen[-1][0] if chosen else 0, add(blocks, content.ljust(NODE, b"\0"))))
    return nodes[0][1] if count == 1 else put_tree(blocks, nodes, level + 1)


def put_array(blocks: Blocks, array: np.ndarray) -> int:
    """Give an array its place behind the others, and lay out its object header."""
    place = blocks.position if array.nbytes else UNDEFINED
    blocks.arrays.append(array)
    blocks.position += array.nbytes + -array.nbytes % 8
    layout = struct.pack("<2B2Q", 3, 1, place, array.nbytes)
    parts = [(DATASPACE, dataspace(array.shape)), (DATATYPE, number_type(array.dtype)), (LAYOUT, layout)]
    return put_header(blocks, [message(kind, content) for kind, content in parts])


def put_header(blocks: Blocks, messages: Sequence[bytes]) -> int:
    """Lay out an object header of messages, and give its address."""
    content = b"".join(messages)
    return add(blocks, struct.pack("<BxHLL4x", 1, len(messages), 1, len(content)) + content)


def message(kind: int, content: bytes) -> bytes:
    """A message of an object header."""
    return struct.pack("<HHB3x", kind, len(padded(content)), 0) + padded(content)


def dataspace(shape: Sequence[int]) -> bytes:
    """The message of a shape."""
    return struct.pack(f"<3B5x{len(shape)}Q", 1, len(shape), 0, *shape)


def number_type(kind: np.dtype) -> bytes:
    """The message of a type of numbers, little-endian."""
    if kind.kind in "iu":
        return struct.pack("<4BLHH", 0x10, 8 if kind.kind == "i" else 0, 0, 0, kind.itemsize, 0, 8 * kind.itemsize)
    sign, at, length, mantissa, bias = FLOATS[kind.itemsize]
    head = struct.pack("<4BLHH", 0x11, 0x20, sign, 0, kind.itemsize, 0, 8 * kind.itemsize)
    return head + struct.pack("<4BL", at, length, 0, mantissa, bias)


def attribute(blocks: Blocks, name: str, value: str | list[str]) -> bytes:
    """The message of an attribute: a text, or a list of texts, in UTF-8.

    Those of a list are of any length each and lie in a heap, as Keras writes them: kecam's torch backend looks layers up by
    them, and of texts of one length h5py makes bytes, which are no names there.
    """
    encoded = name.encode() + b"\0"
    if isinstance(value, list):
        texts = [text.encode() for text in value]
        address = put_heap(blocks, texts)
        kind = struct.pack("<4BL", 0x19, 1, 1, 0, 16) + number_type(np.dtype(np.uint8))
        data = b"".join(struct.pack("<LQL", len(text), address, number) for number, text in enumerate(texts, start=1))
        space = dataspace([len(texts)])
    else:
        data, space = value.encode(), dataspace([])
        kind = struct.pack("<4BL", 0x13, 0x11, 0, 0, len(data))
    content = struct.pack("<Bx3H", 1, len(encoded), len(kind), len(space))
    return message(ATTRIBUTE, content + padded(encoded) + padded(kind) + padded(space) + data)


def put_heap(blocks: Blocks, texts: Sequence[bytes]) -> int:
    """Lay out texts in a heap, numbered from 1, and give its address; what is left of it is object 0."""
    objects = b"".join(struct.pack("<2H4xQ", number, 1, len(text)) + padded(text) for number, text in enumerate(texts, 1))
    size = max(SMALLEST_HEAP, 16 + len(objects) + 16)
    free = size - 16 - len(objects)
    content = b"GCOL" + struct.pack("<B3xQ", 1, size) + objects + struct.pack("<2H4xQ", 0, 0, free)
    return add(blocks, content.ljust(size, b"\0"))
