"""The judgement: cases given to a candidate, verdicts, where it goes wrong and what it computes instead."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import coatref
from coatref.conformance import suite
from coatref.conformance.cases import Case
from coatref.conformance.counterexample import counterexample
from coatref.conformance.diagnosis import Diagnosis, Memo, Search, diagnose, quickly_explained
from coatref.conformance.evaluate import OUTPUT, Answer, comparisons
from coatref.conformance.findings import findings, stages
from coatref.conformance.laws import laws
from coatref.conformance.mistakes.catalogue import mistakes
from coatref.conformance.mistakes.changed import Changed, shapes
from coatref.conformance.mistakes.lattice import lattice
from coatref.conformance.mistakes.mistake import Mistake, applies
from coatref.conformance.precision import declared
from coatref.conformance.random_search import Drawn, search
from coatref.conformance.report.results import CaseResult, Finding, Report, Verdict
from coatref.conformance.run_case import Outcome, Unusable, outputs, run_case, verdict_of
from coatref.conformance.suite import LEVELS, Level
from coatref.conformance.target import Target
from coatref.errors import CoatrefError, InputError
from coatref.params import Params
from coatref.specification.catalogue import resolve, specs
from coatref.specification.catalogue import spec as named
from coatref.specification.spec import Spec

Progress = Callable[[int, int, str], None]
SECONDS = {"quick": 20.0, "default": 60.0, "deep": 900.0}  # for the diagnosis of a candidate that fails


@dataclass(frozen=True)
class Known:
    """What was computed before for the same spec, precision and seed, and may be used again.

    Attributes:
        answers: name of a case -> the definition's answer.
        memo: outputs of changed definitions; see `diagnosis.Memo`.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    memo: Memo = field(default_factory=dict)


def check(
    target: str | Target | Callable[..., Any],
    *,
    spec: Spec | str | None = None,
    weights: Params | None = None,
    dtype: str = "float32",
    accumulate: str | None = None,
    level: str = "default",
    seed: int = 0,
    progress: Progress | None = None,
    known: Known | None = None,
) -> Report:
    """Judge a candidate; see `coatref.check`.

    Args:
        target: as `coatref.check` takes it.
        spec, weights, dtype, accumulate, level, seed, progress: likewise.
        known: answers computed before, and kept for later judgements; for judging many candidates of one spec.

    Raises:
        InputError: an argument cannot be used.
    """
    if level not in LEVELS:
        raise InputError(f"check takes the levels {', '.join(LEVELS)}, got {level!r:.80}.")
    began = time.perf_counter()
    judged = as_target(target, spec, weights, dtype, accumulate)
    known = known or Known()
    outcomes, missing = look(judged, LEVELS[level], seed, progress, known)
    failed = [outcome for outcome in outcomes if outcome.failed]
    diagnosis, elsewhere, found = Diagnosis(), "", []
    if failed:
        if progress is not None:
            progress(len(outcomes), len(outcomes), "diagnosis")
        until = time.perf_counter() + SECONDS[level]
        outcomes = closer_look(judged, outcomes, LEVELS[level], seed, until, known)
        hypotheses = [m for m in (*mistakes(), *lattice(judged.spec)) if applies(m, judged.spec)]
        comparable = [outcome for outcome in outcomes if outcome.answer is not None]
        diagnosis = diagnose(Search(comparable, hypotheses, judged.precision, 6, known.memo, until))
        elsewhere = conforms_elsewhere(judged, outcomes, seed, until, known)
        found = [*misshapen(judged), *findings(outcomes, diagnosis)]
    results = tuple(outcome.result for outcome in outcomes)
    verdict = overall(results)
    return Report(
        target=judged.name,
        spec=judged.spec.name,
        spec_json=judged.spec.to_json(),
        precision={"storage": judged.precision.storage, "accumulate": judged.precision.accumulate},
        level=level,
        seed=seed,
        verdict=verdict,
        summary=summary(judged, verdict, results, found, elsewhere),
        excludes=excludes(judged, results) if verdict == "pass" else (),
        not_covered=tuple(missing),
        results=results,
        stages=tuple(stages(shown_spec(judged, outcomes), outcomes)),
        findings=tuple(found),
        conforms_to=elsewhere,
        counterexample=counterexample(judged, outcomes, seed) if failed else None,
        reproduce=reproduce(judged, level, seed),
        versions=versions(judged),
        seconds=time.perf_counter() - began,
    )


