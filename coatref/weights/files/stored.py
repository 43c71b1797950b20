"""A tensor in an open file, of any format, that has been checked and not been read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import numpy as np

from coatref.errors import FileFormatError

MOST_AXES = 8
MOST_NUMBERS = 2**59  # whose bytes NumPy can still count

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
    """A tensor in an open file, whose place, type and size have been checked and whose bytes are not read yet.

    Attributes:
        name: the file's name of it.
        dtype: safetensors' name of its type, such as "F32" or "BF16", whatever the format.
        shape: its shape.
        fetch: reads it; a new array of that shape, bfloat16 widened to float32.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """How many bytes its values take in the type that it has in the file."""
        return math.prod(self.shape) * type_of(self.dtype).itemsize

    def read(self) -> np.ndarray:
        """The tensor as an array; bfloat16 is widened to float32, which changes no value.

        Raises:
            FileFormatError: the file has been cut since it was opened, is damaged, or holds more than the memory does.
        """
        try:
            return self.fetch()
        except MemoryError:
            raise FileFormatError(
                f"Tensor {self.name:.100} of type {self.dtype} and shape {self.shape} takes more than there is memory for."
            ) from None


Tensors = dict[str, Any]  # of Stored, or of torch tensors
Content = tuple[Tensors, dict[str, str]]  # every tensor of a file by name, and the file's own metadata


def read_bytes(
    file: BufferedReader, name: str, dtype: str, shape: tuple[int, ...], start: int, order: str = "<"
) -> np.ndarray:
    """An array from the bytes of a file, in C order, from `start` on.

    Args:
        file: open for reading, with a name.
        name: of the tensor, for the message.
        dtype: safetensors' name of its type; bfloat16 is widened to float32.
        shape: its shape, which has been checked against the size of the file.
        start: of its bytes in the file.
        order: "<" or ">", the end of a number that comes first.

    Raises:
        FileFormatError: the file ends too early.
    """
    array = np.empty(shape, type_of(dtype, order))
    file.seek(start)
    if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise FileFormatError(f"{file.name} was cut while it was read, within tensor {name:.100}; fetch it again.")
    return widened(array) if dtype == "BF16" else native(array)


def widened(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers, as which bfloat16 is stored, as those numbers."""
    wide = array.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def native(array: np.ndarray) -> np.ndarray:
    """An array in the byte order of this machine."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def type_of(dtype: str, order: str = "<") -> np.dtype:
    """The NumPy type of what is stored in a type of safetensors' name, with the end of a number first that `order` says."""
    return np.dtype(DTYPES[dtype].replace("<", order))


def type_name(kind: np.dtype) -> str:
    """safetensors' name of a NumPy type, whatever its byte order; of one that `DTYPES` has."""
    return next(name for name, known in DTYPES.items() if name != "BF16" and np.dtype(known) == kind.newbyteorder("<"))


def is_shape(values: Any) -> bool:
    """Whether something is the shape of an array that NumPy can make, be it of no number at all."""
    if not isinstance(values, (list, tuple)) or len(values) > MOST_AXES:
        return False
    return all(map(is_count, values)) and math.prod(max(1, value) for value in values) < MOST_NUMBERS


def is_count(value: Any) -> bool:
    """Whether a value is a whole number that a file of today could hold so many of."""
    return type(value) is int and 0 <= value < 2**63
