"""The environment that a worker process is started in: its threads, and nothing that tunes a library by hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from benchmarks.cases import Case

# Variables that change what a library does; a user has none of them set. OPENBLAS_CORETYPE is exported by some containers
# and halves the speed of NumPy's products on machines with AVX-512.
TUNING = (
    "OPENBLAS_CORETYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE",
    "XLA_FLAGS",
)
TUNING_PREFIXES = (
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "ONEDNN_",
    "DNNL_",
    "TORCHINDUCTOR_",
    "MALLOC_",
    "COATREF_",
)

THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "COATREF_NUM_THREADS",
)


def tuned(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables set here that workers do not inherit."""
    return {name: value for name, value in environment.items() if name in TUNING or name.startswith(TUNING_PREFIXES)}


def worker_environment(case: Case) -> dict[str, str]:
    """Every variable of a worker."""
    kept = {name: value for name, value in os.environ.items() if name not in tuned()}
    threads = case.threads if case.device == "cpu" else min(8, os.cpu_count() or 1)
    kept |= dict.fromkeys(THREAD_COUNTS, str(threads))
    kept["PYTHONWARNINGS"] = "ignore"
    kept["JAX_PLATFORMS"] = case.device
    kept["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # workers share the GPU
    kept["TORCHINDUCTOR_COMPILE_THREADS"] = (
        "1" if case.device == "cpu" else "4"
    )  # no pool of compilers beside the worker
    if case.device == "cpu":
        kept["CUDA_VISIBLE_DEVICES"] = ""
    return kept


def pin(case: Case, first: int = 0) -> None:
    """Keep this process on as many cores as the case has threads: XLA has no other setting, and so for every form.

    `first` spreads workers of fewer threads than cores over all cores, where they are built at the same time.
    """
    if case.device == "cpu" and sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[(first + index) % len(cores)] for index in range(case.threads)})
