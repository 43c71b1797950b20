"""What all runs into a folder came to, as a table: `python -m benchmarks.fuzz.summary --out FOLDER`.

Coverage is the last that libFuzzer wrote, where its output was kept as `FOLDER/READER/*.log`: edges between lines of what is
instrumented, and features, which tell apart how often.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.fuzz.cases import NAMES

HEAD = (
    "reader",
    "executions",
    "a CPU second",
    "CPU minutes",
    "wall minutes",
    "edges",
    "features",
    "accepted",
    "finds",
    "same",
)


def row(reader: str, folder: Path) -> list[Any]:
    """The figures of a reader."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("figures-*.json"))]
    count, cpu = sum(run["executions"] for run in runs), sum(run["cpu_seconds"] for run in runs)
    text = "".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
    covered = [tuple(map(int, pair)) for pair in re.findall(r"cov: (\d+) ft: (\d+)", text)]
    edges, features = max(covered, default=("", ""))
    found = {fault for run in runs for fault in run["finds"]}
    accepted = sum(run["verdicts"].get("accepted", 0) for run in runs)
    compared = folder / "compared.json"
    same = ""
    if compared.is_file():
        result = json.loads(compared.read_text())
        same = f"{result['counts'].get('agree', 0)}, {len(result['differ'])} differ"
    wall = sum(run["wall_seconds"] for run in runs) / 60
    return [
        reader,
        count,
        round(count / cpu),
        round(cpu / 60, 1),
        round(wall, 1),
        edges,
        features,
        accepted,
        len(found),
        same,
    ]


def table(out: Path) -> str:
    """The table, in Markdown."""
    rows = [row(reader, out / reader) for reader in NAMES if list((out / reader).glob("figures-*.json"))]
    total = [
        "all",
        *(sum(row[column] for row in rows) for column in (1,)),
        "",
        *(round(sum(row[column] for row in rows), 1) for column in (3, 4)),
    ]
    rows.append([*total, "", "", sum(row[7] for row in rows), sum(row[8] for row in rows), ""])
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line) + " |" for line in lines
    )


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", default="fuzzed")
    print(table(Path(options.parse_args().out)))
