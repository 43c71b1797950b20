"""Small networks of a spec's kind: every convention kept, every size shrunk, all of them different."""

from __future__ import annotations

import dataclasses
import itertools

from coatref.errors import CoatrefError
from coatref.specification.parts import ConvStem, Run, Transformer
from coatref.specification.spec import Spec

SIZES = ((64, 96), (96, 64), (96, 160), (128, 192), (224, 224))  # tried in this order, height and width
ODD_SIZES = ((75, 107), (67, 99), (70, 106), (96, 160))
CLASSES = 37


def shrunk(
    spec: Spec, depth: int = 2, sizes: tuple[tuple[int, int], ...] = SIZES, heads: int = 2, classes: int = CLASSES
) -> Spec:
    """A network of the spec's kind with at most `depth` blocks in each run, few channels and a small picture.

    Convolution stages have 16, 32, ... channels, Transformer stages `heads`, `heads` + 1, ... heads' worth, and runs of one
    stage the same number where they had; the picture is the first of `sizes` that has a meaning.

    Raises:
        SizeError: none of the sizes has one.
    """
    runs = [run for stage in spec.stages for run in stage]
    widths: list[int] = []
    convolutional, count = 8, heads - 1
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        if isinstance(run, Transformer):
            count += 1
            widths.append(count * run.attention.head_size)
            continue
        convolutional *= 2
        if isinstance(following, Transformer) and following.attention.heads_from == "input":
            size = following.attention.head_size
            convolutional = -(-convolutional // size) * size
        widths.append(convolutional)
    small = [
        dataclasses.replace(run, depth=min(run.depth, depth), width=width)
        for run, width in zip(runs, widths, strict=True)
    ]
    ends = list(itertools.accumulate(len(stage) for stage in spec.stages))
    parts = [small[end - len(stage) : end] for stage, end in zip(spec.stages, ends, strict=True)]
    stages = tuple(same_width(part, stage) for part, stage in zip(parts, spec.stages, strict=True))
    stem = spec.stem
    if isinstance(stem, ConvStem):
        differing = len(set(stem.widths)) > 1
        stem = dataclasses.replace(stem, widths=(*((6 if differing else 8,) * (len(stem.widths) - 1)), 8))
    else:
        stem = dataclasses.replace(stem, width=widths[0])
    head = dataclasses.replace(spec.head, classes=classes)
    problem: CoatrefError | None = None
    for image_size in sizes:
        try:
            return spec.replace(stem=stem, stages=stages, head=head, image_size=image_size)
        except CoatrefError as error:
            problem = error
    raise problem or CoatrefError("no size was given")


def same_width(part: list[Run], stage: tuple[Run, ...]) -> tuple[Run, ...]:
    """The runs of one stage with the width of the last, where the stage has one width."""
    if len({run.width for run in stage}) > 1:
        return tuple(part)
    return tuple(dataclasses.replace(run, width=part[-1].width) for run in part)
