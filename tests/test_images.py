"""coatref.images against timm's and keras_cv_attention_models' evaluation transforms, and its refusals."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm_import import require_timm

import coatref
from coatref import errors
from coatref.images import photograph, preprocess_images
from coatref.specification import Preprocessing
from coatref.tensorflow_resize import tensorflow_resized

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PHOTOGRAPH = photograph()

Size = tuple[int, int]


@pytest.fixture(scope="session")
def create_transform() -> Callable[..., Any]:
    """timm.data.create_transform; skips where timm is not installed."""
    function: Callable[..., Any] = require_timm().data.create_transform
    return function


def timm_results(
    create_transform: Callable[..., Any], image: Image.Image, preprocessing: Preprocessing, target: Size
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The uint8 pixels before, and the float32 ones after normalisation in timm, channels last."""
    channels = len(preprocessing.mean)
    results: list[Any] = []
    for normalize in (False, True):
        transform = create_transform(
            (channels, *target),
            crop_pct=preprocessing.crop_fraction,
            crop_mode=preprocessing.crop,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            normalize=normalize,
        )
        results.append(transform(image.convert("RGB" if channels == 3 else "L")).permute(1, 2, 0).numpy())
    return results[0], results[1]


def our_uint8(image: Any, preprocessing: Preprocessing, target: Size) -> NDArray[np.uint8]:
    """The uint8 pixels before normalisation: with mean 0 and std 1 the output is x / 255, which rounds back to x."""
    channels = len(preprocessing.mean)
    identity = dataclasses.replace(preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels)
    pixels: NDArray[np.uint8] = np.rint(preprocess_images(image, identity, *target, dtype="float64")[0] * 255).astype(
        "u1"
    )
    return pixels


def assert_equals_timm(
    create_transform: Callable[..., Any], image: Image.Image, preprocessing: Preprocessing, target: Size
) -> None:
    """Equal pixels and equal float32 bits: tolerance 0 ULP, as both do the same three rounded operations in order."""
    pixels, normalised = timm_results(create_transform, image, preprocessing, target)
    np.testing.assert_array_equal(our_uint8(image, preprocessing, target), pixels)
    ours = preprocess_images(image, preprocessing, *target)
    assert ours.dtype == np.float32 and ours.shape == (1, *target, len(preprocessing.mean))
    np.testing.assert_array_equal(ours[0].view(np.uint32), np.ascontiguousarray(normalised).view(np.uint32))


def source(width: int, height: int, rotated: bool = False) -> Image.Image:
    """The photograph at a size that need not keep its proportions."""
    image = PHOTOGRAPH.transpose(Image.Transpose.ROTATE_90) if rotated else PHOTOGRAPH
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


