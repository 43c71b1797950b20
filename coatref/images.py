"""Images to model input: the evaluation transform that a checkpoint was published with.

Two conventions. That of timm 1.0.31 (`timm.data.transforms_factory.transforms_imagenet_eval`, on torchvision's transforms
of Pillow images): convert to RGB, resize with Pillow, crop the centre, scale to [0, 1], normalise. And that of Keras, as
keras_cv_attention_models 1.4.3 has it (`imagenet.evaluation`): cut out the centre square, resize it with `tf.image.resize`,
scale and normalise. What each step does is a choice of `Preprocessing`.

As in both, the orientation in a file's EXIF data is not applied: pixels are taken as Pillow decodes them. To have it
applied, pass `PIL.ImageOps.exif_transpose(image)`.

TensorFlow decodes JPEG files less exactly than Pillow (`tf.io.decode_jpeg` takes the fast integer DCT unless told
otherwise; up to 18 of 255 units from Pillow's pixels on the bundled photograph). Where that counts, pass arrays that
TensorFlow decoded.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import io
import math
import operator
import os
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from coatref.errors import (
    CoatrefError,
    DtypeError,
    FileFormatError,
    InputError,
    MissingDependencyError,
    ShapeError,
    SizeError,
)
from coatref.specification.preprocessing import Preprocessing
from coatref.specification.spec import Spec
from coatref.tensorflow_resize import tensorflow_resized

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike: TypeAlias = str | os.PathLike[str] | Image | NDArray[np.uint8]

_DTYPES = ("float32", "float64")

# What one resized image may hold: 1 GiB at Pillow's four bytes a pixel. A very thin image exceeds it easily, since its
# shorter side is stretched to the target and its longer side with it.
_MAX_RESIZED_PIXELS = 2**28


def preprocess_images(
    images: ImageLike | Sequence[ImageLike],
    preprocessing: Preprocessing,
    height: int,
    width: int,
    *,
    dtype: Literal["float32", "float64"] = "float32",
) -> NDArray[np.floating[Any]]:
    """Model input from images: y[n, i, j, c] = (x[n, i, j, c] / 255 - mean[c]) / std[c], x the resized, cropped pixels.

    With resampling "pillow", x is uint8, as Pillow has it after each step; with "tensorflow" it is floating.

    images: one image, or a list or tuple of N images, each a path, a Pillow image, or a uint8 array (H, W, 3) in RGB
        order or (H, W) in grey. Every Pillow mode is brought to RGB (to grey where `preprocessing.mean` has one value)
        by Pillow's `convert`, as timm's loaders do: alpha is dropped, and values above 255 of 16-bit images are
        clipped to 255, not scaled. Of an animated file the first frame is taken. Nothing given is written to.
    height, width: the target size in pixels.
    dtype: "float32" computes in float32, step by step as torchvision and TensorFlow do; "float64" the same formulas in
        float64.

    Returns (N, height, width, C), channels last, C = len(preprocessing.mean); N = 1 for a single image.

    Raises InputError (no images, another type, a Pillow mode without conversion, a size that is not an integer),
    SizeError (a target or resized size below 1 pixel, or over 2^28 pixels when resized, where timm would go on),
    ShapeError and DtypeError (arrays, dtype), FileFormatError (a file that Pillow cannot decode, or that has more
    pixels than `PIL.Image.MAX_IMAGE_PIXELS`), MissingDependencyError (Pillow is not installed), and OSError as the
    operating system gives it for a file that cannot be opened.

    Source: timm's `transforms_imagenet_eval` with crop_mode "center" or "squash"; keras_cv_attention_models'
    `evaluation_process_crop_resize`.
    """
    pillow = _pillow()
    if not isinstance(preprocessing, Preprocessing):
        raise InputError(
            f"preprocess_images takes a Preprocessing as its second argument and got {preprocessing!r:.80}; pass the "
            "spec's `preprocessing`."
        )
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise DtypeError(
            f"preprocess_images computes in {' or '.join(_DTYPES)} and got dtype={dtype!r:.80}; pass one of them."
        )
    target = (_side(height, "height"), _side(width, "width"))
    channels = len(preprocessing.mean)
    batch = _as_list(images, pillow)
    pixels = []
    for n, image in enumerate(batch):
        where = f"image {n} of {len(batch)}"
        decoded = _converted(_decoded(image, where, pillow), "RGB" if channels == 3 else "L", where)
        pixels.append(_resized_and_cropped(decoded, preprocessing, target, where, pillow, dtype))

    # torchvision's to_tensor and normalize: one rounding for each of the three operations, constants rounded first.
    result = np.stack(pixels, dtype=dtype)
    result /= 255
    result -= np.asarray(preprocessing.mean, dtype)
    result /= np.asarray(preprocessing.std, dtype)
    return cast("NDArray[np.floating[Any]]", result)


def preprocess(
    images: ImageLike | Sequence[ImageLike], spec: Spec, *, dtype: Literal["float32", "float64"] = "float32"
) -> NDArray[np.floating[Any]]:
    """Model input from images as the spec's checkpoint was evaluated: its transform, at its image size.

    Returns (N, H, W, C), channels last, for `coatref.forward`. Arguments and errors are those of `preprocess_images`.

    Raises also InputError where the spec takes another number of channels than images have.
    """
    if len(spec.preprocessing.mean) != spec.channels:
        raise InputError(
            f"Spec {spec.name!r} takes {spec.channels} channels and its preprocessing gives "
            f"{len(spec.preprocessing.mean)}; make the input array yourself."
        )
    return preprocess_images(images, spec.preprocessing, *spec.image_size, dtype=dtype)


def photograph() -> Image:
    """The photograph bundled with coatref: `china.jpg`, 640 x 427, RGB; see coatref/data/README.md for its author.

    Raises MissingDependencyError where Pillow is not installed.
    """
    pillow = _pillow()
    content = (importlib.resources.files("coatref") / "data" / "china.jpg").read_bytes()
    image: Image = pillow.open(io.BytesIO(content))
    image.load()
    return image


def _pillow() -> ModuleType:
    """Pillow's PIL.Image, imported on first use because only images need it."""
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingDependencyError(
            "Reading and resizing images needs Pillow, which is not installed; run `pip install pillow`."
        ) from error
    return PIL.Image