def as_target(
    target: str | Target | Callable[..., Any],
    spec: Spec | str | None,
    weights: Params | None,
    dtype: str,
    accumulate: str | None,
) -> Target:
    """What is judged, from any of the forms that `check` takes."""
    if isinstance(target, Target):
        changes: dict[str, Any] = {} if spec is None else {"spec": resolve(spec)}
        return dataclasses.replace(target, **changes, **({} if weights is None else {"params": weights}))
    if isinstance(target, str):
        from coatref.conformance.targets.resolve import resolve as resolve_target

        precision = dtype if accumulate is None else declared(dtype, accumulate)
        return resolve_target(target, spec=spec, weights=weights, precision=precision)
    if not callable(target):
        raise InputError(f"check takes a text, a Target or a function (params, x), got {type(target).__name__}.")
    if spec is None:
        raise InputError("check needs the spec that a function computes; pass spec=..., such as spec='coatnet_0'.")

    def run(params: Params, x: np.ndarray) -> Mapping[str, Any]:
        given = target(params, x)
        return given if isinstance(given, Mapping) else {OUTPUT: given}

    name = f"python:{getattr(target, '__module__', '')}:{getattr(target, '__qualname__', 'function')}"
    return Target(name, resolve(spec), run, declared(dtype, accumulate), weights, command=name)


# --- which cases ---


def bench(target: Target) -> tuple[Target, str]:
    """The target that probes are made on: a small variant where there is one; and why not, where there is none."""
    if target.spec.num_parameters() <= suite.SMALL:
        return target, ""
    if target.variant is None:
        return target, "it exists for one spec only"
    try:
        return target.variant(suite.small_spec(target.spec)), ""
    except CoatrefError as error:
        return target, str(error)


def fixed_cases(target: Target, level: Level, seed: int) -> Iterator[tuple[Target, Case, int]]:
    """Every case that does not depend on what came of another: who runs it, the case, and how many probes."""
    own = target
    batch = 2 if target.any_batch and target.spec.num_parameters() <= suite.SMALL else 1
    small, _ = bench(target)
    is_small = small.spec.num_parameters() <= suite.SMALL
    yield (
        own,
        suite.as_given(own.spec, own.params, seed, batch, own.precision),
        level.probes[0 if is_small and small is own else 1],
    )
    if not target.takes_params:
        return
    cases = suite.probes(small.spec, seed, small.precision, level)
    count = level.probes[0 if is_small else 1]
    for case in cases if is_small else suite.large_probes(cases, level):
        yield small, case, count
    if small.variant is not None and is_small:
        for number, spec in enumerate(suite.other_sizes(small.spec)):
            try:
                other = small.variant(spec)
            except CoatrefError:
                continue
            height, width = spec.image_size
            case = suite.random_case(spec, seed + number, 3 if target.any_batch else 1, other.precision)
            yield other, suite.renamed(case, f"picture of {height}x{width}"), count
    elif level.large is None:
        case = suite.random_case(small.spec, seed + 1, 1, small.precision)
        yield small, suite.renamed(case, "all branches"), count


def look(
    target: Target, level: Level, seed: int, progress: Progress | None, known: Known
) -> tuple[list[Outcome], list[str]]:
    """Give the candidate the cases of a level; the outcomes, and what could not be looked at."""
    small, why_not = bench(target)
    planned = list(fixed_cases(target, level, seed))
    total = len(planned) + 4
    outcomes: list[Outcome] = []
    for who, case, probes in planned:
        if progress is not None:
            progress(len(outcomes), total, case.name)
        outcomes.append(given(who, case, probes, seed, known))
    missing = []
    if not target.takes_params:
        missing.append("Anything but its own weights: it does not take parameters.")
        return outcomes, missing
    if why_not:
        missing.append(f"Other sizes of the network and of the picture: {why_not}.")
    if not target.adaptive:
        missing.append("Drawn configurations and laws: only cases written before can be judged.")
        return outcomes, missing
    if progress is not None:
        progress(len(outcomes), total, "laws")
    outcomes.extend(lawful(small, planned, outcomes, level, seed))
    if small.variant is not None and small.spec.num_parameters() <= suite.SMALL:
        if progress is not None:
            progress(len(outcomes), total, "drawn configurations")
        outcomes.extend(drawn(small, level, seed, missing))
    return outcomes, missing


