"""Fresh parameters."""

from __future__ import annotations

import math
import zlib
from types import ModuleType
from typing import Any, Literal

import numpy

from coatref.errors import InputError
from coatref.params import Params, tensor_tree
from coatref.registry import dtype_name, place, resolve_dtype, resolve_library, sealed
from coatref.specification.catalogue import resolve
from coatref.specification.spec import Spec
from coatref.tensors import Tensor
from coatref.tree import map_named

NUMPY_TYPES = ("float16", "float32", "float64")
STANDARD_DEVIATION = 0.02  # google-research/maxvit, for every kernel and table; the paper states no initialisation


def init(
    spec: Spec | str,
    seed: int = 0,
    *,
    xp: str | ModuleType | Any = "numpy",
    dtype: str | Any = "float32",
    device: Any = None,
    scheme: Literal["training", "distinct"] = "training",
) -> Params:
    """Parameters drawn at random: the same values on every array library for one seed.

    They are drawn by NumPy in float64, each tensor from a stream of its own (seed and name), then rounded to `dtype`.

    Args:
        spec: a spec or the name of one.
        seed: a whole number from 0.
        xp: array library, as a module or its name.
        dtype: such as "float32" or "float64".
        device: as the library takes it.
        scheme: "training" starts a training run: normal kernels and tables of standard deviation 0.02, zero biases, unit
            gammas and statistics. "distinct" is for comparing implementations: no two channels are alike in any tensor
            (biases, statistics and layer scales included), and activations keep a size of about one through the network.

    Raises:
        UnknownSpecError, InputError, MissingDependencyError: the spec, library, data type or device is not to be had, the
            seed is no whole number from 0, or the scheme is not known.
    """
    spec = resolve(spec)
    library = resolve_library(xp)
    kind = resolve_dtype(library, dtype)
    if type(seed) is not int or seed < 0:
        raise InputError(f"init takes a whole number from 0 as its seed, got {seed!r:.80}.")
    schemes = {"training": draw_for_training, "distinct": draw_distinct}
    if scheme not in schemes:
        raise InputError(f"init has no scheme {scheme!r:.80}; it has {' and '.join(schemes)}.")

    def make(name: str, tensor: Tensor) -> Any:
        random = numpy.random.default_rng([seed, zlib.crc32(name.encode())])
        values = schemes[scheme](tensor, random)
        if (host := dtype_name(library, kind)) in NUMPY_TYPES:
            values = values.astype(host)  # rounded once, here, for every library alike
        return sealed(place(library, values, kind, device))

    return Params(map_named(make, tensor_tree(spec)), spec)


def draw_for_training(tensor: Tensor, random: numpy.random.Generator) -> numpy.ndarray:
    """Values to start training from."""
    if tensor.role in ("kernel", "table"):
        return random.normal(0.0, STANDARD_DEVIATION, tensor.shape)
    start = {"bias": 0.0, "beta": 0.0, "mean": 0.0, "gamma": 1.0, "var": 1.0, "layer_scale": tensor.initial}
    return numpy.full(tensor.shape, start[tensor.role])


def draw_distinct(tensor: Tensor, random: numpy.random.Generator) -> numpy.ndarray:
    """Values under which no mistake can hide behind a zero, a one or two equal channels."""
    if tensor.role == "kernel":  # fan-in: all axes but the last, or the window alone for a depthwise kernel
        fan_in = math.prod(tensor.shape[:-1])
        return random.normal(0.0, 1.0, tensor.shape) / math.sqrt(fan_in)
    if tensor.role == "table":
        return random.normal(0.0, 1.0, tensor.shape)
    if tensor.role in ("gamma", "var", "layer_scale"):
        return random.uniform(0.5, 1.5, tensor.shape)
    return random.normal(0.0, 0.5, tensor.shape)
