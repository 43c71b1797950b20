"""`coatref.export_onnx` and `coatref onnx`: what the file computes, what it says, and that only a right one is kept."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from draw_specs import Drawn, specs
from hypothesis import HealthCheck, given, settings
from signed import signed

for package in ("onnx", "onnxruntime"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, which is not installed (pip install {package})", allow_module_level=True)

import onnx
import onnxruntime
from onnx import numpy_helper

import coatref
from coatref.attention.relative_attention import ScaleSite
from coatref.attention.relative_bias import Orientation
from coatref.cli import main
from coatref.conformance import exported as judge
from coatref.conformance.precision import declared
from coatref.conformance.suite import as_given
from coatref.conformance.targets.onnx import make
from coatref.errors import FileFormatError, InputError, MissingDependencyError, ShapeError, WeightsError
from coatref.onnx_export import export, export_onnx, files
from coatref.onnx_export.arrays import held, known, laid
from coatref.onnx_export.graph import Graph, constant
from coatref.onnx_export.lengths import Batch, broadcast, filled_in
from coatref.onnx_export.namespace import numbers, permute_dims, reshape, take
from coatref.specification.parts import Activation, Attention, LayerScale, PatchStem, Pool, RelativeBias

SIZE = (32, 64)
FOUR: Any = {"depths": (1, 1, 2, 1), "widths": (8, 32, 64, 96)}
FIVE: Any = {"depths": (2, 1, 1, 2, 1), "widths": (8, 16, 32, 64, 96)}
CASES: dict[str, Any] = {
    "coatnet_0": FIVE,
    "coatnet_0/linear-attention": FIVE,
    "coatnet_0/post-softmax": FIVE,
    "coatnet_0/strided-depthwise": FIVE,
    "timm/coatnet_0_rw_224": FOUR,
    "timm/coatnet_0_224": FOUR,
    "timm/coatnet_bn_0_rw_224": FOUR,
    "timm/coatnet_rmlp_nano_rw_224": FOUR,
    "timm/coatnext_nano_rw_224": {"depths": (1, 1, 1, 1), "widths": (64, 128, 32, 96)},
    "kecam/CoAtNet0": FOUR,
}
ELSEWHERE = ("coatnet_0/post-softmax", "coatnet_0/strided-depthwise", "timm/coatnet_0_224")  # float32 of these: CHOICES
SMALL = coatref.spec("coatnet_0", image_size=SIZE, classes=5, depths=(1, 1, 1, 1, 1), widths=FIVE["widths"])


def parameters(spec: coatref.Spec, seed: int = 0) -> coatref.Params:
    """Distinct random weights, every other gamma negative."""
    return signed(coatref.init(spec, seed, scheme="distinct", dtype="float64"))


def images(spec: coatref.Spec, batch: int, dtype: str = "float64") -> np.ndarray:
    """Random images, float64 that `dtype` holds exactly."""
    drawn = np.random.default_rng(batch).normal(size=(batch, *spec.image_size, spec.channels))
    return drawn.astype(dtype).astype(np.float64)


def runs(path: Path, layout: str, dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """What onnxruntime computes for images (N, H, W, C)."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def run(x: np.ndarray) -> np.ndarray:
        fed = (x if layout == "NHWC" else x.transpose(0, 3, 1, 2)).astype(dtype)
        output: np.ndarray = session.run(None, {"images": np.ascontiguousarray(fed)})[0]
        assert output.dtype == dtype
        return output

    return run


def difference(found: np.ndarray, right: np.ndarray) -> float:
    assert found.shape == right.shape
    return float(np.max(np.abs(found - right)) / np.max(np.abs(right)))


def assert_named_as_parameters(path: Path, params: coatref.Params, dtype: str) -> None:
    model = onnx.load(path)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert list(held) == list(params.flatten())
    for name, array in params.flatten().items():
        np.testing.assert_array_equal(held[name], array.astype(dtype), strict=True)
    assert [value.name for value in model.graph.input] == ["images"]


@pytest.fixture(scope="module")
def small() -> coatref.Params:
    return parameters(SMALL)


# --- what it computes ---


