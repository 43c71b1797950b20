"""Peak memory of one process: how far it grows while it computes, beyond what it held before.

Linux keeps a process's largest resident size as VmHWM and sets it back to the present one when "5" is written to
/proc/self/clear_refs. So: load the library and the weights, give free pages back, set back, compute, read.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str = "VmRSS") -> int:
    """A size from the process's status in bytes: "VmRSS" (now) or "VmHWM" (the largest since it was set back)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def settled() -> int:
    """The resident size once garbage is collected, free pages are given back and the largest size is set back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    return resident()


def growth(run: Callable[[], Any]) -> dict[str, int] | None:
    """How memory grows, in bytes; None where the system does not tell.

    Returns:
        "loaded": resident before anything was computed. "first": peak of the first run beyond it, in which libraries also
        make their threads, arenas and code. "kept": what is still there after it. "later": peak of another run beyond what
        was resident just before that.
    """
    try:
        loaded = settled()
        run()
        first = resident("VmHWM") - loaded
        before = settled()
        run()
        later = resident("VmHWM") - before
    except (OSError, StopIteration, AttributeError):
        return None
    return {"loaded": loaded, "first": first, "kept": before - loaded, "later": later}


def headline(measured: dict[str, int] | None, compiles: bool) -> int | None:
    """The one number that forms are compared by: the first run's, or a later one's where the first compiles."""
    if measured is None:
        return None
    return measured["later"] if compiles else measured.get("first", measured["later"])
