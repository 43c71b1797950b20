"""Which cases are measured, and which forms on each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.forms import DOUBLE, FORMS, GROWING, ON_CUDA, ON_REQUEST

Step = tuple[Case, tuple[str, ...]]  # a case and its forms


@dataclass(frozen=True)
class Plan:
    """Everything that is to be measured.

    `rounds` and `seconds` bound each case, see `benchmarks.rounds`; a case that would begin after `deadline` (of
    `time.monotonic`) is left out.
    """

    steps: tuple[Step, ...]
    rounds: int
    seconds: float
    deadline: float = math.inf

    def together(self) -> Iterator[list[Step]]:
        """Steps whose workers are alive at once: one on a CPU, those of a network and type on a GPU, to save time there."""
        for _, group in itertools.groupby(self.steps, key=lambda step: key_of(step[0])):
            yield list(group)


def key_of(case: Case) -> tuple[str, ...]:
    """Equal for cases whose workers are alive at once."""
    return (case.model, case.dtype) if case.device == "cuda" else (case.key,)


def planned(device: str, models: Sequence[str], labels: Sequence[str], forms: Sequence[str]) -> tuple[Step, ...]:
    """The cases and the forms of each; growth is measured on the first model only."""
    steps = []
    for number, model in enumerate(models):
        for label in labels:
            case = cases.parse(model, label, device)
            if case.main or not number:
                wanted = forms or default_forms(case)
                steps.append((case, tuple(name for name in wanted if device in FORMS[name].devices)))
    return tuple(steps)


def default_forms(case: Case) -> tuple[str, ...]:
    """The forms of a case when none are asked for."""
    if case.device == "cuda":
        return ON_CUDA
    if not case.main:
        return GROWING
    if case.dtype == "float64":
        return DOUBLE
    return tuple(name for name in FORMS if name not in ON_REQUEST)


def unfit(case: Case, name: str) -> str | None:
    """Why a form is not tried on a case, or None."""
    form = FORMS[name]
    if case.dtype not in form.dtypes:
        return f"not made for {case.dtype}"
    if form.largest_batch is not None and case.batch > form.largest_batch:
        return f"takes seconds an image, so not run at batch {case.batch}"
    return None


def fitting(case: Case, forms: Sequence[str]) -> list[str]:
    """The forms that are tried on a case, those that compile first: they take longest to start."""
    return sorted((name for name in forms if not unfit(case, name)), key=lambda name: not FORMS[name].compiles)
