"""From named tensors to parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from coatref.errors import InputError, LibraryError, SpecError, WeightsError
from coatref.params import Params, from_flat, refuse_misfits, refuse_non_finite, tensor_tree
from coatref.registry import library_of, resolve_dtype, resolve_library
from coatref.specification.catalogue import resolve
from coatref.specification.spec import Spec
from coatref.tree import flatten
from coatref.weights import kecam, timm
from coatref.weights.files import Stored, on_host, open_file, path_of
from coatref.weights.own_file import spec_of

Dialect = Literal["coatref", "timm", "kecam"]

LONGEST_NAME = 100  # of a tensor; the longest of ours and timm's has 60


def load(
    path: str | os.PathLike[str],
    spec: Spec | str | None = None,
    *,
    dialect: Dialect | None = None,
    xp: Any = "numpy",
    dtype: Any = None,
    device: Any = None,
    allow_non_finite: bool = False,
) -> Params:
    """Parameters from a file: one that `coatref.save` wrote, or another project's checkpoint.

    Args:
        path: a `.safetensors` file; or `.pth`, `.pt` or `.bin`, which only torch's weights-only loading reads.
        spec: what the checkpoint is; not needed for a file of our own, which says so itself.
        dialect, xp, dtype, device, allow_non_finite: as in `convert`.

    Raises:
        InputError: the ending is not known, or no spec is given for a file that carries none; and as in `convert`.
        FileNotFoundError, FileFormatError: there is no such file, or it is truncated or corrupt.
        SpecError: the file carries another spec than the one given.
        WeightsError: the tensors do not fit the spec, or are not finite.
        MissingDependencyError: reading it needs torch, which is not installed.
    """
    path, given = path_of(path), None if spec is None else resolve(spec)
    with open_file(path) as (tensors, metadata):
        carried = spec_of(metadata, os.fspath(path))
        wanted = given if carried is None else carried
        if wanted is None:
            raise InputError(
                f"{path} does not say which network it holds; pass spec=..., for example "
                "spec='timm/coatnet_0_rw_224' (coatref.specs() lists them)."
            )
        if given is not None and given != wanted:
            raise SpecError(
                f"{path} carries the spec {wanted.name!r}, which differs from the one given, {given.name!r}; "
                "leave spec out to take the file's."
            )
        return convert(
            tensors, wanted, dialect=dialect, xp=xp, dtype=dtype, device=device, allow_non_finite=allow_non_finite
        )


def convert(
    state_dict: Mapping[str, Any],
    spec: Spec | str,
    *,
    dialect: Dialect | None = None,
    xp: Any = "numpy",
    dtype: Any = None,
    device: Any = None,
    allow_non_finite: bool = False,
) -> Params:
    """Parameters from a mapping of names to arrays, such as a torch `state_dict()`.

    Args:
        state_dict: arrays of any library, under our dotted names or another project's.
        spec: what network they belong to.
        dialect: whose names they are; None: ours where they are ours, else timm's or kecam's (in either of its layouts,
            `coatref.weights.kecam`) where the spec is one of theirs.
        xp: array library of the result, as a module or its name.
        dtype: of the result; None keeps the arrays' own, the widest one where they differ (bfloat16, which NumPy lacks,
            becomes float32).
        device: of the result, as the library takes it.
        allow_non_finite: take NaN and infinite values too.

    Returns:
        New arrays; nothing is shared with the mapping.

    Raises:
        WeightsError: tensors are missing, surplus, misshapen, not floating, not finite, or too large for `dtype`; they
            are listed by name.
        UnknownSpecError, InputError, MissingDependencyError: the spec, dialect, library or data type is not to be had, or
            the names are not ours and the spec is of no known dialect.
    """
    spec, library = resolve(spec), resolve_library(xp)
    wanted = None if dtype is None else resolve_dtype(library, dtype)
    if not isinstance(state_dict, Mapping):
        raise InputError(f"convert takes a mapping of names to arrays, got {type(state_dict).__name__}.")
    if dialect not in (None, *get_args(Dialect)):
        raise InputError(f"dialect must be None or one of {', '.join(get_args(Dialect))}, got {dialect!r:.80}.")
    refuse_odd_entries(state_dict)
    readers = {"coatref": from_own_names, "timm": from_timm, "kecam": from_kecam}
    arrays = readers[dialect or recognise(state_dict, spec)](state_dict, spec)
    if not allow_non_finite:
        refuse_non_finite(arrays)
    on_numpy = library.name == "numpy" and device in (None, "cpu")
    kind = wanted if on_numpy and wanted is not None else np.result_type(*(array.dtype for array in arrays.values()))
    with np.errstate(over="ignore"):  # looked for below
        own = {name: np.array(array, dtype=kind, order="C") for name, array in arrays.items()}  # copies
        for array in own.values():
            array.flags.writeable = False
        params = from_flat(spec, own)
        if not on_numpy:
            params = params.to(xp=xp, dtype=wanted if wanted is not None else np.dtype(kind).name, device=device)
    if not allow_non_finite and wanted is not None:
        refuse_overflow(params)
    return params


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


def recognise(state_dict: Mapping[str, Any], spec: Spec) -> Dialect:
    """Whose names the tensors of a spec have.

    Raises:
        InputError: neither ours nor, for a spec of timm's or kecam's, theirs.
    """
    ours = {name for name, _ in flatten(tensor_tree(spec))}
    if ours & set(state_dict) or not state_dict:
        return "coatref"
    if spec.name.startswith("timm/"):
        return "timm"
    if spec.name.startswith("kecam/"):
        return "kecam"
    raise InputError(
        f"None of the {len(state_dict)} names given (such as {', '.join(map(str, list(state_dict)[:3]))}) is one of spec "
        f"{spec.name!r} (such as {', '.join(sorted(ours)[:3])}), and no other dialect is known for it; "
        "use a 'timm/...' spec for a timm checkpoint, a 'kecam/...' spec for one of keras_cv_attention_models."
    )


def from_own_names(state_dict: Mapping[str, Any], spec: Spec) -> dict[str, np.ndarray]:
    """Arrays under our dotted names, checked against the spec."""
    refuse_misfits(spec.name, {name: tensor.shape for name, tensor in flatten(tensor_tree(spec))}, state_dict)
    return {name: on_host(name, array) for name, array in state_dict.items()}


def from_timm(state_dict: Mapping[str, Any], spec: Spec) -> dict[str, np.ndarray]:
    """Arrays under our dotted names from a timm state dict, checked against the spec."""
    found = {name: state_dict[name] for name in timm.relevant(state_dict)}
    try:
        expected = timm.expected(spec)
    except KeyError as error:
        raise InputError(
            f"Spec {spec.name!r} has a layer {error} for which timm has no name; use a 'timm/...' spec, or our own names."
        ) from None
    refuse_misfits(spec.name, expected, found)
    host = {name: on_host(name, array) for name, array in found.items()}
    return {entry.ours: timm.to_ours(entry, host[entry.theirs]) for entry in timm.entries(spec)}


def from_kecam(state_dict: Mapping[str, Any], spec: Spec) -> dict[str, np.ndarray]:
    """Arrays under our dotted names from a kecam .h5 file's or torch backend's tensors, checked against the spec."""
    layout = kecam.layout_of(state_dict)
    found = {plain: state_dict[name] for plain, name in kecam.relevant(state_dict).items()}
    try:
        expected = kecam.expected(spec, layout)
    except KeyError as error:
        raise InputError(
            f"Spec {spec.name!r} has a layer {error} for which keras_cv_attention_models has no name; use a 'kecam/...' "
            "spec, or our own names."
        ) from None
    refuse_misfits(spec.name, expected, found)
    host = {name: on_host(name, array) for name, array in found.items()}
    return {entry.ours: kecam.to_ours(entry, host[entry.name(layout)], layout) for entry in kecam.entries(spec)}


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
