"""The timm specs against timm itself: names, shapes, counts, preprocessing, stage outputs and logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from timm_import import require_timm
from timm_models import images, log_coordinates, randomised

import coatref
from coatref.specification import timm as timm_specs
from coatref.specification.spec import Spec
from coatref.weights.timm import IGNORED, expected

ALL = timm_specs.names()
SMALL = (  # one of every way in which timm's models differ, in CI; all of them under `deep`
    "timm/test_coatnet",
    "timm/coatnet_nano_rw_224",
    "timm/coatnet_0_rw_224",
    "timm/coatnet_bn_0_rw_224",
    "timm/coatnet_rmlp_nano_rw_224",
    "timm/coatnet_nano_cc_224",
    "timm/coatnext_nano_rw_224",
    "timm/coatnet_0_224",
)


@pytest.fixture(scope="session")
def timm() -> Any:
    return require_timm()


def test_every_entry_point_of_timm_has_a_spec(timm: Any) -> None:
    found = {name for name in timm.list_models(module="maxxvit") if "coatne" in name}
    assert {f"timm/{name}" for name in found} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_names_shapes_and_count_are_those_of_timm(timm: Any, name: str) -> None:
    import torch

    with torch.device("meta"):
        model = timm.create_model(name.removeprefix("timm/"), pretrained=False)
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.endswith(IGNORED)}
    spec = coatref.spec(name)
    assert expected(spec) == theirs
    assert spec.num_parameters() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_preprocessing_is_that_of_timm(timm: Any, name: str) -> None:
    entry = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    spec = coatref.spec(name)
    assert (spec.channels, *spec.image_size) == entry.input_size
    assert spec.head.classes == entry.num_classes
    assert dataclasses.astuple(spec.preprocessing) == (
        entry.crop_pct,
        entry.crop_mode or "center",
        entry.interpolation,
        entry.mean,
        entry.std,
        "pillow",
        True,
    )


def compare(timm: Any, name: str, batch: int, **size: Any) -> None:
    """Logits and stage outputs of a randomised timm model and of the definition on NumPy, both in float64."""
    import torch

    spec = coatref.spec(name, **size)
    options = {"img_size": spec.image_size} if size else {}
    model = randomised(timm, name.removeprefix("timm/"), 1, **options)
    x = images(2, batch, spec.channels, *spec.image_size)
    with torch.no_grad():
        final, stages = model.forward_intermediates(x)
        logits = model.forward_head(final)
    params = coatref.convert(model.state_dict(), spec)
    values = coatref.trace(params, x.permute(0, 2, 3, 1).numpy())
    for index, theirs in enumerate(stages):
        assert_same(values[f"s{index}"], theirs.permute(0, 2, 3, 1).numpy(), f"s{index}")
    assert list(values)[-1] == "logits"
    assert_same(values["logits"], logits.numpy(), "logits")
    ours = x.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(coatref.forward(params, ours, backend="definition"), values["logits"])
    assert_same(coatref.forward(params, ours), logits.numpy(), "logits of the fast forms")
    assert_same(coatref.forward(coatref.prepare(params), ours), logits.numpy(), "logits of prepared parameters")


def assert_same(ours: np.ndarray, theirs: np.ndarray, where: str) -> None:
    """Equal to 1e-11 of the largest value, the bound that the project promises for float64."""
    assert ours.shape == theirs.shape, where
    difference = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
    assert difference <= 1e-11, f"{where}: {difference:.1e}"


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_stages_are_those_of_timm(timm: Any, name: str) -> None:
    compare(timm, name, 2, image_size=None if name.endswith("test_coatnet") else (96, 128))


@pytest.mark.parametrize("name", ["timm/test_coatnet", "timm/coatnet_nano_rw_224"])
def test_at_native_size(timm: Any, name: str) -> None:
    compare(timm, name, 2)


@pytest.mark.deep
@pytest.mark.parametrize("name", ALL)
def test_every_model_at_native_size(timm: Any, name: str) -> None:
    compare(timm, name, 2)


def test_the_coordinates_put_into_timm_are_its_own_but_for_their_rounding(timm: Any) -> None:
    """What `randomised` replaces differs from timm's float32 buffer by float32 rounding and no more."""
    model = timm.create_model("coatnet_rmlp_nano_rw_224", pretrained=False, img_size=(96, 160))
    found = 0
    for module in model.modules():
        if hasattr(module, "rel_coords_log"):
            theirs = module.rel_coords_log.double().numpy()
            exact = log_coordinates(*module.window_size).numpy()
            assert np.all(np.abs(theirs - exact) <= 2 * np.spacing(np.abs(exact).astype(np.float32)))
            found += 1
    assert found == 9


def test_the_photograph(timm: Any) -> None:
    """A real image through both pipelines: their transform and model, and ours, in float64."""
    import torch

    from coatref.images import photograph

    name = "timm/coatnet_nano_rw_224"
    model = randomised(timm, name.removeprefix("timm/"), 3)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with torch.no_grad():
        theirs = model(transform(photograph()).double()[None]).numpy()
    params = coatref.convert(model.state_dict(), name)
    ours = coatref.forward(params, coatref.preprocess(photograph(), params.spec).astype(np.float64))
    assert_same(ours, theirs, "logits")


def test_heads_first_qkv_is_not_read_as_qkv_first(timm: Any) -> None:
    """A planted fault: swapping two heads' rows of the fused tensor must change the logits."""
    spec: Spec = coatref.spec("timm/test_coatnet")
    state = dict(randomised(timm, "test_coatnet", 4).state_dict())
    x = images(5, 1, 3, *spec.image_size).permute(0, 2, 3, 1).numpy()
    right = coatref.forward(coatref.convert(state, spec), x)
    key = "stages.3.blocks.0.attn.qkv.weight"
    state[key] = state[key].reshape(-1, 3, 32, state[key].shape[1]).transpose(0, 1).reshape(state[key].shape)
    wrong = coatref.forward(coatref.convert(state, spec), x)
    assert np.max(np.abs(right - wrong)) > 1e-3 * np.max(np.abs(right))
