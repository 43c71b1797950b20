"""A whole run: which cases with which forms, each measured in turn, and what becomes of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cases, machine, rounds, summary, weights
from benchmarks.cases import Case
from benchmarks.crew import Worker, gathered
from benchmarks.environment import tuned, worker_environment
from benchmarks.forms import DOUBLE, FORMS, GROWING, ON_REQUEST


@dataclass(frozen=True)
class Plan:
    """Everything that is to be measured; `deadline` (of `time.monotonic`) skips the cases that would begin after it."""

    steps: tuple[tuple[Case, tuple[str, ...]], ...]
    rounds: int
    seconds: float
    deadline: float = math.inf


def planned(
    device: str, models: Sequence[str], labels: Sequence[str], forms: Sequence[str]
) -> list[tuple[Case, tuple[str, ...]]]:
    """The cases and the forms of each; growth is measured on the first model and the forms that matter for it."""
    steps = []
    for number, model in enumerate(models):
        for label in labels:
            growth = label in cases.GROWTH[device]
            if growth and number:
                continue
            case = cases.parse(model, label, device)
            wanted = forms or default_forms(case, growth)
            steps.append((case, tuple(name for name in wanted if device in FORMS[name].devices)))
    return steps


def default_forms(case: Case, growth: bool) -> tuple[str, ...]:
    """The forms of a case when none are asked for."""
    if growth:
        return GROWING
    if case.dtype == "float64":
        return DOUBLE
    return tuple(name for name in FORMS if name not in ON_REQUEST)


def carried_out(
    plan: Plan, folder: Path, tell: Callable[[str], None], done: Callable[[Case, dict[str, Any]], None]
) -> None:
    """Measure all cases, one after another; `done` gets each as it goes into a file of results."""
    references: dict[tuple[Any, ...], Path] = {}
    for case, forms in plan.steps:
        if time.monotonic() > plan.deadline:
            tell(f"{case.key}: left out, the time is over")
            continue
        reference = reference_for(case, folder, references)
        done(case, measured(case, forms, plan, folder, reference, tell))


def measured(
    case: Case, forms: Sequence[str], plan: Plan, folder: Path, reference: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """One case: all its forms started, then timed in turn."""
    began = time.monotonic()

    def started(worker: Worker) -> None:
        tell(f"{case.key}: {worker.name} {told(worker)}")

    def round_begins(number: int) -> None:
        tell(f"{case.key}: round {number + 1}")

    workers = gathered(fitting(case, forms), case, folder, reference, at_once(case), started)
    try:
        ready = time.monotonic() - began
        found = rounds.measured(workers, plan.rounds, plan.seconds, case.device == "cuda", round_begins)
        entries = {worker.name: entry(worker, found["seconds"].get(worker.name)) for worker in workers}
    finally:
        for worker in workers:
            worker.dismiss()
    entries |= {name: {"state": "unavailable", "reason": unfit(case, name)} for name in forms if unfit(case, name)}
    return {
        "case": case.as_dict(),
        **machine.stamp(),
        "rounds": found["rounds"],
        "others_cores": found["others"],
        "quiet": found["quiet"],
        "started_in_s": round(ready, 1),
        "forms": summary.with_ratios({name: entries[name] for name in forms}),
    }


def unfit(case: Case, name: str) -> str | None:
    """Why a form is not tried on a case, or None."""
    form = FORMS[name]
    if case.dtype not in form.dtypes:
        return f"not made for {case.dtype}"
    if form.largest_batch is not None and case.batch > form.largest_batch:
        return f"takes seconds an image, so not run at batch {case.batch}"
    return None


def fitting(case: Case, forms: Sequence[str]) -> list[str]:
    """The forms that are tried on a case, those that compile first: they take longest to start."""
    return sorted((name for name in forms if not unfit(case, name)), key=lambda name: not FORMS[name].compiles)


def at_once(case: Case) -> int:
    """How many workers are built at the same time."""
    cores = machine.machine()["cores"]
    return int(cores if case.device == "cpu" else min(cores, 12))


def reference_for(case: Case, folder: Path, known: dict[tuple[Any, ...], Path]) -> Path:
    """The file of the float64 definition's logits of the case's images, computed once for each network, size and type."""
    whole = replace(case, batch=weights.DISTINCT_IMAGES)
    key = (case.model, case.size, case.storage)
    if key not in known:
        known[key] = folder / ("-".join(map(str, key)) + ".npy")
        np.save(known[key], weights.reference(whole))
    path = folder / f"{known[key].stem}-b{case.batch}.npy"
    np.save(path, np.load(known[key])[: case.batch])
    return path


def told(worker: Worker) -> str:
    """A worker's state in words."""
    report = worker.report
    if report["state"] == "ready":
        return f"ready in {report['built_in']:.0f} s, error {report['error']:.1e}"
    if report["state"] == "wrong":
        return f"refused: error {report['error']:.1e}, allowed {report['error_limit']:.1e}"
    return f"unavailable: {report['reason']}"


def entry(worker: Worker, seconds: list[float] | None) -> dict[str, Any]:
    """What is kept of a form: its report, its times and their summary."""
    kept = {name: value for name, value in worker.report.items() if value is not None}
    for name in ("error", "built_in"):
        if name in kept:
            kept[name] = float(f"{kept[name]:.3g}") if math.isfinite(kept[name]) else None
    if not seconds:
        return kept
    return kept | summary.summarised(seconds) | {"times_ms": [round(1000 * value, 2) for value in seconds]}


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
