"""Mistakes in S0, the stem."""

from __future__ import annotations

import dataclasses
from typing import Any

from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.mistakes.edits import by_fields, reading, require
from coatref.conformance.mistakes.mistake import Mistake
from coatref.primitives import Form
from coatref.registry import Array, namespace
from coatref.specification.grids import padding_amounts
from coatref.specification.parts import ConvStem, PatchStem


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    return (
        *[padding(kind) for kind in ("symmetric", "same")],
        *[padding_mode(mode) for mode in ("replicate", "reflect")],
        Mistake(
            "stem-stride-phase",
            "stem convolution",
            "takes the odd positions of the image, not the even ones, at the stride of the stem",
            "a common slip: x[1::2]",
            strided(lambda x: later(later(x, 1), 2)),
        ),
        Mistake(
            "stem-kernel-transposed",
            "stem convolution",
            "reads the kernels of the stem with height and width swapped",
            "a common slip in conversion of weights (kernels stored as IWHO)",
            convolutions(lambda name, w: namespace(w).permute_dims(w, (1, 0, 2, 3))),
        ),
        Mistake(
            "stem-kernel-flipped",
            "stem convolution",
            "flips the kernels of the stem, a convolution in the mathematical sense, not a correlation",
            "a common slip: scipy.signal.convolve",
            convolutions(lambda name, w: namespace(w).flip(w, axis=(0, 1))),
        ),
        Mistake(
            "stem-bias-ignored",
            "stem convolution",
            "does not add the bias of the stem's convolutions",
            "google-research/maxvit has these biases, timm, kecam and hw666 have none",
            lambda changed: reading(changed, r"s0\.conv\d+\.b", lambda name, b: b * 0.0),
        ),
        by_fields(
            "stem-norm-after-last",
            "stem convolution",
            "normalises and activates after the last convolution of the stem too",
            "chinhsuanwu and its copies have BatchNorm and GELU there; google, timm and kecam have nothing",
            {"ConvStem.after_last": "norm_and_activation"},
        ),
        by_fields(
            "stem-norm-after-last-missing",
            "stem convolution",
            "has no norm and activation after the last convolution of the stem",
            "google, timm and kecam have nothing there; chinhsuanwu has BatchNorm and GELU",
            {"ConvStem.after_last": "nothing"},
        ),
        Mistake(
            "patches-channels-first",
            "stem convolution",
            "flattens each patch channels first, while its kernel is stored channels last",
            "a common slip: einops patterns of ViT code differ in it",
            patches,
        ),
    )


def padding(kind: str) -> Mistake:
    """The other of the two paddings."""
    words = {"symmetric": "one row on each side", "same": "TensorFlow's SAME, an odd row at the end"}
    return by_fields(
        f"stem-padding-{kind}",
        "stem convolution",
        f"pads the stem's strided convolution with {words[kind]}, not as the spec says",
        "Sec. 2.2 is silent; TensorFlow code (google, hw666) pads SAME, torch code (timm, kecam, chinhsuanwu) symmetrically",
        {"ConvStem.padding": kind},
    )


def edge_padded(x: Array, amounts: tuple[tuple[int, int], tuple[int, int]], mode: str) -> Array:
    """A grid padded with its own border ("replicate") or mirrored at it ("reflect"). Shapes: (N, H, W, C)."""
    xp = namespace(x)
    for axis, (before, after) in zip((1, 2), amounts, strict=True):
        length = x.shape[axis]
        inner = range(-before, length + after)
        last = length - 1
        if mode == "replicate" or last == 0:
            index = [min(max(position, 0), last) for position in inner]
        else:
            index = [last - abs(last - abs(position)) for position in inner]
        x = xp.concat([x[:, i : i + 1, ...] if axis == 1 else x[:, :, i : i + 1, :] for i in index], axis=axis)
    return x


def with_edges(form: Form, mode: str) -> Form:
    """A convolution whose padding holds no zeros."""

    def convolve(x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: Any = "same") -> Array:
        if padding == "valid":
            return form(x, w, b, stride=stride, padding=padding)
        rows, columns = (padding_amounts(x.shape[axis], w.shape[axis - 1], stride, padding) for axis in (1, 2))
        return form(edge_padded(x, (rows, columns), mode), w, b, stride=stride, padding="valid")

    return convolve


def padding_mode(mode: str) -> Mistake:
    """Padding by the border's own values."""

    def change(changed: Changed) -> Changed:
        stem = changed.spec.stem
        require(changed, isinstance(stem, ConvStem) and stem.kernel > 1, "padded convolution in its stem")
        form = with_edges(changed.forms.conv2d, mode)
        return changed.but(forms=dataclasses.replace(changed.forms, conv2d=form))

    return Mistake(
        f"stem-padding-{mode}",
        "stem convolution",
        f"pads the stem's convolutions by {mode} padding, not with zeros",
        "a common slip: padding_mode of torch's convolutions",
        change,
    )


def later(x: Array, axis: int) -> Array:
    """A grid moved one position towards its start, with zeros at its end."""
    xp = namespace(x)
    head = x[:, 1:, ...] if axis == 1 else x[:, :, 1:, :]
    return xp.concat([head, xp.zeros_like(x[:, :1, ...] if axis == 1 else x[:, :, :1, :])], axis=axis)


def strided(move: Form) -> Any:
    """A change of the image that only the strided convolution of the stem sees."""

    def change(changed: Changed) -> Changed:
        require(changed, isinstance(changed.spec.stem, ConvStem), "strided convolution in its stem")
        original = changed.forms.conv2d

        def convolve(x: Array, *args: Any, stride: int = 1, **kwargs: Any) -> Array:
            return original(move(x) if stride == 2 else x, *args, stride=stride, **kwargs)

        return changed.but(forms=dataclasses.replace(changed.forms, conv2d=convolve))

    return change


def convolutions(edit: Any) -> Any:
    """A change of the kernels of a convolutional stem."""

    def change(changed: Changed) -> Changed:
        stem = changed.spec.stem
        require(changed, isinstance(stem, ConvStem) and stem.kernel > 1, "kernel of several positions in its stem")
        return reading(changed, r"s0\.conv\d+\.w", edit)

    return change


def patches(changed: Changed) -> Changed:
    """The kernel of a patch stem, its input axis read as (channels, rows, columns)."""
    stem = changed.spec.stem
    require(changed, isinstance(stem, PatchStem) and stem.patch > 1 and changed.spec.channels > 1, "patches")

    def edit(name: str, w: Array) -> Array:
        xp = namespace(w)
        kh, kw, channels, width = w.shape
        return xp.permute_dims(xp.reshape(w, (channels, kh, kw, width)), (1, 2, 0, 3))

    return reading(changed, r"s0\.conv1\.w", edit)
