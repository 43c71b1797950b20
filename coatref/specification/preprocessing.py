"""What a checkpoint's own evaluation transform does to an image, as a part of the spec."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coatref.errors import SpecError

_CROPS = ("center", "squash")
_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")

_FLOAT32_TINY, _FLOAT32_MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint's own evaluation transform does; the names of timm's settings are in brackets.

    crop_fraction: target side / resized side (crop_pct), resized side = floor(target side / crop_fraction). Above 1
        the resized image is smaller than the target and is padded with black.
    crop: "center" keeps the aspect ratio, "squash" resizes both sides regardless of it (crop_mode).
    interpolation: Pillow's resampling filter (interpolation), widened for shrinking except for "nearest".
    mean, std: per channel, of pixels in [0, 1]; three values for RGB, one for grey.

    Lists are stored as tuples and numbers as float, so that a value read back from JSON equals the one written.

    Raises SpecError for a value outside these choices.
    """

    crop_fraction: float = 0.875
    crop: Literal["center", "squash"] = "center"
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        fraction = _finite(self.crop_fraction, "crop_fraction")
        if fraction <= 0:
            raise SpecError(
                f"Preprocessing.crop_fraction must be positive and is {fraction!r}; timm's default is 0.875."
            )
        object.__setattr__(self, "crop_fraction", fraction)
        for name, choices in (("crop", _CROPS), ("interpolation", _INTERPOLATIONS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise SpecError(
                    f"Preprocessing.{name} must be one of {', '.join(choices)} and is {value!r:.80}; choose one."
                )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or len(values) not in (1, 3):
                raise SpecError(
                    f"Preprocessing.{name} must be a tuple of 3 numbers (RGB) or 1 (grey) and is {values!r:.80}; give "
                    "one number per channel."
                )
            object.__setattr__(self, name, tuple(_finite(value, name) for value in values))
        if len(self.mean) != len(self.std):
            raise SpecError(
                f"Preprocessing.mean and Preprocessing.std must have one number per channel each, and have "
                f"{len(self.mean)} and {len(self.std)}; give both 3 (RGB) or both 1 (grey)."
            )
        if min(self.std) < _FLOAT32_TINY:
            raise SpecError(
                f"Preprocessing.std must be positive, also when rounded to float32, and is {self.std}; pixels are "
                "divided by it."
            )


def _finite(value: object, name: str) -> float:
    """The value as a float, if it is a number that float32 can hold; SpecError otherwise."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an int beyond float64
            number = float(value)
            if abs(number) <= _FLOAT32_MAX:
                return number
    raise SpecError(f"Preprocessing.{name} must hold finite numbers and holds {value!r:.80}; give plain numbers.")
