"""Opening a file of tensors by its ending."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

from coatref.errors import FileFormatError, InputError
from coatref.weights.files.safetensors_file import read_safetensors
from coatref.weights.files.stored import Content
from coatref.weights.files.torch_file import read_torch


def path_of(path: str | os.PathLike[str]) -> Path:
    """A path as a `Path`.

    Raises:
        InputError: it is neither a text nor a path.
    """
    try:
        return Path(path)
    except TypeError:
        raise InputError(f"A file is named by a text or a pathlib.Path, got {type(path).__name__}.") from None


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Content]:
    """Every tensor of a file by name, and the file's own metadata, for as long as the file is open.

    `.safetensors` comes as `Stored` tensors. `.pth`, `.pt` and `.bin` come as torch tensors, through torch's weights-only
    loading, which refuses any pickle that would do more than build tensors.

    Raises:
        InputError: the ending is none of these.
        FileNotFoundError: there is no such file.
        FileFormatError: the file is truncated, corrupt or holds something else.
        MissingDependencyError: torch is needed and not installed.
    """
    readers: dict[str, Callable[[BufferedReader, Path], Content]] = {
        ".safetensors": read_safetensors,
        ".pth": read_torch,
        ".pt": read_torch,
        ".bin": read_torch,
    }
    read = readers.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path} ends in {path.suffix!r}; weights are read from {', '.join(readers)} files.")
    if not path.is_file():  # before it is opened, which would wait for ever on a pipe
        if path.exists():
            raise FileFormatError(f"{path} is a folder, pipe or device; weights are read from a regular file.")
        raise FileNotFoundError(f"There is no file {path}.")
    with path.open("rb") as file:
        yield read(file, path)
