"""coatref on torch."""

from __future__ import annotations

import numpy as np
import torch

import coatref
from benchmarks.cases import Case
from benchmarks.forms import Runner
from benchmarks.forms.ours import prepare
from benchmarks.forms.torch_device import runner, settings, tensor
from coatref import Params


def on_torch(case: Case, weights: Params) -> Params:
    """The weights as torch's tensors on the case's device."""
    settings(case)
    return weights.to(xp="torch", device=case.device)


def fast(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """torch's fast primitives on the parameters as they are."""
    params, x = on_torch(case, weights), tensor(case, images)
    return runner(case, lambda: coatref.forward(params, x))


def prepared(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """Parameters that were prepared once."""
    params, x = prepare(on_torch(case, weights)), tensor(case, images)
    return runner(case, lambda: coatref.forward(params, x))


def compiled(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """The same through torch.compile in its default mode; a graph break is an error."""
    params, x = prepare(on_torch(case, weights)), tensor(case, images)
    function = torch.compile(lambda p, x: coatref.forward(p, x), fullgraph=True)
    return runner(case, lambda: function(params, x))
