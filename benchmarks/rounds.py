"""One case: all its workers alive, asked in turn for one timed run each, round after round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.crew import Worker
from benchmarks.forms import FORMS

FEWEST, LONG = 5, 0.5  # rounds whatever they take; seconds of a run before which no untimed run is needed
QUIET = 0.25  # cores that other processes keep busy during a round, on average, above which it does not count
PATIENCE = 3  # times the seconds of a case that are spent on finding quiet rounds


@dataclass(frozen=True)
class Round:
    """One turn of every form, and how many cores other processes kept busy meanwhile."""

    seconds: dict[str, list[float]]
    spun: dict[str, float]  # processor time after the run, in which threads wait for more
    others: float


def measured(
    workers: Sequence[Worker], rounds: int, seconds: float, gpu: bool, tell: Callable[[int], None]
) -> dict[str, Any]:
    """Times of every form that is ready.

    A round in which other processes of the machine were at work does not count, unless there are too few without: whether
    it counts is decided by them alone, never by the times.

    Args:
        workers: of one case.
        rounds: at most so many.
        seconds: no further round begins after so long, once there were five that count.
        gpu: whether the forms run on a GPU.
        tell: called with the number of each round.

    Returns:
        "seconds": form -> times. "spun": form -> the most processor time after a run. "rounds": how many count. "others": cores that others kept busy in these. "quiet":
        whether they are rounds without others.
    """
    had: list[Round] = []
    longest = {worker.name: 0.0 for worker in workers}
    processes = [worker.process.pid for worker in workers]
    began = time.monotonic()
    while not enough(had, rounds, (time.monotonic() - began) / seconds):
        tell(len(had))
        load = Load(processes)
        answers = one_round(workers, len(had), longest, gpu)
        times = {name: answer["seconds"] for name, answer in answers.items()}
        had.append(Round(times, {name: answer["spun"] for name, answer in answers.items()}, load.others()))
    kept = counting(had)
    together: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for each in kept:
        for name, values in each.seconds.items():
            together[name] += values
    for worker in workers:  # a form that is run in the first round alone, which may not count
        together[worker.name] = together[worker.name] or had[0].seconds.get(worker.name, [])
    others = round(sum(each.others for each in kept) / len(kept), 2)
    spun = {name: round(max(each.spun.get(name, 0.0) for each in had), 3) for name in together}
    return {"seconds": together, "spun": spun, "rounds": len(kept), "others": others, "quiet": others <= QUIET}


def enough(had: Sequence[Round], rounds: int, time_used: float) -> bool:
    """Whether no further round is needed; `time_used` is a share of the time that is meant for the case."""
    quiet = sum(each.others <= QUIET for each in had)
    fewest = min(FEWEST, rounds)
    if quiet >= rounds or (quiet >= fewest and time_used > 1):
        return True
    return len(had) >= fewest and time_used > PATIENCE


def counting(had: Sequence[Round]) -> list[Round]:
    """The rounds without others, or all where these are too few."""
    quiet = [each for each in had if each.others <= QUIET]
    return quiet if len(quiet) >= min(FEWEST, len(had)) else list(had)


def one_round(
    workers: Sequence[Worker], number: int, longest: dict[str, float], gpu: bool
) -> dict[str, dict[str, Any]]:
    """A turn of every form; each round begins with another one.

    A turn is one untimed run, since other processes had the caches meanwhile, and one timed run (ten on a GPU, whose runs
    are short); runs of half a second need no untimed one. The worker answers when all its threads are at rest.
    """
    answers = {}
    shift = number % max(1, len(workers))
    for worker in [*workers[shift:], *workers[:shift]]:
        most = FORMS[worker.name].rounds
        if worker.report["state"] != "ready" or (most is not None and number >= most):
            continue
        answer = worker.turn(untimed=0 if longest[worker.name] > LONG or most else 1, timed=10 if gpu else 1)
        if answer is not None:
            answers[worker.name] = answer
            longest[worker.name] = max(longest[worker.name], *answer["seconds"])
    return answers


class Load:
    """How many cores other processes than ours kept busy since this was made."""

    def __init__(self, ours: Sequence[int]) -> None:
        self.ours = list(ours)
        self.began, self.busy, self.used = time.monotonic(), self.all_busy(), self.our_use()

    def others(self) -> float:
        """Cores, on average."""
        elapsed = max(time.monotonic() - self.began, 0.01)
        return round(max(0.0, (self.all_busy() - self.busy - (self.our_use() - self.used)) / elapsed), 2)

    def our_use(self) -> float:
        """Processor time of our processes in seconds."""
        total: float = sum(psutil.Process().cpu_times()[:2])
        for process in self.ours:
            try:
                total += sum(psutil.Process(process).cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
        return total

    @staticmethod
    def all_busy() -> float:
        """Processor time of the whole machine in seconds, without what it idled."""
        times = psutil.cpu_times()
        return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
