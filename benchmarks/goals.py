"""The goals of the project, as ratios of medians in the same run; lower is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks import memory
from benchmarks.cases import MODELS, Case
from benchmarks.forms import BASELINE, FORMS


@dataclass(frozen=True)
class Goal:
    """At most `bound` times what `baseline` takes."""

    bound: float
    baseline: str = BASELINE


CPU: dict[str, dict[str, float]] = {  # form -> label of a case -> bound
    "numpy-definition": {"b1-t2": 1.5, "b1-t1": 1.0, "b8-t2": 1.5},
    "numpy-prepared": {"b1-t2": 0.75, "b1-t1": 0.50, "b8-t2": 0.60, "f64-b1-t2": 0.75},
    "numpy-prepared-alone": {"b1-t2": 0.75, "b1-t1": 0.50, "b8-t2": 0.60},
    "torch-prepared": {"b1-t2": 0.65, "b1-t1": 0.60, "b8-t2": 0.55},
    "torch-prepared-compiled": {"b1-t2": 0.50, "b1-t1": 0.45, "b8-t2": 0.45},
    "jax-prepared": {"b1-t2": 0.75, "b8-t2": 0.60},
}
CUDA: dict[str, Goal] = {
    "torch-prepared": Goal(0.8),
    "torch-prepared-compiled": Goal(1.0, "timm-compiled"),
    "cupy-prepared": Goal(1.2),
}
CUDA_LABELS = ("b1", "b64", "f16-b1", "f16-b64")
OURS = tuple(name for name in FORMS if name.endswith(("-prepared", "-compiled", "-alone")) and not name.startswith("timm"))


def goal_of(form: str, case: Case) -> Goal | None:
    """The goal of a form on a case, if there is one."""
    if case.model not in MODELS:
        return None
    if case.device == "cpu":
        bound = CPU.get(form, {}).get(case.label)
        return None if bound is None else Goal(bound)
    return CUDA.get(form) if case.label in CUDA_LABELS else None


def ratio_of(form: str, case: Case, forms: dict[str, dict[str, Any]]) -> float | None:
    """The ratio of a form to its goal's baseline; None without a goal or a time."""
    goal = goal_of(form, case)
    if goal is None or "median_ms" not in forms.get(form, {}) or "median_ms" not in forms.get(goal.baseline, {}):
        return None
    return float(forms[form]["median_ms"] / forms[goal.baseline]["median_ms"])


def within(ratio: float, bound: float) -> bool:
    """Whether a ratio reaches a goal, at the two decimals in which both are written."""
    return round(ratio, 2) <= bound


def memory_ratio(form: str, forms: dict[str, dict[str, Any]]) -> float | None:
    """A prepared form's peak memory relative to timm eager's, first runs or later ones alike; None for other forms."""
    compiles = FORMS[form].compiles
    mine = memory.headline(forms.get(form, {}).get("memory"), compiles)
    base = memory.headline(forms.get(BASELINE, {}).get("memory"), compiles)
    return None if form not in OURS or mine is None or not base else mine / base
