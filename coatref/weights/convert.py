"""From named tensors to parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from coatref.errors import CoatrefError, InputError, SpecError, WeightsError
from coatref.params import Params, from_flat, refuse_misfits, refuse_non_finite, tensor_tree
from coatref.registry import library_of
from coatref.specification.catalogue import resolve
from coatref.specification.spec import Spec
from coatref.tree import flatten
from coatref.weights import timm
from coatref.weights.files import read_file
from coatref.weights.own_file import spec_of

Dialect = Literal["coatref", "timm"]


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
        InputError: the ending is not known, or no spec is given for a file that carries none.
        FileNotFoundError, FileFormatError: there is no such file, or it is truncated or corrupt.
        WeightsError: the tensors do not fit the spec.
        MissingDependencyError: reading it needs torch, which is not installed.
    """
    tensors, metadata = read_file(path)
    carried = spec_of(metadata, os.fspath(path))
    if carried is None and spec is None:
        raise InputError(
            f"{os.fspath(path)} does not say which network it holds; pass spec=..., for example "
            "spec='timm/coatnet_0_rw_224' (coatref.specs() lists them)."
        )
    if carried is not None and spec is not None and carried != resolve(spec):
        raise SpecError(
            f"{os.fspath(path)} carries the spec {carried.name!r}, which differs from the one given, "
            f"{resolve(spec).name!r}; leave spec out to take the file's."
        )
    wanted = carried if carried is not None else resolve(spec)  # type: ignore[arg-type]
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
        dialect: whose names they are; None: ours where they are ours, else timm's where the spec is one of timm's.
        xp: array library of the result, as a module or its name.
        dtype: of the result; None keeps the arrays' own, the widest one where they differ (bfloat16, which NumPy lacks,
            becomes float32).
        device: of the result, as the library takes it.
        allow_non_finite: take NaN and infinite values too.

    Returns:
        New arrays; nothing is shared with the mapping.

    Raises:
        WeightsError: tensors are missing, surplus, misshapen, not floating or not finite; they are listed by name.
        InputError: the names are not ours and the spec is of no known dialect.
    """
    spec = resolve(spec)
    if not isinstance(state_dict, Mapping):
        raise InputError(f"convert takes a mapping of names to arrays, got {type(state_dict).__name__}.")
    if (dialect or recognise(state_dict, spec)) == "timm":
        arrays = from_timm(state_dict, spec)
    else:
        arrays = from_own_names(state_dict, spec)
    if not allow_non_finite:
        refuse_non_finite(arrays)
    kind = np.result_type(*(array.dtype for array in arrays.values()))
    own = {name: np.array(array, dtype=kind, order="C") for name, array in arrays.items()}  # copies
    for array in own.values():
        array.flags.writeable = False
    params = from_flat(spec, own)
    if (xp, dtype, device) == ("numpy", None, None):
        return params
    return params.to(xp=xp, dtype=dtype if dtype is not None else kind.name, device=device)


def recognise(state_dict: Mapping[str, Any], spec: Spec) -> Dialect:
    """Whose names the tensors of a spec have.

    Raises:
        InputError: neither ours nor, for a spec of timm's, timm's.
    """
    ours = {name for name, _ in flatten(tensor_tree(spec))}
    if ours & set(state_dict):
        return "coatref"
    if spec.name.startswith("timm/"):
        return "timm"
    raise InputError(
        f"None of the {len(state_dict)} names given (such as {', '.join(map(str, list(state_dict)[:3]))}) is one of spec "
        f"{spec.name!r} (such as {', '.join(sorted(ours)[:3])}), and no other dialect is known for it; "
        "use a 'timm/...' spec for a timm checkpoint."
    )


def from_own_names(state_dict: Mapping[str, Any], spec: Spec) -> dict[str, np.ndarray]:
    """Arrays under our dotted names, checked against the spec."""
    refuse_misfits(spec.name, {name: tensor.shape for name, tensor in flatten(tensor_tree(spec))}, shaped(state_dict))
    return {name: on_host(name, array) for name, array in state_dict.items()}


def from_timm(state_dict: Mapping[str, Any], spec: Spec) -> dict[str, np.ndarray]:
    """Arrays under our dotted names from a timm state dict, checked against the spec."""
    found = {name: state_dict[name] for name in timm.relevant(state_dict)}
    refuse_misfits(spec.name, timm.expected(spec), shaped(found))
    host = {name: on_host(name, array) for name, array in found.items()}
    return {entry.ours: timm.to_ours(entry, host[entry.theirs]) for entry in timm.entries(spec)}


def shaped(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping as it is, once every value is known to have a shape.

    Raises:
        WeightsError: some value is no array.
    """
    odd = [f"{name} ({type(value).__name__})" for name, value in state_dict.items() if not hasattr(value, "shape")]
    if odd:
        raise WeightsError(f"Some values of the mapping are no arrays: {', '.join(odd[:8])}.")
    return state_dict


def on_host(name: str, array: Any) -> np.ndarray:
    """An array as a NumPy array of a floating type.

    Raises:
        WeightsError: it is not floating, or of no known library.
    """
    try:
        host = np.asarray(library_of(array).to_numpy(array))
    except CoatrefError as error:
        raise WeightsError(f"Tensor {name} cannot be read: {error}") from None
    if host.dtype not in (np.float16, np.float32, np.float64):
        raise WeightsError(f"Tensor {name} is {host.dtype}; weights are float16, bfloat16, float32 or float64.")
    return host
