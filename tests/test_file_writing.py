"""Writing files of tensors: readers of other projects read them to the bit, and a file is written whole or not at all."""

from __future__ import annotations

import errno
import importlib
import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hostile_files import QUICK, arrays, read_all, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from coatref.errors import InputError, WeightsError
from coatref.weights import write, write_hdf5
from coatref.weights.files import open_file
from coatref.weights.write import write_tensors

h5py: Any = importlib.import_module("h5py")  # untyped

ENDINGS = [".safetensors", ".npz", ".h5"]
GIVEN = {
    "stem/kernel": np.arange(24, dtype="f4").reshape(2, 3, 4),
    "stem/bias": np.arange(3.0),
    "head/kernel": np.arange(10, dtype=">f4").reshape(5, 2).T,
}
NAMES = st.builds(
    lambda layer, leaf: f"{layer}/{leaf}",
    *[st.text(st.characters(codec="utf-8", exclude_characters="\0\\/:."), min_size=1, max_size=5)] * 2,
)


@pytest.fixture(params=ENDINGS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"model{request.param}"


def by_others(path: Path) -> dict[str, np.ndarray]:
    """What the library of a format reads from a file."""
    if path.suffix == ".safetensors":
        return dict(safetensors.numpy.load_file(path))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    with h5py.File(path) as file:
        names = [text for key in file.attrs if key.startswith("layer_names") for text in file.attrs[key]]
        layers = [(layer, file[layer]) for layer in names]
        weights = [(layer, name, group) for layer, group in layers for name in group.attrs["weight_names"]]
        return {
            f"{layer}/{name.removeprefix(f'{layer}/').removesuffix(':0')}": group[name][()]
            for layer, name, group in weights
        }


# --- what is written is read ---


@given(st.dictionaries(NAMES, arrays(), max_size=4), st.sampled_from(ENDINGS))
@settings(QUICK, max_examples=80)
def test_any_arrays_come_back(tmp_path: Path, given: dict[str, np.ndarray], ending: str) -> None:
    path = tmp_path / f"any{ending}"
    if ending == ".h5":
        given = {name: array.view("i1") if array.dtype == "?" else array for name, array in given.items()}
    write_tensors(path, given)
    assert os.listdir(tmp_path) == [path.name]
    same_bits(by_others(path), given)
    same_bits(read_all(path), given)
    path.unlink()


def test_metadata(tmp_path: Path) -> None:
    path, texts = tmp_path / "model.safetensors", {"format": "pt", "clef \U0001d11e": 'quote " \\'}
    write_tensors(path, GIVEN, texts)
    with open_file(path) as (_, metadata):
        assert metadata == texts
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == texts
    write_tensors(path, GIVEN, {})
    assert b"__metadata__" not in path.read_bytes()
    for ending in (".npz", ".h5"):
        write_tensors(tmp_path / f"model{ending}", GIVEN, {})
        with pytest.raises(InputError, match=r"no place for metadata \(format.*\.safetensors"):
            write_tensors(tmp_path / f"model{ending}", GIVEN, texts)


def test_bfloat16(tmp_path: Path) -> None:
    array = np.arange(-6, 6).reshape(3, 4).astype(ml_dtypes.bfloat16)
    write_tensors(tmp_path / "model.safetensors", {"w": array, "v": array.T})
    found = read_all(tmp_path / "model.safetensors")
    assert found["w"].tolist() == array.tolist() and found["v"].tolist() == array.T.tolist()
    with open_file(tmp_path / "model.safetensors") as (tensors, _):
        assert tensors["w"].dtype == "BF16"
    for ending in (".npz", ".h5"):
        with pytest.raises(WeightsError, match=r"a/w \(bfloat16\)"):
            write_tensors(tmp_path / f"model{ending}", {"a/w": array})


def test_tensors_begin_where_their_type_may(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": np.zeros(3, "i1"), "b": np.zeros(5), "c": np.zeros(1, "f2"), "d": np.zeros(3, "f4")})
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert sorted(header, key=lambda name: header[name]["data_offsets"]) == ["b", "d", "c", "a"]
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_the_same_arrays_give_the_same_file(path: Path) -> None:
    write_tensors(path, GIVEN)
    first = path.read_bytes()
    write_tensors(path, dict(GIVEN))
    assert path.read_bytes() == first


def test_a_file_of_keras(tmp_path: Path) -> None:
    """Layers in the order given, weights of a layer in Keras' order, whatever the order given."""
    path = tmp_path / "model.h5"
    leaves = ["moving_variance", "beta", "moving_mean", "gamma"]
    given = {f"z_bn/{leaf}": np.zeros(3) for leaf in leaves} | {"a/bias": np.zeros(2), "a/kernel": np.zeros((5, 2))}
    write_tensors(path, given | {"b/inner/kernel": np.zeros(3)})
    with h5py.File(path) as file:
        assert file.attrs["layer_names"].tolist() == ["z_bn", "a", "b"]
        assert file.attrs["backend"] == b"tensorflow" and file.attrs["keras_version"].startswith(b"2.")
        order = ["gamma", "beta", "moving_mean", "moving_variance"]
        assert file["z_bn"].attrs["weight_names"].tolist() == [f"z_bn/{leaf}:0" for leaf in order]
        assert file["a"].attrs["weight_names"].tolist() == ["a/kernel:0", "a/bias:0"]
        assert file["b"].attrs["weight_names"].tolist() == ["b/inner/kernel:0"]
        assert file["b/b/inner/kernel:0"].shape == (3,)
        assert file["a/a/kernel:0"].chunks is None


def test_names_that_one_attribute_cannot_hold(tmp_path: Path) -> None:
    given = {f"{'layer' * 50}_{index}/kernel": np.zeros(1, "i1") for index in range(600)}
    write_tensors(tmp_path / "model.h5", given)
    with h5py.File(tmp_path / "model.h5") as file:
        parts = sorted(key for key in file.attrs if key.startswith("layer_names"))
        assert parts == ["layer_names0", "layer_names1", "layer_names2"]
        assert all(file.attrs[key].nbytes <= write_hdf5.LARGEST_ATTRIBUTE for key in parts)
    same_bits(by_others(tmp_path / "model.h5"), given)
    same_bits(read_all(tmp_path / "model.h5"), given)


def test_nothing_given(path: Path) -> None:
    write_tensors(path, {})
    assert read_all(path) == {} and by_others(path) == {}


# --- what is not written ---


@pytest.mark.parametrize(
    "name", ["model", "model.pth", "model.hdf5", "model.keras", "model.onnx", ".npz", "model.npz.tmp"]
)
def test_endings_that_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"ends in .*\.safetensors, \.npz, \.h5"):
        write_tensors(tmp_path / name, GIVEN)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["c8", "O", "U3", "S3", "M8[s]", "V2", "f4,i4", np.longdouble])
