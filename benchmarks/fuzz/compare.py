"""Files that were changed and still accepted, read by the libraries whose formats they are: the same tensors to the bit?

`python -m benchmarks.fuzz.compare READER --out FOLDER`, after fuzzing into that folder. The library runs in a process of its
own, which may crash, hang or be out of memory; that is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.cases import NAMES, taken_apart, write

SECONDS, GIGABYTES = 20, 4  # that a library may take
Named = Iterator[tuple[str, np.ndarray]]


def of_torch(tensor: Any) -> np.ndarray:
    """A tensor as NumPy has it, bfloat16 as float32."""
    import torch

    tensor = tensor.detach()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def by_safetensors(path: Path) -> Named:
    """Tensors by safetensors."""
    from safetensors.torch import load_file

    for name, tensor in load_file(path).items():
        yield name, of_torch(tensor)


def by_numpy(path: Path) -> Named:
    """Arrays by NumPy."""
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            yield name, archive[name]


def by_h5py(path: Path | io.BytesIO) -> Named:
    """Datasets by h5py, under no name: ours come from Keras."""
    import h5py

    found = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(item)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
        for item in found:
            array = np.asarray(item[()])
            if array.dtype == "V2":
                array = (array.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(array.shape)
            yield (
                "",
                array.view(np.int8) if array.dtype == bool else array,
            )  # which is stored as an enumeration of those


def by_h5py_in_archive(path: Path) -> Named:
    """The same, of the member of an archive of Keras."""
    with zipfile.ZipFile(path) as archive:
        yield from by_h5py(io.BytesIO(archive.read("model.weights.h5")))


def by_torch(path: Path) -> Named:
    """Tensors by torch's weights-only loading, at any depth."""
    import torch

    todo = [torch.load(path, map_location="cpu", weights_only=True)]
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        if isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            todo += list(value.values())
            yield from ((str(name), of_torch(each)) for name, each in value.items() if torch.is_tensor(each))


def by_onnx(path: Path) -> Named:
    """Initialisers by onnx, also transposed."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        with contextlib.suppress(TypeError, KeyError):
            array = numpy_helper.to_array(tensor, str(path.parent))
            if array.dtype.name == "bfloat16":
                array = array.astype(np.float32)
            yield tensor.name, array
            if array.ndim == 2:
                yield tensor.name, array.T


LIBRARIES: dict[str, Callable[[Path], Named]] = {
    "safetensors": by_safetensors,
    "npz": by_numpy,
    "hdf5": by_h5py,
    "keras": by_h5py_in_archive,
    "torch": by_torch,
    "onnx": by_onnx,
}


def mark(name: str, array: np.ndarray) -> str:
    """What is compared of a tensor: name, type, shape and bits."""
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    bits = hashlib.sha256(array.tobytes()).hexdigest()[:16]
    return f"{name!r} {array.dtype} {array.shape if array.ndim or array.size != 1 else ()} {bits}"


def work(reader: str) -> None:
    """The library's process: a path on each line, and the marks of its tensors, or an error, on each line of the answer."""
    most = GIGABYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most + 4 * 2**30, most + 4 * 2**30))
    for line in sys.stdin:
        try:
            answer: Any = sorted({mark(name, array) for name, array in LIBRARIES[reader](Path(line.rstrip("\n")))})
        except Exception as error:  # noqa: BLE001 - anything that the library raises
            answer = f"{type(error).__name__}: {str(error)[:200]}"
        print(json.dumps(answer), flush=True)


class Library:
    """A process that answers, started anew where it was lost."""

    def __init__(self, reader: str) -> None:
        self.reader, self.process = reader, self.start(reader)

    @staticmethod
    def start(reader: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.fuzz.compare", reader, "--work"]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, path: Path) -> Any:
        """The marks of its tensors, its error, or "lost"."""
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(SECONDS, self.process.kill)
        timer.start()
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        self.process.kill()
        self.process = self.start(self.reader)
        return "lost: it crashed or hung"


def compare(reader: str, out: Path) -> dict[str, Any]:
    """Counts of what the library makes of each accepted case, and names of the cases that differ."""
    from benchmarks.fuzz import oracle

    library, counts, differ = Library(reader), Counter[str](), dict[str, list[str]]()
    with tempfile.TemporaryDirectory() as name:
        for kept in sorted((out / "accepted").iterdir()):
            folder = Path(name)
            write(taken_apart(reader, kept.read_bytes()), folder)
            first = folder / NAMES[reader][0]
            verdict, arrays = oracle.examine(reader, first)
            if verdict != "accepted":
                counts["refused since"] += 1
                continue
            named = reader not in ("hdf5", "keras")
            ours = {mark(name if named else "", array) for name, array in arrays.items()}
            theirs = library.ask(first)
            if isinstance(theirs, str):
                counts[theirs.partition(":")[0]] += 1
                continue
            missing = ours - set(theirs)
            counts["differ" if missing else "agree"] += 1
            if missing:
                differ[kept.name] = [min(missing), *theirs[:2]]
    library.process.kill()
    return {"reader": reader, "compared": sum(counts.values()), "counts": dict(counts), "differ": differ}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("reader", choices=LIBRARIES)
    options.add_argument("--out", default="fuzzed")
    options.add_argument("--work", action="store_true", help="be the library's process")
    given = options.parse_args()
    if given.work:
        work(given.reader)
    else:
        folder = Path(given.out) / given.reader
        found = compare(given.reader, folder)
        (folder / "compared.json").write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps({key: value for key, value in found.items() if key != "differ"}))
        print(*list(found["differ"].items())[:5], sep="\n")
