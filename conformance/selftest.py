"""The judge judged: which known mistakes it finds, and how often it blames a right implementation."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coatref.conformance.evaluate import OUTPUT
from coatref.conformance.honest.half import store, storing
from coatref.conformance.judge import check
from coatref.conformance.kill_matrix import document, requirements
from coatref.conformance.looking import Known, fixed_cases, given
from coatref.conformance.mistakes.catalogue import mistakes
from coatref.conformance.mistakes.changed import Changed, compute, shapes
from coatref.conformance.mistakes.edits import with_fields
from coatref.conformance.mistakes.mistake import Mistake, applies
from coatref.conformance.precision import Precision, as_stored, declared
from coatref.conformance.report.results import Report
from coatref.conformance.suite import LEVELS, random_case
from coatref.conformance.target import Output, Target
from coatref.conformance.variants import ODD_SIZES, shrunk
from coatref.errors import CoatrefError
from coatref.params import Params
from coatref.primitives import Primitives
from coatref.specification.catalogue import spec as named
from coatref.specification.parts import Pool
from coatref.specification.spec import Spec
from coatref.tap import no_tap

if TYPE_CHECKING:
    from coatref.conformance.honest_runs import HonestRun

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
PORTION = 40  # judgements that share answers in one process
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

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
                output = compute(changed, params, x, tap)
                return {**seen, OUTPUT: output}  # which may be probabilities, or changed last, where a trace has logits
            return stored_run(changed, params, x, precision)

    target = Target("planted", spec, run, precision, expects=shapes_of(changes, spec))
    return dataclasses.replace(target, variant=lambda other: planted(changes, other, precision, traced))


def stored_run(changed: Changed, params: Params, x: np.ndarray, precision: Precision) -> Output:
    """A changed definition computed in the accumulation type, with every value rounded to storage."""
    forms: Primitives = storing(changed.forms, precision, attention=bool(changed.taps))  # which taps may want to see

    def tap(name: str, value: Any) -> Any:
        return store(value, precision)

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
        reshaped: whether the implementation takes parameters of other shapes.
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
    """The small networks of `SPECS`, and one with the conventions that no named spec has."""
    pool = Pool(kind="avg", size=3, padding="symmetric", padded_zeros="counted")
    rare = with_fields(
        named("coatnet_0"),
        {
            "ConvStem.after_last": "norm_and_activation",
            "MBConv.stride_at": "pool",
            "MBConv.main_pool": pool,
            "MBConv.shortcut_pool": pool,
            "Transformer.main_pool": pool,
            "Transformer.shortcut_pool": pool,
            "Transformer.norm_pool_order": "pool_then_norm",
        },
    )
    return {name: shrunk(named(name)) for name in SPECS} | {"rare": shrunk(rare.replace(name="rare"), 2, ODD_SIZES)}


def judge_planted(changes: Sequence[Mistake], spec: Spec, dtype: str, known: Known, seed: int) -> Row:
    """Plant mistakes into a network, judge it, and see what the report says."""
    began = time.perf_counter()
    precision = declared(dtype)
    target = planted(changes, spec, precision)
    report = check(target, level=level_of(dtype), seed=seed, known=known)
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


def level_of(dtype: str) -> str:
    """How a type is judged: with a diagnosis in float32, in which the figures for naming are taken; else only whether."""
    return "selftest" if dtype == "float32" else "kills"


def first_failure(changes: Sequence[Mistake], spec: Spec, dtype: str, known: Known, seed: int) -> Row:
    """The same, but only until some case fails: whether a mistake is found, and by which kind of check at first."""
    began = time.perf_counter()
    target = planted(changes, spec, declared(dtype))
    assert target.expects is not None
    killed: tuple[str, ...] = ()
    for who, case, probes in fixed_cases(target, LEVELS["kills"], seed):
        if given(who, case, probes, seed, known).failed:
            killed = (case.check,)
            break
    names, nothing = tuple(mistake.name for mistake in changes), (False,) * len(changes)
    reshaped = dict(target.expects) != shapes(spec)
    return Row(names, dtype, spec.name, killed, (), False, nothing, False, reshaped, time.perf_counter() - began)


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


def pairs(count: int, seed: int) -> list[tuple[Mistake, Mistake]]:
    """Random pairs of mistakes that can be made together in the first of the small networks.

    A pair is left out where one of the two cannot be seen beside the other: where both together compute the same as one
    of them alone, on every case of a small suite.
    """
    spec = homes()[SPECS[0]]
    able = [mistake for mistake in mistakes() if applies(mistake, spec) and shapes_of([mistake], spec) == shapes(spec)]
    random = np.random.default_rng(seed)
    found: list[tuple[Mistake, Mistake]] = []
    while len(found) < count:
        first, second = (able[int(index)] for index in random.choice(len(able), 2, replace=False))
        if composable(first, second, spec) and visible(first, second, spec, seed):
            found.append((first, second))
    return found


def composable(first: Mistake, second: Mistake, spec: Spec) -> bool:
    """Whether two mistakes can be made in one network and keep its shapes."""
    try:
        both = second.change(first.change(Changed(spec)))
        return shapes(both.spec) == shapes(spec)
    except CoatrefError:
        return False


def visible(first: Mistake, second: Mistake, spec: Spec, seed: int) -> bool:
    """Whether two mistakes together differ from each of them alone, on a network with drawn weights."""
    case = random_case(spec, seed, 2, declared("float64"))
    outputs = []
    for chosen in ([first, second], [first], [second]):
        changed = Changed(spec)
        for mistake in chosen:
            changed = mistake.change(changed)
        with np.errstate(all="ignore"):
            outputs.append(compute(changed, case.params, case.x))
    both, *alone = outputs
    size = float(np.max(np.abs(both), initial=0.0))
    return bool(np.isfinite(size)) and all(float(np.max(np.abs(both - one))) > 1e-9 * size for one in alone)


@dataclass(frozen=True)
class Chunk:
    """Some judgements for one process: mistakes (one or two at a time) in one type."""

    planted: tuple[tuple[str, ...], ...]
    dtype: str
    seed: int


def judge_chunk(chunk: Chunk) -> list[Row]:
    """The rows of a chunk; answers are shared within it."""
    by_name, networks = {mistake.name: mistake for mistake in mistakes()}, homes()
    known = {name: Known() for name in networks}
    rows = []
    for names in chunk.planted:
        chosen = [by_name[name] for name in names]
        spec = home(chosen[0], networks)
        if spec is not None:
            judge = first_failure if chunk.dtype in ("float64", "float16") else judge_planted
            rows.append(judge(chosen, spec, chunk.dtype, known[spec.name], chunk.seed))
    return rows


def chunks(planted: Sequence[tuple[str, ...]], dtypes: Sequence[str], seed: int) -> list[Chunk]:
    """Judgements in portions: those of neighbouring mistakes stay together, since they share answers."""
    return [
        Chunk(tuple(planted[start : start + PORTION]), dtype, seed)
        for dtype in dtypes
        for start in range(0, len(planted), PORTION)
    ]


def judge_all(todo: Sequence[Chunk], progress: Progress | None) -> list[Row]:
    """The rows of all chunks, on all cores where there are several chunks; each process computes on one thread."""
    if len(todo) == 1:
        return judge_chunk(todo[0])
    threads = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    rows: list[Row] = []
    try:
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            for number, some in enumerate(pool.map(judge_chunk, todo), start=1):
                rows.extend(some)
                if progress is not None:
                    progress(number, len(todo), f"{len(rows)} judgements")
    finally:
        for name, value in threads.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return rows


@dataclass(frozen=True)
class SelfTest:
    """What the judge is worth.

    Attributes:
        level, seed: as asked for.
        rows: one mistake at a time.
        together: two mistakes at once.
        honest: runs of right implementations.
        seconds: that it took.
    """

    level: str
    seed: int
    rows: tuple[Row, ...]
    together: tuple[Row, ...]
    honest: tuple[HonestRun, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every figure is what it must be; see `kill_matrix.requirements`."""
        return all(reached for _, _, reached in requirements(self))

    def markdown(self) -> str:
        """The kill matrix as a document."""
        return document(self)

    def to_json(self) -> dict[str, Any]:
        """All rows as plain data."""
        return {"format": "coatref-selftest", "version": 1, **dataclasses.asdict(self)}


