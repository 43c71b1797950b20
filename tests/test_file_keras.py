"""HDF5 files as Keras writes them: what h5py wrote comes back to the bit, and no file at all does harm."""

from __future__ import annotations

import importlib
import json
import os
import struct
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
from coatref.weights.files.keras_names import layer_names, snake_case

h5py: Any = importlib.import_module("h5py")  # untyped

PARTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/:.", exclude_categories=["Cs"]), min_size=1, max_size=6
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.h5"


def made(path: Path, write: Callable[[Any], Any], **options: Any) -> Path:
    """A file that h5py writes."""
    with h5py.File(path, "w", **options) as file:
        write(file)
    return path


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


# --- what h5py writes ---


@given(
    st.dictionaries(st.tuples(PARTS, PARTS), arrays(), max_size=5),
    st.sampled_from([{}, {"chunks": True}, {"compression": "gzip"}, {"compression": 1, "shuffle": True}]),
)
@settings(QUICK, max_examples=60)
def test_any_arrays_come_back(
    tmp_path: Path, given: dict[tuple[str, str], np.ndarray], options: dict[str, Any]
) -> None:
    def write(file: Any) -> None:
        for (layer, leaf), array in given.items():
            chosen = options if array.ndim and array.size else {}
            file.create_dataset(f"{layer}/{layer}/{leaf}:0", data=array, **chosen)

    layers = {layer for layer, _ in given}
    if layers & {"model_weights", "optimizer_weights"}:
        return
    path = made(tmp_path / "any.h5", write)
    right = {
        f"{layer}/{leaf}": array.view("i1") if array.dtype == "?" else array for (layer, leaf), array in given.items()
    }
    same_bits(read_all(path), right)  # h5py's bool is an enumeration of small integers
    with open_file(path) as (_, metadata):
        assert metadata == {}


@pytest.mark.parametrize("shape", [(7, 5), (6, 4), (1, 1), (17,), (3, 5, 7, 2)])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_chunks_that_do_not_divide_the_shape(path: Path, shape: tuple[int, ...], shuffle: bool, packed: bool) -> None:
    array = np.random.default_rng(1).normal(size=shape)
    chunks = tuple(min(3, length) for length in shape)
    options = {"compression": "gzip"} if packed else {}
    made(path, lambda file: file.create_dataset("a/k", data=array, chunks=chunks, shuffle=shuffle, **options))
    same_bits(read_all(path), {"a/k": array})


def test_a_dataset_that_may_grow(path: Path) -> None:
    made(path, lambda file: file.create_dataset("a/k", data=floats(5, 3), maxshape=(None, 3), chunks=(64, 3)))
    same_bits(read_all(path), {"a/k": floats(5, 3)})


def test_a_compact_dataset(path: Path) -> None:
    def write(file: Any) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3, 5))
        found = h5py.h5d.create(file.create_group("a").id, b"k", h5py.h5t.IEEE_F32LE, space, properties)
        found.write(h5py.h5s.ALL, h5py.h5s.ALL, floats(3, 5))

    same_bits(read_all(made(path, write)), {"a/k": floats(3, 5)})


def test_bfloat16_as_hdf5_has_it(path: Path) -> None:
    bits = (floats(3, 5).view("<u4") >> 16).astype("<u2")

    def write(file: Any) -> None:
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_size(2)
        kind.set_ebias(127)
        found = h5py.h5d.create(file.create_group("a").id, b"k", kind, h5py.h5s.create_simple((3, 5)))
        found.write(h5py.h5s.ALL, h5py.h5s.ALL, bits, mtype=kind)

    same_bits(read_all(made(path, write)), {"a/k": (bits.astype("<u4") << 16).view("<f4")})
    with open_file(path) as (tensors, _):
        assert tensors["a/k"].dtype == "BF16"


def test_many_layers(path: Path) -> None:
    """Groups of many members are trees of several levels."""
    right = {
        f"layer_{index}/{leaf}": floats(index % 5, seed=index) for index in range(500) for leaf in ("kernel", "bias")
    }
    made(path, lambda file: [file.create_dataset(name, data=array) for name, array in right.items()])
    with time_limit(10), memory_limit(MEGABYTES):
        same_bits(read_all(path), right)


# --- names ---


