"""timm's model with our weights: what people run today."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case
from benchmarks.forms import Runner
from benchmarks.forms.torch_device import runner, settings, tensor
from coatref import Params
from coatref.conformance.targets.timm_import import timm
from coatref.weights.export import export


def model_of(case: Case, weights: Params) -> Any:
    """timm's model of the case's size, type and device."""
    settings(case)
    model = timm().create_model(case.model, img_size=case.size).to(getattr(torch, case.storage))
    state = {name: torch.from_numpy(array) for name, array in export(weights, "timm").items()}
    left = [
        name for name in model.load_state_dict(state, strict=False).missing_keys if "num_batches_tracked" not in name
    ]
    if left:
        raise ValueError(f"timm's model has tensors that coatref gives no values: {', '.join(left[:3])}.")
    return model.eval().requires_grad_(False).to(case.device)


def nchw(case: Case, images: np.ndarray) -> torch.Tensor:
    """The images with channels first, contiguous."""
    return tensor(case, np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def eager(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """timm as it comes."""
    model, x = model_of(case, weights), nchw(case, images)
    return runner(case, lambda: model(x))


def channels_last(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """Model and images in torch's channels_last layout."""
    model = model_of(case, weights).to(memory_format=torch.channels_last)
    x = nchw(case, images).to(memory_format=torch.channels_last)
    return runner(case, lambda: model(x))


def compiled(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """torch.compile in its default mode."""
    model, x = torch.compile(model_of(case, weights)), nchw(case, images)
    return runner(case, lambda: model(x))


def frozen(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """torch.compile with the weights as constants of the program, which folds and lays them out beforehand."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    return compiled(case, weights, images)