def _side(value: int, name: str) -> int:
    """The target height or width as a Python int of at least 1."""
    try:
        side = operator.index(value)
    except TypeError as error:
        raise InputError(
            f"preprocess_images takes an integer {name} and got {value!r:.80}; pass a size in pixels."
        ) from error
    if side < 1:
        raise SizeError(f"preprocess_images was asked for {name}={side}; pass a size of at least 1 pixel.")
    return side


def _as_list(images: ImageLike | Sequence[ImageLike], pillow: ModuleType) -> list[ImageLike]:
    """The images as a list; a path or an array is one image although it is iterable."""
    if isinstance(images, (str, os.PathLike, np.ndarray, pillow.Image)):
        return [cast("ImageLike", images)]
    if not isinstance(images, (list, tuple)):
        raise InputError(
            f"preprocess_images takes an image or a list or tuple of images and got {type(images).__name__}; wrap the "
            "images in a list."
        )
    if not images:
        raise InputError("preprocess_images got an empty sequence of images; pass at least one.")
    return list(images)


@contextlib.contextmanager
def _decoding(where: str) -> Iterator[None]:
    """Turns whatever Pillow raises for bad content, which its decoders do not limit to OSError, to FileFormatError."""
    try:
        yield
    except (MemoryError, CoatrefError):  # memory running out says nothing about the content
        raise
    except Exception as error:
        raise FileFormatError(
            f"preprocess_images could not decode {where}, for Pillow raised {type(error).__name__}: {error}; check "
            "that it is a complete image in a format that Pillow reads."
        ) from error


def _decoded(image: ImageLike, where: str, pillow: ModuleType) -> Image:
    """The image as a Pillow image with its pixels in memory."""
    if isinstance(image, np.ndarray):
        return _from_array(image, where, pillow)
    if isinstance(image, pillow.Image):
        with _decoding(where):
            image.load()
        found: Image = image
    elif isinstance(image, (str, os.PathLike)):
        found = _from_file(image, f"{where}, {os.fsdecode(image)}", pillow)
    else:
        raise InputError(
            f"preprocess_images takes paths, Pillow images and uint8 arrays, and {where} is of type "
            f"{type(image).__name__}; convert it to one of them."
        )
    if not found.width or not found.height:
        raise ShapeError(
            f"preprocess_images got {where} with {found.height} x {found.width} pixels; pass one that has any."
        )
    return found


def _from_array(array: NDArray[Any], where: str, pillow: ModuleType) -> Image:
    """A Pillow image of a uint8 array (H, W, 3) or (H, W), of any strides; its memory may be the array's own."""
    if array.dtype != np.uint8:
        raise DtypeError(
            f"preprocess_images takes arrays of uint8 and {where} has dtype {array.dtype}; convert it to values 0..255 "
            "in uint8."
        )
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or 0 in array.shape:
        raise ShapeError(
            f"preprocess_images takes arrays of shape (H, W, 3) or (H, W) and {where} has shape {array.shape}; pass a "
            "batch as a list of such arrays, and channels last."
        )
    return cast("Image", pillow.fromarray(array))


def _from_file(path: str | os.PathLike[str], where: str, pillow: ModuleType) -> Image:
    """The decoded image in the file, refused before decoding where it has more pixels than Pillow deems safe."""
    with open(path, "rb") as stream, _decoding(where):
        found: Image = pillow.open(stream)
        # Pillow itself raises only from twice the limit on and warns below that; changing the warning filters here
        # would act on every thread.
        limit = pillow.MAX_IMAGE_PIXELS
        if limit is not None and found.width * found.height > limit:
            raise FileFormatError(
                f"preprocess_images could not decode {where}, which has {found.width * found.height} pixels where "
                f"PIL.Image.MAX_IMAGE_PIXELS allows {limit}; raise that limit if you trust the file."
            )
        found.load()
        return found


