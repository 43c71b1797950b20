"""The specs of hw666666666666/CoAtNet (MindSpore 1.6): every model of its `src/coatnet.py`, under "hw666/NAME".

It is the only other implementation found that is reported to reach the paper's accuracies, and the closest to the reading
of it in `coatref.specification.parts`. It differs in the widths of expansions and squeeze-excite, taken from a block's
input, in a stem without bias, in a projection in the first block of every stage even where the width stays, in 1/sqrt(d)
split evenly between q and k, and in the grid of its table resize (`align_corners`). GELU is the tanh form, MindSpore's
default, and convolutions pad as TensorFlow's SAME, MindSpore's default too.

Sizes whose stages halve an odd grid have a meaning here and fail there: its pool pads like SAME, and is then reshaped to
the size of one without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coatref.errors import InputError
from coatref.specification.parts import (
    Attention,
    ConvStem,
    Head,
    MBConv,
    RelativeBias,
    Run,
    SqueezeExcite,
    Transformer,
)
from coatref.specification.preprocessing import Preprocessing
from coatref.specification.spec import Spec

# Depths L and widths D of its s0 to s4; every s0 has two convolutions.
MODELS = {
    "coatnet_0": ((2, 2, 3, 5, 2), (64, 96, 192, 384, 768)),
    "coatnet_1": ((2, 2, 6, 14, 2), (64, 96, 192, 384, 768)),
    "coatnet_2": ((2, 2, 6, 14, 2), (128, 128, 256, 512, 1024)),
}

# What its `eval.py` does to an image for a model trained at 224 pixels: both sides to 256, then the centre.
PREPROCESSING = Preprocessing(crop="squash")


def names() -> tuple[str, ...]:
    """Names of its specs."""
    return tuple(f"hw666/{name}" for name in MODELS)


def build(name: str, depths: Sequence[int] | None, widths: Sequence[int] | None, **size: Any) -> Spec:
    """Its spec of that name (one of `names()`), with other depths and widths of S0 to S4, image size or classes.

    Raises:
        InputError: depths or widths do not have 5 entries, or S0 has not two convolutions, as every stem of it.
        SpecError: they have no meaning.
    """
    own_depths, own_widths = MODELS[name.removeprefix("hw666/")]
    depths, widths = own_depths if depths is None else depths, own_widths if widths is None else widths
    if len(depths) != 5 or len(widths) != 5:
        raise InputError(
            f"Spec {name!r} takes depths and widths of S0 to S4, 5 entries each, got {len(depths)} and {len(widths)}."
        )
    if depths[0] != 2:
        raise InputError(f"Spec {name!r} has two convolutions in S0, got a depth of {depths[0]!r:.80}; give 2.")
    runs: list[Run] = [convolution(depth, width) for depth, width in zip(depths[1:3], widths[1:3], strict=True)]
    runs += [transformer(depth, width) for depth, width in zip(depths[3:], widths[3:], strict=True)]
    return Spec(
        name=name,
        image_size=size.get("image_size", (224, 224)),
        stem=ConvStem(widths=(widths[0], widths[0]), bias=(False, False)),
        stages=tuple((run,) for run in runs),
        head=Head(classes=size.get("classes", 1000)),
        preprocessing=PREPROCESSING,
    )


def convolution(depth: int, width: int) -> MBConv:
    """A stage of MBConv blocks."""
    return MBConv(
        depth=depth,
        width=width,
        expansion_from="input",
        projection="always",
        squeeze_excite=SqueezeExcite(of="input"),
    )


def transformer(depth: int, width: int) -> Transformer:
    """A stage of Transformer blocks."""
    return Transformer(
        depth=depth,
        width=width,
        projection="always",
        attention=Attention(scale_site="query_and_key", relative_bias=RelativeBias(resize="align_corners")),
    )
