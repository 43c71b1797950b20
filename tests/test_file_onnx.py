"""Initialisers of ONNX files: what onnx and torch write comes back to the bit, and no file at all does harm."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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
from onnx import TensorProto, helper, numpy_helper

from coatref.errors import FileFormatError
from coatref.weights.files import open_file
from coatref.weights.files.disk import opened
from coatref.weights.files.onnx_file import LARGEST, graph_of, right_operands
from coatref.weights.files.protobuf import MOST_FIELDS, varints

random = np.random.default_rng(0)
W, B = random.normal(size=(3, 5)).astype("f4"), random.normal(size=5).astype("f4")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "model.onnx"


def model(initializers: list[TensorProto], nodes: list[Any] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(nodes or [], "graph", [], [], initializers)
    return helper.make_model(graph, producer_name="test")


def written(path: Path, content: onnx.ModelProto) -> Path:
    path.write_bytes(content.SerializeToString())
    return path


# --- what onnx writes ---


@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays("<"), max_size=5))
@settings(QUICK, max_examples=80)
def test_any_arrays_come_back(tmp_path: Path, given: dict[str, np.ndarray]) -> None:
    path = written(
        tmp_path / "any.onnx", model([numpy_helper.from_array(array, name) for name, array in given.items()])
    )
    same_bits(read_all(path), given)
    with open_file(path) as (tensors, metadata):
        assert metadata == {} and list(tensors) == list(given)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("FLOAT", "F32"), ("DOUBLE", "F64"), ("FLOAT16", "F16"), ("BFLOAT16", "BF16"), ("BOOL", "BOOL")),
        *((f"{sign}INT{bits}", f"{sign or 'I'}{bits}") for sign in ("U", "") for bits in (8, 16, 32, 64)),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
def test_every_type_raw_and_as_numbers(path: Path, kind: str, name: str, raw: bool) -> None:
    """Numbers that are not raw are varints, negative ones of 64 bits; floats of 16 bits are the numbers that their bits are."""
    values = {"B": [0, 1, 1, 0, 1, 1], "U": [0, 1, 2, 100, 127, 3]}.get(
        kind[: 1 + (kind[:2] == "BF")], [0, -1, 2, -100, 127, -3]
    )
    tensor = helper.make_tensor("a", getattr(TensorProto, kind), (2, 3), values)
    if raw:
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor), "a")
    assert tensor.HasField("raw_data") == raw
    found = read_all(written(path, model([tensor])))["a"]
    assert found.ravel().tolist() == values and found.shape == (2, 3)
    with open_file(path) as (tensors, _):
        assert tensors["a"].dtype == name


def test_shapes_of_no_axis_and_of_no_number(path: Path) -> None:
    given = {"scalar": np.array(1.5, "f4"), "none": np.zeros((0, 3), "f4")}
    same_bits(
        read_all(written(path, model([numpy_helper.from_array(array, name) for name, array in given.items()]))), given
    )
    same_bits(
        read_all(written(path, model([helper.make_tensor("none", TensorProto.FLOAT, (0, 3), [])]))),
        {"none": given["none"]},
    )


def test_other_types_are_passed_over(path: Path) -> None:
    text = helper.make_tensor("text", TensorProto.STRING, (1,), np.array([b"abc"]))
    complex_one = helper.make_tensor("complex", TensorProto.COMPLEX64, (1,), np.array([1j]))
    assert list(read_all(written(path, model([text, numpy_helper.from_array(W, "w"), complex_one])))) == ["w"]


def test_onnx_is_not_needed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path, model([numpy_helper.from_array(W, "w")]))
    monkeypatch.setitem(sys.modules, "onnx", None)
    same_bits(read_all(path), {"w": W})


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.deep)])
def test_what_torch_exports(path: Path, dynamo: bool) -> None:
    """A dense layer after a convolution's output of several axes becomes a product from the right, (C, D) in the file."""
    torch: Any = pytest.importorskip("torch")
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 2),
        torch.nn.Flatten(2),
        torch.nn.Linear(12, 5),
        torch.nn.Flatten(1),
        torch.nn.Linear(20, 7),
    )
    images = torch.randn(2, 3, 4, 5)
    options: dict[str, Any] = {"dynamo": True, "verbose": False} if dynamo else {"dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (images,), str(path), **options)
    found, right = read_all(path), {name: value.numpy() for name, value in module.state_dict().items()}
    named = {name: array for name, array in found.items() if name in right}
    assert {"0.weight", "0.bias", "4.weight", "4.bias"} <= named.keys()
    same_bits(named, {name: right[name] for name in named})


# --- products from the right ---


def graph_with(*nodes: Any) -> onnx.ModelProto:
    names = ["layer.weight", "layer.w", "square.weight", "conv.weight"]
    values = [W, W, random.normal(size=(4, 4)).astype("f4"), random.normal(size=(5, 3, 1, 2)).astype("f4")]
    return model([numpy_helper.from_array(value, name) for name, value in zip(names, values, strict=True)], list(nodes))


def right_of(path: Path) -> frozenset[str]:
    with contextlib.ExitStack() as held:
        return right_operands(graph_of(opened(path, held)))


@pytest.mark.parametrize("name", ["layer.weight", "square.weight"])
@pytest.mark.parametrize(
    ("kind", "place", "options", "turned"),
    [
        ("MatMul", 1, {}, True),
        ("MatMul", 0, {}, False),
        ("Gemm", 1, {}, True),
        ("Gemm", 1, {"transB": 0}, True),
        ("Gemm", 1, {"transB": 1}, False),
        ("Gemm", 1, {"transA": 1, "alpha": 2.0}, True),
        ("Gemm", 0, {}, False),
        ("Gemm", 2, {}, False),
        ("Add", 1, {}, False),
        ("Transpose", 0, {"perm": [1, 0]}, False),
    ],
)
def test_which_matrices_are_turned(
    path: Path, name: str, kind: str, place: int, options: dict[str, Any], turned: bool
) -> None:
    inputs = ["x", "y", "z"][: {"MatMul": 2, "Gemm": 3, "Add": 2, "Transpose": 1}[kind]]
    inputs[place] = name
    content = graph_with(helper.make_node(kind, inputs, ["out"], **options))
    written(path, content)
    stored = {each.name: numpy_helper.to_array(each) for each in content.graph.initializer}
    assert (name in right_of(path)) == turned
    same_bits(read_all(path), stored | ({name: stored[name].T} if turned else {}))


def test_a_matrix_with_two_uses_is_not_turned(path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "layer.weight"], ["y"]),
        helper.make_node("Add", ["layer.weight", "z"], ["v"]),
    ]
    written(path, graph_with(*nodes))
    same_bits({"w": read_all(path)["layer.weight"]}, {"w": W})


