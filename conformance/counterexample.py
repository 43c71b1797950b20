"""The smallest failing configuration that was found, as a script."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from coatref.conformance.evaluate import OUTPUT
from coatref.conformance.random_search import described
from coatref.conformance.report.results import Counterexample
from coatref.conformance.run_case import Outcome
from coatref.conformance.target import Target

SCRIPT = '''"""{sentence}"""

import coatref
from coatref.conformance import suite
from coatref.conformance.precision import Precision
from coatref.conformance.run_case import run_case
from coatref.conformance.targets.resolve import resolve

claimed = coatref.Spec.from_json(
    {claimed!r}
)
spec = {spec}
target = resolve({target!r}, spec=claimed, precision=Precision({storage!r}, {accumulate!r}){options})
target = target if target.spec == spec or target.variant is None else target.variant(spec)
{case}
result = run_case(target, case, probes={probes}, seed={seed}).result
print(result.verdict, result.problem)
for value in result.comparisons:
    print(value.value, value.verdict, value.reason, "expected", value.expected, "found", value.found, "bound", value.bound)
'''


def counterexample(target: Target, outcomes: Sequence[Outcome], seed: int) -> Counterexample | None:
    """The failing case with the smallest network, as a script that shows the failure."""
    failing = [outcome for outcome in outcomes if outcome.failed and outcome.case.check != "law"]
    if not failing:
        return None

    def effort(outcome: Outcome) -> tuple[bool, int, int]:
        case = outcome.case
        return outcome.answer is None, case.spec.num_parameters(), int(case.x.size)

    smallest = min(failing, key=effort)
    case = smallest.case
    batch = case.x.shape[0]
    if case.primitive:
        made = (
            f"cases = suite.probes_at(spec, {seed}, target.precision, frozenset({{{case.place!r}}}))\n"
            f"case = next(case for case in cases if case.name == {case.name!r})"
        )
    elif case.check == "as given":
        made = f"case = suite.as_given(spec, target.params, {seed}, {batch}, target.precision)"
    elif case.name.startswith("branch "):
        made = f"case = next(c for c in suite.branch_cases(spec, {seed}, target.precision) if c.name == {case.name!r})"
    else:
        number = case.name.partition("seed ")[2].partition(",")[0] or str(seed)
        made = f"case = suite.random_case(spec, {number}, {batch}, target.precision)"
    sentence = f"{case.name}: {described(case.spec, batch)}."
    text, options = spelled(target)
    script = SCRIPT.format(
        sentence=sentence.replace('"""', "'''").replace("\\", "/"),
        claimed=target.spec.to_json(),
        spec="claimed" if case.spec == target.spec else f"coatref.Spec.from_json(\n    {case.spec.to_json()!r}\n)",
        target=text,
        options="".join(f", {name}={value!r}" for name, value in options.items()),
        storage=target.precision.storage,
        accumulate=target.precision.accumulate,
        probes=12 if smallest.answer is None else len(smallest.answer.deviations[OUTPUT]),
        case=made,
        seed=seed,
    )
    return Counterexample(sentence, case.name, script)


def spelled(target: Target) -> tuple[str, dict[str, str]]:
    """A target as `resolve` takes it: its text, and the options of its adapter."""
    words = shlex.split(target.command) or [target.name]
    options = {name.lstrip("-").replace("-", "_"): value for name, value in zip(words[1::2], words[2::2], strict=True)}
    return words[0], {name: value for name, value in options.items() if name not in ("spec", "dtype", "accumulate")}
