"""The bundled checkpoint: how well it reads, and that its values tell implementations apart."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import coatref
from coatref import digits
from coatref.errors import DtypeError, InputError, ShapeError
from coatref.params import tensor_tree
from coatref.specification.parts import Attention, ConvStem, Head, MBConv, Transformer
from coatref.tree import flatten

DATA = importlib.resources.files("coatref") / "data"
FILES = ("digits.safetensors", "digits_heldout.safetensors")
SCRIPT = Path(__file__).parent.parent / "examples" / "train_digits.py"
RIGHT = 350  # of the 355 held-out images; coatref/data/README.md says so too

needs_script = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the checkout: examples are not in the sdist")


@pytest.fixture(scope="module")
def params() -> coatref.Params:
    return digits.checkpoint()


@pytest.fixture(scope="module")
def heldout() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return digits.heldout()


def all_logits(params: coatref.Params, x: Any) -> Any:
    """Of all images, in parts that fit the cache."""
    parts = [coatref.forward(params, x[start : start + 32]) for start in range(0, x.shape[0], 32)]
    return np.concatenate([np.asarray(part) for part in parts])


@pytest.fixture(scope="module")
def logits(params: coatref.Params, heldout: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> NDArray[np.float64]:
    """By the definition in float64."""
    return np.asarray(all_logits(params.to(dtype="float64"), digits.upscale(heldout[0]).astype(np.float64)))


def one_digit(dtype: Any) -> Any:
    return digits.upscale(digits.heldout()[0][:1]).astype(dtype)


# --- accuracy ---


def test_reads_the_stated_number_of_heldout_digits(logits: Any, heldout: Any) -> None:
    images, labels = heldout
    assert images.shape == (355, 8, 8) and images.dtype == np.uint8 and images.max() == 16
    assert labels.shape == (355,) and labels.dtype == np.int64 and set(labels.tolist()) == set(range(10))
    assert int(np.sum(np.argmax(logits, axis=-1) == labels)) == RIGHT
    assert RIGHT / len(labels) >= 0.97


def test_float32_predicts_what_float64_predicts(params: Any, logits: Any, heldout: Any) -> None:
    assert_agrees(all_logits(params, digits.upscale(heldout[0])), logits)


def test_torch_predicts_what_numpy_predicts(params: Any, logits: Any, heldout: Any) -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(digits.upscale(heldout[0][::3]))  # 119 of them
    assert_agrees(all_logits(params.to(xp="torch"), x), logits[::3])


def assert_agrees(found: Any, logits: Any) -> None:
    """The same prediction for every image, and logits (of up to 4.3) within float32's rounding."""
    np.testing.assert_array_equal(np.argmax(found, axis=-1), np.argmax(logits, axis=-1))
    assert np.max(np.abs(found - logits)) < 2e-5


def test_no_prediction_hangs_on_rounding(logits: Any) -> None:
    first, second = np.sort(logits, axis=-1)[:, :-3:-1].T
    assert np.min(first - second) > 5e-4  # float32 is within 3e-6 of float64


# --- the files ---


def test_is_small_and_complete(params: coatref.Params) -> None:
    sizes = {name: len(DATA.joinpath(name).read_bytes()) for name in FILES}
    assert sizes["digits.safetensors"] <= 1_500_000 and sizes["digits_heldout.safetensors"] < 60_000
    assert params.spec.num_parameters() <= 300_000
    assert {array.dtype for array in params.flatten().values()} == {np.dtype("float32")}


def test_is_the_papers_network(params: coatref.Params) -> None:
    spec = params.spec
    assert (spec.name, spec.channels, spec.image_size) == ("digits", 1, digits.IMAGE_SIZE)
    assert spec.preprocessing == digits.PREPROCESSING
    assert spec.stem == ConvStem(widths=(16, 16))
    assert spec.head == Head(classes=10)
    expected: list[Any] = [MBConv(depth=2, width=16), MBConv(depth=2, width=32)]
    expected += [Transformer(depth=2, width=width, attention=Attention(head_size=16)) for width in (48, 64)]
    assert spec.stages == tuple((run,) for run in expected)  # only sizes are given: every convention is the default


@pytest.mark.parametrize("name", FILES)
def test_readme_says_which_file_it_is(name: str) -> None:
    readme = DATA.joinpath("README.md").read_text(encoding="utf-8")
    (row,) = (line for line in readme.splitlines() if line.startswith(f"| `{name}`"))
    assert hashlib.sha256(DATA.joinpath(name).read_bytes()).hexdigest() in row
    assert f"{RIGHT} of 355" in readme


# --- values that tell implementations apart ---


def roles(params: coatref.Params) -> dict[str, str]:
    return {name: tensor.role for name, tensor in flatten(tensor_tree(params.spec))}


def test_no_tensor_is_degenerate(params: coatref.Params) -> None:
    for name, array in params.flatten().items():
        assert np.all(np.isfinite(array)), name
        assert len(np.unique(array)) > 0.95 * array.size, f"{name} has equal values"
        assert np.std(array) > 0.01 * np.max(np.abs(array)), f"{name} is nearly constant"


