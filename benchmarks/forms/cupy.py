"""coatref on CuPy."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

import coatref
from benchmarks.cases import Case
from benchmarks.forms import Runner
from benchmarks.forms.ours import prepare
from coatref import Params


def runner(params: Any, images: np.ndarray, **options: Any) -> Runner:
    """`coatref.forward` on CuPy's arrays, which returns when the GPU has ended."""
    x = cupy.asarray(images)

    def run() -> Any:
        logits = coatref.forward(params, x, **options)
        cupy.cuda.Device().synchronize()
        return logits

    def peak_memory() -> dict[str, int]:
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        loaded = pool.used_bytes()
        run()
        return {"loaded": loaded, "later": pool.total_bytes() - loaded}  # the pool keeps what was the most at one time

    return Runner(run, lambda logits: cupy.asnumpy(logits).astype("float64"), peak_memory)


def definition(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """The definition alone."""
    return runner(weights.to(xp="cupy"), images, backend="definition")


def prepared(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """Parameters that were prepared once."""
    return runner(prepare(weights.to(xp="cupy")), images)
