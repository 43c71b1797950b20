"""Checkpoints of torch: what torch.save writes comes back to the bit, and nothing in any file is carried out."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_files import (
    MEGABYTES,
    QUICK,
    SECONDS,
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
from coatref.weights.files.pickled import MOST_INSTRUCTIONS

KINDS = ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
KINDS += ["uint16", "uint32", "uint64"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


@pytest.fixture(params=[True, False], ids=["zip", "stream"])
def zipped(request: pytest.FixtureRequest) -> bool:
    """Both forms of the format."""
    return bool(request.param)


def saved(path: Path, content: Any, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def host(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as the reader gives it."""
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).detach().numpy().copy()


def hosts(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: host(tensor) for name, tensor in tensors.items()}


# --- what torch writes ---


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any bits: of any type, with any strides, a part of a larger one, a parameter or not."""
    kind = draw(st.sampled_from(KINDS))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    seed, width = draw(st.integers(0, 2**32 - 1)), torch.empty(0, dtype=getattr(torch, kind)).element_size()
    content = np.random.default_rng(seed).bytes(int(np.prod(shape, dtype=np.int64)) * width)
    if kind == "bool":
        content = bytes(value & 1 for value in content)
    tensor = (
        torch.frombuffer(bytearray(content), dtype=getattr(torch, kind))
        if content
        else torch.empty(0, dtype=getattr(torch, kind))
    )
    tensor = tensor.reshape(shape)
    if draw(st.booleans()) and tensor.ndim > 1:
        tensor = tensor.permute(*draw(st.permutations(range(tensor.ndim))))
    if draw(st.booleans()) and tensor.ndim and tensor.shape[0] > 1:
        tensor = tensor[1 :: draw(st.integers(1, 2))]
    return torch.nn.Parameter(tensor) if tensor.is_floating_point() and draw(st.booleans()) else tensor


@given(st.dictionaries(st.text(max_size=8), tensors(), max_size=4), st.booleans(), st.booleans())
@settings(QUICK, max_examples=100)
def test_any_tensors_come_back(tmp_path: Path, given: dict[str, torch.Tensor], zipped: bool, ordered: bool) -> None:
    if not zipped:  # that form has no room for these
        given = {
            name: tensor
            for name, tensor in given.items()
            if str(tensor.dtype) not in ("torch.uint16", "torch.uint32", "torch.uint64")
        }
    path = saved(tmp_path / "any.pth", collections.OrderedDict(given) if ordered else given, zipped)
    same_bits(read_all(path), hosts(given))
    with open_file(path) as (found, metadata):
        assert metadata == {} and list(found) == list(given)
        assert all(found[name].dtype == "BF16" for name, tensor in given.items() if tensor.dtype is torch.bfloat16)


def test_tensors_that_share_their_numbers(path: Path, zipped: bool) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    given = {
        "whole": whole,
        "row": whole[1],
        "column": whole[:, 2],
        "block": whole[1:3, 2:5],
        "turned": whole.T,
        "again": whole,
    }
    same_bits(read_all(saved(path, given, zipped)), hosts(given))


def test_channels_last(path: Path, zipped: bool) -> None:
    given = {"w": torch.randn(5, 3, 2, 7).to(memory_format=torch.channels_last)}
    assert not given["w"].is_contiguous()
    same_bits(read_all(saved(path, given, zipped)), hosts(given))


def test_a_tensor_of_one_number_repeated(path: Path) -> None:
    given = {"w": torch.ones(1).expand(3, 5)}
    same_bits(read_all(saved(path, given)), hosts(given))


def test_a_module(path: Path, zipped: bool) -> None:
    """Its state dict has metadata beside the tensors, which is passed over."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.LayerNorm(5))
    state = module.state_dict()
    assert "num_batches_tracked" in " ".join(state) and hasattr(state, "_metadata")
    same_bits(read_all(saved(path, state, zipped)), hosts(dict(state)))


