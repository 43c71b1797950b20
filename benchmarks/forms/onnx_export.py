"""timm's model with our weights as an ONNX file, one for each network, size and batch.

    python -m benchmarks.forms.onnx_export '{"case": {...}, "path": "model.onnx"}'

is how a worker makes it, so that torch is not in the process that is measured.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

from benchmarks.cases import Case


def exported(case: Case) -> str:
    """The path of the case's file in the run's folder, which the worker that comes first makes."""
    folder = Path(os.environ["COATREF_BENCHMARK_FOLDER"])
    path = folder / f"{case.model}-{case.size}-{case.batch}.onnx"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not path.exists():
            task = json.dumps({"case": case.as_dict(), "path": str(path)})
            subprocess.run([sys.executable, "-m", "benchmarks.forms.onnx_export", task], check=True, stdout=sys.stderr)
    return str(path)


def main() -> None:
    """Export one case."""
    import torch

    from benchmarks import weights
    from benchmarks.forms.timm import model_of, nchw

    task = json.loads(sys.argv[1])
    case, path = Case(**task["case"]), Path(task["path"])
    model, x = model_of(case, weights.parameters(case)), nchw(case, weights.images(case))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of itself
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program.")
    partial = path.with_suffix(".partial")
    program.save(partial)
    partial.rename(path)


if __name__ == "__main__":
    main()