def given(target: Target, case: Case, probes: int, seed: int, known: Known) -> Outcome:
    """One case, with its answer taken from those known, or kept there."""
    key = f"{case.name} | {case.check}"
    outcome = run_case(target, case, probes, seed, known.answers.get(key))
    if outcome.answer is not None and set(outcome.answer.expected) == {OUTPUT}:
        known.answers.setdefault(key, outcome.answer)
    return outcome


def lawful(
    small: Target, planned: Sequence[tuple[Target, Case, int]], outcomes: Sequence[Outcome], level: Level, seed: int
) -> Iterator[Outcome]:
    """The laws, on the small case with the most images."""
    candidates = [
        (outcome, who)
        for outcome, (who, case, _) in zip(outcomes, planned, strict=True)
        if outcome.answer is not None and outcome.result.verdict == "pass" and not case.primitive
    ]
    if not candidates:
        return
    base, who = max(candidates, key=lambda pair: (pair[0].case.x.shape[0], -pair[1].spec.num_parameters()))
    large = who.spec.num_parameters() > suite.SMALL
    for law in laws(base.case, seed):
        if large and law.name not in ("law: repetition", "law: order of hidden channels"):
            continue
        began = time.perf_counter()
        case = dataclasses.replace(law.change(base.case), name=law.name, check="law", about=law.about)
        try:
            found = {OUTPUT: law.undo(outputs(who, case)[OUTPUT])}
        except Unusable as problem:
            result = dataclasses.replace(
                base.result,
                case=law.name,
                check="law",
                about=law.about,
                verdict="fail",
                comparisons=(),
                problem=str(problem),
            )
            yield Outcome(case, result)
            continue
        assert base.answer is not None
        only = Answer(
            {OUTPUT: base.answer.expected[OUTPUT]}, {OUTPUT: base.answer.deviations[OUTPUT]}, base.answer.overflow
        )
        compared = tuple(comparisons(found, only, who.precision))
        result = dataclasses.replace(
            base.result,
            case=law.name,
            check="law",
            about=law.about,
            verdict=verdict_of(compared),
            comparisons=compared,
            seconds=time.perf_counter() - began,
        )
        yield Outcome(case, result, found, only)


def drawn(small: Target, level: Level, seed: int, missing: list[str]) -> list[Outcome]:
    """Configurations drawn and shrunk by Hypothesis; at most the smallest failing one of those that fail is kept."""
    try:
        import hypothesis  # noqa: F401 - only to see whether it is there
    except ImportError:
        missing.append("Drawn configurations: needs hypothesis; run: pip install 'coatref[conformance]'.")
        return []

    def run(configuration: Drawn) -> Outcome:
        assert small.variant is not None
        try:
            other = small.variant(configuration.spec)
        except CoatrefError:
            return refused
        case = suite.random_case(configuration.spec, configuration.seed, configuration.batch, other.precision)
        return run_case(other, case, level.probes[0], seed)

    case = suite.random_case(small.spec, seed, 1, small.precision)
    refused = Outcome(
        case, CaseResult("refused", "random", case.about, small.spec.name, (1, *small.spec.image_size), "cannot judge")
    )
    outcomes = [o for o in search(small.spec, level.random, seed, small.any_batch, run) if o is not refused]
    failing = [outcome for outcome in outcomes if outcome.failed]
    kept = [outcome for outcome in outcomes if not outcome.failed] + failing[-1:]
    unique = {outcome.case.name: outcome for outcome in kept}
    return list(unique.values())


def closer_look(
    target: Target, outcomes: Sequence[Outcome], level: Level, seed: int, until: float, known: Known
) -> list[Outcome]:
    """More cases for a candidate that fails: all probes, and where none of them fails the blocks one by one."""
    result = list(outcomes)
    if not target.takes_params or not target.adaptive:
        return result
    small, _ = bench(target)
    seen = {outcome.case.name for outcome in result}
    count = level.probes[0 if small.spec.num_parameters() <= suite.SMALL else 1]

    def run(cases: Iterator[Case]) -> None:
        for case in cases:
            if case.name not in seen and time.perf_counter() < until:
                seen.add(case.name)
                result.append(given(small, case, count, seed, known))

    if all(outcome.answer is None for outcome in result if outcome.failed):
        return result
    run(suite.probes(small.spec, seed, small.precision, level))
    if not any(outcome.failed and outcome.case.primitive for outcome in result):
        run(suite.branch_cases(small.spec, seed, small.precision))
        places = frozenset(o.case.place for o in result if o.failed and o.case.check == "probe")
        if places:
            run(suite.probes_at(small.spec, seed, small.precision, places))
    order = {case.name: number for number, case in enumerate(suite.probes(small.spec, seed, small.precision, level))}
    return sorted(result, key=lambda o: order.get(o.case.name, -1 if o.case.check == "as given" else len(order)))