def test_types_that_are_not_written(path: Path, kind: Any) -> None:
    with pytest.raises(WeightsError, match=r"1 arrays .*a/odd"):
        write_tensors(path, GIVEN | {"a/odd": np.zeros(2, kind)})
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("name", ["", "n" * 1001, "a/\ud800", "__metadata__", 5, None])
def test_names_that_are_not_written(path: Path, name: Any) -> None:
    with pytest.raises(InputError, match="name"):
        write_tensors(path, GIVEN | {name: np.zeros(2)})
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    ("ending", "name"),
    [
        (".npz", "a\0b"),
        (".npz", "a\\b"),
        *((".h5", name) for name in ("a", "a/", "/a", "a//b", "a/..", "./a", "a/b:0", "a/\0")),
    ],
)
def test_names_that_a_format_cannot_hold(tmp_path: Path, ending: str, name: str) -> None:
    with pytest.raises(InputError, match="(?i)name"):
        write_tensors(tmp_path / f"model{ending}", GIVEN | {name: np.zeros(2)})
    assert os.listdir(tmp_path) == []


def test_bools_are_not_written_to_h5(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"a/b \(bool\)"):
        write_tensors(tmp_path / "model.h5", {"a/b": np.zeros(3, bool)})
    assert os.listdir(tmp_path) == []


def test_h5py_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    write_tensors(tmp_path / "model.h5", GIVEN)
    same_bits(read_all(tmp_path / "model.h5"), GIVEN)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 32 * 8, 32 * 8 + 1, 2000])
