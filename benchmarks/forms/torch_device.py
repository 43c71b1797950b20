"""What every form on torch shares: the device, exact products, waiting, and the device's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case
from benchmarks.forms import Runner


def settings(case: Case) -> None:
    """Threads, and whether a GPU may round the factors of float32 products to TF32 (torch's default: in cuDNN only)."""
    torch.set_num_threads(case.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"


def tensor(case: Case, values: np.ndarray) -> torch.Tensor:
    """A NumPy array on the case's device."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(case.device)


def runner(case: Case, compute: Callable[[], torch.Tensor]) -> Runner:
    """A computation without gradients that returns when it has ended."""

    def run() -> torch.Tensor:
        with torch.inference_mode():
            logits = compute()
        if case.device == "cuda":
            torch.cuda.synchronize()
        return logits

    return Runner(
        run, lambda logits: logits.double().cpu().numpy(), peak_memory(run) if case.device == "cuda" else None
    )


def peak_memory(run: Callable[[], Any]) -> Callable[[], dict[str, int]]:
    """Device memory of one run beyond what was allocated before it (weights and images), as torch's allocator counts it."""

    def measure() -> dict[str, int]:
        loaded = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return {"loaded": loaded, "later": torch.cuda.max_memory_allocated() - loaded}

    return measure
