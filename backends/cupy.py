"""CuPy: NumPy's interface on CUDA devices."""

from __future__ import annotations

import functools
from typing import Any

from coatref.registry import Library


@functools.cache
def namespace() -> Any:
    """CuPy as array-api-compat wraps it."""
    import array_api_compat.cupy

    return array_api_compat.cupy


def erf(x: Any) -> Any:
    """`cupyx.scipy.special.erf`."""
    import cupyx.scipy.special

    return cupyx.scipy.special.erf(x)


def to_numpy(x: Any) -> Any:
    """A copy on the host."""
    return x.get()


def devices() -> tuple[str, ...]:
    """Every CUDA device."""
    import cupy

    return tuple(f"cuda:{index}" for index in range(cupy.cuda.runtime.getDeviceCount()))


LIBRARY = Library(
    name="cupy",
    install="'coatref[cupy]'",
    namespace=namespace,
    to_numpy=to_numpy,
    dtypes=("float16", "float32", "float64"),
    erf=erf,
    device=lambda x: x.device,
    devices=devices,
)
