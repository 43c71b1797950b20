"""The workers of one case: started a few at a time, spoken to one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.environment import worker_environment
from benchmarks.machine import ROOT

BUILD_SECONDS, TURN_SECONDS = 400, 120  # after which a worker is given up


class Worker:
    """One form in a process of its own; `report` is its state, as `benchmarks.worker` tells it."""

    def __init__(self, name: str, case: Case, folder: Path, reference: Path, core: int) -> None:
        task = {"form": name, "case": case.as_dict(), "core": core, "reference": str(reference)}
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", json.dumps(task)],
                cwd=ROOT,
                env=worker_environment(case) | {"COATREF_BENCHMARK_FOLDER": str(folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.report = self.hear(BUILD_SECONDS)
        if self.report["state"] != "ready":
            self.dismiss()

    def turn(self, untimed: int, timed: int) -> dict[str, Any] | None:
        """Some runs; None, and no more turns, where the worker is lost."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"untimed": untimed, "timed": timed}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `hear` says why
        answer = self.hear(TURN_SECONDS)
        if "seconds" in answer:
            return answer
        self.report = answer
        self.dismiss()
        return None

    def hear(self, patience: float) -> dict[str, Any]:
        """The worker's next line; a report that it is unavailable where none comes in time."""
        assert self.process.stdout is not None
        timer = threading.Timer(patience, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if line:
            return dict(json.loads(line))
        if late:
            return {"state": "unavailable", "reason": f"no answer within {patience:.0f} s"}
        last = [text for text in self.log.read_text(errors="replace").splitlines() if text.strip()][-1:]
        return {
            "state": "unavailable",
            "reason": f"the process ended with {self.process.wait()}: {''.join(last)[:200]}",
        }

    def dismiss(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def gathered(
    names: Iterable[str],
    case: Case,
    folder: Path,
    reference: Path,
    at_once: int,
    tell: Callable[[Worker], None],
) -> list[Worker]:
    """Workers for all forms, `at_once` of them being built at a time; each is told of when its state is known."""

    def start(numbered: tuple[int, str]) -> Worker:
        worker = Worker(numbered[1], case, folder, reference, core=numbered[0] % at_once)
        tell(worker)
        return worker

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(start, enumerate(names)))
