"""From the errors of a candidate and the spread of the probes to a verdict.

Three tests of one value, each at a false-alarm probability of `CHANCE` under the model of `probes.py`:

element   |e_i| <= t sigma_i for every element, t from Student's distribution and the number of elements
rms       mean (e_i/sigma_i)^2 is no larger than the probes' own, by an F test: sees small errors everywhere
bias      |mean e_i/sigma_i|, and the mean of e_i in the direction of the value itself, are no larger than the probes' own,
          by a t test: sees small errors of one sign, and a wrong scale

sigma_i^2 is the variance of the probes' deviations at element i. Few probes estimate it badly for one element, so it is
moderated towards the typical one as in Smyth 2004 (the method of limma): a scaled inverse chi-squared prior is fitted to
all elements, and t has the degrees of freedom of prior and probes together. That the probes themselves vary as a whole,
since one rounding may dominate all elements, enters as an upper confidence limit of their mean square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision, smallest_step
from coatref.conformance.report.results import Comparison, Scatter

CHANCE = 1e-8  # of a false alarm, for each test of each value: 1e-2 in a million of them
DOUBT = (
    1e-3  # that the probes' mean square is underestimated by more than allowed for; only then CHANCE may be exceeded
)
DRAWN = 300  # elements of a scatter


def compare(
    value: str,
    found: Any,
    expected: Any,
    deviations: Sequence[Any],
    precision: Precision,
    *,
    replayed: bool = False,
    least: Any = 0.0,
) -> Comparison:
    """The verdict on one value.

    Args:
        value: its name.
        found: the candidate's, (...) of any floating type.
        expected: the definition's in float64, of the same shape.
        deviations: of each probe from `expected`, of the same shape.
        precision: as declared.
        replayed: whether it is made of the candidate's own values, by one primitive: then there is no bias test, since one
            rounded constant or one approximated function may lean the same way in all elements.
        least: magnitude of the rounding that ends the computation of each element. Its spread is no less, whatever a few
            probes happen to show.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        return failed(value, f"it has shape {found.shape}, and {expected.shape} was expected")
    if not np.all(np.isfinite(expected)):
        return Comparison(value, "cannot judge", reason="the definition's own value is not finite")
    if not np.all(np.isfinite(found)):
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(found))[0])
        return failed(value, f"{np.sum(~np.isfinite(found))} of {found.size} elements are NaN or infinite", worst=bad)
    if expected.size == 0:
        return Comparison(value, "pass", margin=0.0)
    error = found - expected
    scale = spread(deviations, expected, precision)
    sigma = scale.sigma
    bound = student(scale.freedom, CHANCE / expected.size) * np.maximum(sigma, least)
    if vacuous(bound, expected):
        return Comparison(
            value,
            "cannot judge",
            elements=expected.size,
            max_error=float(np.max(np.abs(error))),
            reason=f"honest rounding in {precision} may change it by as much as it varies at all",
        )
    element = np.abs(error) / bound
    worst = np.unravel_index(int(np.argmax(element)), error.shape)
    rms, bias = collective(error / sigma, scale.units(deviations), expected / sigma)
    margins = float(element[worst]), rms, (0.0 if replayed else bias)
    margin = max(margins)
    reason = ""
    if margin > 1:
        reason = (
            f"an element is off by {abs(error[worst]):.2e}, {margins[0]:.3g} times what rounding allows",
            f"its errors are together {rms:.3g} times as large as rounding allows",
            f"its errors lean to one side, or are in proportion to the value, {bias:.3g} times as much as rounding allows",
        )[margins.index(margin)]
    return Comparison(
        value,
        "fail" if margin > 1 else "pass",
        margin=margin,
        element_margin=margins[0],
        rms_margin=rms,
        bias_margin=bias,
        elements=expected.size,
        worst=tuple(int(i) for i in worst),
        expected=float(expected[worst]),
        found=float(found[worst]),
        bound=float(bound[worst]),
        max_error=float(np.max(np.abs(error))),
        rmse=float(np.sqrt(np.mean(error**2))),
        reason=reason,
    )


def failed(value: str, reason: str, **where: Any) -> Comparison:
    """A value that cannot be compared at all, which is a failure."""
    return Comparison(value, "fail", margin=math.inf, reason=reason, **where)


@dataclass(frozen=True)
class Spread:
    """Standard deviations of honest errors, estimated from probes.

    Attributes:
        sigma: of each element.
        freedom: degrees of freedom of that estimate, those of the prior among them.
        prior, typical: degrees of freedom and variance of the prior; infinite freedom where all elements are alike.
        total: sum of the probes' squares at each element.
        factor: by which the probes' mean square may be too small as a whole.
        floor: variance that every element has besides.
    """

    sigma: Any
    freedom: float
    prior: float = math.inf
    typical: float = 0.0
    total: Any = 0.0
    factor: float = 1.0
    floor: Any = 0.0

    def units(self, deviations: Sequence[Any]) -> list[Any]:
        """Each probe's deviation over what the others say of sigma.

        A probe that took part in its own yardstick would seem smaller than a candidate whose errors are as large.
        """
        if math.isinf(self.prior) or len(deviations) < 2:
            return [deviation / self.sigma for deviation in deviations]
        weight = self.prior + len(deviations) - 1
        found = []
        for deviation in deviations:
            others = (self.prior * self.typical + np.maximum(self.total - np.square(deviation), 0.0)) / weight
            sigma = np.sqrt(np.where(self.total > 0, others, 0.0) * self.factor + self.floor)
            found.append(deviation / sigma)
        return found


