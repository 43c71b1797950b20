"""Where the parameters and multiply-adds of a network are: stem, each run of equal blocks, head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from coatref.params import tensor_tree
from coatref.specification import counts
from coatref.specification.catalogue import spec as named_spec
from coatref.specification.grids import Grid, grids
from coatref.specification.paper import PUBLISHED
from coatref.specification.parts import ConvStem, Transformer
from coatref.specification.spec import Block, Spec
from coatref.tree import flatten


@dataclass(frozen=True)
class Part:
    """The stem, a run of equal blocks, or the head.

    Attributes:
        stage: "s0" for the stem, "s1", ... or "head".
        blocks: their number and kind, as "5 transformer".
        width: channels that it gives; of the head, classes.
        heads: numbers of attention heads that occur, in order of the blocks; empty without attention.
        stride: of the whole.
        grid: that it gives.
        parameters, multiply_adds: of the whole, the latter for one image of the spec's size.
    """

    stage: str
    blocks: str
    width: int
    heads: tuple[int, ...]
    stride: int
    grid: Grid
    parameters: int
    multiply_adds: int


def breakdown(spec: Spec) -> list[Part]:
    """The parts of a network in order; their counts add up to those of the spec."""
    grid, tree = grids(spec, *spec.image_size), tensor_tree(spec)
    return [_stem(spec, tree, grid["s0"]), *_runs(spec, tree, grid), _head(spec, tree)]


def _stem(spec: Spec, tree: dict[str, Any], grid: Grid) -> Part:
    """The stem, S0."""
    stem = spec.stem
    return Part(
        stage="s0",
        blocks=f"{len(stem.widths)} conv" if isinstance(stem, ConvStem) else f"{stem.patch}x{stem.patch} patches",
        width=stem.width,
        heads=(),
        stride=2 if isinstance(stem, ConvStem) else stem.patch,
        grid=grid,
        parameters=_trained(tree["s0"]),
        multiply_adds=counts.stem_multiply_adds(spec, tree["s0"], *spec.image_size),
    )


def _runs(spec: Spec, tree: dict[str, Any], grid: dict[str, Grid]) -> list[Part]:
    """Every run of every stage."""
    parts, blocks, before = [], spec.blocks(), grid["s0"]
    for stage in spec.stages:
        for run in stage:
            own = [next(blocks) for _ in range(run.depth)]
            parts.append(_run(own, tree, before, grid))
            before = grid[own[-1].name]
    return parts


def _run(blocks: list[Block], tree: dict[str, Any], before: Grid, grid: dict[str, Grid]) -> Part:
    """One run of equal blocks, whose input has the grid `before`."""
    run, parameters, multiply_adds = blocks[0].run, 0, 0
    stage = blocks[0].name.partition(".")[0]
    for block in blocks:
        tensors = tree[stage][int(block.name.partition(".")[2])]
        parameters += _trained(tensors)
        multiply_adds += counts.block_multiply_adds(block, tensors, before, grid[block.name])
        before = grid[block.name]
    heads = [run.attention.head_count(b.input_width, run.width) for b in blocks] if isinstance(run, Transformer) else []
    return Part(
        stage=stage,
        blocks=f"{run.depth} {run.kind}",
        width=run.width,
        heads=tuple(dict.fromkeys(heads)),
        stride=run.stride,
        grid=before,
        parameters=parameters,
        multiply_adds=multiply_adds,
    )


def _head(spec: Spec, tree: dict[str, Any]) -> Part:
    """The head: pool, dense layers."""
    head = tree["head"]
    return Part(
        stage="head",
        blocks="classifier",
        width=spec.head.classes,
        heads=(),
        stride=1,
        grid=(1, 1),
        parameters=_trained(head),
        multiply_adds=sum(counts.kernel_entries(head, name) for name in head if name != "norm"),
    )


def _trained(tensors: Any) -> int:
    """Number of trained scalars in a tree of tensors."""
    return sum(math.prod(tensor.shape) for _, tensor in flatten(tensors) if tensor.trained)


class Comparison(NamedTuple):
    """A count of ours beside the figure that the paper prints."""

    what: str  # "parameters", or "multiply-adds at 224x224"
    ours: int
    paper: float

    @property
    def difference(self) -> float:
        """Ours less the paper's, in per cent of the paper's."""
        return 100 * (self.ours - self.paper) / self.paper


def comparisons(name: str) -> list[Comparison]:
    """Our counts for a named spec beside the figures that the paper prints, if it prints any.

    They are of the network as published: 1000 classes and, for the parameters, the spec's own image size.
    """
    if name not in PUBLISHED:
        return []
    spec, (millions, billions) = named_spec(name), PUBLISHED[name]
    return [Comparison("parameters", spec.num_parameters(), millions * 1e6)] + [
        Comparison(f"multiply-adds at {side}x{side}", spec.multiply_adds(side, side), giga * 1e9)
        for side, giga in billions.items()
    ]
