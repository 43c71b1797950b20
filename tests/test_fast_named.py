"""Every named spec end to end: prepared parameters against the definition, in float64, on NumPy and torch.

The bound is that of the project for two float64 computations of one network, 1e-11 of the largest logit (timm's models
stay below 1e-14 of each other). In CI each run has one block with a stride and one without, at 64x96; `-m deep` has every
network whole, at its own size, but for those that would not fit into memory.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import coatref
from coatref.errors import SizeError, SpecError

BOUND = 1e-11
MOST_IN_CI = 10e6  # parameters left of a network; the others are `deep`
MOST = 900e6  # parameters of a network that is run whole: 7 GB in float64, and again for the prepared ones


def shortened(name: str) -> coatref.Spec:
    """The spec with at most two blocks in a run, for images of 64x96 if it has a meaning for these."""
    spec = coatref.spec(name)
    stages = tuple(
        tuple(dataclasses.replace(run, depth=min(run.depth, 2)) for run in stage) for stage in spec.stages
    )
    try:
        return spec.replace(stages=stages, image_size=(64, 96))
    except SizeError:  # windows that do not tile its grids
        return spec.replace(stages=stages)


def off_by(spec: coatref.Spec, library: str) -> float:
    """The largest difference of the logits, in terms of the largest of them."""
    params = coatref.init(spec, 1, dtype="float64", scheme="distinct")
    x = np.random.default_rng(1).normal(size=(1, *spec.image_size, spec.channels))
    reference = coatref.forward(params, x, backend="definition")
    if library == "torch":
        import torch

        with torch.no_grad():
            found = coatref.forward(coatref.prepare(params.to(xp="torch")), torch.from_numpy(x)).numpy()
    else:
        found = coatref.forward(coatref.prepare(params), x)
    return float(np.max(np.abs(found - reference)) / np.max(np.abs(reference)))


def cases() -> list[object]:
    return [
        pytest.param(name, marks=[pytest.mark.deep] if shortened(name).num_parameters() > MOST_IN_CI else [])
        for name in coatref.specs()
    ]


@pytest.mark.parametrize("name", cases())
def test_shortened(name: str) -> None:
    spec = shortened(name)
    for library in ("numpy", "torch") if spec.num_parameters() <= MOST_IN_CI else ("numpy",):
        assert off_by(spec, library) <= BOUND


@pytest.mark.deep
@pytest.mark.parametrize("name", coatref.specs())
def test_whole(name: str) -> None:
    spec = coatref.spec(name)
    if spec.num_parameters() > MOST:
        pytest.skip(f"{spec.num_parameters() / 1e9:.2f} G parameters do not fit into memory twice in float64")
    assert off_by(spec, "numpy") <= BOUND


def test_shortened_specs_are_specs() -> None:
    with pytest.raises(SpecError):
        coatref.spec("coatnet_0").replace(stages=())
    assert [run.depth for stage in shortened("coatnet_7").stages for run in stage] == [2, 2, 2, 2, 2]
