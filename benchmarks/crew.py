"""The workers of one case: started a few at a time, spoken to one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.environment import worker_environment
from benchmarks.machine import ROOT

BUILD_SECONDS, TURN_SECONDS = 400, 120  # after which a worker is given up


class Worker:
    """One form in a process of its own; `report` is its state, as `benchmarks.worker` tells it."""

    def __init__(self, name: str, case: Case, folder: Path, core: int) -> None:
        reference = str(reference_path(case, folder))
        task = {"form": name, "case": case.as_dict(), "core": core, "reference": reference}
        self.name, self.case, self.log = name, case, folder / f"{case.model}-{case.label}-{name}.log"
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


def reference_path(case: Case, folder: Path) -> Path:
    """Where the logits are that a case's forms must give."""
    return folder / f"{case.model}-{case.label}.npy"


def gathered(
    wanted: Sequence[tuple[Case, str]], folder: Path, at_once: int, tell: Callable[[Worker], None]
) -> list[Worker]:
    """A worker for each case and form, `at_once` of them being built at a time; each is told of when its state is known."""

    def start(numbered: tuple[int, tuple[Case, str]]) -> Worker:
        number, (case, name) = numbered
        worker = Worker(name, case, folder, core=number % at_once)
        tell(worker)
        return worker

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(start, enumerate(wanted)))