def flower() -> dict[str, Image.Image]:
    """Another real photograph, where scikit-learn is installed, which brings it."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        return {}
    return {"flower": Image.open(Path(found.origin).parent / "datasets" / "images" / "flower.jpg").convert("RGB")}


SOURCES = flower() | {
    "photograph": PHOTOGRAPH,
    "portrait": PHOTOGRAPH.transpose(Image.Transpose.ROTATE_90),
    "cropped": PHOTOGRAPH.crop((101, 37, 432, 300)),
    "turned": PHOTOGRAPH.rotate(17, expand=True),
    "odd": source(301, 223),
    "square": source(256, 256),
    "exactly the target": source(224, 224),
    "smaller": source(41, 60),
    "pixel": source(1, 1),
    "thin": source(1, 61),
    "wide": source(400, 3),
}


@pytest.mark.parametrize("crop", ["center", "squash"])
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("target", "fraction"), [((224, 224), 0.875), ((96, 161), 0.95), ((97, 64), 1.0)])
def test_equals_timm(create_transform: Any, name: str, target: Size, fraction: float, crop: Any) -> None:
    assert_equals_timm(create_transform, SOURCES[name], Preprocessing(fraction, crop, "bicubic", *IMAGENET), target)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize("target", [(224, 224), (160, 192)])
def test_every_interpolation_equals_timm(create_transform: Any, interpolation: Any, target: Size) -> None:
    assert_equals_timm(create_transform, PHOTOGRAPH, Preprocessing(interpolation=interpolation), target)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    rotated=st.booleans(),
    target=st.one_of(
        st.integers(2, 64).map(lambda side: (side, side)), st.tuples(st.integers(2, 64), st.integers(2, 64))
    ),
    crop_fraction=st.one_of(st.sampled_from([0.875, 0.9, 0.95, 0.965, 1.0]), st.floats(0.3, 1.9)),
    crop=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
    moments=st.one_of(
        st.sampled_from([HALVES, IMAGENET]),
        st.tuples(*[st.tuples(*[st.floats(0.1, 0.9)] * 3)] * 2),
        st.tuples(*[st.tuples(st.floats(0.1, 0.9))] * 2),
    ),
)
@example(64, 67, False, (61, 61), 0.95, "center", "bicubic", HALVES)  # the window starts at 1.5 pixels
@example(8, 21, False, (10, 4), 1.0, "center", "bicubic", HALVES)  # the longer side is to be 10.5 pixels
@example(50, 80, False, (9, 10), 1.5, "center", "bicubic", HALVES)  # both sides are to be 6 pixels
@example(50, 50, False, (33, 20), 1.4, "center", "bicubic", HALVES)  # padded, by odd amounts
@example(50, 90, False, (9, 10), 9.0, "squash", "nearest", HALVES)  # resized to one pixel
def test_equals_timm_for_any_choice(
    create_transform: Any,
    width: int,
    height: int,
    rotated: bool,
    target: Size,
    crop_fraction: float,
    crop: Any,
    interpolation: Any,
    moments: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    preprocessing = Preprocessing(crop_fraction, crop, interpolation, *moments)
    assert_equals_timm(create_transform, source(width, height, rotated), preprocessing, target)


def test_every_published_coatnet_transform_equals_timm(create_transform: Any) -> None:
    timm = require_timm()
    names = [name for name in timm.list_pretrained() if name.startswith(("coatnet", "coatnext"))]
    assert len(names) >= 8, names
    seen = set()
    for name in names:
        config = timm.get_pretrained_cfg(name)
        preprocessing = Preprocessing(config.crop_pct, config.crop_mode, config.interpolation, config.mean, config.std)
        target = config.input_size[1:]
        if (preprocessing, target) in seen:
            continue
        seen.add((preprocessing, target))
        data = timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict())
        theirs = timm.data.create_transform(**data)(PHOTOGRAPH.convert("RGB")).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(preprocess_images(PHOTOGRAPH, preprocessing, *target)[0], theirs, err_msg=name)


# ------------------------------------------------------------------------ the centre square, cut out before the resize


def numbered(height: int, width: int) -> NDArray[np.uint8]:
    """An image (height, width, 3) whose pixels are all different: row, column, and 7."""
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "fraction", "resampling", "top", "left", "side"),
    [
        ((11, 18), 1.0, "tensorflow", 0, 3, 11),
        ((18, 11), 1.0, "pillow", 3, 0, 11),
        ((20, 31), 0.95, "tensorflow", 0, 6, 19),
        ((31, 20), 0.875, "pillow", 7, 1, 17),
        ((90, 101), 0.7, "tensorflow", 13, 19, 63),  # 0.7 * 90 is 63 in float32
        ((90, 101), 0.7, "pillow", 14, 19, 62),  # and a little less in float64
    ],
)
def test_the_centre_square_is_cut_out(
    size: Size, fraction: float, resampling: Any, top: int, left: int, side: int
) -> None:
    square = Preprocessing(fraction, "square", "nearest", resampling=resampling)
    found = our_uint8(numbered(*size), square, (side, side))
    np.testing.assert_array_equal(found, numbered(*size)[top : top + side, left : left + side])


@pytest.mark.parametrize("target", [(224, 224), (96, 161)])
@pytest.mark.parametrize("name", ["flower", "photograph", "portrait", "odd", "smaller"])
def test_the_square_resized_by_pillow_equals_torchvision(name: str, target: Size) -> None:
    """The transform of keras_cv_attention_models' PyTorch backend, whose steps these are."""
    require_timm()
    from torchvision import transforms

    if name not in SOURCES:
        pytest.skip("needs scikit-learn for the photograph, which is not installed (pip install scikit-learn)")
    image = SOURCES[name]
    side = int(0.9 * min(image.size))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    steps = [
        transforms.Resize(target, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(),
        transforms.Normalize(*IMAGENET),
    ]
    theirs = transforms.Compose(steps)(image.crop((left, top, left + side, top + side))).permute(1, 2, 0).numpy()
    ours = preprocess_images(image, Preprocessing(0.9, "square", "bicubic", *IMAGENET), *target)
    np.testing.assert_array_equal(ours[0], theirs)


def test_grey_and_tensorflows_resize_go_together() -> None:
    grey = Preprocessing(1.0, "square", "bicubic", (0.25,), (0.5,), "tensorflow", False)
    colour = dataclasses.replace(grey, mean=(0.25,) * 3, std=(0.5,) * 3)
    image = source(50, 37).convert("L")
    found = preprocess_images(image, grey, 20, 31, dtype="float64")
    assert found.shape == (1, 20, 31, 1)
    same = preprocess_images(image, colour, 20, 31, dtype="float64")
    np.testing.assert_allclose(np.repeat(found, 3, axis=-1), same, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_tensorflows_resize_is_told_what_the_preprocessing_says(
    interpolation: Any, antialias: bool, dtype: Any
) -> None:
    told = Preprocessing(1.0, "squash", interpolation, (0.0,) * 3, (1 / 255,) * 3, "tensorflow", antialias)
    found = preprocess_images(source(50, 37), told, 20, 31, dtype=dtype)[0]
    pixels = np.asarray(source(50, 37))
    expected = tensorflow_resized(pixels, (20, 31), interpolation, antialias, dtype)
    np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(dtype).eps, atol=0)
    if interpolation != "nearest":
        other = tensorflow_resized(pixels, (20, 31), interpolation, not antialias, dtype)
        assert np.abs(found - other).max() > 1


def test_tensorflows_resize_is_cropped_and_padded_as_pillows() -> None:
    """An even image has the same border of black under both, whatever else the resizing does."""
    image = np.full((37, 50, 3), 200, np.uint8)
    for crop, fraction, target in (("center", 0.8, (16, 20)), ("center", 1.4, (33, 20)), ("squash", 1.4, (20, 33))):
        pillow, tensorflow = (
            preprocess_images(image, Preprocessing(fraction, crop, resampling=who), *target)  # type: ignore[arg-type]
            for who in ("pillow", "tensorflow")
        )
        np.testing.assert_allclose(tensorflow, pillow, rtol=0, atol=2e-5)


def test_what_spec_files_of_earlier_releases_lack_is_pillows() -> None:
    spec = coatref.spec("timm/coatnet_0_rw_224")
    plain = json.loads(spec.to_json())
    for name in ("resampling", "antialias"):
        plain["preprocessing"].pop(name)
    assert coatref.Spec.from_json(json.dumps(plain)) == spec
    assert (spec.preprocessing.resampling, spec.preprocessing.antialias) == ("pillow", True)
    for name in ("timm/coatnet_0_rw_224", "kecam/CoAtNet0"):
        assert coatref.Spec.from_json(coatref.spec(name).to_json()) == coatref.spec(name)


def _with_transparent_colour(image: Image.Image) -> Image.Image:
    palette = image.quantize(16)
    palette.info["transparency"] = 3
    return palette


MODES: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "grey": ("png", lambda image: image.convert("L")),
    "bilevel": ("png", lambda image: image.convert("1")),
    "alpha": ("png", lambda image: _alpha(image)),
    "grey and alpha": ("png", lambda image: _alpha(image).convert("LA")),
    "palette": ("png", lambda image: image.quantize(16)),
    "transparent palette": ("png", _with_transparent_colour),
    "16 bits": ("png", lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 3)),
    "32 bits": ("tiff", lambda image: image.convert("I")),
    "float": ("tiff", lambda image: image.convert("F")),
    "ink": ("jpg", lambda image: image.convert("CMYK")),
    "YCbCr": ("tiff", lambda image: image.convert("YCbCr")),
    "gif": ("gif", lambda image: image.quantize(16)),
}


