"""The kecam specs against keras_cv_attention_models itself: names, counts, files, logits, and its mistake."""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kecam_models import factory, randomised, require_kecam

import coatref
from coatref.conformance.mistakes import relative_bias
from coatref.conformance.mistakes.changed import Changed, compute
from coatref.conformance.precision import Precision, declared
from coatref.conformance.targets import kecam as target
from coatref.conformance.targets.resolve import resolve
from coatref.primitives import Primitives
from coatref.specification import kecam as kecam_specs
from coatref.weights import kecam as table
from coatref.weights.export import export

ALL = kecam_specs.names()
SMALL: dict[str, dict[str, Any]] = {
    "kecam/CoAtNet0": {"depths": (2, 1, 2, 2), "widths": (8, 32, 64, 64)},
    "kecam/CoAtNet5": {"depths": (1, 1, 2, 1), "widths": (24, 64, 128, 64)},  # heads of 64
    "kecam/CoAtNet6": {"depths": (1, 1, 2, 2, 1), "widths": (8, 16, 128, 256, 128)},  # S3 of two runs, heads of 128
}
# The figures of its README, in millions.
PRINTED = [("kecam/CoAtNet3", 384, 160.641), ("kecam/CoAtNet5", 512, 676.234), ("kecam/CoAtNet6", 512, 1335.56)]


@pytest.fixture(scope="session")
def kecam() -> Any:
    return require_kecam()


def small(name: str, height: int, width: int) -> coatref.Spec:
    return coatref.spec(name, image_size=(height, width), classes=7, **SMALL[name])


def images(spec: coatref.Spec, seed: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, *spec.image_size, spec.channels))


def theirs(model: Any, x: np.ndarray) -> np.ndarray:
    """The model's output for images with channels last."""
    import torch

    with torch.no_grad():
        output: np.ndarray = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    return output


def difference(ours: np.ndarray, other: np.ndarray) -> float:
    assert ours.shape == other.shape
    return float(np.max(np.abs(ours - other)) / np.max(np.abs(other)))


def xy_index_bias(table: Any, height: int, width: int) -> Any:
    """What the package gathers from a table for a grid of H x W positions, numbered 0, 1, ... row by row.

    It takes position t to be at row t mod H and column t div H (meshgrid's "xy" order), and reads, of the table laid out as
    one line of numbers, entry (row difference + H-1) + (column difference + W-1) (2H-1).
    """
    row, column = np.arange(height * width) % height, np.arange(height * width) // height
    index = (row[:, None] - row + height - 1) + (column[:, None] - column + width - 1) * (2 * height - 1)
    return table.reshape(table.shape[0], -1)[:, index]


# --- names and counts ---


def test_every_model_of_the_package_has_a_spec(kecam: Any) -> None:
    found = {name for name in vars(kecam) if name.startswith("CoAtNet") and name != "CoAtNet"}
    assert {f"kecam/{name}" for name in found} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_names_shapes_and_count_are_those_of_the_package(kecam: Any, name: str) -> None:
    import torch

    with torch.device("meta"):
        model = getattr(kecam, name.removeprefix("kecam/"))(pretrained=None, classifier_activation=None)
    state = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.endswith(table.IGNORED)}
    spec = coatref.spec(name)
    assert table.expected(spec, "torch") == state
    assert spec.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert model.rescale_mode == "torch" and spec.image_size == model.input_shape[2:]


def test_counts_are_those_that_the_package_prints() -> None:
    assert coatref.spec("kecam/CoAtNet0").num_parameters() == 23_279_570  # "23.28M"
    for name, size, printed in PRINTED:
        count = coatref.spec(name, image_size=size).num_parameters() / 1e6
        assert round(count, 3 - (printed == 1335.56)) == printed


@pytest.mark.parametrize("name", SMALL)
def test_what_a_model_says_of_its_sizes_is_what_the_package_builds(kecam: Any, name: str) -> None:
    spec = small(name, 64, 64)
    assert sum(p.numel() for p in factory(spec).parameters()) == spec.num_parameters()


# --- logits ---


@pytest.mark.parametrize("size", [64, 38, 35])  # 38 and 35 give odd grids to the strides and pools
@pytest.mark.parametrize("name", SMALL)
def test_square_images(kecam: Any, name: str, size: int) -> None:
    spec = small(name, size, size)
    model, x = randomised(spec, 1), images(spec, 2)
    params = coatref.convert(model.state_dict(), spec)
    assert difference(coatref.forward(params, x), theirs(model, x)) <= 1e-10