def test_keras_2(path: Path) -> None:
    """A file of weights, and the same in one of a whole model, beside the optimizer's state."""
    right = {
        "stem_1_conv/kernel": floats(3, 3, 3, 4),
        "stem_1_bn/moving_mean": floats(4),
        "inner/inner_conv/bias": floats(5),  # a model in a model
        "predictions/dense/kernel": floats(4, 7),  # a weight that is named after another layer
        "count": np.array(7),
    }
    stored = {
        "stem_1_conv/stem_1_conv/kernel:0": right["stem_1_conv/kernel"],
        "stem_1_bn/stem_1_bn/moving_mean:0": right["stem_1_bn/moving_mean"],
        "inner/inner_conv/bias:0": right["inner/inner_conv/bias"],
        "predictions/dense/kernel:0": right["predictions/dense/kernel"],
        "count": right["count"],
    }

    def write(file: Any, prefix: str = "") -> None:
        group = file.create_group(prefix) if prefix else file
        group.attrs["layer_names"] = [b"stem_1_conv", b"stem_1_bn", b"inner", b"predictions", b"activation"]
        group.attrs["backend"], group.attrs["keras_version"] = "tensorflow", b"2.15.0"
        group.create_group("activation").attrs["weight_names"] = np.zeros(0)
        group.create_group("top_level_model_weights").attrs["weight_names"] = np.zeros(0)
        for name, array in stored.items():
            group[name] = array

    same_bits(read_all(made(path, write)), right)

    def write_model(file: Any) -> None:
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"layers": ["x" * 1000]}})
        write(file, "model_weights")
        file["optimizer_weights/adam/stem_1_conv/kernel/m:0"] = floats(3, 3, 3, 4)
        file["optimizer_weights/adam/note"] = "text"

    same_bits(read_all(made(path, write_model)), right)


KERAS_3: dict[str, tuple[str, list[np.ndarray], dict[str, np.ndarray]]] = {
    "layers/conv2d": ("stem_1_conv", [floats(3, 3, 3, 4)], {"stem_1_conv/kernel": floats(3, 3, 3, 4)}),
    "layers/conv2d_1": (
        "stem_2_conv",
        [floats(3, 3, 4, 1), floats(1)],
        {"stem_2_conv/kernel": floats(3, 3, 4, 1), "stem_2_conv/bias": floats(1)},
    ),
    "layers/depthwise_conv2d": ("dw", [floats(3, 3, 5, 1)], {"dw/depthwise_kernel": floats(3, 3, 5, 1)}),
    "layers/batch_normalization_10": (
        "bn",
        [floats(4, seed=seed) for seed in range(4)],
        {
            "bn/gamma": floats(4, seed=0),
            "bn/beta": floats(4, seed=1),
            "bn/moving_mean": floats(4, seed=2),
            "bn/moving_variance": floats(4, seed=3),
        },
    ),
    "layers/layer_normalization": (
        "ln",
        [floats(5), floats(5, seed=1)],
        {"ln/gamma": floats(5), "ln/beta": floats(5, seed=1)},
    ),
    "layers/dense": (
        "predictions",
        [floats(5, 7), floats(7)],
        {"predictions/kernel": floats(5, 7), "predictions/bias": floats(7)},
    ),
    "layers/multi_head_relative_positional_embedding": (
        "pos",
        [floats(2, 5)],
        {"pos/positional_embedding": floats(2, 5)},
    ),
    "layers/functional/layers/conv2d": (
        "inner_conv",
        [floats(1, 1, 5, 5)],
        {"inner/inner_conv/kernel": floats(1, 1, 5, 5)},
    ),
    "layers/functional": ("inner", [], {}),
    "layers/block/expand": (
        "b_expand",
        [floats(5, 6), floats(6)],
        {"b/b_expand/kernel": floats(5, 6), "b/b_expand/bias": floats(6)},
    ),
    "layers/block": ("b", [], {}),
    "layers/activation": ("activation", [], {}),
    "layers/dropout": ("drop", [], {}),
}
RIGHT_3 = {name: array for _, _, right in KERAS_3.values() for name, array in right.items()}


def write_keras_3(file: Any, names: bool = True) -> None:
    """A file as Keras 3 writes it; older versions write no names."""
    for group, (name, variables, _) in KERAS_3.items():
        found = file.create_group(f"{group}/vars")
        if names:
            found.attrs["name"] = name
        for index, array in enumerate(variables):
            found[str(index)] = array
    file.create_group("layers/dropout/seed_generator/vars")["0"] = np.array([1, 2], "u4")
    file.create_group("optimizer/vars")["0"] = np.array(3)
    file["optimizer/vars"].create_dataset("1", data=np.zeros(3, "V2")).attrs["dtype"] = "bfloat16"
    file.create_group("vars").attrs["name"] = "functional"


