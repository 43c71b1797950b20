"""Every reader on the corpus of hostile files: what fuzzing found, what reading the code found, and one file for each refusal.

A case in `tests/corpus/READER` is a file, or a folder of files that belong together; its name begins with what must come of
it, "accepted" or the class of the error. `benchmarks/fuzz` makes and adds them.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import MEGABYTES, QUICK, damages, memory_limit, time_limit
from hypothesis import given, settings
from hypothesis import strategies as st

import coatref
from coatref.errors import CoatrefError
from coatref.labels import class_names
from coatref.specification.preprocessing import preprocessing_of
from coatref.weights.files import open_file
from coatref.weights.sources import read_json

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 5.0  # of this process; on a machine that has nothing else to do they take a tenth
FIRST = {  # reader -> ending of the file that it opens
    "safetensors": ".safetensors",
    "sharded": ".safetensors.index.json",
    "npz": ".npz",
    "hdf5": ".h5",
    "keras": ".keras",
    "onnx": ".onnx",
    "torch": ".pth",
    "tensorflow": ".index",
    "load": "model.safetensors",
    "config": "config.json",
    "spec": "spec.json",
}
CASES = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))


def use_config(path: Path) -> None:
    """Make everything of a config.json that is made of one."""
    config = read_json(path)
    preprocessing_of(config)
    class_names(3, config)


def read_all(path: Path) -> None:
    """Read every tensor of a file."""
    with open_file(path) as (tensors, _):
        for tensor in tensors.values():
            assert tensor.read().shape == tensor.shape


USES: dict[str, Callable[[Path], Any]] = {
    "load": coatref.load,
    "config": use_config,
    "spec": lambda path: coatref.Spec.from_json(path.read_bytes().decode("utf-8", "surrogateescape")),
}


def verdict(reader: str, path: Path) -> str:
    """What comes of a file: "accepted", or the class of the error, whose message can be printed and is a sentence."""
    started = time.process_time()
    found = outcome(reader, path)
    assert time.process_time() - started < SECONDS  # what breaks it off could be taken for damage
    return found


def outcome(reader: str, path: Path) -> str:
    """The same, whenever it comes."""
    try:
        with warnings.catch_warnings(), time_limit(SECONDS):
            warnings.simplefilter("error")
            USES.get(reader, read_all)(path)
    except (CoatrefError, FileNotFoundError) as error:
        assert str(error).encode() and str(error).endswith(".") and len(str(error)) < 2000
        assert isinstance(error, CoatrefError) or str(error).startswith("There is no file")
        return type(error).__name__
    return "accepted"


def files_of(case: Path) -> dict[str, bytes]:
    """The files of a case by name, under names that the reader knows them by."""
    reader = case.parent.name
    if case.is_dir():
        return {path.name: path.read_bytes() for path in case.iterdir()}
    return {FIRST[reader] if FIRST[reader][0] != "." else "m" + FIRST[reader]: case.read_bytes()}


def put(files: dict[str, bytes], reader: str, folder: Path) -> Path:
    """Write files into a folder; the one that is opened."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / next(name for name in files if name.endswith(FIRST[reader]))


def test_the_corpus_is_there_and_small() -> None:
    assert {case.split("/")[0] for case in CASES} == set(FIRST)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300_000


@pytest.mark.parametrize("case", CASES)
def test_a_case_of_the_corpus(tmp_path: Path, case: str) -> None:
    reader, _, name = case.partition("/")
    path = put(files_of(CORPUS / case), reader, tmp_path)
    before = sorted(os.listdir(tmp_path))
    assert verdict(reader, path) == name.partition("-")[0]
    assert sorted(os.listdir(tmp_path)) == before


READERS = [reader for reader in FIRST if reader != "load"]  # which is slow, and has the safetensors reader in it


@functools.cache
def right_files(reader: str) -> list[dict[str, bytes]]:
    """The cases of a reader that are accepted."""
    return [files_of(CORPUS / case) for case in CASES if case.startswith(f"{reader}/accepted")]


@pytest.mark.parametrize("reader", READERS)
@given(st.data())
@settings(QUICK, max_examples=40)
def test_damage_to_the_corpus(tmp_path: Path, reader: str, data: st.DataObject) -> None:
    """Only errors of ours, whatever happens to any file that is right."""
    files = dict(data.draw(st.sampled_from(right_files(reader))))
    name = data.draw(st.sampled_from(sorted(files)))
    for damage in data.draw(st.lists(damages(), min_size=1, max_size=3)):
        files[name] = damage(files[name])
    verdict(reader, put(files, reader, tmp_path))


