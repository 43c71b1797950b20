"""PyTorch: tensors on the CPU or a CUDA device."""

from __future__ import annotations

from typing import Any

from coatref.backends import torch_fused, torch_ops
from coatref.registry import Library


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


def without() -> dict[str, str]:
    """What is left to the definition, and which of oneDNN's products this torch lacks."""
    missing = {
        "gather_bias": "the definition's `take` is already one kernel",
        "linear_attention": "torch has no kernel of it; elu(t) + 1 loses digits where t is far below 0",
    }
    if not torch_fused.HAS_ONEDNN:
        missing["dense with activation or residual"] = (
            "this torch has no oneDNN, or not torch.ops.mkldnn._linear_pointwise and _convolution_pointwise, which torch "
            "2.13 has; the activation and the residual are passes of their own"
        )
    return missing


LIBRARY = Library(
    name="torch",
    install="'coatref[torch]'",
    namespace=namespace,
    to_numpy=to_numpy,
    dtypes=("float16", "bfloat16", "float32", "float64"),
    erf=erf,
    device=lambda x: x.device,
    devices=devices,
    primitives=torch_ops.PRIMITIVES,
    without=without,
    fused=torch_fused.steps,
)
