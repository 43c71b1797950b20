"""From parameters to another project's names and layouts: the inverse of `coatref.convert`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from coatref.errors import InputError
from coatref.params import Params
from coatref.specification.spec import Spec
from coatref.weights import kecam, timm
from coatref.weights.files import on_host

Flat = Mapping[str, np.ndarray]

# Dialect -> (spec, arrays under our names) to arrays under theirs; a KeyError says which layer has no name there.
DIALECTS: dict[str, Callable[[Spec, Flat], dict[str, np.ndarray]]] = {
    "coatref": lambda spec, arrays: dict(arrays),
    "timm": timm.to_theirs,
    "kecam": functools.partial(kecam.to_theirs, layout="torch"),
}


def export(params: Params, dialect: str) -> dict[str, np.ndarray]:
    """Parameters as named NumPy arrays of a dialect, such that `coatref.convert` gives the same parameters, bit for bit.

    Args:
        params: arrays of any library.
        dialect: "coatref" for our dotted names, or whose names and layouts: a key of `DIALECTS`.

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
    if dialect not in DIALECTS:
        raise InputError(f"export has no dialect {dialect!r:.80}; it has {', '.join(DIALECTS)}.")
    try:
        return DIALECTS[dialect](params.spec, {name: on_host(name, array) for name, array in params.flatten().items()})
    except KeyError as error:
        raise InputError(
            f"Spec {params.spec.name!r} has a layer {error} for which {dialect} has no name; export it under 'coatref', "
            f"our own names, or take a spec of {dialect}'s."
        ) from None
