"""From named tensors to parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coatref.errors import InputError, LibraryError, WeightsError
from coatref.params import Params, from_flat, refuse_misfits
from coatref.registry import Library, dtype_name, library_of, place, resolve_dtype, resolve_library, sealed
from coatref.specification.catalogue import resolve
from coatref.specification.spec import Spec
from coatref.weights.dialects import DIALECTS
from coatref.weights.files import Stored, on_host
from coatref.weights.places import expected, read
from coatref.weights.recognise import Reading, at_their_size, plain_shapes, reading_as, recognised
from coatref.weights.resize import Resize, refuse_unknown_method, size_of
from coatref.weights.resize import resize as resized

LONGEST_NAME = 200  # of a tensor; the longest of ours and of the dialects', with the prefixes of wrappers, has some 100
HOST_TYPES = {"F16": "float16", "BF16": "float32", "F32": "float32", "F64": "float64", "bfloat16": "float32"}


def convert(
    state_dict: Mapping[str, Any],
    spec: Spec | str | None = None,
    *,
    dialect: str | None = None,
    image_size: tuple[int, int] | int | None = None,
    resize: Resize = "paper",
    ema: bool = True,
    xp: Any = "numpy",
    dtype: Any = None,
    device: Any = None,
    allow_non_finite: bool = False,
) -> Params:
    """Parameters from a mapping of names to arrays, such as a torch `state_dict()`.

    Args:
        state_dict: arrays of any library, under our dotted names or another project's, perhaps behind the prefix of a
            wrapper ("module.", "_orig_mod.", "model.").
        spec: what network they belong to; None: the one named spec that has exactly these names and shapes.
        dialect: whose names they are, "coatref" for ours; None: of those that have a name for every layer of the spec, the
            one with the most of these names.
        image_size: height and width in pixels (one number for a square) of the result: relative-bias tables that were made
            for another size are interpolated. None: tables must be those of the spec's size, or, without a spec, stay.
        resize: how they are: "paper", bilinearly as the spec's `RelativeBias.resize` says (App. A.1); or "timm", on the
            geometric grid of timm's `resize_rel_pos_bias_table`, which makes the result that of timm's
            `checkpoint_filter_fn`.
        ema: where there is an averaged copy of the weights (`.../ExponentialMovingAverage`), whether to take that.
        xp: array library of the result, as a module or its name.
        dtype: of the result; None keeps the arrays' own, the widest one where they differ (bfloat16, which NumPy lacks,
            becomes float32).
        device: of the result, as the library takes it.
        allow_non_finite: take NaN and infinite values too.

    Returns:
        New arrays, made one after the other; nothing is shared with the mapping.

    Raises:
        WeightsError: tensors are missing, surplus, misshapen, not floating, not finite, or too large for `dtype`; they
            are listed by name.
        UnknownSpecError, InputError, MissingDependencyError: the spec, dialect, library or data type is not to be had; or
            no dialect, or without a spec no named spec or several, fit the names.
        SizeError: the image size has no meaning under the spec.
    """
    library = resolve_library(xp)
    wanted = None if dtype is None else resolve_dtype(library, dtype)
    if not isinstance(state_dict, Mapping):
        raise InputError(f"convert takes a mapping of names to arrays, got {type(state_dict).__name__}.")
    refuse_unknown_dialect(dialect)
    refuse_unknown_method(resize)
    size = size_of(image_size)
    resolved = None if spec is None else resolve(spec)
    refuse_odd_entries(state_dict)
    if resolved is None:
        reading = recognised(state_dict, dialect, ema=ema)
    else:
        reading = reading_as(state_dict, resolved, dialect, ema=ema, any_size=size is not None)
    return converted(
        state_dict, reading, library, wanted, size, resize, device=device, allow_non_finite=allow_non_finite
    )


def converted(
    tensors: Mapping[str, Any],
    reading: Reading,
    library: Library,
    dtype: Any,
    size: tuple[int, int] | None,
    method: Resize,
    *,
    device: Any,
    allow_non_finite: bool,
) -> Params:
    """Parameters from tensors that are read in a known way; see `convert`."""
    spec, given = reading.spec, reading.given
    places = reading.places or list(reading.dialect.places(spec, reading.layout))
    wanted = expected(places)
    found = {name: tensors[own] for name, own in given.items()}
    try:
        refuse_misfits(spec.name, wanted, found)
    except WeightsError as error:
        same_names = wanted.keys() == found.keys()  # asked first: a file can carry a spec of any number of tensors
        fitting = at_their_size(reading, plain_shapes(tensors, given)) if same_names else []
        if not fitting:
            raise
        sizes = " or ".join(f"{height}x{width}" for height, width in (each.image_size for each in fitting))
        raise WeightsError(
            f"{error} Its relative-bias tables are for images of {sizes}: pass image_size={spec.image_size} to have them "
            "resized, or a spec of that size."
        ) from None
    kind = np.result_type(*(host_type(tensors[given[name]]) for name in wanted))
    own: dict[str, Any] = {}
    bad: list[str] = []
    with np.errstate(over="ignore"):  # looked for below
        for name, array in read(places, lambda theirs: on_host(given[theirs], tensors[given[theirs]])):
            if not allow_non_finite and not bool(np.isfinite(array).all()):
                bad.append(name)
            own[name] = placed(library, array, kind, dtype, device)
    if bad:
        raise WeightsError(
            f"{len(bad)} tensors hold NaN or infinite values: {', '.join(bad[:8])}; the weights are damaged, or pass "
            "allow_non_finite=True to load them all the same."
        )
    params = from_flat(spec, own)
    if not allow_non_finite and dtype is not None:
        refuse_overflow(params)
    return params if size is None else resized(params, size, method)


def host_type(array: Any) -> np.dtype[Any]:
    """The type that `on_host` gives a tensor in, without reading it; float32 for one that it refuses."""
    name = array.dtype if isinstance(array, Stored) else dtype_name(library_of(array), array.dtype)
    name = HOST_TYPES.get(name, name)
    return np.dtype(name if name in HOST_TYPES.values() else "float32")


def placed(library: Library, array: np.ndarray, kind: np.dtype[Any], dtype: Any, device: Any) -> Any:
    """A copy of a NumPy array in a library.

    Args:
        library: of the result.
        array: which may be a view of something else.
        kind: NumPy's type of the result where no other is asked for.
        dtype: the library's type that is asked for, or None.
        device: of the result; None: the default one.
    """
    if library.name == "numpy" and device in (None, "cpu"):
        return sealed(np.array(array, dtype=kind if dtype is None else dtype, order="C"))
    wanted = resolve_dtype(library, kind.name) if dtype is None else dtype
    return sealed(place(library, np.array(array, order="C"), wanted, device))


def refuse_overflow(params: Params) -> None:
    """Refuse values that were finite and are too large for the data type that they were cast to.

    Raises:
        WeightsError: names the tensors that hold some.
    """
    large, kind = [], None
    for name, array in params.flatten().items():
        xp, kind = library_of(array).namespace(), array.dtype
        if not bool(xp.all(xp.isfinite(array))):
            large.append(name)
    if large:
        raise WeightsError(
            f"{len(large)} tensors hold values too large for {kind}: {', '.join(large[:8])}; take a wider dtype, or pass "
            "allow_non_finite=True to make them infinite."
        )


def refuse_unknown_dialect(dialect: Any) -> None:
    """Refuse a dialect that there is not.

    Raises:
        InputError: names those that there are.
    """
    if dialect is not None and not (isinstance(dialect, str) and dialect in DIALECTS):
        raise InputError(f"dialect must be None or one of {', '.join(DIALECTS)}, got {dialect!r:.80}.")


def refuse_odd_entries(state_dict: Mapping[str, Any]) -> None:
    """Refuse a mapping in which some key is no name or some value is no array.

    Raises:
        WeightsError: lists them.
    """
    names = [key for key in state_dict if not isinstance(key, str) or len(key) > LONGEST_NAME]
    if names:
        raise WeightsError(
            f"Some keys of the mapping are no names of tensors: {', '.join(f'{key!r:.80}' for key in names[:8])}; "
            f"names are texts of at most {LONGEST_NAME} characters."
        )
    odd = [f"{name} ({type(value).__name__})" for name, value in state_dict.items() if not is_array(value)]
    if odd:
        raise WeightsError(
            f"Some values of the mapping are no arrays: {', '.join(odd[:8])}; give arrays of a library with the Python "
            "array API, such as the tensors of a torch state_dict()."
        )


def is_array(value: Any) -> bool:
    """Whether a value is a tensor of a file or an array of some library."""
    if isinstance(value, Stored):
        return True
    try:
        library_of(value)
    except LibraryError:
        return False
    return isinstance(getattr(value, "shape", None), tuple)
