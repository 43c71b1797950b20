"""`backend:numpy`: coatref's own forward pass on an array library, with the library's fast forms where it has some.

After the colon stands a registered array library (numpy, torch, jax, cupy, array_api_strict), or a way of compiling:
jax-jit, torch-compile. It computes every spec, and gives the logits alone: intermediate values would be the
definition's, not those of a compiled or fused form.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision
from coatref.conformance.target import Output, Target
from coatref.conformance.targets.jax import types_for
from coatref.conformance.targets.spelling import command, refuse_options, versions
from coatref.errors import InputError
from coatref.model import forward
from coatref.params import Params, from_flat
from coatref.registry import Library, place, registered, resolve_dtype, resolve_library
from coatref.specification.catalogue import spec as named_spec
from coatref.specification.spec import Spec

ANY_SPEC = "coatnet_0"  # judged where no spec is given

Forward = Callable[[Params, Any], Any]


def undeclared(dtype: str) -> Precision:
    """The policy for a storage type: what is computed operation by operation rounds every sum to that type."""
    return Precision(dtype, dtype)


def make(
    argument: str,
    *,
    spec: Spec | None = None,
    weights: Params | None = None,
    precision: Precision | None = None,
    options: Mapping[str, str] | None = None,
) -> Target:
    """coatref on an array library as a target.

    Raises:
        InputError: there is no such library, it lacks the storage type, or options are given (there are none).
        MissingDependencyError: the library is not installed.
    """
    refuse_options("backend", options or {})
    compiled: dict[str, tuple[str, Callable[[], Forward]]] = {
        "jax-jit": ("jax", jitted),
        "torch-compile": ("torch", torch_compiled),
    }
    if argument not in (*registered(), *compiled):
        raise InputError(
            f"The target 'backend:{argument:.100}' was asked for; there are {', '.join((*registered(), *compiled))}."
        )
    name, compile_ = compiled.get(argument, (argument, lambda: forward))
    library, policy = resolve_library(name), precision or Precision()
    with types(library, policy.storage):
        resolve_dtype(library, policy.storage)  # refused here rather than in every run
    return on_library(argument, library, compile_(), spec, weights, policy)


def on_library(
    argument: str, library: Library, compute: Forward, spec: Spec | None, weights: Params | None, precision: Precision
) -> Target:
    """The target for one spec, which makes those for others."""

    def run(params: Params, x: np.ndarray) -> Output:
        with types(library, precision.storage):
            images = place(library, x.copy(), resolve_dtype(library, precision.storage), None)
            logits = compute(params.to(xp=library.name, dtype=precision.storage), images)
            return {"logits": np.asarray(library.to_numpy(logits))}

    return Target(
        name=f"backend:{argument}",
        spec=spec or named_spec(ANY_SPEC),
        precision=precision,
        run=run,
        params=weights,
        variant=lambda other: on_library(argument, library, compute, other, None, precision),
        command=command(
            f"backend:{argument}", spec=spec, precision=precision, options={}, half=undeclared(precision.storage)
        ),
        versions={**versions(), library.name: str(getattr(library.namespace(), "__version__", "unknown"))},
    )


def types(library: Library, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """What must hold while a library computes in a type: 64-bit types, which JAX has switched off by itself."""
    return types_for(dtype) if library.name == "jax" else contextlib.nullcontext()


def jitted() -> Forward:
    """The forward pass in one compiled program for each spec and shape."""
    import jax

    return jax.jit(forward)


def torch_compiled() -> Forward:
    """The forward pass through torch.compile, anew for each spec and shape, once it is a graph of torch's operations.

    torch.compile cannot follow coatref's own Python (its cached look-ups), so the graph is recorded first.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    graphs: dict[Any, Any] = {}

    def compute(params: Params, x: Any) -> Any:
        leaves, key = params.flatten(), (params.spec, tuple(x.shape), x.dtype)

        def network(arrays: dict[str, Any], images: Any) -> Any:
            return forward(from_flat(params.spec, arrays), images)

        if key not in graphs:
            with torch.no_grad():
                graphs[key] = torch.compile(make_fx(network)(leaves, x), dynamic=False)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.compile warns of itself
            return graphs[key](leaves, x)

    return compute
