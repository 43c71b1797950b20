"""Indices of TensorFlow checkpoints, written and taken apart, so that a change in one leaves the rest right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

MAGIC = 0xDB4775248B80FB57
NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19}

Rows = list[tuple[bytes, bytes]]


def varint(value: int) -> bytes:
    """A whole number, seven bits in a byte."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def block(rows: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A block of entries, each key by what it shares with the one before, without its trailer."""
    content, before = b"", b""
    for key, value in rows:
        shared = 0
        while shared < min(len(key), len(before)) and key[shared] == before[shared]:
            shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content + bytes(4) + (1).to_bytes(4, "little")


def table(rows: Sequence[tuple[bytes, bytes]], size: int = 7) -> bytes:
    """A table of rows, `size` in a block."""
    content, handles = b"", []
    for start in range(0, len(rows), size):
        part = block(rows[start : start + size])
        handles.append((rows[min(start + size, len(rows)) - 1][0], varint(len(content)) + varint(len(part))))
        content += part + bytes(5)
    places = b""
    for part in (block([]), block(handles)):
        places += varint(len(content)) + varint(len(part))
        content += part + bytes(5)
    return content + places.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def entry(array: np.ndarray, start: int) -> bytes:
    """What a table says of a tensor."""
    axes = b"".join(b"\x12" + varint(len(axis)) + axis for axis in (b"\x08" + varint(side) for side in array.shape))
    return (
        b"\x08"
        + varint(NUMBERS[array.dtype.name])
        + b"\x12"
        + varint(len(axes))
        + axes
        + b"\x20"
        + varint(start)
        + b"\x28"
        + varint(array.nbytes)
        + b"\x35\1\2\3\4"
    )


def bundle(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, bytes]:
    """Index and data of a checkpoint."""
    rows, data = [(b"", b"\x08\x01\x1a\x02\x08\x01")], b""
    for name, array in sorted(arrays.items()):
        rows.append((name.encode(), entry(array, len(data))))
        data += array.tobytes()
    return table(rows), data


def rows_of(index: bytes) -> Rows:
    """Every entry of a table that is right.

    Raises:
        ValueError, IndexError: it is not.
    """
    if index[-8:] != MAGIC.to_bytes(8, "little"):
        raise ValueError("no table")
    position = len(index) - 48
    numbers = []
    for _ in range(4):
        value, position = number_at(index, position)
        numbers.append(value)
    rows: Rows = []
    for _, where in entries(index, numbers[2], numbers[3]):
        start, place = number_at(where, 0)
        length, _ = number_at(where, place)
        rows += entries(index, start, length)
    return rows


def entries(index: bytes, start: int, size: int) -> Rows:
    """Every entry of a block."""
    content = index[start : start + size]
    end = size - 4 - 4 * int.from_bytes(content[-4:], "little")
    rows: Rows = []
    key, place = b"", 0
    while 0 <= place < end:
        shared, place = number_at(content, place)
        own, place = number_at(content, place)
        length, place = number_at(content, place)
        key = key[:shared] + content[place : place + own]
        rows.append((key, content[place + own : place + own + length]))
        place += own + length
    return rows


def number_at(content: bytes, place: int) -> tuple[int, int]:
    """A whole number, and where it ends."""
    value = shift = 0
    while True:
        byte = content[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
