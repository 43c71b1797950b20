"""`torch:package.module:factory`: an `nn.Module` of one's own.

The factory gives the module. If it takes an argument `spec` it is handed the `coatref.Spec`, if it takes `img_size` the
image's (height, width), and can then be judged in other sizes too. Weights are handed over in a dialect, by names that
`coatref.weights.export` knows, or by a function of one's own from `coatref.Params` to a state dict. Values inside are
watched under the names of a trace where a file maps parts of the module to them:

    {"stem": "s0", "blocks.0": "s1.0", "blocks.3.norm2:input": "s3.0.attn_sum"}

":input" takes what comes into the part rather than what it gives. Precision: see `coatref.conformance.targets.modules`.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from coatref.conformance.precision import Precision
from coatref.conformance.target import Output, Target
from coatref.conformance.targets.modules import (
    Hook,
    Layout,
    is_vector,
    module_type,
    run_module,
    submodule,
    torch_module,
)
from coatref.conformance.targets.python import claimed
from coatref.conformance.targets.spelling import command, refuse_options, versions
from coatref.conformance.targets.user_code import importable_from_here, imported_function
from coatref.errors import InputError
from coatref.params import Params
from coatref.specification.catalogue import resolve
from coatref.specification.spec import Spec
from coatref.weights.export import DIALECTS, views

Mapped = Callable[[Params], Mapping[str, Any]]
Takes = Literal["spec", "img_size", "nothing"]
OPTIONS = ("dialect", "mapping", "names", "layout")


def make(
    argument: str,
    *,
    spec: Spec | None = None,
    weights: Params | None = None,
    precision: Precision | None = None,
    options: Mapping[str, str] | None = None,
) -> Target:
    """A user's module as a target.

    Options: "dialect" or "mapping" ("package.module:function"), "names" (a JSON file) and "layout" ("NCHW" or "NHWC"), as
    in `torch_target`.

    Raises:
        InputError: there is no such factory, function or file, an option cannot be used, or nothing says which spec the
            module computes.
        MissingDependencyError: torch is not installed.
    """
    options = options or {}
    refuse_options("torch", options, OPTIONS)
    torch_module()
    module, factory = imported_function(argument, "The torch: target")
    mapping = imported_function(options["mapping"], "The mapping")[1] if "mapping" in options else None
    policy = precision or Precision()
    return torch_target(
        factory,
        claimed(f"torch:{argument}", spec, getattr(module, "SPEC", None)),
        dialect=options.get("dialect"),
        mapping=mapping,
        names=options.get("names"),
        layout=options.get("layout", "NCHW"),  # type: ignore[arg-type]  # checked there
        precision=policy,
        weights=weights,
        name=f"torch:{argument}",
        command=command(f"torch:{argument}", spec=spec, precision=policy, options=options),
    )


def torch_target(
    factory: Any,
    spec: Spec | str,
    *,
    dialect: str | None = None,
    mapping: Mapped | None = None,
    names: Mapping[str, str] | str | Path | None = None,
    layout: Layout = "NCHW",
    precision: Precision | None = None,
    weights: Params | None = None,
    name: str = "",
    command: str = "",
) -> Target:
    """A torch module as a target.

    Args:
        factory: gives the module: a function or class, called with `spec=` or `img_size=` where it takes them; or the
            module itself, of which a copy is used.
        spec: what it computes.
        dialect: whose names and layouts its state dict has, of `coatref.weights.export`; None: the spec's own, such as
            timm's for a spec "timm/...", else ours.
        mapping: in place of a dialect, a function from parameters (NumPy) to its state dict, of arrays or tensors.
        names: part of the module -> name of its value in a trace, or a JSON file of that; see above.
        layout: in which it takes images and gives values with four axes.
        precision: that it declares; None: float32.
        weights: that it is to be judged with as given.
        name: of the target; "": from the factory's.
        command: the arguments of `coatref check` that make it.

    Raises:
        InputError: dialect, names or layout cannot be used, or the factory does not give a module, or fails.
        MissingDependencyError: torch is not installed.
    """
    torch, spec = torch_module(), resolve(spec)
    if layout not in get_args(Layout):
        raise InputError(f"The layout of a torch: target is one of {', '.join(get_args(Layout))}, got {layout!r:.80}.")
    if mapping is not None and dialect is not None:
        raise InputError("A torch: target takes a dialect or a mapping for its weights, and was given both.")
    own = spec.name.partition("/")[0]
    dialect = dialect or (own if own in DIALECTS else "coatref")
    if dialect not in DIALECTS:
        raise InputError(f"A torch: target was given the dialect {dialect!r:.80}; there are {', '.join(DIALECTS)}.")
    policy, state_of = precision or Precision(), mapping or (lambda params: views(params, dialect))
    title = name or f"torch:{getattr(factory, '__name__', type(factory).__name__)}"
    model = built(factory, spec, title).to(module_type(policy)).eval()
    watch = hooks(names_from(names), spec)
    for hook in watch:
        submodule(model, hook)  # refused here rather than in every run

    def run(params: Params, x: np.ndarray) -> Output:
        return run_module(model, state_of(params), x, policy, watch, layout)

    def other(asked: Spec) -> Target:
        if takes == "img_size" and asked != spec.replace(image_size=asked.image_size):
            raise InputError(
                f"The target {title!r:.200} can be had for other image sizes only, as its factory takes img_size; one "
                "that takes spec can be had for any spec."
            )
        return torch_target(
            factory,
            asked,
            dialect=None if mapping is not None else dialect,
            mapping=mapping,
            names=names_from(names) if same_blocks(asked, spec) else None,  # a part has another meaning there
            layout=layout,
            precision=precision,
            name=title,
            command=command,
        )

    takes = argument_of(factory, torch)
    return Target(
        name=title,
        spec=spec,
        precision=policy,
        run=run,
        params=weights,
        variant=None if takes == "nothing" else other,
        command=command,
        versions=versions("torch"),
    )


def same_blocks(spec: Spec, other: Spec) -> bool:
    """Whether two specs have the same blocks but for their widths."""

    def blocks(each: Spec) -> list[tuple[str, str, int]]:
        return [(block.name, block.run.kind, block.stride) for block in each.blocks()]

    return blocks(spec) == blocks(other)


def argument_of(factory: Any, torch: Any) -> Takes:
    """What a factory takes to build for another size."""
    if isinstance(factory, torch.nn.Module):
        return "nothing"
    try:
        taken = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # written in C
        return "nothing"
    return "spec" if "spec" in taken else "img_size" if "img_size" in taken else "nothing"


def built(factory: Any, spec: Spec, title: str) -> Any:
    """A module for a spec.

    Raises:
        InputError: the factory fails, or gives no module.
    """
    torch = torch_module()
    if isinstance(factory, torch.nn.Module):
        return copy.deepcopy(factory)
    taken = argument_of(factory, torch)
    choices: dict[Takes, dict[str, Any]] = {
        "spec": {"spec": spec},
        "img_size": {"img_size": spec.image_size},
        "nothing": {},
    }
    arguments = choices[taken]
    try:
        with torch.random.fork_rng(devices=[]), importable_from_here():  # modules draw from torch's global generator
            model = factory(**arguments)
    except Exception as error:
        raise InputError(
            f"The factory of {title!r:.200} failed for spec {spec.name!r} with {type(error).__name__}: "
            f"{str(error)[:300]}; it is called with {', '.join(arguments) or 'no arguments'}."
        ) from error
    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"The factory of {title!r:.200} must give a torch.nn.Module, and gave a {type(model).__name__}."
        )
    return model


def names_from(names: Mapping[str, str] | str | Path | None) -> Mapping[str, str]:
    """Part of a module -> name of a value, from a mapping or a JSON file.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    if names is None or isinstance(names, Mapping):
        found: Any = names or {}
    else:
        try:
            found = json.loads(Path(names).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"The names of a torch: target should be in {str(names)!r:.200}, which cannot be read as JSON ({error})."
            ) from None
    if not isinstance(found, Mapping) or not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise InputError('The names of a torch: target are texts to texts, as in {"stem": "s0", "blocks.0": "s1.0"}.')
    return found


def hooks(names: Mapping[str, str], spec: Spec) -> tuple[Hook, ...]:
    """The values to watch."""
    found = []
    for part, value in names.items():
        module, _, at = part.partition(":")
        if at not in ("", "input"):
            raise InputError(
                f"The part {part!r:.200} of a torch: target ends in ':{at}'; only ':input' can stand there."
            )
        found.append(Hook(value, module, "input" if at else "output", vector=is_vector(value, spec)))
    return tuple(found)
