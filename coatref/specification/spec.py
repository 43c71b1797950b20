"""The spec: everything about one CoAtNet that is not an array."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from coatref.errors import SpecError
from coatref.specification import fields
from coatref.specification.parts import ConvNeXt, ConvStem, Head, PatchStem, Run, Transformer
from coatref.specification.preprocessing import Preprocessing


class Block(NamedTuple):
    """One block of a run, at its place in the network."""

    name: str  # "s3.0": stage s3, its first block
    run: Run
    input_width: int
    stride: int  # the run's stride in its first block, else 1

    @property
    def projected(self) -> bool:
        """Whether the shortcut has a 1x1 projection: where the width changes, or at every stride if the run says so."""
        changes = self.input_width != self.run.width
        return changes or (self.stride == 2 and self.run.projection == "always")


@fields.record
class Spec:
    """A whole network: stem, stages S1, S2, ... of runs of equal blocks, and head.

    `image_size` (height, width) in pixels is the size that the relative-bias tables are made for.
    `coatref.spec(name)` gives the named ones; `replace` makes variants; `to_json` and `from_json` store them.
    """

    name: str
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    stem: ConvStem | PatchStem
    stages: tuple[tuple[Run, ...], ...]
    head: Head = Head()
    preprocessing: Preprocessing = Preprocessing()

    def check(self) -> None:
        """Refuse empty stages, widths that heads do not divide, and an image size without meaning."""
        from coatref.specification.grids import grids

        if not self.stages or not all(self.stages):
            raise SpecError(f"Spec {self.name!r} has a stage without blocks; every stage needs at least one run.")
        if sum(run.depth for stage in self.stages for run in stage) > fields.LONGEST_TUPLE:
            raise SpecError(f"Spec {self.name!r} has more than {fields.LONGEST_TUPLE} blocks.")
        if self.channels in (1, 3) and len(self.preprocessing.mean) != self.channels:
            raise SpecError(
                f"Spec {self.name!r} takes {self.channels} channels and its preprocessing gives "
                f"{len(self.preprocessing.mean)}; Preprocessing.mean and std need one number for each."
            )
        for block in self.blocks():
            if isinstance(block.run, Transformer):
                block.run.attention.head_count(block.input_width, block.run.width)
            if isinstance(block.run, ConvNeXt) and block.run.width % block.input_width:
                raise SpecError(
                    f"Spec {self.name!r}: ConvNeXt block {block.name} goes from {block.input_width} to {block.run.width} "
                    "channels; its depthwise convolution needs a multiple."
                )
        grids(self, *self.image_size)

    def blocks(self) -> Iterator[Block]:
        """Every block in order of computation."""
        width = self.stem.width
        for stage_number, stage in enumerate(self.stages, start=1):
            position = 0
            for run in stage:
                for index in range(run.depth):
                    yield Block(f"s{stage_number}.{position}", run, width, run.stride if index == 0 else 1)
                    width = run.width
                    position += 1

    @property
    def width(self) -> int:
        """Channels of the last stage."""
        return self.stages[-1][-1].width

    def num_parameters(self) -> int:
        """Number of trained scalars; the running statistics of BatchNorm are not counted."""
        from coatref.specification.counts import num_parameters

        return num_parameters(self)

    def multiply_adds(self, height: int, width: int) -> int:
        """Multiplications of all convolutions, dense layers and attention products for one image of that size.

        Element-wise work (norms, activations, pooling, softmax) is not counted, as in the usual MAC counters.

        Raises:
            SizeError: the size has no meaning under this spec.
        """
        from coatref.specification.counts import multiply_adds

        return multiply_adds(self, height, width)

    def replace(self, **changes: Any) -> Spec:
        """This spec with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """JSON text that `Spec.from_json` turns into an equal spec."""
        return fields.to_json(self)

    @staticmethod
    def from_json(text: str) -> Spec:
        """The spec that `to_json` wrote.

        Raises:
            SpecError: the text is not JSON, or does not describe a spec.
        """
        return fields.from_json(text, Spec)
