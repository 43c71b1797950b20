"""Writing files of tensors, whole or not at all.

A file is written beside its place under a name of its own, brought to the disk, and moved into place, so under its name there
is at any time the file from before or the new one, whatever fails: a full disk, an interrupt, the power. Nothing else is left
behind, but that a process that is killed (SIGKILL) or loses its power leaves a file `.coatref-...` there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coatref.errors import InputError, WeightsError
from coatref.registry import missing
from coatref.weights.files import path_of
from coatref.weights.files.limits import LONGEST_NAME
from coatref.weights.files.stored import DTYPES

Arrays = Mapping[str, np.ndarray]

NAMES = {np.dtype(code).name: name for name, code in DTYPES.items() if name != "BF16"} | {"bfloat16": "BF16"}
LARGEST_ATTRIBUTE = 64512  # bytes, as Keras divides its attributes; HDF5 has room for 64 kB
LEAVES = ("bias", "beta", "moving_mean", "moving_variance")  # in the order of a layer's weights, behind kernel or gamma
KERAS_VERSION = "2.15.0"  # the last of the versions that write files of this layout by default


def write_tensors(path: str | os.PathLike[str], arrays: Arrays, metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays to a file, in the format that its ending names.

    - `.safetensors`, with `metadata` in its header;
    - `.npz`, as `numpy.savez` writes it, not packed;
    - `.h5`, as Keras 2 writes its weights: names are "LAYER/LEAF" and a layer is a group. `load_weights` of Keras, and of
      keras_cv_attention_models, reads it.

    Args:
        path: of the file, which is replaced as a whole; a link stays one. Its permissions are those of any new file.
        arrays: by name; of bool, integer or floating types of at most 64 bits; bfloat16 (of ml_dtypes) only to
            `.safetensors`. Bytes are written in C order, little-endian.
        metadata: texts for the header of a `.safetensors` file; the other formats have no place for them.

    Raises:
        InputError: the ending is none of these, a name cannot be written so, or there is metadata and no place for it.
        WeightsError: an array is of another type.
        OSError: the file cannot be written.
        MissingDependencyError: the format needs h5py, which is not installed.
    """
    target = path_of(path)
    writers: dict[str, Callable[[Path, Arrays, Mapping[str, str]], None]] = {
        ".safetensors": write_safetensors,
        ".npz": write_npz,
        ".h5": write_hdf5,
    }
    write = writers.get(target.suffix.lower())
    if write is None:
        raise InputError(f"{target} ends in {target.suffix!r}; weights are written to {', '.join(writers)} files.")
    if metadata and write is not write_safetensors:
        raise InputError(
            f"{target} has no place for metadata ({', '.join(metadata)[:100]}); write a .safetensors file."
        )
    refuse_names(arrays)
    refuse_types(arrays, bfloat16=write is write_safetensors)
    with replaced(target) as temporary:
        write(temporary, arrays, metadata or {})


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


def refuse_types(arrays: Arrays, *, bfloat16: bool) -> None:
    """Refuse arrays of types that cannot be written.

    Raises:
        WeightsError: lists them.
    """
    known = set(NAMES) if bfloat16 else set(NAMES) - {"bfloat16"}
    odd = [f"{name:.100} ({array.dtype})" for name, array in arrays.items() if array.dtype.name not in known]
    if odd:
        raise WeightsError(
            f"{len(odd)} arrays are of types that cannot be written here: {', '.join(odd[:8])}; known are "
            f"{', '.join(sorted(known))}."
        )


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new empty file to write to, which takes the place of another when all went well and is removed when not.

    Raises:
        OSError: the folder is missing or cannot be written to, or the disk is full.
    """
    target = Path(os.path.realpath(path))  # so that a link stays one
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent} to write {target.name} to; make it first.")
    temporary = target.with_name(f".coatref-{secrets.token_hex(8)}")
    try:
        mode = created(temporary)
        yield temporary
        os.chmod(temporary, mode)  # h5py makes the file anew
        synced(temporary)
        os.replace(temporary, target)
        with contextlib.suppress(OSError):  # a folder cannot be opened on every system; the file is whole without it
            synced(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def created(path: Path) -> int:
    """Make an empty new file, and give the permissions that new files get here."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def synced(path: Path) -> None:
    """Wait until a file or folder is on the disk.

    Raises:
        OSError: it cannot be brought there.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_safetensors(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
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
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            write_bytes(file, arrays[name])


def write_bytes(file: BinaryIO, array: np.ndarray) -> None:
    """Write the bytes of an array, little-endian and in C order."""
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    file.write(plain.reshape(-1).view(np.uint8).data)


def write_npz(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write an archive of arrays that are not packed; every time the same bytes for the same arrays.

    Raises:
        InputError: a name is none of a member of an archive.
    """
    odd = [name for name in arrays if "\0" in name or "\\" in name]
    if odd:
        raise InputError(f"Names without zeros and backslashes are written to .npz files, got {odd[0]!r:.100}.")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of the first day that an archive knows
            member.external_attr = 0o644 << 16
            with archive.open(member, "w", force_zip64=True) as file:
                plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
                np.lib.format.write_array(file, plain, allow_pickle=False)


def write_hdf5(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write a file of weights as Keras 2 does: /LAYER/LAYER/LEAF:0, and attributes that say what is there in which order.

    Raises:
        InputError: a name is not "LAYER/LEAF".
        MissingDependencyError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise missing("h5py", "keras", "Writing an .h5 file") from None
    layers: dict[str, list[str]] = {}
    for name in arrays:
        layer, slash, leaf = name.partition("/")
        if not slash or set(name) & set("\0:") or not all(part.strip(".") for part in name.split("/")):
            raise InputError(
                f"Weights are written to .h5 files under names LAYER/LEAF without a colon, got {name!r:.100}."
            )
        layers.setdefault(layer, []).append(leaf)
    try:
        with h5py.File(path, "w") as file:
            file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", KERAS_VERSION.encode()
            put_names(file.attrs, "layer_names", list(layers))
            for layer, given in layers.items():
                leaves = sorted(given, key=lambda leaf: LEAVES.index(leaf) if leaf in LEAVES else -1)
                group = file.create_group(layer)
                put_names(group.attrs, "weight_names", [f"{layer}/{leaf}:0" for leaf in leaves])
                for leaf in leaves:
                    array = arrays[f"{layer}/{leaf}"]
                    group.create_dataset(f"{layer}/{leaf}:0", data=np.asarray(array, array.dtype.newbyteorder("<")))
    except RuntimeError as error:  # what h5py makes of some failures of the disk
        raise OSError(f"The file cannot be written: {str(error)[:200]}.") from None


def put_names(attributes: Any, name: str, values: list[str]) -> None:
    """Put a list of names into an attribute, or, where HDF5 has no room for it, into several: "layer_names0" and so on."""
    encoded = np.array([value.encode() for value in values], dtype=np.bytes_)
    parts = -(-encoded.nbytes // LARGEST_ATTRIBUTE)
    if parts <= 1:
        attributes[name] = encoded
        return
    while any(part.nbytes > LARGEST_ATTRIBUTE for part in np.array_split(encoded, parts)):
        parts += 1
    for index, part in enumerate(np.array_split(encoded, parts)):
        attributes[f"{name}{index}"] = part
