"""The trained checkpoint that ships with coatref: a small CoAtNet that reads handwritten digits, and images to try it on.

    params = coatref.digits.checkpoint()
    images, labels = coatref.digits.heldout()
    logits = coatref.forward(params, coatref.digits.upscale(images))  # (M, 10)

`examples/train_digits.py` made both files; `coatref/data/README.md` says what is in them and where the digits come from.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coatref.errors import DtypeError, InputError, ShapeError
from coatref.images import preprocess_images
from coatref.params import Params
from coatref.specification.preprocessing import Preprocessing
from coatref.weights import load

IMAGE_SIZE = (96, 64)  # upright, so that no height can pass for a width: S3 works on a grid of 6x4, S4 of 3x2
PREPROCESSING = Preprocessing(crop_fraction=1.0, crop="squash", interpolation="bicubic", mean=(0.5,), std=(0.5,))
LEVELS = 16  # ink in each of the 8x8 cells, 0 to 16


def checkpoint() -> Params:
    """The trained parameters, float32 NumPy arrays, with their spec, "digits".

    Raises FileFormatError, OSError or WeightsError where the bundled file is damaged or missing.
    """
    with importlib.resources.as_file(importlib.resources.files("coatref") / "data" / "digits.safetensors") as path:
        return load(path)


def heldout() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The digits that the checkpoint was not trained on.

    Returns images (M, 8, 8) of levels 0 (paper) to 16 (ink), and their labels (M,), 0 to 9.
    """
    from safetensors.numpy import load as load_tensors

    content = (importlib.resources.files("coatref") / "data" / "digits_heldout.safetensors").read_bytes()
    tensors = load_tensors(content)
    return tensors["images"], tensors["labels"]


def upscale(images: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
    """Model input from 8x8 digits: (M, 8, 8) -> (M, 96, 64, 1) in float32, as the checkpoint was trained and tested.

    A level v becomes the grey value floor(255 v / 16 + 1/2), ink bright on black; Pillow resizes the grey image, which it
    rounds to whole grey values; then x / 127.5 - 1, as `coatref.images.preprocess` does under the checkpoint's spec.

    Raises:
        ShapeError, DtypeError, InputError: `images` are no batch of 8x8 digits of uint8 levels 0 to 16.
        MissingDependencyError: Pillow is not installed.
    """
    if images.ndim != 3 or images.shape[0] == 0 or images.shape[1:] != (8, 8):
        raise ShapeError(
            f"upscale takes digits of shape (M, 8, 8), at least one, got {images.shape}; one goes in as x[None]."
        )
    if images.dtype != np.uint8:
        raise DtypeError(
            f"upscale takes uint8 levels 0 to {LEVELS}, got {images.dtype}; cast them with astype('uint8')."
        )
    if images.max() > LEVELS:
        raise InputError(
            f"upscale takes levels 0 to {LEVELS}, got up to {images.max()}; divide grey values by 16 first."
        )
    grey = ((images.astype(np.int64) * 255 + LEVELS // 2) // LEVELS).astype(np.uint8)  # (M, 8, 8), 0 to 255
    return preprocess_images(list(grey), PREPROCESSING, *IMAGE_SIZE)
