"""Every honest implementation that can run here, by declared precision."""

from __future__ import annotations

import importlib.util

import numpy as np

from coatref.conformance.honest.folded import FOLDED, folded_variants
from coatref.conformance.honest.half import stored_variant
from coatref.conformance.honest.jax_variants import jax_variants
from coatref.conformance.honest.onnx import onnx_variants
from coatref.conformance.honest.reordered import reordered
from coatref.conformance.honest.torch_variants import compiler, torch_variants
from coatref.conformance.honest.variant import Variant, outputs, variant
from coatref.conformance.precision import Precision
from coatref.conformance.target import Output
from coatref.params import Params
from coatref.primitives import DEFINITION, Primitives

__all__ = ["Variant", "absent", "variants"]

SEEDS = (0, 1, 2, 3)  # of the reordered forms


def variants(precision: Precision, *, traced: bool = False) -> tuple[Variant, ...]:
    """The honest implementations of a precision; none where nothing computes so.

    Args:
        precision: float32 or float64 throughout, a type stored and a wider one accumulated, or a half type throughout.
        traced: whether they give the values that `coatref.trace` names, as far as they form them; those that fold
            weights and those that run a file do not.
    """
    found = [*numpy_variants(precision, traced=traced), *folded_variants(precision)]
    if present("torch"):
        found += torch_variants(precision, traced=traced)
    if present("jax"):
        found += jax_variants(precision, traced=traced)
    if all(map(present, ONNX)):
        found += onnx_variants(precision)
    return tuple(found)


def numpy_variants(precision: Precision, *, traced: bool = False) -> tuple[Variant, ...]:
    """Those on NumPy alone: the definition, and its sums in other orders."""
    storage, accumulate = precision.storage, precision.accumulate
    if storage != accumulate:
        if accumulate not in ("float32", "float64"):
            return ()
        front = ("half: " if storage in ("float16", "bfloat16") else "") + f"{storage} in {accumulate}"
        return (
            stored_variant(front, precision, DEFINITION, traced=traced),
            stored_variant(f"{front}, attention stored", precision, DEFINITION, attention=True, traced=traced),
            stored_variant(f"{front}, folded", precision, FOLDED, traced=traced),
            *(stored_variant(f"{front}, reordered {s}", precision, reordered(s), traced=traced) for s in SEEDS),
        )
    if storage == "bfloat16":
        return ()  # which NumPy lacks
    if storage == "float16":
        return (on_numpy("half: all float16, numpy", precision, DEFINITION, traced),)
    return (
        on_numpy("numpy", precision, DEFINITION, traced),
        *(on_numpy(f"reordered {seed}", precision, reordered(seed), traced) for seed in SEEDS),
    )


def on_numpy(name: str, precision: Precision, forms: Primitives, traced: bool) -> Variant:
    """A variant that computes on the arrays as they come."""

    def compute(params: Params, x: np.ndarray) -> Output:
        return outputs(params, x, forms, traced=traced)

    return variant(name, precision, compute)


ONNX = ("torch", "onnx", "onnxscript", "onnxruntime")


def absent() -> dict[str, str]:
    """Name of each variant (or family of them) that is left out here -> why."""
    needs = {"torch": ("torch",), "torch.compile": ("torch",), "jax": ("jax",), "onnxruntime": ONNX}
    found = {
        name: f"needs {', '.join(lacking)}, which is not installed"
        for name, packages in needs.items()
        if (lacking := [package for package in packages if not present(package)])
    }
    if "torch.compile" not in found and compiler() is None:
        found["torch.compile"] = "needs a C++ compiler (g++, clang++ or c++), and finds none"
    return found


def present(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None