@pytest.mark.parametrize("name", CASES)
def test_float64_equals_the_definition_for_any_batch(name: str, tmp_path: Path) -> None:
    spec = coatref.spec(name, image_size=SIZE, classes=5, **CASES[name])
    params = parameters(spec)
    layout: Any = "NCHW" if name.startswith("timm/") else "NHWC"
    export_onnx(params, tmp_path / "a.onnx", dtype="float64", layout=layout, validate=False)
    onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)
    assert_named_as_parameters(tmp_path / "a.onnx", params, "float64")
    run = runs(tmp_path / "a.onnx", layout, "float64")
    for batch in (1, 2, 3):
        x = images(spec, batch)
        right = coatref.forward(params, x, backend="definition")
        assert difference(run(x), right) < 1e-13


@pytest.mark.parametrize("name", [name for name in CASES if name not in ELSEWHERE])
def test_float32_agrees_within_the_derived_bound(name: str, tmp_path: Path) -> None:
    spec = coatref.spec(name, image_size=SIZE, classes=5, **CASES[name])
    params = parameters(spec)
    layout: Any = "NHWC" if name.startswith("timm/") else "NCHW"
    found = export_onnx(params, tmp_path / "a.onnx", layout=layout)
    onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)
    assert_named_as_parameters(tmp_path / "a.onnx", params, "float32")
    assert found.kept and found.agreement.verdict == "pass" and 0 < found.agreement.margin < 1
    assert 0 < found.agreement.difference


def choices() -> dict[str, coatref.Spec]:
    """Networks of one block, each with another choice where onnxruntime has other operators for it."""
    plain = coatref.spec("vit-rel", classes=5, depths=(1,), widths=(32,))
    plain = plain.replace(image_size=(24, 40), stem=PatchStem(patch=8, width=24))  # a grid of 3 x 5
    strided = coatref.spec("coatnet_0", image_size=(27, 42), classes=5, depths=(1,) * 5, widths=(6, 10, 32, 32, 32))
    strided = strided.replace(stages=strided.stages[:1])
    found = {}
    pairs: Any = itertools.product(get_args(ScaleSite), ("pre_softmax", "post_softmax"))
    pools: Any = itertools.product(("max", "avg"), (2, 3), ("same", "symmetric"), ("excluded", "counted"))

    def note(name: str, spec: coatref.Spec, **changes: Any) -> None:
        """The network with other fields of its block."""
        found[name] = spec.replace(stages=((dataclasses.replace(spec.stages[0][0], **changes),),))

    def attend(name: str, bias: RelativeBias, **changes: Any) -> None:
        note(name, plain, width=24, attention=Attention(head_size=8, relative_bias=bias, **changes))

    for site, add in pairs:
        attend(f"{site} {add}", RelativeBias(add=add), scale_site=site)
    for orientation in get_args(Orientation)[1:]:
        attend(orientation, RelativeBias(orientation=orientation, sharing="across_heads"))
    attend("log_mlp", RelativeBias(kind="log_mlp", hidden=7))
    attend("windows", RelativeBias(), form="windowed", window=(3, 1))
    for per in ("channel", "branch"):
        note(f"scale per {per}", strided, layer_scale=LayerScale(initial=0.3, per=per))
    for kind in get_args(Activation):
        note(kind, strided, activation=kind)
    for kind, size, padding, zeros in pools:
        pool = Pool(kind=kind, size=size, padding=padding, padded_zeros=zeros)
        if (kind, zeros) != ("max", "counted"):
            note(f"{kind} {size} {padding} {zeros}", strided, main_pool=pool, shortcut_pool=pool, stride_at="pool")
    return found


CHOICES = choices()


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_of_attention_activation_and_pool(name: str, tmp_path: Path) -> None:
    params = parameters(CHOICES[name])
    export_onnx(params, tmp_path / "a.onnx")  # refuses what is wrong
    export_onnx(params, tmp_path / "b.onnx", dtype="float64", validate=False)
    x = images(params.spec, 3)
    right = coatref.forward(params, x, backend="definition")
    assert difference(runs(tmp_path / "b.onnx", "NHWC", "float64")(x), right) < 1e-13


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=specs())
def test_no_drawn_spec_fails(drawn: Drawn, tmp_path: Path) -> None:
    params = parameters(drawn.spec, drawn.seed)
    for dtype, layout in (("float64", "NHWC"), ("float32", "NCHW")):
        path, rest = tmp_path / "a.onnx", {"opset": 17, "external": False, "validate": True, "seed": drawn.seed}
        found = export.exported(params, path, dtype=dtype, layout=layout, **rest)  # type: ignore[arg-type]
        assert found.agreement.verdict != "fail", found.agreement.told()


