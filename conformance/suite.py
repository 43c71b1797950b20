"""Which cases a candidate is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coatref.conformance import surgery
from coatref.conformance.cases import Case, drawn_images, drawn_params, stored_params
from coatref.conformance.precision import Precision
from coatref.conformance.probe_cases import Probe, everywhere, last_fitting, probe_cases
from coatref.conformance.report.results import Check
from coatref.conformance.variants import ODD_SIZES, shrunk
from coatref.errors import CoatrefError
from coatref.params import Params
from coatref.specification.spec import Block, Spec


@dataclass(frozen=True)
class Level:
    """How much is looked at.

    Attributes:
        probes: of the error model on a small network, and on a large one.
        large: names of the probes that a candidate of one large size is given; None for all.
        random: drawn configurations.
        seconds: at most, for the diagnosis of a candidate that fails.
        everywhere: whether each probe looks at every block that it fits, else at the last one.
    """

    probes: tuple[int, int]
    large: tuple[str, ...] | None
    random: int
    seconds: float = 60.0
    everywhere: bool = False


LEVELS = {
    "quick": Level((8, 3), ("ffn norm", "second norm", "attention"), 3, 20.0),
    "default": Level((16, 3), None, 20),
    "selftest": Level((16, 3), None, 0),
    "kills": Level((16, 3), None, 0, 0.0),
    "deep": Level((24, 6), None, 200, 900.0, everywhere=True),
}
SMALL = 22 * 10**5  # parameters: up to that a network is judged like a small one


def as_given(spec: Spec, params: Params | None, seed: int, batch: int, precision: Precision) -> Case:
    """The candidate's own weights, or fresh ones, and images of the spec's size."""
    if params is None:
        weights, whose = drawn_params(spec, seed, precision), "freshly drawn weights"
    else:
        flat = {name: np.asarray(array, np.float64) for name, array in params.to(xp="numpy").flatten().items()}
        weights, whose = stored_params(spec, flat, precision), "its own weights"
    about = f"The whole network end to end, with {whose} at {spec.image_size[0]}x{spec.image_size[1]}."
    x = drawn_images(spec, seed, batch, precision)
    return Case("as given", "as given", about, "", "", spec, weights, x)


def random_case(spec: Spec, seed: int, batch: int, precision: Precision, check: Check = "random") -> Case:
    """A network with drawn weights, every branch of it active."""
    height, width = spec.image_size
    name = f"seed {seed}, {batch} x {height}x{width}, depths {depths(spec)}, widths {widths(spec)}"
    about = "The whole network, every branch of it active, with drawn weights."
    params, x = drawn_params(spec, seed, precision), drawn_images(spec, seed, batch, precision)
    return Case(name, check, about, "", "", spec, params, x)


def depths(spec: Spec) -> str:
    """Blocks of every run, as text."""
    return "-".join(str(run.depth) for stage in spec.stages for run in stage)


def widths(spec: Spec) -> str:
    """Channels of every run, as text."""
    return "-".join(str(run.width) for stage in spec.stages for run in stage)


def branch_cases(spec: Spec, seed: int, precision: Precision) -> Iterator[Case]:
    """For every residual branch a case in which it alone acts, with drawn weights."""
    drawn = drawn_params(spec, seed, precision).flatten()
    x = drawn_images(spec, seed, 1, precision)
    for block in spec.blocks():
        for branch in surgery.branches(block):
            flat = dict(drawn)
            surgery.silence(flat, spec, [branch])
            about = "All residual branches but one are silent."
            yield Case(
                f"branch {branch} alone", "probe", about, "", block.name, spec, stored_params(spec, flat, precision), x
            )


def probes(spec: Spec, seed: int, precision: Precision, level: Level) -> Iterator[Case]:
    """The probes of a spec at the places of a level."""
    return probe_cases(spec, precision, seed, everywhere if level.everywhere else last_fitting)


def probes_at(spec: Spec, seed: int, precision: Precision, names: frozenset[str]) -> Iterator[Case]:
    """The probes of some blocks."""

    def those(probe: Probe, blocks: list[Block]) -> list[Block]:
        return [block for block in blocks if block.name in names]

    return (case for case in probe_cases(spec, precision, seed, those) if case.place in names)


def small_spec(spec: Spec) -> Spec:
    """The small network that probes are made on; with fewer heads where those of the spec are wide."""
    small = shrunk(spec)
    return small if small.num_parameters() <= SMALL else shrunk(spec, heads=1)


def other_sizes(spec: Spec) -> list[Spec]:
    """Small networks at other picture sizes: odd ones where the spec takes them, square, and tall."""
    found: list[Spec] = []
    for sizes in (ODD_SIZES, ((64, 64), (224, 224)), ((128, 64), (160, 96))):
        try:
            small = shrunk(spec, 1, sizes)
        except CoatrefError:
            continue
        if small.image_size not in [each.image_size for each in found]:
            found.append(small)
    return found


def large_probes(cases: Iterator[Case], level: Level) -> Iterator[Case]:
    """Those of the probes that a level gives a candidate of one large size."""
    for case in cases:
        if level.large is None or case.name.partition(" in ")[0] in level.large:
            yield case


def renamed(case: Case, name: str) -> Case:
    """The case under another name."""
    return dataclasses.replace(case, name=name)