def spread(deviations: Sequence[Any], expected: Any, precision: Precision) -> Spread:
    """The standard deviation of each element, moderated."""
    from scipy import special, stats

    count = len(deviations)
    squares = [np.square(np.asarray(deviation, np.float64)) for deviation in deviations]
    total = sum(squares[1:], squares[0])
    variance = total / count
    floor = (
        max(smallest_step(precision.storage), 1e-140) ** 2 + (1e-16 * np.abs(expected)) ** 2
    )  # the oracle's own rounding
    some = variance > 0
    if not np.any(some):
        return Spread(np.sqrt(floor), math.inf)
    logs = np.log(variance[some])
    centre = float(np.mean(logs)) - float(special.digamma(count / 2)) + math.log(count / 2)
    excess = float(np.var(logs)) - float(special.polygamma(1, count / 2)) if logs.size > 1 else 0.0
    if excess > 0:
        prior = 2 * inverse_trigamma(excess)
        typical = math.exp(centre + float(special.digamma(prior / 2)) - math.log(prior / 2))
    else:
        prior, typical = math.inf, math.exp(centre)
    if math.isinf(prior):
        moderated = np.where(some, typical, 0.0)
    else:
        moderated = np.where(some, (prior * typical + total) / (prior + count), 0.0)
    whole = [float(np.mean(square[some] / moderated[some])) for square in squares]
    together = freedom_of(whole)
    factor = max(count * together / float(stats.chi2.ppf(DOUBT, count * together)), 1.0)
    return Spread(np.sqrt(moderated * factor + floor), prior + count, prior, typical, total, factor, floor)


def freedom_of(mean_squares: Sequence[float]) -> float:
    """Degrees of freedom of the mean squares of whole probes: a lower confidence limit from their spread."""
    from scipy import stats

    count = len(mean_squares)
    mean = sum(mean_squares) / count
    if count < 2 or mean == 0:
        return 1.0
    variance = sum((each - mean) ** 2 for each in mean_squares) / (count - 1)
    upper = variance * (count - 1) / float(stats.chi2.ppf(0.05, count - 1))
    return float(np.clip(2 * mean**2 / upper, 1.0, 1e6)) if upper > 0 else 1e6


def collective(error: Any, deviations: Sequence[Any], expected: Any) -> tuple[float, float]:
    """Margins of the rms and the bias test, from errors, deviations and expected values in units of sigma."""
    from scipy import stats

    count = len(deviations)
    squares = [float(np.mean(deviation**2)) for deviation in deviations]
    typical, own = sum(squares) / count, float(np.mean(error**2))
    if typical == 0:
        return (0.0, 0.0) if own == 0 else (math.inf, math.inf)
    freedom = freedom_of(squares)
    ceiling = typical * float(stats.f.isf(CHANCE, min(freedom, error.size), count * freedom))
    directions = (np.ones_like(expected), expected / max(float(np.sqrt(np.mean(expected**2))), 1e-300))
    leans = [lean(error, deviations, direction) for direction in directions]
    return math.sqrt(own / ceiling), max(leans)


def lean(error: Any, deviations: Sequence[Any], direction: Any) -> float:
    """Margin of the mean product of errors with a direction, by a t test with that of each probe."""
    count = len(deviations)
    own = abs(float(np.mean(error * direction)))
    typical = math.sqrt(sum(float(np.mean(deviation * direction)) ** 2 for deviation in deviations) / count)
    if typical == 0:
        return 0.0 if own == 0 else math.inf
    return own / (typical * student(count, CHANCE))


def student(freedom: float, chance: float) -> float:
    """Two-sided quantile of Student's distribution, the normal one's for infinite freedom."""
    from scipy import stats

    return float(stats.norm.isf(chance / 2) if math.isinf(freedom) else stats.t.isf(chance / 2, freedom))


def inverse_trigamma(y: float) -> float:
    """x with trigamma(x) = y, by Newton's method (Smyth 2004, appendix)."""
    from scipy import special

    if y > 1e7:
        return 1 / math.sqrt(y)
    if y < 1e-6:
        return 1 / y
    x = 0.5 + 1 / y
    for _ in range(50):
        slope = float(special.polygamma(1, x))
        step = slope * (1 - slope / y) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x


def vacuous(bound: Any, expected: Any) -> bool:
    """Whether the bounds allow as much as the value varies at all."""
    variation = float(np.max(expected) - np.min(expected)) if expected.size > 1 else float(np.max(np.abs(expected)))
    return float(np.median(bound)) > max(variation, float(np.max(np.abs(expected))) * 1e-3, 1e-300)


def scatter(found: Any, expected: Any, deviations: Sequence[Any], precision: Precision) -> Scatter:
    """Magnitude, error and bound of some elements, evenly taken."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or expected.size == 0 or not np.all(np.isfinite(expected)):
        return Scatter()
    scale = spread(deviations, expected, precision)
    bound = np.ravel(student(scale.freedom, CHANCE / expected.size) * scale.sigma)
    step = max(1, expected.size // DRAWN)
    error = np.abs(np.ravel(found - expected))[::step]
    return Scatter(
        tuple(np.abs(np.ravel(expected))[::step].tolist()), tuple(error.tolist()), tuple(bound[::step].tolist())
    )
