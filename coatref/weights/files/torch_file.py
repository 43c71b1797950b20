"""Checkpoints of torch, through its weights-only loading."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path

from coatref.errors import FileFormatError
from coatref.registry import missing
from coatref.weights.files.stored import Content


def read_torch(file: BufferedReader, path: Path) -> Content:
    """A torch checkpoint: a mapping of tensors, bare or under "state_dict" or "model"."""
    try:
        import torch
    except ImportError:
        raise missing("torch", "torch", f"Reading {path}") from None
    try:
        refuse_zip_bomb(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes of torch, it is the file that is at fault
        raise FileFormatError(
            f"{path} cannot be read by torch's weights-only loading ({type(error).__name__}: {str(error)[:200]}); "
            "a file that needs unpickling is refused."
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise FileFormatError(f"{path} holds a {type(content).__name__} and not a mapping of names to tensors.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise FileFormatError(
                f"{path} should hold a mapping of names to tensors, bare or under 'state_dict' or 'model', and holds a "
                f"{type(value).__name__} under {name!r:.100}; save its state_dict() alone."
            )
    return dict(content), {}


def refuse_zip_bomb(file: BufferedReader) -> None:
    """Refuse an archive whose members are larger together than the file; torch stores them uncompressed.

    Raises:
        FileFormatError, zipfile.BadZipFile: they are, or it is damaged.
    """
    if zipfile.is_zipfile(file):
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > size:
            raise FileFormatError(f"it has {size} bytes and would unpack to {unpacked}")
    file.seek(0)