def test_only_weights_of_torch_are_turned(path: Path) -> None:
    """Our own dense layers, and TensorFlow's, are (C, D) as they are."""
    written(path, graph_with(helper.make_node("MatMul", ["x", "layer.w"], ["y"])))
    assert right_of(path) == {"layer.w"}
    same_bits({"w": read_all(path)["layer.w"]}, {"w": W})


# --- values in other files ---


def external(path: Path, **entries: str) -> Path:
    """A model whose one initialiser, (3, 5), is in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(3, 5), data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return written(path, model([tensor]))


def test_values_beside_the_model(path: Path) -> None:
    given = {"w": W, "b": B, "h": B.astype("f2")}
    content = model([numpy_helper.from_array(array, name) for name, array in given.items()])
    onnx.save_model(content, str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    assert path.stat().st_size < 500
    same_bits(read_all(path), given)
    onnx.save_model(
        model([numpy_helper.from_array(array, name) for name, array in given.items()]),
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    same_bits(read_all(path), given)


def test_places_without_an_offset_or_length(path: Path) -> None:
    (path.parent / "data").write_bytes(W.tobytes())
    same_bits(read_all(external(path, location="data")), {"w": W})
    (path.parent / "data").write_bytes(b"before" + W.tobytes() + b"behind")
    same_bits(read_all(external(path, location="data", offset="6", length="60", checksum="x")), {"w": W})


OUTSIDE: dict[str, tuple[dict[str, str], str]] = {
    "no location": ({}, "plain name"),
    "a path": ({"location": "folder/data"}, "plain name"),
    "a path upwards": ({"location": "../data"}, "plain name"),
    "an absolute path": ({"location": "/etc/passwd"}, "plain name"),
    "a folder": ({"location": "."}, "plain name"),
    "a drive": ({"location": "C:data"}, "plain name"),
    "zeros": ({"location": "data\0"}, "plain name"),
    "an offset of less than nothing": ({"location": "data", "offset": "-4"}, "'-4'"),
    "an offset that is no number": ({"location": "data", "offset": "0x4"}, "'0x4'"),
    "an offset in other digits": ({"location": "data", "offset": "\u0664"}, "number of bytes"),
    "an offset of many digits": ({"location": "data", "offset": "9" * 1000}, "number of bytes"),
    "an offset beyond": ({"location": "data", "offset": "4"}, "from 4 on of data, which has 60"),
    "an offset far beyond": ({"location": "data", "offset": "9" * 18}, "1e+18"),
    "a length too small": ({"location": "data", "length": "59"}, "have 59"),
    "a length too large": ({"location": "data", "length": "61"}, "have 61"),
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_places_outside(path: Path, what: str) -> None:
    for folder in (path.parent, path.parent.parent):
        (folder / "data").write_bytes(W.tobytes())
    entries, part = OUTSIDE[what]
    external(path, **entries)
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: read_all(path), FileFormatError, str(path), part)


def test_links_pipes_and_missing_files(path: Path) -> None:
    external(path, location="data")
    with pytest.raises(FileNotFoundError, match="data"):
        read_all(path)
    os.mkfifo(path.parent / "data")
    refused(lambda: read_all(path), FileFormatError, "regular file")
    (path.parent / "data").unlink()
    (path.parent.parent / "other").write_bytes(W.tobytes())
    (path.parent / "data").symlink_to("../other")
    refused(lambda: read_all(path), FileFormatError, str(path), "link that leads out")


def test_the_model_itself_as_the_file_of_values(path: Path) -> None:
    external(path, location=path.name, offset="0")
    assert read_all(path)["w"].tobytes() == path.read_bytes()[:60]


def test_many_files(path: Path) -> None:
    tensors = []
    for index in range(250):
        tensor = TensorProto(
            name=f"w{index}", data_type=TensorProto.FLOAT, dims=(0,), data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value=f"data{index}")
        (path.parent / f"data{index}").write_bytes(b"")
        tensors.append(tensor)
    refused(lambda: read_all(written(path, model(tensors))), FileFormatError, str(path), "more than 200 files")


# --- files that are hostile ---


def varint(value: int) -> bytes:
    """A whole number as protocol buffers have it."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, content: bytes | int) -> bytes:
    """A field: of bytes, or of a number."""
    if isinstance(content, int):
        return varint(8 * number) + varint(content % 2**64)
    return varint(8 * number + 2) + varint(len(content)) + content


