"""What a user may give for a spec, weights, a level and a seed, on the command line, to pytest or in Python."""

from __future__ import annotations

import os
from pathlib import Path

from coatref.errors import FileFormatError, InputError
from coatref.params import Params
from coatref.specification.catalogue import spec as named_spec
from coatref.specification.catalogue import specs
from coatref.specification.spec import Spec

LEVELS = ("quick", "default", "deep")


def spec_of(given: Spec | str | os.PathLike[str] | None) -> Spec | None:
    """The spec that is meant by a spec, the name of one, or the path of a JSON file that `Spec.to_json` gave.

    A text is taken for a path where it ends in ".json".

    Raises:
        UnknownSpecError: no spec has that name.
        FileNotFoundError, FileFormatError: there is no such file, or it is no text.
        SpecError: the file does not describe a spec.
    """
    if given is None or isinstance(given, Spec):
        return given
    text = os.fspath(given)
    if not text.lower().endswith(".json"):
        return named_spec(text)
    path = Path(text)
    if not path.is_file():
        raise FileNotFoundError(f"There is no spec file {text}; `coatref.Spec.to_json` gives what belongs into one.")
    try:
        return Spec.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{text} is no JSON text ({error}); make it with `coatref.Spec.to_json`.") from None


def weights_of(
    given: Params | str | os.PathLike[str] | None, spec: Spec | None, target: str = "", dialect: str | None = None
) -> Params | None:
    """The parameters that are meant by parameters, or by the path of a file that `coatref.load` reads.

    Args:
        given: parameters, a path, or None.
        spec: what the file is; None: what it says itself, or else what the target is.
        target: as the user wrote it; "timm:NAME" says that the file is of the spec "timm/NAME".
        dialect: whose names the tensors have; None: recognised.

    Raises:
        FileNotFoundError, CoatrefError: as `coatref.load` raises them.
    """
    if given is None or isinstance(given, Params):
        return given
    from coatref.weights.load import load

    try:
        return load(given, spec, dialect=dialect)
    except InputError:
        kind, _, name = target.partition(":")
        if spec is not None or kind != "timm" or f"timm/{name}" not in specs():
            raise
    return load(given, f"timm/{name}", dialect=dialect)


def refuse_level(level: str, known: tuple[str, ...] = LEVELS) -> str:
    """The level as it is.

    Raises:
        InputError: it is not known.
    """
    if level not in known:
        raise InputError(f"The level {level!r:.80} is not known; it is one of {', '.join(known)}.")
    return level


def seed_of(text: str) -> int:
    """A seed written as text.

    Raises:
        InputError: it is no whole number from 0.

    >>> seed_of("7")
    7
    """
    if not text.isascii() or not text.isdigit():
        raise InputError(f"A seed is a whole number from 0, got {text!r:.80}.")
    return int(text)
