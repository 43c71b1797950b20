"""Files of parameters: what is saved comes back to the bit, and no file at all can do harm or raise anything but ours."""

from __future__ import annotations

import collections
import io
import itertools
import json
import os
import pickle
import signal
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hostile_files import MEGABYTES, QUICK, SECONDS, damages, memory_limit, refused, time_limit
from hypothesis import given, settings
from hypothesis import strategies as st

import coatref
from coatref.conformance.tensor_files import read_tensors
from coatref.errors import CoatrefError, FileFormatError, InputError, SpecError, WeightsError
from coatref.params import tensor_tree
from coatref.specification import Attention, ConvNeXt, ConvStem, MBConv, Norm, Spec, Transformer
from coatref.specification.fields import LARGEST_JSON, LONGEST_TUPLE
from coatref.specification.parts import LayerScale
from coatref.tree import flatten
from coatref.weights import write
from coatref.weights.files import LARGEST_HEADER, Stored, open_file
from coatref.weights.own_file import SPEC_KEY, VERSION_KEY, spec_of
from coatref.weights.timm import expected as timm_shapes


def micro(name: str) -> Spec:
    """One of the paper's specs with a few hundred parameters, so that a file of it can be spoilt in every place."""
    spec = coatref.spec(name, classes=3, depths=(2, 1, 1, 1, 1))

    def small(run: Any) -> Any:
        if isinstance(run, Transformer):
            window = (1, 1) if run.attention.window else None
            return replace(run, width=2, attention=replace(run.attention, head_size=1, window=window))
        return replace(run, width=2)

    stem, stages = ConvStem(widths=(2, 2)), tuple(tuple(map(small, stage)) for stage in spec.stages)
    return spec.replace(image_size=(32, 32), stem=stem, stages=stages)


def timm_spec(name: str) -> Spec:
    """A small spec of timm's."""
    return coatref.spec(name, image_size=32, classes=3, depths=(1, 1, 1, 1), widths=(64, 64, 64, 64))


MICRO = micro("coatnet_0")
SPECS = [
    MICRO,
    micro("c-t-t-t"),
    micro("coatnet_0/windowed-attention"),
    micro("coatnet_0/linear-attention"),
    timm_spec("timm/coatnet_rmlp_2_rw_224"),  # a bias MLP and layer scales
    timm_spec("timm/coatnext_nano_rw_224"),
]
PARAMS = coatref.init(MICRO, scheme="distinct")


def same(first: coatref.Params, second: coatref.Params) -> bool:
    """Whether two sets of NumPy parameters are the same to the bit, and of the same spec."""
    ours, theirs = first.flatten(), second.flatten()
    return (
        first.spec == second.spec
        and list(ours) == list(theirs)
        and all(ours[name].dtype == theirs[name].dtype for name in ours)
        and all(ours[name].shape == theirs[name].shape for name in ours)
        and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    )


