"""The specs of the paper: Tables 3, 11 and 12, the layouts of Sec. 2.2, the ablations of Sec. 4.4 and App. A.

Where the paper is silent the defaults of `coatref.specification.parts` are taken; `docs/reading.md` argues for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from coatref.errors import InputError, SpecError
from coatref.specification.fields import LONGEST_TUPLE
from coatref.specification.parts import (
    LAYER_NORM,
    Attention,
    ConvStem,
    Head,
    MBConv,
    PatchStem,
    RelativeBias,
    Run,
    Stem,
    Transformer,
)
from coatref.specification.spec import Spec

# Tables 3 and 11: depths L and widths D of S0 to S4, and the head size. S0's depth is its number of convolutions.
FAMILY = {
    "coatnet_0": ((2, 2, 3, 5, 2), (64, 96, 192, 384, 768), 32),
    "coatnet_1": ((2, 2, 6, 14, 2), (64, 96, 192, 384, 768), 32),
    "coatnet_2": ((2, 2, 6, 14, 2), (128, 128, 256, 512, 1024), 32),
    "coatnet_3": ((2, 2, 6, 14, 2), (192, 192, 384, 768, 1536), 32),
    "coatnet_4": ((2, 2, 12, 28, 2), (192, 192, 384, 768, 1536), 32),
    "coatnet_5": ((2, 2, 12, 28, 2), (192, 256, 512, 1280, 2048), 64),
}

# Table 12: S3 holds 8 MBConv blocks, then 42 Transformer blocks of twice the width; head size 128.
MIXED_FAMILY = {
    "coatnet_6": ((2, 2, 4, 8, 42, 2), (192, 192, 384, 768, 1536, 2048)),
    "coatnet_7": ((2, 2, 4, 8, 42, 2), (192, 256, 512, 1024, 2048, 3072)),
}

# Sec. 2.2: one letter for each of S1 to S4, C for MBConv and T for Transformer blocks.
LAYOUTS = {name: name.replace("-", "") for name in ("c-c-c-c", "c-c-c-t", "c-c-t-t", "c-t-t-t")}

# What the paper prints, for `coatref spec` to show beside our own counts: parameters in millions, and multiply-adds in
# billions at 224, 384 and 512 pixels (Tables 4, 5, 9 and 14).
PUBLISHED: dict[str, tuple[float, dict[int, float]]] = {
    "coatnet_0": (25, {224: 4.2, 384: 13.4}),
    "coatnet_1": (42, {224: 8.4, 384: 27.4}),
    "coatnet_2": (75, {224: 15.7, 384: 49.8, 512: 96.7}),
    "coatnet_3": (168, {224: 34.7, 384: 107.4, 512: 203.1}),
    "coatnet_4": (275, {384: 189.5, 512: 360.9}),
    "coatnet_5": (688, {512: 812}),
    "coatnet_6": (1470, {512: 1521}),
    "coatnet_7": (2440, {512: 2586}),
    "coatnet_0/strided-depthwise": (25, {224: 4.6}),
    "coatnet_1/strided-depthwise": (42, {224: 8.8}),
    "coatnet_2/strided-depthwise": (75, {224: 16.6}),
    "coatnet_3/strided-depthwise": (168, {384: 114, 512: 214}),
}


def stem(depth: int, width: int) -> ConvStem:
    """S0: `depth` convolutions of `width` channels.

    Raises:
        SpecError: the depth is no whole number of at most 1000.
    """
    if type(depth) is not int or depth > LONGEST_TUPLE:
        raise SpecError(
            f"The depth of S0 (ConvStem) must be a whole number from 1 to {LONGEST_TUPLE}, got {depth!r:.80}."
        )
    return ConvStem(widths=(width,) * depth, bias=(True,) * depth)


def layout(
    name: str,
    letters: str,
    depths: Sequence[int],
    widths: Sequence[int],
    head_size: int = 32,
    image_size: tuple[int, int] = (224, 224),
    classes: int = 1000,
) -> Spec:
    """A multi-stage network of Sec. 2.2: S0, then one stage of stride 2 for each letter.

    Args:
        name: of the spec.
        letters: "C" or "T" for each stage from S1 on.
        depths: L of S0, S1, ...
        widths: D of S0, S1, ...
        head_size: of the attention.
        image_size: height and width in pixels.
        classes: of the head.

    Raises:
        InputError: depths or widths do not have one entry for the stem and each stage.
    """
    if len(depths) != len(letters) + 1 or len(widths) != len(letters) + 1:
        raise InputError(
            f"Spec {name!r} has a stem and {len(letters)} stages, so depths and widths need {len(letters) + 1} entries "
            f"each, got {len(depths)} and {len(widths)}."
        )
    attention = Attention(head_size=head_size)
    stages: list[tuple[Run, ...]] = []
    for letter, depth, width in zip(letters.upper(), depths[1:], widths[1:], strict=True):
        convolution, attentive = MBConv(depth=depth, width=width), Transformer(depth=depth, width=width, attention=attention)
        stages.append((convolution if letter == "C" else attentive,))
    return Spec(
        name=name,
        image_size=image_size,
        stem=stem(depths[0], widths[0]),
        stages=tuple(stages),
        head=Head(classes=classes),
    )


def mixed(name: str, depths: Sequence[int], widths: Sequence[int], **size: Any) -> Spec:
    """CoAtNet-6 and -7 (Table 12): S3 is a run of MBConv blocks, then one of Transformer blocks at the same grid."""
    if len(depths) != 6 or len(widths) != 6:
        raise InputError(f"Spec {name!r} takes 6 depths and widths (S3 has two runs), got {len(depths)} and {len(widths)}.")
    attention = Attention(head_size=128)
    four_stages = layout(name, "CCCT", (*depths[:4], depths[5]), (*widths[:4], widths[5]), 128, **size)
    s1, s2, (s3_convolutions,), s4 = four_stages.stages
    s3 = (s3_convolutions, Transformer(depth=depths[4], width=widths[4], stride=1, attention=attention))
    return four_stages.replace(stages=(s1, s2, s3, s4))


def vit_rel(name: str, depths: Sequence[int], widths: Sequence[int], **size: Any) -> Spec:
    """ViT_REL of Sec. 2.2: 16x16 patches, then `depths[0]` Transformer blocks of `widths[0]` channels at one grid."""
    if len(depths) != 1 or len(widths) != 1:
        raise InputError(f"Spec {name!r} takes one depth and one width, got {len(depths)} and {len(widths)}.")
    image_size, classes = size.get("image_size", (224, 224)), size.get("classes", 1000)
    patches: Stem = PatchStem(patch=16, width=widths[0])
    blocks = Transformer(depth=depths[0], width=widths[0], stride=1)
    return Spec(name=name, image_size=image_size, stem=patches, stages=((blocks,),), head=Head(classes=classes))


def with_transformers(spec: Spec, change: Callable[[Transformer], Transformer]) -> Spec:
    """The spec with every run of Transformer blocks changed."""
    return with_runs(spec, lambda run: change(run) if isinstance(run, Transformer) else run)


def with_mbconvs(spec: Spec, change: Callable[[MBConv], MBConv]) -> Spec:
    """The spec with every run of MBConv blocks changed."""
    return with_runs(spec, lambda run: change(run) if isinstance(run, MBConv) else run)


def with_runs(spec: Spec, change: Callable[[Run], Run]) -> Spec:
    """The spec with every run changed."""
    return spec.replace(stages=tuple(tuple(change(run) for run in stage) for stage in spec.stages))


def with_attention(spec: Spec, **changes: Any) -> Spec:
    """The spec with some fields of every attention changed."""
    return with_transformers(spec, lambda run: replace(run, attention=replace(run.attention, **changes)))


def with_depths(spec: Spec, depths: Sequence[int]) -> Spec:
    """The spec with other depths of S1, S2, ... (one run a stage)."""
    return spec.replace(
        stages=tuple((replace(run, depth=depth),) for (run,), depth in zip(spec.stages, depths, strict=True))
    )


VARIANTS: dict[str, Callable[[Spec], Spec]] = {
    # Table 6; what stands in its place is not said, so nothing does
    "no-relative-attention": lambda spec: with_attention(spec, relative_bias=None),
    # Table 7: the same number of blocks, split otherwise between S2 and S3
    "v1": lambda spec: with_depths(spec, (2, 2, 18, 2)),
    "v2": lambda spec: with_depths(spec, (2, 8, 12, 2)),
    # Table 8
    "head-64": lambda spec: with_attention(spec, head_size=64),
    "layer-norm-mbconv": lambda spec: with_mbconvs(
        spec, lambda run: replace(run, pre_norm=LAYER_NORM, inner_norm=LAYER_NORM)
    ),
    # Table 9 and the daggers of Table 5
    "strided-depthwise": lambda spec: with_mbconvs(spec, lambda run: replace(run, stride_at="depthwise")),
    # Eq. (3), the form that was not used
    "post-softmax": lambda spec: with_attention(spec, relative_bias=RelativeBias(add="post_softmax")),
    # Sec. 2.1, options (B) and (C), which were not taken: the window is that of Swin, the kernel elu + 1
    "windowed-attention": lambda spec: with_attention(spec, form="windowed", window=(7, 7)),
    "linear-attention": lambda spec: with_attention(spec, form="linear", relative_bias=None, scale="1"),
    # Table 12 prints 2048, with which the printed parameters cannot be reached; 3072 = 2 x 1536 fits
    "s4-3072": lambda spec: spec.replace(
        stages=(*spec.stages[:-1], tuple(replace(run, width=3072) for run in spec.stages[-1]))
    ),
}

ABLATIONS = {
    "no-relative-attention": ("coatnet_2", "coatnet_3"),
    "v1": ("coatnet_2", "coatnet_3"),
    "v2": ("coatnet_2",),
    "head-64": ("coatnet_2",),
    "layer-norm-mbconv": ("coatnet_2", "coatnet_3"),
    "strided-depthwise": ("coatnet_0", "coatnet_1", "coatnet_2", "coatnet_3"),
    "post-softmax": ("coatnet_0",),
    "windowed-attention": ("coatnet_0",),
    "linear-attention": ("coatnet_0",),
    "s4-3072": ("coatnet_6",),
}


def names() -> tuple[str, ...]:
    """Names of the paper's specs: the family, the layouts, then the ablations as "coatnet_2/head-64"."""
    ablations = tuple(f"{base}/{variant}" for variant, bases in ABLATIONS.items() for base in bases)
    return (*FAMILY, *MIXED_FAMILY, "vit-rel", *LAYOUTS, *ablations)


