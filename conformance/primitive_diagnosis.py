"""Which known mistake in a primitive reproduces what a candidate gave."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.conformance.error_model import probes as model
from coatref.conformance.form_mistakes.form_mistake import FormMistake, Wrap
from coatref.conformance.form_mistakes.known import form_mistakes
from coatref.conformance.precision import Precision
from coatref.conformance.primitive_cases import Call
from coatref.conformance.primitive_model import BLOCKS, compute, expected, judged, roughly
from coatref.errors import CoatrefError, ShapeError


@dataclass(frozen=True, eq=False)
class Observed:
    """A call in float64, what the candidate gave for it in float64, and whether that was wrong."""

    call: Call
    found: Any
    wrong: bool


def diagnose(name: str, seen: Sequence[Observed], precision: Precision) -> tuple[FormMistake, ...]:
    """The one known mistake, or the two together, that reproduce everything a candidate gave; () where none does.

    Args:
        name: of the primitive or block.
        seen: calls with finite values, wrong and right ones.
        precision: as declared.
    """
    order = sorted(seen, key=lambda one: (not one.wrong, one.call.size))
    if not order or not order[0].wrong:
        return ()
    known = form_mistakes(name)
    for mistake in known:
        if reproduces(name, mistake.wrap, order, precision):
            return (mistake,)
    if name in BLOCKS:  # too many pairs
        return ()
    for first, second in itertools.permutations(known, 2):
        if reproduces(name, both(first.wrap, second.wrap), order, precision):
            return first, second
    return ()


def both(outer: Wrap, inner: Wrap) -> Wrap:
    """Two mistakes at once."""
    return lambda form: outer(inner(form))


def reproduces(name: str, wrap: Wrap, seen: Sequence[Observed], precision: Precision) -> bool:
    """Whether a mistaken definition gives everything that was seen, within rounding."""
    try:
        looks = []
        for one in seen:
            looks.append(near(name, wrap, one, precision))
            if looks[-1] is False:
                return False
        seen = [one for one, look in zip(seen, looks, strict=True) if look]
        verdicts = [judged(one.found, expected(name, one.call, precision, wrap), precision).verdict for one in seen]
    except (CoatrefError, ArithmeticError, IndexError, ValueError):  # the mistake cannot be made with these shapes
        return False
    return "fail" not in verdicts and "pass" in (v for v, one in zip(verdicts, seen, strict=True) if one.wrong)


def near(name: str, wrap: Wrap, one: Observed, precision: Precision) -> bool | None:
    """Whether a mistaken definition gives about what was seen; None where it has no meaning for the call, such as a window
    that no longer fits.
    """
    try:
        y = compute(name, one.call, precision, model.record(precision, model.Recorded()), wrap)
    except ShapeError:
        return None
    return bool(np.all(np.isfinite(y))) and roughly(one.found, y, precision)
