"""coatref.tensorflow_resize against TensorFlow's own values, and against torch's and JAX's formulations of the same."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import coatref
from coatref import Preprocessing
from coatref.images import photograph, preprocess_images
from coatref.specification import kecam
from coatref.tensorflow_resize import tensorflow_resized

Size = tuple[int, int]

FILTERS = ("bicubic", "bilinear", "lanczos", "nearest")
TENSORFLOW_NAMES = {name: name for name in FILTERS} | {"lanczos": "lanczos3"}


def pattern(height: int, width: int, channels: int) -> Any:
    """An image (height, width, channels) without structure, by a formula."""
    i, j, c = np.indices((height, width, channels))
    return ((37 * i * i + 101 * j * j + 59 * i * j + 13 * j + 85 * c) % 256).astype(np.uint8)


# float32 values of tf.image.resize of TensorFlow 2.21.0 on a CPU, for `pattern(7, 11, 1)` at the sizes 3 x 5 (both sides
# shrink) and 10 x 4 (one side grows), little-endian in base64; by filter and antialias. `test_recorded_values` makes them.
RECORDED_SIZES: tuple[Size, ...] = ((3, 5), (10, 4))
RECORDED = {
    ("bicubic", True): (
        "42nIQp/AEUM64sFCZvoOQ2ZwDUOfsOpCFaIAQ5wGE0OY6R1DmOi9QkK0vELtoA9DXyORQhLOzEIxK89C47XIQsmFB0NzGf9CSqgu"
        "QxAS3ULGqf9CaxLIQt3VIUOCl+5CFbr+QmAuwEKUEARDy8HmQnoYDkP47RdDWkm8QiHQsELmC/lC6v9VQ3iSBUMp8dlCMX/2QnZ9"
        "NEMrCf1CqSwjQ5PbEENx1pJCTMGMQhkpBkPILS1Dy++SQpkDlkKr8LNCfIzsQtxHpkKuse9CAMJqQnsiQ0KmQrNCms0iQw=="
    ),
    ("bicubic", False): (
        "Byb1QoRbDkP5WLJCaNIPQ9JNGUM4QcZCCF20QQAAYEOczUJDsugoQ4UWeEJ8+Q1DXTLiQig1+0LsX59CGpa9QqKjHEOotyBD8mHi"
        "QjW2HkOb8xNDeBehQprpEUOk+0FDAP8rQwDybUKJeABDgXcEQ/SKb0OOpz9DHD/PQeGS2kLISgtDShByQ8sjL0PTbAFDSnHSQrg0"
        "S0MkvCtDxOYhQ1aKJkOVuMlCaLknQYL6qUIAWkxDACwgQl9XmkIcFdRBbc/9Qu4r9EE9xIdCaFeWP1S59UEO/DFC1pe3QQ=="
    ),
    ("bilinear", True): (
        "fWjSQratD0Mw0cVC3HYMQ9WHCUPon+VC8fD9QtnYDEOdGxpD+frSQk7BxUKS5AlDlCSjQjSMz0I5BclCG8fNQs3MBEOZGQJD2ksm"
        "Qzwg40LGMvxCjYXXQoMtGUO9hPFCE/H8QneX0kK0FwJDPenoQs3cDkMjkhVDywO/QpQ+xUJqswFDpUA9Q4+sBUOO4+NCHDgAQ4Dh"
        "JEMntPpCJesdQz76DENqI6ZCIiKMQpfQAUNndh1DZ0alQqG9okJcsLhC3APqQmRprUIfWeJCXkJrQnh3cUK9u7dCchwTQw=="
    ),
    ("bilinear", False): (
        "VlXpQvDuDkNVVaFC8O4MQ83MEkMAAMRCY2YKQgAAYEOYmUJD+P8hQwIAkELPzAxDAwDQQu/u8kIREalCAIDHQgAAFkMAQBNDAAD3"
        "QmZ+FENmLhNDzry5QprBDEMACC1DABgiQwBQpEIAcPpCmhECQ2ZOUkNnvjBDmLkoQgDQ5EIBOAxDZm5XQ/7XGEPMfP1C/w/xQmce"
        "OkObgRNDNXsdQ2Y+H0PPnMFCwozEQQBwtUIAqDdDAGBeQgAQlULQbCtCalb8Qpm5PkKbyY5CAABYQQAANUIAAGBCAAA3Qg=="
    ),
    ("lanczos", True): (
        "Y8G9QsKjE0M6Jb9CdAQQQ5NqEkNNNu5CmLACQ7wdFkOF+x1D4BuxQtcUukK4OhVDNkKFQqhqw0KXltpCzfXPQjCfCkPhDPVCKkY0"
        "Q1T/3UJqHQBDGmnAQiitKUPF0PRCXfn6Qp+juUK7xwBDMl7sQnbFCEPBohlDB0e+Qu7JnULnL/VCxt9oQ5QfAkMeotRCxJ/xQrk1"
        "N0MaCP9C/HEpQxQcFUOWvX9C+5qTQgPTEEN1WzVDPimCQhVTiEKszq1CjF/iQgObrkKwCf5CnaJ4QqhZKkLjnKxC42crQw=="
    ),
    ("lanczos", False): (
        "/XjrQigVCENCxcFCQkYXQ97/IUNR0MFCU7qnQQAAYEMzEzxDJkIqQ7KAWkKLLAZDambyQvEHC0PAeaBCMlatQhPqJkNUJTBDbnzg"
        "QuhOG0Mlrw9DqcWaQliuG0OCkElDMe48Q97NPkLHpudCYL8KQ+d4hENCKkRDBNySQfjsx0LnohFDmByCQ3yjL0MOAgNDf3WuQnRo"
        "UEMAQjNDelkfQ9F1MUOUgNRC0zQqQddFvELnI15DfW8FQs3ciEIoxplBSv/nQqzXtEGAgJJCDpgPwLdsYUHeIBVCscaoQQ=="
    ),
    ("nearest", True): (
        "AABSQwAACkMAANRCAADkQgAAIkMAAOBCAACgQQAAYEMAAFRDAABwQwAAWEIAAEZDAAD8QgAAvEIAAMxCAADkQgAABEMAAAJDAADU"
        "QgAAUkMAABVDAAAQQQAAIkMAAFJDAAAVQwAAEEEAACJDAAD4QgAAcEMAAFpDAAAQQgAA4EIAABVDAAB1QwAAcEMAAOBCAAAVQwAA"
        "dUMAAHBDAAAuQwAABEMAALRCAADAQAAAWEIAAD1DAAAQQQAAzEIAAFhCAAA9QwAAEEEAAMxCAAAAQQAAgEIAAABAAACAQQ=="
    ),
    ("nearest", False): (
        "AABSQwAACkMAANRCAADkQgAAIkMAAOBCAACgQQAAYEMAAFRDAABwQwAAWEIAAEZDAAD8QgAAvEIAAMxCAADkQgAABEMAAAJDAADU"
        "QgAAUkMAABVDAAAQQQAAIkMAAFJDAAAVQwAAEEEAACJDAAD4QgAAcEMAAFpDAAAQQgAA4EIAABVDAAB1QwAAcEMAAOBCAAAVQwAA"
        "dUMAAHBDAAAuQwAABEMAALRCAADAQAAAWEIAAD1DAAAQQQAAzEIAAFhCAAA9QwAAEEEAAMxCAAAAQQAAgEIAAABAAACAQQ=="
    ),
}

# How far float32 may be off: places in 11 pixels are rounded three times, by 2^-24 of 11 each; the filters' slopes sum to
# less than 8; and sums of 11 weighted pixels add as many roundings for each axis: 255 * (8 * 33 + 2 * 2 * 11) / 2^24.
ROUNDING = 255 * (8 * 33 + 44) / 2**24


def recorded(key: tuple[str, bool]) -> list[Any]:
    """The recorded values by their size."""
    values = np.frombuffer(base64.b64decode(RECORDED[key]), "<f4")
    counts = [height * width for height, width in RECORDED_SIZES]
    parts = np.split(values, np.cumsum(counts)[:-1])
    return [part.reshape(*size, 1) for part, size in zip(parts, RECORDED_SIZES, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("key", RECORDED, ids=str)
def test_recorded_values_are_met(key: tuple[str, bool], dtype: str) -> None:
    for theirs, size in zip(recorded(key), RECORDED_SIZES, strict=True):
        ours = tensorflow_resized(pattern(7, 11, 1), size, *key, dtype)
        assert ours.dtype == dtype and ours.shape == (*size, 1)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("bicubic", {694: 35.76567, 535: 68.3497, 984: 146.86011}),
        ("lanczos", {802: 133.73331, 905: 66.13779, 694: 39.92207}),
    ],
)
def test_places_are_rounded_as_by_tensorflow(name: str, rows: dict[int, float]) -> None:
    """Recorded too: the rows of 1001 out of 600 that one rounding more or less of the step moves by 0.015 to 0.24."""
    found = tensorflow_resized(pattern(600, 1, 1), (1001, 1), name, False, "float32")[:, 0, 0]
    np.testing.assert_allclose(found[list(rows)], list(rows.values()), rtol=0, atol=1e-3)


def require_tensorflow() -> Any:
    """The tensorflow module; skips where it is not installed."""
    return pytest.importorskip("tensorflow", reason="needs tensorflow, which is not installed (pip install tensorflow)")


@pytest.mark.parametrize("key", RECORDED, ids=str)
def test_recorded_values(key: tuple[str, bool]) -> None:
    tf = require_tensorflow()
    for theirs, size in zip(recorded(key), RECORDED_SIZES, strict=True):
        image = pattern(7, 11, 1).astype(np.float32)
        again = tf.image.resize(image, size, method=TENSORFLOW_NAMES[key[0]], antialias=key[1]).numpy()
        np.testing.assert_allclose(theirs, again, rtol=0, atol=ROUNDING)


# --------------------------------------------------------------------------------------------------- other formulations


def torch_resized(image: Any, size: Size, mode: str, **options: Any) -> Any:
    """torch's interpolation of an image (H, W, C), in float64."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(x, size=size, mode=mode, **options)[0].permute(1, 2, 0).numpy()


