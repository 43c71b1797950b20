"""timm's model as an ONNX file, run by ONNX Runtime, OpenVINO and the reference evaluator of onnx."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.forms import Runner
from benchmarks.forms.onnx_export import exported
from coatref import Params


def as_float64(logits: Any) -> np.ndarray:
    """Logits for the comparison."""
    return np.asarray(logits, "float64")


def nchw(images: np.ndarray) -> np.ndarray:
    """The images with channels first, contiguous."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def runtime(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """ONNX Runtime with its default optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = case.threads, 3
    session = onnxruntime.InferenceSession(exported(case), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: nchw(images)}
    return Runner(lambda: session.run(None, feed)[0], as_float64)


def openvino(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """OpenVINO for low latency, in float32 (its default on processors with AMX is bfloat16, which is no float32 form)."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": case.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled, x = openvino.Core().compile_model(exported(case), "CPU", settings), nchw(images)
    return Runner(lambda: compiled(x)[0], as_float64)


def reference(case: Case, weights: Params, images: np.ndarray) -> Runner:
    """The reference evaluator of onnx, in NumPy."""
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(exported(case))
    feed = {evaluator.input_names[0]: nchw(images)}
    return Runner(lambda: evaluator.run(None, feed)[0], as_float64)