def test_float16_agrees_and_every_opset_is_taken(small: coatref.Params, tmp_path: Path) -> None:
    for opset in (17, 18, 20, 23):
        found = export_onnx(small, tmp_path / "a.onnx", dtype="float16", opset=opset, validate=opset == 18)
        model = onnx.load(tmp_path / "a.onnx")
        assert [(each.domain, each.version) for each in model.opset_import] == [("", opset)]
        assert found.opset == opset and found.dtype == "float16"
        onnx.checker.check_model(model, full_check=True)
        assert np.all(np.isfinite(runs(tmp_path / "a.onnx", "NHWC", "float16")(images(SMALL, 2))))


def test_probabilities_are_the_output_of_a_head_that_gives_them(tmp_path: Path) -> None:
    spec = SMALL.replace(head=dataclasses.replace(SMALL.head, output="probabilities"))
    params = parameters(spec)
    export_onnx(params, tmp_path / "a.onnx")
    assert [value.name for value in onnx.load(tmp_path / "a.onnx").graph.output] == ["probabilities"]
    sums = np.sum(runs(tmp_path / "a.onnx", "NHWC", "float32")(images(spec, 3)), axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-6)


def test_parameters_of_another_library_and_type_are_cast(small: coatref.Params, tmp_path: Path) -> None:
    reason = "needs array_api_strict, which is not installed (pip install array-api-strict)"
    moved = small.to(xp=pytest.importorskip("array_api_strict", reason=reason), dtype="float32")
    export_onnx(moved, tmp_path / "a.onnx", dtype="float64", validate=False)
    assert_named_as_parameters(tmp_path / "a.onnx", small.to(dtype="float32"), "float64")


def test_grids_stay_channels_first_between_convolutions(small: coatref.Params, tmp_path: Path) -> None:
    export_onnx(small, tmp_path / "a.onnx", layout="NCHW", validate=False)
    nodes = onnx.load(tmp_path / "a.onnx").graph.node
    turned = [node.input[0] for node in nodes if node.op_type == "Transpose"]
    activations = [
        name for name in turned if name.startswith(("images", "s0", "s1", "s2")) and name not in small.flatten()
    ]
    assert sum(node.op_type == "Conv" for node in nodes) > 9 and activations == ["s2.0"]  # for the norm that follows


# --- what it says ---


def test_the_file_says_what_it_is(small: coatref.Params, tmp_path: Path) -> None:
    export_onnx(small, tmp_path / "a.onnx", layout="NCHW", validate=False)
    model = onnx.load(tmp_path / "a.onnx")
    stored = {each.key: each.value for each in model.metadata_props}
    assert coatref.Spec.from_json(stored["coatref.spec"]) == SMALL and stored["coatref.format"] == "1"
    assert (model.producer_name, model.producer_version) == ("coatref", coatref.__version__)
    assert model.ir_version == 8  # the oldest that has opset 17
    assert "coatnet_0: images (N, 3, 32, 64) float32" in model.doc_string and "logits (N, 5)" in model.doc_string
    (way_in,), (way_out,) = model.graph.input, model.graph.output
    assert [side.dim_param or side.dim_value for side in way_in.type.tensor_type.shape.dim] == ["N", 3, 32, 64]
    assert [side.dim_param or side.dim_value for side in way_out.type.tensor_type.shape.dim] == ["N", 5]


