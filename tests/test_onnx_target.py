"""ONNX files as targets: what `torch.onnx.export` makes of a timm model is judged as it is."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timm_import import require_timm
from timm_models import randomised

for package in ("onnx", "onnxruntime", "onnxscript"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, which is not installed (pip install {package})", allow_module_level=True)
timm = require_timm()

import onnx
import torch
from onnx import numpy_helper

import coatref
from coatref.conformance.error_model.verdict import compare
from coatref.conformance.evaluate import answer
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.precision import Precision
from coatref.conformance.target import Target
from coatref.conformance.targets.onnx import make, wrong_tensors
from coatref.conformance.targets.onnx_weights import match, read_graph
from coatref.errors import FileFormatError, InputError

Array = Any
SIZE = (64, 96)
NAME = "coatnet_0_rw_224"
MLP = "coatnet_rmlp_0_rw_224"
WIDTHS: Any = {"depths": (1, 1, 2, 1), "widths": (32, 64, 96, 128)}


def spec_of(name: str) -> coatref.Spec:
    return coatref.spec(f"timm/{name}", image_size=SIZE, classes=7, **WIDTHS)


def module(name: str) -> Any:
    sizes: Any = {"img_size": SIZE, "depths": WIDTHS["depths"], "embed_dim": WIDTHS["widths"], "num_classes": 7}
    return randomised(timm, name, 0, **sizes).float()


class ChannelsLast(torch.nn.Module):  # an exported model that takes (N, H, W, C), with its weights behind a prefix
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Array) -> Array:
        return self.inner(x.permute(0, 3, 1, 2))


def exported(net: Any, path: Path, x: Array, **options: Any) -> Path:
    """What torch.onnx.export writes, with its own warnings and progress kept quiet."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), input_names=["x"], output_names=["logits"], **options)
    return path


UNFOLDED: Any = {"dynamo=True": {"dynamo": True, "optimize": False}, "dynamo=False": {"dynamo": False}}
UNFOLDED["dynamo=False"]["do_constant_folding"] = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module", params=UNFOLDED)
def file(request: pytest.FixtureRequest, folder: Path) -> Path:
    dynamic: Any = {"dynamic_axes": {"x": {0: "n"}}}
    if request.param == "dynamo=True":
        dynamic = {"dynamic_shapes": {"x": {0: torch.export.Dim("n")}}, "external_data": False}
    path = folder / f"{request.param}.onnx"
    return exported(module(NAME), path, torch.zeros(2, 3, *SIZE), **UNFOLDED[request.param], **dynamic)


@pytest.fixture(scope="module")
def folded(folder: Path) -> Path:
    """An optimised export: norms folded into convolutions, bias tables gathered; its batch is fixed to three."""
    return exported(module(NAME), folder / "folded.onnx", torch.zeros(3, 3, *SIZE), dynamo=True, external_data=False)


def weights(name: str = NAME) -> coatref.Params:
    return coatref.convert(module(name).state_dict(), spec_of(name), dialect="timm", dtype="float32")


def images(batch: int) -> Array:
    return np.random.default_rng(1).normal(size=(batch, *SIZE, 3)).astype(np.float32)


def assert_right(target: Target, params: coatref.Params, x: Array) -> None:
    """The target's logits lie within the rounding of float32."""
    right = answer(Changed(target.spec), params.to(dtype="float64"), x.astype(np.float64), Precision(), {}, probes=8)
    found = target.run(params, x)["logits"]
    verdict = compare("logits", found, right.expected["logits"], right.deviations["logits"], Precision())
    assert verdict.verdict == "pass", verdict


def test_an_export_is_right_as_given_and_with_other_parameters(file: Path) -> None:
    target = make(str(file), spec=spec_of(NAME))
    assert target.takes_params and target.any_batch and target.params is not None
    for name, array in weights().flatten().items():
        np.testing.assert_array_equal(target.params.flatten()[name], array)
    assert_right(target, target.params, images(2))
    assert_right(target, coatref.init(target.spec, 5, scheme="distinct"), images(3))


def test_a_changed_initialiser_is_named(file: Path, tmp_path: Path) -> None:
    assert wrong_tensors(str(file), weights()) == []
    graph = onnx.load(file)
    for tensor in graph.graph.initializer:
        if tensor.name == "stages.2.blocks.1.mlp.fc2.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(graph, tmp_path / "changed.onnx")
    [(name, difference)] = wrong_tensors(str(tmp_path / "changed.onnx"), weights())
    assert name == "s3.1.ffn.shrink.w" and difference == pytest.approx(0.01, rel=1e-3)