def run(level: str = "sample", seed: int = 0, progress: Progress | None = None) -> SelfTest:
    """Judge the judge.

    Args:
        level: "sample" is a minute's work: some mistakes of every part in two types. "full" is everything.
        seed: of what is drawn, and of which mistakes the sample takes.
        progress: as in `coatref.check`.
    """
    from coatref.conformance.honest_runs import false_alarms

    began = time.perf_counter()
    full = level == "full"
    networks = homes()
    able = [mistake.name for mistake in mistakes() if home(mistake, networks) is not None]
    chosen = able if full else sampled(able, seed)
    rows = judge_all(chunks([(name,) for name in chosen], DTYPES if full else DTYPES[1::2], seed), progress)
    two = [(first.name, second.name) for first, second in pairs(100 if full else 3, seed)]
    together = judge_all(chunks(two, ["float32"], seed), progress)
    honest = false_alarms(
        36 if full else 1, seed, progress=progress, only_numpy=not full
    )  # compiled ones take too long
    return SelfTest(level, seed, tuple(rows), tuple(together), tuple(honest), time.perf_counter() - began)


def sampled(names: Sequence[str], seed: int) -> list[str]:
    """Two mistakes of every part of the network."""
    random = np.random.default_rng(seed)
    by_part: dict[str, list[str]] = {}
    parts = {mistake.name: mistake.primitive for mistake in mistakes()}
    for name in names:
        by_part.setdefault(parts[name], []).append(name)
    return [some[int(i)] for some in by_part.values() for i in random.permutation(len(some))[:1]]