def test_values_have_the_names_of_the_trace(small: coatref.Params, tmp_path: Path) -> None:
    export_onnx(small, tmp_path / "a.onnx", dtype="float64", validate=False)
    model = onnx.load(tmp_path / "a.onnx")
    x = images(SMALL, 2)
    right = coatref.trace(small, x)
    computed = {name for node in model.graph.node for name in node.output}
    assert len(computed) == sum(len(node.output) for node in model.graph.node)
    assert {"s1.0.expand", "s3.0.attn.q", "s3.0.attn.logits", "s4.0", "head.pool", "logits"} <= computed & set(right)
    names = sorted(computed & set(right))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "logits")
    onnx.save(model, tmp_path / "b.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "b.onnx"), providers=["CPUExecutionProvider"])
    for name, found in zip(names, session.run(names, {"images": x}), strict=True):
        sides = np.sort(found, axis=None), np.sort(right[name], axis=None)  # axes may stand in another order
        np.testing.assert_allclose(*sides, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_figure_is_the_largest_difference_relative_to_the_largest_output(
    small: coatref.Params, tmp_path: Path
) -> None:
    found = export_onnx(small, tmp_path / "a.onnx", seed=3).agreement
    case = as_given(SMALL, small, 3, sum(judge.BATCHES), declared("float32"))
    output = judge.outputs(tmp_path / "a.onnx", case.x.astype(np.float32))
    assert found.difference == difference(output, coatref.forward(case.params, case.x, backend="definition"))
    assert 0 < found.margin < 1 and found.batches == (2, 1)


def test_the_judge_takes_it_with_any_parameters(small: coatref.Params, tmp_path: Path) -> None:
    export_onnx(small, tmp_path / "a.onnx", validate=False)
    target = make(str(tmp_path / "a.onnx"), spec=SMALL, weights=small)
    assert target.takes_params and target.any_batch and target.differing == ()
    other, x = parameters(SMALL, 5).to(dtype="float32"), images(SMALL, 2, "float32")
    found = target.run(other, x.astype(np.float32))["logits"]
    assert difference(found, coatref.forward(other.to(dtype="float64"), x)) < 1e-5


@pytest.mark.deep
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_judge_lets_it_pass(small: coatref.Params, tmp_path: Path, dtype: Any) -> None:
    export_onnx(small, tmp_path / "a.onnx", dtype=dtype)
    report = coatref.check(f"onnx:{tmp_path / 'a.onnx'}", spec=SMALL, dtype=dtype, level="quick")
    assert report.conforms, report.summary


# --- only a right file is kept ---


def node_of(model: Any, operator: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == operator)


def changed_initialiser(model: Any) -> None:
    """The last digit of one number, which no comparison of logits would see."""
    tensor = next(each for each in model.graph.initializer if each.name == "s3.0.ffn.shrink.b")
    array = numpy_helper.to_array(tensor).copy()
    array[3] = np.nextafter(array[3], array.dtype.type(9))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def surplus_initialiser(model: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "more"))


def other_epsilon(model: Any) -> None:
    next(each for each in node_of(model, "LayerNormalization").attribute if each.name == "epsilon").f *= 100


def other_activation(model: Any) -> None:
    node_of(model, "Tanh").op_type = "Sigmoid"


def other_scale(model: Any) -> None:
    """The factor of the attention logits, 1/sqrt(32), by a hundredth."""
    for node in model.graph.node:
        value = numpy_helper.to_array(node.attribute[0].t) if node.op_type == "Constant" else np.zeros(1)
        if value.shape == () and abs(float(value) * 32**0.5 - 1) < 1e-6:
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(value * np.float32(1.01)))


def other_padding(model: Any) -> None:
    next(each for each in node_of(model, "Conv").attribute if each.name == "pads").ints[:] = [1, 1, 0, 0]


def other_index(model: Any) -> None:
    """One entry of the index of the relative bias."""
    node = node_of(model, "Gather")
    index = next(each for each in model.graph.node if each.output[0] == node.input[1]).attribute[0]
    array = numpy_helper.to_array(index.t).copy()
    array[1] = array[0]
    index.t.CopyFrom(numpy_helper.from_array(array))


FAULTS = (
    changed_initialiser,
    surplus_initialiser,
    other_epsilon,
    other_activation,
    other_scale,
    other_padding,
    other_index,
)