def graph(*fields: bytes) -> bytes:
    return field(7, b"".join(fields))


def tensor(
    *, name: bytes = b"w", kind: int = 1, dims: tuple[int, ...] = (1,), data: bytes = field(9, bytes(4))
) -> bytes:
    """A graph of one initialiser."""
    return graph(field(5, b"".join(field(1, dim) for dim in dims) + field(2, kind) + field(8, name) + data))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "no graph": (b"", "0 graphs"),
    "two graphs": (graph() + graph(), "2 graphs"),
    "a graph that is a number": (field(7, 5), "no message"),
    "a tag that does not end": (b"\xff" * 20, "does not end"),
    "a length that does not end": (b"\x3a" + b"\xff" * 20, "does not end"),
    "a length beyond the file": (b"\x3a\x05abc", "ends beyond"),
    "a length of 2**63": (b"\x3a" + varint(2**63), "ends beyond"),
    "a group": (b"\x3b", "no known kind"),
    "a length in a length": (graph(b"\x2a\x7f"), "ends beyond"),
    "a negative shape": (tensor(dims=(-1,)), "no shape"),
    "a shape of 2**62": (tensor(dims=(2**62,)), "no shape"),
    "a shape of 2**62 and 0": (tensor(dims=(2**62, 0), data=b""), "no shape"),
    "a shape of 9 axes": (tensor(dims=(1,) * 9), "no shape"),
    "a shape of many axes": (tensor(dims=(1,) * 10000), "no shape"),
    "a packed shape of many axes": (graph(field(5, field(1, b"\1" * 2000) + field(8, b"w"))), "longer than"),
    "a shape too large": (tensor(dims=(2,)), "takes 8 bytes and has 4"),
    "a shape too small": (tensor(dims=(0,)), "takes 0 bytes and has 4"),
    "a shape and no values": (tensor(dims=(2**40,), data=b""), "takes 4.398e+12 bytes and has 0"),
    "no name": (tensor(name=b""), "no name"),
    "a long name": (tensor(name=b"n" * 1001), "no name"),
    "a very long name": (tensor(name=b"n" * 10**5), "longer than"),
    "a name that is no text": (tensor(name=b"\xff"), "no text"),
    "a name that is a number": (graph(field(5, field(8, 5))), "longer than"),
    "a name twice": (graph(*(field(5, field(1, 0) + field(2, 1) + field(8, b"w")) for _ in range(2))), "twice"),
    "values in two fields": (tensor(data=field(9, bytes(4)) + field(4, bytes(4))), "more than one place"),
    "values in two pieces": (tensor(data=field(4, bytes(2)) + field(4, bytes(2))), "more than one place"),
    "values in a field of another type": (tensor(data=field(10, bytes(4))), "not packed"),
    "values one by one": (tensor(data=b"\x25" + bytes(4)), "not packed"),
    "values inside and outside": (tensor(data=field(9, bytes(4)) + field(14, 1)), "more than one place"),
    "values in an unknown place": (tensor(data=field(14, 2)), "more than one place"),
    "segments": (tensor(data=field(3, b"")), "segments"),
    "a sparse one": (graph(field(15, b"")), "sparse"),
    "too few numbers": (tensor(kind=7, dims=(5,), data=field(7, b"\1" * 4)), "values that its shape says"),
    "too many numbers": (tensor(kind=7, dims=(3,), data=field(7, b"\1" * 4)), "says 3 values and it has 4"),
    "numbers that do not end": (tensor(kind=7, dims=(3,), data=field(7, b"\1\1\xff\xff")), "do not end"),
    "a number that does not end": (tensor(kind=7, dims=(2,), data=field(7, b"\xff" * 11 + b"\1\1")), "do not end"),
    "one outside that is a number": (
        graph(field(5, field(1, 1) + field(8, b"w") + field(14, 1) + field(13, 5))),
        "no message",
    ),
    "many empty nodes": (graph(field(1, b"") * MOST_FIELDS) + graph(field(1, b"") * MOST_FIELDS), "2 graphs"),
    "many empty entries": (tensor(data=field(13, b"") * 10**4), "takes 4 bytes and has 0"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file(path: Path, what: str) -> None:
    content, part = HOSTILE[what]
    path.write_bytes(content)
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: read_all(path), FileFormatError, str(path), part)


