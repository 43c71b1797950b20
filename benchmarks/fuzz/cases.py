"""A case: the files that a reader is given, by name, the one that is opened first; and how to write one as bytes."""

from __future__ import annotations

import struct
from pathlib import Path

Case = dict[str, bytes]

NAMES: dict[str, tuple[str, ...]] = {  # reader -> the files of its cases
    "safetensors": ("m.safetensors",),
    "sharded": ("m.safetensors.index.json", "a.safetensors", "b.safetensors"),
    "npz": ("m.npz",),
    "hdf5": ("m.h5",),
    "keras": ("m.keras",),
    "onnx": ("m.onnx", "w.bin"),
    "torch": ("m.pth",),
    "tensorflow": ("m.index", "m.data-00000-of-00001"),
    "load": ("model.safetensors", "config.json"),
    "config": ("config.json",),
    "spec": ("spec.json",),
}


def packed(reader: str, case: Case) -> bytes:
    """A case as bytes: the file, or files with their lengths before them but for the last."""
    *first, last = NAMES[reader]
    parts = [case.get(name, b"") for name in first]
    return b"".join(struct.pack("<I", len(part)) for part in parts) + b"".join(parts) + case.get(last, b"")


def taken_apart(reader: str, content: bytes) -> Case:
    """The case that any bytes are; files that are empty are absent but for the first."""
    *first, last = NAMES[reader]
    position, case = 4 * len(first), {}
    for index, name in enumerate(first):
        length = int.from_bytes(content[4 * index : 4 * index + 4], "little")
        case[name] = content[position : position + length]
        position += length
    case[last] = content[position:]
    return {name: part for name, part in case.items() if part or name == NAMES[reader][0]}


def write(case: Case, folder: Path) -> None:
    """Put the files of a case into a folder, and take away what other files there are in it."""
    for old in folder.iterdir():
        if old.name not in case:
            old.unlink()
    for name, content in case.items():
        (folder / name).write_bytes(content)
