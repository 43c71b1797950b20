"""Random configurations, drawn and shrunk by Hypothesis to the smallest that fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coatref.conformance.run_case import Outcome
from coatref.conformance.variants import shrunk
from coatref.errors import CoatrefError
from coatref.specification.grids import grids
from coatref.specification.parts import Transformer
from coatref.specification.spec import Spec

SIZES = ((32, 64), (64, 32), (32, 32), (64, 96), (96, 64), (75, 107), (67, 99), (70, 106), (96, 160))
LARGE = ((224, 224),)  # for specs that none of the others fits


@dataclass(frozen=True)
class Drawn:
    """One configuration.

    Attributes:
        spec: a small network of the claimed spec's kind.
        batch: number of images.
        seed: of weights and images.
    """

    spec: Spec
    batch: int
    seed: int


def possible_sizes(spec: Spec) -> list[tuple[int, int]]:
    """The picture sizes among `SIZES`, else `LARGE`, that have a meaning for small networks of a spec's kind."""
    for sizes in (SIZES, LARGE):
        found = [size for size in sizes if possible(spec, size)]
        if found:
            return found
    return []


def possible(spec: Spec, size: tuple[int, int]) -> bool:
    """Whether a small network of a spec's kind can have pictures of a size."""
    try:
        shrunk(spec, 1, (size,))
    except CoatrefError:
        return False
    return True


def search(spec: Spec, examples: int, seed: int, any_batch: bool, run: Callable[[Drawn], Outcome]) -> list[Outcome]:
    """Judge drawn configurations until one fails, then smaller ones; the outcomes of all that were run, in order.

    The last failing outcome is that of the smallest failing configuration.

    Args:
        spec: whose kind is drawn from.
        examples: how many configurations are drawn.
        seed: of the drawing.
        any_batch: whether batches of more than one image are drawn.
        run: gives a configuration to the candidate.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st
    from hypothesis.errors import Flaky

    sizes, outcomes = possible_sizes(spec), []
    if not sizes:
        return []

    class Mistaken(Exception):
        """The configuration fails."""

    @seeded(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(
        st.integers(1, 2),
        st.sampled_from(sizes),
        st.integers(1, 2),
        st.integers(1, 3 if any_batch else 1),
        st.integers(0, 10**6),
    )
    def one(depth: int, size: tuple[int, int], heads: int, batch: int, number: int) -> None:
        outcome = run(Drawn(shrunk(spec, depth, (size,), heads, classes=3), batch, number))
        outcomes.append(outcome)
        if outcome.failed:
            raise Mistaken

    try:
        one()
    except (Mistaken, Flaky):  # a candidate that fails once and passes the next time is flaky; what it gave is kept
        pass
    return outcomes


def described(drawn: Spec, batch: int) -> str:
    """A configuration in words: "one image of 32x64, grids down to 1x2, one head"."""
    height, width = drawn.image_size
    blocks = list(drawn.blocks())
    last = grids(drawn, height, width)[blocks[-1].name]
    heads = [b.run.attention.head_count(b.input_width, b.run.width) for b in blocks if isinstance(b.run, Transformer)]
    images = "one image" if batch == 1 else f"{batch} images"
    attention = f", at most {max(heads)} heads" if heads else ""
    return f"{images} of {height}x{width}, {len(blocks)} blocks, a last grid of {last[0]}x{last[1]}{attention}"
