"""coatref's own file: safetensors with our dotted names and the spec as JSON in the metadata."""

from __future__ import annotations

import os

from coatref.errors import CoatrefError, FileFormatError, InputError
from coatref.params import Params
from coatref.specification.spec import Spec
from coatref.weights.files import on_host, path_of
from coatref.weights.write import write_tensors

SPEC_KEY = "coatref.spec"
VERSION_KEY = "coatref.format"
VERSION = "1"


def save(params: Params, path: str | os.PathLike[str]) -> None:
    """Write parameters and their spec to one safetensors file; `coatref.load` reads both back.

    The file appears under its name only when it is whole: it is written beside it and moved into place. bfloat16 is
    written as float32, which changes no value.

    Raises:
        InputError: `params` are no Params, or the path does not end in `.safetensors`.
        WeightsError: an array is not floating, or has no values.
        OSError: the file cannot be written.
    """
    if not isinstance(params, Params):
        raise InputError(f"save takes coatref Params, got {type(params).__name__}.")
    target = path_of(path)
    if target.suffix.lower() != ".safetensors":
        raise InputError(
            f"{target} ends in {target.suffix!r}; save writes a .safetensors file, which load knows by that."
        )
    arrays = {name: on_host(name, array) for name, array in params.flatten().items()}
    write_tensors(target, arrays, {VERSION_KEY: VERSION, SPEC_KEY: params.spec.to_json()})


def spec_of(metadata: dict[str, str], path: str) -> Spec | None:
    """The spec that a file carries, or None.

    Raises:
        FileFormatError: it carries one that cannot be read, or was written by a later format.
    """
    if SPEC_KEY not in metadata:
        return None
    if metadata.get(VERSION_KEY) != VERSION:
        raise FileFormatError(
            f"{path} has coatref format {metadata.get(VERSION_KEY)!r:.50} and this version reads {VERSION!r}; "
            "upgrade coatref."
        )
    try:
        return Spec.from_json(metadata[SPEC_KEY])
    except CoatrefError as error:
        raise FileFormatError(f"The spec in the metadata of {path} cannot be used: {error}") from None