def test_probabilities(kecam: Any) -> None:
    """The package's default puts a softmax behind the classifier, whose tensors get other names."""
    spec = small("kecam/CoAtNet0", 64, 64)
    spec = spec.replace(head=dataclasses.replace(spec.head, output="probabilities"))
    model, x = randomised(spec, 3), images(spec, 4)
    assert "predictions.0.weight" in model.state_dict()
    output = coatref.forward(coatref.convert(model.state_dict(), spec), x)
    assert np.allclose(np.sum(output, axis=1), 1)
    assert difference(output, theirs(model, x)) <= 1e-10


@pytest.mark.deep
@pytest.mark.parametrize("name", ["kecam/CoAtNet0", "kecam/CoAtNetT"])
def test_at_native_size(kecam: Any, name: str) -> None:
    spec = coatref.spec(name)
    model, x = randomised(spec, 5), images(spec, 6)
    params = coatref.convert(model.state_dict(), spec)
    assert difference(coatref.forward(params, x), theirs(model, x)) <= 1e-10


# --- the mistake ---


@pytest.mark.parametrize("size", [(64, 96), (80, 32), (35, 70)])
def test_images_that_are_not_square_show_the_swapped_index(kecam: Any, size: tuple[int, int]) -> None:
    spec = small("kecam/CoAtNet0", *size)
    model, x = randomised(spec, 7), images(spec, 8)
    params, other = coatref.convert(model.state_dict(), spec), theirs(model, x)
    assert difference(coatref.forward(params, x), other) > 1e-3
    mistaken = coatref.forward(params, x, backend=Primitives(gather_bias=xy_index_bias))
    assert difference(mistaken, other) <= 1e-10


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (128, 128)])
def test_the_index_is_that_of_the_package(kecam: Any, size: tuple[int, int]) -> None:
    model, (height, width) = factory(small("kecam/CoAtNet0", *size)), (size[0] // 16, size[1] // 16)
    numbers = np.arange((2 * height - 1) * (2 * width - 1)).reshape(1, 2 * height - 1, 2 * width - 1)
    own = model.stack_3_block_1_mhsa_pos_emb.relative_position_index.numpy()
    assert np.array_equal(xy_index_bias(numbers, height, width)[0], own)
    right = Primitives().gather_bias(numbers, height, width)[0]
    assert np.array_equal(right, own) == (height == width)


def test_the_index_is_the_right_one_of_the_transposed_grid() -> None:
    """Another way to say it: the grid's sides swapped, and the table's line of numbers cut into rows for them."""
    values = np.random.default_rng(0).normal(size=(3, 2 * 4 - 1, 2 * 7 - 1))
    swapped = Primitives().gather_bias(values.reshape(3, 2 * 7 - 1, 2 * 4 - 1), 7, 4)
    assert np.array_equal(xy_index_bias(values, 4, 7), swapped)


@pytest.mark.parametrize("size", [(64, 96), (80, 32)])
def test_the_catalogue_has_the_mistake(kecam: Any, size: tuple[int, int]) -> None:
    spec = small("kecam/CoAtNet0", *size)
    model, x = randomised(spec, 10), images(spec, 11)
    params, other = coatref.convert(model.state_dict(), spec), theirs(model, x)
    found = {
        mistake.name: difference(compute(mistake.change(Changed(spec)), params, x), other)
        for mistake in relative_bias.mistakes()
        if mistake.name.startswith("bias-xy-")
    }
    assert set(found) == {"bias-xy-grid", "bias-xy-transposed"}
    assert found["bias-xy-grid"] <= 1e-10 and found["bias-xy-transposed"] > 1e-3


# --- names and layouts ---


@pytest.mark.parametrize("layout", ["keras", "torch"])
@pytest.mark.parametrize("name", SMALL)
def test_import_of_an_export_gives_every_bit_back(name: str, layout: str) -> None:
    params = coatref.init(small(name, 64, 96), 3, scheme="distinct")
    exported = export(params, "kecam", layout=layout)
    assert {key: array.shape for key, array in exported.items()} == table.expected(params.spec, layout)
    again = coatref.convert(exported, params.spec)
    assert list(again.flatten()) == list(params.flatten())
    for key, array in params.flatten().items():
        assert array.dtype == again.flatten()[key].dtype and np.array_equal(array, again.flatten()[key]), key


def test_the_dialect_of_export_is_the_torch_backend() -> None:
    params = coatref.init(small("kecam/CoAtNet0", 64, 96), 3, scheme="distinct")
    assert {key: array.shape for key, array in export(params, "kecam").items()} == table.expected(params.spec, "torch")


@pytest.mark.parametrize("name", SMALL)
def test_its_h5_file(kecam: Any, name: str, tmp_path: Path) -> None:
    """The package writes its own file, channels last; and reads one that holds our arrays in Keras' layout."""
    import torch

    h5py: Any = importlib.import_module("h5py")  # untyped

    spec = small(name, 64, 96)
    model, file = randomised(spec, 9), str(tmp_path / "weights.h5")
    params = coatref.convert(model.state_dict(), spec)
    model.save_weights(file)
    found: dict[str, np.ndarray] = {}
    with h5py.File(file) as content:
        content.visititems(
            lambda key, value: found.update({key: value[()]}) if isinstance(value, h5py.Dataset) else None
        )
    assert "stem_1_conv/stem_1_conv/weight" in found
    for key, array in coatref.convert(found, spec).flatten().items():
        assert np.array_equal(array, params.flatten()[key]), key

    keras = {f"{key.partition('/')[0]}/{key}:0": array for key, array in found_as_keras(params).items()}
    assert "stem_1_conv/stem_1_conv/kernel:0" in keras
    assert np.array_equal(coatref.convert(keras, spec)["head"]["classifier"]["w"], params["head"]["classifier"]["w"])
    fresh = factory(spec).double()
    for layer in fresh.layers:
        own = [array for key, array in found_as_keras(params).items() if key.partition("/")[0] == layer.name]
        if own:
            put = getattr(layer, "set_weights_channels_last", None) or layer.set_weights
            put([np.array(array) for array in own] + ([np.array(0)] if layer.name.endswith("_bn") else []))
    state = {key: value for key, value in fresh.state_dict().items() if not key.endswith(table.IGNORED)}
    assert state.keys() <= model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def found_as_keras(params: coatref.Params) -> dict[str, np.ndarray]:
    return export(params, "kecam", layout="keras")


def test_tensors_that_do_not_fit_are_refused() -> None:
    spec = small("kecam/CoAtNet0", 64, 96)
    right = export(coatref.init(spec), "kecam")
    lacking = {key: array for key, array in right.items() if key != "stem_2_conv.weight"}
    with pytest.raises(coatref.WeightsError, match=r"missing: stem_2_conv\.weight \(64, 64, 3, 3\)"):
        coatref.convert(lacking, spec)
    with pytest.raises(coatref.WeightsError, match=r"surplus: other\.weight"):
        coatref.convert({**right, "other.weight": right["predictions.bias"]}, spec)
    with pytest.raises(coatref.InputError, match="same tensor"):
        coatref.convert({**right, "predictions.0.bias": right["predictions.bias"]}, spec)
    with pytest.raises(coatref.InputError, match="'norm' for which keras_cv_attention_models has no name"):
        coatref.convert(right, coatref.spec("coatnet_0"), dialect="kecam")
    with pytest.raises(coatref.InputError, match="'kecam/...' spec"):
        coatref.convert(right, coatref.spec("coatnet_0"))


def test_runs_without_stride_must_change_the_width() -> None:
    with pytest.raises(coatref.InputError, match="two different widths in S3"):
        coatref.spec("kecam/CoAtNet6", widths=(128, 128, 256, 256, 384))


# --- the target ---


@pytest.mark.parametrize(
    ("precision", "bound"),
    [(declared("float64"), 1e-10), (Precision(), 1e-5), (declared("float16"), 2e-2), (declared("bfloat16"), 1e-1)],
    ids=str,
)
def test_the_target_computes_with_what_it_is_handed(kecam: Any, precision: Precision, bound: float) -> None:
    spec = small("kecam/CoAtNet0", 64, 64)
    made = target.make("CoAtNet0", spec=spec, precision=precision)
    dtype = "float64" if precision.storage == "float64" else "float32"
    for seed in (1, 2):
        params = coatref.init(spec, seed, dtype=dtype, scheme="distinct")
        x = images(spec, seed).astype(dtype)
        right = coatref.forward(params.to(dtype="float64"), x.astype(np.float64))
        assert difference(np.asarray(made.run(params, x)["logits"]), right) <= bound
    assert made.expects == {key: array.shape for key, array in params.flatten().items()}
    assert (made.name, made.precision) == ("kecam:CoAtNet0", precision)
    assert made.command == f"kecam:CoAtNet0 --spec kecam/CoAtNet0 --dtype {precision.storage}"
    assert set(made.versions) == {"coatref", "keras_cv_attention_models", "torch"}


@pytest.mark.parametrize("name", ["kecam/CoAtNet0", "kecam/CoAtNet6"])
def test_the_values_that_the_target_shows(kecam: Any, name: str) -> None:
    spec = small(name, 38, 38)
    made = target.make(name.removeprefix("kecam/"), spec=spec, precision=declared("float64"))
    params, x = coatref.init(spec, 5, dtype="float64", scheme="distinct"), images(spec, 6)
    shown, values = made.run(params, x), coatref.trace(params, x)
    assert {block.name for block in spec.blocks()} <= set(shown) and len(shown) > len(values) / 2
    for key, value in shown.items():
        assert difference(np.asarray(value), values[key]) <= 1e-10, key


def test_the_first_value_that_differs_is_the_first_attention_of_an_image_that_is_not_square(kecam: Any) -> None:
    spec = small("kecam/CoAtNet0", 32, 64)
    made = target.make("CoAtNet0", spec=spec, precision=declared("float64"))
    params, x = coatref.init(spec, 5, dtype="float64", scheme="distinct"), images(spec, 6)
    shown, values = made.run(params, x), coatref.trace(params, x)
    differ = [key for key in values if key in shown and difference(np.asarray(shown[key]), values[key]) > 1e-10]
    assert differ[0] == "s3.0.attn.logits"


def test_the_target_for_other_specs(kecam: Any) -> None:
    made = target.make("CoAtNet6", spec=small("kecam/CoAtNet6", 64, 64), precision=declared("float64"))
    spec = coatref.spec(
        "kecam/CoAtNet6", image_size=48, classes=3, depths=(1, 1, 1, 1, 2), widths=(16, 8, 128, 256, 128)
    )
    spec = spec.replace(channels=4, head=dataclasses.replace(spec.head, output="probabilities"))
    assert made.variant is not None
    other = made.variant(spec)
    params, x = coatref.init(spec, dtype="float64", scheme="distinct"), images(spec, 3, 1)
    assert other.spec == spec and made.spec != spec
    assert difference(np.asarray(other.run(params, x)["logits"]), coatref.forward(params, x)) <= 1e-10
    for wrong in (coatref.spec("coatnet_0"), coatref.spec("kecam/CoAtNet0"), spec.replace(name="kecam/CoAtNet7")):
        with pytest.raises(coatref.InputError, match="has other conventions"):
            made.variant(wrong)


@pytest.mark.parametrize("text", ["kecam:CoAtNet0", "torch:kecam_models:factory"])
def test_it_is_found_by_its_text_and_as_a_module_of_ones_own(kecam: Any, text: str) -> None:
    spec = small("kecam/CoAtNet0", 64, 64)
    options: dict[str, Any] = {"dialect": "kecam"} if text.startswith("torch:") else {}
    made = resolve(text, spec=spec, precision="float64", **options)
    params, x = coatref.init(spec, 12, dtype="float64", scheme="distinct"), images(spec, 13)
    assert difference(np.asarray(made.run(params, x)["logits"]), coatref.forward(params, x)) <= 1e-10
    assert made.variant is not None
    narrow = spec.replace(image_size=(32, 64))
    params = coatref.init(narrow, 12, dtype="float64", scheme="distinct")
    output = made.variant(narrow).run(params, images(narrow, 13))["logits"]
    assert difference(np.asarray(output), coatref.forward(params, images(narrow, 13))) > 1e-3


def test_the_target_of_weights(kecam: Any) -> None:
    params = coatref.init(small("kecam/CoAtNet5", 64, 32))
    made = target.make("CoAtNet5", weights=params)
    assert made.spec == params.spec and made.params is params


def test_targets_that_cannot_be_had(kecam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(coatref.InputError, match="names no CoAtNet .* CoAtNetT, CoAtNet0"):
        target.make("CoAtNet8")
    with pytest.raises(coatref.InputError, match="given the option names; it takes none"):
        target.make("CoAtNet0", options={"names": "x"})
    monkeypatch.setattr("keras_cv_attention_models.backend.is_torch_backend", False)
    with pytest.raises(coatref.InputError, match="KECAM_BACKEND=torch before Python starts"):
        target.make("CoAtNet0")


def test_making_a_target_leaves_no_trace(kecam: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    before, environment = torch.get_rng_state(), dict(os.environ)
    made = target.make("CoAtNet0", spec=small("kecam/CoAtNet0", 64, 64))
    params = coatref.init(made.spec, scheme="distinct")
    copies = {key: array.copy() for key, array in params.flatten().items()}
    made.run(params, images(made.spec, 1).astype(np.float32))
    assert torch.equal(torch.get_rng_state(), before) and dict(os.environ) == environment
    assert all(np.array_equal(array, copies[key]) for key, array in params.flatten().items())
    assert capsys.readouterr().out == ""


def test_the_environment_is_put_back_and_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(target.BACKEND, raising=False)
    with target.environment(target.BACKEND, "torch"):
        assert os.environ[target.BACKEND] == "torch"
    assert target.BACKEND not in os.environ
    monkeypatch.setenv(target.BACKEND, "jax")
    with target.environment(target.BACKEND, "torch"):
        assert os.environ[target.BACKEND] == "jax"
    assert os.environ[target.BACKEND] == "jax"
