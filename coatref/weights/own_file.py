"""coatref's own file: safetensors with our dotted names and the spec as JSON in the metadata."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

import numpy as np

from coatref.errors import CoatrefError, FileFormatError, InputError
from coatref.params import Params
from coatref.specification.spec import Spec
from coatref.weights.files import on_host, path_of

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
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if not isinstance(params, Params):
        raise InputError(f"save takes coatref Params, got {type(params).__name__}.")
    target = path_of(path)
    if target.suffix.lower() != ".safetensors":
        raise InputError(
            f"{target} ends in {target.suffix!r}; save writes a .safetensors file, which load knows by that."
        )
    target = Path(os.path.realpath(target))  # so that a link stays one
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent} to write {target.name} to; make it first.")
    arrays = {name: np.ascontiguousarray(on_host(name, array)) for name, array in params.flatten().items()}
    metadata = {VERSION_KEY: VERSION, SPEC_KEY: params.spec.to_json()}
    temporary = target.with_name(f".coatref-{secrets.token_hex(8)}")
    try:
        mode = created(temporary)
        save_file(arrays, temporary, metadata=metadata)
        os.chmod(temporary, mode)  # some versions of safetensors make a private file
        os.replace(temporary, target)
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def created(path: Path) -> int:
    """Make an empty new file, and give the permissions that new files get here."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


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