def config_3() -> dict[str, Any]:
    """What a configuration says of the same layers, in the order in which they are numbered."""

    def layer(kind: str, name: str, **more: Any) -> dict[str, Any]:
        return {
            "module": "keras.layers",
            "class_name": kind,
            "config": {"name": name, "units": 3} | more,
            "registered_name": None,
        }

    layers = [layer("InputLayer", "input"), layer("Conv2D", "stem_1_conv"), layer("DepthwiseConv2D", "dw")]
    layers += [layer("BatchNormalization", f"other{index}") for index in range(10)]
    layers += [layer("BatchNormalization", "bn"), layer("Conv2D", "stem_2_conv"), layer("LayerNormalization", "ln")]
    layers += [layer("MultiHeadRelativePositionalEmbedding", "pos"), layer("Activation", "activation")]
    layers += [layer("Functional", "inner", layers=[layer("Conv2D", "inner_conv")]), layer("Dense", "predictions")]
    layers += [layer("Dropout", "drop"), layer("Block", "b")]
    return layer("Functional", "functional", layers=layers)


def test_keras_3(path: Path) -> None:
    same_bits(read_all(made(path.with_name("model.weights.h5"), write_keras_3)), RIGHT_3)


def keras_archive(path: Path, config: Any, names: bool, packing: int = zipfile.ZIP_STORED) -> Path:
    """A .keras archive."""
    content = made(path.with_name("inner.h5"), lambda file: write_keras_3(file, names)).read_bytes()
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        archive.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        archive.writestr("model.weights.h5", content)
    return path


@pytest.mark.parametrize("names", [True, False])
def test_a_keras_archive(tmp_path: Path, names: bool) -> None:
    """Where the file has no names the configuration has; but an attribute of a layer's class has none there."""
    right = {name.replace("b_expand", "b_expand" if names else "expand"): array for name, array in RIGHT_3.items()}
    same_bits(read_all(keras_archive(tmp_path / "model.keras", config_3(), names)), right)


def test_layers_without_names(path: Path) -> None:
    made(path, lambda file: write_keras_3(file, names=False))
    refused(lambda: read_all(path), FileFormatError, str(path), "numbered by their classes", ".keras or .h5")


def test_variables_that_could_be_anything(path: Path) -> None:
    for shapes in (
        [(2, 5)],
        [(4,)],
        [(4,), (4,), (4,)],
        [(3, 3, 5, 1)],
        [(4, 5), (4,)],
        [(3,), (4,)],
        [(3, 4), (1, 4)],
    ):

        def write(file: Any, shapes: Any = shapes) -> None:
            found = file.create_group("layers/pos/vars")
            found.attrs["name"] = "pos"
            for index, shape in enumerate(shapes):
                found[str(index)] = floats(*shape)

        made(path, write)
        refused(lambda: read_all(path), FileFormatError, str(path), f"{len(shapes)} variables", "save the model as .h5")


def test_variables_that_only_one_kind_of_layer_has(path: Path) -> None:
    for shapes, leaves in (
        ([(4,)] * 4, ["gamma", "beta", "moving_mean", "moving_variance"]),
        ([(4,)] * 2, ["gamma", "beta"]),
        ([(3, 4), (4,)], ["kernel", "bias"]),
        ([(3, 3, 2, 4), (4,)], ["kernel", "bias"]),
        ([(3, 3, 2, 4)], ["kernel"]),
    ):

        def write(file: Any, shapes: Any = shapes) -> None:
            found = file.create_group("layers/own/vars")
            found.attrs["name"] = "x"
            for index, shape in enumerate(shapes):
                found[str(index)] = floats(*shape, seed=index)

        made(path, write)
        same_bits(
            read_all(path),
            {f"x/{leaf}": floats(*shape, seed=n) for n, (leaf, shape) in enumerate(zip(leaves, shapes, strict=True))},
        )


def test_bfloat16_as_keras_3_has_it(path: Path) -> None:
    bits = (floats(5, 7).view("<u4") >> 16).astype("<u2")

    def write(file: Any) -> None:
        found = file.create_group("layers/dense/vars")
        found.attrs["name"] = "d"
        found.create_dataset("0", data=bits.view("V2")).attrs["dtype"] = "bfloat16"

    same_bits(read_all(made(path, write)), {"d/kernel": (bits.astype("<u4") << 16).view("<f4")})


