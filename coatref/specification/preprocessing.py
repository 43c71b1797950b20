"""What a checkpoint's own evaluation transform does to an image, as a part of the spec."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from coatref.errors import FileFormatError, SpecError
from coatref.specification.fields import shown

_CHOICES = {
    "crop": ("center", "squash", "square"),
    "interpolation": ("bicubic", "bilinear", "nearest", "lanczos"),
    "resampling": ("pillow", "tensorflow"),
    "antialias": (True, False),
}

# Our names of what timm's config.json says of the evaluation transform.
_TIMM_NAMES = {
    "crop_fraction": "crop_pct",
    "crop": "crop_mode",
    "interpolation": "interpolation",
    "mean": "mean",
    "std": "std",
}

_FLOAT32_TINY, _FLOAT32_MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint's own evaluation transform does; the names of timm's settings are in brackets.

    crop_fraction: for "center" and "squash" target side / resized side (crop_pct), resized side = floor(target side /
        crop_fraction); above 1 the resized image is smaller than the target and is padded with black. For "square" the
        side of the square / the image's shorter side, at most 1.
    crop: "center" keeps the aspect ratio and crops after resizing, "squash" resizes both sides regardless of it
        (crop_mode); "square" first cuts out the centre square of floor(crop_fraction * shorter side) pixels, and then
        resizes it to the target, as keras_cv_attention_models does.
    interpolation: the resampling filter (interpolation); "lanczos" is the one of three lobes.
    mean, std: per channel, of pixels in [0, 1]; three values for RGB, one for grey. What Keras calls mode "torch" are
        the defaults here, mode "tf" (x / 127.5 - 1) is 0.5 for both, and unscaled pixels are mean 0 and std 1 / 255.
    resampling: who resizes. "pillow", and so timm: in fixed point, each pass rounded and clipped to 0..255. "tensorflow",
        `tf.image.resize`: in floating point, neither rounded nor clipped.
    antialias: whether the filter is widened for shrinking; Pillow always does it. "nearest" never is.

    Lists are stored as tuples and numbers as float, so that a value read back from JSON equals the one written.

    Raises SpecError for a value outside these choices.
    """

    crop_fraction: float = 0.875
    crop: Literal["center", "squash", "square"] = "center"
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resampling: Literal["pillow", "tensorflow"] = "pillow"
    antialias: bool = True

    def __post_init__(self) -> None:
        fraction = _finite(self.crop_fraction, "crop_fraction")
        if fraction <= 0:
            raise SpecError(
                f"Preprocessing.crop_fraction must be positive and is {fraction!r}; timm's default is 0.875."
            )
        object.__setattr__(self, "crop_fraction", fraction)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
                raise SpecError(
                    f"Preprocessing.{name} must be one of {', '.join(map(str, choices))} and is {shown(value)}; choose one."
                )
        if self.resampling == "pillow" and not self.antialias:
            raise SpecError(
                "Preprocessing.antialias is False with resampling 'pillow', which always widens its filters; "
                "choose resampling='tensorflow'."
            )
        if self.crop == "square" and fraction > 1:
            raise SpecError(
                f"Preprocessing.crop_fraction must be at most 1 for crop 'square' and is {fraction!r}; the square is "
                "cut out of the image."
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or len(values) not in (1, 3):
                raise SpecError(
                    f"Preprocessing.{name} must be a tuple of 3 numbers (RGB) or 1 (grey) and is {shown(values)}; give "
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


def preprocessing_of(config: Mapping[str, Any]) -> Preprocessing | None:
    """The evaluation transform that timm's config.json tells of, with timm's defaults for what it leaves out.

    Args:
        config: the parsed file: "pretrained_cfg" with "crop_pct", "crop_mode", "interpolation", "mean", "std" and
            "input_size" (channels, height, width), or these at the top, as timm once wrote it. As in timm, those for a
            larger size ("test_input_size", "test_crop_pct") are not taken.

    Returns:
        None where it says nothing of the transform.

    Raises:
        FileFormatError: what it says is no transform, or one that is not known here, such as crop mode "border".

    Source: timm 1.0.31, `timm.data.resolve_data_config` and `timm.models._hub`.
    """
    settings = config.get("pretrained_cfg", config)
    if not isinstance(settings, Mapping):
        raise FileFormatError(f"The config's pretrained_cfg must be an object and is {shown(settings)}; correct it.")
    said = {ours: settings[theirs] for ours, theirs in _TIMM_NAMES.items() if settings.get(theirs) is not None}
    if not said:
        return None
    size = settings.get("input_size")
    if isinstance(size, (list, tuple)) and size and size[0] == 3:  # timm takes one number for all channels
        for name in ("mean", "std"):
            if isinstance(said.get(name), (list, tuple)) and len(said[name]) == 1:
                said[name] = list(said[name]) * 3
    try:
        if said.get("crop") == "square":  # which is no word of timm's
            raise SpecError("crop_mode must be one of center, squash and is 'square'; choose one.")
        return Preprocessing(**said)
    except SpecError as error:
        raise FileFormatError(f"The config's evaluation transform cannot be used: {error}") from None


def _finite(value: object, name: str) -> float:
    """The value as a float, if it is a number that float32 can hold; SpecError otherwise."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an int beyond float64
            number = float(value)
            if abs(number) <= _FLOAT32_MAX:
                return number
    raise SpecError(f"Preprocessing.{name} must hold finite numbers and holds {shown(value)}; give plain numbers.")
