"""Where NumPy's time goes, stage by stage, through a tap that looks at the clock.

    python -m benchmarks.breakdown '{"threads": 2, "model": ...}'

runs in a process with that many threads and prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

import coatref
from benchmarks import weights
from benchmarks.cases import Case
from benchmarks.environment import pin
from coatref import Params, model
from coatref.tap import Tap

RUNS = 11


def main() -> None:
    """Measure one network, one image, in float32."""
    task = json.loads(sys.argv[1])
    case = Case(model=task["model"], threads=task["threads"])
    pin(case)
    print(json.dumps(breakdown(weights.parameters(case), weights.images(case))))


def breakdown(params: Params, x: np.ndarray) -> dict[str, Any]:
    """Milliseconds of each block and stage: medians of several runs; and bytes of all values of the definition's trace."""
    form, fast = ("numpy-prepared", coatref.prepare(params)) if hasattr(coatref, "prepare") else ("numpy-fast", params)
    runs = [spans(fast, x) for _ in range(RUNS + 2)][2:]
    blocks = {name: round(1000 * float(np.median([run[name] for run in runs])), 3) for name in runs[0]}
    return {"form": form, "blocks_ms": blocks, "stages_ms": by_stage(blocks), "bytes": by_stage(written(params, x))}


def spans(params: Any, x: np.ndarray) -> dict[str, float]:
    """Seconds of the stem, each block and the head in one run."""
    wanted = ["s0", *(block.name for block in params.spec.blocks()), "logits"]
    stamps: dict[str, float] = {}

    def look(name: str, value: Any) -> Any:
        stamps[name] = time.perf_counter()
        return value

    before = time.perf_counter()
    run_with_tap(params, x, look)
    found = {}
    for name in wanted:
        found[name], before = stamps[name] - before, stamps[name]
    return found


def run_with_tap(params: Any, x: np.ndarray, tap: Tap) -> None:
    """A forward pass of prepared (or plain) parameters that tells a tap of its stages, blocks and logits."""
    from coatref.primitives import primitives_for
    from coatref.registry import library_of

    if isinstance(params, Params):
        model.run(params, x, primitives_for(x), tap)
        return
    from coatref.backends import network
    from coatref.backends.fused import fused_for

    library = library_of(x)

    def compute(part: Any, pool: Any = None) -> Any:
        return network.run(params, part, fused_for(part, pool), tap)

    if library.divide is None:
        compute(x)
    else:
        library.divide(compute, x, None)


def written(params: Params, x: np.ndarray) -> dict[str, int]:
    """Bytes of every value that the definition computes in each block; a stage's name repeats its last block's."""
    stages = {f"s{number}" for number in range(1, len(params.spec.stages) + 1)}
    found: dict[str, int] = {}
    for name, value in coatref.trace(params, x).items():
        if name not in stages and name != "probabilities":
            found[name] = value.nbytes
    return found


def by_stage(values: dict[str, Any]) -> dict[str, Any]:
    """Sums over stages: "s1.0.expand" belongs to "s1", and what is no stage's to the head."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        stage = name.partition(".")[0]
        stage = stage if stage[0] == "s" and stage[1:].isdigit() else "head"
        found[stage] = round(found.get(stage, 0) + value, 3)
    return found


if __name__ == "__main__":
    main()