def _converted(image: Image, mode: Literal["RGB", "L"], where: str) -> Image:
    """The image in RGB or grey, in memory of its own."""
    try:
        return image.convert(mode)
    except ValueError as error:
        raise InputError(
            f"preprocess_images needs {mode} pixels and Pillow has no conversion from mode {image.mode}, that of "
            f"{where}; convert it to RGB first."
        ) from error


def _resized_and_cropped(
    image: Image, preprocessing: Preprocessing, target: tuple[int, int], where: str, pillow: ModuleType, dtype: str
) -> NDArray[Any]:
    """The image's pixels (*target, C) in 0..255 after the crop and the resize; uint8 from Pillow, else of the dtype."""
    if preprocessing.crop == "square":
        image = _center_square(image, preprocessing, target, where)
    size = _resized_size((image.height, image.width), preprocessing, target, where)
    if preprocessing.resampling == "tensorflow":
        pixels: NDArray[Any] = tensorflow_resized(
            _pixels(image), size, preprocessing.interpolation, preprocessing.antialias, dtype
        )
    else:
        if size != (image.height, image.width):
            image = image.resize(size[::-1], pillow.Resampling[preprocessing.interpolation.upper()])
        pixels = _pixels(image)
    return _center_crop(pixels, target)


def _pixels(image: Image) -> NDArray[np.uint8]:
    """An image's pixels as (H, W, C); grey has no channel axis in Pillow."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def _center_square(image: Image, preprocessing: Preprocessing, target: tuple[int, int], where: str) -> Image:
    """The image's centre square of floor(crop_fraction * shorter side) pixels, the odd pixel left out at the end.

    Source: keras_cv_attention_models' `evaluation_process_crop_resize`, which multiplies in float32, and
    `image_center_crop` of its PyTorch data, which does so in float64.
    """
    number = np.float32 if preprocessing.resampling == "tensorflow" else np.float64
    side = int(number(preprocessing.crop_fraction) * number(min(image.size)))
    if side < 1:
        raise _size_error(where, (image.height, image.width), (side, side), preprocessing, target)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _resized_size(
    size: tuple[int, int], preprocessing: Preprocessing, target: tuple[int, int], where: str
) -> tuple[int, int]:
    """Height and width that the image of the given size is resized to, before the crop.

    "square": the target. Else, with s = floor(target / crop_fraction), per side:
        "squash": s.
        "center", s[0] == s[1]: s for the shorter side, floor(s * long / short) for the longer, which truncates, as
            `torchvision.transforms.Resize(s)` does.
        "center", else: round(side / r) with r = min(size / s), rounding halves to even, as timm's `ResizeKeepRatio`.
    """
    height, width = size
    fraction = 1.0 if preprocessing.crop == "square" else preprocessing.crop_fraction
    wanted = [side / fraction for side in target]
    if min(wanted) < 1 or math.prod(wanted) > _MAX_RESIZED_PIXELS:
        raise _size_error(where, size, wanted, preprocessing, target)
    scale = (math.floor(wanted[0]), math.floor(wanted[1]))
    if preprocessing.crop in ("squash", "square"):
        resized = scale
    elif scale[0] == scale[1]:
        long = int(scale[0] * max(size) / min(size))
        resized = (scale[0], long) if height < width else (long, scale[0])
    else:
        ratio = min(height / scale[0], width / scale[1])
        resized = (round(height / ratio), round(width / ratio))
    if math.prod(resized) > _MAX_RESIZED_PIXELS:
        raise _size_error(where, size, resized, preprocessing, target)
    return resized


def _size_error(
    where: str,
    size: tuple[int, int],
    resized: Sequence[float],
    preprocessing: Preprocessing,
    target: tuple[int, int],
) -> SizeError:
    """The error for an image whose resized size is empty or too large."""
    return SizeError(
        f"preprocess_images was asked for {target[0]} x {target[1]} pixels with crop_fraction="
        f"{preprocessing.crop_fraction!r} and crop={preprocessing.crop!r}, for which {where} of {size[0]} x {size[1]} "
        f"pixels would be resized to {resized[0]:.6g} x {resized[1]:.6g}, outside 1 to {_MAX_RESIZED_PIXELS} pixels; "
        "change the target, the crop_fraction or the image."
    )


def _center_crop(pixels: NDArray[Any], target: tuple[int, int]) -> NDArray[Any]:
    """The centre (*target, C) of pixels (H, W, C), padded with zeros where these are smaller.

    The window starts at round((side - target) / 2), halves to even; padding puts the odd pixel last. Source:
    `torchvision.transforms.functional.center_crop`.
    """
    lacking = [max(want - have, 0) for want, have in zip(target, pixels.shape, strict=False)]
    if any(lacking):
        pixels = np.pad(pixels, [*((lack // 2, lack - lack // 2) for lack in lacking), (0, 0)])
    top, left = (round((have - want) / 2) for want, have in zip(target, pixels.shape, strict=False))
    return pixels[top : top + target[0], left : left + target[1]]
