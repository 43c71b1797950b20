"""The specs of chinhsuanwu/coatnet-pytorch: every model of its `coatnet.py`, under "chinhsuanwu/NAME".

Its many copies change the image size and the classes, and some give the classifier a bias (`Head.bias`), but nothing else
that computes. What its models share: BatchNorm and GELU behind every convolution of the stem, 3x3 max pools padded on
all sides, the stride in the first 1x1 convolution, widths of expansions (those of the feed-forward networks too) and of
squeeze-excite taken from a block's input, BatchNorm behind an MBConv's last convolution, 8 heads of 32 channels whatever
the width, the pool before the norm, a projection in the first block of every stage, and no bias in convolutions,
squeeze-excite, q, k, v and classifier. Its coatnet_2 has 1026 channels in S4, where the paper has 1024.

The specs are the network at the square image that a model is made for, with sides that are multiples of 32. For others
the code fails or is mistaken, which no spec expresses: its last pool is a square of (image height // 32) positions, which
is the mean over the whole grid only where that is square; a higher image is refused, and a wider one gives rows that mix
channels and positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from coatref.errors import InputError
from coatref.specification import paper
from coatref.specification.parts import (
    Attention,
    ConvStem,
    FeedForward,
    Head,
    MBConv,
    Norm,
    Pool,
    Run,
    SqueezeExcite,
    Transformer,
)
from coatref.specification.spec import Spec

BATCH = Norm(kind="batch", epsilon=1e-5)
LAYER = Norm(kind="layer", epsilon=1e-5)
MAX3 = Pool(kind="max", size=3, padding="symmetric")

# Depths L and widths D of its s0 to s4.
MODELS = {
    "coatnet_0": ((2, 2, 3, 5, 2), (64, 96, 192, 384, 768)),
    "coatnet_1": ((2, 2, 6, 14, 2), (64, 96, 192, 384, 768)),
    "coatnet_2": ((2, 2, 6, 14, 2), (128, 128, 256, 512, 1026)),
    "coatnet_3": ((2, 2, 6, 14, 2), (192, 192, 384, 768, 1536)),
    "coatnet_4": ((2, 2, 12, 28, 2), (192, 192, 384, 768, 1536)),
}


def names() -> tuple[str, ...]:
    """Names of its specs."""
    return tuple(f"chinhsuanwu/{name}" for name in MODELS)


def build(name: str, depths: Sequence[int] | None, widths: Sequence[int] | None, **size: Any) -> Spec:
    """Its spec of that name (one of `names()`), with other depths and widths of S0 to S4, image size or classes.

    Raises:
        InputError: depths or widths do not have 5 entries.
        SpecError: they have no meaning.
    """
    own_depths, own_widths = MODELS[name.removeprefix("chinhsuanwu/")]
    depths, widths = own_depths if depths is None else depths, own_widths if widths is None else widths
    if len(depths) != 5 or len(widths) != 5:
        raise InputError(
            f"Spec {name!r} takes depths and widths of S0 to S4, 5 entries each, got {len(depths)} and {len(widths)}."
        )
    runs: list[Run] = [convolution(depth, width) for depth, width in zip(depths[1:3], widths[1:3], strict=True)]
    runs += [transformer(depth, width) for depth, width in zip(depths[3:], widths[3:], strict=True)]
    return Spec(
        name=name,
        image_size=size.get("image_size", (224, 224)),
        stem=stem(depths[0], widths[0]),
        stages=tuple((run,) for run in runs),
        head=Head(classes=size.get("classes", 1000), norm=None, hidden=None, bias=False),
    )


def stem(depth: int, width: int) -> ConvStem:
    """S0: `depth` convolutions, BatchNorm and GELU behind each."""
    return replace(
        paper.stem(depth, width),
        padding="symmetric",
        norm=BATCH,
        activation="gelu",
        after_last="norm_and_activation",
        bias=(False,) * depth,
    )


def convolution(depth: int, width: int) -> MBConv:
    """A stage of MBConv blocks."""
    return MBConv(
        depth=depth,
        width=width,
        padding="symmetric",
        expansion_from="input",
        shortcut_pool=MAX3,
        projection="always",
        pre_norm=BATCH,
        inner_norm=BATCH,
        activation="gelu",
        squeeze_excite=SqueezeExcite(of="input", activation="gelu", bias=False),
        shrink_norm=BATCH,
        shrink_bias=False,
        projection_bias=False,
    )


def transformer(depth: int, width: int) -> Transformer:
    """A stage of Transformer blocks."""
    return Transformer(
        depth=depth,
        width=width,
        main_pool=MAX3,
        shortcut_pool=MAX3,
        norm_pool_order="pool_then_norm",
        projection="always",
        projection_bias=False,
        attention_norm=LAYER,
        attention=Attention(heads_from="fixed", heads=8, scale_site="logits", qkv_bias=False, fused_qkv="qkv_first"),
        ffn_norm=LAYER,
        ffn=FeedForward(expansion_from="input", activation="gelu"),
    )
