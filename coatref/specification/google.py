"""The specs of Google's own code: the paper's networks as the blocks of google-research/maxvit build them, "google/NAME".

Google has published no CoAtNet, but the blocks of MaxViT, its successor by some of the same authors, are a CoAtNet's:
MBConv and Transformer blocks, a stem and a head, in google-research/maxvit (commit 70a4707) and, refactored, in
tensorflow/models (official/projects/maxvit, tf-models-official 2.20). With block types mbconv, mbconv, tfm, tfm they build
CoAtNet-0 to -5. CoAtNet-6 and -7 have five block types with a `pool_stride` of [2, 2, 2, 1, 2], which only the first of the
two takes.

These are those networks under the options that the code has by default, at the paper's depths, widths and head sizes:
strided depthwise convolutions (`downsample_loc` "depth_conv"), average pools of 2x2 (`pool_type` "avg"), tanh GELU, SAME
padding everywhere, and heads, expansions and squeeze-excite from a block's output width. With `downsample_loc`
"expand_conv" and `pool_type` "max" they would be the paper's own but for the tables: those options are
`MBConv.stride_at` "expand" and `Pool.kind` "max" here. The `maxvit_imagenet` experiment of tensorflow/models sets the
activation to "relu" where nobody says otherwise, and its backbone has no hidden layer unless it is given a
`representation_size`: the specs have GELU, and the LayerNorm, tanh layer and classifier that both code bases can build.

Relative-bias tables are indexed by key minus query there, along both axes. The specs keep that convention
(`RelativeBias.orientation`) and the parameters hold the tables as they are stored, so importing them is renaming.
`coatref.convert` into a spec of the paper's orientation flips them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from coatref.errors import InputError
from coatref.specification import paper
from coatref.specification.parts import (
    Attention,
    ConvStem,
    FeedForward,
    Head,
    Hidden,
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

BATCH = Norm(kind="batch", epsilon=1e-3)
LAYER = Norm(kind="layer", epsilon=1e-5)
AVERAGE = Pool(kind="avg", size=2, padding="same", padded_zeros="excluded")

# What google-research/maxvit's `eval_ckpt.py` does to an image for a model of 224 pixels, but for its TensorFlow 1
# sampling grid, which takes no half pixels.
PREPROCESSING = Preprocessing(crop_fraction=224 / 256, crop="square", resampling="tensorflow", antialias=False)


class Model(NamedTuple):
    """Sizes of one network: of S0 and then of every block type."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    head_size: int
    kinds: str = "CCTT"  # "C" for block type mbconv, "T" for tfm
    strides: tuple[Literal[1, 2], ...] = (2, 2, 2, 2)


MODELS = {
    **{name: Model(*sizes) for name, sizes in paper.FAMILY.items()},
    **{name: Model(*sizes, 128, "CCCTT", (2, 2, 2, 1, 2)) for name, sizes in paper.MIXED_FAMILY.items()},
}


def names() -> tuple[str, ...]:
    """Names of Google's specs."""
    return tuple(f"google/{name}" for name in MODELS)


def build(name: str, depths: Sequence[int] | None, widths: Sequence[int] | None, **size: Any) -> Spec:
    """The spec of that name (one of `names()`), with other depths and widths, image size or classes if given.

    Depths and widths are those of S0 (its convolutions: the length of `stem_hsize`, whose entries are equal here) and of
    every block type (`num_blocks`, `hidden_size`).

    Raises:
        InputError: depths or widths do not have one entry for S0 and each block type.
        SpecError: they have no meaning.
    """
    model = MODELS[name.removeprefix("google/")]
    depths, widths = model.depths if depths is None else depths, model.widths if widths is None else widths
    if len(depths) != len(model.depths) or len(widths) != len(model.depths):
        raise InputError(
            f"Spec {name!r} takes depths and widths of S0 and of its {len(model.kinds)} block types, "
            f"{len(model.depths)} entries each, got {len(depths)} and {len(widths)}."
        )
    stages: list[tuple[Run, ...]] = []
    for kind, stride, depth, width in zip(model.kinds, model.strides, depths[1:], widths[1:], strict=True):
        run = convolution(depth, width) if kind == "C" else transformer(depth, width, stride, model.head_size)
        if stride == 2:
            stages.append((run,))
        else:  # at the grid of the run before it, so in the same stage
            stages[-1] = (*stages[-1], run)
    return Spec(
        name=name,
        image_size=size.get("image_size", (224, 224)),
        stem=stem(depths[0], widths[0]),
        stages=tuple(stages),
        head=Head(
            classes=size.get("classes", 1000),
            norm=LAYER,
            order="pool_then_norm",
            hidden=Hidden(width=None, activation="tanh"),
        ),
        preprocessing=PREPROCESSING,
    )


def stem(depth: int, width: int) -> ConvStem:
    """S0: `depth` convolutions with biases, BatchNorm and GELU between them."""
    return replace(paper.stem(depth, width), kernel=3, padding="same", norm=BATCH, activation="gelu_tanh")


def convolution(depth: int, width: int) -> MBConv:
    """Blocks of type "mbconv"."""
    return MBConv(
        depth=depth,
        width=width,
        kernel=3,
        padding="same",
        expansion=4.0,
        expansion_from="output",
        stride_at="depthwise",
        shortcut_pool=AVERAGE,
        projection="when_width_changes",
        pre_norm=BATCH,
        inner_norm=BATCH,
        activation="gelu_tanh",
        squeeze_excite=SqueezeExcite(ratio=0.25, of="output", rounding="floor", activation="silu", bias=True),
        expand_bias=False,
        depthwise_bias=False,
        shrink_bias=True,
        projection_bias=True,
    )


def transformer(depth: int, width: int, stride: Literal[1, 2], head_size: int) -> Transformer:
    """Blocks of type "tfm"."""
    return Transformer(
        depth=depth,
        width=width,
        stride=stride,
        main_pool=AVERAGE,
        shortcut_pool=AVERAGE,
        norm_pool_order="norm_then_pool",
        projection="when_width_changes",
        projection_bias=True,
        attention_norm=LAYER,
        attention=Attention(
            heads_from="output",
            head_size=head_size,
            scale="1/sqrt(d)",
            scale_site="query",
            relative_bias=RelativeBias(orientation="key_minus_query"),
            qkv_bias=True,
            output_bias=True,
        ),
        ffn_norm=LAYER,
        ffn=FeedForward(expansion=4.0, expansion_from="output", activation="gelu_tanh", bias=True),
    )
