"""Where and with what a measurement was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "numpy",
    "scipy",
    "threadpoolctl",
    "numba",
    "torch",
    "timm",
    "jax",
    "jaxlib",
    "onnx",
    "onnxruntime",
    "openvino",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "triton",
)
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve")


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system."""
    facts = cpu_facts()
    return {
        "processor": facts.get("model name", platform.processor() or platform.machine()),
        "features": [name for name in FEATURES if name in facts.get("flags", facts.get("Features", "")).split()],
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def cpu_facts() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def versions() -> dict[str, str]:
    """Python and every package that takes part and is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the checkout, with "+" where the package or the benchmarks have changed since; "unknown" without git."""
    try:
        head = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", "coatref", "backends", "benchmarks/*.py", "benchmarks/forms")
        return head + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COATREF_COMMIT", "unknown")


def git(*arguments: str) -> str:
    """What a git command prints."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def today() -> str:
    """The date in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def stamp() -> dict[str, Any]:
    """When, at which commit and with which versions; goes with every group of measurements."""
    return {"date": today(), "commit": commit(), "versions": versions()}


def gpu() -> dict[str, Any]:
    """The first GPU, as nvidia-smi tells it.

    Raises:
        RuntimeError: there is none.
    """
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, check=True, capture_output=True, text=True)
        name, memory, driver = (part.strip() for part in done.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        raise RuntimeError("--device cuda needs an NVIDIA GPU, and nvidia-smi shows none here.") from None
    return {"name": name, "memory": memory, "driver": driver}