# --- what the corpus has no room for ---


def archived(*members: tuple[str, bytes]) -> bytes:
    """An archive of members that are not packed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def pickled(code: bytes) -> bytes:
    """A torch file with a pickle and one storage."""
    return archived(("a/data.pkl", b"\x80\x02" + code), ("a/data/0", bytes(16)))


MANY = 100_000
LIST = b"(" + b"N" * MANY + b"lq\0"  # a long list, which "h\0" puts on the stack again
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0K\4\x85K\1\x85\x89ccollections\nOrderedDict\n)RtR"
DOUBLED = b")" + b"q\0h\0\x86" * 60  # a tuple of a tuple twice, and so on: 2**60 leaves
LONG_TEXT = b"X" + struct.pack("<L", 3 * 10**6) + b"float32".ljust(3 * 10**6, b"x")
DIGITS = b"\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000  # a number of 7225 digits


def older(keys: bytes) -> bytes:
    """A torch file of the older form, with its list of keys as a pickle."""
    start = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return start + b"\x80\x02}X\1\0\0\0a" + TENSOR + b"s." + b"\x80\x02" + keys


def varint(value: int) -> bytes:
    """A whole number as protocol buffers have it."""
    return (varint_more(value) if value > 127 else b"") + bytes([value & 127]) if value < 128 else varint_more(value)


def varint_more(value: int) -> bytes:
    """One of more than a byte."""
    return bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes in a protocol buffer."""
    return varint(8 * number + 2) + varint(len(content)) + content


def initializer(dims: int, kind: int, rest: bytes) -> bytes:
    """An ONNX model with one initialiser."""
    return field(7, field(5, b"\x08" + varint(dims) + b"\x10" + varint(kind) + field(8, b"x") + rest))


def table(*parts: bytes, handles: bytes) -> bytes:
    """The index of a TensorFlow checkpoint of such blocks, and a block that tells of them."""
    content = b"".join(part + bytes(5) for part in parts)
    block = handles + bytes(4) + struct.pack("<L", 1)
    places = varint(0) + varint(8) + varint(len(content)) + varint(len(block))
    return content + block + bytes(5) + places.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def empty_blocks() -> bytes:
    """Many entries that all lead to one block, which is long and has no entry: each look at it would copy it."""
    count = 400_000
    block = bytes(4 * count) + struct.pack("<L", count)
    handle = varint(0) + varint(len(block))
    return table(block, handles=(b"\0\0" + varint(len(handle)) + handle) * MANY)


def many_fields() -> bytes:
    """Entries of a tensor that say its type over and over."""
    value = b"\x08\x01" * 4990 + b"\x28\x04"
    rows = [(b"", b"\x08\x01\x1a\x02\x08\x01"), *((b"%06d" % number, value) for number in range(750))]
    block = b"".join(b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in rows)
    block += bytes(4) + struct.pack("<L", 1)
    handle = varint(0) + varint(len(block))
    return table(block, handles=b"\0\0" + varint(len(handle)) + handle)


def empty_dataset() -> bytes:
    """A dataset of no number, in chunks of one, whose other axis is said to be 2**58 long."""
    h5py = pytest.importorskip("h5py")
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        content.create_dataset("a/x", shape=(0, 5), maxshape=(None, None), chunks=(1, 1), dtype="f4")
    return file.getvalue().replace(struct.pack("<QQ", 0, 5), struct.pack("<QQ", 0, 2**58))


def large_chunks(size: int = 8 * 10**6) -> bytes:
    """A dataset whose chunks, of one number each, are all said to take most of the file."""
    h5py = pytest.importorskip("h5py")
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        made = content.create_dataset("a/x", shape=(3000,), chunks=(1,), dtype="f4", compression="gzip")
        for number in range(3000):
            made.id.write_direct_chunk((number,), zlib.compress(bytes(4)))
    data = bytearray(file.getvalue())
    at = -1
    while (at := data.find(b"TREE\1\0", at + 1)) >= 0:
        for key in range(int.from_bytes(data[at + 6 : at + 8], "little")):
            struct.pack_into("<L", data, at + 24 + 32 * key, size)
    data += bytes(size)
    data[40:48] = struct.pack("<Q", len(data))
    return bytes(data)


