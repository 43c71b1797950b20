"""Writing an ONNX model and its parameters, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LARGEST_MESSAGE = (
    2 * 10**9
)  # bytes of parameters; protobuf holds 2**31 - 1 in one piece, operators and names among them
PAGE = 4096  # bytes; parameters beside the model start at multiples of it, as memory is mapped


@contextlib.contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """A folder beside the target for the time of writing, which is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=".coatref-", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(model: Any, arrays: Mapping[str, np.ndarray], path: Path, *, external: bool) -> None:
    """Write a model with its initialisers, in the file itself or in another beside it, "NAME.data".

    Args:
        model: an `onnx.ModelProto` without initialisers, which get into it.
        arrays: they, by name, in the order of the file.
        path: of the model.
        external: whether they stand beside it.

    Raises:
        OSError: it cannot be written.
    """
    from onnx import numpy_helper

    if external:
        with data_of(path).open("xb") as data:
            model.graph.initializer.extend(beside(name, array, data) for name, array in arrays.items())
    else:
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    path.write_bytes(model.SerializeToString())


def beside(name: str, array: np.ndarray, data: Any) -> Any:
    """An initialiser whose numbers are appended to an open file."""
    from onnx import TensorProto, helper

    data.write(b"\0" * (-data.tell() % PAGE))
    place = {"location": Path(data.name).name, "offset": data.tell(), "length": array.nbytes}
    data.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def data_of(path: Path) -> Path:
    """Where the parameters of a model stand that are not in its own file."""
    return path.with_name(f"{path.name}.data")


def put_in_place(made: Path, target: Path) -> None:
    """Move a model, and what stands beside it, to its final name.

    Of two files one is there before the other: an older model of that name goes first, so that none is ever seen with
    parameters that are not its own.
    """
    if data_of(made).exists():
        target.unlink(missing_ok=True)
        os.replace(data_of(made), data_of(target))
    os.replace(made, target)
