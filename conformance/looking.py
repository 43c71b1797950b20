"""Which cases a candidate is given, and what came of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from coatref.conformance import suite
from coatref.conformance.cases import Case
from coatref.conformance.diagnosis import Memo
from coatref.conformance.evaluate import OUTPUT, Answer, answer, comparisons
from coatref.conformance.laws import laws
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.mistakes.mistake import Mistake
from coatref.conformance.random_search import Drawn, search
from coatref.conformance.report.results import CaseResult
from coatref.conformance.run_case import Outcome, Unusable, outputs, run_case, verdict_of
from coatref.conformance.suite import Level
from coatref.conformance.target import Target
from coatref.errors import CoatrefError
from coatref.specification.spec import Spec

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Known:
    """What was computed before for the same spec, precision and seed, and may be used again.

    Attributes:
        answers: name of a case -> the definition's answer.
        memo: outputs of changed definitions; see `diagnosis.Memo`.
        hypotheses: the mistakes that can be made in a spec.
        elsewhere: the named specs that could be meant instead of a spec: those with parameters of the same shapes.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    memo: Memo = field(default_factory=dict)
    hypotheses: dict[Spec, tuple[Mistake, ...]] = field(default_factory=dict)
    elsewhere: dict[Spec, dict[str, Mistake]] = field(default_factory=dict)


def bench(target: Target) -> tuple[Target, str]:
    """The target that probes are made on: a small variant where there is one; and why not, where there is none."""
    if target.variant is None:
        return target, "it exists for one spec only"
    if target.spec.num_parameters() <= suite.SMALL:
        return target, ""
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
        for number, other in enumerate(other_sizes(small)[0], start=seed):
            height, width = other.spec.image_size
            case = suite.random_case(other.spec, number, 3 if target.any_batch else 1, other.precision)
            yield other, suite.renamed(case, f"picture of {height}x{width}, seed {number}"), count
    elif level.large is None:
        case = suite.random_case(small.spec, seed + 1, 1, small.precision)
        yield small, suite.renamed(case, f"all branches, seed {seed + 1}"), count


def other_sizes(small: Target) -> tuple[list[Target], list[str]]:
    """The candidate at other sizes of the picture, and why it is not to be had at some."""
    found, refused = [], []
    if small.variant is not None and small.spec.num_parameters() <= suite.SMALL:
        for spec in suite.other_sizes(small.spec):
            try:
                found.append(small.variant(spec))
            except CoatrefError as error:
                refused.append(f"Pictures of {spec.image_size[0]}x{spec.image_size[1]}: {error}")
    return found, refused


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
    missing.extend(other_sizes(small)[1])
    if small.spec.num_parameters() > suite.SMALL and not why_not:
        missing.append("Other sizes of the picture and drawn configurations: its kind has no small network.")
    if not target.adaptive:
        missing.append("Drawn configurations and laws: only cases written before can be judged.")
        return outcomes, missing
    if progress is not None:
        progress(len(outcomes), total, "laws")
    outcomes.extend(lawful(small, planned, outcomes, level, seed))
    if level.random and small.variant is not None and small.spec.num_parameters() <= suite.SMALL:
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
    assert base.answer is not None
    only = base.answer
    if set(only.expected) != {OUTPUT}:  # that was made with the candidate's own values put in, which others have not
        count = len(only.deviations[OUTPUT])
        only = answer(Changed(base.case.spec), base.case.params, base.case.x, who.precision, {}, count, seed)
    shape = only.expected[OUTPUT].shape
    for law in laws(base.case, seed):
        if large and law.name not in ("law: repetition", "law: order of hidden channels"):
            continue
        began = time.perf_counter()
        case = dataclasses.replace(law.change(base.case), name=law.name, check="law", about=law.about)
        try:
            value = outputs(who, case)[OUTPUT]
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
        found = {OUTPUT: law.undo(value) if value.shape == shape else value}
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
    tried = search(small.spec, level.random, seed, small.any_batch, run)
    outcomes = [outcome for outcome in tried if outcome is not refused]
    if not outcomes:
        missing.append("Drawn configurations: it exists for none that was drawn.")
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

    order: dict[str, int] = {}

    def run(cases: Iterator[Case]) -> None:
        for case in cases:
            order.setdefault(case.name, len(order))
            if time.perf_counter() > until:
                break
            if case.name not in seen:
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
    return sorted(result, key=lambda o: order.get(o.case.name, -1 if o.case.check == "as given" else len(order)))
