"""Opening a file of tensors by its ending."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from coatref.errors import FileFormatError, InputError
from coatref.weights.files.hdf5_file import read_hdf5, read_keras
from coatref.weights.files.npz_file import read_npz
from coatref.weights.files.onnx_file import read_onnx
from coatref.weights.files.safetensors_file import read_safetensors
from coatref.weights.files.sharded import read_sharded
from coatref.weights.files.stored import Content, Tensors
from coatref.weights.files.tensorflow_checkpoint import read_tensorflow
from coatref.weights.files.torch_file import read_torch

Reader = Callable[[Path, contextlib.ExitStack], Content]  # keeps the file open until the stack is closed


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
def open_file(path: Path, *, ema: bool = True) -> Iterator[Content]:
    """Every tensor of a file by name, and the file's own metadata, for as long as the file is open.

    The ending says what the file is:

    - `.safetensors`; and `.safetensors.index.json`, the index of a file in shards, which are beside it;
    - `.npz`, of NumPy;
    - `.h5`, `.hdf5` and `.keras`, of Keras;
    - `.onnx`, of which the initialisers are the tensors;
    - `.pth`, `.pt` and `.bin`, of torch;
    - `.index`, or a path without it beside which there is one: a checkpoint of TensorFlow.

    All tensors are `Stored` ones. Every format is read here, with NumPy alone: no pickle is executed, no library in C parses
    anything.

    Args:
        path: of the file.
        ema: of a torch checkpoint that holds averaged weights beside the plain ones, take the averaged.

    Raises:
        InputError: the ending is none of these.
        FileNotFoundError: there is no such file.
        FileFormatError: the file is truncated, corrupt or holds something else.
    """
    read = reader_of(path, ema)
    with contextlib.ExitStack() as held:
        tensors, metadata = read(path, held)
        refuse_odd_names(path, tensors)
        yield tensors, metadata


def refuse_odd_names(path: Path, tensors: Tensors) -> None:
    """Refuse names that are no texts, of which JSON and pickles can have some: half of a pair of surrogates.

    Raises:
        FileFormatError: there is one, which no message could tell.
    """
    for name in tensors:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise FileFormatError(
                f"{path} has a tensor {name!r:.100}, whose name no text can have; fetch it again."
            ) from None


def reader_of(path: Path, ema: bool) -> Reader:
    """What reads a file of that ending.

    Raises:
        InputError: nothing does.
    """
    torch = functools.partial(read_torch, ema=ema)
    readers: dict[str, Reader] = {
        ".safetensors": read_safetensors,
        ".safetensors.index.json": read_sharded,
        ".npz": read_npz,
        ".h5": read_hdf5,
        ".hdf5": read_hdf5,
        ".keras": read_keras,
        ".onnx": read_onnx,
        ".pth": torch,
        ".pt": torch,
        ".bin": torch,
        ".index": read_tensorflow,
    }
    for ending, read in readers.items():
        if path.name.lower().endswith(ending) and len(path.name) > len(ending):
            return read
    if path.name and path.with_name(path.name + ".index").is_file():
        return read_tensorflow
    raise InputError(f"{path} ends in {path.suffix!r}; weights are read from {', '.join(readers)} files.")