def test_a_file_of_many_fields(path: Path) -> None:
    path.write_bytes(graph(field(1, b"") * MOST_FIELDS))
    with time_limit(10 * SECONDS):
        refused(lambda: read_all(path), FileFormatError, str(path), f"{MOST_FIELDS} fields")


def test_a_file_larger_than_a_message_may_be(path: Path) -> None:
    path.write_bytes(b"")
    try:
        os.truncate(path, LARGEST + 1)
    except OSError:
        pytest.skip("no sparse files here")
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: read_all(path), FileFormatError, str(path), str(LARGEST))


def test_tensors_that_share_a_file_of_values(path: Path) -> None:
    """Many large tensors of one small file."""
    (path.parent / "data").write_bytes(bytes(2**20))
    tensors = []
    for index in range(100):
        each = TensorProto(
            name=f"w{index}", data_type=TensorProto.FLOAT, dims=(2**18,), data_location=TensorProto.EXTERNAL
        )
        each.external_data.add(key="location", value="data")
        tensors.append(each)
    refused(lambda: read_all(written(path, model(tensors))), FileFormatError, str(path), "would unpack to")


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_varints(values: list[int]) -> None:
    assert varints(b"".join(map(varint, values))).tolist() == values


# --- damage ---


@pytest.fixture(scope="module")
def whole() -> bytes:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
        helper.make_node("MatMul", ["y", "v.weight"], ["z"]),
    ]
    tensors = [
        numpy_helper.from_array(W, "w"),
        numpy_helper.from_array(B, "v.weight"),
        helper.make_tensor("n", TensorProto.INT64, (3,), [1, -2, 3]),
    ]
    content: bytes = model(tensors, nodes).SerializeToString()
    return content


def test_a_file_cut_anywhere(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    right = read_all(path)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        try:
            same_bits(read_all(path), right)  # behind the graph come versions, which are not needed
        except FileFormatError as error:
            assert str(path) in str(error)


@given(st.lists(damages(), min_size=1, max_size=3))
@settings(QUICK, max_examples=300)
def test_damage_is_seen_or_harmless(tmp_path: Path, whole: bytes, damage: list[Callable[[bytes], bytes]]) -> None:
    content = whole
    for each in damage:
        content = each(content)
    (tmp_path / "damaged.onnx").write_bytes(content)
    try:
        read_or_refused(tmp_path / "damaged.onnx")
    except FileNotFoundError as error:
        assert "There is no file" in str(error)


def test_a_file_cut_while_it_is_read(path: Path) -> None:
    written(
        path,
        model(
            [
                numpy_helper.from_array(np.zeros(2**14), "w"),
                helper.make_tensor("n", TensorProto.INT64, (2**14,), [1] * 2**14),
            ]
        ),
    )
    with open_file(path) as (found, _):
        os.truncate(path, 2**14)
        refused(found["w"].read, FileFormatError, str(path), "w", "cut")
        refused(found["n"].read, FileFormatError, str(path), "n", "damaged")
