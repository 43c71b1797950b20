"""keras_cv_attention_models, with every number in a model random, for comparing."""

from __future__ import annotations

import importlib.util
import math
from types import ModuleType
from typing import Any

import pytest

import coatref
from coatref.conformance.targets import kecam as target


def require_kecam() -> ModuleType:
    """The package's module of CoAtNets, on its torch backend; skips the calling test where something is not installed."""
    for package in ("torch", "h5py", "tqdm", "keras_cv_attention_models"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, which is not installed (pip install {package})", allow_module_level=True)
    return target.package()


SPEC = "kecam/CoAtNet0"  # of `torch:kecam_models:factory` where none is asked for


def factory(spec: coatref.Spec | None = None) -> Any:
    """The package's CoAtNet for a spec, an nn.Module: `torch:kecam_models:factory`; None: its CoAtNet0."""
    spec = coatref.spec("kecam/CoAtNet0") if spec is None else spec
    return target.build(spec.name.removeprefix("kecam/"), spec)


def randomised(spec: coatref.Spec, seed: int) -> Any:
    """The package's model for a spec in float64, in which no two channels are alike and no value is a default."""
    import torch

    model = factory(spec).double()
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        size = tuple(value.shape)
        vector = max(size) == math.prod(size)
        if key.endswith("running_var") or (vector and key.endswith("weight")):
            drawn = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
        else:
            drawn = torch.randn(size, generator=generator, dtype=torch.float64)
            if vector:
                drawn = drawn / 2
            elif not key.endswith("positional_embedding"):
                drawn = drawn / math.sqrt(math.prod(size[1:]))
        value.copy_(drawn)
    return model