def _alpha(image: Image.Image) -> Image.Image:
    result = image.convert("RGBA")
    result.putalpha(image.convert("L"))
    return result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_converted_as_timm_does(create_transform: Any, tmp_path: Path, mode: str, channels: int) -> None:
    suffix, make = MODES[mode]
    path = tmp_path / f"image.{suffix}"
    make(source(61, 40)).save(path)
    preprocessing = Preprocessing(mean=(0.5,) * channels, std=(0.5,) * channels)
    with Image.open(path) as opened:
        assert_equals_timm(create_transform, opened, preprocessing, (32, 32))
        expected = preprocess_images(opened, preprocessing, 32, 32)
    for name in (path, str(path)):
        np.testing.assert_array_equal(preprocess_images(name, preprocessing, 32, 32), expected)


def test_16_bit_values_are_clipped() -> None:
    image = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16))
    flat = Preprocessing(1.0, "squash", "nearest", (0.0,), (1.0,))
    assert preprocess_images(image, flat, 1, 4).ravel().tolist() == [0, 1, 1, 1]


def test_orientation_in_exif_is_not_applied(create_transform: Any, tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTOGRAPH.save(path, exif=exif)
    with Image.open(path) as opened:
        assert ImageOps.exif_transpose(opened).size == opened.size[::-1]
        assert_equals_timm(create_transform, opened, Preprocessing(crop="squash"), (30, 50))
        expected = preprocess_images(np.asarray(opened), Preprocessing(), 30, 50)
    np.testing.assert_array_equal(preprocess_images(path, Preprocessing(), 30, 50), expected)


@pytest.mark.parametrize("array", [np.asarray(source(50, 37)), np.asarray(source(50, 37).convert("L"))])
def test_arrays_are_images_and_are_not_written_to(array: NDArray[np.uint8]) -> None:
    for layout in (array, array[::-1, ::-1][::-1, ::-1], np.asfortranarray(array)):
        before = layout.copy()
        for target in ((20, 20), (20, 31), array.shape[:2]):
            expected = preprocess_images(Image.fromarray(array), Preprocessing(1.0), *target)
            result = preprocess_images(layout, Preprocessing(1.0), *target)
            np.testing.assert_array_equal(result, expected)
            assert not np.shares_memory(result, layout)
            result[...] = 7
            np.testing.assert_array_equal(layout, before)


def test_pillow_images_are_not_changed() -> None:
    image = source(50, 37)
    before = (image.mode, image.size, image.tobytes())
    preprocess_images(image, Preprocessing(1.0, mean=(0.5,), std=(0.5,)), 37, 50)
    preprocess_images(image, Preprocessing(1.0), 37, 50)[...] = 7
    assert (image.mode, image.size, image.tobytes()) == before


def test_a_batch_is_its_images_in_order(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    source(30, 20).save(path)
    images: list[Any] = [PHOTOGRAPH, path, np.asarray(source(20, 30)), np.asarray(source(9, 9).convert("L"))]
    batch = preprocess_images(images, Preprocessing(), 24, 17)
    assert batch.shape == (4, 24, 17, 3) and batch.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(batch, preprocess_images(tuple(images), Preprocessing(), 24, 17))
    for row, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(row, preprocess_images(image, Preprocessing(), 24, 17)[0])


def test_float64_is_the_formula_in_python_floats() -> None:
    every_value = np.arange(256, dtype=np.uint8).reshape(16, 16)
    preprocessing = Preprocessing(1.0, "center", "bicubic", *IMAGENET)
    result = preprocess_images(every_value, preprocessing, 16, 16, dtype="float64")
    assert result.dtype == np.float64
    mean, std = IMAGENET
    expected = [[(value / 255 - m) / s for m, s in zip(mean, std, strict=True)] for value in range(256)]
    assert result.reshape(256, 3).tolist() == expected


def test_every_byte_has_torchvisions_float32_bits(create_transform: Any) -> None:
    every_value = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for mean, std in [HALVES, IMAGENET, ((0.1,) * 3, (1 / 3,) * 3)]:
        assert_equals_timm(create_transform, every_value, Preprocessing(1.0, mean=mean, std=std), (16, 16))


def test_the_photograph_is_the_documented_file() -> None:
    folder = importlib.resources.files("coatref").joinpath("data")
    digest = hashlib.sha256(folder.joinpath("china.jpg").read_bytes()).hexdigest()
    assert digest in folder.joinpath("README.md").read_text(encoding="utf-8")
    first, second = photograph(), photograph()
    assert first.size == (640, 427) and first.mode == "RGB"
    first.putpixel((0, 0), (1, 2, 3))
    assert second.getpixel((0, 0)) != (1, 2, 3)


# ---------------------------------------------------------------------------------------------------------- refusals


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("this is not an image, whatever its name says")


def _truncated(suffix: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        source(200, 160).save(path, format=suffix)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return write


def _corrupt(path: Path) -> None:
    source(200, 160).save(path, format="png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "write", [_nothing, _text, _corrupt, _truncated("png"), _truncated("jpeg"), _truncated("tiff"), _truncated("bmp")]
)
def test_a_file_that_cannot_be_decoded_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "image.png"
    write(path)
    with pytest.raises(errors.FileFormatError, match=r"image 1 of 2, .*image\.png"):
        preprocess_images([PHOTOGRAPH, path], Preprocessing(), 8, 8)
    try:
        opened = Image.open(path)
    except OSError:
        return  # not even its header can be read
    with opened, pytest.raises(errors.FileFormatError, match="image 0 of 1"):
        preprocess_images(opened, Preprocessing(), 8, 8)


@pytest.mark.parametrize("limit", [50, 70], ids=["where Pillow raises", "where Pillow warns"])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_decompression_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, action: Any
) -> None:
    path = tmp_path / "image.png"
    source(11, 10).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(errors.FileFormatError, match="MAX_IMAGE_PIXELS|DecompressionBomb"):
            preprocess_images(path, Preprocessing(), 8, 8)
    for allowed in (110, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", allowed)
        assert preprocess_images(path, Preprocessing(), 8, 8).shape == (1, 8, 8, 3)


def test_a_file_that_cannot_be_opened_gives_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        preprocess_images(tmp_path / "absent.png", Preprocessing(), 8, 8)
    with pytest.raises((IsADirectoryError, PermissionError)):
        preprocess_images(tmp_path, Preprocessing(), 8, 8)


GOOD = np.zeros((9, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], errors.InputError, "empty"),
        ((), errors.InputError, "empty"),
        (None, errors.InputError, "NoneType"),
        (b"image.png", errors.InputError, "bytes"),
        ({"image.png"}, errors.InputError, "set"),
        ([GOOD, 3], errors.InputError, "image 1 of 2"),
        ([[GOOD]], errors.InputError, "list"),
        (GOOD.astype(np.float32), errors.DtypeError, "float32"),
        (GOOD.astype(np.uint16), errors.DtypeError, "uint16"),
        (GOOD.astype(bool), errors.DtypeError, "bool"),
        (GOOD[None], errors.ShapeError, r"\(1, 9, 8, 3\)"),
        (GOOD[0, 0], errors.ShapeError, r"\(3,\)"),
        (GOOD.transpose(2, 0, 1), errors.ShapeError, r"\(3, 9, 8\)"),
        (GOOD[:, :, :1], errors.ShapeError, r"\(9, 8, 1\)"),
        (np.zeros((9, 8, 4), np.uint8), errors.ShapeError, r"\(9, 8, 4\)"),
        (np.zeros((), np.uint8), errors.ShapeError, r"\(\)"),
        ([GOOD[:0]], errors.ShapeError, r"\(0, 8, 3\)"),
        ([Image.new("RGB", (0, 4))], errors.ShapeError, "4 x 0"),
        ([Image.new("La", (4, 4))], errors.InputError, "mode La"),
    ],
)
def test_images_that_are_none_are_refused(images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        preprocess_images(images, Preprocessing(), 8, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((Preprocessing(), 0, 8), {}, errors.SizeError),
        ((Preprocessing(), 8, -1), {}, errors.SizeError),
        ((Preprocessing(), 8.0, 8), {}, errors.InputError),
        ((Preprocessing(), 8, "8"), {}, errors.InputError),
        ((Preprocessing(1.5), 8, 1), {}, errors.SizeError),  # resized to floor(1 / 1.5) = 0 pixels
        ((Preprocessing(1e-300), 8, 8), {}, errors.SizeError),
        ((Preprocessing(crop="squash"), 2**16, 2**16), {}, errors.SizeError),
        ((Preprocessing(crop="square"), 2**16, 2**16), {}, errors.SizeError),
        ((Preprocessing(0.1, "square"), 8, 8), {}, errors.SizeError),  # the square is floor(0.8) = 0 pixels
        ((None, 8, 8), {}, errors.InputError),
        ((Preprocessing(), 8, 8), {"dtype": "float16"}, errors.DtypeError),
        ((Preprocessing(), 8, 8), {"dtype": np.float32}, errors.DtypeError),
        ((Preprocessing(), 8, 8), {"dtype": None}, errors.DtypeError),
    ],
)
def test_other_arguments_are_refused(arguments: Any, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        preprocess_images(GOOD, *arguments, **options)
    assert str(caught.value).count("\n") == 0


def test_an_image_too_thin_to_resize_is_refused() -> None:
    for target in ((224, 224), (224, 160)):
        with pytest.raises(errors.SizeError, match="10000 x 1"):
            preprocess_images(np.zeros((10_000, 1), np.uint8), Preprocessing(), *target)


@pytest.mark.parametrize(
    "fields",
    [
        {"crop_fraction": 0.0},
        {"crop_fraction": -0.5},
        {"crop_fraction": float("nan")},
        {"crop_fraction": float("inf")},
        {"crop_fraction": "0.875"},
        {"crop_fraction": True},
        {"crop_fraction": None},
        {"crop_fraction": 10**400},
        {"crop": "border"},
        {"crop": None},
        {"crop": ["center"]},
        {"crop_fraction": 1.01, "crop": "square"},
        {"crop_fraction": 10**5000},
        {"interpolation": "box"},
        {"interpolation": "random"},
        {"interpolation": 3},
        {"mean": (0.5,)},
        {"mean": 0.5},
        {"mean": "abc"},
        {"mean": (0.5, 0.5, None)},
        {"mean": (0.5, 0.5, float("nan"))},
        {"mean": (), "std": ()},
        {"mean": (0.5, 0.5), "std": (0.5, 0.5)},
        {"std": (0.5, 0.5, 0.0)},
        {"std": (0.5, 0.5, -0.5)},
        {"std": (0.5, 0.5, 1e-60)},
        {"std": (0.5, 0.5, 1e60)},
        {"resampling": "opencv"},
        {"resampling": None},
        {"antialias": 1, "resampling": "tensorflow"},
        {"antialias": None},
        {"antialias": False},
    ],
)
def test_a_preprocessing_that_means_nothing_is_refused(fields: Any) -> None:
    with pytest.raises(errors.SpecError, match=next(iter(fields)).split("_")[0]):
        Preprocessing(**fields)


def test_a_preprocessing_survives_json() -> None:
    for original in (
        Preprocessing(),
        Preprocessing(1, "squash", "lanczos", (0,), (1,)),
        Preprocessing(1, "square", "bilinear", resampling="tensorflow", antialias=False),
        Preprocessing(float(np.float32(0.9)), mean=(np.float32(0.1),) * 3, std=[0.1, 0.2, 0.3]),  # type: ignore[arg-type]
    ):
        read = Preprocessing(**json.loads(json.dumps(dataclasses.asdict(original))))
        assert read == original and hash(read) == hash(original)
        assert isinstance(read.crop_fraction, float) and isinstance(read.mean, tuple)


def test_pillow_is_imported_only_when_needed() -> None:
    code = "import sys, coatref.images; print('PIL' in sys.modules)"
    path = str(Path(str(importlib.resources.files("coatref").joinpath("errors.py"))).parent.parent)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=path)
    assert result.stdout.strip() == "False"


def test_missing_pillow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    for call in (photograph, lambda: preprocess_images(GOOD, Preprocessing(), 8, 8)):
        with pytest.raises(errors.MissingDependencyError, match="pip install pillow"):
            call()
