"""A judge that gives the report it was made with, reports to give, and a target that the real judge soon is done with."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import coatref
from coatref.conformance.precision import Precision
from coatref.conformance.report.results import CaseResult, Check, Comparison, Finding, Report, Verdict
from coatref.conformance.target import Target
from coatref.conformance.targets.resolve import KINDS
from coatref.specification.parts import PatchStem

TINY = coatref.spec("vit-rel", image_size=(32, 16), depths=(1,), widths=(32,), classes=10)
TINY = TINY.replace(stem=PatchStem(patch=4, width=32))
CASES: tuple[tuple[str, Check], ...] = (
    ("wiring: whole numbers", "wiring"),
    ("amplifier: epsilon", "amplifier"),
    ("amplifier: gelu", "amplifier"),
    ("random 0", "random"),
    ("law: batch", "law"),
)


def report(
    target: str = "fake:net", verdicts: Mapping[str, Verdict] | None = None, findings: tuple[Finding, ...] = ()
) -> Report:
    """A report on CASES, which pass except for those given."""
    verdicts = verdicts or {}
    results = tuple(case(name, check, verdicts.get(name, "pass")) for name, check in CASES)
    found = {result.verdict for result in results}
    verdict: Verdict = "fail" if "fail" in found else "cannot judge" if "cannot judge" in found else "pass"
    return Report(
        target=target,
        spec="coatnet_0",
        spec_json="{}",
        precision={"storage": "float32", "accumulate": "float32"},
        level="default",
        seed=0,
        verdict=verdict,
        summary=f"{target} was looked at: {verdict}.",
        results=results,
        findings=findings,
        reproduce=f"coatref check {target}",
        excludes=("an epsilon of 1e-3",),
    )


def case(name: str, check: Check, verdict: Verdict) -> CaseResult:
    """A case with one compared value."""
    reason = "" if verdict == "pass" else f"the reason of {name}"
    margin = {"pass": 0.25, "fail": 41.0, "cannot judge": None}[verdict]
    compared = Comparison("logits", verdict, margin, reason=reason)
    return CaseResult(name, check, f"what {name} shows", "coatnet_0", (2, 64, 96), verdict, (compared,))


def install(monkeypatch: Any, answer: Callable[[Any], Report]) -> list[dict[str, Any]]:
    """Put a judge in the place of coatref's that answers so, and give the list of the arguments it is called with."""
    calls: list[dict[str, Any]] = []

    def check(target: Any, **given: Any) -> Report:
        calls.append({"target": target, **given})
        return answer(target)

    module = types.ModuleType("coatref.conformance.judge")
    module.check = check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "coatref.conformance.judge", module)
    return calls


def make_fixed(argument: str, *, precision: Any = None, **given: Any) -> Target:
    """What `fixed:FACTOR` means once `add_kind` has been called: a tiny network with its weights baked in, judged soon,
    whose logits are multiplied by the factor.
    """
    params = coatref.init(TINY, scheme="distinct")

    def run(_: Any, x: Any) -> dict[str, Any]:
        return {"logits": coatref.forward(params, x) * float(argument)}

    return Target(f"fixed:{argument}", TINY, run, precision or Precision(), params, takes_params=False)


def add_kind(monkeypatch: Any) -> None:
    """Make `fixed:FACTOR` a kind of target."""
    monkeypatch.setitem(KINDS, "fixed", f"{__name__}:make_fixed")
