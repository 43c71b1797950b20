"""From times to the figures that are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.forms import BASELINE


def summarised(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles, least and number of the times, in milliseconds."""
    low, median, high = (round(1000 * float(value), 3) for value in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {
        "median_ms": median,
        "quartiles_ms": [low, high],
        "least_ms": round(1000 * min(seconds), 3),
        "runs": len(seconds),
    }


def with_ratios(forms: dict[str, dict[str, Any]], baseline: str = BASELINE) -> dict[str, dict[str, Any]]:
    """The forms of one case, each with its time relative to timm eager's in the same run, where both were timed."""
    base = forms.get(baseline, {}).get("median_ms")
    return {
        name: entry | ({"ratio": round(entry["median_ms"] / base, 3)} if base and "median_ms" in entry else {})
        for name, entry in forms.items()
    }
