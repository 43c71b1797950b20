"""Reading files of tensors without running anything that they contain, and without believing anything that they say.

What a file declares is checked against its own size before a byte of any tensor is read, and a tensor is read only when
it is asked for, so names and shapes can be refused first: a small file cannot make its reader take much memory.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coatref.errors import FileFormatError, InputError, WeightsError
from coatref.registry import library_of, missing

LARGEST_HEADER = 8 * 10**6  # bytes; the largest spec that there can be, 1000 blocks of 1000 runs, takes about 6 million
MOST_AXES = 8

DTYPES = {  # safetensors' names -> how the bytes are read; bfloat16, which NumPy lacks, as the upper half of a float32
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "?",
}


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in an open safetensors file, whose place and size have been checked and whose bytes are not read yet."""

    file: BinaryIO
    name: str
    dtype: str  # safetensors' name of it
    shape: tuple[int, ...]
    start: int  # of its bytes in the file
    size: int  # in bytes

    def read(self) -> np.ndarray:
        """The tensor as an array; bfloat16 is widened to float32, which changes no value.

        Raises:
            FileFormatError: the file has been cut since it was opened, or holds more than the memory does.
        """
        try:
            self.file.seek(self.start)
            content = self.file.read(self.size)
        except MemoryError:
            raise FileFormatError(
                f"Tensor {self.name} takes {self.size} bytes, more than there is memory for."
            ) from None
        if len(content) != self.size:
            raise FileFormatError(
                f"{self.file.name} was cut while it was read, within tensor {self.name}; fetch it again."
            )
        array = np.frombuffer(content, DTYPES[self.dtype])
        if self.dtype == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(array.dtype.newbyteorder("="), copy=False).reshape(self.shape)


Tensors = dict[str, Any]  # of Stored, or of torch tensors
Content = tuple[Tensors, dict[str, str]]  # every tensor of a file by name, and the file's own metadata


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
    readers: dict[str, Callable[[BinaryIO, Path], Content]] = {
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


def read_safetensors(file: BinaryIO, path: Path) -> Content:
    """The tensors and metadata of a safetensors file, checked and not read yet.

    A file is eight bytes of header length, the header in JSON, and the tensors' bytes one after the other without a gap.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        header, start = read_header(file, size)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise FileFormatError("its metadata is not a mapping of texts to texts")
        tensors = {name: stored(file, name, entry, start) for name, entry in header.items()}
        refuse_gaps(tensors, start, size)
    except FileFormatError as fault:
        raise FileFormatError(
            f"{path} is no whole safetensors file: {fault}; fetch it again, or make it anew."
        ) from None
    return tensors, metadata


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
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
        header = json.loads(file.read(length).decode(), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"its header is not the JSON that it should be ({str(error)[:200]})") from None
    if not isinstance(header, dict):
        raise FileFormatError(f"its header is a JSON {type(header).__name__} and not an object")
    return header, 8 + length


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused when a key stands twice (readers disagree on which one counts)."""
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise ValueError("it repeats a key in one object")
    return plain


def stored(file: BinaryIO, name: str, entry: Any, start: int) -> Stored:
    """One tensor by its entry in the header.

    Raises:
        FileFormatError: the entry is incomplete, or its type, shape and place do not fit together.
    """
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise FileFormatError(f"tensor {name!r:.100} lacks a type, a shape or a place") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FileFormatError(f"tensor {name!r:.100} has the type {dtype!r:.50}; known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(map(is_count, shape)):
        raise FileFormatError(f"tensor {name!r:.100} has no shape of at most {MOST_AXES} whole numbers")
    needed = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if not is_count(begin) or not is_count(end) or end - begin != needed:
        raise FileFormatError(
            f"tensor {name!r:.100} takes {needed:.4g} bytes and has its place from {begin!r:.30} to {end!r:.30}"
        )
    return Stored(file, name, dtype, tuple(shape), start + begin, needed)


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number that a file of today could hold so many of."""
    return type(value) is int and 0 <= value < 2**63


def refuse_gaps(tensors: Mapping[str, Stored], start: int, size: int) -> None:
    """Refuse tensors that do not lie one after the other from `start` to the end of the file.

    Raises:
        FileFormatError: two overlap, bytes between them or at the end belong to none, or the file ends too early.
    """
    position = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.size)):
        if tensor.start != position:
            raise FileFormatError(
                f"tensor {tensor.name!r:.100} starts at byte {tensor.start} where byte {position} should come"
            )
        position += tensor.size
    if position != size:
        raise FileFormatError(f"it has {size} bytes and its header tells of {position}")


def read_torch(file: BinaryIO, path: Path) -> Content:
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


def refuse_zip_bomb(file: BinaryIO) -> None:
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


def on_host(name: str, array: Any) -> np.ndarray:
    """A tensor of a file, or an array of any library, as a NumPy array of a floating type (float32 for bfloat16).

    Raises:
        WeightsError: it is not floating, or of no known library, or has no values (a traced array, a "meta" tensor).
        FileFormatError: see `Stored.read`.
    """
    if isinstance(array, Stored):
        host = array.read()
    else:
        try:
            host = np.asarray(library_of(array).to_numpy(array))
        except Exception as error:  # noqa: BLE001 - each library has its own ways to say that an array cannot be had
            raise WeightsError(
                f"Tensor {name} cannot be read ({type(error).__name__}: {str(error)[:200]}); "
                "weights are dense arrays with values, of a library with the Python array API."
            ) from None
    if host.dtype.name == "bfloat16":  # that of JAX, which NumPy takes as an extension
        host = host.astype(np.float32)
    if host.dtype not in (np.float16, np.float32, np.float64):
        raise WeightsError(f"Tensor {name} is {host.dtype}; weights are float16, bfloat16, float32 or float64.")
    return host
