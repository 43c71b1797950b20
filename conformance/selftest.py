"""The judge judged: which known mistakes it finds, and how often it blames a right implementation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.conformance.evaluate import OUTPUT
from coatref.conformance.honest.half import storing
from coatref.conformance.judge import Known, check
from coatref.conformance.mistakes.changed import Changed, compute, shapes
from coatref.conformance.mistakes.mistake import Mistake, NotApplicable, applies
from coatref.conformance.precision import Precision, as_stored, declared, rounded
from coatref.conformance.report.results import Report
from coatref.conformance.target import Output, Target
from coatref.conformance.variants import shrunk
from coatref.errors import CoatrefError
from coatref.params import Params
from coatref.primitives import Primitives
from coatref.specification.catalogue import spec as named
from coatref.specification.spec import Spec
from coatref.tap import no_tap

DTYPES = ("float64", "float32", "float16", "bfloat16")
SPECS = (  # each mistake is planted into the first of these in which it can be made
    "coatnet_0",
    "timm/coatnet_0_rw_224",
    "timm/coatnet_nano_rw_224",
    "coatnet_0/strided-depthwise",
    "timm/coatnet_rmlp_2_rw_224",
    "timm/coatnext_nano_rw_224",
    "timm/coatnet_bn_0_rw_224",
    "timm/coatnet_rmlp_1_rw_224",
    "coatnet_6",
    "coatnet_0/post-softmax",
    "coatnet_2/layer-norm-mbconv",
    "coatnet_0/linear-attention",
)
CHECKS = ("wiring", "amplifier", "random", "law", "as given")

Progress = Callable[[int, int, str], None]


def planted(changes: Sequence[Mistake], spec: Spec, precision: Precision, traced: bool = False) -> Target:
    """An implementation with mistakes, which rounds as declared; without any, a right one."""

    def run(params: Params, x: np.ndarray) -> Output:
        changed = Changed(params.spec)
        for mistake in changes:
            changed = mistake.change(changed)
        seen: dict[str, Any] = {}
        with np.errstate(all="ignore"):
            if precision.storage == precision.accumulate:
                tap = (lambda name, value: seen.setdefault(name, value)) if traced else no_tap
                return {**seen, OUTPUT: compute(changed, params, x, tap)} | seen
            return stored_run(changed, params, x, precision)

    target = Target("planted", spec, run, precision, expects=shapes_of(changes, spec))
    return dataclasses.replace(target, variant=lambda other: planted(changes, other, precision, traced))


def stored_run(changed: Changed, params: Params, x: np.ndarray, precision: Precision) -> Output:
    """A changed definition computed in the accumulation type, with every value rounded to storage."""
    forms: Primitives = storing(changed.forms, precision)

    def tap(name: str, value: Any) -> Any:
        return rounded(value, precision.storage).astype(precision.accumulate)

    images = x.astype(precision.accumulate)
    output = compute(changed.but(forms=forms), params.to(dtype=precision.accumulate), images, tap)
    return {OUTPUT: as_stored(output, precision.storage)}


def shapes_of(changes: Sequence[Mistake], spec: Spec) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters that an implementation with mistakes takes."""
    changed = Changed(spec)
    for mistake in changes:
        changed = mistake.change(changed)
    return shapes(changed.spec)


@dataclass(frozen=True)
class Row:
    """One mistake judged in one type.

    Attributes:
        mistakes: that were planted.
        dtype: storage type.
        spec: it was planted into.
        killed: kinds of checks that fail.
        named: mistakes that the report names.
        located: parts of the network that it names.
        exact: whether the mistake itself is named, or one that computes the same.
        located_without: whether the part is named without the catalogue, by the first probe that fails.
        seconds: that the judgement took.
    """

    mistakes: tuple[str, ...]
    dtype: str
    spec: str
    killed: tuple[str, ...]
    named: tuple[str, ...]
    located: bool
    exact: tuple[bool, ...]
    located_without: bool
    reshaped: bool
    seconds: float

    @property
    def dead(self) -> bool:
        """Whether the judge does not let it pass."""
        return bool(self.killed)


def home(mistake: Mistake, known: dict[str, Spec]) -> Spec | None:
    """The small network that a mistake is planted into; None where it can be made in none of them."""
    return next((spec for spec in known.values() if applies(mistake, spec)), None)


def homes() -> dict[str, Spec]:
    """The small networks of `SPECS`."""
    return {name: shrunk(named(name)) for name in SPECS}


def judge_planted(changes: Sequence[Mistake], spec: Spec, dtype: str, known: Known, level: str, seed: int) -> Row:
    """Plant mistakes into a network, judge it, and see what the report says."""
    began = time.perf_counter()
    precision = declared(dtype)
    target = planted(changes, spec, precision)
    report = check(target, level=level, seed=seed, known=known)
    failing = [result for result in report.results if result.verdict == "fail"]
    killed = tuple(kind for kind in CHECKS if any(result.check == kind for result in failing))
    named_mistakes = tuple(finding.mistake for finding in report.findings if finding.mistake)
    parts = {finding.primitive for finding in report.findings}
    return Row(
        tuple(m.name for m in changes),
        dtype,
        spec.name,
        killed,
        named_mistakes,
        all(m.primitive in parts for m in changes),
        tuple(
            m.name in named_mistakes or any(equal(m, name, report, known) for name in named_mistakes) for m in changes
        ),
        first_probe(report) in {m.primitive for m in changes},
        target.expects != shapes(spec),
        time.perf_counter() - began,
    )


def first_probe(report: Report) -> str:
    """The part of the network that the first failing probe looks at."""
    from coatref.conformance.probe_cases import PROBES

    by_name = {(probe.name, probe.check): probe.primitive for probe in PROBES}
    for result in report.results:
        if result.verdict == "fail" and result.check in ("wiring", "amplifier"):
            return by_name.get((result.case.partition(" in ")[0], result.check), "")
    return ""


def equal(mistake: Mistake, other: str, report: Report, known: Known) -> bool:
    """Whether two mistakes compute the same on every case of a report, as far as both were tried on it."""
    pairs = 0
    for result in report.results:
        for key, value in list(known.memo.items()):
            if key[0] != result.case or key[2:] != (mistake.name,) or value is None:
                continue
            theirs = known.memo.get((*key[:2], other))
            if theirs is None or theirs.shape != value.shape:
                continue
            size = float(np.max(np.abs(value), initial=1e-300))
            if not float(np.max(np.abs(value - theirs), initial=0.0)) <= 1e-9 * size:
                return False
            pairs += 1
    return pairs > 0


def composable(first: Mistake, second: Mistake, spec: Spec) -> bool:
    """Whether two mistakes can be made in one network, and both keep its shapes and show beside each other."""
    try:
        both = second.change(first.change(Changed(spec)))
        return shapes(both.spec) == shapes(spec)
    except (CoatrefError, NotApplicable):
        return False


def all_rows(
    chosen: Iterable[Mistake], dtypes: Sequence[str], level: str, seed: int, progress: Progress | None
) -> list[Row]:
    """Every mistake in every type."""
    networks, todo = homes(), list(chosen)
    rows: list[Row] = []
    for dtype in dtypes:
        known = {name: Known() for name in networks}
        for mistake in todo:
            spec = home(mistake, networks)
            if progress is not None:
                progress(len(rows), len(todo) * len(dtypes), f"{mistake.name} in {dtype}")
            if spec is not None:
                rows.append(judge_planted([mistake], spec, dtype, known[spec.name], level, seed))
    return rows
