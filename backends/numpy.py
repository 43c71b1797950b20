"""NumPy: arrays on the CPU; the error function comes from SciPy."""

from __future__ import annotations

import functools
from typing import Any

from coatref.registry import Library


@functools.cache
def namespace() -> Any:
    """NumPy as array-api-compat wraps it."""
    import array_api_compat.numpy

    return array_api_compat.numpy


def erf(x: Any) -> Any:
    """SciPy's error function; float16 is computed in float32 and rounded once, since SciPy has no loop for it."""
    import scipy.special

    return scipy.special.erf(x).astype(x.dtype, copy=False)


def to_numpy(x: Any) -> Any:
    """The array itself."""
    return x


LIBRARY = Library(
    name="numpy",
    install="numpy",
    namespace=namespace,
    to_numpy=to_numpy,
    dtypes=("float16", "float32", "float64"),
    erf=erf,
    device=lambda x: "cpu",
    refused=("MaskedArray", "matrix"),
)
