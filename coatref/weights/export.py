"""From parameters to another project's names and layouts: the inverse of `coatref.convert`."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from coatref.errors import InputError
from coatref.params import Params
from coatref.specification.spec import Spec
from coatref.weights import timm
from coatref.weights.files import on_host

# Other projects' names: each module has `entries(spec)`, which says for every tensor of ours (`ours`) the name of the one
# that holds it (`theirs`; several of ours may stand in one), and `to_theirs(entries of one tensor, our arrays)`.
DIALECTS: dict[str, ModuleType] = {"timm": timm}


def names() -> tuple[str, ...]:
    """Every dialect that `export` writes."""
    return ("coatref", *DIALECTS)


def export(params: Params, dialect: str) -> dict[str, np.ndarray]:
    """Parameters as named NumPy arrays of a dialect, such that `coatref.convert` gives the same parameters, bit for bit.

    Args:
        params: arrays of any library.
        dialect: "coatref" for our dotted names, or whose names and layouts: one of `names()`.

    Returns:
        New arrays in the data types of the parameters (float32 for bfloat16, which changes no value). Buffers that hold
        no parameter, such as torch's counter of batches, are not among them.

    Raises:
        InputError: `params` are no Params, the dialect is not known, or it has no name for a layer of the spec.
        WeightsError: an array has no values.
    """
    return {name: np.array(array, order="C") for name, array in views(params, dialect).items()}


def views(params: Params, dialect: str) -> dict[str, np.ndarray]:
    """What `export` gives, with arrays that share memory with the parameters where they can: to be read, not kept."""
    if not isinstance(params, Params):
        raise InputError(f"export takes coatref Params, got {type(params).__name__}.")
    if dialect not in names():
        raise InputError(f"export has no dialect {dialect!r:.80}; it has {', '.join(names())}.")
    arrays = {name: on_host(name, array) for name, array in params.flatten().items()}
    if dialect == "coatref":
        return arrays
    module = DIALECTS[dialect]
    return {
        theirs: module.to_theirs(group, [arrays[entry.ours] for entry in group])
        for theirs, group in grouped(params.spec, dialect).items()
    }


def grouped(spec: Spec, dialect: str) -> dict[str, list[timm.Entry]]:
    """Name of each tensor of another project -> the entries of ours that stand in it.

    Raises:
        InputError: the dialect has no name for a layer of the spec.
    """
    groups: dict[str, list[timm.Entry]] = {}
    try:
        for entry in DIALECTS[dialect].entries(spec):
            groups.setdefault(entry.theirs, []).append(entry)
    except KeyError as error:
        raise InputError(
            f"Spec {spec.name!r} has a layer {error} for which {dialect} has no name; export it under 'coatref', our own "
            f"names, or take a spec of {dialect}'s."
        ) from None
    return groups
