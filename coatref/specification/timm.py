"""The specs of timm 1.0.31: every coatnet and coatnext entry point of its `maxxvit.py`, under "timm/NAME".

The paper-like ones (`coatnet_0_224`) and three families of timm's own. What a model does not say here is the same for
all of timm: bias-free symmetric 3x3 stem, depthwise convolution with symmetric padding, average pools of 2x2 that drop
an odd row, exact GELU in the feed-forward networks, fused qkv with heads first, no projection where the width stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coatref.errors import InputError
from coatref.specification.parts import (
    Activation,
    Attention,
    ConvNeXt,
    ConvStem,
    FeedForward,
    Head,
    Hidden,
    LayerScale,
    MBConv,
    Norm,
    Pool,
    RelativeBias,
    Run,
    SqueezeExcite,
    Transformer,
)
from coatref.specification.preprocessing import Preprocessing
from coatref.specification.spec import Spec

AVG2 = Pool(kind="avg", size=2, padding="valid")
MAX3 = Pool(kind="max", size=3, padding="symmetric")
BATCH = Norm(kind="batch", epsilon=1e-5)
LAYER = Norm(kind="layer", epsilon=1e-6)

HALF = (0.5, 0.5, 0.5)
CROP_95 = Preprocessing(crop_fraction=0.95, mean=HALF, std=HALF)
CROP_90 = Preprocessing(crop_fraction=0.9, mean=HALF, std=HALF)
IMAGENET_95 = Preprocessing(crop_fraction=0.95, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SQUASH = Preprocessing(crop_fraction=1.0, crop="squash", mean=HALF, std=HALF)


@dataclass(frozen=True, kw_only=True)
class Model:
    """One row of the table below: how a model differs from the others.

    Attributes:
        widths, depths: of timm's four stages, S1 to S4.
        stem: widths of the two stem convolutions.
        family: "paper" for coatnet_N, "coat" for timm's first own models, "max" for its later defaults, "next" for
            ConvNeXt blocks in place of MBConv.
        layout: for each stage "C", "T", or "CT" for one convolution block and Transformer blocks behind it.
        stride: where the MBConv branch strides, timm's `stride_mode`.
        se: squeeze-excite before the norm ("early") or after the activation ("late"), and its activation.
        projection_bias: of the Transformer shortcut, timm's `transformer_shortcut_bias`.
        mlp: hidden width of the relative-bias MLP; None for a table.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stem: tuple[int, int]
    family: Literal["paper", "coat", "max", "next"]
    layout: tuple[str, ...] = ("C", "C", "T", "T")
    stride: Literal["depthwise", "pool"] = "depthwise"
    pool: Pool = AVG2
    se: tuple[Literal["early", "late"], Activation] = ("late", "relu")
    projection_bias: bool = True
    mlp: int | None = None
    layer_scale: float | None = None
    transformer_norm: Norm = LAYER
    image_size: tuple[int, int] = (224, 224)
    classes: int = 1000
    preprocessing: Preprocessing = CROP_95


NANO = {"widths": (64, 128, 256, 512), "depths": (3, 4, 6, 3), "stem": (32, 64)}
RW_0 = {"widths": (96, 192, 384, 768), "depths": (2, 3, 7, 2), "stem": (32, 64)}
RW_1 = {"widths": (96, 192, 384, 768), "depths": (2, 6, 14, 2), "stem": (32, 64)}
RW_2 = {"widths": (128, 256, 512, 1024), "depths": (2, 6, 14, 2), "stem": (64, 128)}
RW_3 = {"widths": (192, 384, 768, 1536), "depths": (2, 6, 14, 2), "stem": (96, 192)}
EARLY: Any = {"se": ("early", "relu"), "projection_bias": False}
SILU: Any = {"se": ("late", "silu")}


def models() -> dict[str, Model]:
    """Entry point -> what it is."""

    def paper(widths: Sequence[int], depths: Sequence[int], stem: int) -> Model:
        return Model(widths=tuple(widths), depths=tuple(depths), stem=(stem, stem), family="paper", **SILU)

    def make(family: Any, size: Any, **changes: Any) -> Model:
        return Model(family=family, **(size | changes))

    pico = {"widths": (64, 128, 256, 512), "depths": (2, 3, 5, 2), "stem": (32, 64)}
    tiny = {"widths": (32, 64, 96, 128), "depths": (1, 1, 2, 1), "stem": (16, 32)}
    return {
        "coatnet_pico_rw_224": make("max", pico, **SILU),
        "coatnet_nano_rw_224": make("max", NANO, **SILU, stride="pool", preprocessing=CROP_90),
        "coatnet_0_rw_224": make("coat", RW_0, **EARLY, stride="pool"),
        "coatnet_1_rw_224": make("coat", RW_1, **EARLY),
        "coatnet_2_rw_224": make("coat", RW_2, **SILU),
        "coatnet_3_rw_224": make("coat", RW_3, **SILU, layer_scale=1e-6, classes=11821),
        "coatnet_bn_0_rw_224": make(
            "coat",
            RW_0,
            **EARLY,
            transformer_norm=Norm(kind="batch", epsilon=1e-6),
            preprocessing=IMAGENET_95,
        ),
        "coatnet_rmlp_nano_rw_224": make("max", NANO, **SILU, mlp=384, preprocessing=CROP_90),
        "coatnet_rmlp_0_rw_224": make("coat", RW_0, mlp=512),
        "coatnet_rmlp_1_rw_224": make("coat", RW_1, **EARLY, stride="pool", pool=MAX3, mlp=384),
        "coatnet_rmlp_1_rw2_224": make("coat", RW_1, mlp=512),
        "coatnet_rmlp_2_rw_224": make("coat", RW_2, **SILU, mlp=512, layer_scale=1e-6),
        "coatnet_rmlp_2_rw_384": make(
            "coat", RW_2, **SILU, mlp=512, layer_scale=1e-6, image_size=(384, 384), preprocessing=SQUASH
        ),
        "coatnet_rmlp_3_rw_224": make("coat", RW_3, **SILU, mlp=512, layer_scale=1e-6),
        "coatnet_nano_cc_224": make("coat", NANO, stride="pool", layout=("C", "C", "CT", "CT")),
        "coatnext_nano_rw_224": make("next", NANO, preprocessing=CROP_90),
        "coatnet_0_224": paper((96, 192, 384, 768), (2, 3, 5, 2), 64),
        "coatnet_1_224": paper((96, 192, 384, 768), (2, 6, 14, 2), 64),
        "coatnet_2_224": paper((128, 256, 512, 1024), (2, 6, 14, 2), 128),
        "coatnet_3_224": paper((192, 384, 768, 1536), (2, 6, 14, 2), 192),
        "coatnet_4_224": paper((192, 384, 768, 1536), (2, 12, 28, 2), 192),
        "coatnet_5_224": paper((256, 512, 1280, 2048), (2, 12, 28, 2), 192),
        "test_coatnet": make("max", tiny, **SILU, stride="pool", image_size=(160, 160)),
    }


