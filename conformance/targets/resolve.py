"""From the text of a target, such as "timm:coatnet_0_rw_224", to the target."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from coatref.conformance.precision import Precision, declared
from coatref.conformance.target import Target
from coatref.errors import InputError
from coatref.params import Params
from coatref.specification.catalogue import resolve as named_spec
from coatref.specification.spec import Spec

# Kind of target -> the function that makes one; its module is imported only when it is used. Beside it a module may have
# `undeclared(dtype) -> Precision`, the policy for a storage type where no type of sums is declared.
KINDS: dict[str, str] = {
    "backend": "coatref.conformance.targets.backend:make",
    "timm": "coatref.conformance.targets.timm:make",
    "kecam": "coatref.conformance.targets.kecam:make",
    "torch": "coatref.conformance.targets.torch:make",
    "python": "coatref.conformance.targets.python:make",
    "jax": "coatref.conformance.targets.jax:make",
    "onnx": "coatref.conformance.targets.onnx:make",
    "cmd": "coatref.conformance.targets.command:make",
    "results": "coatref.conformance.targets.results:make",
}


def resolve(
    text: str,
    *,
    spec: Spec | str | None = None,
    weights: Params | None = None,
    precision: Precision | str | None = None,
    **options: str,
) -> Target:
    """The target that a text means.

    Args:
        text: "kind:argument", with a kind of `KINDS`.
        spec: the network that it claims to compute, or its name; None: that of the weights, else the target's own.
        weights: those that it is to be judged with as given.
        precision: that it declares; a storage type alone ("bfloat16") leaves the type of sums to the kind of target, and
            None is float32.
        options: what the kind of target takes beside, such as `dialect="timm"`.

    Raises:
        InputError: the text, a module, a name in it or an option is not to be had.
        UnknownSpecError, MissingDependencyError, SpecError: as the spec or the target needs it.
    """
    kind, colon, argument = str(text).partition(":")
    if kind not in KINDS or not colon or not argument:
        similar = difflib.get_close_matches(kind, KINDS, n=1)
        advice = f"did you mean {similar[0]}:...? " if similar and kind not in KINDS else ""
        raise InputError(
            f"The target {text!r:.200} was asked for; {advice}a target is written kind:argument, with one of the kinds "
            f"{', '.join(KINDS)}."
        )
    claimed = None if spec is None else named_spec(spec)
    if weights is not None:
        if claimed is not None and claimed != weights.spec:
            raise InputError(
                f"The target {text!r:.200} was asked for as {claimed.name!r} with weights of {weights.spec.name!r}, and "
                "the two specs differ; leave spec out to take that of the weights."
            )
        claimed = weights.spec
    place, _, function = KINDS[kind].partition(":")
    module = importlib.import_module(place)
    if isinstance(precision, str):
        precision = getattr(module, "undeclared", declared)(precision)
    made: Any = getattr(module, function)(
        argument, spec=claimed, weights=weights, precision=precision, options=dict(options)
    )
    if not isinstance(made, Target):
        raise TypeError(f"{KINDS[kind]} gave a {type(made).__name__} and no Target.")
    return made
