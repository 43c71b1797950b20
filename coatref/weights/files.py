"""Reading files of tensors without running anything that they contain."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coatref.errors import FileFormatError, InputError
from coatref.registry import missing

Tensors = dict[str, Any]


def read_file(path: str | os.PathLike[str]) -> tuple[Tensors, dict[str, str]]:
    """Every tensor of a file by name, and the file's own metadata.

    `.safetensors` comes as NumPy arrays. `.pth`, `.pt` and `.bin` come as torch tensors, through torch's weights-only
    loading, which refuses any pickle that would do more than build tensors.

    Raises:
        InputError: the ending is none of these.
        FileNotFoundError: there is no such file.
        FileFormatError: the file is truncated, corrupt or holds something else.
        MissingDependencyError: torch is needed and not installed.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], tuple[Tensors, dict[str, str]]]] = {
        ".safetensors": read_safetensors,
        ".pth": read_torch,
        ".pt": read_torch,
        ".bin": read_torch,
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"{path} ends in {path.suffix!r}; weights are read from {', '.join(readers)} files.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return readers[path.suffix.lower()](path)


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """A safetensors file; the header is checked (lengths, overlaps, end of file) before anything is taken from it."""
    from safetensors import SafetensorError, safe_open

    tensors: Tensors = {}
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            metadata = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 - a safetensors handle, no mapping
                bits = file.get_slice(name).get_dtype() == "BF16"
                tensors[name] = read_bfloat16(path, name) if bits else file.get_tensor(name)
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise FileFormatError(
            f"{path} is no whole safetensors file ({str(error)[:200]}); fetch it again, or make it anew."
        ) from None
    return tensors, metadata


def read_bfloat16(path: Path, name: str) -> np.ndarray:
    """A bfloat16 tensor, which NumPy lacks, widened exactly to float32; the header has been checked before."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + length + start)
        halves = np.frombuffer(file.read(end - start), dtype="<u2")
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def read_torch(path: Path) -> tuple[Tensors, dict[str, str]]:
    """A torch checkpoint: a mapping of tensors, bare or under "state_dict" or "model"."""
    try:
        import torch
    except ImportError:
        raise missing("torch", "torch", f"Reading {path}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of torch, it is the file that is at fault
        raise FileFormatError(
            f"{path} cannot be read by torch's weights-only loading ({type(error).__name__}: {str(error)[:200]}); "
            "a file that needs unpickling is refused."
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise FileFormatError(f"{path} holds a {type(content).__name__} and not a mapping of names to tensors.")
    return dict(content), {}
