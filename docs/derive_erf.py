"""Fit and print the coefficient tables of `coatref/special.py`; run as ``python docs/derive_erf.py``.

Nothing is taken from another program: every coefficient is fitted here, in 40 digits, to the definition
erf(x) = 2/sqrt(pi) * integral of exp(-t^2) from 0 to x. With a = |x| there are three ranges and three fits:

    small  0 <= a < 0.75       p(t) = erf(a)/a - 1           t = a^2, so the series of erf becomes a short polynomial
    mid    0.75 <= a < 1.25    p(u) = erf(a) - 0.84375       u = a - 1, exact; 0.84375 = 27/32 is close to erf(1)
    tail   1.25 <= a < TOP     p(z) = erfc(a) * exp(a^2)     z = (a - 1.25)/(a + 3), which spreads the right end

TOP is where erf(a) has rounded to 1: erfc(4) < 2^-25 for float32, erfc(6) < 2^-54 for float64.

Each polynomial is the weighted least-squares fit at three Chebyshev nodes for each coefficient, near enough to minimax.
Small and mid have weight 1. The tail is multiplied by exp(-a^2) and taken from 1, so only the absolute error of that
product counts and its weight is exp(-a^2): at a = 4 erfc is 1.5e-8, and a fit good to 9 digits gives all 16 of erf.
The degrees are the least that keep the error of each fit, printed as a comment, under 3% of an ULP of erf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mpmath import mp, mpf

MIDDLE, SMALL_END, MID_END, POLE = mpf(27) / 32, mpf(3) / 4, mpf(5) / 4, mpf(3)
NUMBERS: dict[str, Any] = {  # name of the dtype: its type, TOP, degrees of small, mid and tail, and units in 1
    "float64": (np.float64, 6, (11, 14, 11), mpf(2) ** 53),
    "float32": (np.float32, 4, (5, 7, 5), mpf(2) ** 24),
}


def fit(
    f: Callable[[Any], Any], weight: Callable[[Any], Any], low: Any, high: Any, degree: int
) -> tuple[list[Any], Any]:
    """Coefficients, constant first, of the polynomial nearest to f on [low, high], and its greatest weighted error."""
    count = 3 * (degree + 1)
    middle, half = (low + high) / 2, (high - low) / 2
    nodes = [middle + half * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]
    rows = mp.matrix([[weight(v) * v**j for j in range(degree + 1)] for v in nodes])
    found, _ = mp.qr_solve(rows, mp.matrix([weight(v) * f(v) for v in nodes]))
    coefficients = list(found)
    grid = [middle + half * mpf(i) / 200 for i in range(-200, 201)]
    return coefficients, max(abs(weight(v) * (mp.polyval(coefficients[::-1], v) - f(v))) for v in grid)


def tables(name: str) -> list[tuple[str, list[float], float]]:
    """(range, coefficients as numbers of that dtype, error of the fit in ULP of a number in [1/2, 1)) of each range."""
    kind, top, degrees, units = NUMBERS[name]

    def small(t: Any) -> Any:
        return mp.erf(mp.sqrt(t)) / mp.sqrt(t) - 1 if t else 2 / mp.sqrt(mp.pi) - 1

    def a_of(z: Any) -> Any:
        return (MID_END + POLE * z) / (1 - z)

    with mp.workdps(40):
        fits = {
            "SMALL": fit(small, lambda t: 1, mpf(0), SMALL_END**2, degrees[0]),
            "MID": fit(lambda u: mp.erf(1 + u) - MIDDLE, lambda u: 1, SMALL_END - 1, MID_END - 1, degrees[1]),
            "TAIL": fit(
                lambda z: mp.erfc(a_of(z)) * mp.exp(a_of(z) ** 2),
                lambda z: mp.exp(-(a_of(z) ** 2)),
                mpf(0),
                (top - MID_END) / (top + POLE),
                degrees[2],
            ),
        }
        return [(part, [kind(mp.nstr(c, 25)) for c in found], float(e * units)) for part, (found, e) in fits.items()]


def main() -> None:
    for name in NUMBERS:
        for part, coefficients, error in tables(name):
            print(f"_{part}{name[-2:]} = (  # error of the fit: {error:.1g} ULP")
            for i in range(0, len(coefficients), 4 if name == "float64" else 8):
                row = coefficients[i : i + (4 if name == "float64" else 8)]
                print("    " + ", ".join(str(c) for c in row) + ",")
            print(")")


if __name__ == "__main__":
    main()
