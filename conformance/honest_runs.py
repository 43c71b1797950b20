"""Honest implementations before the judge, on drawn networks: a verdict "fail" on any of them is a false alarm.

The definition's answer to a case (with the probes of its error model) is what costs time; it is computed once for each
case and precision, and every honest implementation of that precision is compared with it.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coatref.conformance.cases import Case
from coatref.conformance.evaluate import answer
from coatref.conformance.honest.torch_variants import torch_variants
from coatref.conformance.honest.variants import Variant, numpy_variants, present, variants
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.precision import Precision
from coatref.conformance.random_search import possible_sizes
from coatref.conformance.report.results import Verdict
from coatref.conformance.run_case import Outcome, run_case
from coatref.conformance.suite import LEVELS, probes, random_case
from coatref.conformance.target import Target
from coatref.conformance.variants import shrunk
from coatref.errors import CoatrefError
from coatref.specification.catalogue import spec as named
from coatref.specification.catalogue import specs
from coatref.specification.spec import Spec

PRECISIONS = (
    Precision("float64", "float64"),
    Precision("float32", "float32"),
    Precision("float16", "float32"),
    Precision("bfloat16", "float32"),
    Precision("float16", "float16"),
    Precision("bfloat16", "bfloat16"),
)
PROBES = LEVELS["default"].probes[0]  # of the error model, for each case
LARGEST = 160  # pixels on a side of a drawn image
TRACED, COMPILED = 5, 10  # one case in so many is run with all values given, and with the compiled variants too


@dataclass(frozen=True)
class HonestRun:
    """One honest implementation on one case.

    Attributes:
        variant: name of the implementation.
        precision: as declared, in words.
        spec: name of the spec whose kind the network is of.
        case: its name.
        verdict: "fail" is a false alarm.
        margin: the largest of the three below; None where nothing was compared.
        element_margin, rms_margin, bias_margin: the largest of all compared values, by test.
        traced: whether every value was compared, or the output alone.
        reason: what failed, and how.
    """

    variant: str
    precision: str
    spec: str
    case: str
    verdict: Verdict
    margin: float | None
    element_margin: float | None
    rms_margin: float | None
    bias_margin: float | None
    traced: bool = False
    reason: str = ""


def false_alarms(
    cases: int,
    seed: int,
    precisions: Sequence[Precision] = PRECISIONS,
    slow: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    only_numpy: bool = False,
) -> tuple[HonestRun, ...]:
    """Every honest implementation on drawn cases.

    Half of the cases are networks with drawn weights, half are probes of single parts. One case in `TRACED` is run once
    more by one implementation that gives all its values, each of which is then judged on the values before it. The judge
    does so for networks with drawn weights only; here probes are looked into as well.

    Args:
        cases: for each precision.
        seed: of the drawing.
        precisions: that are declared.
        slow: whether compiled implementations take part, on one case in `COMPILED`.
        progress: is told the cases done, all cases, and the next one's name.
        only_numpy: whether to leave out implementations that need another library.
    """
    runs: list[HonestRun] = []
    total = cases * len(precisions)
    for index, precision in enumerate(precisions):
        name = zlib.crc32(str(precision).encode())
        found = listing(precision, only_numpy, traced=False)
        traced = [each for each in listing(precision, only_numpy, traced=True) if not each.slow]
        if not found:
            continue
        for number in range(cases):
            random = np.random.default_rng([seed, name, number])
            case = drawn(random, precision, small=slow and number % COMPILED == 0)
            if progress is not None:
                progress(index * cases + number, total, f"{precision}: {case.name}")
            fast = [each for each in found if not each.slow or (slow and number % COMPILED == 0)]
            runs += on_case(fast, case, seed)
            if number % TRACED == 0 and traced:
                one, whole = traced[int(random.integers(len(traced)))], dataclasses.replace(case, primitive="")
                runs.append(run_of(one, run_case(one.make(case.spec), whole, PROBES, seed), traced=True))
    return tuple(runs)


def listing(precision: Precision, only_numpy: bool, *, traced: bool) -> tuple[Variant, ...]:
    """The honest implementations of a precision."""
    if only_numpy:
        return numpy_variants(precision, traced=traced)
    return (*variants(precision, traced=traced), *half_modules(precision, traced=traced))


def half_modules(precision: Precision, *, traced: bool = False) -> tuple[Variant, ...]:
    """Torch modules in a half type, `model.half()`, whose kernels accumulate in float32 as is declared.

    What torch computes by several kernels (squeeze-excite, attention) it stores in the half type in between.
    """
    if precision.storage == precision.accumulate or precision.accumulate != "float32" or not present("torch"):
        return ()
    throughout = torch_variants(Precision(precision.storage, precision.storage), traced=traced)
    kernels = [each for each in throughout if each.name.endswith(("torch nchw", "torch channels-last"))]
    return tuple(redeclared(each, precision) for each in kernels)


def redeclared(variant: Variant, precision: Precision) -> Variant:
    """The same implementation with another declared precision."""

    def make(spec: Spec) -> Target:
        return dataclasses.replace(variant.make(spec), precision=precision, variant=make)

    return Variant(f"module of kernels, {variant.name}", make, precision, variant.slow)


def drawn(random: np.random.Generator, precision: Precision, small: bool = False) -> Case:
    """A small network of a drawn kind with drawn weights, or one of its probes.

    Args:
        random: what is drawn from.
        precision: that parameters and images are rounded to.
        small: whether the network is one that compiles quickly.
    """
    names = specs()
    while True:
        kind = named(names[int(random.integers(len(names)))])
        sizes = [size for size in possible_sizes(kind) if max(size) <= LARGEST] or possible_sizes(kind)[:1]
        depth, heads = (1, 1) if small else (int(random.integers(1, 3)), int(random.integers(1, 3)))
        if not sizes:
            continue
        size = sizes[0] if small else sizes[int(random.integers(len(sizes)))]
        try:
            spec = shrunk(kind, depth, (size,), heads, classes=3)
        except CoatrefError:  # this number of heads has no meaning here
            continue
        break
    number, batch = int(random.integers(10**6)), int(random.integers(1, 3))
    if random.random() < 0.5:
        return random_case(spec, number, batch, precision)
    choice = list(probes(spec, number, precision, LEVELS["deep"]))
    return choice[int(random.integers(len(choice)))]


def on_case(found: Sequence[Variant], case: Case, seed: int) -> Iterator[HonestRun]:
    """Several implementations on one case, with the definition's answer computed once."""
    known = None
    for each in found:
        if known is None:
            with np.errstate(all="ignore"):
                known = answer(Changed(case.spec), case.params, case.x, each.precision, {}, PROBES, seed)
        yield run_of(each, run_case(each.make(case.spec), case, PROBES, seed, known))


def run_of(variant: Variant, outcome: Outcome, *, traced: bool = False) -> HonestRun:
    """What came of one implementation on one case."""
    result = outcome.result

    def largest(name: str) -> float | None:
        values = [getattr(each, name) for each in result.comparisons]
        return max((value for value in values if value is not None), default=None)

    failed = [each for each in result.comparisons if each.verdict == "fail"]
    reason = result.problem or "; ".join(f"{each.value}: {each.reason}" for each in failed)
    return HonestRun(
        variant.name,
        str(variant.precision),
        result.spec,
        result.case,
        result.verdict,
        largest("margin"),
        largest("element_margin"),
        largest("rms_margin"),
        largest("bias_margin"),
        traced,
        reason,
    )