@pytest.fixture
def planting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Has a fault put into every file that is written."""

    def plant(fault: Callable[[Any], None]) -> None:
        def write(model: Any, arrays: Any, path: Path, *, external: bool) -> None:
            files.write(model, arrays, path, external=external)
            loaded = onnx.load(path)
            fault(loaded)
            onnx.save(loaded, path)

        monkeypatch.setattr(export, "write", write)

    return plant


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused(fault: Any, small: coatref.Params, planting: Any, tmp_path: Path) -> None:
    planting(fault)
    with pytest.raises(FileFormatError, match=r"a\.onnx was not kept: it does not compute what the definition does"):
        export_onnx(small, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_file_leaves_the_older_one(small: coatref.Params, planting: Any, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"older")
    planting(changed_initialiser)
    with pytest.raises(FileFormatError, match=r"initialisers are not the parameters: s3\.0\.ffn\.shrink\.b"):
        export_onnx(small, tmp_path / "a.onnx")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("a.onnx", b"older")]


def test_what_cannot_be_told_is_not_kept(small: coatref.Params, tmp_path: Path) -> None:
    large = small.replace({"s1.0.expand.w": small.flatten()["s1.0.expand.w"] * 6e4})  # its results pass 65504
    with pytest.raises(FileFormatError, match=r"cannot be told .* some value does not fit into float16"):
        export_onnx(large, tmp_path / "a.onnx", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_onnxruntime_refuses_is_not_kept(small: coatref.Params, planting: Any, tmp_path: Path) -> None:
    def unknown(model: Any) -> None:
        node_of(model, "Conv").op_type = "Convolve"

    planting(unknown)
    with pytest.raises(FileFormatError, match="onnxruntime refuses a.onnx"):
        export_onnx(small, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_leaves_nothing(
    external: bool, small: coatref.Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.onnx").write_bytes(b"older")
    write_bytes = Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        write_bytes(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(small, tmp_path / "a.onnx", external=external, validate=False)
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_bytes() == b"older"


def test_the_file_appears_by_one_move_and_with_usual_permissions(
    small: coatref.Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    moves: list[tuple[Path, Path, bool]] = []
    replace = os.replace

    def noted(source: Path, target: Path) -> None:
        moves.append((source, target, target.exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    export_onnx(small, tmp_path / "a.onnx", validate=False)
    [(source, target, there)] = moves
    assert (
        target == tmp_path / "a.onnx" and source.parent.parent == tmp_path and not there
    )  # beside it: one file system
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- parameters in a file of their own ---


def test_parameters_pass_into_a_file_of_their_own(
    small: coatref.Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(export, "LARGEST_MESSAGE", 1000)
    found = export_onnx(small, tmp_path / "a.onnx", dtype="float64")  # validated as it stands
    assert found.external and sorted(each.name for each in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    assert found.size == sum(each.stat().st_size for each in tmp_path.iterdir())
    onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)
    assert_named_as_parameters(tmp_path / "a.onnx", small, "float64")
    bare = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    places = [{each.key: each.value for each in tensor.external_data} for tensor in bare.graph.initializer]
    assert {place["location"] for place in places} == {"a.onnx.data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places)
    x = images(SMALL, 2)
    right = coatref.forward(small, x, backend="definition")
    assert difference(runs(tmp_path / "a.onnx", "NHWC", "float64")(x), right) < 1e-13


def test_no_model_is_seen_with_parameters_of_another(
    small: coatref.Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    export_onnx(small, tmp_path / "a.onnx", external=True, validate=False)
    replace = os.replace

    def crash(source: Path, target: Path) -> None:
        if Path(target).suffix == ".onnx":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="Input/output"):
        export_onnx(parameters(SMALL, 1), tmp_path / "a.onnx", external=True, validate=False)
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx.data"]


# --- what is refused ---


def test_wrong_arguments_are_refused(small: coatref.Params, tmp_path: Path) -> None:
    wrong: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        (
            small,
            "a.onnx",
            {"dtype": "bfloat16"},
            InputError,
            "dtype is one of float16, float32, float64, got 'bfloat16'",
        ),
        (small, "a.onnx", {"layout": "CHWN"}, InputError, "layout is one of NHWC, NCHW, got 'CHWN'"),
        (small, "a.onnx", {"opset": 16}, InputError, "whole number from 17 to [0-9]+, got 16"),
        (small, "a.onnx", {"opset": 17.0}, InputError, "whole number from 17"),
        (small, "a.safetensors", {}, InputError, "ends in '.safetensors'"),
        (small, "none/a.onnx", {}, FileNotFoundError, "no folder .*none to write a.onnx to"),
        (small.flatten(), "a.onnx", {}, InputError, "takes coatref Params, got dict"),
    ]
    for params, name, options, error, message in wrong:
        with pytest.raises(error, match=message):
            export_onnx(params, tmp_path / name, **options)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        export_onnx(small, tmp_path / "folder.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["folder.onnx"]


def test_a_folder_that_cannot_be_written_is_told(small: coatref.Params) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("needs a folder that nobody can write to, such as /proc of Linux")
    with pytest.raises(OSError, match="/proc"):
        export_onnx(small, "/proc/a.onnx", validate=False)


def test_weights_that_no_file_can_hold_are_refused(small: coatref.Params, tmp_path: Path) -> None:
    bias = small.flatten()["head.classifier.b"]
    with pytest.raises(WeightsError, match=r"1 tensors hold NaN .*head\.classifier\.b"):
        export_onnx(small.replace({"head.classifier.b": bias + np.nan}), tmp_path / "a.onnx")
    with pytest.raises(WeightsError, match=r"too large for float16: head\.classifier\.b"):
        export_onnx(small.replace({"head.classifier.b": bias + 1e5}), tmp_path / "a.onnx", dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, small: coatref.Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with monkeypatch.context() as before, pytest.raises(MissingDependencyError, match=rf"needs {package}, ") as error:
        before.setattr(export, "cast", lambda *_: pytest.fail("worked before it looked for its packages"))
        export_onnx(small, tmp_path / "a.onnx")
    assert "pip install 'coatref[onnx]'" in str(error.value)
    if package == "onnxruntime":
        export_onnx(small, tmp_path / "a.onnx", validate=False)
        assert (tmp_path / "a.onnx").exists()


# --- arrays that are recorded ---


def test_permutations_that_undo_each_other_cost_nothing() -> None:
    graph = Graph(17)
    x = held(graph, (Batch(), 2, 3, 5), "float32", "x")
    there = permute_dims(x, (0, 3, 1, 2))
    assert there.shape == (Batch(), 5, 2, 3)
    assert laid(graph, permute_dims(there, (0, 2, 3, 1))) == "x" and graph.nodes == []
    laid(graph, there), laid(graph, there)
    assert [(node.operator, node.attributes) for node in graph.nodes] == [("Transpose", {"perm": (0, 3, 1, 2)})]


def test_equal_constants_are_one_and_equal_bytes_of_other_types_are_not() -> None:
    graph = Graph(17)
    names = [constant(graph, np.zeros(3, dtype)) for dtype in ("int64", "float64", "int64")]
    assert names == ["Constant_0", "Constant_1", "Constant_0"]


def test_what_depends_on_no_input_is_computed_at_once() -> None:
    rows = known(np.arange(6)) // 3
    assert (rows[:, None] - rows[None, :]).known.tolist()[5] == [1, 1, 1, 0, 0, 0]
    with pytest.raises(InputError, match="known arrays alone"):
        numbers(held(Graph(17), (2,), "float32", "x"))
    with pytest.raises(InputError, match="floor_divide cannot be part"):
        held(Graph(17), (2,), "float32", "x") // 2


def test_a_free_batch_goes_through_shapes_or_is_refused() -> None:
    assert filled_in((-1, 3), 12) == (4, 3) and filled_in((-1, 3), Batch(12)) == (Batch(4), 3)
    assert filled_in((Batch(4), -1), Batch(12)) == (Batch(4), 3)
    assert broadcast((Batch(2), 1, 5), (3, 1)) == (Batch(2), 3, 5)
    with pytest.raises(ShapeError, match="do not go together"):
        broadcast((Batch(), 2), (3, 2))
    for shape, whole in (((5, 3), 12), ((Batch(4), 2), Batch(12)), ((5, -1), Batch(12)), ((Batch(5), -1), Batch(12))):
        with pytest.raises(ShapeError):
            filled_in(shape, whole)
    with pytest.raises(ShapeError, match="two axes as long as the batch"):
        Batch() * Batch()
    x = held(Graph(17), (Batch(), 2, 3), "float32", "x")
    assert reshape(x, (Batch(), -1)).shape == (Batch(), 6) and take(x, known([2, 0]), axis=2).shape == (Batch(), 2, 2)
    with pytest.raises(InputError, match="as long as the batch cannot be cut"):
        x[1:]


# --- the command ---


@pytest.fixture(scope="module")
def checkpoint(small: coatref.Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    coatref.save(small.to(dtype="float32"), path)
    return path


def test_the_command_writes_what_the_function_writes(
    checkpoint: Path, small: coatref.Params, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["onnx", str(checkpoint), str(tmp_path / "a.onnx"), "--layout", "NCHW", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = export_onnx(small.to(dtype="float32"), tmp_path / "b.onnx", layout="NCHW")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert told["path"] == str(tmp_path / "a.onnx") and told["kept"] and told["image_size"] == [32, 64]
    assert told["agreement"]["margin"] == found.agreement.margin and told["agreement"]["batches"] == [2, 1]
    assert told["size"] == (tmp_path / "a.onnx").stat().st_size and told["parameters"] == SMALL.num_parameters()


def test_the_command_tells_in_words_and_resizes(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["onnx", str(checkpoint), str(tmp_path / "a.onnx"), "--size", "64x32"]) == 0
    out = capsys.readouterr().out
    assert "coatnet_0, images (N, H, W, C) of 64x32 in float32" in out and "operators of opset 17" in out
    assert "times what rounding in float32 allows, found in" in out and len(out.splitlines()) == 3
    options = ["--size", "64x32", "--dtype", "float64", "--no-validate", "--external", "-q"]
    assert main(["onnx", str(checkpoint), str(tmp_path / "a.onnx"), *options]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.onnx'}: not validated\n"
    assert (tmp_path / "a.onnx.data").is_file()
    params = coatref.load(checkpoint, dtype="float64").resize(64, 32)
    x = images(params.spec, 2)
    assert difference(runs(tmp_path / "a.onnx", "NHWC", "float64")(x), coatref.forward(params, x)) < 1e-13


def test_the_command_ends_with_1_where_the_file_is_wrong(
    checkpoint: Path, planting: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    planting(other_index)
    arguments = ["onnx", str(checkpoint), str(tmp_path / "a.onnx")]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert out.startswith("NOT KEPT  ") and "it does not compute what the definition does in float32: " in out
    planting(changed_initialiser)
    assert main([*arguments, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["kept"] and told["agreement"]["verdict"] == "fail" and told["agreement"]["margin"] is None
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_2_on_errors(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "a.onnx")
    for arguments, message in (
        ([str(tmp_path / "none.safetensors"), out], "none.safetensors"),
        ([str(checkpoint), out, "--dtype", "int8"], "dtype is one of"),
        ([str(checkpoint), out, "--size", "33x"], "is no image size"),
        ([str(checkpoint), out, "--spec", "coatnet_1"], "coatnet_1"),
        ([str(checkpoint), str(tmp_path / "a.tflite")], "ends in '.tflite'"),
    ):
        assert main(["onnx", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [*judge.BATCHES, sum(judge.BATCHES)])
def test_a_batch_that_is_not_free_is_seen(count: int, small: coatref.Params, planting: Any, tmp_path: Path) -> None:
    """A file for so many images alone, which onnxruntime refuses to run on others."""

    def fixed(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = count

    planting(fixed)
    with pytest.raises(FileFormatError, match="onnxruntime refuses a.onnx"):
        export_onnx(small, tmp_path / "a.onnx")


def test_the_file_says_what_it_is_and_loads_to_the_bit(tmp_path: Path) -> None:
    """Also where its tensors leave that open: a spec of one's own, and another image size."""
    own = coatref.spec("coatnet_0", image_size=(64, 96), classes=7, depths=(2, 1, 1, 2, 1), widths=(8, 16, 24, 32, 64))
    params = coatref.init(own.replace(name="mine"), 3, scheme="distinct")
    coatref.export_onnx(params, tmp_path / "mine.onnx", validate=False)
    found = coatref.load(tmp_path / "mine.onnx")
    assert found.spec == params.spec
    assert all(np.array_equal(array, params.flatten()[name]) for name, array in found.flatten().items())
    assert make(str(tmp_path / "mine.onnx")).spec == params.spec  # and the judge knows it too
    model = onnx.load(tmp_path / "mine.onnx")
    model.metadata_props.add(key="coatref.spec", value="{}")
    onnx.save(model, tmp_path / "twice.onnx")
    with pytest.raises(coatref.FileFormatError, match="property coatref.spec twice"):
        coatref.load(tmp_path / "twice.onnx")
    model.metadata_props.pop()
    for entry in model.metadata_props:
        if entry.key == "coatref.format":
            entry.value = "2"
    onnx.save(model, tmp_path / "later.onnx")
    with pytest.raises(coatref.FileFormatError, match="coatref format '2'"):
        coatref.load(tmp_path / "later.onnx")