def enumerations() -> bytes:
    """A dataset whose type is an enumeration of enumerations of ..."""
    h5py = pytest.importorskip("h5py")
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        content["a/x"] = np.zeros(3, "f4")
        content["a/x"].attrs["space"] = np.zeros(20_000, "u1")
    data = bytearray(file.getvalue())
    large, place = max(
        (int.from_bytes(data[at + 2 : at + 4], "little"), at)
        for at in range(len(data) - 4)
        if data[at : at + 2] == b"\x0c\0"
    )
    data[place] = 3  # the attribute becomes the type
    data[place + 8 : place + 8 + large] = (b"\x18\0\0\0\4\0\0\0" * large)[:large]
    kind = data.find(b"\x03\0\x18\0")
    data[kind] = 0  # and the type nothing
    return bytes(data)


def overlapping() -> bytes:
    """An archive whose list names one member by many names: it unpacks to 300 times what it has."""
    content = (
        b"\x93NUMPY\1\0\x46\0" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000,), }".ljust(69) + b"\n"
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("000.npy", content + bytes(10**6))
    data = file.getvalue()
    start = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    listed = b"".join(data[start:end].replace(b"000.npy", b"%03d.npy" % number) for number in range(300))
    last = data[end : end + 8] + struct.pack("<HHLLH", 300, 300, len(listed), start, 0)
    return data[:start] + listed + last


def wide_lies(size: int) -> bytes:
    """An archive whose one member says, in the field for sizes beyond 4 GB, that it has so many bytes."""
    data = archived(("a.npy", b"\x93NUMPY"))
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entry = bytearray(data[start:end])
    extra = struct.pack("<HHQQ", 1, 16, size, size)
    entry[20:28], entry[30:32] = b"\xff" * 8, struct.pack("<H", len(extra))
    last = data[end : end + 12] + struct.pack("<LLH", len(entry) + len(extra), start, 0)
    return data[:start] + bytes(entry) + extra + last


