"""Array libraries and their forms of the primitives, found when an array of theirs turns up.

Nothing here imports an array library. A `Library` says what one of them has: its namespace, data types, special
functions, and (optionally) faster forms of the primitives of `coatref.primitives`. The ones in `coatref.backends` are
named below; others register under the entry-point group ``coatref.backends`` (name: the top-level module of their
arrays; value: ``package.module:LIBRARY``). An array of an unregistered library that has an ``__array_namespace__`` works
too, with the standard's functions alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace

from coatref.errors import CoatrefError, InputError, LibraryError, MissingDependencyError

Array = Any  # any array of the Python array API standard; no framework type stands in a signature

IN_TREE = {  # top-level module of the arrays -> module that describes them
    "numpy": "coatref.backends.numpy",
    "torch": "coatref.backends.torch",
    "jax": "coatref.backends.jax",
    "jaxlib": "coatref.backends.jax",
    "cupy": "coatref.backends.cupy",
    "array_api_strict": "coatref.backends.strict",
}


def _no_device(array: Array) -> Any:
    return None


def _any_dtype(dtype: str) -> str | None:
    return None


def _one_device() -> tuple[str, ...]:
    return ("cpu",)


@dataclass(frozen=True)
class Library:
    """What one array library has.

    Attributes:
        name: the name users type, such as "torch".
        install: what `pip install` takes to bring it.
        namespace: gives the array-API namespace (called when first needed; may raise ImportError).
        to_numpy: an array of the library as a new or shared NumPy array.
        dtypes: names of the real floating data types it computes in.
        erf: its own error function, array -> array of the same dtype; None: the pure-standard form is used.
        matmul: its matrix product at full precision, where the standard's `matmul` may be less; None: the standard's.
        device: the device of an array, None where that is unknown (inside a traced function).
        devices: names of the devices present.
        refuse_dtype: why a dtype (by name) cannot be had just now, or None.
        primitives: name in `coatref.primitives.Primitives` -> the library's own form of it.
        without: name of a form that the library could have -> why it is not to be had here; shown by `describe`.
        bound: the same for what `divide` passes on; None: `primitives` serve there too.
        fused: gives the steps of a prepared network (`coatref.backends.fused.Fused`) as the library does them; called with
            what `divide` passes on, or None. None: the steps are made of its primitives.
        fused_dtypes: names of the types that `fused` computes in, others are left to the primitives; None: all.
        divide: (compute, x, threads) -> the result of `compute(part, pool)` over parts of the batch, on threads that
            coatref looks after; None: the library has threads of its own.
        refused: names of its array classes that compute otherwise than its arrays.
    """

    name: str
    install: str
    namespace: Callable[[], Any]
    to_numpy: Callable[[Array], Any]
    dtypes: tuple[str, ...] = ("float32", "float64")
    erf: Callable[[Array], Array] | None = None
    matmul: Callable[[Array, Array], Array] | None = None
    device: Callable[[Array], Any] = _no_device
    devices: Callable[[], tuple[str, ...]] = _one_device
    refuse_dtype: Callable[[str], str | None] = _any_dtype
    primitives: Mapping[str, Callable[..., Array]] = field(default_factory=dict)
    without: Callable[[], Mapping[str, str]] = dict
    bound: Callable[[Any], Mapping[str, Callable[..., Array]]] | None = None
    fused: Callable[[Any], Any] | None = None
    fused_dtypes: tuple[str, ...] | None = None
    divide: Callable[[Callable[[Array, Any], Array], Array, int | None], Array] | None = None
    refused: tuple[str, ...] = ()


@functools.cache
def registered() -> dict[str, str]:
    """Top-level module of the arrays -> where their `Library` is, as "module" or "module:attribute"."""
    found = dict(IN_TREE)
    for entry in importlib.metadata.entry_points(group="coatref.backends"):
        found.setdefault(entry.name, entry.value)
    return found


@functools.cache
def library(name: str) -> Library:
    """The library of that name, such as "numpy" or "torch".

    Raises:
        InputError: no library of that name is registered.
        MissingDependencyError: it is registered and not installed.
    """
    places = registered()
    if name not in places:
        raise InputError(f"No array library {name!r} is registered; known are {', '.join(sorted(places))}.")
    module, _, attribute = places[name].partition(":")
    found: Library = getattr(importlib.import_module(module), attribute or "LIBRARY")
    try:
        found.namespace()
    except ImportError as error:
        raise MissingDependencyError(
            f"The array library {found.name!r} was asked for and cannot be imported ({error}); "
            f"run: pip install {found.install}"
        ) from error
    return found


def library_of(array: Array) -> Library:
    """The library that an array belongs to.

    Raises:
        LibraryError: it is no array, or of a library without an array-API namespace.
    """
    cls: Any = type(array)
    if cls in _LIBRARY_OF:
        return _LIBRARY_OF[cls]
    found = _library_of_type(cls) if hasattr(array, "shape") and hasattr(array, "dtype") else None
    if found is None:
        return _unregistered(array)
    if {base.__name__ for base in cls.__mro__} & set(found.refused):
        raise LibraryError(f"A plain array was expected, got {cls.__name__}, which computes otherwise; use its data.")
    _LIBRARY_OF[cls] = found
    return found


_LIBRARY_OF: dict[type, Library] = {}  # a dict and not functools.cache, which torch.compile does not see as one


def _library_of_type(cls: type) -> Library | None:
    places = registered()
    for base in cls.__mro__[:-1]:
        top = base.__module__.partition(".")[0]
        if top in places:
            return library(top)
    return None


def _unregistered(array: Array) -> Library:
    try:
        xp = array_namespace(array)
    except TypeError:
        raise LibraryError(
            f"An array of a library with the Python array API was expected, got {type(array).__module__}."
            f"{type(array).__qualname__}; pass a NumPy, torch, JAX or CuPy array, for example numpy.asarray(x)."
        ) from None
    return Library(
        name=str(getattr(xp, "__name__", "unknown")),
        install="",
        namespace=lambda: xp,
        to_numpy=_through_dlpack,
        device=lambda a: getattr(a, "device", None),
    )


def _through_dlpack(array: Array) -> Any:
    import numpy

    return numpy.from_dlpack(array)


def namespace(array: Array) -> Any:
    """The array-API namespace of an array, as array-api-compat gives it."""
    return library_of(array).namespace()


def device_of(array: Array) -> Any:
    """Where arrays made beside this one belong: its device, or None (the default) inside a traced function."""
    return library_of(array).device(array)


def resolve_library(xp: str | ModuleType | Any) -> Library:
    """The library meant by a name ("torch"), a module (`numpy`, `jax.numpy`, an array-api-compat namespace).

    Raises:
        InputError: no such library is registered.
    """
    if isinstance(xp, str):
        return library(xp)
    parts = str(getattr(xp, "__name__", xp)).split(".")
    if parts[0] == "array_api_compat" and len(parts) > 1:
        parts = parts[1:]
    return library(parts[0])


def dtype_name(lib: Library, dtype: str | Any) -> str:
    """The name of a data type, given as a name or as the library's own type."""
    if isinstance(dtype, str):
        return dtype
    xp = lib.namespace()
    names = [name for name in lib.dtypes if getattr(xp, name, None) == dtype]
    return names[0] if names else str(getattr(dtype, "__name__", dtype))