# --- what it says ---


def overall(results: Sequence[CaseResult]) -> Verdict:
    """Fail if any case fails, else pass if any passes."""
    verdicts = {result.verdict for result in results}
    return "fail" if "fail" in verdicts else "pass" if "pass" in verdicts else "cannot judge"


def shown_spec(target: Target, outcomes: Sequence[Outcome]) -> Spec:
    """The network that the table of stages shows: the one that the probes were made on."""
    probed = [outcome.case.spec for outcome in outcomes if outcome.case.primitive]
    return probed[0] if probed else target.spec


def misshapen(target: Target) -> list[Finding]:
    """A finding where a candidate takes parameters of other shapes than its spec has."""
    if target.expects is None:
        return []
    ours = shapes(target.spec)
    wrong = [
        f"{name} is {tuple(target.expects[name])} and should be {shape}"
        if name in target.expects
        else f"{name} is missing"
        for name, shape in ours.items()
        if tuple(target.expects.get(name, ())) != shape
    ]
    wrong += [f"{name} is surplus" for name in target.expects if name not in ours]
    if not wrong:
        return []
    names = tuple(text.split(" ")[0] for text in wrong)
    more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    explaining = [m for m in mistakes() if applies(m, target.spec) and reshaped(m, target.spec) == dict(target.expects)]
    sentence = f"takes parameters of other shapes: {'; '.join(wrong[:4])}{more}"
    if explaining:
        first = explaining[0]
        return [
            Finding(
                first.primitive,
                (),
                f"{first.sentence} ({first.source}); it {sentence}",
                first.name,
                first.fields,
                names,
            )
        ]
    return [Finding("parameters", (), sentence, tensors=names)]


