"""What other projects' own code was found to have and to compute, recorded as facts: `tests/support/recorded/*.json`.

Each file holds the names and shapes of a small model's tensors, how the model was made, where and with what it was run, the
number of trained parameters of the models with names, and the logits for the tensors of `numbers` and the images of
`images`. Those are whole numbers over powers of two, exact in float32 and the same on every machine.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent / "recorded"


class Recorded(NamedTuple):
    """One file of the folder."""

    source: str  # repository, commit, and what ran it
    made: dict[str, Any]  # arguments of `coatref.spec` for the same network
    shapes: dict[str, tuple[int, ...]]  # of all tensors, buffers without parameters too
    parameters: dict[str, int]  # name of a model -> number of its trained parameters
    logits: np.ndarray


def recorded(name: str) -> Recorded:
    """The file of that name."""
    found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Recorded(
        found["source"],
        {key: tuple(value) if isinstance(value, list) else value for key, value in found["made"].items()},
        {key: tuple(shape) for key, shape in found["shapes"].items()},
        found["parameters"],
        np.array(found["logits"]),
    )


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 numbers for a tensor, from its name: no two channels alike, statistics and negative scales too."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).randint(-512, 513, size=shape) / 512  # -1 .. 1
    if name.endswith(("running_var", "moving_variance")):
        return 1 + drawn / 2
    if name.endswith(("norm.weight", "gamma")) or (len(shape) == 1 and name.endswith("weight")):
        return np.where(drawn < 0, drawn - 0.5, drawn + 0.5)
    if len(shape) < 2 or name.endswith("table"):
        return drawn
    inputs = math.prod(shape[1:])  # of one output, in torch's layouts
    return drawn * 2.0 ** (1 - math.floor(math.log2(inputs) / 2))


def images(batch: int, height: int, width: int) -> np.ndarray:
    """Float64 images (batch, height, width, 3)."""
    return np.random.RandomState(5).randint(-1024, 1025, size=(batch, height, width, 3)) / 512
