"""The Gauss error function for array libraries that have none, from functions of the array API standard alone.

    erf(x) = 2/sqrt(pi) * integral of exp(-t^2) dt from 0 to x

With a = |x|, each range has its own polynomial p, evaluated by Horner's rule:

    a < 0.75            x + x p(x^2)
    0.75 <= a < 1.25    0.84375 + p(a - 1)
    1.25 <= a           1 - exp(-a^2) p(z),    z = (a - 1.25)/(a + 3)

Accuracy: the greatest error measured on NumPy is 0.87 ULP in float64, over 1e9 points, and 0.86 ULP in float32, over
every number of the format. In each range the last addition makes half an ULP of it: one of its terms is exact, and the
other's error is small because the ranges are chosen so that the term is. (jax.jit adds 0.84375 to the constant of p
beforehand and reaches 0.93 ULP.) exp enters only where erf > 0.92, with erfc < 0.08 as its weight, so each ULP that a
library's exp is wrong by costs erf at most 0.1 ULP. For the same reason a^2 needs no splitting into a high and a low
part before exp: its rounding costs erf at most 0.1 ULP, just above a = sqrt(2).

Source: the definition above. `docs/derive_erf.py` fits the coefficients to it in 40 digits and prints these tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coatref.errors import DtypeError

Array = Any
Namespace = Any

# fmt: off
_SMALL64 = (  # error of the fit: 8e-05 ULP
    0.1283791670955126, -0.37612638903183754, 0.11283791670955087, -0.02686617064511852,
    0.005223977625223246, -0.0008548327001223344, 0.00012055331549810692, -1.4925589533723744e-05,
    1.6460386405915453e-06, -1.633327165692877e-07, 1.4414195873086809e-08, -9.503863762341979e-10,
)
_MID64 = (  # error of the fit: 0.003 ULP
    -0.0010492070502851306, 0.41510749742059466, -0.4151074974205947, 0.13836916580687564,
    0.06918458290344247, -0.06918458290529159, 0.0046123055256122435, 0.015154718301657072,
    -0.004777030643574874, -0.0018851939306275187, 0.0012262848232067588, 8.564088920911113e-05,
    -0.00020000293033887626, 1.7460510044918012e-05, 2.3191427654688286e-05,
)
_TAIL64 = (  # error of the fit: 0.008 ULP
    0.3678229164523611, -0.8874929728495957, 1.0415020373085642, -0.8845401730265615,
    0.5156739678713982, -0.16895712911427652, -0.003590179981707054, 0.02654133442793914,
    -0.003956216101775762, -0.004744596898709058, 0.001358055480205372, 0.00046337413410799745,
)
_SMALL32 = (  # error of the fit: 0.03 ULP
    0.12837917, -0.3761262, 0.112833895, -0.026835276, 0.005115657, -0.0006758788,
)
_MID32 = (  # error of the fit: 0.01 ULP
    -0.0010492065, 0.4151075, -0.4151078, 0.13836895, 0.069207214, -0.069172226, 0.004028483, 0.014890782,
)
_TAIL32 = (  # error of the fit: 0.0008 ULP
    0.36782292, -0.8874929, 1.0414969, -0.8844186, 0.5145452, -0.16541652,
)
# fmt: on


def erf(x: Array, xp: Namespace) -> Array:
    """Gauss error function, erf(x) = 2/sqrt(pi) * integral of exp(-t^2) dt from 0 to x, element by element.

    Every step is in x's own data type; the sign of zero, infinities and NaN are kept, and erf(-x) is exactly -erf(x).
    The error is below 1 ULP in either type where the library's exp is right to 2 ULP. A library that takes subnormal
    numbers for zero does so here too. A library's derivative of it has an absolute error of a few ULP of 1.

    Args:
        x: float32 or float64, of any shape.
        xp: namespace of x's library, with the names of the array API standard, 2023.12 or later.

    Returns:
        An array of x's shape, dtype and device, with values in [-1, 1].

    Raises:
        DtypeError: x is neither float32 nor float64.

    >>> import numpy as np
    >>> erf(np.asarray([-np.inf, -0.5, 0.0, 2.0]), np).tolist()
    [-1.0, -0.5204998778130465, 0.0, 0.9953222650189527]
    """
    if not xp.isdtype(x.dtype, "real floating") or (bits := xp.finfo(x.dtype).bits) not in (32, 64):
        raise DtypeError(f"erf takes float32 or float64, not {x.dtype}; convert x first.")
    small, mid, tail = (_SMALL64, _MID64, _TAIL64) if bits == 64 else (_SMALL32, _MID32, _TAIL32)
    one = 6.0 if bits == 64 else 4.0  # from here on erf rounds to 1

    # Each range is computed everywhere, on clipped arguments, so that nothing overflows; clip keeps NaN and -0. Bounds
    # lie outside the ranges, because a library's derivative of clip at a bound may be half the true one.
    s = 16.0 * xp.clip(x, -1.0, 1.0)  # x + x p may be normal where x p is subnormal, which some libraries take for zero
    near = (s + s * _polynomial(small, (s * s) / 256.0)) / 16.0

    a = xp.abs(x)
    middle = 0.84375 + _polynomial(mid, xp.clip(a, 0.5, 1.5) - 1.0)  # 27/32; the difference is exact

    b = xp.clip(a, 1.0, one)
    far = 1.0 - xp.exp(-b * b) * _polynomial(tail, (b - 1.25) / (b + 3.0))

    return xp.where(a < 0.75, near, xp.copysign(xp.where(a < 1.25, middle, far), x))


def _polynomial(coefficients: Sequence[float], t: Array) -> Array:
    """Sum of coefficients[i] t^i, by Horner's rule, in t's data type."""
    *rest, total = coefficients
    for c in reversed(rest):
        total = total * t + c
    return total
