"""Archives of NumPy's: what numpy.savez writes comes back to the bit, and no archive at all does harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import (
    MEGABYTES,
    QUICK,
    SECONDS,
    arrays,
    damages,
    memory_limit,
    read_all,
    read_or_refused,
    refused,
    same_bits,
    time_limit,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from coatref.errors import FileFormatError
from coatref.weights.files import open_file
from coatref.weights.files.limits import LARGEST_HEADER, MOST_TENSORS

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\\/"), min_size=1, max_size=8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.npz"


@pytest.fixture(scope="module")
def whole() -> bytes:
    """The bytes of a right archive, of one member that is packed and one that is not."""
    file, random = io.BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(file, "w") as archive:
        for name, packing in (("s0.conv1.w", zipfile.ZIP_STORED), ("s0.conv1.b", zipfile.ZIP_DEFLATED)):
            archive.writestr(f"{name}.npy", npy(random.normal(size=(3, 5)).astype("f4")), packing)
    return file.getvalue()


def npy(array: np.ndarray, version: Any = None) -> bytes:
    """An array as NumPy writes it."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def header(text: str, data: bytes = bytes(4)) -> bytes:
    """A member with a header of its own."""
    content = text.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content + data


def zipped(*members: tuple[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


# --- what NumPy writes ---


@given(st.dictionaries(NAMES, arrays(), max_size=4), st.booleans(), st.booleans())
@settings(QUICK, max_examples=60)
def test_any_arrays_come_back(tmp_path: Path, given: dict[str, np.ndarray], packed: bool, fortran: bool) -> None:
    if fortran:
        given = {name: np.asfortranarray(array) for name, array in given.items()}
    path = tmp_path / "any.npz"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, array in given.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    path.write_bytes(file.getvalue())
    with open_file(path) as (tensors, metadata):
        assert metadata == {} and list(tensors) == list(given)
    same_bits(read_all(path), given)


def test_savez_itself(path: Path) -> None:
    random = np.random.default_rng(1)
    given: dict[str, Any] = {
        "a/b.w": random.normal(size=(3, 4, 5)),
        "arr": np.asfortranarray(random.normal(size=(7, 2)).astype("f4")),
        "big": random.normal(size=(2, 3)).astype(">f4"),
        "half": random.normal(size=(3, 2)).astype("f2")[:, ::-1],
        "none": np.float32(3),
        "empty": np.zeros((0, 3)),
    }
    for save in (np.savez, np.savez_compressed):
        save(path, **given)
        same_bits(read_all(path), {name: np.asarray(array) for name, array in given.items()})
    np.savez(path, given["arr"])
    same_bits(read_all(path), {"arr_0": given["arr"]})


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format(path: Path, version: tuple[int, int]) -> None:
    array = np.arange(15, dtype="f4").reshape(3, 5)
    path.write_bytes(zipped(("a.npy", npy(array, version))))
    same_bits(read_all(path), {"a": array})


def test_headers_as_other_programs_write_them(path: Path) -> None:
    for text in (
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}\n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1L,), }",
        "{ 'descr':'f4','fortran_order':True,'shape':(1,1,), }   \n",
    ):
        path.write_bytes(zipped(("a.npy", header(text, struct.pack("<f", 1.5)))))
        assert read_all(path)["a"].ravel().tolist() == [1.5]


def test_a_large_member_is_read_piece_by_piece(path: Path) -> None:
    """What is taken beside the array itself is small, packed or not."""
    array = np.random.default_rng(2).normal(size=2**21)
    for save in (np.savez, np.savez_compressed):
        save(path, a=array)
        with open_file(path) as (tensors, _):
            tracemalloc.start()
            found = tensors["a"].read()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert found.tobytes() == array.tobytes() and peak < array.nbytes + 2**23


# --- archives that are damaged ---


def test_an_archive_cut_anywhere(path: Path, whole: bytes) -> None:
    for cut in range(0, len(whole), 3):
        path.write_bytes(whole[:cut])
        refused(lambda: read_all(path), FileFormatError, str(path), "fetch it again")


