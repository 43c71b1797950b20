"""What the machine can do at best: rates of products, big ones and the networks' own, and the rate of copying.

    python -m benchmarks.limits '{"threads": 2, "models": [...]}'

runs in a process with that many threads and prints JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.environment import pin
from benchmarks.products import Layer, Shape, stages
from benchmarks.weights import spec_of

BIG, RUNS, COPIED = 2048, 7, 2**28  # length of a square product; runs, of which the best counts; bytes


def main() -> None:
    """Measure everything for one number of threads."""
    task = json.loads(sys.argv[1])
    case = Case(model=task["models"][0], threads=task["threads"])
    pin(case)
    print(json.dumps(limits(case.threads, task["models"])))


def limits(threads: int, models: list[str]) -> dict[str, Any]:
    """Rates in GF/s (a multiply-add counts as two) and GB/s, and the milliseconds of every stage's products alone."""
    found: dict[str, Any] = {"copy_gb_s": copy_rate(threads)}
    forms = {"numpy": numpy_product} | ({"torch": torch_product} if torch_ready(threads) else {})
    for library, product in forms.items():
        for dtype in ("float32", "float64"):
            seconds = best(product((1, BIG, BIG, BIG), dtype))
            found[f"{library}_{dtype}_gf_s"] = round(2e-9 * BIG**3 / seconds, 1)
    for model in models:
        spec = spec_of(Case(model))
        parts = stages(spec, *spec.image_size)
        found[model] = {
            library: {stage: round(1000 * seconds_of(layer, product), 3) for stage, layer in parts.items()}
            for library, product in forms.items()
        }
        found[model]["multiply_adds"] = {stage: layer.multiply_adds for stage, layer in parts.items()}
        found[model]["depthwise"] = {stage: layer.depthwise for stage, layer in parts.items()}
        found[model]["total_multiply_adds"] = spec.multiply_adds(*spec.image_size)
    return found


def seconds_of(layer: Layer, product: Callable[[Shape, str], Callable[[], Any]]) -> float:
    """Seconds of a stage's products in float32, each measured alone with its operands in cache as far as they fit."""
    return math.fsum(count * best(product(shape, "float32")) for shape, count in layer.products.items())


def numpy_product(shape: Shape, dtype: str) -> Callable[[], Any]:
    """A product of NumPy's, into an array that is there already."""
    left, right = operands(shape, dtype)
    out = left @ right
    return lambda: np.matmul(left, right, out=out)


def torch_product(shape: Shape, dtype: str) -> Callable[[], Any]:
    """A product of torch's."""
    import torch

    left, right = (torch.from_numpy(array) for array in operands(shape, dtype))
    out = left @ right
    return lambda: torch.matmul(left, right, out=out)


def operands(shape: Shape, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Two random arrays; a single product is of two axes, since a third costs NumPy the BLAS."""
    count, rows, inner, columns = shape
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((count, *axes)).astype(dtype) for axes in ((rows, inner), (inner, columns)))
    return (left[0], right[0]) if count == 1 else (left, right)


def torch_ready(threads: int) -> bool:
    """Whether torch is there; sets its threads."""
    try:
        import torch
    except ImportError:
        return False
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return True


def copy_rate(threads: int) -> float:
    """GB/s of copying an array far larger than the caches, counting bytes read and written, over all threads."""
    source = np.ones(COPIED // 8)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        seconds = best(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))
    return round(2e-9 * COPIED / seconds, 1)


def best(call: Callable[[], Any]) -> float:
    """Seconds of a call: the best of several after a first, since a limit is asked for."""
    call()
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
