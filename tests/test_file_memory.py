"""What reading a large file takes: its tensors, and little more."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coatref
from coatref.params import tensor_tree
from coatref.tree import flatten
from coatref.weights.own_file import SPEC_KEY, VERSION, VERSION_KEY
from coatref.weights.write import write_tensors

ALLOWED = 1.2  # times the size of the file

PEAK = """
    import sys
    import coatref
    from coatref.weights.files import open_file
    from pathlib import Path

    def resident(line):  # not by getrusage, which counts what the process was before it became this one
        with open("/proc/self/status") as status:
            return 1024 * next(int(each.split()[1]) for each in status if each.startswith(line))

    path, how, dtype = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
    before = resident("VmRSS")
    if how == "read":
        with open_file(path) as (tensors, _):
            kept = {name: tensor.read() for name, tensor in tensors.items()}
    else:
        kept = coatref.load(path, dtype=dtype).flatten()
    print(resident("VmHWM") - before, sum(array.nbytes for array in kept.values()))
"""


def measured(path: Path, how: str, dtype: str = "") -> tuple[int, int]:
    """The memory that a new process takes at most for reading a file, and what it has of it then, in bytes."""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say how much memory a process has")
    command = [sys.executable, "-c", textwrap.dedent(PEAK), str(path), how, dtype]
    peak, kept = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(peak), int(kept)


def like(spec: coatref.Spec, dtype: str) -> dict[str, np.ndarray]:
    """Arrays of the shapes of a spec that take no memory themselves."""
    shapes = {name: tensor.shape for name, tensor in flatten(tensor_tree(spec))}
    return {name: np.broadcast_to(np.array(0.5, dtype), shape) for name, shape in shapes.items()}


def write(path: Path, spec: coatref.Spec, dtype: str) -> None:
    arrays: dict[str, Any] = like(spec, dtype)
    if path.suffix == ".h5":
        arrays = {"/".join(name.rsplit(".", 1)): array for name, array in arrays.items()}
    if path.suffix == ".pth":
        torch: Any = pytest.importorskip("torch")
        kind = getattr(torch, dtype)
        torch.save({name: torch.full(array.shape, 0.5, dtype=kind) for name, array in arrays.items()}, path)
        return
    ours = {VERSION_KEY: VERSION, SPEC_KEY: spec.to_json()} if path.suffix == ".safetensors" else None
    write_tensors(path, arrays, ours)


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".h5", ".pth"])
def test_a_file_takes_little_more_than_its_tensors(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    write(path, coatref.spec("coatnet_1"), "float32")
    size = path.stat().st_size
    assert size > 160 * 10**6
    peak, kept = measured(path, "read")
    assert 0.99 * size < kept < peak < ALLOWED * size, (peak / size, kept / size)


@pytest.mark.parametrize("dtype", ["", "float16"])
def test_loading_takes_little_more_than_the_file(tmp_path: Path, dtype: str) -> None:
    """Tensors are cast one after the other on the way."""
    path = tmp_path / "model.safetensors"
    write(path, coatref.spec("coatnet_1"), "float32")
    size = path.stat().st_size
    peak, kept = measured(path, "load", dtype)
    assert kept == pytest.approx(size / (2 if dtype else 1), rel=0.01)
    assert kept < peak < ALLOWED * size, (peak / size, kept / size)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("ending", "stored", "how", "dtype"),
    [
        (".safetensors", "float32", "read", ""),
        (".safetensors", "float32", "load", ""),
        (".safetensors", "float32", "load", "float16"),
        (".safetensors", "float16", "load", "float16"),
        (".npz", "float32", "read", ""),
        (".h5", "float32", "read", ""),
        (".pth", "float32", "read", ""),
    ],
)
def test_a_file_of_gigabytes(tmp_path: Path, ending: str, stored: str, how: str, dtype: str) -> None:
    """As large as CoAtNet-5: 2.7 GB in float32."""
    path = tmp_path / f"model{ending}"
    try:
        write(path, coatref.spec("coatnet_5"), stored)
        size = path.stat().st_size
        assert size > (2.7e9 if stored == "float32" else 1.3e9)
        peak, kept = measured(path, how, dtype)
        print(f"{ending} {stored} {how} {dtype}: peak {peak / size:.3f}, kept {kept / size:.3f} of {size / 1e9:.2f} GB")
        assert peak < ALLOWED * size
    finally:
        path.unlink(missing_ok=True)
