"""TensorFlow checkpoints written as TensorFlow writes them, and with anything wrong in them that a test asks for."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

TYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19}
MAGIC = 0xDB4775248B80FB57

Row = tuple[bytes, bytes]


def varint(value: int) -> bytes:
    """A whole number, 7 bits in a byte; negative ones in ten bytes."""
    value &= 2**64 - 1
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def header(shards: int, endianness: int = 0) -> bytes:
    """The value of the first key."""
    return field(1, shards) + field(2, endianness)


def entry(dtype: int, shape: Sequence[int], shard: int, start: int, size: int) -> bytes:
    """The value of a tensor's key."""
    axes = b"".join(field(2, field(1, side)) for side in shape)
    return field(1, dtype) + field(2, axes) + field(3, shard) + field(4, start) + field(5, size)


def block(rows: Iterable[Row]) -> bytes:
    """A block without anything shared between keys, and its trailer."""
    entries = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in rows)
    return entries + struct.pack("<II", 0, 1) + bytes(5)


def table(blocks: Sequence[Sequence[Row]], handles: Sequence[bytes] | None = None) -> bytes:
    """A whole table of blocks; `handles` stand for the places of the blocks."""
    content, places = b"", []
    for rows in blocks:
        whole = block(rows)
        places.append(varint(len(content)) + varint(len(whole) - 5))
        content += whole
    other = block([])
    meta = varint(len(content)) + varint(len(other) - 5)
    content += other
    index = block([(b"%06d" % number, place) for number, place in enumerate(places if handles is None else handles)])
    footer = meta + varint(len(content)) + varint(len(index) - 5)
    return content + index + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def write(prefix: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A checkpoint of one file of data."""
    data, rows = b"", [(b"", header(1))]
    for name, array in sorted(arrays.items(), key=lambda item: item[0].encode()):
        content = array.tobytes()
        rows.append((name.encode(), entry(TYPES[str(array.dtype)], array.shape, 0, len(data), len(content))))
        data += content
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    half = len(rows) // 2
    prefix.with_name(f"{prefix.name}.index").write_bytes(table([rows[:half], rows[half:]]))
