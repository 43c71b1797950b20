"""JAX: arrays on any of its devices, eager or inside `jax.jit`."""

from __future__ import annotations

import functools
from typing import Any

from coatref.backends import jax_ops
from coatref.registry import Library


@functools.cache
def namespace() -> Any:
    """`jax.numpy`, which is itself an array-API namespace."""
    import jax.numpy

    return jax.numpy


def erf(x: Any) -> Any:
    """`jax.scipy.special.erf`."""
    import jax.scipy.special

    return jax.scipy.special.erf(x)


def matmul(a: Any, b: Any) -> Any:
    """The product at the precision of its type; JAX's default lets accelerators round the inputs to fewer bits."""
    import jax.numpy

    return jax.numpy.matmul(a, b, precision="highest")


def to_numpy(x: Any) -> Any:
    """A copy on the host; bfloat16, which NumPy lacks, becomes float32 (exactly)."""
    import numpy

    host = numpy.asarray(x)
    return host.astype(numpy.float32) if host.dtype.name == "bfloat16" else host


def device(x: Any) -> Any:
    """The device of a concrete array on one; a traced array has none yet, and one over many devices none in particular."""
    import jax

    return None if isinstance(x, jax.core.Tracer) or len(x.devices()) > 1 else x.device


def devices() -> tuple[str, ...]:
    """All of JAX's devices."""
    import jax

    return tuple(str(each) for each in jax.devices())


def refuse_dtype(dtype: str) -> str | None:
    """JAX without 64-bit types would give float32 silently where float64 is asked for."""
    import jax

    if dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return 'JAX runs without 64-bit types here; call jax.config.update("jax_enable_x64", True) first'
    return None


LIBRARY = Library(
    name="jax",
    install="'coatref[jax]'",
    namespace=namespace,
    to_numpy=to_numpy,
    dtypes=("float16", "bfloat16", "float32", "float64"),
    erf=erf,
    matmul=matmul,
    device=device,
    devices=devices,
    refuse_dtype=refuse_dtype,
    primitives=jax_ops.PRIMITIVES,
)
