"""A case: parameters and images chosen to show something, and what that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision, rounded
from coatref.conformance.report.results import Check
from coatref.initialise import init
from coatref.params import Params, from_flat
from coatref.specification.spec import Spec

CELL = 32  # pixels, what one position of a CoAtNet's last stage sees


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: unique within a suite, such as "amplifier: ffn activation in s4.1".
        check: the kind of check it belongs to.
        about: what a failure of it shows, in one sentence.
        primitive: the one part that it looks at, in the words of `mistakes.mistake.PRIMITIVES`; "" for all of them.
        place: the block that it looks at, such as "s4.1"; "" for all of them.
        spec: what is computed.
        params: NumPy float64, every number of which the storage type holds exactly.
        x: (N, H, W, channels), likewise.
    """

    name: str
    check: Check
    about: str
    primitive: str
    place: str
    spec: Spec
    params: Params
    x: np.ndarray


def stored_params(spec: Spec, flat: Mapping[str, Any], precision: Precision) -> Params:
    """Parameters in float64 whose numbers the storage type holds exactly; variances stay above 0."""
    return from_flat(spec, {name: rounded(array, precision.storage) for name, array in flat.items()})


def drawn_params(spec: Spec, seed: int, precision: Precision) -> Params:
    """Parameters under which no mistake hides, as `coatref.init` draws them."""
    return stored_params(spec, init(spec, seed, dtype="float64", scheme="distinct").flatten(), precision)


def drawn_images(spec: Spec, seed: int, batch: int, precision: Precision) -> np.ndarray:
    """Images of the spec's size, (N, H, W, channels), in which no two places are alike.

    Noise whose strength differs from image to image and from cell to cell of 32x32 pixels, on a colour of the cell's own:
    what averages over positions or over images, or takes one for another, has something to go wrong with.
    """
    random = np.random.default_rng([seed, 77])
    height, width = spec.image_size
    rows, columns = -(-height // CELL), -(-width // CELL)
    colour = random.normal(size=(batch, rows, columns, spec.channels)) * 1.5
    strength = np.exp(
        random.uniform(-1.0, 1.0, (batch, rows, columns, 1)) + random.uniform(-0.5, 0.5, (batch, 1, 1, 1))
    )

    def spread(cells: np.ndarray) -> np.ndarray:
        return np.repeat(np.repeat(cells, CELL, axis=1), CELL, axis=2)[:, :height, :width]

    noise = random.normal(size=(batch, height, width, spec.channels))
    return rounded(spread(colour) + spread(strength) * noise, precision.storage)
