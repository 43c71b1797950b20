"""timm models with every number in them random, for comparing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def randomised(timm: Any, name: str, seed: int, **options: Any) -> Any:
    """A timm model in float64, eval mode, in which no two channels are alike and no value is a default.

    Biases, BatchNorm statistics, LayerScale and bias tables are drawn too. The log-spaced coordinates of RelPosMlp are a
    buffer that timm computes in float32 whatever the model's type (`gen_relative_log_coords`); here it is computed in
    float64, since its rounding alone makes the logits differ by about 1e-10.
    """
    import torch

    model = timm.create_model(name, pretrained=False, **options).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        size = tuple(value.shape)
        if key.endswith(("running_var", "gamma")) or (value.ndim == 1 and key.endswith("weight")):
            drawn = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
        else:
            drawn = torch.randn(size, generator=generator, dtype=torch.float64)
            if value.ndim == 1:
                drawn = drawn / 2
            elif not key.endswith("table"):
                drawn = drawn / math.sqrt(math.prod(size[1:]))
        value.copy_(drawn)
    for module in model.modules():
        if hasattr(module, "rel_coords_log"):
            module.rel_coords_log.copy_(log_coordinates(*module.window_size))
    return model


def log_coordinates(height: int, width: int) -> Any:
    """sign(d) ln(1 + |d|) of every offset of a grid, (2H-1, 2W-1, 2) in float64."""
    import torch

    offsets = [torch.arange(1 - side, side, dtype=torch.float64) for side in (height, width)]
    grid = torch.stack(torch.meshgrid(*offsets, indexing="ij"), dim=-1)
    return torch.sign(grid) * torch.log(1.0 + torch.abs(grid))


def images(seed: int, batch: int, channels: int, height: int, width: int) -> Any:
    """Random images as a torch batch (N, C, H, W) in float64."""
    import torch

    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, channels, height, width)))
