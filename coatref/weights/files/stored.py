"""A tensor in an open file, of any format, that has been checked and not been read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import numpy as np

from coatref.errors import FileFormatError

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


def read_bytes(file: BufferedReader, name: str, dtype: str, shape: tuple[int, ...], start: int) -> np.ndarray:
    """An array from the bytes of a file, little-endian and in C order, from `start` on.

    Args:
        file: open for reading, with a name.
        name: of the tensor, for the message.
        dtype: safetensors' name of its type; bfloat16 is widened to float32.
        shape: its shape, which has been checked against the size of the file.
        start: of its bytes in the file.

    Raises:
        FileFormatError: the file ends too early.
    """
    array = np.empty(shape, DTYPES[dtype])
    file.seek(start)
    if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise FileFormatError(f"{file.name} was cut while it was read, within tensor {name:.100}; fetch it again.")
    return native(array, dtype)


def native(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array as it was stored in a type of that name, in the byte order of this machine and bfloat16 widened."""
    if dtype == "BF16":
        wide = array.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
