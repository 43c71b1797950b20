"""`python:package.module:adapter`: a function of one's own, `adapter(params, x)`.

It is handed `coatref.Params` of NumPy arrays and images (N, H, W, channels) as a NumPy array, and gives the logits (N,
classes) or a mapping with "logits" and any value that `coatref.trace` names, as arrays of any library. The module says
with `SPEC` (a `coatref.Spec` or the name of one) what it computes, unless the spec is given, and with `ANY_SPEC = True`
that the function reads `params.spec` and computes any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision
from coatref.conformance.target import Output, Target
from coatref.conformance.targets.spelling import command, refuse_options, versions
from coatref.conformance.targets.user_code import imported_function
from coatref.errors import InputError
from coatref.params import Params
from coatref.specification.catalogue import resolve
from coatref.specification.spec import Spec

Adapter = Callable[[Params, np.ndarray], Any]


def make(
    argument: str,
    *,
    spec: Spec | None = None,
    weights: Params | None = None,
    precision: Precision | None = None,
    options: Mapping[str, str] | None = None,
) -> Target:
    """A user's function as a target; option "any_spec" ("yes" or "no") stands in for the module's `ANY_SPEC`.

    Raises:
        InputError: there is no such function, or nothing says which spec it computes.
    """
    options = options or {}
    refuse_options("python", options, ("any_spec",))
    module, adapter = imported_function(argument, "The python: target")
    any_spec = yes_or_no("any_spec", options.get("any_spec", "yes" if getattr(module, "ANY_SPEC", False) else "no"))
    policy = precision or Precision()
    return python_target(
        adapter,
        claimed(f"python:{argument}", spec, getattr(module, "SPEC", None)),
        any_spec=any_spec,
        precision=policy,
        weights=weights,
        name=f"python:{argument}",
        command=command(f"python:{argument}", spec=spec, precision=policy, options=options),
    )


def python_target(
    adapter: Adapter,
    spec: Spec | str,
    *,
    any_spec: bool = False,
    precision: Precision | None = None,
    weights: Params | None = None,
    name: str = "",
    command: str = "",
) -> Target:
    """A function `adapter(params, x)` as a target.

    Args:
        adapter: see the module.
        spec: what it computes.
        any_spec: whether it computes other specs too, those of the parameters that it is handed.
        precision: that it declares; None: float32.
        weights: that it is to be judged with as given.
        name: of the target; "": from the function's.
        command: the arguments of `coatref check` that make it.
    """
    name = name or f"python:{getattr(adapter, '__name__', type(adapter).__name__)}"

    def run(params: Params, x: np.ndarray) -> Output:
        output = adapter(params, x)
        return output if isinstance(output, Mapping) else {"logits": output}

    def other(asked: Spec) -> Target:
        return python_target(adapter, asked, any_spec=True, precision=precision, name=name, command=command)

    return Target(
        name=name,
        spec=resolve(spec),
        precision=precision or Precision(),
        run=run,
        params=weights,
        variant=other if any_spec else None,
        command=command,
        versions=versions("numpy"),
    )


def claimed(text: str, spec: Spec | None, own: Any = None) -> Spec:
    """The spec that a target claims: the one given, else the one that its module names.

    Raises:
        InputError: there is neither.
    """
    if spec is not None:
        return spec
    if isinstance(own, (Spec, str)):
        return resolve(own)
    raise InputError(
        f"The target {text!r:.200} does not say which network it computes; pass spec=... (--spec NAME), or set SPEC in "
        "its module; coatref.specs() lists the names."
    )


def yes_or_no(option: str, text: str) -> bool:
    """What an option says.

    Raises:
        InputError: neither "yes" nor "no".
    """
    if text not in ("yes", "no"):
        raise InputError(f"The option {option} is yes or no, got {text!r:.80}.")
    return text == "yes"