def any_bits(spec: Spec, dtype: str, seed: int) -> coatref.Params:
    """Parameters of random bits: negative zeros, subnormals, infinities and NaN among them."""
    random, kind = np.random.default_rng(seed), np.dtype(dtype)
    shapes = {name: tensor.shape for name, tensor in flatten(tensor_tree(spec))}
    return coatref.init(spec).replace(
        {
            name: np.frombuffer(random.bytes(int(np.prod(shape)) * kind.itemsize), kind).reshape(shape)
            for name, shape in shapes.items()
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's file goes."""
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a right file."""
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    coatref.save(PARAMS, path)
    return path.read_bytes()


def taken_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, however wrong, of a header (bytes, or what JSON is made of) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


# --- what is saved comes back ---


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_saved_comes_back_to_the_bit(path: Path, spec: Spec, dtype: str) -> None:
    params = coatref.init(spec, dtype=dtype, scheme="distinct")
    coatref.save(params, path)
    assert same(coatref.load(path), params)
    assert same(coatref.load(path, spec), params)


@given(st.sampled_from(SPECS[:4]), st.sampled_from(["float16", "float32", "float64"]), st.integers(0, 2**32))
@settings(QUICK, max_examples=25)
def test_any_bits_come_back(tmp_path: Path, spec: Spec, dtype: str, seed: int) -> None:
    params = any_bits(spec, dtype, seed)
    coatref.save(params, tmp_path / "bits.safetensors")
    assert same(coatref.load(tmp_path / "bits.safetensors", allow_non_finite=True), params)
    if not all(np.isfinite(array).all() for array in params.flatten().values()):
        refused(
            partial(coatref.load, tmp_path / "bits.safetensors"), WeightsError, "NaN or infinite", "allow_non_finite"
        )


@given(
    st.text(max_size=200).filter(lambda text: text.isprintable()),
    st.integers(1, 10**6),
    st.floats(1e-12, 10**6),
    st.sampled_from(SPECS),
)
@settings(QUICK, max_examples=50)
def test_any_spec_comes_back(name: str, classes: int, epsilon: float, spec: Spec) -> None:
    """Names with quotes and signs of every script, and floats to the last bit."""
    assert spec.head.norm is not None
    changed = spec.replace(
        name=name, head=replace(spec.head, classes=classes, norm=replace(spec.head.norm, epsilon=epsilon))
    )
    assert spec_of({SPEC_KEY: changed.to_json(), VERSION_KEY: "1"}, "a file") == changed


def test_names_of_every_script_survive_a_file(path: Path) -> None:
    name = 'quote " backslash \\ null \0 snowman \u2603 clef \U0001d11e'
    params = coatref.init(MICRO.replace(name=name))
    coatref.save(params, path)
    assert coatref.load(path).spec.name == name


def test_the_largest_spec_that_there_can_be_comes_back() -> None:
    """Else `save` would write files that `load` refuses."""
    norm, scale = Norm(kind="layer", epsilon=1.2345678901234567e-05), LayerScale(initial=1.2345678901234567e-05)
    run = Transformer(
        depth=1,
        width=10**6,
        stride=1,
        attention=Attention(head_size=10**6),
        attention_norm=norm,
        ffn_norm=norm,
        layer_scale=scale,
    )
    stages = ((MBConv(depth=1, width=10**6),), *((run,) for _ in range(LONGEST_TUPLE - 1)))
    spec = MICRO.replace(stages=stages)
    text = spec.to_json()
    assert 10**6 < len(text) < LARGEST_JSON
    assert Spec.from_json(text) == spec
    names = sum(len(name) + 110 for name, _ in flatten(tensor_tree(spec)))
    assert len(json.dumps(text)) + names < LARGEST_HEADER


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_bfloat16_is_saved_as_float32_exactly(path: Path, library: str) -> None:
    params = PARAMS.to(xp=library, dtype="bfloat16")
    coatref.save(params, path)
    header, _ = taken_apart(path.read_bytes())
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F32"}
    again = coatref.load(path)
    for name, array in params.flatten().items():
        host = array.float().numpy() if library == "torch" else np.asarray(array).astype(np.float32)
        np.testing.assert_array_equal(again.flatten()[name], host)


@pytest.mark.parametrize("library", ["torch", "jax", "array_api_strict"])
def test_params_of_any_library_are_saved(path: Path, library: str) -> None:
    coatref.save(PARAMS.to(xp=library), path)
    assert same(coatref.load(path), PARAMS)


def test_arrays_in_any_order_are_saved_by_value(path: Path) -> None:
    changed = {name: np.asfortranarray(array) for name, array in PARAMS.flatten().items()}
    changed["s0.conv1.w"] = PARAMS["s0"]["conv1"]["w"][::-1, :, ::-1][::-1, :, ::-1]
    coatref.save(PARAMS.replace(changed), path)
    assert same(coatref.load(path), PARAMS)


def test_the_file_is_one_that_safetensors_itself_reads(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    theirs = safetensors.numpy.load_file(path)
    assert theirs.keys() == PARAMS.flatten().keys()
    for name, array in PARAMS.flatten().items():
        np.testing.assert_array_equal(theirs[name], array)
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert metadata == {"coatref.format": "1", "coatref.spec": MICRO.to_json()}


@pytest.mark.parametrize(
    "dtypes", [("float16",), ("bfloat16",), ("float32", "bfloat16"), ("float16", "bfloat16"), ("float64", "float16")]
)
def test_files_that_safetensors_writes_from_torch(path: Path, dtypes: tuple[str, ...]) -> None:
    """bfloat16 and float16 are widened without a change; the widest type is taken where they differ."""
    kinds = itertools.cycle(getattr(torch, dtype) for dtype in dtypes)
    random = np.random.default_rng(0)
    tensors = {
        name: torch.asarray(random.normal(0, 1, array.shape)).to(next(kinds))
        for name, array in PARAMS.flatten().items()
    }
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    params = coatref.load(path, MICRO)
    widest = {("float16",): "float16", ("float64", "float16"): "float64"}.get(dtypes, "float32")
    for name, array in params.flatten().items():
        assert array.dtype == widest and not array.flags.writeable
        np.testing.assert_array_equal(array, tensors[name].to(getattr(torch, widest)).numpy())


def test_every_bit_pattern_of_bfloat16(path: Path) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    safetensors.torch.save_file({"all": bits}, path)
    with open_file(path) as (tensors, _):
        found = tensors["all"].read()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), bits.float().numpy().view(np.uint32))


def test_a_timm_file_with_its_buffers(path: Path) -> None:
    """timm's BatchNorm counters are int64 and of no shape; they are passed over."""
    spec = timm_spec("timm/coatnet_0_rw_224")
    random = np.random.default_rng(1)
    tensors = {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in timm_shapes(spec).items()}
    buffers = {"stem.norm1.num_batches_tracked": np.zeros((), np.int64)}
    safetensors.numpy.save_file(tensors | buffers, path)
    assert same(coatref.load(path, spec), coatref.convert(tensors, spec))
    assert same(coatref.load(path, spec, dialect="timm"), coatref.convert(tensors, spec))


class Named:
    """A path of a class of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, Named])
def test_paths_of_every_kind(path: Path, kind: Callable[[Path], Any]) -> None:
    coatref.save(PARAMS, kind(path))
    assert same(coatref.load(kind(path)), PARAMS)


def test_relative_paths_and_endings_in_capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    coatref.save(PARAMS, "Model.SafeTensors")
    assert same(coatref.load("Model.SafeTensors"), PARAMS)
    assert os.listdir(tmp_path) == ["Model.SafeTensors"]


@pytest.mark.parametrize("wrong", [None, 5, b"model.safetensors", io.BytesIO(), ["model.safetensors"]])
def test_what_is_no_path(wrong: Any) -> None:
    for call in (partial(coatref.load, wrong), partial(coatref.save, PARAMS, wrong)):
        refused(call, InputError, "pathlib.Path", type(wrong).__name__)


def test_links(tmp_path: Path, path: Path) -> None:
    coatref.save(PARAMS, path)
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link.safetensors"
    link.symlink_to(path)
    assert same(coatref.load(link), PARAMS)
    other = coatref.init(MICRO, 7)
    coatref.save(other, link)  # into what the link leads to
    assert link.is_symlink() and same(coatref.load(path), other)
    assert os.listdir(tmp_path / "folder") == ["link.safetensors"]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"link\.safetensors"):
        coatref.load(link)


# --- saving is all or nothing ---


def test_what_is_not_to_be_saved(path: Path) -> None:
    wrong: Any = dict(PARAMS)
    refused(lambda: coatref.save(wrong, path), InputError, "Params", "dict")
    integers = PARAMS.replace({"head.classifier.b": np.zeros(3, np.int64)})
    refused(lambda: coatref.save(integers, path), WeightsError, "head.classifier.b", "int64")
    empty = coatref.init(MICRO, xp="torch", device="meta")
    refused(lambda: coatref.save(empty, path), WeightsError, "s0.conv1.w", "meta")
    assert not path.exists()


@pytest.mark.parametrize(
    "name", ["model", "model.pth", "model.bin", "model.safetensors.tmp", "safetensors", ".safetensors"]
)
def test_save_takes_only_endings_that_load_knows(tmp_path: Path, name: str) -> None:
    parts = "ends in", repr(Path(name).suffix), ".safetensors"
    refused(lambda: coatref.save(PARAMS, tmp_path / name), InputError, *parts)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt(), MemoryError()], ids=repr)
@pytest.mark.parametrize("at", ["writing", "syncing", "moving"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, at: str
) -> None:
    coatref.save(PARAMS, path)
    before, other = path.read_bytes(), coatref.init(MICRO, 7)
    written: list[str] = []

    def fail(file: Any, array: np.ndarray) -> None:
        file.write(b"half a file")
        written.append(Path(file.name).name)
        assert not path.exists() or path.read_bytes() == before
        raise error

    def fail_to_sync(handle: int) -> None:
        written.append("synced")
        raise error

    def fail_to_move(source: Any, target: Any) -> None:
        written.append(Path(source).name)
        raise error

    if at == "writing":
        monkeypatch.setattr(write, "write_bytes", fail)
    elif at == "syncing":
        monkeypatch.setattr(os, "fsync", fail_to_sync)
    else:
        monkeypatch.setattr(os, "replace", fail_to_move)
    with pytest.raises(type(error)):
        coatref.save(other, path)
    assert written and written != [path.name]
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(type(error)):
        coatref.save(other, path)
    assert os.listdir(path.parent) == []
    monkeypatch.undo()
    coatref.save(other, path)
    assert same(coatref.load(path), other)
    assert os.listdir(path.parent) == [path.name]


def test_folders_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        coatref.save(PARAMS, tmp_path / "nowhere" / "model.safetensors")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        coatref.save(PARAMS, tmp_path / "file" / "model.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OSError, match="folder"):
        coatref.save(PARAMS, tmp_path / "folder.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.safetensors"]
    assert os.listdir(tmp_path / "folder.safetensors") == []


def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(PermissionError):
        coatref.save(PARAMS, tmp_path / "locked" / "model.safetensors")


def test_a_saved_file_is_as_open_as_any_new_file(path: Path) -> None:
    coatref.save(PARAMS, path)
    ordinary = path.with_name("ordinary")
    ordinary.write_text("made by open()")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_many_writers_and_readers_of_one_file(path: Path) -> None:
    """Whoever comes first, a reader sees one whole file."""
    ours = [coatref.init(MICRO, seed) for seed in range(4)]
    coatref.save(ours[0], path)
    failures: list[BaseException] = []

    def write(params: coatref.Params) -> None:
        try:
            for _ in range(5):
                coatref.save(params, path)
                found = coatref.load(path)
                assert any(same(found, each) for each in ours)
        except BaseException as error:  # noqa: BLE001 - a thread's errors are told by the test itself
            failures.append(error)

    threads = [threading.Thread(target=write, args=(params,)) for params in ours]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.listdir(path.parent) == [path.name]


def test_a_file_replaced_while_it_is_read(path: Path) -> None:
    coatref.save(PARAMS, path)
    with open_file(path) as (tensors, _):
        coatref.save(coatref.init(MICRO, 7), path)
        for name, array in PARAMS.flatten().items():
            np.testing.assert_array_equal(tensors[name].read(), array)


def test_a_file_cut_while_it_is_read(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    with open_file(path) as (tensors, _):
        os.truncate(path, len(whole) - 1)
        header, _ = taken_apart(whole)
        del header["__metadata__"]
        last = max(header, key=lambda name: header[name]["data_offsets"])
        refused(tensors[last].read, FileFormatError, "cut", last, path.name)


def test_a_tensor_larger_than_the_memory() -> None:
    def fetch() -> np.ndarray:
        raise MemoryError

    refused(Stored("s0.conv1.w", "F32", (2**38,), fetch).read, FileFormatError, "s0.conv1.w", "F32", str(2**38))


# --- what is no file of weights ---


def test_no_such_file(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.pth", "nowhere/model.safetensors", "nul\0.safetensors"):
        with pytest.raises(FileNotFoundError):
            coatref.load(tmp_path / name, MICRO)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_pipes_are_refused_and_do_not_hang(tmp_path: Path, name: str) -> None:
    pipe = tmp_path / name
    os.mkfifo(pipe)
    with time_limit(10, signal.ITIMER_REAL):
        refused(partial(coatref.load, pipe, MICRO), FileFormatError, str(pipe), "regular file")


def test_folders_without_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    for folder in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"none of model\.safetensors, .* in the folder .*; name a file"):
            coatref.load(folder, MICRO)


@pytest.mark.parametrize(
    "name", ["model.npy", "model.json", "model", "model.safetensors.gz", "safetensors", "model.pkl", ".pth", ".npz"]
)
def test_endings_that_are_not_known(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    parts = repr(Path(name).suffix), ".safetensors, ", ".npz, .h5, .hdf5, .keras, .onnx, .pth, .pt, .bin"
    refused(lambda: coatref.load(tmp_path / name, MICRO), InputError, *parts)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"Hello",
        b"A text that is named as a file of weights.\n" * 100,
        b"\x89PNG\r\n\x1a\n" * 10,
        b"\0" * 100,
        b"\xff" * 100,
    ],
    ids=["nothing", "one byte", "five bytes", "text", "image", "zeros", "ones"],
)
@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".bin"])
def test_files_of_something_else(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    refused(lambda: coatref.load(path, MICRO), FileFormatError, str(path))


def test_a_file_that_carries_no_spec(path: Path) -> None:
    safetensors.numpy.save_file(dict(PARAMS.flatten()), path)
    refused(lambda: coatref.load(path), InputError, str(path), "spec=...", "coatref.specs()")
    assert same(coatref.load(path, MICRO), PARAMS)
    with pytest.raises(coatref.UnknownSpecError):
        coatref.load(path, "coatnet_9")
    refused(lambda: coatref.load(path, "timm/coatnet_0_rw_224"), WeightsError, "timm/coatnet_0_rw_224")


def test_a_file_that_carries_another_spec(path: Path) -> None:
    coatref.save(PARAMS, path)
    parts = str(path), "'coatnet_0'", "'coatnet_1'", "leave spec out"
    refused(lambda: coatref.load(path, "coatnet_1"), SpecError, *parts)


@pytest.mark.parametrize("version", ["2", "", "1.0", "one", "9" * 100000])
def test_a_file_of_another_format(path: Path, whole: bytes, version: str) -> None:
    header, data = taken_apart(whole)
    header["__metadata__"][VERSION_KEY] = version
    path.write_bytes(put_together(header, data))
    refused(lambda: coatref.load(path), FileFormatError, str(path), "format", "upgrade")
    del header["__metadata__"][VERSION_KEY]
    path.write_bytes(put_together(header, data))
    refused(lambda: coatref.load(path), FileFormatError, "None", "upgrade")


@pytest.mark.parametrize("name", ["model.npz", "model.pth", "model"])
def test_tensors_are_exchanged_in_one_format(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "model.npz", a=np.zeros(3))
    refused(lambda: read_tensors(tmp_path / name), FileFormatError, name, repr(Path(name).suffix), ".safetensors")


# --- damaged safetensors files ---


def test_a_file_cut_anywhere(path: Path, whole: bytes) -> None:
    header, data = taken_apart(whole)
    start = len(whole) - len(data)
    edges = {start + edge for name, entry in header.items() if name != "__metadata__" for edge in entry["data_offsets"]}
    cuts = {*range(16), *range(16, start, 61), *(edge + step for edge in edges for step in (-1, 0, 1))}
    cuts = {cut for cut in cuts if 0 <= cut < len(whole)}
    assert len(cuts) > 200
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        refused(lambda: coatref.load(path), FileFormatError, str(path), "fetch it again")


def test_a_file_with_something_behind_it(path: Path, whole: bytes) -> None:
    for more in (b"\0", b"\0" * 4, whole):
        path.write_bytes(whole + more)
        refused(lambda: coatref.load(path), FileFormatError, f"{len(whole + more)} bytes")


def taken_or_refused(path: Path, spec: Spec | None = None) -> None:
    """Load a damaged file: it is refused by an error of ours, or still holds what the network takes."""
    try:
        params = coatref.load(path, spec)
    except CoatrefError as error:
        assert 30 < len(str(error)) < 2000
    else:
        shapes = {name: array.shape for name, array in params.flatten().items()}
        assert shapes == {name: array.shape for name, array in PARAMS.flatten().items()}


@given(st.lists(damages(), min_size=1, max_size=3))
@settings(QUICK, max_examples=250)
def test_damage_is_seen_or_harmless(tmp_path: Path, whole: bytes, damage: list[Callable[[bytes], bytes]]) -> None:
    content = whole
    for each in damage:
        content = each(content)
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    taken_or_refused(path)


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(QUICK, max_examples=250)
def test_one_byte_changed_in_the_header(tmp_path: Path, whole: bytes, position: int, change: int) -> None:
    content = bytearray(whole)
    content[position % (len(whole) - len(taken_apart(whole)[1]))] ^= change
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    taken_or_refused(path)


# --- hostile safetensors headers ---


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    """One tensor in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


F = b'"dtype":"F32","shape":[1],"data_offsets":[0,4]'
HEADERS: dict[str, tuple[bytes, str]] = {
    "length of 2**63": (put_together({}, length=2**63), str(2**63)),
    "length of 2**64 - 1": (put_together({}, length=2**64 - 1), str(2**64 - 1)),
    "length of 2**32": (put_together({}, length=2**32), str(2**32)),
    "length one too long": (put_together({"a": entry()}, length=200), "200"),
    "length one too short": (put_together(b"{} ", length=1), "JSON"),
    "no header": (put_together(b""), "JSON"),
    "a long header": (put_together(b"{" + b" " * LARGEST_HEADER + b"}"), f"{LARGEST_HEADER} allowed"),
    "not JSON": (put_together(b"{'a': 1}"), "JSON"),
    "not UTF-8": (put_together(b'{"\xff": 1}'), "JSON"),
    "a list": (put_together([]), "list"),
    "a number": (put_together(b"1"), "int"),
    "a text": (put_together(b'"{}"'), "str"),
    "null": (put_together(b"null"), "NoneType"),
    "brackets": (put_together(b"[" * 10**5), "JSON"),
    "braces": (put_together(b'{"a":' * 10**5), "JSON"),
    "a long number": (put_together(b'{"a":' + b"1" * 10**5 + b"}"), "JSON"),
    "a name twice": (put_together(b'{"a":{%b},"a":{%b}}' % (F, F), bytes(4)), "repeats a key"),
    "metadata twice": (put_together(b'{"__metadata__":{},"__metadata__":{},"a":{%b}}' % F, bytes(4)), "repeats a key"),
    "a shape twice": (put_together(b'{"a":{"shape":[1],%b}}' % F, bytes(4)), "repeats a key"),
    "an entry that is a list": (put_together({"a": [1]}), "'a'"),
    "an entry that is a text": (put_together({"a": "dtype shape data_offsets"}), "'a'"),
    "an entry that is null": (put_together({"a": None}), "'a'"),
    "an entry without a type": (put_together({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "lacks"),
    "an entry without a shape": (put_together({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), "lacks"),
    "an entry without a place": (put_together({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "lacks"),
    "one offset": (put_together({"a": entry(offsets=[4])}, bytes(4)), "lacks"),
    "three offsets": (put_together({"a": entry(offsets=[0, 4, 8])}, bytes(4)), "lacks"),
    "offsets that are a number": (put_together({"a": entry(offsets=4)}, bytes(4)), "lacks"),
    "offsets that are an object": (put_together({"a": entry(offsets={"0": 0, "4": 4})}, bytes(4)), "place"),
    "overlap": (put_together({"a": entry(), "b": entry()}, bytes(4)), "starts at byte"),
    "overlap in part": (put_together({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)), "starts at byte"),
    "a hole at the start": (put_together({"a": entry(offsets=[4, 8])}, bytes(8)), "starts at byte"),
    "a hole in the middle": (put_together({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)), "starts at byte"),
    "bytes at the end": (put_together({"a": entry()}, bytes(8)), "tells of"),
    "bytes and no tensor": (put_together({}, bytes(8)), "tells of"),
    "beyond the file": (put_together({"a": entry()}, bytes(3)), "tells of"),
    "far beyond the file": (put_together({"a": entry(shape=[2**40], offsets=[0, 2**42])}, bytes(4)), "tells of"),
    "negative offsets": (put_together({"a": entry(offsets=[-4, 0])}, bytes(4)), "-4"),
    "offsets in reverse": (put_together({"a": entry(offsets=[4, 0])}, bytes(4)), "from 4 to 0"),
    "float offsets": (put_together({"a": entry(offsets=[0.0, 4.0])}, bytes(4)), "4.0"),
    "offsets that are true": (put_together({"a": entry("U8", [1], [False, True])}, bytes(1)), "True"),
    "offsets that are texts": (put_together({"a": entry(offsets=["0", "4"])}, bytes(4)), "'4'"),
    "NaN offsets": (put_together(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[NaN,Infinity]}}', bytes(4)), "nan"),
    "huge offsets": (put_together({"a": entry(offsets=[10**30, 10**30 + 4])}, bytes(4)), "place"),
    "a shape too large": (put_together({"a": entry(shape=[2])}, bytes(4)), "takes 8 bytes"),
    "a shape too small": (put_together({"a": entry(shape=[1, 0])}, bytes(4)), "takes 0 bytes"),
    "a shape of 2**64": (put_together({"a": entry(shape=[2**32, 2**32], offsets=[0, 0])}), "shape"),
    "a shape of 2**65": (put_together({"a": entry(shape=[2**62, 2], offsets=[0, 0])}), "shape"),
    "a shape of 4 * 2**64 + 4": (put_together({"a": entry("U8", [2**62, 5], [0, 2**62])}, bytes(4)), "shape"),
    "a shape of 2**62 and 0": (put_together({"a": entry(shape=[2**62, 0], offsets=[0, 0])}), "shape"),
    "a shape of 2**60": (put_together({"a": entry(shape=[2**30, 2**28], offsets=[0, 0])}), "takes 1.153e+18 bytes"),
    "a shape with 2**64": (put_together({"a": entry(shape=[2**64], offsets=[0, 0])}), "shape"),
    "a negative shape": (put_together({"a": entry(shape=[-1, -1])}, bytes(4)), "shape"),
    "a float shape": (put_together({"a": entry(shape=[1.0])}, bytes(4)), "shape"),
    "a shape of true": (put_together({"a": entry(shape=[True])}, bytes(4)), "shape"),
    "a shape of texts": (put_together({"a": entry(shape=["1"])}, bytes(4)), "shape"),
    "a shape that is a number": (put_together({"a": entry(shape=1)}, bytes(4)), "shape"),
    "a shape that is null": (put_together({"a": entry(shape=None)}, bytes(4)), "shape"),
    "a shape of 100 axes": (put_together({"a": entry(shape=[1] * 100)}, bytes(4)), "8 whole numbers"),
    "a shape of 100,000 axes": (put_together({"a": entry(shape=[1] * 10**5)}, bytes(4)), "8 whole numbers"),
    "an unknown type": (put_together({"a": entry("F31")}, bytes(4)), "'F31'"),
    "an 8-bit type": (put_together({"a": entry("F8_E4M3", [4])}, bytes(4)), "'F8_E4M3'"),
    "a type in small letters": (put_together({"a": entry("f32")}, bytes(4)), "'f32'"),
    "a NumPy type": (put_together({"a": entry("<f4")}, bytes(4)), "'<f4'"),
    "an object type": (put_together({"a": entry("O", [1], [0, 8])}, bytes(8)), "'O'"),
    "a type that is a list": (put_together({"a": entry(["F32"])}, bytes(4)), "F32"),
    "a type that is null": (put_together({"a": entry(None)}, bytes(4)), "None"),
    "a long type": (put_together({"a": entry("F" * 10**6)}, bytes(4)), "FFFF"),
    "a long name": (put_together({"n" * 10**6: entry("F31")}, bytes(4)), "nnnn"),
    "metadata that is a list": (put_together({"__metadata__": []}), "metadata"),
    "metadata that is a text": (put_together({"__metadata__": "spec"}), "metadata"),
    "metadata of numbers": (put_together({"__metadata__": {"coatref.spec": 1}}), "metadata"),
    "metadata of objects": (put_together({"__metadata__": {"coatref.spec": {}}}), "metadata"),
    "metadata that is null": (put_together({"__metadata__": {"coatref.spec": None}}), "metadata"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_hostile_header(path: Path, what: str) -> None:
    content, part = HEADERS[what]
    path.write_bytes(content)
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: coatref.load(path, MICRO), FileFormatError, str(path), part, "safetensors file")


def test_headers_that_are_odd_and_right(path: Path, whole: bytes) -> None:
    """Spaces behind the header, which safetensors itself pads with, other metadata, and tensors in any order."""
    header, data = taken_apart(whole)
    header["__metadata__"] |= {"more": "text"}
    changed = dict(reversed(header.items()))
    path.write_bytes(put_together(json.dumps(changed, indent=3).encode() + b"   ", data))
    assert same(coatref.load(path), PARAMS)


@pytest.mark.parametrize("size", [2**30, 2**36])
def test_a_small_file_that_seems_to_be_large(path: Path, size: int) -> None:
    """A sparse file takes no room on the disk; it is refused by its shapes, before anything is read."""
    header, _ = taken_apart(put_together({"s0.conv1.w": entry(shape=[size // 4], offsets=[0, size])}))
    content = put_together(header)
    path.write_bytes(content)
    try:
        os.truncate(path, len(content) + size)
    except OSError:
        pytest.skip("no sparse files here")
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: coatref.load(path, MICRO), WeightsError, "misshapen: s0.conv1.w", str(size // 4))
    changed = put_together({"__metadata__": {SPEC_KEY: MICRO.to_json(), VERSION_KEY: "1"}} | header)
    path.write_bytes(changed)
    os.truncate(path, len(changed) + size)
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: coatref.load(path), WeightsError, "misshapen: s0.conv1.w", str(size // 4))


def test_headers_of_many_small_things(path: Path) -> None:
    """What JSON takes in memory is bounded by its length, and that by the largest header."""
    for filling in (b'{"a":[' + b"{}," * 200_000 + b"{}]}", b'{"a":[' + b"[]," * 200_000 + b"[]]}"):
        path.write_bytes(put_together(filling))
        with time_limit(SECONDS), memory_limit(MEGABYTES):
            refused(lambda: coatref.load(path, MICRO), FileFormatError, "'a'")


def test_many_tensors(path: Path) -> None:
    names = {f"{'n' * 80}{index}": entry(shape=[0], offsets=[0, 0]) for index in range(5_000)}
    path.write_bytes(put_together(names))
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: coatref.load(path, timm_spec("timm/coatnet_0_rw_224")), WeightsError, "4992 more")
    path.write_bytes(put_together({"n" * 10**6: entry(shape=[0], offsets=[0, 0])}))
    refused(lambda: coatref.load(path, MICRO), WeightsError, "nnnn", "200 characters")


# --- hostile specs in a file ---


def with_spec(whole: bytes, text: str) -> bytes:
    """A right file with another spec."""
    header, data = taken_apart(whole)
    header["__metadata__"][SPEC_KEY] = text
    return put_together(header, data)


GOOD = MICRO.to_json()
SPECS_IN_FILES: dict[str, str] = {
    "nothing": "",
    "no JSON": "CoAtNet-0",
    "half of it": GOOD[: len(GOOD) // 2],
    "two of it": GOOD + GOOD,
    "null": "null",
    "a number": "5",
    "a text": json.dumps(GOOD),
    "a list": f"[{GOOD}]",
    "NaN": "NaN",
    "brackets": "[" * 10**5,
    "closed brackets": "[" * 10**5 + "]" * 10**5,
    "braces": '{"name":' * 10**5,
    "brackets in a field": GOOD.replace('"channels": 3', f'"channels": {"[" * 10**5}{"]" * 10**5}'),
    "a million characters": " " * 10**6 + "x",
    "four million spaces": GOOD + " " * (4 * 10**6),
    "a long name": GOOD.replace('"coatnet_0"', '"' + "n" * 10**6 + '"'),
    "half a surrogate pair": GOOD.replace('"coatnet_0"', '"\\ud800"'),
    "a long kind": GOOD.replace('"mbconv"', '"' + "n" * 10**6 + '"', 1),
    "a long list": GOOD.replace("[32, 32]", "[" + "32, " * 10**5 + "32]"),
    "many stages": GOOD.replace('"stages": [', '"stages": [' + "[]," * 10**5),
    "an unknown field": GOOD.replace('"channels"', '"chanels"'),
    "an unknown field of a million characters": GOOD.replace('"channels"', '"' + "c" * 10**6 + '"'),
    "many unknown fields": "{" + ",".join(f'"f{index}": 1' for index in range(10**5)) + "}",
    "an unknown field of a part": GOOD.replace('"kernel"', '"kernal"'),
    "a field twice": GOOD.replace('"channels": 3', '"channels": 3, "channels": 3'),
    "a field of a part twice": GOOD.replace('"kernel": 3', '"kernel": 3, "kernel": 3'),
    "a field missing": GOOD.replace(f'"stages": {json.dumps(json.loads(GOOD)["stages"])}, ', ""),
    "another kind": GOOD.replace('"transformer"', '"lstm"'),
    "no kind": GOOD.replace('"kind": "transformer", ', ""),
    "a kind that is a list": GOOD.replace('"transformer"', "[[]]"),
    "a choice that is none": GOOD.replace('"same"', '"valid"', 1),
    "an image without meaning": GOOD.replace("[32, 32]", "[0, 32]"),
    "an int of 5000 digits": GOOD.replace('"channels": 3', '"channels": ' + "3" * 5000),
    "an int of 400 digits for a float": GOOD.replace('"expansion": 4.0', '"expansion": ' + "4" * 400),
    "more blocks than allowed": GOOD.replace('"depth": 1', '"depth": 1001', 1),
}


def test_the_hostile_specs_differ_from_the_good_one() -> None:
    assert GOOD not in SPECS_IN_FILES.values() and len(set(SPECS_IN_FILES.values())) == len(SPECS_IN_FILES)


@pytest.mark.parametrize("what", SPECS_IN_FILES)
def test_a_hostile_spec(path: Path, whole: bytes, what: str) -> None:
    path.write_bytes(with_spec(whole, SPECS_IN_FILES[what]))
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: coatref.load(path), FileFormatError, str(path), "spec")


def test_a_spec_of_ten_million_characters(path: Path, whole: bytes) -> None:
    path.write_bytes(with_spec(whole, "x" * 10**7))
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: coatref.load(path), FileFormatError, str(path), "allowed")


@pytest.mark.parametrize("depth", [*range(100, 1000, 100), *range(900, 1000, 3)])
def test_nesting_just_deep_enough_to_be_read(path: Path, whole: bytes, depth: int) -> None:
    """What the JSON reader can still read may be too deep for whatever looks at it next."""
    text = GOOD.replace('"channels": 3', f'"channels": {"[" * depth}{"]" * depth}')
    path.write_bytes(with_spec(whole, text))
    refused(lambda: coatref.load(path), FileFormatError, str(path), "spec")


def places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value, as a container and a key or index in it."""
    items: Any = list(plain.items()) if isinstance(plain, dict) else list(enumerate(plain))
    for key, value in items:
        yield plain, key
        if isinstance(value, (dict, list)):
            yield from places(value)


HOSTILE_VALUES = [None, True, 0, -1, 1.5, 10**6, 10**6 + 1, 10**30, 10**400, 1e308, "NaN", "Infinity", "-Infinity", "x"]
HOSTILE_VALUES += [[], {}, [[]], [0] * 1001, {"kind": "mbconv"}, "\ud800", "n" * 10**4]  # type: ignore[list-item]


def test_every_place_of_a_spec_with_every_hostile_value() -> None:
    """Each is refused, or gives a spec; the words "NaN" and so on stand for the numbers that JSON readers know."""
    scale = LayerScale(initial=1e-5)
    spec = Spec(
        name="a block of each kind",
        image_size=(16, 16),
        stem=ConvStem(widths=(2, 2)),
        stages=(
            (MBConv(depth=1, width=2, layer_scale=scale), ConvNeXt(depth=1, width=2, stride=1, layer_scale=scale)),
            (Transformer(depth=1, width=2, attention=Attention(head_size=1)),),
        ),
    )
    plain = json.loads(spec.to_json())
    refusals = readings = 0
    for container, key in places(plain):
        right = container[key]
        for value in HOSTILE_VALUES:
            container[key] = value
            text = json.dumps(plain)
            if value in ("NaN", "Infinity", "-Infinity"):
                text = text.replace(f'"{value}"', str(value))
            try:
                found = spec_of({SPEC_KEY: text, VERSION_KEY: "1"}, "a file")
            except FileFormatError as error:
                assert len(str(error)) < 2000
                refusals += 1
            else:
                assert isinstance(found, Spec) and Spec.from_json(found.to_json()) == found
                readings += 1
        container[key] = right
    assert json.dumps(plain) == json.dumps(json.loads(spec.to_json()))
    assert refusals > 1500 and readings > 100


def grown(stem: dict[str, Any] | None = None, **changes: Any) -> str:
    """The spec with every field of these names changed, wherever it stands, and some of the stem's."""
    plain = json.loads(GOOD)
    for container, key in list(places(plain)):
        if key in changes:
            container[key] = changes[key]
    plain["stem"] |= stem or {}
    return json.dumps(plain)


WIDE: dict[str, Any] = {"width": 10**6, "stem": {"widths": [10**6, 10**6]}}
ABSURD: dict[str, str] = {
    "widths": grown(**WIDE),
    "widths and expansions": grown(**WIDE, expansion=10**6),
    "depths": grown(depth=250),
    "depths and widths": grown(**WIDE, depth=250),
    "classes": grown(classes=10**6),
    "an image": grown(image_size=[10**6, 10**6]),
    "kernels": grown(kernel=999_999),
    "channels": grown(channels=10**6),
    "convolutions of the stem": grown(stem={"widths": [10**6] * 1000, "bias": [True] * 1000}),
    "everything": grown(**WIDE, depth=250, expansion=10**6, kernel=999_999, classes=10**6, image_size=[10**6, 10**6]),
}


@pytest.mark.parametrize("what", ABSURD)
def test_a_spec_that_asks_for_more_than_the_file_holds(path: Path, whole: bytes, what: str) -> None:
    """Names and shapes are compared first; nothing of the size that the spec asks for is ever allocated."""
    path.write_bytes(with_spec(whole, ABSURD[what]))
    assert isinstance(spec_of({SPEC_KEY: ABSURD[what], VERSION_KEY: "1"}, "a file"), Spec)
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: coatref.load(path), WeightsError, "misshapen" if what != "depths" else "missing")


def test_a_spec_whose_image_no_size_can_replace(path: Path, whole: bytes) -> None:
    plain = json.loads(GOOD)
    block = plain["stages"][2][0] | {"stride": 1}
    block["attention"] = block["attention"] | {"form": "windowed", "window": [999_983, 999_979]}
    plain["stages"] = [[plain["stages"][0][0] | {"stride": 1}] * 999, [block]]
    path.write_bytes(with_spec(whole, json.dumps(plain)))
    with time_limit(SECONDS):
        refused(lambda: coatref.load(path), FileFormatError, str(path), "windows")


def test_a_right_spec_and_other_tensors(path: Path, whole: bytes) -> None:
    header, _ = taken_apart(whole)
    path.write_bytes(put_together({"__metadata__": header["__metadata__"]}))
    refused(lambda: coatref.load(path), WeightsError, "missing: s0.conv1.w")
    tensors = dict(PARAMS.flatten())
    metadata = header["__metadata__"]
    gone = tensors.pop("s4.0.attn.q.w")
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    refused(lambda: coatref.load(path), WeightsError, "missing: s4.0.attn.q.w (2, 2)")
    safetensors.numpy.save_file(tensors | {"s4.0.attn.q.w": gone[:1]}, path, metadata=metadata)
    refused(lambda: coatref.load(path), WeightsError, "s4.0.attn.q.w (expected (2, 2), found (1, 2))")
    safetensors.numpy.save_file(tensors | {"s4.0.attn.q.w": gone, "more": gone}, path, metadata=metadata)
    refused(lambda: coatref.load(path), WeightsError, "surplus: more (2, 2)")
    for dtype in ("int32", "uint32", "bool"):
        safetensors.numpy.save_file(tensors | {"s4.0.attn.q.w": gone.astype(dtype)}, path, metadata=metadata)
        refused(lambda: coatref.load(path), WeightsError, "s4.0.attn.q.w", dtype)
    safetensors.numpy.save_file(tensors | {"s4.0.attn.q.w": gone}, path, metadata=metadata)
    assert same(coatref.load(path), PARAMS)


# --- torch's files ---


def state_dict() -> dict[str, torch.Tensor]:
    """The parameters as torch tensors."""
    return {name: torch.asarray(array.copy()) for name, array in PARAMS.flatten().items()}


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".PTH"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_state_dict(tmp_path: Path, ending: str, zipped: bool) -> None:
    path = tmp_path / f"model{ending}"
    for content in (
        state_dict(),
        collections.OrderedDict(state_dict()),
        {"state_dict": state_dict(), "epoch": 3},
        {"model": state_dict(), "arguments": {"lr": 0.1}},
    ):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert same(coatref.load(path, MICRO), PARAMS)


def test_a_torch_file_of_halves(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    halves = {name: tensor.bfloat16() for name, tensor in state_dict().items()}
    torch.save(halves, path)
    for name, array in coatref.load(path, MICRO).flatten().items():
        np.testing.assert_array_equal(array, halves[name].float().numpy())


def test_a_torch_file_carries_no_spec(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "model.pth")
    refused(lambda: coatref.load(tmp_path / "model.pth"), InputError, "model.pth", "spec=...")


class Runs:
    """What, unpickled, would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["alone", "beside", "key", "state_dict"])
def test_a_file_that_would_run_code_runs_none(tmp_path: Path, zipped: bool, place: str) -> None:
    path, made = tmp_path / "model.pth", tmp_path / "made"
    content: Any = {
        "alone": Runs(made),
        "beside": state_dict() | {"extra": Runs(made)},
        "key": {(1, Runs(made)): 1},
        "state_dict": {"state_dict": state_dict(), "more": [Runs(made)]},
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(lambda: coatref.load(path, MICRO), FileFormatError, str(path), "weights only", "refused")
    assert not made.exists()
    with path.open("rb") as file:  # the file is what it is meant to be
        torch.load(file, weights_only=False)
    assert made.is_dir()


def test_a_bare_pickle_runs_no_code(tmp_path: Path) -> None:
    for name in ("model.pth", "model.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Runs(tmp_path / "made")))
        refused(partial(coatref.load, tmp_path / name, MICRO), FileFormatError, name)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([torch.zeros(3)], "list"),
        (torch.zeros(3), "Tensor"),
        (5, "int"),
        ("state_dict", "str"),
        ({"a": 5}, "int under 'a'"),
        ({1: torch.zeros(3)}, "Tensor under 1"),
        ({"a": torch.zeros(3), "epoch": 7}, "int under 'epoch'"),
        ({"state_dict": {"a": {"b": torch.zeros(3)}}}, "dict under 'a'"),
        ({"n" * 10**5: 5}, "int under a key that is a str"),
    ],
)
def test_a_torch_file_of_something_else(tmp_path: Path, content: Any, part: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    refused(lambda: coatref.load(tmp_path / "model.pth", MICRO), FileFormatError, "model.pth", part)


def test_a_whole_model_in_a_torch_file(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 3), tmp_path / "model.pth")
    refused(lambda: coatref.load(tmp_path / "model.pth", MICRO), FileFormatError, "model.pth", "asks for 'torch.nn")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_cut_anywhere(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save(state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for cut in (*range(4), *range(4, len(content), len(content) // 40), len(content) - 1):
        path.write_bytes(content[:cut])
        refused(lambda: coatref.load(path, MICRO), FileFormatError, str(path))


@given(st.lists(damages(), min_size=1, max_size=2), st.booleans())
@settings(QUICK, max_examples=60)
def test_damage_of_a_torch_file_is_seen_or_harmless(
    tmp_path: Path, damage: list[Callable[[bytes], bytes]], zipped: bool
) -> None:
    path = tmp_path / "damaged.pth"
    torch.save(state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for each in damage:
        content = each(content)
    path.write_bytes(content)
    taken_or_refused(path, MICRO)


def test_an_archive_that_unpacks_to_more_than_itself(tmp_path: Path) -> None:
    """torch stores its tensors uncompressed; a small file of a large tensor is a trap."""
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"a": torch.zeros(2**22)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    assert packed.stat().st_size < 2**20
    refused(lambda: coatref.load(packed, MICRO), FileFormatError, "packed.pth", "would unpack to")


def test_a_torch_file_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = tmp_path / "model.pth"
    torch.save(state_dict(), path)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert same(coatref.load(path, MICRO), PARAMS)
