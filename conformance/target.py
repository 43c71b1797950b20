"""The thing that is judged: anything that computes a network's output from parameters and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision
from coatref.params import Params
from coatref.specification.spec import Spec

Output = Mapping[str, Any]  # "logits", and optionally values under the names of `coatref.trace`; arrays of any library


@dataclass(frozen=True)
class Target:
    """A candidate implementation, and what it claims.

    Attributes:
        name: as a user writes it, such as "timm:coatnet_0_rw_224".
        spec: the network that it claims to compute.
        precision: the arithmetic that it declares.
        run: parameters and images to outputs. It is handed NumPy arrays: parameters under our names in the spec's tree,
            images (N, H, W, channels), all in the storage type (bfloat16 as float32 arrays whose numbers bfloat16 holds
            exactly). It gives "logits" (N, classes) (probabilities, where the spec's head says so), and may give any
            value that `coatref.trace` names, in its shape and layout.
        params: the weights it came with, for the check "as given"; None: fresh ones are drawn.
        takes_params: whether `run` uses the parameters that it is handed; False for a program with its weights baked in.
        variant: the same implementation for another spec of its kind (other image size, depths, widths, classes); raises
            `coatref.CoatrefError` for one that it cannot build. None: it exists for one spec only.
        any_batch: whether `run` takes any number of images; else only one.
        adaptive: whether `run` takes any case; else only those that `judge.cases` gives, which were computed before.
        expects: dotted name -> shape of the parameters that it takes, where that can be known without running it.
        differing: parameters that it holds otherwise than the weights that it was to hold, each with the largest difference
            relative to the largest number of the tensor; empty where it holds none of its own, or none were given.
        command: the arguments of `coatref check` that judge it, to reproduce a finding.
        versions: names and versions of what computes.
    """

    name: str
    spec: Spec
    run: Callable[[Params, np.ndarray], Output]
    precision: Precision = field(default_factory=Precision)
    params: Params | None = None
    takes_params: bool = True
    variant: Callable[[Spec], Target] | None = None
    any_batch: bool = True
    adaptive: bool = True
    expects: Mapping[str, tuple[int, ...]] | None = None
    differing: tuple[tuple[str, float], ...] = ()
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