def reshaped(mistake: Mistake, spec: Spec) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters that a mistaken implementation takes."""
    return shapes(mistake.change(Changed(spec)).spec)


def conforms_elsewhere(target: Target, outcomes: Sequence[Outcome], seed: int, until: float, known: Known) -> str:
    """The name of another spec under which the candidate is right; ""."""
    comparable = [outcome for outcome in outcomes if outcome.answer is not None]
    for name in specs():
        if time.perf_counter() > until:
            break
        other = named(name)
        if same_computation(other, target.spec):
            continue
        if comparable:
            try:
                change = other_spec(other, name)
                if any(shapes(change.change(Changed(o.case.spec)).spec) != shapes(o.case.spec) for o in comparable[:1]):
                    continue
                trial = Search(comparable, (), target.precision, 6, known.memo, until)
                if all(quickly_explained(trial, outcome, [change]) for outcome in comparable):
                    return name
            except CoatrefError:
                continue
        elif runs_as(target, other, seed):
            return name
    return ""


def other_spec(other: Spec, name: str) -> Mistake:
    """The change of a definition to that of another spec, at the same sizes."""

    def change(changed: Changed) -> Changed:
        now = changed.spec
        runs = [run for stage in now.stages for run in stage]
        theirs = [run for stage in other.stages for run in stage]
        if len(runs) != len(theirs) or any(type(a) is not type(b) for a, b in zip(runs, theirs, strict=True)):
            raise InputError("the specs have other stages.")
        fitted = iter(dataclasses.replace(b, depth=a.depth, width=a.width) for a, b in zip(runs, theirs, strict=True))
        new_stages = tuple(tuple(next(fitted) for _ in stage) for stage in now.stages)
        stem = dataclasses.replace(
            other.stem,
            **{
                key: getattr(now.stem, key)
                for key in ("widths", "width", "bias")
                if key in vars(now.stem) and key in vars(other.stem)
            },
        )
        head = dataclasses.replace(other.head, classes=now.head.classes)
        return changed.but(spec=now.replace(stem=stem, stages=new_stages, head=head))

    return Mistake(
        f"spec-{name}".lower().replace("_", "-").replace("/", "-"), "blocks", f"computes {name}", "a named spec", change
    )


def same_computation(one: Spec, other: Spec) -> bool:
    """Whether two specs differ in name and preprocessing only."""
    return one.replace(name="", preprocessing=other.preprocessing) == other.replace(name="")


def runs_as(target: Target, other: Spec, seed: int) -> bool:
    """Whether the candidate takes another spec's parameters and gives that spec's output."""
    if other.num_parameters() > 2 * target.spec.num_parameters():
        return False
    if target.expects is not None and shapes(other) != dict(target.expects):
        return False
    trial = dataclasses.replace(target, spec=other, params=None)
    case = suite.as_given(other, None, seed, 1, target.precision)
    try:
        outputs(trial, case)
    except (Unusable, CoatrefError):
        return False
    return run_case(trial, case, 4, seed).result.verdict == "pass"


def summary(
    target: Target, verdict: Verdict, results: Sequence[CaseResult], found: Sequence[Finding], elsewhere: str
) -> str:
    """The verdict in one sentence."""
    what = f"{target.spec.name} in {target.precision}"
    if verdict == "pass":
        margins = [result.margin for result in results if result.margin is not None]
        return (
            f"{target.name} computes {what}: {len(results)} cases, largest margin {max(margins, default=0.0):.2g} of 1."
        )
    if verdict == "cannot judge":
        return (
            f"{target.name} cannot be judged as {what}: the bounds of every case are too wide, or nothing was compared."
        )
    other = f" It conforms to {elsewhere}." if elsewhere else ""
    first = f"it {found[0].sentence}" if found else "some case fails"
    more = f"; {len(found) - 1} more" if len(found) > 1 else ""
    return f"{target.name} does not compute {what}: {first}{more}.{other}"


def excludes(target: Target, results: Sequence[CaseResult]) -> tuple[str, ...]:
    """What a pass shows to be absent."""
    small, _ = bench(target)
    applying = sum(applies(mistake, target.spec) for mistake in mistakes())
    probed = sum(1 for result in results if result.check in ("wiring", "amplifier"))
    said = []
    if probed:
        said.append(
            f"Each of the {applying} known mistakes that can be made in {target.spec.name}, as far as {probed} probes in "
            f"{target.precision} show them (docs/kill-matrix.md says which they do)."
        )
    errors = [c.bound for r in results if r.check == "as given" for c in r.comparisons if c.value == OUTPUT and c.bound]
    if errors:
        said.append(f"Errors of the logits above {max(errors):.2g} in the case as given.")
    if probed and small is not target:
        said.append(f"The probes ran on a small network of the same kind ({small.spec.num_parameters():,} parameters).")
    return tuple(said)


def reproduce(target: Target, level: str, seed: int) -> str:
    """The command line that repeats a judgement."""
    storage, accumulate = target.precision.storage, target.precision.accumulate
    parts = ["coatref check", target.command or target.name]
    if "--spec" not in target.command:
        parts.append(f"--spec {target.spec.name}")
    parts.append(f"--dtype {storage}" + (f" --accumulate {accumulate}" if accumulate != storage else ""))
    return " ".join([*parts, f"--level {level} --seed {seed}"])


def versions(target: Target) -> dict[str, str]:
    """Versions of everything that took part."""
    import scipy

    return {
        "coatref": coatref.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        **target.versions,
    }


def cases(
    spec: Spec | str,
    *,
    dtype: str = "float32",
    accumulate: str | None = None,
    level: str = "default",
    seed: int = 0,
) -> Iterator[tuple[str, str, str, Params, np.ndarray]]:
    """The cases that a target "results:DIR" is judged by: name, check, about, parameters, images.

    Raises:
        InputError: the level, spec or type is not known.
    """
    if level not in LEVELS:
        raise InputError(f"cases takes the levels {', '.join(LEVELS)}, got {level!r:.80}.")

    def nothing(params: Params, x: np.ndarray) -> Mapping[str, Any]:
        return {}

    target = Target("cases", resolve(spec), nothing, declared(dtype, accumulate))
    target = dataclasses.replace(target, variant=lambda other: dataclasses.replace(target, spec=other))
    for _, case, _ in fixed_cases(target, LEVELS[level], seed):
        yield case.name, case.check, case.about, case.params, case.x