@pytest.mark.parametrize(
    ("kind", "group"),
    [
        ("Conv2D", "conv2d"),
        ("DepthwiseConv2D", "depthwise_conv2d"),
        ("BatchNormalization", "batch_normalization"),
        ("LayerNormalization", "layer_normalization"),
        ("GlobalAveragePooling2D", "global_average_pooling2d"),
        ("ZeroPadding2D", "zero_padding2d"),
        ("ReLU", "re_lu"),
        ("PReLU", "p_re_lu"),
        ("LSTM", "lstm"),
        ("RNN", "rnn"),
        ("TFOpLambda", "tf_op_lambda"),
        ("InputLayer", "input_layer"),
        ("MultiHeadRelativePositionalEmbedding", "multi_head_relative_positional_embedding"),
        ("UpSampling2D", "up_sampling2d"),
        ("EinsumDense", "einsum_dense"),
    ],
)
def test_names_of_groups(kind: str, group: str) -> None:
    """As Keras 3.15 gave them."""
    assert snake_case(kind) == group


@pytest.mark.parametrize(
    "odd", [None, 5, "x", [], {}, {"config": None}, {"config": {"layers": [None, 5, {"class_name": []}]}}]
)
def test_configurations_that_tell_nothing(odd: Any) -> None:
    assert layer_names(odd) == {}


def test_models_in_models_in_models() -> None:
    """Each level has one more; what is deeper than groups may be is passed over."""
    config: Any = {"config": {}}
    for index in range(200):
        layer = {"class_name": "Functional", "config": {"name": f"m{index}"} | config["config"]}
        config = {"config": {"layers": [layer, layer]}}
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        found = layer_names(config)
    assert found[("layers", "functional_1", "layers", "functional")] == "m198"
    assert max(map(len, found)) == 16 and len(found) == 2 * sum(2**level for level in range(1, 9))


# --- files that are damaged ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a right file with something of everything in it."""

    def write(file: Any) -> None:
        write_keras_3(file)
        file.create_dataset("packed/kernel", data=floats(7, 5), chunks=(4, 3), compression="gzip", shuffle=True)

    return made(tmp_path_factory.mktemp("whole") / "whole.h5", write).read_bytes()