def test_no_two_channels_have_the_same_kernel(params: coatref.Params) -> None:
    for name, role in roles(params).items():
        if role != "kernel":
            continue
        kernel = params.flatten()[name]
        channels = kernel.reshape(-1, kernel.shape[-1]).T.astype(np.float64)  # (D, window * C)
        size = np.linalg.norm(channels, axis=1)
        assert np.min(size) > 1e-3 * np.max(size), f"{name} has a dead channel"
        distance = np.linalg.norm(channels[:, None] - channels[None], axis=-1) + np.max(size) * np.eye(len(channels))
        assert np.min(distance) > 1e-3 * np.max(size), f"{name} has two equal channels"


def test_batch_norm_statistics_are_those_of_data(params: coatref.Params) -> None:
    arrays = params.flatten()
    means = {name: arrays[name] for name, role in roles(params).items() if role == "mean"}
    variances = {name: arrays[name] for name, role in roles(params).items() if role == "var"}
    assert len(means) == len(variances) == 13  # one in the stem, three in each MBConv block
    assert all(np.all(mean != 0.0) for mean in means.values())
    assert all(np.all(var != 1.0) and np.all(var > 0.0) for var in variances.values())


def test_relative_bias_tables_differ_by_head_and_direction(params: coatref.Params) -> None:
    tables = [params.flatten()[name].astype(np.float64) for name, role in roles(params).items() if role == "table"]
    assert [table.shape for table in tables] == [(3, 11, 7), (3, 11, 7), (4, 5, 3), (4, 5, 3)]

    def distance(a: Any, b: Any) -> float:
        return float(np.linalg.norm(a - b) / np.linalg.norm(a))

    for table in tables:
        heads = range(len(table))
        assert min(distance(table[i], table[j]) for i in heads for j in heads if i != j) > 0.1
        for flipped in (table[:, ::-1], table[:, :, ::-1], table[:, ::-1, ::-1]):
            assert min(distance(table[head], flipped[head]) for head in heads) > 0.1


def test_every_tensor_but_the_key_biases_shows_in_the_logits(params: coatref.Params) -> None:
    """Reversing the values of any one tensor changes what comes out; the softmax cannot see a bias of the keys."""
    params, x = params.to(dtype="float64"), one_digit(np.float64)
    expected = coatref.forward(params, x)
    for name, array in params.flatten().items():
        changed = np.flip(array).copy()
        difference = np.max(np.abs(coatref.forward(params.replace({name: changed}), x) - expected))
        if name.endswith(".attn.k.b"):
            assert difference < 1e-10, name
        else:
            assert difference > 1e-4, name


# --- the digits ---


def test_upscale_is_the_transform_of_the_spec(params: coatref.Params, heldout: Any) -> None:
    images = heldout[0][:20]
    x = digits.upscale(images)
    assert x.shape == (20, *digits.IMAGE_SIZE, 1) and x.dtype == np.float32
    grey = [np.floor(255 / 16 * image + 0.5).astype(np.uint8) for image in images]
    np.testing.assert_array_equal(
        x, coatref.preprocess_images(grey, params.spec.preprocessing, *params.spec.image_size)
    )
    assert np.min(x) == -1.0 and 0.9 < np.max(x) <= 1.0


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (np.zeros((8, 8), np.uint8), ShapeError),
        (np.zeros((0, 8, 8), np.uint8), ShapeError),
        (np.zeros((1, 28, 28), np.uint8), ShapeError),
        (np.zeros((1, 8, 8)), DtypeError),
        (np.full((1, 8, 8), 17, np.uint8), InputError),
    ],
)
def test_upscale_refuses_what_is_no_digit(images: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        digits.upscale(images)


def script() -> Any:
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_script
def test_heldout_digits_are_not_among_those_trained_on(heldout: Any) -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    digit = load_digits()
    trained_on, held = script().split(digit.target)
    assert len(trained_on) == 1442 and sorted([*trained_on, *held]) == list(range(1797))
    np.testing.assert_array_equal(heldout[0], digit.images[held])
    np.testing.assert_array_equal(heldout[1], digit.target[held])
    trained_images = {image.tobytes() for image in digit.images[trained_on].astype(np.uint8)}
    assert not trained_images & {image.tobytes() for image in heldout[0]}  # no exact copy in the other part either


@needs_script
def test_the_script_trains_the_network_of_the_checkpoint(params: coatref.Params) -> None:
    pytest.importorskip("sklearn")
    assert script().digits_spec() == params.spec


@needs_script
@pytest.mark.deep
def test_the_training_script_works(tmp_path: Path, params: coatref.Params) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    command = [sys.executable, str(SCRIPT), "--epochs", "1", "--out", str(tmp_path)]
    root = str(SCRIPT.parent.parent)
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env={"PYTHONPATH": root})
    assert run.returncode == 0, run.stderr
    assert "float64:" in run.stdout
    trained = coatref.load(tmp_path / FILES[0])
    assert trained.spec == params.spec
    start = script().initial(params.spec, 0).flatten()
    unchanged = [name for name, array in trained.flatten().items() if np.array_equal(array, start[name])]
    assert unchanged == []
    assert (tmp_path / FILES[1]).read_bytes() == DATA.joinpath(FILES[1]).read_bytes()
