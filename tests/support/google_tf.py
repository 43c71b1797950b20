"""tensorflow/models' maxvit blocks as a CoAtNet, run as a program of its own: `python google_tf.py REQUEST.json FOLDER`.

A program, because TensorFlow warns, and holds threads and memory, from the moment that it is imported. The request is an
object with "model" (keyword arguments of the backbone), "size" (height and width), "classes", and the names of two files
of arrays: "images", (N, H, W, 3), and "values", by name of variable. Into the folder go `logits.npy`, `variables.npz` (by
name, as `model.variables` has them) and a checkpoint `model.ckpt-1` of the kind that training leaves, in which every
moving average is twice the variable.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coatref

NEEDED = {"tensorflow": "tensorflow-cpu", "tf_keras": "tf-keras", "official": "tf-models-official"}


def require_tensorflow() -> None:
    """Skips the calling test where TensorFlow or its model garden is not installed."""
    for module, package in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {package}, which is not installed (pip install {package})")


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers for a variable, from its name: exact in float32, no two channels alike, statistics and negative scales too."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).randint(-512, 513, size=shape) / 512  # -1 .. 1
    leaf = name.rpartition("/")[2]
    if leaf == "moving_variance":
        return 1 + drawn / 2
    if leaf == "gamma":
        return np.where(drawn < 0, drawn - 0.5, drawn + 0.5)
    if leaf == "relative_bias":
        return 4 * drawn
    if leaf in ("beta", "bias", "moving_mean"):
        return drawn
    # of one output: q, k and v have two axes behind that of the inputs, everything else has one
    inputs = shape[0] if name.endswith(("/q/weight", "/k/weight", "/v/weight")) else math.prod(shape[:-1])
    if leaf == "depthwise_kernel":
        inputs = math.prod(shape[:2])
    return drawn * 2.0 ** (1 - math.floor(math.log2(inputs) / 2))


def request(spec: coatref.Spec, **options: Any) -> dict[str, Any]:
    """What to ask the program for a spec; options are of the backbone."""
    stem: Any = spec.stem
    runs: list[Any] = [run for (run,) in spec.stages]
    model = {
        "block_type": [{"mbconv": "mbconv", "transformer": "tfm"}[run.kind] for run in runs],
        "num_blocks": [run.depth for run in runs],
        "hidden_size": [run.width for run in runs],
        "stem_hsize": list(stem.widths),
        "representation_size": spec.width,
        "add_gap_layer_norm": True,
    }
    return {"model": model | options, "size": list(spec.image_size), "classes": spec.head.classes}


def run(folder: Path, asked: dict[str, Any], values: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The program's logits; what else it writes is in the folder then."""
    np.savez(folder / "values.npz", **values)  # type: ignore[arg-type]  # NumPy has another argument beside the names
    np.save(folder / "images.npy", x)
    files = {"values": str(folder / "values.npz"), "images": str(folder / "images.npy")}
    (folder / "request.json").write_text(json.dumps(asked | files), encoding="utf-8")
    command = [sys.executable, __file__, str(folder / "request.json"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: np.ndarray = np.load(folder / "logits.npy")
    return found


# --- the program ---


def build(asked: dict[str, Any]) -> Any:
    """ClassificationModel around the MaxViT backbone."""
    keras = importlib.import_module("tf_keras")
    backbone = importlib.import_module("official.projects.maxvit.modeling.maxvit").MaxViT(**asked["model"])
    classifier = importlib.import_module("official.vision.modeling.classification_model")
    shape = [None, *asked["size"], 3]
    return classifier.ClassificationModel(
        backbone, num_classes=asked["classes"], input_specs=keras.layers.InputSpec(shape=shape)
    )


def save(model: Any, path: str) -> None:
    """A checkpoint as the project's trainer makes it: the model, an optimizer with moving averages, a counter."""
    tf, keras = importlib.import_module("tensorflow"), importlib.import_module("tf_keras")
    averages = importlib.import_module("official.modeling.optimization.ema_optimizer").ExponentialMovingAverage
    optimizer = averages(keras.optimizers.legacy.Adam(), trainable_weights_only=False)
    optimizer.shadow_copy(model)
    optimizer.apply_gradients([(tf.zeros_like(variable), variable) for variable in model.trainable_variables])
    for variable in model.variables:
        optimizer.get_slot(variable, "average").assign(2 * variable)
    step = tf.Variable(1, dtype=tf.int64)
    tf.train.Checkpoint(model=model, optimizer=optimizer, global_step=step, **model.checkpoint_items).write(path)


def main(request_file: str, folder: str) -> None:
    """Build, compute and save."""
    asked, out = json.loads(Path(request_file).read_text(encoding="utf-8")), Path(folder)
    model = build(asked)
    with np.load(asked["values"]) as stored:
        values = {name: stored[name] for name in stored.files}
    for variable in model.variables:
        variable.assign(values.pop(variable.name.partition(":")[0]))
    if values:
        raise ValueError(f"no variables of the model: {sorted(values)}")
    np.save(out / "logits.npy", model(np.load(asked["images"]), training=False).numpy())
    np.savez(out / "variables.npz", **{variable.name: variable.numpy() for variable in model.variables})
    save(model, str(out / "model.ckpt-1"))


if __name__ == "__main__":
    main(*sys.argv[1:])
