"""From what a user gives to a report: the one way that Python, the command line and pytest share."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from coatref.conformance.given import refuse_level, spec_of, weights_of
from coatref.conformance.precision import declared
from coatref.conformance.progress import Progress
from coatref.conformance.report.results import Report
from coatref.conformance.target import Target
from coatref.errors import InputError
from coatref.params import Params
from coatref.specification.catalogue import spec as named
from coatref.specification.catalogue import specs
from coatref.specification.spec import Spec

PRIMITIVE = "op:"  # how a target begins that is one primitive and no network


def judged(
    target: str | Target | Callable[..., Any],
    *,
    spec: Spec | str | os.PathLike[str] | None = None,
    weights: Params | str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    accumulate: str | None = None,
    level: str = "default",
    seed: int = 0,
    progress: Progress | None = None,
    options: Mapping[str, str] | None = None,
) -> Report:
    """The report on a target.

    Args:
        target, spec, weights, dtype, accumulate, level, seed, progress: as in `coatref.check`.
        options: further options of the target's adapter by name, such as {"dialect": "timm"}; for a target in text only.

    Raises:
        CoatrefError, OSError: it could not be judged: an argument, a file, or a missing library.
    """
    refuse_level(level)
    if type(seed) is not int or seed < 0:
        raise InputError(f"A seed is a whole number from 0, got {seed!r:.80}.")
    precision = declared(dtype, accumulate)  # refuses what is not known
    claimed, options = spec_of(spec), dict(options or {})
    text = target if isinstance(target, str) else ""
    if options and not text:
        raise InputError(f"The options {', '.join(options)} are those of a target in text, such as 'onnx:model.onnx'.")
    if text.startswith(PRIMITIVE):
        refuse_for_primitive(text, {"spec": spec, "weights": weights, **options})
        from coatref.conformance.targets.op import judge

        return judge(text, dtype=dtype, accumulate=accumulate, level=level, seed=seed, options=options)
    repeat = command_line(text, spec, weights, dtype, accumulate, level, seed, options) if text else ""
    params = weights_of(weights, claimed, text, options.get("dialect"))
    if options:
        from coatref.conformance.targets.resolve import resolve

        policy = dtype if accumulate is None else precision  # undeclared, sums are as its kind of target takes them
        target = resolve(text, spec=claimed, weights=params, precision=policy, **options)
    from coatref.conformance.judge import check

    report = check(
        target,
        spec=claimed,
        weights=params,
        dtype=dtype,
        accumulate=accumulate,
        level=level,
        seed=seed,
        progress=progress,
    )
    return dataclasses.replace(report, reproduce=repeat) if repeat else report


def command_line(
    target: str,
    spec: Any,
    weights: Any,
    dtype: str,
    accumulate: str | None,
    level: str,
    seed: int,
    options: Mapping[str, str],
) -> str:
    """The command that repeats a judgement; "" where something was given that no command can give."""
    files: dict[str, Any] = {"spec": getattr(spec, "name", spec) if is_named(spec) else spec, "weights": weights}
    if any(value is not None and not isinstance(value, (str, os.PathLike)) for value in files.values()):
        return ""
    given = {name: os.fspath(value) for name, value in files.items() if value is not None}
    given |= {"dtype": dtype} | ({} if accumulate is None else {"accumulate": accumulate}) | dict(options)
    given |= {"level": level, "seed": str(seed)}
    words = ["coatref", "check", target]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)


def is_named(spec: Any) -> bool:
    """Whether a spec is just what its name says."""
    return isinstance(spec, Spec) and spec.name in specs() and named(spec.name) == spec


def refuse_for_primitive(target: str, given: Mapping[str, Any]) -> None:
    """Refuse what has no meaning for a single primitive.

    Raises:
        InputError: names what was given.
    """
    surplus = [name for name, value in given.items() if value is not None and name != "timeout"]
    if surplus:
        raise InputError(
            f"{' and '.join(surplus)} has no meaning for {target!r:.80}, which is one primitive and no network; leave it out."
        )