@given(st.lists(damages(), min_size=1, max_size=3))
@settings(QUICK, max_examples=300)
def test_damage_is_seen_or_harmless(tmp_path: Path, whole: bytes, damage: list[Callable[[bytes], bytes]]) -> None:
    content = whole
    for each in damage:
        content = each(content)
    (tmp_path / "damaged.npz").write_bytes(content)
    read_or_refused(tmp_path / "damaged.npz")


def test_every_byte_of_the_numbers_counts(path: Path, whole: bytes) -> None:
    """Each member has a sum of its bytes."""
    place = whole.index(b"\n", whole.index(b"NUMPY")) + 5
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    refused(lambda: read_all(path), FileFormatError, str(path), "s0.conv1.w", "CRC")


def test_an_archive_cut_while_it_is_read(path: Path) -> None:
    np.savez(path, a=np.zeros(2**16))
    with open_file(path) as (tensors, _):
        os.truncate(path, 2**16)
        refused(tensors["a"].read, FileFormatError, str(path), "a.npy")


# --- archives that are hostile ---


def many_members() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for index in range(MOST_TENSORS + 1):
            archive.writestr(str(index), b"")
    return file.getvalue()


def with_end(size: int, wide: bool) -> bytes:
    """The end of an archive whose list of members takes so many bytes, which are there and are zeros."""
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 0xFFFFFFFF if wide else size, 0xFFFFFFFF if wide else 0, 0)
    if wide:
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, 0)
        end = record + struct.pack("<4sLQL", b"PK\6\7", 0, size, 1) + end
    return bytes(size) + end


