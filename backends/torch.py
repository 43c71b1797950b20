"""PyTorch: tensors on the CPU or a CUDA device."""

from __future__ import annotations

import functools
from typing import Any

from coatref.registry import Library


@functools.cache
def namespace() -> Any:
    """PyTorch as array-api-compat wraps it."""
    import array_api_compat.torch

    return array_api_compat.torch


def erf(x: Any) -> Any:
    """`torch.special.erf`."""
    import torch

    return torch.special.erf(x)


def to_numpy(x: Any) -> Any:
    """A tensor on the host as a NumPy array; bfloat16, which NumPy lacks, becomes float32 (exactly)."""
    import torch

    x = x.detach()
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()


def devices() -> tuple[str, ...]:
    """The CPU and every CUDA device."""
    import torch

    return ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))


LIBRARY = Library(
    name="torch",
    install="'coatref[torch]'",
    namespace=namespace,
    to_numpy=to_numpy,
    dtypes=("float16", "bfloat16", "float32", "float64"),
    erf=erf,
    device=lambda x: x.device,
    devices=devices,
)
