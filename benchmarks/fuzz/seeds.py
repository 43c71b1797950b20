"""Right files of every format and variety, small, made by the libraries whose formats they are."""

from __future__ import annotations

import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import coatref
from benchmarks.fuzz.cases import Case
from benchmarks.fuzz.tables import table
from coatref.specification.parts import ConvStem, Transformer

RANDOM = np.random.default_rng(0)


def made(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Numbers of a type and shape."""
    return (RANDOM.normal(0, 40, shape)).astype(dtype)


ARRAYS = {
    "stem.conv.weight": made((2, 3, 1, 2)),
    "norm.bias": made((5,), "float64"),
    "half": made((2, 2), "float16"),
    "count": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float32),
}


def safetensors_seeds() -> list[Case]:
    import safetensors.numpy
    import safetensors.torch
    import torch

    texts = {"format": "pt", "odd": 'quote " \\ \u2603'}
    files = [
        safetensors.numpy.save(ARRAYS, texts),
        safetensors.numpy.save({}),
        safetensors.numpy.save({"all": made((3,)), "b": np.array([True, False]), "u": made((2,), "uint16")}),
        safetensors.torch.save(
            {"bf": torch.arange(6).reshape(2, 3).to(torch.bfloat16), "u": torch.zeros(3, dtype=torch.uint8)}
        ),
    ]
    return [{"m.safetensors": file} for file in files]


def sharded_seeds() -> list[Case]:
    import safetensors.numpy

    names = list(ARRAYS)
    parts = [{name: ARRAYS[name] for name in some} for some in (names[:2], names[2:])]
    first, second = map(safetensors.numpy.save, parts)
    places = {name: ("a" if name in parts[0] else "b") + ".safetensors" for name in names}
    index = {"metadata": {"total_size": 1234}, "weight_map": places}
    one = {"weight_map": {name: "a.safetensors" for name in names[:2]}}
    return [
        {"m.safetensors.index.json": json.dumps(index).encode(), "a.safetensors": first, "b.safetensors": second},
        {"m.safetensors.index.json": json.dumps(one, indent=1).encode(), "a.safetensors": first},
        {"m.safetensors.index.json": b'{"weight_map": {}}'},
    ]


def npz_seeds() -> list[Case]:
    files = []
    writers: tuple[Any, ...] = (np.savez, np.savez_compressed)
    for save in writers:
        for arrays in (
            ARRAYS,
            {
                "f": np.asfortranarray(made((3, 4))),
                "big": made((2, 3)).astype(">f4"),
                "b": np.array([True, False, True]),
            },
            {},
        ):
            target = io.BytesIO()
            save(target, **arrays)
            files.append(target.getvalue())
    return [{"m.npz": file} for file in files]


def hdf5_file(fill: Callable[[Any], None], **options: Any) -> bytes:
    """An HDF5 file that h5py writes."""
    import h5py

    target = io.BytesIO()
    with h5py.File(target, "w", **options) as file:
        fill(file)
    return target.getvalue()


def keras_2(file: Any) -> None:
    """The layout of Keras 2, and of Keras 3 for .h5."""
    file.attrs["layer_names"] = [b"conv", b"norm"]
    file.attrs["backend"] = "tensorflow"
    group = file.create_group("conv")
    group.attrs["weight_names"] = [b"conv/kernel:0", b"conv/bias:0"]
    group.create_dataset("conv/kernel:0", data=made((1, 2, 2, 3)))
    group.create_dataset("conv/bias:0", data=made((3,)))
    file.create_group("norm").create_dataset("norm/gamma:0", data=made((3,), "float16"))


def keras_3(file: Any, named: bool = True) -> None:
    """The layout of Keras 3 for .weights.h5."""
    for layer, name, shapes in (("conv2d", "stem", [(1, 1, 2, 3), (3,)]), ("dense", "head", [(4, 2), (2,)])):
        group = file.create_group(f"layers/{layer}/vars")
        if named:
            group.attrs["name"] = name
        for number, shape in enumerate(shapes):
            group.create_dataset(str(number), data=made(shape))
    file.create_group("optimizer/vars").create_dataset("0", data=np.int64(3))


def varied(file: Any) -> None:
    """Every layout, filter and type that is read, and a few that are not."""
    file.create_dataset("packed", data=made((7, 5)), chunks=(3, 2), compression="gzip", shuffle=True)
    file.create_dataset("chunks", data=made((5,), "float64"), chunks=(2,))
    file.create_dataset("shuffled", data=made((4, 2), "int32"), chunks=(4, 2), shuffle=True)
    file.create_dataset("big", data=made((2, 3)).astype(">f8"))
    file.create_dataset("flag", data=np.array([True, False]))
    file.create_dataset("scalar", data=np.float32(4))
    file.create_dataset("none", data=np.zeros((0, 3), np.float32))
    text = file.create_dataset("bf16", data=made((3,), "uint16").view("V2"))
    text.attrs["dtype"] = "bfloat16"
    file["a group"].create_dataset("x", data=made((2,))) if "a group" in file else file.create_group("a group")


def hdf5_seeds() -> list[Case]:
    def texts(file: Any) -> None:
        file["text"] = "abc"

    def many(file: Any) -> None:
        for number in range(20):
            file.create_dataset(f"layer_{number}/w", data=made((2,)))

    def links(file: Any) -> None:
        import h5py

        file["a"] = made((2,))
        file["b"] = h5py.SoftLink("/a")
        file["c"] = h5py.ExternalLink("other.h5", "/a")

    def filtered(file: Any) -> None:
        file.create_dataset("sum", data=made((4,)), chunks=(2,), fletcher32=True)

    def nothing(file: Any) -> None:
        pass

    def one(file: Any) -> None:
        file["a"] = made((3,))

    def one_in_chunks(file: Any) -> None:
        file.create_dataset("a", data=made((3, 2)), chunks=(2, 1), compression="gzip")

    def one_named(file: Any) -> None:
        file.create_group("dense/vars").attrs["name"] = "head"
        file.create_dataset("dense/vars/0", data=made((2, 3)))

    files = [
        hdf5_file(keras_2),
        hdf5_file(keras_3),
        hdf5_file(functools.partial(keras_3, named=False)),
        *(hdf5_file(fill) for fill in (varied, many, texts, links, filtered, nothing, one, one_in_chunks, one_named)),
        hdf5_file(keras_3, libver="latest"),
        hdf5_file(keras_2, track_order=True),
    ]
    return [{"m.h5": file} for file in files]


def keras_seeds() -> list[Case]:
    layers = [
        {"class_name": "Conv2D", "config": {"name": "stem"}},
        {"class_name": "Dense", "config": {"name": "head"}},
        {
            "class_name": "Functional",
            "config": {"name": "inner", "layers": [{"class_name": "Dense", "config": {"name": "d"}}]},
        },
    ]
    config = json.dumps({"class_name": "Functional", "config": {"name": "model", "layers": layers}})
    cases = []
    for packing, named in ((zipfile.ZIP_STORED, False), (zipfile.ZIP_DEFLATED, True)):
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("metadata.json", '{"keras_version": "3.15.1"}', packing)
            archive.writestr("config.json", config, packing)
            archive.writestr("model.weights.h5", hdf5_file(functools.partial(keras_3, named=named)))
        cases.append({"m.keras": target.getvalue()})
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr(
            "model.weights.h5", hdf5_file(lambda file: file.create_dataset("layers/dense/vars/0", data=made((2, 3))))
        )
    return [*cases, {"m.keras": target.getvalue()}]


def onnx_seeds() -> list[Case]:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def model(initializers: list[Any], nodes: list[Any]) -> bytes:
        graph = helper.make_graph(nodes, "g", [], [], initializers)
        content: bytes = helper.make_model(graph, producer_name="torch").SerializeToString()
        return content

    abc: Any = [b"abc"]
    raw = [numpy_helper.from_array(array, name) for name, array in ARRAYS.items()]
    typed = [
        helper.make_tensor("f", TensorProto.FLOAT, (2,), [1.5, -2]),
        helper.make_tensor("d", TensorProto.DOUBLE, (1, 2), [1.5, -2]),
        helper.make_tensor("h", TensorProto.FLOAT16, (3,), np.array([1, 2, 3], np.float16)),
        helper.make_tensor("i", TensorProto.INT32, (3,), [1, -1, 300]),
        helper.make_tensor("l", TensorProto.INT64, (2,), [-1, 2**40]),
        helper.make_tensor("s", TensorProto.INT8, (2,), [-1, 2]),
        helper.make_tensor("u", TensorProto.UINT64, (1,), [2**63]),
        helper.make_tensor("bf", TensorProto.BFLOAT16, (2,), [1, 2]),
        helper.make_tensor("text", TensorProto.STRING, (1,), abc),
    ]
    outside = TensorProto(name="x.weight", data_type=TensorProto.FLOAT, dims=(3, 2))
    outside.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "4"), ("length", "24")):
        entry = outside.external_data.add()
        entry.key, entry.value = key, value
    nodes = [
        helper.make_node("MatMul", ["in", "x.weight"], ["a"]),
        helper.make_node("Gemm", ["a", "half"], ["b"], transB=0),
        helper.make_node("Add", ["b", "norm.bias"], ["c"]),
    ]
    assert onnx.__version__
    return [
        {"m.onnx": model(raw, nodes)},
        {"m.onnx": model(typed, [])},
        {"m.onnx": model([outside], nodes), "w.bin": made((8,)).tobytes()},
        {"m.onnx": model([], [])},
    ]


def torch_seeds() -> list[Case]:
    import argparse
    import collections

    import torch

    plain = {name: torch.from_numpy(np.array(array)) for name, array in ARRAYS.items()}
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    views = {
        "turned": base.T,
        "part": base[1:3, ::2],
        "wide": torch.arange(3.0).expand(2, 3),
        "bf": base[:1].to(torch.bfloat16),
        "p": torch.nn.Parameter(torch.zeros(2)),
        "u": torch.zeros(2, dtype=torch.uint16),
        "flag": torch.tensor([True, False]),
    }
    contents: list[Any] = [
        plain,
        views,
        collections.OrderedDict(plain),
        {
            "epoch": 3,
            "args": argparse.Namespace(lr=0.1, name="x"),
            "state_dict": {"module." + name: tensor for name, tensor in plain.items()},
            "state_dict_ema": plain,
            "optimizer": {
                "state": {0: {"step": 5.0, "exp_avg": base}},
                "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}],
            },
        },
        {"model": {"state_dict": views}, "none": None, "device": torch.device("cpu"), "set": {1, 2}, "bytes": b"abc"},
    ]
    files = []
    for content in contents:
        for zipped in (True, False):
            for protocol in (2, 4):
                target = io.BytesIO()
                torch.save(content, target, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
                files.append(target.getvalue())
    return [{"m.pth": file} for file in files]


def tensorflow_seeds() -> list[Case]:
    from benchmarks.fuzz.tables import bundle

    return [{"m.index": index, "m.data-00000-of-00001": data} for index, data in (bundle(ARRAYS), bundle({}))] + [
        {"m.index": table([(b"", b"\x08\x01\x1a\x02\x08\x01"), (b"\0text", b"\x08\x07\x20\x00\x28\x05")])}
    ]


def micro() -> coatref.Params:
    """A network of a few hundred numbers."""
    spec = coatref.spec("coatnet_0", classes=3, depths=(1, 1, 1, 1, 1))

    def small(run: Any) -> Any:
        attention = {"attention": replace(run.attention, head_size=1)} if isinstance(run, Transformer) else {}
        return replace(run, width=2, **attention)

    stages = tuple(tuple(map(small, stage)) for stage in spec.stages)
    return coatref.init(
        spec.replace(image_size=(32, 32), stem=ConvStem(widths=(2, 2)), stages=stages), scheme="distinct"
    )


def load_seeds() -> list[Case]:
    """Our own file, and the names of small networks in each dialect, most of whose tensors are of the wrong shape."""
    import safetensors.numpy

    from coatref.weights.dialects import DIALECTS
    from coatref.weights.places import expected

    with tempfile.TemporaryDirectory() as folder:
        coatref.save(micro(), Path(folder) / "m.safetensors")
        own = (Path(folder) / "m.safetensors").read_bytes()
    cases: list[Case] = [{"model.safetensors": own}]
    config = {
        "architecture": "coatnet_0_rw_224",
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5]},
    }
    for dialect in DIALECTS.values():
        names = dialect.specs()
        if not names:
            continue
        spec = coatref.spec(names[0])
        shapes = expected(dialect.places(spec, dialect.layouts[0]))
        small = {name: np.zeros([min(2, side) for side in shape], np.float16) for name, shape in shapes.items()}
        some = dict(list(small.items())[:40] + list(small.items())[-6:])
        cases.append({"model.safetensors": safetensors.numpy.save(some), "config.json": json.dumps(config).encode()})
    return cases


def config_seeds() -> list[Case]:
    timm = {
        "architecture": "coatnet_0_rw_224",
        "num_classes": 3,
        "label_names": ["a", "b", "c"],
        "label_descriptions": {"a": "an a", "b": "a b"},
        "pretrained_cfg": {
            "tag": "sw_in1k",
            "input_size": [3, 224, 224],
            "crop_pct": 0.95,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }
    old = {
        "architecture": "x",
        "input_size": [3, 8, 9],
        "crop_pct": 1,
        "mean": [0.1],
        "std": [1],
        "label_names": {"0": "x", "2": "z"},
    }
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    return [{"config.json": json.dumps(each).encode()} for each in (timm, old, index, {})]


def spec_seeds() -> list[Case]:
    names = ("coatnet_0", "timm/coatnet_rmlp_2_rw_224", "timm/coatnext_nano_rw_224")
    return [{"spec.json": coatref.spec(name).to_json().encode()} for name in names] + [
        {"spec.json": micro().spec.to_json().encode()}
    ]


SEEDS: dict[str, Callable[[], list[Case]]] = {
    "safetensors": safetensors_seeds,
    "sharded": sharded_seeds,
    "npz": npz_seeds,
    "hdf5": hdf5_seeds,
    "keras": keras_seeds,
    "onnx": onnx_seeds,
    "torch": torch_seeds,
    "tensorflow": tensorflow_seeds,
    "load": load_seeds,
    "config": config_seeds,
    "spec": spec_seeds,
}
