"""What the adapters have in common: how a target is spelled on the command line, its options, and versions."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Collection, Mapping

from coatref.conformance.precision import Precision, declared
from coatref.errors import InputError
from coatref.specification.spec import Spec


def command(
    text: str, *, spec: Spec | None, precision: Precision, options: Mapping[str, str], half: Precision | None = None
) -> str:
    """The arguments of `coatref check` for a target.

    Args:
        text: the target as it is written, such as "timm:coatnet_0_rw_224".
        spec: that was asked for; None where the target's own is meant.
        precision: that is declared.
        options: of the adapter, by name.
        half: the policy that the adapter takes for this storage type where no type of sums is declared; None: that of
            `declared`.
    """
    words = [text]
    if spec is not None:
        words += ["--spec", spec.name]
    words += ["--dtype", precision.storage]
    if precision != (half or declared(precision.storage)):
        words += ["--accumulate", precision.accumulate]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)


def refuse_options(kind: str, options: Mapping[str, str], known: Collection[str] = ()) -> None:
    """Refuse options that an adapter does not have.

    Raises:
        InputError: names them.
    """
    unknown = [name for name in options if name not in known]
    if unknown:
        takes = f"takes {', '.join(known)}" if known else "takes none"
        raise InputError(f"A {kind}: target was given the option {', '.join(unknown)}; it {takes}.")


def versions(*modules: str) -> dict[str, str]:
    """Name -> version of coatref and of modules that are imported."""
    return {name: str(importlib.import_module(name).__version__) for name in ("coatref", *modules)}