def given(values: Sequence[int] | None, default: Sequence[int]) -> Sequence[int]:
    """The values, or the default where none are given."""
    return default if values is None else values


def build(name: str, depths: Sequence[int] | None, widths: Sequence[int] | None, **size: Any) -> Spec:
    """The paper's spec of that name (one of `names()`), with other depths, widths, image size or classes if given."""
    base, _, variant = name.partition("/")
    if base in FAMILY:
        default_depths, default_widths, head_size = FAMILY[base]
        spec = layout(name, "CCTT", given(depths, default_depths), given(widths, default_widths), head_size, **size)
    elif base in MIXED_FAMILY:
        mixed_depths, mixed_widths = MIXED_FAMILY[base]
        spec = mixed(name, given(depths, mixed_depths), given(widths, mixed_widths), **size)
    elif base == "vit-rel":  # as many blocks as CoAtNet-0 in all, at the width of its S3
        spec = vit_rel(name, given(depths, (12,)), given(widths, (384,)), **size)
    else:
        default_depths, default_widths, head_size = FAMILY["coatnet_0"]
        chosen = given(depths, default_depths), given(widths, default_widths)
        spec = layout(name, LAYOUTS[base], *chosen, head_size, **size)
    fixed = {"v1": ("depths", depths), "v2": ("depths", depths), "s4-3072": ("widths", widths)}
    if variant in fixed and fixed[variant][1] is not None:
        raise InputError(f"Spec {name!r} is made of its {fixed[variant][0]}; give others to spec {base!r} instead.")
    return VARIANTS[variant](spec) if variant else spec
