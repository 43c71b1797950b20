"""coatref's own file: safetensors with our dotted names and the spec as JSON in the metadata."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from coatref.errors import FileFormatError, InputError, SpecError
from coatref.params import Params, first_array
from coatref.registry import library_of
from coatref.specification.spec import Spec

SPEC_KEY = "coatref.spec"
VERSION_KEY = "coatref.format"
VERSION = "1"


def save(params: Params, path: str | os.PathLike[str]) -> None:
    """Write parameters and their spec to one safetensors file; `coatref.load` reads both back.

    The file appears under its name only when it is whole: it is written beside it and moved into place.

    Raises:
        InputError: `params` are no Params.
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save_file

    if not isinstance(params, Params):
        raise InputError(f"save takes coatref Params, got {type(params).__name__}.")
    library = library_of(first_array(params))
    arrays = {name: np.ascontiguousarray(library.to_numpy(array)) for name, array in params.flatten().items()}
    metadata = {VERSION_KEY: VERSION, SPEC_KEY: params.spec.to_json()}
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(arrays, temporary, metadata=metadata)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes a private file; this is what open() would have made
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
    except SpecError as error:
        raise FileFormatError(f"The spec in the metadata of {path} cannot be used: {error}") from None
