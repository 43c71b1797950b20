"""Writing files of tensors, whole or not at all.

A file is written beside its place under a name of its own, brought to the disk, and moved into place, so under its name there
is at any time the file from before or the new one, whatever fails: a full disk, an interrupt, the power. Nothing else is left
behind, but that a process that is killed (SIGKILL) or loses its power leaves a file `.coatref-...` there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coatref.errors import InputError, WeightsError
from coatref.weights.files import path_of
from coatref.weights.files.limits import LONGEST_NAME
from coatref.weights.files.stored import DTYPES
from coatref.weights.write_hdf5 import write_hdf5

Arrays = Mapping[str, np.ndarray]

NAMES = {np.dtype(code).name: name for name, code in DTYPES.items() if name != "BF16"} | {"bfloat16": "BF16"}


def write_tensors(path: str | os.PathLike[str], arrays: Arrays, metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays to a file, in the format that its ending names.

    - `.safetensors`, with `metadata` in its header;
    - `.npz`, as `numpy.savez` writes it, not packed;
    - `.h5`, as Keras 2 writes its weights: names are "LAYER/LEAF" and a layer is a group. `load_weights` of Keras, and of
      keras_cv_attention_models, reads it.

    Args:
        path: of the file, which is replaced as a whole; a link stays one. Its permissions are those of any new file.
        arrays: by name; of bool, integer or floating types of at most 64 bits; bfloat16 (of ml_dtypes) only to
            `.safetensors`, bool not to `.h5`. Bytes are written in C order, little-endian.
        metadata: texts for the header of a `.safetensors` file; the other formats have no place for them.

    Raises:
        InputError: the ending is none of these, a name cannot be written so, or there is metadata and no place for it.
        WeightsError: an array is of another type.
        OSError: the file cannot be written.
    """
    target = path_of(path)
    writers: dict[str, Callable[[BinaryIO, Arrays], None]] = {
        ".safetensors": functools.partial(write_safetensors, metadata=metadata or {}),
        ".npz": write_npz,
        ".h5": functools.partial(write_hdf5, put=write_bytes),
    }
    without = {".npz": {"bfloat16"}, ".h5": {"bfloat16", "bool"}}  # types that a format has no place for
    ending = target.suffix.lower()
    if ending not in writers:
        raise InputError(f"{target} ends in {target.suffix!r}; weights are written to {', '.join(writers)} files.")
    if metadata and ending != ".safetensors":
        raise InputError(
            f"{target} has no place for metadata ({', '.join(metadata)[:100]}); write a .safetensors file."
        )
    refuse_names(arrays)
    refuse_types(arrays, set(NAMES) - without.get(ending, set()))
    with replaced(target) as file:
        writers[ending](file, arrays)


def refuse_names(arrays: Arrays) -> None:
    """Refuse names that no file can hold, or that would not be read again.

    Raises:
        InputError: one is no text, empty, longer than 1000 characters, or has halves of characters in it.
    """
    for name in arrays:
        if (
            not isinstance(name, str)
            or not 0 < len(name) <= LONGEST_NAME
            or name == "__metadata__"
            or not encodable(name)
        ):
            raise InputError(
                f"A tensor's name in a file is a text of 1 to {LONGEST_NAME} whole characters and not '__metadata__', "
                f"got {name!r:.100}."
            )


def encodable(name: str) -> bool:
    """Whether a text has a form in UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_types(arrays: Arrays, known: set[str]) -> None:
    """Refuse arrays of types that cannot be written.

    Raises:
        WeightsError: lists them.
    """
    odd = [f"{name:.100} ({array.dtype})" for name, array in arrays.items() if array.dtype.name not in known]
    if odd:
        raise WeightsError(
            f"{len(odd)} arrays are of types that cannot be written here: {', '.join(odd[:8])}; known are "
            f"{', '.join(sorted(known))}."
        )


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A new empty file to write to, which takes the place of another when all went well and is removed when not.

    Raises:
        OSError: the folder is missing or cannot be written to, or the disk is full.
    """
    target = Path(os.path.realpath(path))  # so that a link stays one
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent} to write {target.name} to; make it first.")
    temporary = target.with_name(f".coatref-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a folder cannot be opened on every system; the file is whole without it
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_safetensors(file: BinaryIO, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, tensors of wider types first, so that each starts at a multiple of its own item size."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    order, end = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)), 0
    for name in order:
        begin, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": NAMES[arrays[name].dtype.name],
            "shape": list(arrays[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        write_bytes(file, arrays[name])


def write_bytes(file: BinaryIO, array: np.ndarray) -> None:
    """Write the bytes of an array, little-endian and in C order."""
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    file.write(plain.reshape(-1).view(np.uint8).data)


def write_npz(file: BinaryIO, arrays: Arrays) -> None:
    """Write an archive of arrays that are not packed; every time the same bytes for the same arrays.

    Raises:
        InputError: a name is none of a member of an archive.
    """
    odd = [name for name in arrays if "\0" in name or "\\" in name]
    if odd:
        raise InputError(f"Names without zeros and backslashes are written to .npz files, got {odd[0]!r:.100}.")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of the first day that an archive knows
            member.external_attr = 0o644 << 16
            with archive.open(member, "w", force_zip64=True) as content:
                plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
                np.lib.format.write_array(content, plain, allow_pickle=False)
