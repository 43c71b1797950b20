"""Fit and print the coefficient tables of `backends/numpy_passes.py`; run as ``python docs/derive_gelu.py``.

Both are odd functions f with f(x) = x P(x^2), fitted over 0 < x <= END so that the largest weighted error is least:

    MINUS_LOG_ODDS32   f = -ln(Phi(x) / Phi(-x))   x Phi(x) = x / (1 + exp(f(x))); an error e of f moves Phi by Phi Phi(-x) e
    ARTANH_ERF32       f = artanh(erf(x))          erf(x) = tanh(f(x)); an error e of f moves erf by (1 - erf^2) e

so the weights are x Phi(x) Phi(-x), which makes the error one of x Phi(x) in units of x, and x (1 - erf^2) / erf, which
makes it relative. Beyond END nothing is lost in float32: Phi and erf have reached their ends there to within 2^-24, and the
leading coefficients have the sign that drives exp and tanh on to their limits.

The fit is a linear program: the least t with |weight (P - f/x)| <= t at 800 points, denser towards END.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mpmath import mp, mpf
from scipy.optimize import linprog

UNIT = 2.0**-24
DEGREE = 6  # of P; one less makes the error eight times as large for GELU and five times for erf
DIGITS = 40


def phi(x: Any) -> Any:
    """The normal distribution function."""
    return mp.erfc(-x / mp.sqrt(2)) / 2


Function = Callable[[Any], Any]
TABLES: dict[str, tuple[Function, Function, float]] = {  # f(x)/x, its weight, END
    "MINUS_LOG_ODDS32": (lambda x: -mp.log(phi(x) / phi(-x)) / x, lambda x: x * phi(x) * phi(-x), 6.0),
    "ARTANH_ERF32": (lambda x: mp.atanh(mp.erf(x)) / x, lambda x: x * (1 - mp.erf(x) ** 2) / mp.erf(x), 4.0),
}


def points(end: float, count: int) -> list[float]:
    """Places in (0, end], denser towards `end`, where the functions grow fastest."""
    return [float(end * np.cos(angle)) for angle in np.linspace(0.0, np.pi / 2, count, endpoint=False)]


def fit(name: str) -> list[float]:
    """The coefficients, constant first."""
    f, weight, end = TABLES[name]
    with mp.workdps(DIGITS):
        xs = points(end, 800)
        values = np.array([float(f(mpf(x))) for x in xs])
        weights = np.array([float(weight(mpf(x))) for x in xs]) / UNIT
    u = np.square(xs)
    powers = np.stack([(u / u.max()) ** k for k in range(DEGREE + 1)], axis=1) * weights[:, None]
    wanted, least = values * weights, np.ones((len(xs), 1))
    found = linprog(
        [*(0.0 for _ in range(DEGREE + 1)), 1.0],
        A_ub=np.block([[powers, -least], [-powers, -least]]),
        b_ub=np.concatenate([wanted, -wanted]),
        bounds=[(None, None)] * (DEGREE + 2),
        method="highs",
    )
    return [float(c / u.max() ** k) for k, c in enumerate(found.x[:-1])]


def error(name: str, coefficients: Any) -> float:
    """The largest weighted error of a table between the points of the fit, in units of 2^-24."""
    f, weight, end = TABLES[name]
    with mp.workdps(DIGITS):
        exact = [mpf(c) for c in coefficients]
        return max(
            float(abs(weight(mpf(x)) * (mp.polyval(exact[::-1], mpf(x) ** 2) - f(mpf(x))))) / UNIT
            for x in points(end, 1999)
        )


def main() -> None:
    for name in TABLES:
        coefficients = fit(name)
        print(f"{name} = (  # {error(name, coefficients):.2f} units of 2^-24")
        print("    " + ", ".join(repr(c) for c in coefficients) + ",")
        print(")")


if __name__ == "__main__":
    main()
