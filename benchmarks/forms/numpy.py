"""coatref on NumPy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import coatref
from benchmarks.cases import Case
from benchmarks.forms import Runner
from benchmarks.forms.ours import prepare
from coatref import Params
from coatref.backends import numpy_passes


def runner(params: Any, images: np.ndarray, **options: Any) -> Runner:
    """`coatref.forward` on NumPy's arrays."""
    return Runner(lambda: coatref.forward(params, images, **options), lambda logits: logits.astype("float64"))


def definition(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """The definition alone."""
    return runner(weights, images, backend="definition")


def fast(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """The library's fast primitives on the parameters as they are."""
    return runner(weights, images)


def prepared(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """Parameters that were prepared once."""
    return runner(prepare(weights), images)


def prepared_alone(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """The same as where numba is not installed."""
    sys.modules["numba"] = None  # type: ignore[assignment]
    numpy_passes.no_loops.cache_clear()
    numpy_passes.loops.cache_clear()
    return prepared(case, weights, images)


def planted_mistake(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """The definition with one kernel too large by 1 %, which shows that a wrong form is not timed."""
    name = "s3.0.attn.v.w"
    changed = weights.flatten()[name] * np.asarray(1.01, case.storage)
    return runner(weights.replace({name: changed}), images, backend="definition")
