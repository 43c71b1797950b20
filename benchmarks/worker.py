"""One process for one form: builds it, checks it against the reference, then runs it each time it is told to.

    python -m benchmarks.worker '{"form": ..., "case": {...}, "core": 0, "reference": "/tmp/.../x.npy"}'

It speaks JSON, one object a line: first its state ("ready", "wrong" or "unavailable"), then one answer for each line that
it reads. Whatever its libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from benchmarks.cases import Case
from benchmarks.environment import pin

QUIET, PATIENCE = 0.001, 25  # seconds of processor time in 20 ms that count as idle; how many times 20 ms are waited


def main() -> None:
    """Serve one form until the input ends."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    task = json.loads(sys.argv[1])
    case = Case(**task["case"])
    pin(case, task["core"])
    try:
        runner, report = built(task, case)
    except BaseException as error:  # noqa: BLE001 - told to the one who asked, in one line
        say(state="unavailable", reason=told(error))
        return
    say(**report)
    if report["state"] != "ready":
        return
    for line in sys.stdin:
        say(**turn(runner, **json.loads(line)))


def built(task: dict[str, Any], case: Case) -> tuple[Any, dict[str, Any]]:
    """The form ready to run, and what is to be said of it."""
    import numpy as np

    from benchmarks import memory, weights
    from benchmarks.forms import FORMS

    form = FORMS[task["form"]]
    began = time.perf_counter()
    runner = form.make(case, weights.parameters(case), weights.images(case))
    report: dict[str, Any] = {"state": "ready"}
    if runner.peak_memory is None and form.rounds is None:
        report["memory"] = memory.growth(runner.run)
    error = weights.error_of(runner.logits(runner.run()), np.load(task["reference"]))
    report |= {"error": error, "error_limit": weights.limit_of(case)}
    if not error <= report["error_limit"]:
        return runner, report | {"state": "wrong"}
    if runner.peak_memory is not None:
        report["memory"] = runner.peak_memory()
    if form.rounds is None:
        warm_up(runner)
    return runner, report | {"built_in": time.perf_counter() - began, "pools": pools()}


def warm_up(runner: Any) -> None:
    """Run for half a second, at least twice."""
    began, runs = time.perf_counter(), 0
    while runs < 2 or time.perf_counter() - began < 0.5:
        runner.run()
        runs += 1


def turn(runner: Any, *, untimed: int, timed: int) -> dict[str, Any]:
    """Some untimed runs (another process had the caches), some timed ones, and a wait until all threads are at rest."""
    for _ in range(untimed):
        runner.run()
    seconds = []
    for _ in range(timed):
        began = time.perf_counter()
        runner.run()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "spun": settle()}


def settle() -> float:
    """Wait until this process uses no processor time, so that threads that spin after a run do not slow the next form.

    Returns:
        The processor time in seconds that was used meanwhile.
    """
    first = before = time.process_time()
    for _ in range(PATIENCE):
        time.sleep(0.02)
        now = time.process_time()
        if now - before < QUIET:
            break
        before = now
    return time.process_time() - first


def pools() -> list[str]:
    """The thread pools of this process that threadpoolctl knows, as "openblas 0.3.30 SkylakeX: 2"."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    return [
        " ".join(filter(None, (p.get("internal_api"), p.get("version"), p.get("architecture"))))
        + f": {p['num_threads']}"
        for p in threadpool_info()
    ]


def told(error: BaseException) -> str:
    """An exception in one line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:300]


if __name__ == "__main__":
    main()