def test_a_file_cut_anywhere(path: Path, whole: bytes) -> None:
    for cut in (*range(0, 200, 7), *range(200, len(whole), len(whole) // 60), len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(lambda: read_all(path), FileFormatError, str(path), "fetch it again")


@given(st.lists(damages(), min_size=1, max_size=3))
@settings(QUICK, max_examples=250)
def test_damage_is_seen_or_harmless(tmp_path: Path, whole: bytes, damage: list[Callable[[bytes], bytes]]) -> None:
    content = whole
    for each in damage:
        content = each(content)
    (tmp_path / "damaged.h5").write_bytes(content)
    read_or_refused(tmp_path / "damaged.h5")


def test_a_file_cut_while_it_is_read(path: Path) -> None:
    made(path, lambda file: file.create_dataset("a/k", data=floats(100, 100)))
    with open_file(path) as (tensors, _):
        os.truncate(path, 5000)
        refused(tensors["a/k"].read, FileFormatError, str(path), "a/k", "cut")


# --- files that are hostile ---


def chunked(file: Any, **options: Any) -> None:
    file.create_dataset("a/k", data=floats(8, 8), chunks=(4, 8), **options)


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=(3,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", shape=(3,))
    file.create_virtual_dataset("a/k", layout)


def a_cycle(file: Any) -> None:
    file["a/b/c"] = floats(3)
    file["a/b/up"] = file["a"]


def twice(file: Any) -> None:
    file["a/k"] = floats(3)
    file["b/k"] = file["a/k"]


def committed(file: Any) -> None:
    file["a"] = np.dtype("f4")
    file.create_dataset("b", data=floats(3), dtype=file["a"])


def gap(file: Any) -> None:
    file["layers/dense/vars/1"] = floats(3)
    file["layers/dense/vars"].attrs["name"] = "dense"


def empty(file: Any) -> None:
    file["a/k"] = h5py.Empty("f4")


LINKED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a soft link": (lambda file: file.__setitem__("a", h5py.SoftLink("/b")), "has a link"),
    "an external link": (lambda file: file.__setitem__("a", h5py.ExternalLink("other.h5", "/b")), "has a link"),
    "an external dataset": (
        lambda file: file.create_dataset("a/k", shape=(3,), dtype="f4", external=[("/etc/passwd", 0, 12)]),
        "another file",
    ),
    "a virtual dataset": (virtual, "later form"),
    "a cycle": (a_cycle, "two places"),
    "one dataset twice": (twice, "two places"),
    "a type that stands elsewhere": (committed, "stands elsewhere"),
    "a type alone": (lambda file: file.__setitem__("a", np.dtype("f4")), "neither a group"),
    "a shape of nothing": (empty, "no shape"),
    "texts": (lambda file: file.__setitem__("a/k", ["x", "y"]), "not of numbers"),
    "texts of one length": (lambda file: file.__setitem__("a/k", np.array([b"x", b"y"])), "not of numbers"),
    "a structure": (lambda file: file.__setitem__("a/k", np.zeros(3, "f4,i4")), "not of numbers"),
    "complex numbers": (lambda file: file.__setitem__("a/k", np.zeros(3, complex)), "not of numbers"),
    "raw bytes": (lambda file: file.__setitem__("a/k", np.zeros(3, "V2")), "not of numbers"),
    "long floats": (lambda file: file.__setitem__("a/k", np.zeros(3, np.longdouble)), "not of numbers"),
    "references": (lambda file: file.create_dataset("a/k", (3,), h5py.ref_dtype), "not of numbers"),
    "lists of any length": (lambda file: file.create_dataset("a/k", (3,), h5py.vlen_dtype("f4")), "not of numbers"),
    "arrays of arrays": (lambda file: file.create_dataset("a/k", (3,), np.dtype(("f4", (2,)))), "not of numbers"),
    "another filter": (lambda file: chunked(file, compression="lzf"), "filters"),
    "a filter with loss": (lambda file: chunked(file, scaleoffset=2), "filters"),
    "sums": (lambda file: chunked(file, fletcher32=True), "filters"),
    "numbers that were never written": (lambda file: file.create_dataset("a/k", (2**40,), "f4"), "not all in the file"),
    "chunks that were never written": (
        lambda file: file.create_dataset("a/k", (2**40, 8), "f4", chunks=(2**20, 8)),
        "100000 are allowed",
    ),
    "some chunks that were never written": (
        lambda file: file.create_dataset("a/k", (9, 8), "f4", chunks=(3, 8)).__setitem__(0, 1),
        "not all there",
    ),
    "a bomb": (
        lambda file: file.create_dataset("a/k", data=np.zeros(2**25, "f4"), chunks=(2**20,), compression=9),
        "would unpack to",
    ),
    "small numbers in a large chunk": (
        lambda file: file.create_dataset("a/k", data=floats(3), maxshape=(None,), chunks=(2**25,), compression=1),
        "would unpack to",
    ),
    "more than 8 axes": (lambda file: file.__setitem__("a/k", np.zeros((1,) * 9)), "absurd shape"),
    "deep groups": (lambda file: file.__setitem__("/".join("a" * 40), floats(3)), "16 deep"),
    "a long name": (lambda file: file.__setitem__("n" * 2000, floats(3)), "name"),
    "variables that are not counted from 0": (gap, "from 0 on"),
    "one name twice": (lambda file: [file.__setitem__(key, floats(3)) for key in ("a/a/k", "a/k")], "two datasets"),
}


@pytest.mark.parametrize("what", LINKED)
def test_a_hostile_file(path: Path, what: str) -> None:
    write, part = LINKED[what]
    made(path, write)
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: read_all(path), FileFormatError, str(path), part)


@pytest.mark.parametrize("options", [{"libver": "latest"}, {"track_order": True}, {"userblock_size": 512}])
def test_forms_that_keras_does_not_write(path: Path, options: dict[str, Any]) -> None:
    made(path, lambda file: file.__setitem__("a/k", floats(3)), **options)
    refused(
        lambda: read_all(path), FileFormatError, str(path), "begin" if "userblock_size" in options else "later form"
    )


def test_a_tree_of_many_levels(path: Path) -> None:
    """Each of two thousand nodes says that it is the first of two levels, and leads to the next."""
    made(path, lambda file: file.__setitem__("a/k", floats(3)))
    content = bytearray(path.read_bytes())
    first, end = content.index(b"TREE"), len(content)
    for address in range(end, end + 2000 * 48, 48):
        content += b"TREE" + struct.pack("<2BH2Q3Q", 0, 1, 1, 2**64 - 1, 2**64 - 1, 0, address + 48, 8)
    content[first : first + 48] = content[end : end + 48]
    content[40:48] = struct.pack("<Q", len(content))
    path.write_bytes(content)
    refused(lambda: read_all(path), FileFormatError, str(path), "no tree")


def test_a_dataset_where_the_root_should_be(path: Path) -> None:
    made(path, lambda file: file.__setitem__("a", floats(3)))
    content = bytearray(path.read_bytes())
    entry = content.index(b"SNOD") + 8
    content[64:72] = content[entry + 8 : entry + 16]
    path.write_bytes(content)
    refused(lambda: read_all(path), FileFormatError, str(path), "its object '' is neither a group nor a dataset")


@pytest.mark.parametrize("change", [-4, 4, 2**40, 2**64 - 12])
@pytest.mark.parametrize("what", ["size", "address"])
def test_a_dataset_that_is_not_all_there(path: Path, what: str, change: int) -> None:
    made(path, lambda file: file.__setitem__("a", floats(3)))
    content = bytearray(path.read_bytes())
    data = content.index(floats(3).tobytes())
    place = content.index(struct.pack("<2B2Q", 3, 1, data, 12)) + (10 if what == "size" else 2)
    changed = (struct.unpack_from("<Q", content, place)[0] + change) % 2**64
    content[place : place + 8] = struct.pack("<Q", changed)
    path.write_bytes(content)
    if what == "address" and changed + 12 <= len(content):
        assert read_all(path)["a"].shape == (3,)  # nothing tells that they are other numbers
    else:
        refused(lambda: read_all(path), FileFormatError, str(path), "not all in the file")


def test_addresses_that_lead_in_circles(path: Path) -> None:
    """Every place of eight bytes that could be an address, with the address of every other such place."""
    made(path, lambda file: [file.__setitem__(f"a{index}/k", floats(3)) for index in range(3)])
    content = path.read_bytes()
    places = [at for at in range(0, len(content) - 8, 8) if 0 < struct.unpack_from("<Q", content, at)[0] < len(content)]
    targets = sorted({struct.unpack_from("<Q", content, at)[0] for at in places})
    random = np.random.default_rng(0)
    for at in places:
        for target in random.choice(targets, 3):
            path.write_bytes(content[:at] + struct.pack("<Q", int(target)) + content[at + 8 :])
            read_or_refused(path)


ARCHIVES: dict[str, tuple[bytes | str, bytes | None, str]] = {
    "no configuration": ("", None, "no members"),
    "a configuration that is no JSON": ("{'class_name': 5}", b"", "JSON"),
    "a configuration of brackets": ("[" * 10**5, b"", "JSON"),
    "a configuration that repeats itself": ('{"config": {}, "config": {}}', b"", "repeats a key"),
    "no weights": ("{}", b"", "begin"),
    "weights that are something else": ("{}", b"PK\3\4" * 100, "begin"),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_a_hostile_archive(tmp_path: Path, what: str) -> None:
    config, weights, part = ARCHIVES[what]
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        if weights is not None:
            archive.writestr("model.weights.h5", weights)
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: read_all(path), FileFormatError, str(path), part)


def test_a_packed_archive(tmp_path: Path) -> None:
    path = keras_archive(tmp_path / "model.keras", config_3(), True, zipfile.ZIP_DEFLATED)
    refused(lambda: read_all(path), FileFormatError, str(path), "packed, which Keras does not do")
    path.write_bytes(b"")
    refused(lambda: read_all(path), FileFormatError, str(path), "zip archive")


def test_a_long_configuration(tmp_path: Path) -> None:
    path = keras_archive(tmp_path / "model.keras", b" " * (9 * 10**6), True)
    refused(lambda: read_all(path), FileFormatError, str(path), "8000000 bytes allowed")


@given(st.lists(damages(), min_size=1, max_size=2))
@settings(QUICK, max_examples=80)
def test_damage_of_an_archive_is_seen_or_harmless(tmp_path: Path, damage: list[Callable[[bytes], bytes]]) -> None:
    path = tmp_path / "model.keras"
    if not path.exists():
        keras_archive(path, config_3(), False)
        (tmp_path / "right").write_bytes(path.read_bytes())
    content = (tmp_path / "right").read_bytes()
    for each in damage:
        content = each(content)
    path.write_bytes(content)
    read_or_refused(path)
