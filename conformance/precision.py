"""What a candidate declares of its arithmetic: the type it stores values in, and the type it adds up in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref.errors import InputError

# name -> bits of the significand (with the leading one), smallest normal exponent, largest finite value
FORMATS = {
    "float64": (53, -1022, float(np.finfo(np.float64).max)),
    "float32": (24, -126, float(np.finfo(np.float32).max)),
    "float16": (11, -14, 65504.0),
    "bfloat16": (8, -126, float(np.finfo(np.float32).max)),
}


def roundoff(dtype: str) -> float:
    """The unit roundoff u of a type: fl(a op b) = (a op b)(1 + d) with |d| <= u in its normal range."""
    return 2.0 ** -FORMATS[dtype][0]


def smallest_step(dtype: str) -> float:
    """What an underflow may lose: half the subnormal spacing of float16; elsewhere the smallest normal number.

    Libraries flush float32, bfloat16 and float64 subnormals to zero; none is known to flush those of float16.
    """
    bits, exponent, _ = FORMATS[dtype]
    return 2.0 ** (exponent - bits) if dtype == "float16" else 2.0**exponent


@dataclass(frozen=True)
class Precision:
    """The declared precision policy.

    Attributes:
        storage: the type that images, parameters and every intermediate value are rounded to.
        accumulate: the type of sums, and of everything inside one primitive.
    """

    storage: str = "float32"
    accumulate: str = "float32"

    def __post_init__(self) -> None:
        """Refuse unknown types, and sums in a narrower type than they are stored in."""
        for what, dtype in (("storage", self.storage), ("accumulate", self.accumulate)):
            if dtype not in FORMATS:
                raise InputError(f"Precision.{what} must be one of {', '.join(FORMATS)}, got {dtype!r:.80}.")
        if roundoff(self.accumulate) > roundoff(self.storage):
            raise InputError(
                f"Precision: values stored in {self.storage} cannot be accumulated in the narrower {self.accumulate}; "
                f"declare at least {self.storage} for accumulate."
            )

    def __str__(self) -> str:
        if self.storage == self.accumulate:
            return self.storage
        return f"{self.storage} accumulated in {self.accumulate}"


def declared(dtype: str, accumulate: str | None = None) -> Precision:
    """The policy for a storage type; without `accumulate`, half types are accumulated in float32 as libraries do."""
    if accumulate is None:
        accumulate = "float32" if dtype in ("float16", "bfloat16") else dtype
    return Precision(dtype, accumulate)


def rounded(values: Any, dtype: str) -> np.ndarray:
    """Float64 values rounded to the nearest number of a type (ties to even), as float64.

    Overflow gives infinities, and subnormal numbers are kept.
    """
    values = np.asarray(values, np.float64)
    if dtype == "float64":
        return np.asarray(values)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype != "bfloat16":
            return np.asarray(values.astype(dtype), np.float64)
        bits, exponent, _ = FORMATS[dtype]
        _, power = np.frexp(values)
        quantum = np.ldexp(1.0, np.maximum(power, exponent + 1) - bits)  # spacing of bfloat16 at each value
        kept = np.where(np.isfinite(values), np.rint(values / quantum) * quantum, values)
        return np.asarray(kept.astype(np.float32), np.float64)  # beyond the largest float32: infinity


def as_stored(values: Any, dtype: str) -> np.ndarray:
    """Values as the array that a candidate is handed: NumPy's type of that name; bfloat16, which NumPy lacks, as
    float32 numbers that bfloat16 holds exactly.
    """
    return np.array(rounded(values, dtype), numpy_type(dtype))


def numpy_type(dtype: str) -> np.dtype[Any]:
    """The NumPy type that holds all numbers of a type."""
    return np.dtype("float32" if dtype == "bfloat16" else dtype)