F4 = "'descr': '<f4', 'fortran_order': False"
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "no archive": (lambda: b"PK\3\4" + bytes(100), "zip archive"),
    "a bare array": (lambda: npy(np.zeros(3)), "zip archive"),
    "a pickle": (lambda: pickle.dumps(np.zeros(3)), "zip archive"),
    "objects": (lambda: zipped(("a.npy", npy(np.array([{}], object)))), "'|O'"),
    "a structure": (lambda: zipped(("a.npy", npy(np.zeros(2, "f4,i4")))), "plain array"),
    "texts": (lambda: zipped(("a.npy", npy(np.array(["abc"])))), "'<U3'"),
    "complex numbers": (lambda: zipped(("a.npy", npy(np.zeros(2, complex)))), "'<c16'"),
    "long floats": (lambda: zipped(("a.npy", npy(np.zeros(2, np.longdouble)))), "f16'"),
    "dates": (lambda: zipped(("a.npy", npy(np.zeros(2, "M8[s]")))), "plain array"),
    "raw bytes": (lambda: zipped(("a.npy", npy(np.zeros(2, "V2")))), "'|V2'"),
    "another member": (lambda: zipped(("a.npy", npy(np.zeros(2))), ("read.me", b"x")), "'read.me'"),
    "a member of no name": (lambda: zipped(("a.npy/", b"")), "NAME.npy"),
    "a long name": (lambda: zipped(("n" * 2000 + ".npy", npy(np.zeros(2)))), "1000 characters"),
    "an empty member": (lambda: zipped(("a.npy", b"")), "begin"),
    "version 4": (lambda: zipped(("a.npy", b"\x93NUMPY\4\0" + bytes(60))), "begin"),
    "a header without end": (lambda: zipped(("a.npy", b"\x93NUMPY\1\0\x10\x27{'descr'")), "header"),
    "a long header": (lambda: zipped(("a.npy", b"\x93NUMPY\2\0" + struct.pack("<L", 2**31) + b"{")), "10000"),
    "a header of brackets": (lambda: zipped(("a.npy", header("(" * 9000))), "plain array"),
    "a header of minus signs": (lambda: zipped(("a.npy", header("-" * 9000 + "1"))), "plain array"),
    "a header that calls": (lambda: zipped(("a.npy", header("__import__('os').system('false')"))), "plain array"),
    "a header of many commas": (
        lambda: zipped(("a.npy", header(f"{{{F4}, 'shape': ({'1,' * 4000} x)}}"))),
        "plain array",
    ),
    "a header of many spaces": (
        lambda: zipped(("a.npy", header(f"{{{F4}, 'shape': (1,{' ' * 9000}x)}}"))),
        "plain array",
    ),
    "a shape too large": (lambda: zipped(("a.npy", header(f"{{{F4}, 'shape': (2,), }}"))), "takes 8 bytes, and 4"),
    "a shape too small": (lambda: zipped(("a.npy", header(f"{{{F4}, 'shape': (0,), }}"))), "takes 0 bytes, and 4"),
    "a shape of 2**62": (lambda: zipped(("a.npy", header(f"{{{F4}, 'shape': ({2**62}, 2), }}"))), "shape"),
    "a shape of 2**64": (lambda: zipped(("a.npy", header(f"{{{F4}, 'shape': ({2**64},), }}"))), "shape"),
    "a shape of 2**62 and 0": (lambda: zipped(("a.npy", header(f"{{{F4}, 'shape': ({2**62}, 0), }}", b""))), "shape"),
    "a shape of 9 axes": (lambda: zipped(("a.npy", header(f"{{{F4}, 'shape': ({'1, ' * 9}), }}"))), "shape"),
    "a negative shape": (lambda: zipped(("a.npy", header(f"{{{F4}, 'shape': (-1,), }}"))), "plain array"),
    "a shape of digits": (lambda: zipped(("a.npy", header(f"{{{F4}, 'shape': ({'9' * 5000},), }}"))), "plain array"),
    "another packing": (lambda: zipped(("a.npy", npy(np.zeros(9))), packing=zipfile.ZIP_BZIP2), "deflate"),
    "a bomb": (lambda: zipped(("a.npy", npy(np.zeros(2**24))), packing=zipfile.ZIP_DEFLATED), "would unpack to"),
    "many members": (many_members, f"{MOST_TENSORS} are allowed"),
    "a long list": (lambda: with_end(LARGEST_HEADER + 1, False), f"{LARGEST_HEADER} allowed"),
    "a long list of the wide form": (lambda: with_end(LARGEST_HEADER + 1, True), f"{LARGEST_HEADER} allowed"),
    "a list beyond the file": (lambda: with_end(10, False)[10:], "zip archive"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive(path: Path, what: str) -> None:
    made, part = HOSTILE[what]
    path.write_bytes(made())
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: read_all(path), FileFormatError, str(path), part)


def test_a_name_twice(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        content = zipped(("a.npy", npy(np.zeros(2))), ("a.npy", npy(np.ones(2))))
    path.write_bytes(content)
    refused(lambda: read_all(path), FileFormatError, str(path), "same name")


def test_an_encrypted_member(path: Path) -> None:
    content = bytearray(zipped(("a.npy", npy(np.zeros(2)))))
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + at] |= 1
    path.write_bytes(content)
    refused(lambda: read_all(path), FileFormatError, str(path), "encrypted")


def test_a_member_that_says_less_than_it_unpacks_to(path: Path) -> None:
    """The archive's list says 1000 bytes; behind them come a hundred million."""
    content = bytearray(zipped(("a.npy", npy(np.zeros(10**7))), packing=zipfile.ZIP_DEFLATED))
    place = content.index(b"PK\1\2") + 24
    content[place : place + 4] = struct.pack("<L", 1000)
    path.write_bytes(content)
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: read_all(path), FileFormatError, str(path), "is no file of arrays")


def test_small_archives_may_pack_well(path: Path) -> None:
    """A network that was just made is full of zeros and ones."""
    given: dict[str, Any] = {f"norm{index}": np.zeros(2**16, "f4") for index in range(100)}
    np.savez_compressed(path, **given)
    assert path.stat().st_size < 2**16
    same_bits(read_all(path), given)
