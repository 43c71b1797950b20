"""From parameters to another project's names and layouts: the inverse of `coatref.convert`."""

from __future__ import annotations

import numpy as np

from coatref.errors import InputError
from coatref.params import Params
from coatref.weights.dialect import Dialect
from coatref.weights.dialects import DIALECTS
from coatref.weights.files import on_host
from coatref.weights.places import to_theirs

__all__ = ["DIALECTS", "export", "views"]


def export(params: Params, dialect: str, *, layout: str | None = None) -> dict[str, np.ndarray]:
    """Parameters as named NumPy arrays of a dialect, such that `coatref.convert` gives the same parameters, bit for bit.

    Args:
        params: arrays of any library.
        dialect: "coatref" for our dotted names, or whose names and layouts: a key of `DIALECTS`.
        layout: which of the dialect's layouts, where it has several; None: the first ("torch" of kecam's, whose .h5 files
            have "keras").

    Returns:
        New arrays in the data types of the parameters (float32 for bfloat16, which changes no value). Buffers that hold
        no parameter, such as torch's counter of batches, are not among them.

    Raises:
        InputError: `params` are no Params, the dialect or layout is not known, or it has no name for a layer of the spec.
        WeightsError: an array has no values.
    """
    return {name: np.array(array, order="C") for name, array in views(params, dialect, layout=layout).items()}


def views(params: Params, dialect: str, *, layout: str | None = None) -> dict[str, np.ndarray]:
    """What `export` gives, with arrays that share memory with the parameters where they can: to be read, not kept."""
    if not isinstance(params, Params):
        raise InputError(f"export takes coatref Params, got {type(params).__name__}.")
    target = dialect_named(dialect, "export")
    layout = layout_named(target, layout)
    try:
        places = list(target.places(params.spec, layout))
    except KeyError as error:
        raise InputError(
            f"Spec {params.spec.name!r} has a layer {error} for which {dialect} has no name; export it under 'coatref', "
            f"our own names, or take a spec of {dialect}'s."
        ) from None
    return to_theirs(places, {name: on_host(name, array) for name, array in params.flatten().items()})


def dialect_named(name: str, asking: str) -> Dialect:
    """The dialect of that name.

    Raises:
        InputError: there is none.
    """
    if not isinstance(name, str) or name not in DIALECTS:
        raise InputError(f"{asking} has no dialect {name!r:.80}; it has {', '.join(DIALECTS)}.")
    return DIALECTS[name]


def layout_named(dialect: Dialect, layout: str | None) -> str:
    """A layout of a dialect; None: its first.

    Raises:
        InputError: it has none of that name.
    """
    if layout is None:
        return dialect.layouts[0]
    if layout not in dialect.layouts:
        raise InputError(
            f"The dialect {dialect.name!r} has no layout {layout!r:.80}; it has {', '.join(dialect.layouts)}."
        )
    return layout
