"""A network under another project's conventions: what can be said in other words, and what stands in the way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coatref
from coatref.cli import main
from coatref.specification.parts import LayerScale, MBConv, Transformer
from coatref.weights.dialects import DIALECTS
from coatref.weights.represent import represented

SIZE = (64, 96)
OWN = {"hw666": "hw666/coatnet_0", "google": "google/coatnet_0"}


def small(name: str) -> coatref.Spec:
    """A small spec on images that are not square; the depths and widths have an entry for the stem or have not."""
    depths: tuple[int, ...] = (1, 1, 2, 1)
    widths: tuple[int, ...] = (32, 64, 96, 160)
    if not name.startswith(("timm/", "kecam/")):
        depths, widths = (2, *depths), (24, *widths)
    return coatref.spec(name, image_size=SIZE, classes=7, depths=depths, widths=widths)


def changed(spec: coatref.Spec, attention: dict[str, Any], mbconv: dict[str, Any], **transformer: Any) -> coatref.Spec:
    """A spec with other choices in its blocks, under a name that no dialect has."""
    stages = tuple(
        tuple(
            dataclasses.replace(run, attention=dataclasses.replace(run.attention, **attention), **transformer)
            if isinstance(run, Transformer)
            else dataclasses.replace(run, **mbconv)
            for run in stage
        )
        for stage in spec.stages
    )
    return spec.replace(name="mine", stages=stages)


def images() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(2, *SIZE, 3))


def same_function(ours: coatref.Params, theirs: coatref.Params) -> None:
    """Equal logits in float64 by the definition."""
    mine = coatref.forward(ours, images(), backend="definition")
    other = coatref.forward(theirs, images(), backend="definition")
    assert np.max(np.abs(mine - other)) <= 1e-13 * np.max(np.abs(mine))
    assert np.ptp(mine) > 0.01 * np.max(np.abs(mine))


def flipped(run: Transformer, orientation: Any) -> Any:
    assert run.attention.relative_bias is not None
    return dataclasses.replace(run.attention.relative_bias, orientation=orientation)


@pytest.mark.parametrize("orientation", ["query_minus_key", "key_minus_query", "transposed"])
@pytest.mark.parametrize("name", list(OWN.values()))
def test_tables_are_turned(name: str, orientation: Any) -> None:
    own = small(name)
    run = own.stages[-1][0]
    assert isinstance(run, Transformer)
    spec = changed(own, {"relative_bias": flipped(run, orientation)}, {})
    params = coatref.init(spec, 5, dtype="float64", scheme="distinct")
    found = represented(params, name.partition("/")[0])
    assert found.spec == own
    same_function(params, found)


def test_biases_of_zeros_and_scales_of_ones_come_and_go() -> None:
    own = small("hw666/coatnet_0")
    lacking = changed(own, {"qkv_bias": False, "output_bias": False}, {"shrink_bias": False}, projection_bias=False)
    params = coatref.init(lacking, 5, dtype="float64", scheme="distinct")
    found = represented(params, "hw666")
    assert found.spec == own and not np.any(found["s3"][0]["attn"]["q"]["b"])
    same_function(params, found)

    with_more = changed(own, {}, {"expand_bias": True, "depthwise_bias": True})
    params = coatref.init(with_more, 5, dtype="float64", scheme="distinct")
    with pytest.raises(coatref.WeightsError, match=r"tensor s1\.0\.expand\.b is \[96\] here and null there"):
        represented(params, "hw666")
    zeros = {name: 0 * array for name, array in params.flatten().items() if name.endswith(("expand.b", "depthwise.b"))}
    zeros = {name: array for name, array in zeros.items() if ".se." not in name and ".ffn." not in name}
    found = represented(params.replace(zeros), "hw666")
    assert found.spec == own
    same_function(params.replace(zeros), found)

    scaled = small("timm/coatnet_rmlp_2_rw_224")
    plain = scaled.replace(
        stages=tuple(tuple(dataclasses.replace(run, layer_scale=None) for run in stage) for stage in scaled.stages)
    )
    params = coatref.init(plain, 5, dtype="float64", scheme="distinct")
    assert any(isinstance(run, Transformer) and run.layer_scale for stage in scaled.stages for run in stage)
    found = represented(params, "timm")
    same_function(params, found)
    with_scale = changed(own, {}, {"layer_scale": LayerScale(initial=1.0)})
    with pytest.raises(coatref.WeightsError, match=r"tensor s1\.0\.layer_scale\.gamma"):
        represented(coatref.init(with_scale, 5), "hw666")


@pytest.mark.parametrize("site", ["query", "key", "query_and_key", "logits"])
def test_the_scale_may_stand_elsewhere(site: str) -> None:
    own = small("hw666/coatnet_0")
    params = coatref.init(changed(own, {"scale_site": site}, {}), 5, dtype="float64", scheme="distinct")
    found = represented(params, "hw666")
    assert found.spec == own
    same_function(params, found)


@pytest.mark.parametrize(
    ("name", "dialect", "obstacles"),
    [
        ("coatnet_0", "timm", ["max", "avg"]),
        ("coatnet_0", "kecam", ["epsilon"]),
        ("timm/coatnet_0_rw_224", "kecam", ["silu", "gelu"]),
        ("kecam/CoAtNet0", "timm", ["max", "avg"]),
        ("google/coatnet_0", "hw666", ['expansion_from is "output" here and "input" there']),
        ("hw666/coatnet_0", "chinhsuanwu", ["pool"]),
    ],
)
def test_what_stands_in_the_way_is_named(name: str, dialect: str, obstacles: list[str]) -> None:
    params = coatref.init(small(name), 0)
    with pytest.raises(coatref.WeightsError, match=f"cannot be represented in the dialect '{dialect}'") as caught:
        represented(params, dialect)
    for part in obstacles:
        assert part in str(caught.value)


def test_a_scale_of_the_logits_and_the_bias_is_no_other_place_of_the_same_scale() -> None:
    own = small("hw666/coatnet_0")
    params = coatref.init(changed(own, {"scale_site": "logits_and_bias"}, {}), 0)
    with pytest.raises(coatref.WeightsError, match='scale_site is "logits_and_bias" here'):
        represented(params, "hw666")


def test_other_stages() -> None:
    params = coatref.init(coatref.spec("c-c-c-t", image_size=SIZE, classes=7), 0)
    with pytest.raises(coatref.WeightsError, match=r"stages\.kind is"):
        represented(params, "google")
    params = coatref.init(coatref.spec("vit-rel", image_size=(64, 96), classes=7), 0)
    with pytest.raises(coatref.WeightsError, match="none of its networks has 1 stages"):
        represented(params, "timm")


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "coatref"])
def test_a_dialects_own_specs_stay_as_they_are(dialect: str) -> None:
    params = coatref.init(small(DIALECTS[dialect].specs()[1]), 0)
    assert represented(params, dialect) is params
    assert represented(params, "coatref") is params


def test_padding_that_makes_no_difference() -> None:
    own = small("hw666/coatnet_0")
    assert all(run.stride_at == "expand" for stage in own.stages for run in stage if isinstance(run, MBConv))
    params = coatref.init(changed(own, {}, {"padding": "symmetric"}), 5, dtype="float64", scheme="distinct")
    found = represented(params, "hw666")
    assert found.spec == own
    same_function(params, found)


def test_padding_that_makes_one_is_in_the_way() -> None:
    own = small("timm/coatnet_1_rw_224")
    assert all(run.stride_at == "depthwise" for stage in own.stages for run in stage if isinstance(run, MBConv))
    params = coatref.init(changed(own, {}, {"padding": "same"}), 0)
    with pytest.raises(coatref.WeightsError, match='stages.padding is "same" here and "symmetric" there'):
        represented(params, "timm")


# --- the commands ---


def run(*arguments: str) -> int:
    return main(list(arguments))


def test_files_from_dialect_to_dialect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = small("kecam/CoAtNet0")
    params = coatref.init(spec, 3, scheme="distinct")
    own, keras, torch, back = (
        str(tmp_path / name) for name in ("own.safetensors", "k.h5", "t.npz", "back.safetensors")
    )
    coatref.save(params, own)
    assert run("convert-weights", own, keras, "--to", "kecam") == 0
    assert "kecam/CoAtNet0 for images of 64x96 in the names of kecam (keras)" in capsys.readouterr().out
    pytest.importorskip("h5py", reason="needs h5py")
    (tmp_path / "spec.json").write_text(spec.to_json())
    found = coatref.load(keras, spec)
    assert run("export", own, torch, "--dialect", "kecam", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layout"] == "torch" and facts["bytes"] == Path(torch).stat().st_size and facts["dtype"] == "float32"
    for name, array in params.flatten().items():
        assert np.array_equal(found.flatten()[name], array)
        assert np.array_equal(coatref.load(torch, spec).flatten()[name], array)
    assert run("convert-weights", own, back, "--to", "coatref", "--size", "96x64", "--dtype", "float64") == 0
    assert coatref.load(back).spec == spec.replace(image_size=(96, 64))


def test_what_cannot_be_converted_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, out = str(tmp_path / "own.safetensors"), tmp_path / "out.safetensors"
    coatref.save(coatref.init(small("coatnet_0"), 0), own)
    for arguments, message in (
        (["convert-weights", own, str(out), "--to", "timm"], "cannot be represented in the dialect 'timm'; in the way"),
        (["convert-weights", own, str(out), "--to", "keras"], "There is no dialect 'keras'; known are coatref, timm"),
        (["export", own, str(out), "--dialect", "kecam"], "has a layer 'norm' for which kecam has no name"),
        (["export", own, str(tmp_path / "out.h5")], "under names LAYER/LEAF"),
        (["export", own, str(tmp_path / "out.txt")], "weights are written to .safetensors, .npz, .h5 files"),
        (["export", own, own], "is the file that is read"),
        (["export", own, str(out), "--layout", "keras"], "has no layout 'keras'"),
        (["convert-weights", own, str(out), "--to", "coatref", "--resize", "swin"], "resized as paper or timm"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.safetensors"]
