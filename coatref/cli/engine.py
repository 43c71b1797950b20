"""What computes a forward pass: an array library, a data type, a device; and how long it takes."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from coatref.cli.output import console
from coatref.errors import InputError
from coatref.model import check_threads, forward
from coatref.params import Params
from coatref.prepared import Prepared, prepare
from coatref.registry import Library, resolve_dtype, resolve_library

PRETTY = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "cupy": "CuPy"}


@dataclass(frozen=True)
class Engine:
    """An array library with a data type and a device of it.

    Attributes:
        library: of the arrays.
        dtype: by name.
        device: as the library takes it; None for its default.
        device_name: the device as text, also of the default one.
        definition: whether only the definition computes, and none of the library's fast forms.
        forward: `coatref.forward` as it runs here.
        compiles: whether the first call for a shape compiles, which its time then includes.
    """

    library: Library
    dtype: str
    device: Any
    device_name: str
    definition: bool
    forward: Callable[[Params | Prepared, Any], Any]
    compiles: bool

    def array(self, values: Any) -> Any:
        """A NumPy array in this library."""
        space = self.library.namespace()
        return space.asarray(values, dtype=resolve_dtype(self.library, self.dtype), device=self.device)

    def params(self, params: Params) -> Params | Prepared:
        """Parameters in this library, prepared unless the definition computes."""
        moved = params.to(xp=self.library.name, dtype=self.dtype, device=self.device)
        return moved if self.definition else prepare(moved)

    def timed_forward(self, params: Params | Prepared, batch: Any) -> tuple[Any, float]:
        """The network's output as a NumPy array, and the seconds that the forward pass took.

        The output is brought to the host within that time, since some libraries return before they have computed.
        """
        began = time.perf_counter()
        output = np.asarray(self.library.to_numpy(self.forward(params, batch)))
        return output, time.perf_counter() - began

    @property
    def on_cpu(self) -> bool:
        """Whether the device is the CPU."""
        return self.device_name.lower().startswith("cpu")

    def __str__(self) -> str:
        name = f"{PRETTY.get(self.library.name, self.library.name)} {version_of(self.library)} {self.dtype}"
        device = "" if self.on_cpu else f" on {self.device_name}"
        return f"{name}{device}{', the definition alone' if self.definition else ''}"

    def described(self) -> dict[str, Any]:
        """The engine for JSON."""
        return {
            "library": self.library.name,
            "version": version_of(self.library),
            "dtype": self.dtype,
            "device": self.device_name,
            "definition": self.definition,
            "time_includes_compiling": self.compiles,
        }


def version_of(library: Library) -> str:
    """The installed version of an array library."""
    return str(getattr(sys.modules.get(library.name.partition(".")[0]), "__version__", "(version unknown)"))


def make_engine(
    backend: str, dtype: str, device: str | None, definition: bool, threads: int | None = None
) -> Engine:
    """The engine that the options of `coatref forward` and `coatref classify` ask for.

    JAX gets its 64-bit types switched on where float64 is asked for, since the command has the process to itself, and
    compiles the whole network: in its eager mode it would compile every operation, which takes several times as long.

    Raises:
        InputError: the library, data type or device is not known, or the library's threads are not coatref's to set.
        MissingDependencyError: the library is not installed.
    """
    if dtype not in ("float32", "float64"):
        raise InputError(f"--dtype {dtype!r} is not known; it is float32 or float64.")
    library = resolve_library(backend)
    if threads is not None:
        check_threads(threads, library, "definition" if definition else None)
    run: Callable[[Params | Prepared, Any], Any] = functools.partial(
        forward, backend="definition" if definition else None, threads=threads
    )
    if library.name == "jax":
        import jax

        run = jax.jit(run)
        if dtype == "float64":
            jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
    resolve_dtype(library, dtype)
    if device is not None:
        found, name = find_device(library, device)
    else:
        found, name = None, device_text(library.device(library.namespace().asarray(0.0)))
    return Engine(library, dtype, found, name, definition, run, compiles=library.name == "jax")


def find_device(library: Library, wanted: str) -> tuple[Any, str]:
    """A device of a library as the library takes it, and its name.

    Args:
        library: whose device.
        wanted: "cuda:0", or "cuda" for the first of that kind.

    Raises:
        InputError: the library has no such device; the message lists those it has.
    """
    devices = devices_of(library)
    for name, device in devices.items():
        if wanted in (name, name.partition(":")[0]):
            return device, name
    raise InputError(f"{library.name} has no device {wanted!r} here; it has {', '.join(devices) or 'none'}.")


def devices_of(library: Library) -> dict[str, Any]:
    """The devices present by name, each as the library takes it."""
    if library.name == "jax":
        import jax

        found = list(jax.devices())
        with contextlib.suppress(RuntimeError):  # the CPU is there too where an accelerator is the default
            found += jax.devices("cpu")
        return {str(device): device for device in found}
    if library.name in ("numpy", "torch", "cupy"):
        names = library.devices()
        return {name: int(name.partition(":")[2]) if library.name == "cupy" else name for name in names}
    found = library.namespace().__array_namespace_info__().devices()  # the standard's own question
    return {device_text(device): device for device in found}


def device_text(device: Any) -> str:
    """A device by its bare name, where its library writes more around it."""
    return re.sub(r".*Device\('(.*)'\)", r"\1", str(device))


def classify(
    engine: Engine, params: Params | Prepared, items: Any, prepare: Callable[[Any], Any], chunk: int, quiet: bool
) -> tuple[Any, float]:
    """The network's outputs for many images, a chunk at a time, with a progress bar on a terminal.

    Args:
        engine: what computes.
        params: in the engine's library.
        items: the images in whatever form, a list or an array.
        prepare: some of the items -> a NumPy batch (n, H, W, C).
        chunk: images at a time.
        quiet: no progress bar.

    Returns:
        (N, classes) as a NumPy array, and the seconds that the forward passes took, without `prepare`.

    Raises:
        InputError: the output has values that are not finite.
    """
    outputs, seconds = [], 0.0
    with progress_bar(len(items), quiet) as advance:
        for start in range(0, len(items), chunk):
            some = items[start : start + chunk]
            batch = prepare(some)
            if engine.compiles and start:  # another number of images would be compiled anew
                batch = np.concatenate([batch, np.repeat(batch[-1:], chunk - len(some), axis=0)])
            output, took = engine.timed_forward(params, engine.array(batch))
            outputs.append(output[: len(some)])
            seconds += took
            advance(len(some))
    whole = np.concatenate(outputs)
    if not np.isfinite(whole).all():
        raise InputError(
            f"The network's output is not finite in {engine.dtype}: the weights are too large for it, or no trained ones."
        )
    return whole, seconds


@contextlib.contextmanager
def progress_bar(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the block runs, if that is a terminal and `quiet` is not set; gives what advances it."""
    err = console(stderr=True)
    if quiet or not err.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("classifying", total=total)
        yield lambda count: progress.advance(task, count)


def seconds_text(seconds: float, engine: Engine) -> str:
    """How long the forward passes took, and in what."""
    return f"{seconds:.2f} s{' (compiling included)' if engine.compiles else ''}, {engine}"