SIDE = st.integers(1, 40)
SEVERAL = st.integers(2, 40)  # torch 2.13's widened filters give equal rows, which is wrong, where one column is wanted


@settings(deadline=None, max_examples=80, derandomize=True)
@given(source=st.tuples(SIDE, SIDE), size=st.tuples(SIDE, SEVERAL), mode=st.sampled_from(["bicubic", "bilinear"]))
@example((1, 1), (5, 3), "bicubic")
@example((1, 40), (4, 2), "bicubic")
@example((40, 1), (3, 2), "bicubic")
@example((40, 2), (39, 31), "bilinear")
def test_widened_filters_equal_torchs(source: Size, size: Size, mode: str) -> None:
    image = pattern(*source, 3)
    theirs = torch_resized(image, size, mode, antialias=True)
    np.testing.assert_allclose(tensorflow_resized(image, size, mode, True, "float64"), theirs, rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(source=st.tuples(SIDE, SIDE), size=st.tuples(SIDE, SIDE))
def test_the_plain_bilinear_filter_equals_torchs(source: Size, size: Size) -> None:
    image = pattern(*source, 3)
    theirs = torch_resized(image, size, "bilinear", align_corners=False)
    np.testing.assert_allclose(
        tensorflow_resized(image, size, "bilinear", False, "float64"), theirs, rtol=0, atol=1e-11
    )


def test_nearest_takes_the_pixel_that_the_centre_lies_in() -> None:
    image = pattern(7, 11, 3)
    found = tensorflow_resized(image, (4, 15), "nearest", True, "float64")
    rows, columns = [0, 2, 4, 6], [0, 1, 1, 2, 3, 4, 4, 5, 6, 6, 7, 8, 9, 9, 10]
    np.testing.assert_array_equal(found, image[rows][:, columns])


@pytest.mark.parametrize("size", [(5, 29), (23, 4)])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("name", ["lanczos", "bicubic", "bilinear"])
def test_every_filter_equals_jaxs(name: str, antialias: bool, size: Size) -> None:
    jax = pytest.importorskip("jax")
    image = pattern(13, 17, 3)
    method = {"lanczos": "lanczos3", "bicubic": "cubic", "bilinear": "linear"}[name]
    with jax.enable_x64(True):
        theirs = np.asarray(jax.image.resize(image.astype(np.float64), (*size, 3), method, antialias=antialias))
    ours = tensorflow_resized(image, size, name, antialias, "float64")
    if name == "bicubic" and not antialias:  # TensorFlow tabulates: four distances, each off by up to half a step
        assert 1e-3 < np.abs(ours - theirs).max() < 2 * 255 * 1.25 * 4 * 1.39 / 2 / 1024  # 1.39: the filter's slope
    else:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("name", FILTERS)
def test_an_even_image_stays_so_and_is_not_written_to(name: str, antialias: bool) -> None:
    image = np.full((13, 17, 1), 200, np.uint8)
    image.flags.writeable = False
    for size in ((5, 40), (40, 5)):
        found = tensorflow_resized(image, size, name, antialias, "float64")
        assert found.shape == (*size, 1)
        np.testing.assert_allclose(found, 200, rtol=1e-14)


def test_a_very_thin_image_takes_little_memory() -> None:
    """The long side is shrunk first, so that nothing of (target height, source width) is ever made: half a gigabyte here."""
    import tracemalloc

    image = np.zeros((1, 300_000, 1), np.uint8)
    tracemalloc.start()
    for turned in (image, image.swapaxes(0, 1)):
        assert tensorflow_resized(turned, (200, 200), "bilinear", True, "float64").shape == (200, 200, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6, peak


# --------------------------------------------------------------------------------------------------------- photographs


def photographs() -> dict[str, Image.Image]:
    """Real photographs: the bundled one, and those that installed packages bring."""
    found = {"china": photograph(), "portrait": photograph().transpose(Image.Transpose.ROTATE_90)}
    for package, path in (("sklearn", "datasets/images/flower.jpg"),):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found[Path(path).stem] = Image.open(Path(spec.origin).parent / path).convert("RGB")
    return found


def in_units(normalised: Any, preprocessing: Preprocessing) -> Any:
    """What was scaled and normalised back in units of 8 bits, 0 to 255."""
    return (normalised * np.asarray(preprocessing.std) + np.asarray(preprocessing.mean)) * 255


def assert_within_a_unit(ours: Any, theirs: Any) -> None:
    """At most one unit of 8-bit difference anywhere, and a median of 0."""
    assert np.abs(ours - theirs).max() <= 1
    assert np.median(np.abs(np.rint(ours) - np.rint(theirs))) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("target", [(224, 224), (160, 288)])
@pytest.mark.parametrize("name", photographs())
def test_kerass_convention_on_photographs_is_torchs_antialiased_bicubic(name: str, target: Size, dtype: Any) -> None:
    image = np.asarray(photographs()[name])
    short = min(image.shape[:2])
    top, left = ((side - short) // 2 for side in image.shape[:2])
    theirs = torch_resized(image[top : top + short, left : left + short], target, "bicubic", antialias=True)
    spec = coatref.spec("kecam/CoAtNet0", image_size=target)
    ours = coatref.preprocess(image, spec, dtype=dtype)
    assert ours.dtype == dtype and ours.shape == (1, *target, 3)
    found = in_units(ours[0].astype(np.float64), spec.preprocessing)
    assert_within_a_unit(found, theirs)
    if dtype == "float64":
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_kerass_convention_on_photographs_is_tensorflows(interpolation: Any, antialias: bool, dtype: Any) -> None:
    tf = require_tensorflow()
    if interpolation == "nearest" and dtype == "float64":
        pytest.skip("TensorFlow finds the nearest pixel in float32, and some lie exactly between two")
    preprocessing = dataclasses.replace(
        kecam.PREPROCESSING, crop_fraction=0.9, interpolation=interpolation, antialias=antialias
    )
    for image in photographs().values():
        pixels = tf.constant(np.asarray(image), tf.float32)
        side = int(tf.cast(0.9 * tf.cast(min(image.size), tf.float32), tf.int32))
        top, left = (image.height - side) // 2, (image.width - side) // 2
        square = tf.image.crop_to_bounding_box(pixels, top, left, side, side)
        method = TENSORFLOW_NAMES[interpolation]
        theirs = tf.image.resize(square, (224, 320), method=method, antialias=antialias).numpy()
        ours = preprocess_images(image, preprocessing, 224, 320, dtype=dtype)[0]
        assert_within_a_unit(in_units(ours.astype(np.float64), preprocessing), theirs)
