"""Honest implementations in JAX: the definition, operation by operation and compiled as a whole."""

from __future__ import annotations

import contextlib
import functools
import importlib
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

    return tuple(
        variant(
            f"{front}jax {'jit' if jit else 'eager'}",
            precision,
            functools.partial(compute, jit=jit),
            packages=("jax", "jaxlib"),
            slow=True,  # eager JAX compiles each operation for each shape
        )
        for jit in (False, True)
    )


def wide_types(wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """JAX with 64-bit types, or without, for as long as the context lasts."""
    import jax

    enable: Any = getattr(jax, "enable_x64", None)
    if enable is None:  # an older JAX
        enable = importlib.import_module("jax.experimental").enable_x64
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
