"""coatref on JAX, jitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import coatref
from benchmarks.cases import Case
from benchmarks.forms import Runner
from benchmarks.forms.ours import prepare
from coatref import Params


def on_jax(case: Case, weights: Params) -> Params:
    """The weights as JAX's arrays; products are exact in float32 (JAX's default on a GPU may be TF32)."""
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", "default" if case.dtype == "tf32" else "highest")
    return weights.to(xp="jax")


def runner(case: Case, params: Any, images: np.ndarray, forward: Callable[[Any, Any], Any]) -> Runner:
    """A jitted function that returns when its result is there."""
    x, function = jax.device_put(images), jax.jit(forward)
    device = jax.devices()[0]

    def run() -> Any:
        return function(params, x).block_until_ready()

    def peak_memory() -> dict[str, int]:
        before = (
            device.memory_stats()
        )  # the peak cannot be set back, but a first run allocates no more than a later one
        run()
        return {
            "loaded": before["bytes_in_use"],
            "later": device.memory_stats()["peak_bytes_in_use"] - before["bytes_in_use"],
        }

    return Runner(run, lambda logits: np.asarray(logits, "float64"), peak_memory if case.device == "cuda" else None)


def definition(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """The definition under jit."""
    params = on_jax(case, weights)
    return runner(case, params, images, lambda p, x: coatref.forward(p, x, backend="definition"))


def prepared(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """Parameters that were prepared once, under jit."""
    return runner(case, prepare(on_jax(case, weights)), images, coatref.forward)
