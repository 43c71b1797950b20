"""Archives of arrays as NumPy writes them: a zip file of `.npy` members.

A member is

    6 bytes   "\\x93NUMPY"
    2 bytes   the version of the format: 1.0, 2.0 or 3.0
    2 bytes   length of the header, little-endian; 4 bytes from version 2.0 on
    ...       the header, a Python dict: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
    the rest  the array's bytes

The header is read by a pattern, not by Python's own reader of literals, which a text made for it can exhaust.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from coatref.errors import FileFormatError
from coatref.weights.files.archive import damage_told, open_archive
from coatref.weights.files.disk import faults_of, opened
from coatref.weights.files.limits import LONGEST_NAME
from coatref.weights.files.stored import MOST_AXES, Content, Stored, Tensors, is_shape, native, type_name

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000  # bytes, as NumPy has it
HEADER = re.compile(
    r"\{\s*'descr':\s*'([<>=|]?[a-zA-Z]\d{0,4})',\s*'fortran_order':\s*(True|False),"
    r"\s*'shape':\s*\(((?:\d{1,20}L?,\s*)*(?:\d{1,20}L?)?)\),?\s*\}\s*",
    re.ASCII,
)
STEP = 2**20  # bytes unpacked at once


def read_npz(path: Path, held: contextlib.ExitStack) -> Content:
    """The arrays of an `.npz` file, checked and not read yet, and no metadata.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is damaged, would unpack to far more than its size, or holds what is no array of numbers.
    """
    file = opened(path, held)
    tensors: Tensors = {}
    with faults_of(path, "no file of arrays as numpy.savez writes it"):
        archive = open_archive(file, held)
        for member in archive.infolist():
            with damage_told():
                found = stored(path, archive, member)
            tensors[found.name] = found
    return tensors, {}


def stored(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Stored:
    """A member of an archive as an array, its header read and checked against its size.

    Raises:
        FileFormatError: it is no array of numbers, or has another size; the message is a part of a sentence.
    """
    name = member.filename.removesuffix(".npy")
    if name == member.filename or len(name) > LONGEST_NAME:
        raise FileFormatError(
            f"its member {member.filename!r:.100} is no NAME.npy with a name of at most {LONGEST_NAME} characters"
        )
    with archive.open(member) as stream:
        text, start = header_of(stream, name)
    fields = HEADER.fullmatch(text)
    if fields is None:
        raise FileFormatError(f"array {name!r:.100} has no header of a plain array of numbers, but {text!r:.100}")
    descr, fortran, numbers = fields.groups()
    shape = tuple(int(number.rstrip("L")) for number in re.split(r",\s*", numbers) if number)
    kind = dtype_of(name, descr)
    if not is_shape(shape):
        raise FileFormatError(f"array {name!r:.100} has no shape of at most {MOST_AXES} whole numbers")
    needed = math.prod(shape) * kind.itemsize
    if start + needed != member.file_size:
        raise FileFormatError(
            f"array {name!r:.100} takes {needed:.4g} bytes, and {member.file_size - start} are behind its header"
        )
    fetch = functools.partial(fetched, path, archive, member, start, kind, shape, fortran == "True")
    return Stored(name, type_name(kind), shape, fetch)


def header_of(stream: IO[bytes], name: str) -> tuple[str, int]:
    """The header of a member, and where the array begins.

    Raises:
        FileFormatError: there is none, or it is too long; the message is a part of a sentence.
    """
    begin = stream.read(8)
    if begin[:6] != MAGIC or len(begin) != 8 or begin[6] not in (1, 2, 3):
        raise FileFormatError(f"array {name!r:.100} does not begin as a .npy file does")
    width = 2 if begin[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > LONGEST_HEADER:
        raise FileFormatError(f"array {name!r:.100} has a header of {length} bytes, and {LONGEST_HEADER} are allowed")
    return stream.read(length).decode("latin-1"), 8 + width + length


def dtype_of(name: str, descr: str) -> np.dtype:
    """The type that a header names.

    Raises:
        FileFormatError: it is none of numbers of a fixed size that coatref knows; the message is a part of a sentence.
    """
    if re.fullmatch(r"[<>=|]?(f[248]|[iu][1248]|b1)", descr) is None:
        raise FileFormatError(f"array {name!r:.100} has the type {descr!r}, which is none of real numbers")
    return np.dtype(descr)


def fetched(
    path: Path,
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    start: int,
    kind: np.dtype,
    shape: tuple[int, ...],
    fortran: bool,
) -> np.ndarray:
    """The array of a member.

    Raises:
        FileFormatError: the archive is damaged, or has been cut since it was opened.
    """
    array = np.empty(math.prod(shape), kind)
    view = array.view(np.uint8)
    try:
        with damage_told(), archive.open(member) as stream:
            stream.read(start)
            for position in range(0, len(view), STEP):
                content = stream.read(min(STEP, len(view) - position))
                view[position : position + len(content)] = np.frombuffer(content, np.uint8)
                if len(content) != min(STEP, len(view) - position):
                    raise FileFormatError("the member ends too early")
    except FileFormatError as fault:
        raise FileFormatError(
            f"{path} is damaged within array {member.filename:.100}: {fault}; fetch it again."
        ) from None
    array = native(array)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
