"""What the judge must show on implementations of others: timm, an ONNX file, kecam, and the deviations of two more."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kecam_models import require_kecam
from timm_import import require_timm
from timm_models import randomised

import coatref
from coatref.cli import main
from coatref.conformance import suite
from coatref.conformance.judge import check
from coatref.conformance.looking import Known
from coatref.conformance.mistakes.catalogue import mistake
from coatref.conformance.mistakes.changed import shapes
from coatref.conformance.mistakes.mistake import applies
from coatref.conformance.precision import Precision
from coatref.conformance.report.results import Report
from coatref.conformance.selftest import planted, shapes_of
from coatref.conformance.target import Target
from coatref.conformance.targets.resolve import resolve
from coatref.conformance.variants import shrunk
from coatref.errors import CoatrefError
from coatref.specification import timm as timm_specs

ONE_OF_EACH: Any = {"depths": (1, 1, 1, 1), "widths": (16, 32, 64, 64), "classes": 7}


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A diagnosis that no slow machine cuts short."""
    monkeypatch.setitem(suite.LEVELS, "quick", dataclasses.replace(suite.LEVELS["quick"], seconds=600.0))


# --- timm ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_small_timm_model_conforms_in_float32_and_by_autocast(dtype: str) -> None:
    require_timm()
    whole = resolve("timm:coatnet_0_rw_224", precision=dtype)
    assert whole.variant is not None and whole.precision.accumulate == "float32"
    report = check(whole.variant(shrunk(whole.spec, 1)), level="quick")
    assert report.conforms, report.summary
    assert {"as given", "wiring", "amplifier", "random", "law"} <= {result.check for result in report.results}


@pytest.mark.deep
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_timm_model_conforms_at_its_own_size(dtype: str) -> None:
    require_timm()
    report = coatref.check("timm:coatnet_0_rw_224", dtype=dtype)
    assert report.conforms and report.exit_code == 0, report.summary
    given = next(result for result in report.results if result.check == "as given")
    assert given.image[1:] == (224, 224) and given.spec == "timm/coatnet_0_rw_224"


@pytest.mark.deep
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", timm_specs.names())
def test_every_timm_model_of_the_family_conforms_at_reduced_size(name: str, dtype: str) -> None:
    require_timm()
    report = check(reduced(name, dtype), level="quick")
    assert report.conforms, [report.summary, *(finding.sentence for finding in report.findings)]


def reduced(name: str, dtype: str) -> Target:
    """A small variant of a model, at the first size that timm can build."""
    whole = resolve(f"timm:{name.removeprefix('timm/')}", precision=dtype)
    assert whole.variant is not None
    problem: CoatrefError | None = None
    for size in ((64, 96), (96, 160), (128, 192), (224, 224)):
        try:
            if any(len(stage) > 1 for stage in whole.spec.stages):  # whose runs timm gives one width
                return whole.variant(coatref.spec(name, image_size=size, classes=7, widths=(16, 32, 64, 96)))
            return whole.variant(shrunk(whole.spec, 1, (size,), heads=1))
        except CoatrefError as error:
            problem = error
    raise AssertionError(f"no small {name}: {problem}")


# --- an ONNX file ---


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: right.onnx, changed.onnx with 1 % more in one initialiser, spec.json and the weights of the first."""
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, which is not installed (pip install {package})")
    timm = require_timm()
    import onnx
    import torch
    from onnx import numpy_helper

    folder, size = tmp_path_factory.mktemp("shown"), (32, 64)
    spec = coatref.spec("timm/coatnet_0_rw_224", image_size=size, **ONE_OF_EACH)
    options = {"img_size": size, "depths": (1, 1, 1, 1), "embed_dim": (16, 32, 64, 64), "num_classes": 7}
    net = randomised(timm, "coatnet_0_rw_224", 0, **options).float()
    (folder / "spec.json").write_text(spec.to_json())
    params = coatref.convert(net.state_dict(), spec, dialect="timm", dtype="float32")
    coatref.save(params, folder / "weights.safetensors")
    silent = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        warnings.simplefilter("ignore")  # torch's own
        torch.onnx.export(
            net,
            (torch.zeros(1, 3, *size),),
            str(folder / "right.onnx"),
            dynamo=False,
            do_constant_folding=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )
        graph = onnx.load(folder / "right.onnx")
        tensor = next(t for t in graph.graph.initializer if t.name == "stages.2.blocks.0.mlp.fc2.weight")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
        onnx.save(graph, folder / "changed.onnx")
    return folder


def test_an_onnx_export_conforms(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"onnx:{exported / 'right.onnx'}", "--spec", str(exported / "spec.json"), "--level", "quick"]
    assert main(["check", *arguments]) == 0
    assert capsys.readouterr().out.startswith("CONFORMS")


def test_an_initialiser_changed_by_one_percent_is_named(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--weights", str(exported / "weights.safetensors"), "--level", "quick"]
    assert main(["check", f"onnx:{exported / 'changed.onnx'}", *arguments]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("FAILS") and "holds other weights than those given: s3.0.ffn.shrink.w (by up to 1 %)" in said


# --- keras_cv_attention_models ---


def kecam_report(height: int, width: int) -> Report:
    """The report on the package's CoAtNet0, small and at one size only, through its factory."""
    require_kecam()
    spec = coatref.spec("kecam/CoAtNet0", image_size=(height, width), **{**ONE_OF_EACH, "widths": (8, 32, 64, 64)})
    assert spec.num_parameters() <= suite.SMALL
    target = resolve("torch:kecam_models:factory", spec=spec, dialect="kecam")
    return check(dataclasses.replace(target, variant=None), level="quick")


