"""The one set of weights and images that every form gets, and the logits that they must give."""

from __future__ import annotations

import math

import numpy as np

import coatref
from benchmarks.cases import Case
from coatref import Params, Spec

DISTINCT_IMAGES = 8  # a larger batch repeats them: no form can tell, and the reference need not be computed anew

# How far a form's logits may be from the float64 definition, in units of the type's epsilon relative to the largest logit.
# Honest forms were seen at 1 to 6 (docs/performance.md lists each); a change of 1 % in one kernel of the stem is at 7000.
LARGEST_ERROR = 32
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10}


def spec_of(case: Case) -> Spec:
    """The network, with relative-bias tables made for the case's image size."""
    return coatref.spec(f"timm/{case.model}").replace(image_size=(case.size, case.size))


def parameters(case: Case, dtype: str | None = None) -> Params:
    """Weights of NumPy, rounded to the case's type, in which no two channels are alike; then cast to `dtype`."""
    rounded = coatref.init(spec_of(case), seed=0, dtype=case.storage, scheme="distinct")
    return rounded if dtype is None else rounded.to(dtype=dtype)


def images(case: Case) -> np.ndarray:
    """A batch of NumPy, rounded to the case's type. Shape: (N, H, W, 3)."""
    shape = (DISTINCT_IMAGES, case.size, case.size, 3)
    drawn = np.random.default_rng(1).standard_normal(shape, np.float32)
    return np.resize(drawn[: case.batch], (case.batch, *shape[1:])).astype(case.storage)


def reference(case: Case) -> np.ndarray:
    """The logits of the definition in float64, one image at a time. Shape: (at most `DISTINCT_IMAGES`, classes)."""
    params, batch = parameters(case, "float64"), images(case)[:DISTINCT_IMAGES].astype("float64")
    return np.concatenate([coatref.forward(params, image[None], backend="definition") for image in batch])


def error_of(logits: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of any image from the reference, relative to the largest logit of the reference."""
    if logits.shape[1:] != wanted.shape[1:] or not np.isfinite(logits).all():
        return math.inf
    return float(np.abs(logits - np.resize(wanted, logits.shape)).max() / np.abs(wanted).max())


def limit_of(case: Case) -> float:
    """The largest error with which a form is still timed."""
    return LARGEST_ERROR * EPSILON[case.dtype]
