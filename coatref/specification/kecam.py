"""The specs of keras_cv_attention_models 1.4.3 (kecam): every model of its `coatnet.py`, under "kecam/NAME".

What its models share: a bias-free symmetric 3x3 stem, strided depthwise convolutions, 2x2 max pools with SAME padding,
widths of expansions, squeeze-excite and heads taken from a block's input, a projection in the first block of every run
even where the width stays, no bias but those of squeeze-excite and the classifier, and no norm before the classifier.

The output is the logits: what the package computes with `classifier_activation=None`. By default it appends a softmax,
which is the same spec with `Head.output` "probabilities".

The relative-bias tables are the paper's for a square grid. For others the package numbers the positions as if the grid
were transposed, which is a mistake and no convention, so no spec expresses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coatref.errors import InputError
from coatref.specification.parts import (
    Attention,
    ConvStem,
    FeedForward,
    Head,
    MBConv,
    Norm,
    Run,
    SqueezeExcite,
    Transformer,
)
from coatref.specification.preprocessing import Preprocessing
from coatref.specification.spec import Spec

BATCH = Norm(kind="batch", epsilon=1e-5)
LAYER = Norm(kind="layer", epsilon=1e-5)

FOUR = ("C", "C", "T", "T")
FIVE = ("C", "C", "C", "T", "T")  # the fourth run has no stride: S3 holds convolution and then Transformer blocks


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model of the package: depths and widths of its runs, width of the stem, head size and kinds of block."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: int
    head_size: int = 32
    kinds: tuple[str, ...] = FOUR


MODELS = {
    "CoAtNetT": Model(depths=(3, 4, 6, 3), widths=(64, 128, 256, 512), stem=64),
    "CoAtNet0": Model(depths=(2, 3, 5, 2), widths=(96, 192, 384, 768), stem=64),
    "CoAtNet1": Model(depths=(2, 6, 14, 2), widths=(96, 192, 384, 768), stem=64),
    "CoAtNet2": Model(depths=(2, 6, 14, 2), widths=(128, 256, 512, 1024), stem=128),
    "CoAtNet3": Model(depths=(2, 6, 14, 2), widths=(192, 384, 768, 1536), stem=192),
    "CoAtNet4": Model(depths=(2, 12, 28, 2), widths=(192, 384, 768, 1536), stem=192),
    "CoAtNet5": Model(depths=(2, 12, 28, 2), widths=(256, 512, 1280, 2048), stem=192, head_size=64),
    "CoAtNet6": Model(depths=(2, 4, 8, 42, 2), widths=(192, 384, 768, 1536, 2048), stem=192, head_size=128, kinds=FIVE),
    "CoAtNet7": Model(
        depths=(2, 4, 8, 42, 2), widths=(256, 512, 1024, 2048, 3072), stem=192, head_size=128, kinds=FIVE
    ),
}

# What its `imagenet.evaluation` does to an image with TensorFlow unless told otherwise, with the models' rescale_mode
# "torch". With its PyTorch backend it differs in `resampling="pillow"`. Its repository's `eval_script.py`, which is not
# part of the package, has other defaults: `crop_fraction=0.95, antialias=False`.
PREPROCESSING = Preprocessing(
    crop_fraction=1.0,
    crop="square",
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resampling="tensorflow",
    antialias=True,
)


def names() -> tuple[str, ...]:
    """Names of the package's specs."""
    return tuple(f"kecam/{name}" for name in MODELS)


def build(name: str, depths: Sequence[int] | None, widths: Sequence[int] | None, **size: Any) -> Spec:
    """The package's spec of that name (one of `names()`), with other depths and widths of its runs, image size or classes.

    Raises:
        InputError: depths or widths do not have one entry for each run (four; five where S3 holds two runs), or a run
            without a stride keeps its width, which the package projects all the same and a spec cannot.
    """
    model = MODELS[name.removeprefix("kecam/")]
    depths, widths = model.depths if depths is None else depths, model.widths if widths is None else widths
    count = len(model.kinds)
    if len(depths) != count or len(widths) != count:
        raise InputError(
            f"Spec {name!r} takes depths and widths of its {count} runs behind the stem, {count} entries each, got "
            f"{len(depths)} and {len(widths)}."
        )
    if count == 5 and widths[2] == widths[3]:
        raise InputError(
            f"Spec {name!r} takes two different widths in S3, got {widths[2]!r:.80} for both; the package projects the "
            "shortcut between them even so, which a spec cannot say."
        )
    runs = [run(model, place, *each) for place, each in enumerate(zip(depths, widths, strict=True))]
    stages: list[tuple[Run, ...]] = [(each,) for each in runs]
    if count == 5:
        stages = [(runs[0],), (runs[1],), (runs[2], runs[3]), (runs[4],)]
    return Spec(
        name=name,
        image_size=size.get("image_size", (224, 224)),
        stem=ConvStem(
            widths=(model.stem, model.stem), padding="symmetric", norm=BATCH, activation="gelu", bias=(False, False)
        ),
        stages=tuple(stages),
        head=Head(classes=size.get("classes", 1000), norm=None, hidden=None),
        preprocessing=PREPROCESSING,
    )


def run(model: Model, place: int, depth: int, width: int) -> Run:
    """The run of blocks at a place behind the stem, counted from 0."""
    if model.kinds[place] == "C":
        return MBConv(
            depth=depth,
            width=width,
            padding="symmetric",
            expansion_from="input",
            stride_at="depthwise",
            projection="always",
            pre_norm=BATCH,
            inner_norm=BATCH,
            activation="gelu",
            squeeze_excite=SqueezeExcite(of="input", rounding="make_divisible", activation="gelu"),
            shrink_bias=False,
            projection_bias=False,
        )
    return Transformer(
        depth=depth,
        width=width,
        stride=1 if model.kinds == FIVE and place == 3 else 2,
        projection="always",
        projection_bias=False,
        attention_norm=LAYER,
        attention=Attention(
            heads_from="input",
            head_size=model.head_size,
            scale_site="logits",
            qkv_bias=False,
            output_bias=False,
            fused_qkv="qkv_first",
        ),
        ffn_norm=LAYER,
        ffn=FeedForward(activation="gelu", bias=False),
    )
