"""Honest implementations in torch: the definition on tensors, torch's own kernels, and both compiled."""

from __future__ import annotations

import functools
import shutil
import warnings
from typing import Any

import numpy as np

from coatref.conformance.honest.torch_native import native
from coatref.conformance.honest.variant import Variant, outputs, to_numpy, variant
from coatref.conformance.precision import Precision
from coatref.conformance.target import Output
from coatref.initialise import init
from coatref.params import Params, from_flat, tensor_tree
from coatref.primitives import DEFINITION, Primitives
from coatref.registry import Array
from coatref.specification.spec import Spec
from coatref.tree import flatten

FORMS = ("definition", "nchw", "channels-last")


def torch_variants(precision: Precision, *, traced: bool = False) -> tuple[Variant, ...]:
    """Those that compute in the storage type, one rounding for each primitive or (where that is declared) more."""
    half = precision.storage in ("float16", "bfloat16")
    if precision.accumulate not in (precision.storage, "float32"):
        return ()
    if precision.storage != precision.accumulate and not half:
        return ()
    wide = precision.storage != precision.accumulate
    kind = f"{precision.storage} in {precision.accumulate}" if wide else f"all {precision.storage}"
    front = f"half: {kind}, " if half else ""
    found = []
    for form in FORMS:
        if form == "definition" and wide:
            continue  # operation by operation, each rounds to the storage type
        found.append(_eager(f"{front}torch {form}", form, precision, wide, traced))
    if compiler() is not None and not wide:
        found.append(_compiled(f"{front}torch.compile", precision, traced))
    return tuple(found)


def compiler() -> str | None:
    """Where the C++ compiler is that torch.compile needs."""
    return next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)


def forms_of(form: str, wide: bool) -> Primitives:
    """The functions that compute, by the name of the form."""
    return DEFINITION if form == "definition" else native(form, wide=wide)  # type: ignore[arg-type]


def _eager(name: str, form: str, precision: Precision, wide: bool, traced: bool) -> Variant:
    def compute(params: Params, x: np.ndarray) -> Output:
        import torch

        with torch.no_grad():
            tensors, images = as_tensors(params, x, precision.storage)
            return to_numpy(outputs(tensors, images, forms_of(form, wide), traced=traced))

    return variant(name, precision, compute, packages=("torch",))


def _compiled(name: str, precision: Precision, traced: bool) -> Variant:
    def compute(params: Params, x: np.ndarray) -> Output:
        import torch

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.compile warns of itself
            tensors, images = as_tensors(params, x, precision.storage)
            network = compiled(params.spec, tuple(images.shape), precision.storage, traced)
            return to_numpy(network(in_order(tensors), images))

    return variant(name, precision, compute, packages=("torch",), slow=True)


def as_tensors(params: Params, x: np.ndarray, dtype: str) -> tuple[Params, Array]:
    """NumPy parameters and images as tensors of a type."""
    import torch

    return params.to(xp="torch", dtype=dtype), torch.tensor(x).to(getattr(torch, dtype))


def function_of(spec: Spec, form: str, *, traced: bool = False) -> Any:
    """A function of a list of tensors (the parameters in the spec's order) and images, for torch to trace."""
    names = names_of(spec)
    forms = forms_of(form, False)

    def network(tensors: list[Array], x: Array) -> dict[str, Array]:
        params = from_flat(spec, dict(zip(names, tensors, strict=True)))
        return outputs(params, x, forms, traced=traced)

    return network


def names_of(spec: Spec) -> list[str]:
    """Dotted names of the parameters in the spec's order."""
    return [name for name, _ in flatten(tensor_tree(spec))]


def in_order(params: Params) -> list[Array]:
    """The arrays in the spec's order."""
    flat = params.flatten()
    return [flat[name] for name in names_of(params.spec)]


@functools.lru_cache(maxsize=8)
def compiled(spec: Spec, shape: tuple[int, ...], dtype: str, traced: bool) -> Any:
    """The network as torch.compile makes it of torch's kernels in "nchw", for images of one shape."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        example, images = as_tensors(init(spec, dtype="float32"), np.zeros(shape, np.float32), dtype)
        graph = make_fx(function_of(spec, "nchw", traced=traced))(in_order(example), images)
        return torch.compile(graph, dynamic=False)
