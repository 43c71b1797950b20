"""Parameters to a file in a dialect's names."""

from __future__ import annotations

import os

from coatref.errors import InputError
from coatref.params import Params
from coatref.weights.dialects import DIALECTS
from coatref.weights.export import dialect_named, layout_named, views
from coatref.weights.files import path_of
from coatref.weights.own_file import save
from coatref.weights.write import write_tensors

TORCH = {"format": "pt"}  # what libraries of torch's look for in a safetensors file


def write_dialect(
    params: Params, path: str | os.PathLike[str], dialect: str = "coatref", *, layout: str | None = None
) -> str:
    """Write parameters to a file under a dialect's names; `coatref.load` gives them back, bit for bit.

    Args:
        params: of any library.
        path: ending in `.safetensors`, `.npz` or `.h5`; it is replaced as a whole or not at all.
        dialect: as in `coatref.export`. Under our own names a `.safetensors` file carries its spec, as from `coatref.save`;
            no other file does.
        layout: as in `coatref.export`; None: "keras" for an `.h5` file where the dialect has that, else its first.

    Returns:
        The layout.

    Raises:
        InputError: the ending, dialect or layout is not known, the dialect lacks a name for a layer, or the format cannot
            hold its names (an `.h5` file takes "LAYER/LEAF" only).
        OSError: the file cannot be written.
        MissingDependencyError: h5py is needed and not installed.
    """
    target = dialect_named(dialect, "A file")
    ending = path_of(path).suffix.lower()
    if layout is None and ending == ".h5" and "keras" in target.layouts:
        layout = "keras"
    layout = layout_named(target, layout)
    if ending == ".safetensors" and target is DIALECTS["coatref"]:
        if not isinstance(params, Params):
            raise InputError(f"A file is written of coatref Params, got {type(params).__name__}.")
        save(params, path)
        return layout
    metadata = TORCH if layout == "torch" and ending == ".safetensors" else None
    write_tensors(path, views(params, dialect, layout=layout), metadata)
    return layout