def test_kecam_conforms_on_square_images() -> None:
    report = kecam_report(64, 64)
    assert report.conforms and report.spec == "kecam/CoAtNet0", report.summary


def test_kecam_s_swapped_index_shows_on_images_that_are_not_square() -> None:
    report = kecam_report(32, 64)
    assert report.verdict == "fail" and report.exit_code == 1
    assert [finding.mistake for finding in report.findings] == ["bias-xy-grid"]
    assert "numbers the positions as a grid of W rows and H columns in its index" in report.summary
    assert report.findings[0].heat_map is not None


# --- the deviations of chinhsuanwu and sup3rgiu, planted into the definition ---

DEFINITION = shrunk(coatref.spec("coatnet_0"), 1)
STRIDED_DEPTHWISE = shrunk(coatref.spec("coatnet_0/strided-depthwise"), 1)
EQUAL_WIDTHS = coatref.spec(  # the first stage keeps the width of the stem
    "coatnet_0", image_size=(64, 96), classes=7, depths=(1, 1, 1, 1, 1), widths=(16, 16, 24, 64, 96)
)
DEVIATIONS = {  # deviation -> mistake of the catalogue, and the network that it is planted into
    "chinhsuanwu: 8 heads of 32 in every block": ("heads-fixed-8", DEFINITION),
    "chinhsuanwu: pool before the norm": ("pool-then-norm", DEFINITION),
    "chinhsuanwu: feed-forward 4 times the input": ("ffn-of-input", DEFINITION),
    "chinhsuanwu: 3x3 pool of attention": ("attention-pool-3x3", DEFINITION),
    "chinhsuanwu: 3x3 pool of shortcuts": ("shortcut-pool-3x3", DEFINITION),
    "chinhsuanwu: norm after the projection": ("shrink-norm-added", DEFINITION),
    "chinhsuanwu: norm and activation after the stem": ("stem-norm-after-last", DEFINITION),
    "chinhsuanwu: squeeze-excite without bias": ("se-bias-ignored", DEFINITION),
    "chinhsuanwu: squeeze-excite by GELU": ("se-activation-gelu", DEFINITION),
    "chinhsuanwu: squeeze-excite from the input": ("se-of-input", DEFINITION),
    "chinhsuanwu: expansion of the input": ("expansion-of-input", DEFINITION),
    "chinhsuanwu: projection without norm's bias": ("shrink-bias-ignored", DEFINITION),
    "chinhsuanwu: q, k, v without bias": ("qkv-bias-missing", DEFINITION),
    "chinhsuanwu: shortcuts without bias": ("projection-bias-ignored", DEFINITION),
    "chinhsuanwu: shortcuts projected at every stride": ("projection-always", EQUAL_WIDTHS),
    "chinhsuanwu: classifier without bias": ("classifier-bias-missing", DEFINITION),
    "chinhsuanwu: no norm in the head": ("head-norm-missing", DEFINITION),
    "chinhsuanwu: no hidden layer in the head": ("head-hidden-missing", DEFINITION),
    "chinhsuanwu: a square window as the global pool": ("global-pool-square", DEFINITION),
    "sup3rgiu: positions numbered column by column": ("bias-xy-transposed", DEFINITION),
    "sup3rgiu: table transposed, on square grids": ("bias-transposed", DEFINITION),
    "sup3rgiu: softmax behind the classifier": ("output-probabilities", DEFINITION),
    "sup3rgiu: norm before the global pool": ("head-norm-then-pool", DEFINITION),
    "sup3rgiu: squeeze-excite by GELU, of the expanded width": ("se-of-expanded", DEFINITION),
    "sup3rgiu: symmetric padding of the stem": ("stem-padding-symmetric", DEFINITION),
    "sup3rgiu: stride at the depthwise convolution, by its flag": ("stride-at-depthwise", DEFINITION),
    "sup3rgiu: stride at the first 1x1 convolution": ("stride-at-expand", STRIDED_DEPTHWISE),
}
FAST = (
    "heads-fixed-8",
    "pool-then-norm",
    "ffn-of-input",
    "attention-pool-3x3",
    "shrink-norm-added",
    "stem-norm-after-last",
    "global-pool-square",
    "bias-xy-transposed",
    "output-probabilities",
)