def test_groups_of_every_size(tmp_path: Path, count: int) -> None:
    """Trees of no, one and several levels, as the HDF5 library and as our reader see them."""
    path = tmp_path / "model.h5"
    given = {f"layer_{index}/kernel": np.full(index % 3, index) for index in range(count)}
    write_tensors(path, given)
    with h5py.File(path) as file:
        assert sorted(file) == sorted({name.partition("/")[0] for name in given})
        for name, array in given.items():
            found = file[f"{name.partition('/')[0]}/{name}:0"]
            assert found.dtype == array.dtype and found[()].tolist() == array.tolist()
        assert "layer" not in file and "layer_2000" not in file
    same_bits(read_all(path), given)


def test_the_library_can_change_such_a_file(tmp_path: Path) -> None:
    """It makes room for more in groups, headers and heaps, which must then be as it takes them to be."""
    path = tmp_path / "model.h5"
    write_tensors(path, GIVEN)
    right = dict(GIVEN)
    with h5py.File(path, "r+") as file:
        for index in range(300):
            right[f"more_{index}/kernel"] = file[f"more_{index}/more_{index}/kernel:0"] = np.arange(index)
        file["stem/stem/kernel:0"][...] = right["stem/kernel"] = GIVEN["stem/kernel"] + 1
        del file["head/head/kernel:0"], right["head/kernel"]
        file.attrs["note"] = "text" * 100
        file["stem"].attrs["note"] = "text" * 100
    same_bits(read_all(path), right)


# --- all or nothing ---


class Broken(BaseException):
    """An error that nothing expects."""


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Broken(), MemoryError()], ids=repr)
@pytest.mark.parametrize("at", ["writing", "syncing", "moving"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, at: str
) -> None:
    reached = []

    def fail(*_: Any, **__: Any) -> None:
        reached.append([name for name in os.listdir(path.parent) if name != path.name])
        raise error

    def break_it() -> None:
        if at == "writing":
            monkeypatch.setattr(write, "write_bytes", fail)
            monkeypatch.setattr(np.lib.format, "write_array", fail)
        else:
            monkeypatch.setattr(os, {"syncing": "fsync", "moving": "replace"}[at], fail)

    break_it()
    with pytest.raises(type(error)):
        write_tensors(path, GIVEN)
    assert os.listdir(path.parent) == []
    monkeypatch.undo()
    write_tensors(path, GIVEN)
    before = path.read_bytes()
    break_it()
    with pytest.raises(type(error)):
        write_tensors(path, {"a/b": np.ones(3)})
    assert os.listdir(path.parent) == [path.name] and path.read_bytes() == before
    assert all(len(names) == 1 and names[0].startswith(".coatref-") for names in reached) and len(reached) == 2


def test_a_folder_that_cannot_be_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems have no such thing; the file is written all the same."""
    plain = os.fsync

    def sync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        plain(handle)

    monkeypatch.setattr(os, "fsync", sync)
    write_tensors(path, GIVEN)
    same_bits(read_all(path), GIVEN)


FULL = """
    import os, resource, signal, sys
    import numpy as np
    from coatref.weights.write import write_tensors
    path = sys.argv[1]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the system kills who writes too much
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    given = {f"layer{index}/kernel": np.ones((100, 100), "f4") for index in range(20)}
    for _ in range(3):
        try:
            write_tensors(path, given)
        except OSError as error:
            print(type(error).__name__, os.listdir(os.path.dirname(path)))
    write_tensors(path, {"layer/kernel": np.ones(3, "f4")})
"""


def test_no_room_for_the_file(path: Path) -> None:
    """As on a full disk, a write fails in the middle; and the process can go on."""
    write_tensors(path, GIVEN)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [f"OSError ['{path.name}']"] * 3, run.stderr
    assert os.listdir(path.parent) == [path.name]
    same_bits(read_all(path), {"layer/kernel": np.ones(3, "f4")})


def test_links_and_permissions(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / path.name
    link.symlink_to(path)
    write_tensors(link, GIVEN)
    assert link.is_symlink() and not path.is_symlink() and os.listdir(tmp_path / "folder") == [path.name]
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("made by open()")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)
    before = os.umask(0o077)
    try:
        write_tensors(path, GIVEN)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    same_bits(read_all(link), GIVEN)


def test_arrays_are_not_changed(path: Path) -> None:
    given = {"a/b": np.arange(6, dtype=">f4").reshape(2, 3).T}
    given["a/b"].flags.writeable = False
    write_tensors(path, given)
    assert given["a/b"].tolist() == [[0, 3], [1, 4], [2, 5]] and given["a/b"].dtype == ">f4"
