"""Opening files on the disk, given by a user or named by another file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from coatref.errors import FileFormatError

LONGEST_FILE_NAME = 255  # bytes


def opened(path: Path, held: contextlib.ExitStack) -> BufferedReader:
    """A regular file, open for reading until `held` is closed.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is a folder, a pipe or a device.
        OSError: it cannot be read.
    """
    if not path.is_file():  # before it is opened, which would wait for ever on a pipe
        if path.exists():
            raise FileFormatError(f"{path} is a folder, pipe or device; weights are read from a regular file.")
        raise FileNotFoundError(f"There is no file {path}.")
    return held.enter_context(path.open("rb"))


@contextlib.contextmanager
def faults_of(path: Path, what: str, advice: str = "fetch it again, or make it anew") -> Iterator[None]:
    """Make a sentence of what is wrong with a file.

    Args:
        path: of the file.
        what: it should be, "no" included.
        advice: what to do; left out where the fault itself ends in some, behind a semicolon.

    Raises:
        FileFormatError: one was raised within, whose message is a part of a sentence.
    """
    try:
        yield
    except FileFormatError as fault:
        told = str(fault).removesuffix(".")
        raise FileFormatError(f"{path} is {what}: {told}{'' if ';' in told else f'; {advice}'}.") from None


def size_of(file: BufferedReader) -> int:
    """The size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def beside(path: Path, name: str) -> Path:
    """The file of a name that stands in another file, which must lie in the same folder as that one.

    A name with anything of a path in it is refused on every system. So is a link that leads out of the folder, which an
    unpacked archive may bring along: the bytes of any other file would pass for weights, and be passed on as weights. In
    a cache of the Hugging Face hub every file is such a link, to the same repository's `blobs` or to those of the whole
    cache, where there are nothing but downloaded files; these are followed.

    Args:
        path: of the file that has the name in it.
        name: as it stands there.

    Raises:
        FileFormatError: the name is none of a file in that folder; the message is a part of a sentence.
    """
    if (
        not 0 < len(name.encode(errors="replace")) <= LONGEST_FILE_NAME
        or name in (".", "..")
        or set(name) & set('/\\:"*?<>|')
        or not printable(name)
    ):
        raise FileFormatError(f"it names the file {name!r:.100}, which is no plain name of a file beside it")
    folder, found = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path.parent / name))
    if found.parent != folder and not any(blobs in found.parents for blobs in hub_blobs(folder)):
        raise FileFormatError(f"it names the file {name!r:.100}, a link that leads out of its folder")
    return path.parent / name


def printable(name: str) -> bool:
    """Whether a name is of characters that can be seen."""
    return name.isprintable() and not name.isspace()


def hub_blobs(folder: Path) -> list[Path]:
    """Where the files of a folder are in a cache of the hub, CACHE/models--NAME/snapshots/REVISION/...; else nothing."""
    for snapshots in (folder, *folder.parents):
        repository = snapshots.parent
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            return [repository / "blobs", repository.parent / "blobs"]
    return []