def names() -> tuple[str, ...]:
    """Names of timm's specs."""
    return tuple(f"timm/{name}" for name in models())


def build(name: str, depths: Sequence[int] | None, widths: Sequence[int] | None, **size: Any) -> Spec:
    """timm's spec of that name (one of `names()`), with other depths and widths of S1 to S4, image size or classes."""
    model = models()[name.removeprefix("timm/")]
    depths, widths = model.depths if depths is None else depths, model.widths if widths is None else widths
    if len(depths) != 4 or len(widths) != 4:
        raise InputError(
            f"Spec {name!r} takes depths and widths of S1 to S4, 4 entries each, got {len(depths)} and {len(widths)}."
        )
    wide = model.family == "paper"
    return Spec(
        name=name,
        image_size=size.get("image_size", model.image_size),
        stem=stem(model),
        stages=tuple(
            stage(model, letters, depth, width)
            for letters, depth, width in zip(model.layout, depths, widths, strict=True)
        ),
        head=Head(
            classes=size.get("classes", model.classes),
            norm=model.transformer_norm,
            order="pool_then_norm" if wide else "norm_then_pool",
            hidden=Hidden() if wide else None,
        ),
        preprocessing=model.preprocessing,
    )


def stem(model: Model) -> ConvStem:
    """Two convolutions without bias."""
    return ConvStem(
        widths=model.stem,
        padding="symmetric",
        norm=LAYER if model.family == "next" else BATCH,
        activation="gelu" if model.family in ("paper", "next") else "silu",
        bias=(False, False),
    )


def stage(model: Model, letters: str, depth: int, width: int) -> tuple[Run, ...]:
    """One stage: blocks of one kind, or ("CT") one convolution block and then Transformer blocks."""
    if letters == "C":
        return (convolution(model, depth, width),)
    if letters == "T":
        return (transformer(model, depth, width, 2),)
    return (convolution(model, 1, width), transformer(model, depth - 1, width, 1))


def convolution(model: Model, depth: int, width: int) -> Run:
    """MBConv or ConvNeXt blocks."""
    if model.family == "next":
        return ConvNeXt(depth=depth, width=width, layer_scale=LayerScale(initial=1e-5))
    paper, own = model.family == "paper", model.family == "coat"
    place, act = model.se
    return MBConv(
        depth=depth,
        width=width,
        padding="symmetric",
        expansion_from="output" if paper else "input",
        expansion_rounding="make_divisible",
        stride_at=model.stride,
        main_pool=AVG2 if model.stride == "pool" else None,  # also where the shortcut has another pool
        shortcut_pool=model.pool,
        pre_norm=BATCH,
        pre_norm_activation="silu" if own else None,
        inner_norm=BATCH,
        activation="gelu" if paper else "silu",
        squeeze_excite=SqueezeExcite(
            of="output" if paper else "expanded",
            activation=act,
            place="before_norm" if place == "early" else "after_activation",
        ),
        shrink_bias=not own,
        projection_bias=not own,
    )


def transformer(model: Model, depth: int, width: int, stride: Literal[1, 2]) -> Transformer:
    """Transformer blocks."""
    return Transformer(
        depth=depth,
        width=width,
        stride=stride,
        main_pool=model.pool,
        shortcut_pool=model.pool,
        projection_bias=model.projection_bias,
        attention_norm=model.transformer_norm,
        attention=Attention(
            heads_from="output" if model.family == "paper" else "input",
            relative_bias=RelativeBias() if model.mlp is None else RelativeBias(kind="log_mlp", hidden=model.mlp),
            fused_qkv="heads_first",
        ),
        ffn_norm=model.transformer_norm,
        ffn=FeedForward(activation="gelu"),
        layer_scale=None if model.layer_scale is None else LayerScale(initial=model.layer_scale),
    )
