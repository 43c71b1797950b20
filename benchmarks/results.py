"""The JSON files of results: one for the CPU and one for each GPU, merged case by case."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


def path_for(device: str, gpu: dict[str, Any] | None = None) -> Path:
    """Where a device's results are kept, as results/cuda-nvidia-h100-80gb-hbm3.json."""
    name = "cpu" if gpu is None else f"{device}-" + re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    return FOLDER / f"{name}.json"


def read(path: Path) -> dict[str, Any]:
    """What a file holds; an empty set of results where there is none."""
    return dict(json.loads(path.read_text())) if path.exists() else {"cases": {}}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old results with everything that was measured anew in place of what it repeats."""
    parts: dict[str, Any] = {name: old.get(name, {}) | new.get(name, {}) for name in ("cases", "breakdown")}
    limits = {
        threads: old.get("limits", {}).get(threads, {}) | new.get("limits", {}).get(threads, {})
        for threads in old.get("limits", {}) | new.get("limits", {})
    }
    return old | new | parts | {"limits": limits}


def write(path: Path, results: dict[str, Any]) -> None:
    """Keep the results, readable and in a stable order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False)
    flat = re.sub(
        r"\[\s+((?:-?[\d.e+-]+,?\s*)+)\]", lambda match: f"[{' '.join(match[1].split())}]", text
    )  # numbers in a row
    path.write_text(flat + "\n")


def everything() -> dict[str, dict[str, Any]]:
    """All files of results, by name without ".json", the CPU's first."""
    return {
        path.stem: read(path)
        for path in sorted(FOLDER.glob("*.json"), key=lambda path: (path.stem != "cpu", path.stem))
    }


def commits(each: dict[str, Any]) -> str:
    """When, and at which commits, as "2026-11-27 at ca66272"."""
    return ", ".join(dict.fromkeys(f"{record['date']} at {record['commit']}" for record in each["cases"].values()))


def package_versions(each: dict[str, Any]) -> str:
    """The versions of all packages; both where cases were measured with different ones."""
    found: dict[str, dict[str, None]] = {}
    for record in each["cases"].values():
        for name, version in record["versions"].items():
            found.setdefault(name, {})[version] = None
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items())
