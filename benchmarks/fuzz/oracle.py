"""What must hold for every case: an error of coatref's own or success, soon, in little memory, with nothing else touched."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import coatref
from coatref.errors import CoatrefError
from coatref.labels import class_names
from coatref.specification.preprocessing import preprocessing_of
from coatref.weights.files import open_file
from coatref.weights.load import said_by
from coatref.weights.sources import read_json, shards

SECONDS = 5.0  # of this process, for a case
MEGABYTES = 512  # more than before the first case
LONGEST_MESSAGE = 2000
MAY_MISS = ("sharded", "onnx", "tensorflow", "load")  # readers of several files, which say so of a missing one

Arrays = dict[str, np.ndarray]


class Find(Exception):
    """A rule that a case broke."""


class TooLong(BaseException):
    """Out of time; not an `Exception`, so that nothing takes it for damage."""


def examine(reader: str, first: Path) -> tuple[str, Arrays]:
    """What a reader makes of a case whose first file is at a path: "accepted", or the class of its error; and its tensors.

    Raises:
        Find: a rule is broken.
    """
    arrays: Arrays = {}
    try:
        with time_limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("error")
            PROGRAMS.get(reader, read_all)(first, arrays)
    except CoatrefError as error:
        refuse_odd_message(error)
        return type(error).__name__, arrays
    except FileNotFoundError as error:
        if reader not in MAY_MISS or not str(error).startswith("There is no file"):
            raise Find(told(error)) from error
        return "FileNotFoundError", arrays
    except (TooLong, Exception) as error:
        raise Find(told(error)) from error
    return "accepted", arrays


def read_all(path: Path, arrays: Arrays) -> None:
    """Open a file and read every tensor."""
    with open_file(path, ema=bool(path.stat().st_size % 2)) as (tensors, metadata):
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not all(
                isinstance(text, str) for pair in metadata.items() for text in pair
            ):
                raise Find("a name or metadata that is no text")
            array = tensor.read()
            kind = {"BF16": "float32", "BOOL": "bool"}.get(tensor.dtype, tensor.dtype.lower())
            kind = kind.replace("f", "float").replace("floatloat", "float") if kind[0] == "f" else kind
            kind = kind.replace("i", "int") if kind[0] == "i" else kind.replace("u", "uint") if kind[0] == "u" else kind
            if array.shape != tensor.shape or array.dtype != np.dtype(kind) or not array.dtype.isnative:
                raise Find(f"{tensor.dtype} {tensor.shape} was read as {array.dtype} {array.shape}")
            arrays[name] = array


def load_it(path: Path, arrays: Arrays) -> None:
    """Load a checkpoint with no spec given, beside its config.json."""
    arrays.update(coatref.load(path, image_size=64 if path.stat().st_size % 2 else None).flatten())


def read_config(path: Path, arrays: Arrays) -> None:
    """Everything that is made of a config.json."""
    refusals = []
    for use in (
        preprocessing_of,
        lambda config: class_names(3, config),
        said_by,
    ):
        try:
            use(read_json(path))
        except CoatrefError as error:
            refuse_odd_message(error)
            refusals.append(error)
    with contextlib.suppress(CoatrefError):
        shards(path)
    if refusals:
        raise refusals[0]


def read_spec(path: Path, arrays: Arrays) -> None:
    """A spec from JSON, and back."""
    spec = coatref.Spec.from_json(path.read_bytes().decode("utf-8", "surrogateescape"))
    if coatref.Spec.from_json(spec.to_json()) != spec:
        raise Find("a spec that is another after it is written and read")


PROGRAMS: dict[str, Callable[[Path, Arrays], None]] = {"load": load_it, "config": read_config, "spec": read_spec}


def refuse_odd_message(error: Exception) -> None:
    """A message is one sentence that can be printed anywhere, of a sensible length.

    Raises:
        Find: it is not.
    """
    text = str(error)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Find(f"a message that cannot be printed, of {place_of(error)}") from None
    if not 20 < len(text) < LONGEST_MESSAGE or not text.endswith("."):
        raise Find(f"a message of {len(text)} characters that ends in {text[-1:]!r}, of {place_of(error)}")
    if "than there is memory for" in text:
        raise Find(f"no memory, at {place_of(error)}")


def told(error: BaseException) -> str:
    """An error in a line, the same for the same fault."""
    message = str(error) if isinstance(error, Find) else ""
    return f"{type(error).__name__} {message} at {place_of(error)}"


def place_of(error: BaseException) -> str:
    """The last line of coatref's own that an error passed."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}coatref{os.sep}" in frame.filename
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "nowhere"


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Break off what takes longer, in time of this process."""

    def stop(*_: Any) -> None:
        raise TooLong(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def limit_memory(megabytes: int = MEGABYTES) -> None:
    """Let this process take so much more address space than it has, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


class Watch:
    """Notes every file opened outside a folder, and everything else that no reader has to do, while it is on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.on, self.seen = os.path.realpath(folder), False, list[str]()
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
            inside = os.path.realpath(text).startswith(self.folder)
            aside = text.endswith((".py", ".pyc")) or "timm" in text  # of tracebacks; tables of classes
            if not aside and (not inside or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                self.seen.append(f"open {text} {mode}")
        elif event.split(".")[0] in ("socket", "subprocess", "pickle", "ctypes", "shutil") or event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!s:.100}")


FORBIDDEN = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.system",
    "os.exec",
    "os.fork",
    "os.chmod",
    "os.link",
    "os.symlink",
)
