"""What an honest implementation is, and how a computation on NumPy arrays becomes a target."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from coatref import model
from coatref.conformance.precision import Precision
from coatref.conformance.target import Output, Target
from coatref.params import Params
from coatref.primitives import Primitives
from coatref.registry import Array
from coatref.specification.spec import Spec
from coatref.tap import Tap, no_tap

Compute = Callable[[Params, np.ndarray], Output]


@dataclass(frozen=True)
class Variant:
    """One honest implementation.

    Attributes:
        name: unique within a precision, such as "torch channels-last".
        make: a target for any spec.
        precision: what its targets declare.
        slow: whether it compiles for seconds for every spec and batch.
    """

    name: str
    make: Callable[[Spec], Target]
    precision: Precision
    slow: bool = False


def variant(
    name: str, precision: Precision, compute: Compute, packages: tuple[str, ...] = ("numpy",), slow: bool = False
) -> Variant:
    """A variant whose targets all compute with one function, which reads the spec off the parameters.

    Args:
        name: of the variant and its targets.
        precision: that it declares.
        compute: parameters and images, NumPy arrays in the storage type, to outputs.
        packages: distributions that take part in the computation, for the versions.
        slow: see `Variant`.
    """

    def make(spec: Spec) -> Target:
        def run(params: Params, x: np.ndarray) -> Output:
            with np.errstate(all="ignore"):  # what overflows is for the judge to see, not for a warning to stop
                return compute(params, x)

        versions = {package: importlib.metadata.version(package) for package in packages}
        return Target(f"honest:{name}", spec, run, precision, variant=make, versions=versions)

    return Variant(name, make, precision, slow)


def outputs(
    params: Params, x: Array, forms: Primitives, tap: Tap = no_tap, *, traced: bool = False
) -> dict[str, Array]:
    """The network's output under "logits", computed by `forms` on arrays of any library.

    Args:
        params: of the library and type of x.
        x: (N, H, W, channels).
        forms: the functions that compute.
        tap: sees every value, and may replace it.
        traced: whether to give every value that `coatref.trace` names too, as far as `forms` show them.
    """
    model.check_input(params, x)
    values: dict[str, Array] = {}

    def watch(name: str, value: Array) -> Array:
        values[name] = tap(name, value)
        return values[name]

    logits = model.run(params, x, forms, watch if traced else tap)
    return {**values, "logits": logits}


def to_numpy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of any library as NumPy arrays; bfloat16 as float32 numbers."""
    from coatref.registry import library_of

    return {name: library_of(value).to_numpy(value) for name, value in values.items()}
