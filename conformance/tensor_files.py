"""Tensors in files, for programs in other languages: safetensors, with bfloat16 as real bfloat16.

A safetensors file is

    8 bytes   length n of the header, little-endian
    n bytes   the header in JSON: {"__metadata__": {text: text}, NAME: {"dtype", "shape", "data_offsets": [begin, end]}, ...},
              padded with spaces to a multiple of 8 bytes
    the rest  the tensors' bytes, C order, little-endian; `begin` and `end` count from here

coatref writes the dtypes "F64", "F32", "F16", "BF16" and "BOOL", tensors of wider types first, so that each starts at a
multiple of its own item size. NumPy has no bfloat16: such tensors come and go as float32 arrays of numbers that bfloat16
holds exactly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coatref.conformance.precision import rounded
from coatref.errors import FileFormatError, InputError
from coatref.weights.files import open_file

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}


def write_tensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    storage: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays to a safetensors file, rounded to a storage type.

    Args:
        path: of the file, which is replaced.
        arrays: by name; floating or bool.
        storage: the type that floating arrays are written in: "float64", "float32", "float16" or "bfloat16". Bool arrays
            stay bool.
        metadata: texts for the header.

    Raises:
        InputError: the type is not known, or an array is neither floating nor bool.
        OSError: the file cannot be written.
    """
    if storage not in DTYPES:
        raise InputError(f"Tensors are written as one of {', '.join(DTYPES)}, got {storage!r:.80}.")
    kinds = {name: storage_kind(name, array, storage) for name, array in arrays.items()}
    order = sorted(arrays, key=lambda name: -len(encoded(np.zeros(1), kinds[name])))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, position = [], 0
    for name in order:
        parts.append(encoded(np.asarray(arrays[name]), kinds[name]))
        end = position + len(parts[-1])
        shape = list(np.shape(arrays[name]))
        header[name] = {"dtype": DTYPES[kinds[name]], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *parts]))


def storage_kind(name: str, array: np.ndarray, storage: str) -> str:
    """The type that an array is written in.

    Raises:
        InputError: the array is neither floating nor bool.
    """
    kind = np.asarray(array).dtype.kind
    if kind not in "fb":
        raise InputError(f"Tensor {name} is {np.asarray(array).dtype}; only floating and bool tensors are written.")
    return "bool" if kind == "b" else storage


def encoded(array: np.ndarray, kind: str) -> bytes:
    """The bytes of an array in a type, little-endian and in C order."""
    if kind == "bfloat16":
        upper = rounded(array, "bfloat16").astype("<f4").view("<u4") >> 16  # the lower half is zero after rounding
        return upper.astype("<u2").tobytes()
    return np.asarray(array).astype(np.dtype(kind).newbyteorder("<")).tobytes()


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every tensor of a safetensors file, and its metadata; bfloat16 is widened to float32.

    Raises:
        FileNotFoundError, FileFormatError: there is no such file, or it is no whole safetensors file.
    """
    if Path(path).suffix.lower() != ".safetensors":
        raise FileFormatError(f"{path} ends in {Path(path).suffix!r}; tensors are exchanged as .safetensors files.")
    with open_file(Path(path)) as (tensors, metadata):
        return {name: tensor.read() for name, tensor in tensors.items()}, metadata


def stored_types(path: str | os.PathLike[str]) -> dict[str, str]:
    """Name -> safetensors' name of the type, such as "BF16", of every tensor of a file."""
    with open_file(Path(path)) as (tensors, _):
        return {name: tensor.dtype for name, tensor in tensors.items()}