def place(lib: Library, values: Any, dtype: Any, device: Any) -> Array:
    """A NumPy array as a new array of the library, on a device of it (None: the default one).

    Raises:
        InputError: the library has no such device.
    """
    try:
        return lib.namespace().asarray(values, dtype=dtype, device=device)
    except Exception as error:
        if device is None:
            raise
        raise InputError(
            f"Device {device!r:.80} was asked of {lib.name}, which cannot put an array there "
            f"({type(error).__name__}: {str(error)[:200]}); `coatref info` lists its devices."
        ) from error


def sealed(array: Array) -> Array:
    """The array, read-only where its library knows that (NumPy); for arrays that coatref itself has made."""
    if library_of(array).name == "numpy":
        array.flags.writeable = False
    return array


def resolve_dtype(lib: Library, dtype: str | Any) -> Any:
    """The library's data type meant by a name such as "float64", or by the type itself.

    Raises:
        InputError: the library has no floating type of that name, or cannot give it just now.
    """
    xp = lib.namespace()
    dtype = dtype_name(lib, dtype)
    reason = f"it computes in {', '.join(lib.dtypes)}" if dtype not in lib.dtypes else lib.refuse_dtype(dtype)
    if reason:
        raise InputError(f"The data type {dtype!r} was asked of {lib.name}, which cannot give it: {reason}.")
    return getattr(xp, dtype)


def missing(package: str, extra: str, purpose: str) -> CoatrefError:
    """The error for an absent optional package, with the command that brings it."""
    return MissingDependencyError(
        f"{purpose} needs {package}, which is not installed; run: pip install 'coatref[{extra}]'"
    )
