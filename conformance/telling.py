"""What a judgement says: the verdict in words, what a pass excludes, which other spec fits, how to repeat it."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Sequence

import numpy as np

import coatref
from coatref.conformance import suite
from coatref.conformance.diagnosis import Search, quickly_explained
from coatref.conformance.evaluate import OUTPUT
from coatref.conformance.findings import NOTHING, place_of
from coatref.conformance.looking import Known, bench
from coatref.conformance.mistakes.catalogue import mistakes
from coatref.conformance.mistakes.changed import Changed, shapes
from coatref.conformance.mistakes.mistake import Mistake, applies
from coatref.conformance.report.results import CaseResult, Finding, Verdict
from coatref.conformance.run_case import Outcome, Unusable, outputs, run_case
from coatref.conformance.target import Target
from coatref.errors import CoatrefError, InputError
from coatref.specification.catalogue import spec as named
from coatref.specification.catalogue import specs
from coatref.specification.spec import Spec


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
    if comparable and any(outcome.failed and outcome.answer is None for outcome in outcomes):
        return ""  # what it does where it gives nothing, no spec explains
    if comparable:
        spec = comparable[0].case.spec
        if spec not in known.elsewhere:
            known.elsewhere[spec] = similar_specs(spec)
        trial = Search(comparable, (), target.precision, 6, known.memo, until)
        for name, change in known.elsewhere[spec].items():
            if time.perf_counter() > until:
                break
            if all(quickly_explained(trial, outcome, [change]) for outcome in comparable):
                return name
        return ""
    for name in specs():
        if time.perf_counter() > until:
            break
        if not same_computation(named(name), target.spec) and runs_as(target, named(name), seed):
            return name
    return ""


def similar_specs(spec: Spec) -> dict[str, Mistake]:
    """The named specs that compute otherwise with parameters of the same shapes, as changes of a spec."""
    found: dict[str, Mistake] = {}
    seen = [spec]
    for name in specs():
        change = other_spec(named(name), name)
        try:
            fitted = change.change(Changed(spec)).spec
        except CoatrefError:
            continue
        if not any(same_computation(fitted, other) for other in seen) and shapes(fitted) == shapes(spec):
            seen.append(fitted)
            found[name] = change
    return found


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
    probed = sum(1 for result in results if result.check in ("wiring", "amplifier"))
    said = []
    if probed:
        said.append(
            f"Each of the {len(mistakes())} known mistakes, where it can be made in {target.spec.name}, as far as {probed} "
            f"probes in {target.precision} show it (docs/kill-matrix.md says which they do)."
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
    given = target.command.split()
    parts = ["coatref check", target.command or target.name]
    if "--spec" not in given:
        parts.append(f"--spec {target.spec.name}")
    if "--dtype" not in given:
        parts.append(f"--dtype {storage}")
    if "--accumulate" not in given and accumulate != storage:
        parts.append(f"--accumulate {accumulate}")
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


def without_repetition(found: Sequence[Finding]) -> list[Finding]:
    """Findings, each mistake once, and without "gives nothing to compare" where the reason is known."""
    first: dict[str, Finding] = {}
    for finding in found:
        first.setdefault(finding.mistake or finding.sentence, finding)
    known = any(finding.mistake or finding.tensors for finding in first.values())
    return [finding for finding in first.values() if not (known and finding.sentence.startswith(NOTHING))]


def other_weights(target: Target) -> tuple[list[CaseResult], list[Finding]]:
    """A failed case and a finding where a candidate holds other weights than those that it was to hold."""
    if not target.differing:
        return [], []
    shown = ", ".join(f"{name} (by up to {100 * difference:.2g} %)" for name, difference in target.differing[:4])
    more = f" and {len(target.differing) - 4} more" if len(target.differing) > 4 else ""
    sentence = f"holds other weights than those given: {shown}{more}"
    names = tuple(name for name, _ in target.differing)
    size = (1, *target.spec.image_size)
    result = CaseResult(
        "weights",
        "as given",
        "It holds the weights that it was to hold.",
        target.spec.name,
        size,
        "fail",
        problem=sentence,
    )
    return [result], [
        Finding("parameters", tuple(sorted({place_of(n) for n in names})), sentence, tensors=names, cases=("weights",))
    ]