def keras_archive(config: bytes, said: int | None = None) -> bytes:
    """An archive of Keras whose configuration is packed, and said to be of another length."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", b"", zipfile.ZIP_STORED)
    data = file.getvalue()
    at = data.index(b"PK\1\2") + 24
    return data if said is None else data[:at] + struct.pack("<L", said) + data[at + 4 :]


def packed_from(size: int) -> bytes:
    """An archive of Keras whose configuration is said to take so many bytes of it."""
    data = keras_archive(b"{}")
    at = data.index(b"PK\1\2") + 20
    return data[:at] + struct.pack("<L", size) + data[at + 4 :]


def index(shard: str) -> bytes:
    """The index of one shard."""
    return json.dumps({"weight_map": {"a": shard}}).encode()


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {  # reader, file, verdict
    "a long list made a size again and again": ("torch", lambda: pickled(LIST + b"ctorch\nSize\nq\1" + b"h\1h\0\x85R0" * 40_000 + b"}."), "FileFormatError"),
    "many sizes of a long list": ("torch", lambda: pickled(LIST + b"ctorch\nSize\nq\1" + b"h\1h\0\x85R" * 40_000 + b"}."), "FileFormatError"),
    "a long list of pairs made many dicts": (
        "torch",
        lambda: pickled(b"(" + b"NN\x86" * 30_000 + b"lq\0ccollections\nOrderedDict\nq\1" + b"h\1h\0\x85R0" * 40_000 + b"}."),
        "accepted",
    ),
    "many arguments again and again": ("torch", lambda: pickled(LIST[:-3] + b"tq\0ctorch._utils\n_rebuild_parameter\nq\1" + b"h\1h\0R0" * 40_000 + b"}."), "FileFormatError"),
    "keys whose hashes are the same": (
        "torch",
        lambda: pickled(b"}(" + b"".join(b"\x8a\x0a" + ((2**61 - 1) * each).to_bytes(10, "little") + b"N" for each in range(1, 60_000)) + b"u."),
        "FileFormatError",
    ),
    "a name that is doubled 60 times": ("torch", lambda: pickled(DOUBLED + b"X\1\0\0\0x\x93."), "FileFormatError"),
    "a name in 30000 tuples": ("torch", lambda: pickled(b")" + b"\x85" * 30_000 + b"X\1\0\0\0x\x93."), "FileFormatError"),
    "a name of half a surrogate": ("torch", lambda: pickled(b"X\3\0\0\0\xed\xa0\x80q\0h\0\x93."), "FileFormatError"),
    "a number of 7225 digits as a name": ("torch", lambda: pickled(b"}" + DIGITS + TENSOR + b"s."), "FileFormatError"),
    "a tensor of half a surrogate": ("torch", lambda: pickled(b"}X\3\0\0\0\xed\xa0\x80" + TENSOR + b"s."), "FileFormatError"),
    "many long names of types": (
        "torch",
        lambda: pickled(b"X\5\0\0\0torchq\0" + LONG_TEXT + b"q\1" + b"h\0h\1\x93" * 100_000 + b"}."),
        "FileFormatError",
    ),
    "a text with an unknown escape": ("torch", lambda: pickled(b"S'a\\d'\n."), "FileFormatError"),
    "a key that is doubled 60 times": ("torch", lambda: older(b"]" + DOUBLED + b"a."), "FileFormatError"),
    "a key in 30000 tuples": ("torch", lambda: older(b"])" + b"\x85" * 30_000 + b"a."), "FileFormatError"),
    "blocks of no entry": ("tensorflow", empty_blocks, "FileFormatError"),
    "entries of many fields": ("tensorflow", many_fields, "FileFormatError"),
    "many bytes as varints": ("onnx", lambda: initializer(4_000_000, 2, field(5, b"\1" * 4_000_000)), "accepted"),
    "a location of 250 characters and 500 bytes": ("onnx", lambda: initializer(1, 1, b"\x70\x01" + field(13, field(1, b"location") + field(2, ("\u00e9" * 250).encode()))), "FileFormatError"),
    "a shard of 250 characters and 500 bytes": ("sharded", lambda: index("\u00e9" * 250), "FileFormatError"),
    "an axis of 2**58 beside one of 0": ("hdf5", empty_dataset, "accepted"),
    "chunks that take most of the file": ("hdf5", large_chunks, "FileFormatError"),
    "a type in a type in a type": ("hdf5", enumerations, "FileFormatError"),
    "a member by many names": ("npz", overlapping, "FileFormatError"),
    "a member of 2**62 bytes": ("npz", lambda: wide_lies(2**62), "FileFormatError"),
    "a member of 2**64 - 1 bytes": ("npz", lambda: wide_lies(2**64 - 1), "FileFormatError"),
    "a wide member of a torch file": ("torch", lambda: wide_lies(2**62), "FileFormatError"),
    "a member that says less than it unpacks to": ("keras", lambda: keras_archive(bytes(10**8), 2), "FileFormatError"),
    "a member packed from 2**31 bytes": ("keras", lambda: packed_from(2**31), "FileFormatError"),
    "an archive in an archive": ("npz", lambda: archived(("a.npy", archived(("a.npy", b"")))), "FileFormatError"),
}  # fmt: skip


SLOW = ("keys whose hashes", "a long list of pairs", "blocks of no entry")


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file(tmp_path: Path, what: str) -> None:
    reader, made, wanted = HOSTILE[what]
    path = put({"m" + FIRST[reader]: made()}, reader, tmp_path)
    assert verdict(reader, path) == wanted
    if not what.startswith(SLOW):  # to count memory takes several times as long
        with memory_limit(MEGABYTES):
            assert verdict(reader, path) == wanted


def test_links_that_lead_in_circles(tmp_path: Path) -> None:
    path = put({"m.safetensors.index.json": index("a.safetensors")}, "sharded", tmp_path)
    (tmp_path / "a.safetensors").symlink_to("b.safetensors")
    (tmp_path / "b.safetensors").symlink_to("a.safetensors")
    assert verdict("sharded", path) in ("FileFormatError", "FileNotFoundError")
    path.unlink()
    path.symlink_to(path.name)
    assert verdict("sharded", path) in ("FileFormatError", "FileNotFoundError")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pipes_in_a_folder(tmp_path: Path, name: str) -> None:
    """A pipe that nobody writes to is not waited for."""
    os.mkfifo(tmp_path / name)
    if name == "config.json":
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with time_limit(SECONDS), pytest.raises((CoatrefError, FileNotFoundError)):
        coatref.load(tmp_path)


@pytest.fixture(autouse=True)
def _no_files_left(tmp_path: Path) -> Iterator[None]:
    """Cases of megabytes are not kept."""
    yield
    for path in tmp_path.iterdir():
        path.unlink()
