"""Fuzz one reader, guided by coverage where atheris is installed, else blindly; finds are written to a folder.

    python -m benchmarks.fuzz torch --minutes 5 --out FOLDER     try cases, keep finds and those that are accepted
    python -m benchmarks.fuzz.compare torch --out FOLDER         read the accepted ones by the library as well
    python -m benchmarks.fuzz.collect torch --out FOLDER         add the smallest cases to tests/corpus
    python -m benchmarks.fuzz.summary --out FOLDER               figures of all runs into the folder

Cases are right files, made by the libraries whose formats they are, and changes of them that keep lengths and checksums
right. What must hold of each is in `oracle`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fuzz.cases import NAMES, packed, taken_apart, write

MOST_ACCEPTED = 3000  # cases that are kept to be compared with the libraries'
INSTRUMENTED = (
    "coatref.weights",
    "coatref.specification",
    "coatref.labels",
    "coatref.params",
    "zipfile",
    "pickletools",
)


def main() -> None:
    """Fuzz."""
    options = parser().parse_args()
    out = Path(options.out) / options.reader
    for name in ("finds", "accepted", "corpus"):
        (out / name).mkdir(parents=True, exist_ok=True)
    atheris = guide() if options.guided else None
    run(options.reader, 60 * options.minutes, options.seed, out, atheris)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m benchmarks.fuzz", description=__doc__.split("\n")[0])
    made.add_argument("reader", choices=NAMES)
    made.add_argument("--minutes", type=float, default=1.0, help="of this process")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", default="fuzzed", help="folder of finds, cases and figures")
    made.add_argument("--guided", action=argparse.BooleanOptionalAction, default=True, help="by coverage, with atheris")
    return made


def guide() -> Any:
    """atheris, with what is fuzzed instrumented; None where it is not installed."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        return None
    with contextlib.suppress(KeyError):
        del sys.modules["zipfile"], sys.modules["pickletools"]
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        for name in ("pickletools", "zipfile"):
            importlib.import_module(name)
        import coatref.labels
        import coatref.weights.files  # noqa: F401
    return atheris


def run(reader: str, seconds: float, seed: int, out: Path, atheris: Any) -> None:
    """Try cases until the time of this process is up."""
    from benchmarks.fuzz import oracle
    from benchmarks.fuzz.mutate import any_bytes, mutated
    from benchmarks.fuzz.seeds import SEEDS

    seeds = [packed(reader, case) for case in SEEDS[reader]()]
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if shared.is_dir() else None))
    first = folder / NAMES[reader][0]
    watch = oracle.Watch(folder)
    verdicts: Counter[str] = Counter()
    finds: dict[str, int] = {}
    known = {hashlib.sha256(case).digest() for case in seeds}
    started, told, cpu = time.time(), 0.0, time.process_time
    sizes = {"count": 0, "slowest": 0.0, "kept": 0}

    def one(content: bytes) -> None:
        nonlocal told
        sizes["count"] += 1
        write(taken_apart(reader, content), folder)
        watch.seen, watch.on, before = [], sizes["count"] > len(seeds), cpu()
        fault = ""
        try:
            verdict, arrays = oracle.examine(reader, first)
            verdicts[verdict] += 1
        except oracle.Find as error:
            verdict, arrays, fault = "find", {}, str(error)
        finally:
            watch.on = False
        spent = cpu() - before
        if watch.seen and not fault:
            fault = f"it touched {watch.seen[0]}"
        if spent > sizes["slowest"]:
            sizes["slowest"] = spent
            (out / "slowest").write_bytes(content)
        if fault:
            verdicts["find"] += 1
            finds[fault] = finds.get(fault, 0) + 1
            if finds[fault] <= 3:
                name = re.sub(r"\W+", "-", fault)[:100] + "-" + hashlib.sha256(content).hexdigest()[:8]
                (out / "finds" / name).write_bytes(content)
        elif arrays and sizes["kept"] < MOST_ACCEPTED and verdict == "accepted":
            digest = hashlib.sha256(content).digest()
            if digest not in known:
                known.add(digest)
                (out / "accepted" / digest.hex()[:16]).write_bytes(content)
                sizes["kept"] += 1
        if cpu() - told > 5:
            told = cpu()
            tell()

    def tell() -> None:
        figures = {
            "reader": reader,
            "guided": atheris is not None,
            "seed": seed,
            "executions": sizes["count"],
            "cpu_seconds": round(cpu(), 1),
            "wall_seconds": round(time.time() - started, 1),
            "per_cpu_second": round(sizes["count"] / cpu(), 1),
            "slowest_seconds": round(sizes["slowest"], 3),
            "verdicts": dict(verdicts),
            "finds": finds,
        }
        (out / f"figures-{seed}.json").write_text(json.dumps(figures, indent=1) + "\n")

    def finish() -> None:
        tell()
        shutil.rmtree(folder, ignore_errors=True)

    warnings.simplefilter("ignore")  # of zipfile, while it writes; the oracle turns those of readers into errors
    for case in seeds:
        one(case)
    oracle.limit_memory()
    if atheris is None:
        blind(one, mutated, reader, seeds, seconds, seed)
        finish()
        return

    def over(*_: Any) -> None:
        finish()
        sys.stdout.flush()
        os._exit(0)

    def changed(content: bytes, largest: int, number: int) -> bytes:
        def plain(dice: random.Random, part: bytes) -> bytes:
            if dice.random() < 0.5:
                return bytes(atheris.Mutate(part, len(part) + 64)) if part else any_bytes(dice, part)
            return any_bytes(dice, part)

        return mutated(reader, content, number, seeds, plain)[:largest]

    def timed(content: bytes) -> None:
        if cpu() > seconds:
            over()
        one(content)

    signal.signal(signal.SIGTERM, over)
    given = out / "seeds"
    given.mkdir(exist_ok=True)
    for number, case in enumerate(seeds):
        (given / str(number)).write_bytes(case)
    arguments = [f"-seed={seed + 1}", "-max_len=65000", "-timeout=60", "-rss_limit_mb=0", "-len_control=0", "-reload=0"]
    arguments.append(f"-artifact_prefix={out}/")
    atheris.Setup([sys.argv[0], *arguments, str(out / "corpus"), str(given)], timed, custom_mutator=changed)
    atheris.Fuzz()


def blind(
    one: Callable[[bytes], None],
    mutated: Callable[..., bytes],
    reader: str,
    seeds: list[bytes],
    seconds: float,
    seed: int,
) -> None:
    """Try changes of the seeds, and changes of changes, without knowing what they reach."""
    dice = random.Random(seed)
    pool = list(seeds)
    while time.process_time() < seconds:
        case = mutated(reader, dice.choice(pool), dice.randrange(2**32), seeds)
        one(case)
        if dice.random() < 0.02 and len(case) < 30_000:
            pool[len(seeds) :] = [*pool[len(seeds) :], case][-200:]


if __name__ == "__main__":
    main()
