"""What the definition, or the definition with a known mistake, gives for one call of a primitive, and how far rounding
may take an honest implementation from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.blocks import mbconv, transformer
from coatref.conformance.error_model import local
from coatref.conformance.error_model import probes as model
from coatref.conformance.error_model.verdict import compare
from coatref.conformance.form_mistakes.form_mistake import Wrap
from coatref.conformance.precision import Precision, roundoff
from coatref.conformance.primitive_cases import Call, each_array
from coatref.conformance.report.results import Comparison
from coatref.primitives import Form, Primitives

PROBES = 32
BLOCKS: dict[str, Callable[..., Any]] = {"mbconv": mbconv, "transformer": transformer}
OTHER_WAY = 4.0  # a mistaken form outside the error model may round this much more than the definition


@dataclass(frozen=True, eq=False)
class Expected:
    """The value in float64, each probe's deviation from it, and whether something does not fit into the storage type."""

    y: Any
    deviations: tuple[Any, ...]
    overflow: bool = False


def unchanged(form: Form) -> Form:
    """The form itself."""
    return form


def compute(name: str, call: Call, precision: Precision, inject: model.Inject, wrap: Wrap = unchanged) -> Any:
    """The value of one call, with errors injected.

    Args:
        name: of the primitive or block.
        call: in float64.
        precision: as declared.
        inject: what happens to every rounded value.
        wrap: a mistake.
    """
    inject = finite_part(inject)
    forms = model.injected(inject, precision)
    with np.errstate(all="ignore"):  # amplified calls and mistaken forms may overflow, which shows in the value
        if name not in BLOCKS:
            return wrap(getattr(forms, name))(*call.args.values(), **call.options)
        sums = model.sums(inject, precision, frozenset())

        def form(p: Any, x: Any, block: Any, *, change: Callable[[Primitives], Primitives]) -> Any:
            y = BLOCKS[name](p, x, block, ops=change(forms), tap=sums)
            return inject(y, lambda: local.stored(precision, y))

        return wrap(form)(*call.args.values(), change=lambda forms: forms)


def finite_part(inject: model.Inject) -> model.Inject:
    """The same for finite elements alone: the logit of a hidden key stays minus infinity."""

    def moved(value: Any, magnitude: Callable[[], Any]) -> Any:
        finite = np.isfinite(value)
        if np.all(finite):
            return inject(value, magnitude)
        return np.where(finite, inject(np.where(finite, value, 0.0), magnitude), value)

    return moved


def expected(name: str, call: Call, precision: Precision, wrap: Wrap = unchanged, *, probes: int = PROBES) -> Expected:
    """The value of one call of the definition, or of a mistaken one, and the spread of honest rounding.

    Args:
        name: of the primitive or block.
        call: in float64; its numbers are those that the candidate is handed.
        precision: as declared.
        wrap: a mistake.
        probes: how many; without any, there are no deviations.
    """
    recorded = model.Recorded()
    y = compute(name, call, precision, model.record(precision, recorded), wrap)
    if wrap is not unchanged and not recorded.magnitudes:
        return Expected(y, other_way(name, call, precision, y, probes))
    deviations = []
    for number in range(probes):
        random = np.random.default_rng(number)
        moved = model.replay(recorded.magnitudes, random, precision)
        other = shaken(call, precision, random) if name in BLOCKS else call
        deviations.append(compute(name, other, precision, moved, wrap) - y)
    return Expected(y, tuple(deviations), recorded.overflow)


def other_way(name: str, call: Call, precision: Precision, y: Any, probes: int) -> tuple[Any, ...]:
    """Deviations of a form that the error model knows nothing of: the definition's, and roundings of its own value."""
    own = expected(name, call, precision, probes=probes).deviations
    found = []
    for number in range(probes):
        deviation = own[number] if np.shape(own[number]) == np.shape(y) else 0.0
        signs = model.draws(np.random.default_rng(number), np.shape(y))
        found.append(OTHER_WAY * (deviation + roundoff(precision.storage) * np.abs(y) * signs))
    return tuple(found)


def shaken(call: Call, precision: Precision, random: np.random.Generator) -> Call:
    """The same call of a block with every parameter moved by one unit of storage: weights may be folded together."""
    u = roundoff(precision.storage)
    moved = each_array(lambda a: a * (1.0 + u * model.draws(random, a.shape).astype(np.float64)), call.args["p"])
    return Call({**call.args, "p": moved}, call.options)


def judged(found: Any, right: Expected, precision: Precision) -> Comparison:
    """The verdict on a value."""
    if right.overflow:
        return Comparison("y", "cannot judge", reason=f"some value does not fit into {precision.storage}")
    return compare("y", found, right.y, right.deviations, precision)


def roughly(found: Any, y: Any, precision: Precision) -> bool:
    """Whether a value could agree within rounding; a quick look before the probes are run."""
    if np.shape(found) != np.shape(y):
        return False
    error, size = np.abs(found - y), np.abs(found)
    return bool(np.max(error, initial=0.0) <= 4 * np.sqrt(roundoff(precision.storage)) * np.max(size, initial=0.0))