def test_big_endian(path: Path) -> None:
    """As torch writes on such a machine: the same archive, with the bytes of each number turned round."""
    given = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4, dtype=torch.bfloat16)}
    saved(path, given)
    with zipfile.ZipFile(path) as source:
        members = {member.filename: source.read(member) for member in source.infolist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, content in members.items():
            if "/data/" in name:
                content = np.frombuffer(content, "u4" if name.endswith("/0") else "u2").byteswap().tobytes()
            target.writestr(name, b"big" if name.endswith("byteorder") else content)
    same_bits(read_all(path), hosts(given))


def test_protocols_of_pickle(path: Path, zipped: bool) -> None:
    given = {"a": torch.arange(6.0).reshape(2, 3), "b" * 300: torch.zeros(2)}
    for protocol in (2, 3, 4, 5):
        torch.save(
            {"state_dict": given, "more": (1, 2.5, None, True, b"x", 2**80, [{}])},
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
        same_bits(read_all(path), hosts(given))


# --- what training scripts write ---


def training(**entries: Any) -> dict[str, Any]:
    """A checkpoint as timm's training script writes it."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(3)
    optimizer.step()
    return {
        "epoch": 7,
        "arch": "coatnet_0_rw_224",
        "optimizer": optimizer.state_dict(),
        "version": 2,
        "args": argparse.Namespace(model="coatnet_0_rw_224", lr=0.1, mean=(0.5, 0.5, 0.5), resume=None),
        "amp_scaler": {"scale": 65536.0},
        "metric": 82.4,
        "device": torch.device("cuda:0"),
        "dtype": torch.float16,
        "size": torch.Size([3, 4]),
        "seen": {1, 2},
        "counts": collections.Counter("abc"),
        "z": 1j,
        "best": np.float64(82.4),
        "curve": np.arange(3),
        "output": Path("output") / "train",
    } | entries


def test_a_training_checkpoint_and_its_average(path: Path, zipped: bool) -> None:
    plain, averaged = {"w": torch.zeros(2, 3)}, {"w": torch.ones(2, 3)}
    for names in (("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model_state_dict", "ema_state_dict")):
        saved(path, training(**dict(zip(names, (plain, averaged), strict=True))), zipped)
        same_bits(read_all(path), hosts(averaged))
        same_bits(read_all(path, ema=True), hosts(averaged))
        same_bits(read_all(path, ema=False), hosts(plain))


def test_the_order_of_the_entries_is_timms(path: Path) -> None:
    entries = ["state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model"]
    content: dict[str, Any] = {name: {"w": torch.full((2,), float(index))} for index, name in enumerate(entries)}
    for index, name in enumerate(entries):
        assert read_all(saved(path, content))["w"][0] == index
        if index < 3:
            assert read_all(path, ema=False)["w"][0] == 3
        content[name] = None


def test_nested_entries(path: Path) -> None:
    given = {"w": torch.ones(3)}
    same_bits(read_all(saved(path, {"model": {"state_dict": given}})), hosts(given))
    refused(
        lambda: read_all(saved(path, {"model": {"model": {"model": given}}})), FileFormatError, "dict under 'model'"
    )


# --- what is not carried out ---


class Runs:
    """What, unpickled, would make a file."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


CALLS: dict[str, tuple[Any, ...]] = {
    "os.mkdir": (os.mkdir, ("made",)),
    "eval": (eval, ("__import__('os').mkdir('made')",)),
    "getattr": (getattr, ("made", "upper")),
    "torch.load": (torch.load, ("made",)),
    "torch.save": (torch.save, ({}, "made")),
    "torch.hub": (torch.hub.load, ("made", "made")),
    "bytes": (bytes, (10**10,)),
    "range": (range, (10**10,)),
    "open": (open, ("made", "w")),
    "numpy": (np.zeros, (10**9,)),
}


@pytest.mark.parametrize("what", CALLS)
def test_calls(path: Path, zipped: bool, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    for content in (
        {"w": torch.ones(2), "x": Runs(*CALLS[what])},
        {"state_dict": {"w": torch.ones(2)}, "x": [Runs(*CALLS[what])]},
    ):
        saved(path, content, zipped)
        refused(lambda: read_all(path), FileFormatError, str(path), "asks for", "plain values", "refused")
        assert os.listdir(path.parent) == [path.name]


def test_nothing_is_imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickled(b"\x80\x02ccoatref_no_such_module\nname\n.")
    path.write_bytes(content)
    refused(lambda: read_all(path), FileFormatError, "coatref_no_such_module.name")
    saved(path, {"w": torch.ones(2)})
    monkeypatch.setitem(sys.modules, "torch", None)
    assert read_all(path)["w"].tolist() == [1, 1]


def pickled(code: bytes, data: bytes = bytes(8)) -> bytes:
    """An archive of a pickle and of one storage, of two float32 numbers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", code)
        archive.writestr("model/data/0", data)
    return file.getvalue()


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def tensor(
    storage: bytes = STORAGE, offset: bytes = b"K\x00", shape: bytes = b"K\x02\x85", strides: bytes = b"K\x01\x85"
) -> bytes:
    """A pickle of one tensor."""
    return b"\x80\x02}X\x01\x00\x00\x00w" + REBUILD + b"(" + storage + offset + shape + strides + b"\x89}tRs."


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def test_the_parts_make_a_file(path: Path) -> None:
    path.write_bytes(pickled(tensor(), struct.pack("<2f", 1.5, -2)))
    assert read_all(path)["w"].tolist() == [1.5, -2]


DUP = b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 60  # (((...), (...)), ...), 2**60 leaves deep
PICKLES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "its pickle"),
    "no end": (b"\x80\x02}", "its pickle"),
    "an end alone": (b".", "damaged"),
    "unknown": (b"\xff.", "its pickle"),
    "no mark": (b"t.", "damaged"),
    "an empty memo": (b"h\x05.", "damaged"),
    "pairs that do not go up": (b"}(K\x01u.", "damaged"),
    "a long text that is not there": (b"X\xff\xff\xff\x7fabc.", "damaged"),
    "a long number in digits": (b"L" + b"9" * 10**5 + b"L\n.", "damaged"),
    "a key whose hash takes for ever": (DUP + b"K\x01s.", "tuple"),
    "a set of the same": (b"\x80\x02c__builtin__\nset\n(]" + DUP[3:] + b"atR.", "Other"),
    "a key that is a list": (b"}]K\x01s.", "list"),
    "a list in itself": (b"]q\x00h\x00a.", "list"),
    "a dict in itself": (b"}q\x00X\x01\x00\x00\x00ah\x00s.", "dict"),
    "an old instruction": (b"(ios\nmkdir\n.", "INST"),
    "an extension": (b"\x82\x01.", "EXT1"),
    "a persistent name": (b"Pabc\n.", "PERSID"),
    "a name in the stack": (b"\x8c\x02os\x8c\x05mkdir\x93.", "os.mkdir"),
    "a name of numbers in the stack": (b"K\x01K\x02\x93.", "asks for"),
    "a type of another module": (b"cos\nFloatStorage\n.", "os.FloatStorage"),
    "a name of dots": (b"cos.path\njoin\n.", "os.path.join"),
    "a long name": (b"c" + b"n" * 10**5 + b"\nn\n.", "nnnn"),
    "a call of a type": (b"ctorch\nFloatStorage\n(K\x05tR.", "calls torch.FloatStorage"),
    "a call of torch.float32": (b"ctorch\nfloat32\n)R.", "calls torch.float32"),
    "a call of a list": (b"])R.", "no name"),
    "a call with no tuple": (b"ccollections\nOrderedDict\nK\x01R.", "no name"),
    "a tensor of nothing": (REBUILD + b")R.", "with 0 arguments"),
    "a tensor of no storage": (tensor(storage=b"N"), "no storage"),
    "a tensor of one that is a class": (tensor(storage=b"ctorch\nFloatStorage\n"), "no storage"),
    "a storage of another key": (
        tensor(storage=STORAGE.replace(b"000X", b"009X").replace(b"\x000X", b"\x009X")),
        "is not in it",
    ),
    "a storage of another size": (tensor(storage=STORAGE.replace(b"K\x02", b"K\x03")), "another size"),
    "a storage of a wider type": (tensor(storage=STORAGE.replace(b"FloatS", b"DoubleS")), "another size"),
    "a storage of 2**62": (tensor(storage=STORAGE.replace(b"K\x02", number(2**62))), "another size"),
    "a storage of less than nothing": (tensor(storage=STORAGE.replace(b"K\x02", number(-2))), "whole numbers"),
    "a storage of an unknown class": (tensor(storage=STORAGE.replace(b"FloatS", b"QInt8S")), "torch.QInt8Storage"),
    "a storage of no class": (tensor(storage=STORAGE.replace(b"ctorch\nFloatStorage\n", b"N")), "class"),
    "a view of a storage": (tensor(storage=STORAGE.replace(b"tQ", b"K\x01tQ")), "something else than a storage"),
    "a reference to no storage": (tensor(storage=b"K\x01Q"), "something else than a storage"),
    "an offset too far": (tensor(offset=b"K\x01"), "goes beyond"),
    "an offset before it": (tensor(offset=number(-1)), "whole numbers"),
    "an offset of 2**62": (tensor(offset=number(2**62)), "goes beyond"),
    "an offset that is true": (tensor(offset=b"\x88"), "whole numbers"),
    "an offset that is a float": (tensor(offset=b"G" + bytes(8)), "whole numbers"),
    "a shape too large": (tensor(shape=b"K\x03\x85"), "goes beyond"),
    "a shape of 2**62": (tensor(shape=number(2**62) + b"\x85"), "shape"),
    "a shape of less than nothing": (tensor(shape=number(-2) + b"\x85"), "whole numbers"),
    "a shape that is a number": (tensor(shape=b"K\x02"), "without a shape"),
    "a shape of 9 axes": (tensor(shape=b"(" + b"K\x01" * 9 + b"t", strides=b"(" + b"K\x01" * 9 + b"t"), "shape"),
    "strides too long": (tensor(strides=b"K\x02\x85"), "goes beyond"),
    "strides of 2**62": (tensor(strides=number(2**62) + b"\x85"), "goes beyond"),
    "strides before it": (tensor(strides=number(-1) + b"\x85"), "whole numbers"),
    "too few strides": (tensor(strides=b")"), "stride for each axis"),
    "numbers repeated without end": (tensor(shape=number(2**40) + b"\x85", strides=b"K\x00\x85"), "would unpack to"),
}


@pytest.mark.parametrize("what", PICKLES)
def test_a_hostile_pickle(path: Path, what: str) -> None:
    code, part = PICKLES[what]
    for content in (pickled(code), stream(code)):
        path.write_bytes(content)
        with time_limit(SECONDS), memory_limit(MEGABYTES):
            refused(lambda: read_all(path), FileFormatError, str(path), part if content[:2] == b"PK" else "")


@pytest.mark.parametrize("code", [b"N0", b"(1"])
def test_a_pickle_of_many_instructions(path: Path, code: bytes) -> None:
    """All but the number of them would be right."""
    path.write_bytes(pickled(code * (MOST_INSTRUCTIONS // 2) + tensor()))
    with time_limit(2 * SECONDS):
        refused(lambda: read_all(path), FileFormatError, str(path), f"{MOST_INSTRUCTIONS} instructions")
    path.write_bytes(pickled(code * (MOST_INSTRUCTIONS // 4) + tensor()))
    assert read_all(path)["w"].tolist() == [0, 0]


def stream(code: bytes, keys: Any = ("0",), data: bytes = struct.pack("<q2f", 2, 1.5, -2)) -> bytes:
    """A pickle and one storage in the older form."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    pickles = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, machine)]
    return b"".join([*pickles, code, pickle.dumps(list(keys), 2), data])


STREAMS: dict[str, tuple[bytes, str]] = {
    "another number": (pickle.dumps(7, 2) * 5, "begin"),
    "no keys": (stream(tensor(), ()), "is not in it"),
    "a key twice": (stream(tensor(), ("0", "0"), struct.pack("<q2fq2f", 2, 0, 0, 2, 0, 0)), "twice"),
    "an unknown key": (stream(tensor(), ("0", "1")), "'1'"),
    "a key that is a number": (stream(tensor(), (0,)), "no tensor refers to"),
    "another count": (stream(tensor(), data=struct.pack("<q2f", 3, 0, 0)), "another size"),
    "a count beyond the file": (stream(tensor(), data=struct.pack("<qf", 2, 0)), "ends beyond it"),
    "a count that is not there": (stream(tensor(), data=b""), "another size"),
    "a count of less than nothing": (stream(tensor(), data=struct.pack("<q2f", -2, 0, 0)), "ends beyond it"),
    "a tar archive": (b"sys_info" + bytes(504), "damaged"),
}


@pytest.mark.parametrize("what", STREAMS)
def test_a_hostile_stream(path: Path, what: str) -> None:
    content, part = STREAMS[what]
    path.write_bytes(content)
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: read_all(path), FileFormatError, str(path), part)


def test_a_stream_of_parts(path: Path) -> None:
    path.write_bytes(stream(tensor()))
    assert read_all(path)["w"].tolist() == [1.5, -2]


def test_many_views_of_one_storage(path: Path) -> None:
    """Each is small, and to read it the whole storage would have to be gone through."""
    whole = torch.zeros(2**20)
    given = {f"w{index}": whole[:: 2**20 - 1] for index in range(100)}
    refused(lambda: read_all(saved(path, given)), FileFormatError, str(path), "would unpack to")


def test_archives_that_are_something_else(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"model/{name}", b"N.")
    refused(lambda: read_all(path), FileFormatError, str(path), "TorchScript")
    for names in ((), ("a/data.pkl", "b/data.pkl")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("other", b"")
            for name in names:
                archive.writestr(name, b"N.")
        refused(lambda: read_all(path), FileFormatError, str(path), f"{len(names)} members")


def test_a_packed_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", tensor())
        archive.writestr("model/data/0", np.random.default_rng(0).bytes(8), zipfile.ZIP_DEFLATED)
        archive.writestr("model/padding", b"x" * 100)
    refused(lambda: read_all(path), FileFormatError, str(path), "packed members")


def test_an_encrypted_member(path: Path) -> None:
    """Its bytes would be taken as they are."""
    content = bytearray(pickled(tensor()))
    content[content.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    refused(lambda: read_all(path), FileFormatError, str(path), "is encrypted, or")


def test_a_member_that_is_elsewhere(path: Path) -> None:
    content = bytearray(pickled(tensor()))
    place = content.rindex(b"PK\1\2") + 42
    content[place : place + 4] = struct.pack("<L", 10**6)
    path.write_bytes(content)
    refused(lambda: read_all(path), FileFormatError, str(path), "where it should be")


def test_a_long_pickle(path: Path) -> None:
    path.write_bytes(pickled(b"N0" * (4 * 10**6 + 1)))
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: read_all(path), FileFormatError, str(path), "bytes allowed")


# --- damage ---


@pytest.fixture(scope="module")
def wholes() -> list[bytes]:
    """A right file in both forms."""
    found = []
    for zipped in (True, False):
        file = io.BytesIO()
        content = training(
            state_dict={"w": torch.randn(3, 4), "v": torch.randn(5, 2).T, "b": torch.nn.Parameter(torch.randn(3))}
        )
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        found.append(file.getvalue())
    return found


def test_a_file_cut_anywhere(path: Path, wholes: list[bytes]) -> None:
    for whole in wholes:
        for cut in (*range(0, len(whole), len(whole) // 150), len(whole) - 1):
            path.write_bytes(whole[:cut])
            refused(lambda: read_all(path), FileFormatError, str(path))


@given(st.lists(damages(), min_size=1, max_size=3), st.booleans())
@settings(QUICK, max_examples=250)
def test_damage_is_seen_or_harmless(
    tmp_path: Path, wholes: list[bytes], damage: list[Callable[[bytes], bytes]], zipped: bool
) -> None:
    content = wholes[0 if zipped else 1]
    for each in damage:
        content = each(content)
    (tmp_path / "damaged.pth").write_bytes(content)
    read_or_refused(tmp_path / "damaged.pth")


def test_a_file_cut_while_it_is_read(path: Path, zipped: bool) -> None:
    saved(path, {"w": torch.zeros(2**14)}, zipped)
    with open_file(path) as (found, _):
        os.truncate(path, 2**14)
        refused(found["w"].read, FileFormatError, str(path), "w", "cut")
