"""A whole run: the cases of a plan, one after another, and what surrounds them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, rounds, summary, weights
from benchmarks.cases import Case
from benchmarks.crew import Worker, gathered, reference_path
from benchmarks.environment import tuned, worker_environment
from benchmarks.plan import Plan, Step, fitting, unfit


def carried_out(
    plan: Plan, folder: Path, tell: Callable[[str], None], done: Callable[[Case, dict[str, Any]], None]
) -> None:
    """Measure all cases, one after another; `done` gets each as it goes into a file of results."""
    references: dict[tuple[Any, ...], Path] = {}
    for steps in plan.together():
        if time.monotonic() > plan.deadline:
            tell(f"{', '.join(case.key for case, _ in steps)}: left out, the time is over")
            continue
        for case, _ in steps:
            reference_for(case, folder, references)
        workers = started(steps, folder, tell)
        try:
            for case, forms in steps:
                crew = [worker for worker in workers if worker.case == case]
                done(case, measured(case, forms, crew, plan, tell))
        finally:
            for worker in workers:
                worker.dismiss()


def started(steps: Sequence[Step], folder: Path, tell: Callable[[str], None]) -> list[Worker]:
    """The workers of cases that are alive at once."""

    def told_of(worker: Worker) -> None:
        tell(f"{worker.case.key}: {worker.name} {told(worker)}")

    names = [(case, name) for case, forms in steps for name in fitting(case, forms)]
    at_once = 12 if steps[0][0].device == "cuda" else machine.machine()["cores"]
    return gathered(names, folder, at_once, told_of)


def measured(
    case: Case, forms: Sequence[str], workers: Sequence[Worker], plan: Plan, tell: Callable[[str], None]
) -> dict[str, Any]:
    """One case: its forms timed in turn."""

    def round_begins(number: int) -> None:
        tell(f"{case.key}: round {number + 1}")

    found = rounds.measured(workers, plan.rounds, plan.seconds, case.device == "cuda", round_begins)
    entries = {
        worker.name: entry(worker, found["seconds"].get(worker.name), found["spun"].get(worker.name))
        for worker in workers
    }
    entries |= {name: {"state": "unavailable", "reason": unfit(case, name)} for name in forms if unfit(case, name)}
    return {
        "case": case.as_dict(),
        **machine.stamp(),
        "rounds": found["rounds"],
        "others_cores": found["others"],
        "quiet": found["quiet"],
        "forms": summary.with_ratios({name: entries[name] for name in forms}),
    }


def reference_for(case: Case, folder: Path, known: dict[tuple[Any, ...], Path]) -> None:
    """Make the file of the float64 definition's logits of the case's images, computed once for each network, size and type."""
    whole = replace(case, batch=weights.DISTINCT_IMAGES)
    key = (case.model, case.size, case.storage)
    if key not in known:
        known[key] = folder / ("-".join(map(str, key)) + ".npy")
        np.save(known[key], weights.reference(whole))
    np.save(reference_path(case, folder), np.load(known[key])[: case.batch])


def told(worker: Worker) -> str:
    """A worker's state in words."""
    report = worker.report
    if report["state"] == "ready":
        return f"ready in {report['built_in']:.0f} s, error {report['error']:.1e}"
    if report["state"] == "wrong":
        return f"refused: error {report['error']:.1e}, allowed {report['error_limit']:.1e}"
    return f"unavailable: {report['reason']}"


def entry(worker: Worker, seconds: list[float] | None, spun: float | None) -> dict[str, Any]:
    """What is kept of a form: its report, its times and their summary."""
    kept = {name: value for name, value in worker.report.items() if value is not None}
    for name in ("error", "built_in"):
        if name in kept:
            kept[name] = float(f"{kept[name]:.3g}") if math.isfinite(kept[name]) else None
    if not seconds:
        return kept
    times = {"times_ms": [round(1000 * value, 2) for value in seconds], "spun_s": spun}
    return kept | summary.summarised(seconds) | times


def surroundings(device: str) -> dict[str, Any]:
    """What holds for the whole run: the machine, and what was unset for the workers."""
    found: dict[str, Any] = {"device": device, "machine": machine.machine(), "unset": tuned()}
    return found | ({"gpu": machine.gpu()} if device == "cuda" else {})


def limits_and_breakdown(models: Sequence[str], tell: Callable[[str], None]) -> dict[str, Any]:
    """The machine's limits with one and two threads, and where NumPy's time goes, each in a process of its own."""
    found: dict[str, Any] = {"limits": {}, "breakdown": {}}
    for threads in (1, 2):
        tell(f"limits of the machine with {threads} threads")
        found["limits"][str(threads)] = answer("limits", {"threads": threads, "models": list(models)}, threads)
        for model in models:
            tell(f"{model}: stages with {threads} threads")
            found["breakdown"][f"{model}/b1-t{threads}"] = answer(
                "breakdown", {"threads": threads, "model": model}, threads
            )
    return found


def answer(module: str, task: dict[str, Any], threads: int) -> dict[str, Any]:
    """What a module of this package prints in a process of its own; {"unavailable": reason} where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", json.dumps(task)],
        check=False,
        cwd=machine.ROOT,
        env=worker_environment(Case(model="", threads=threads)),
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1])) | machine.stamp()
    return {"unavailable": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