def test_a_folded_export_is_judged_as_given_with_weights_only(folded: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stem\.norm1\.weight.*--weights.*optimize=False"):
        make(str(folded), spec=spec_of(NAME))
    target = make(str(folded), weights=weights())
    assert not target.takes_params and not target.any_batch and target.params is not None
    for batch in (1, 3, 4):
        assert_right(target, target.params, images(batch))
    assert wrong_tensors(str(folded), weights()) == []
    graph = onnx.load(folded)
    for tensor in graph.graph.initializer:
        if tensor.name == "stages.0.blocks.0.conv1_1x1.weight":  # its norm is folded into it
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(graph, tmp_path / "changed.onnx")
    [(name, difference)] = wrong_tensors(str(tmp_path / "changed.onnx"), weights())
    assert name == "s1.0.expand.w" and difference == pytest.approx(0.01, rel=1e-3)


def test_channels_last_and_a_prefix_and_a_bias_mlp(folder: Path) -> None:
    x = torch.zeros(1, *SIZE, 3)
    path = exported(ChannelsLast(module(MLP)), folder / "last.onnx", x, **UNFOLDED["dynamo=False"])
    target = make(str(path), spec=spec_of(MLP))
    assert target.takes_params and not target.any_batch
    assert_right(target, coatref.init(target.spec, 5, scheme="distinct"), images(1))


def test_transposed_dense_weights_are_recognised(file: Path, tmp_path: Path) -> None:
    graph = onnx.load(file)
    [gemm] = [node for node in graph.graph.node if node.op_type == "Gemm"]
    for attribute in gemm.attribute:
        if attribute.name == "transB":
            attribute.i = 0
    for tensor in graph.graph.initializer:
        if tensor.name == "head.fc.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), tensor.name))
    onnx.save(graph, tmp_path / "transposed.onnx")
    target = make(str(tmp_path / "transposed.onnx"), spec=spec_of(NAME))
    assert target.params is not None
    np.testing.assert_array_equal(
        target.params.flatten()["head.classifier.w"], weights().flatten()["head.classifier.w"]
    )
    assert_right(target, coatref.init(target.spec, 5, scheme="distinct"), images(1))


@pytest.mark.parametrize(("op", "transposed"), [("MatMul", True), ("Gemm", True), ("Gemm transB", False)])
def test_a_square_matrix_is_transposed_where_it_is_used_so(tmp_path: Path, op: str, transposed: bool) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    options: Any = {"transB": 1} if op == "Gemm transB" else {}
    node = helper.make_node(op.partition(" ")[0], ["x", "net.fc.weight"], ["y"], **options)
    w = numpy_helper.from_array(np.eye(3, dtype=np.float32), "net.fc.weight")
    x, y = (helper.make_tensor_value_info(name, kind, [2, 3]) for name in "xy")
    onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y], [w])), tmp_path / "square.onnx")
    found = match(read_graph(str(tmp_path / "square.onnx")), {"fc.weight": (3, 3)}, "timm")
    assert found.places == {"fc.weight": ("net.fc.weight", transposed)} and found.absent == ()


def test_named_values_become_outputs_with_channels_last(file: Path, tmp_path: Path) -> None:
    graph = onnx.load(file)
    relus = [node for node in graph.graph.node if node.op_type == "Conv"]
    names = tmp_path / "names.json"
    names.write_text(json.dumps({relus[0].output[0]: "s0.conv1"}))
    target = make(str(file), spec=spec_of(NAME), options={"names": str(names)})
    x = images(2)
    assert target.params is not None
    found = target.run(target.params, x)["s0.conv1"]
    right = coatref.trace(target.params.to(dtype="float64"), x.astype(np.float64))["s0.conv1"]
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * float(np.max(np.abs(right))))
    names.write_text(json.dumps({"nothing": "s0.conv1"}))
    with pytest.raises(InputError, match="nothing, which no node"):
        make(str(file), spec=spec_of(NAME), options={"names": str(names)})


def test_what_cannot_be_judged_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--dtype float32"):
        make(str(file), spec=spec_of(NAME), precision=Precision("float64", "float64"))
    with pytest.raises(InputError, match="no named spec fits; pass --spec"):
        make(str(file))
    with pytest.raises(InputError, match=r"claimed for \(224, 224\)"):
        make(str(file), spec=coatref.spec(f"timm/{NAME}", classes=7, **WIDTHS))
    with pytest.raises(InputError, match="has shape .* was expected"):
        make(str(file), spec=coatref.spec(f"timm/{NAME}", classes=8, image_size=SIZE, **WIDTHS))
    with pytest.raises(FileNotFoundError, match="There is no ONNX file"):
        make(str(tmp_path / "none.onnx"), spec=spec_of(NAME))
    (tmp_path / "odd.onnx").write_bytes(b"\x80 no protobuf")
    with pytest.raises(FileFormatError, match="no ONNX model"):
        make(str(tmp_path / "odd.onnx"), spec=spec_of(NAME))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """onnx's and torch's own deprecation warnings are not ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield
