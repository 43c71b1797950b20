"""Small cases for `tests/corpus`: for each reader the smallest case of every refusal, a few that are accepted, and the finds.

`python -m benchmarks.fuzz.collect --out FOLDER`, after fuzzing into that folder; cases that are there already stay.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fuzz import oracle
from benchmarks.fuzz.cases import NAMES, taken_apart, write
from benchmarks.fuzz.cases import packed as packed_case
from benchmarks.fuzz.seeds import SEEDS
from coatref.errors import CoatrefError

CORPUS = Path(__file__).resolve().parents[2] / "tests" / "corpus"
BYTES = {"hdf5": 60_000, "keras": 50_000}  # of all cases of a reader; others have 20,000
AGAIN = 3  # finds that one refusal meets now
LARGEST_FIND = 12_000  # bytes


def outcome(reader: str, folder: Path) -> tuple[str, str]:
    """What comes of a case, and where: of an accepted one, the types and numbers of axes of its tensors."""
    place = ""
    original = oracle.refuse_odd_message

    def noted(error: Exception) -> None:
        nonlocal place
        passed = places(error)
        file, _, function = passed[-1].partition(":")
        place = f"{file.removesuffix('.py')}-{function.split()[-1]} {' '.join(passed)}"
        original(error)

    oracle.refuse_odd_message = noted
    try:
        verdict, arrays = oracle.examine(reader, folder / NAMES[reader][0])
    finally:
        oracle.refuse_odd_message = original
    if verdict == "accepted":
        size = sum(path.stat().st_size for path in folder.iterdir())
        place = "tensors " + " ".join(
            sorted({f"{array.dtype}{array.ndim}" for array in arrays.values()}) or [f"{size // 100}"]
        )
    return verdict, place or "missing"


def places(error: Exception) -> list[str]:
    """The lines that an error and what it came of passed, the first cause last; they tell refusals apart."""
    found = []
    cause: BaseException | None = error
    while isinstance(cause, CoatrefError):
        found.append(oracle.place_of(cause))
        cause = cause.__context__
    return found


def candidates(reader: str, out: Path) -> Iterator[tuple[str, bytes]]:
    """Every case that there is: finds first, then seeds, then what reached something new."""
    for kind in ("finds", "corpus", "accepted"):
        for path in sorted((out / reader / kind).glob("*"), key=lambda path: path.stat().st_size):
            yield kind, path.read_bytes()
    for case in SEEDS[reader]():
        yield "seeds", packed_case(reader, case)


def collect(reader: str, out: Path, corpus: Path) -> int:
    """Add cases; the number of bytes that they have."""
    room, chosen = BYTES.get(reader, 20_000), 0
    known: dict[tuple[str, str], int] = {}
    accepted = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        order = ("finds", "seeds", "corpus", "accepted")
        ranked = sorted(candidates(reader, out), key=lambda each: (min(2, order.index(each[0])), len(each[1])))
        for kind, content in ranked:
            if chosen + len(content) > room or (kind == "finds" and len(content) > LARGEST_FIND):
                continue
            write(taken_apart(reader, content), folder)
            try:
                verdict, place = outcome(reader, folder)
            except oracle.Find as find:
                print(f"{reader}: still a find: {find}")
                continue
            if kind == "seeds" and verdict != "accepted":  # there will be a smaller one
                continue
            allowed = AGAIN if kind == "finds" else 1
            if known.get((verdict, place), 0) >= allowed:
                continue
            if verdict == "accepted":
                if accepted + len(content) > room / 2:
                    continue
                accepted += len(content)
            known[verdict, place] = known.get((verdict, place), 0) + 1
            label = f"{verdict}-{place.split()[0]}"
            number = 1 + len(list((corpus / reader).glob(f"{label}-*")))
            put(taken_apart(reader, content), reader, corpus / reader / f"{label}-{number}")
            chosen += len(content)
    return chosen


def put(case: dict[str, bytes], reader: str, target: Path) -> None:
    """A case as a file, or as a folder where it has several."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if len(NAMES[reader]) == 1:
        target.write_bytes(case[NAMES[reader][0]])
        return
    target.mkdir()
    for name, content in case.items():
        (target / name).write_bytes(content)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("readers", nargs="*", default=list(NAMES))
    options.add_argument("--out", default="fuzzed")
    options.add_argument("--corpus", default=str(CORPUS))
    given = options.parse_args()
    for reader in given.readers:
        print(reader, collect(reader, Path(given.out), Path(given.corpus)))
