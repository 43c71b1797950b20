"""`jax:package.module:apply_fn`: a function of one's own on JAX, `apply_fn(params, x)`, compiled with `jax.jit`.

It is handed `coatref.Params` of JAX arrays (a pytree: nested mappings and tuples, `params["s3"][0]["attn"]["q"]["w"]`)
and images (N, H, W, channels), both in the storage type, and gives the logits or a mapping with "logits" and any value
that `coatref.trace` names. `SPEC` and `ANY_SPEC` of the module mean what they mean for a `python:` target.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision
from coatref.conformance.target import Output, Target
from coatref.conformance.targets.python import claimed, yes_or_no
from coatref.conformance.targets.spelling import command, refuse_options, versions
from coatref.conformance.targets.user_code import imported_function
from coatref.params import Params
from coatref.registry import missing, place, resolve_dtype, resolve_library
from coatref.specification.catalogue import resolve
from coatref.specification.spec import Spec


def make(
    argument: str,
    *,
    spec: Spec | None = None,
    weights: Params | None = None,
    precision: Precision | None = None,
    options: Mapping[str, str] | None = None,
) -> Target:
    """A user's function on JAX as a target; option "jit" ("yes" or "no"): whether it is compiled, and "any_spec".

    Raises:
        InputError: there is no such function, or nothing says which spec it computes.
        MissingDependencyError: JAX is not installed.
    """
    options = options or {}
    refuse_options("jax", options, ("jit", "any_spec"))
    module, function = imported_function(argument, "The jax: target")
    any_spec = yes_or_no("any_spec", options.get("any_spec", "yes" if getattr(module, "ANY_SPEC", False) else "no"))
    policy = precision or Precision()
    return jax_target(
        function,
        claimed(f"jax:{argument}", spec, getattr(module, "SPEC", None)),
        jit=yes_or_no("jit", options.get("jit", "yes")),
        any_spec=any_spec,
        precision=policy,
        weights=weights,
        name=f"jax:{argument}",
        command=command(f"jax:{argument}", spec=spec, precision=policy, options=options),
    )


def jax_target(
    apply_fn: Callable[[Params, Any], Any],
    spec: Spec | str,
    *,
    jit: bool = True,
    any_spec: bool = False,
    precision: Precision | None = None,
    weights: Params | None = None,
    name: str = "",
    command: str = "",
) -> Target:
    """A function on JAX arrays as a target.

    Args:
        apply_fn: see the module.
        jit: whether it is compiled, once for each spec and shape.
        spec, any_spec, precision, weights, name, command: as for `python_target`.

    Raises:
        MissingDependencyError: JAX is not installed.
    """
    jax = jax_module()
    name = name or f"jax:{getattr(apply_fn, '__name__', type(apply_fn).__name__)}"
    policy = precision or Precision()
    compute, library = jax.jit(apply_fn) if jit else apply_fn, resolve_library("jax")

    def host(value: Any) -> Any:
        return np.asarray(library.to_numpy(value)) if isinstance(value, jax.Array) else value

    def run(params: Params, x: np.ndarray) -> Output:
        with types_for(policy.storage):
            images = place(library, x, resolve_dtype(library, policy.storage), None)
            output = compute(params.to(xp="jax", dtype=policy.storage), images)
            named = output if isinstance(output, Mapping) else {"logits": output}
            return {key: host(value) for key, value in named.items()}

    def other(asked: Spec) -> Target:
        return jax_target(apply_fn, asked, jit=jit, any_spec=True, precision=precision, name=name, command=command)

    return Target(
        name=name,
        spec=resolve(spec),
        precision=policy,
        run=run,
        params=weights,
        variant=other if any_spec else None,
        command=command,
        versions=versions("jax"),
    )


def types_for(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """JAX's 64-bit types within a `with`, where the type needs them; as before afterwards."""
    if dtype != "float64":
        return contextlib.nullcontext()
    jax = jax_module()
    place = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")  # before 0.8
    return place.enable_x64(True)  # type: ignore[no-any-return]


def jax_module() -> Any:
    """The jax module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import jax
    except ImportError:
        raise missing("jax", "jax", "A target on JAX") from None
    return jax