@pytest.fixture(scope="module")
def known() -> dict[str, Known]:
    """What was computed for each of the networks."""
    return {spec.to_json(): Known() for _, spec in DEVIATIONS.values()}


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        pytest.param(name, spec, id=words, marks=[] if name in FAST else [pytest.mark.deep])
        for words, (name, spec) in DEVIATIONS.items()
    ],
)
def test_a_deviation_is_named_exactly(name: str, spec: coatref.Spec, known: dict[str, Known]) -> None:
    assert applies(mistake(name), spec)
    target = dataclasses.replace(planted([mistake(name)], spec, Precision()), variant=None)
    report = check(target, level="quick", known=known[spec.to_json()])
    assert report.verdict == "fail" and [finding.mistake for finding in report.findings] == [name], report.summary
    assert mistake(name).sentence in report.summary
    if shapes_of([mistake(name)], spec) != shapes(spec):
        assert report.findings[0].tensors and "parameters of other shapes" in report.findings[0].sentence


@pytest.mark.deep
def test_both_deviations_of_sup3rgiu_are_named_at_once(known: dict[str, Known]) -> None:
    names = ("bias-xy-transposed", "head-norm-then-pool")
    target = planted([mistake(name) for name in names], DEFINITION, Precision())
    report = check(dataclasses.replace(target, variant=None), level="quick", known=known[DEFINITION.to_json()])
    assert {finding.mistake for finding in report.findings} == set(names), report.summary


def taking(spec: coatref.Spec, expects: dict[str, tuple[int, ...]]) -> Report:
    """The report on an implementation of a spec that takes parameters of other shapes, and so raises."""

    def run(params: coatref.Params, x: np.ndarray) -> dict[str, Any]:
        raise ValueError("size mismatch")

    return check(Target("misshapen", spec, run, expects=expects), level="quick")


def test_the_width_1026_of_both_is_told_by_its_tensors() -> None:
    """Both give CoAtNet-2 a last stage of 1026 channels; here it is 2 wider than a small one's."""
    width = DEFINITION.width
    wider = {name: tuple(side + 2 * (side == width) for side in shape) for name, shape in shapes(DEFINITION).items()}
    report = taking(DEFINITION, wider)
    (finding,) = report.findings
    assert report.exit_code == 1 and finding.mistake == ""
    assert set(finding.tensors) == {name for name, shape in shapes(DEFINITION).items() if shape != wider[name]}
    assert (
        f"{width + 2}" in finding.sentence and f"should be {shapes(DEFINITION)[finding.tensors[0]]}" in finding.sentence
    )


def test_the_table_of_sup3rgiu_is_told_by_its_tensors() -> None:
    """Its tables are made for floor(side / 16) positions, where its padding gives ceil."""
    spec = DEFINITION.replace(image_size=(72, 104))  # grids of 5x7 and 3x4, for which it has tables of 4x6 and 2x3
    tables = {name: shape for name, shape in shapes(spec).items() if name.endswith("attn.relative_bias.table")}
    assert {shape[1:] for shape in tables.values()} == {(9, 13), (5, 7)}
    floored = {name: (heads, rows - 2, columns - 2) for name, (heads, rows, columns) in tables.items()}
    report = taking(spec, {**shapes(spec), **floored})
    (finding,) = report.findings
    assert report.exit_code == 1 and set(finding.tensors) == set(tables)
