"""Honest implementations in JAX: the definition, operation by operation and compiled as a whole."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from coatref.conformance.honest.variant import Variant, outputs, to_numpy, variant
from coatref.conformance.precision import Precision
from coatref.conformance.target import Output
from coatref.params import Params
from coatref.primitives import DEFINITION
from coatref.registry import Array


def jax_variants(precision: Precision, *, traced: bool = False) -> tuple[Variant, ...]:
    """Those that compute in the storage type."""
    dtype = precision.storage
    if precision.accumulate != dtype:
        return ()
    front = f"half: all {dtype}, " if dtype in ("float16", "bfloat16") else ""

    def compute(params: Params, x: np.ndarray, *, jit: bool) -> Output:
        with wide_types(dtype == "float64"):
            import jax.numpy as jnp

            given = params.to(xp="jax", dtype=dtype), jnp.asarray(x, dtype=dtype)
            return to_numpy((jitted(traced) if jit else network(traced))(*given))

    return (
        variant(f"{front}jax eager", precision, functools.partial(compute, jit=False), packages=("jax", "jaxlib")),
        variant(f"{front}jax jit", precision, functools.partial(compute, jit=True), packages=("jax", "jaxlib")),
    )


def wide_types(wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """JAX with 64-bit types, or without, for as long as the context lasts."""
    import jax

    enable: Any = getattr(jax, "enable_x64", None)
    if enable is None:  # before JAX 0.8
        from jax.experimental import enable_x64 as enable
    context: contextlib.AbstractContextManager[Any] = enable(wanted)
    return context


def network(traced: bool) -> Callable[[Params, Array], dict[str, Array]]:
    """The definition as a function of parameters and images."""
    return functools.partial(outputs, forms=DEFINITION, traced=traced)


@functools.cache
def jitted(traced: bool) -> Callable[[Params, Array], dict[str, Array]]:
    """The same, compiled by XLA for every spec and shape that it meets."""
    import jax

    compiled: Callable[[Params, Array], dict[str, Array]] = jax.jit(network(traced))
    return compiled
