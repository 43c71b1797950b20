"""An honest implementation through a file: torch's kernels exported to ONNX and run by onnxruntime."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import warnings
from typing import Any

import numpy as np

from coatref.conformance.honest.torch_variants import as_tensors, function_of, in_order
from coatref.conformance.honest.variant import Variant, variant
from coatref.conformance.precision import Precision
from coatref.conformance.target import Output
from coatref.initialise import init
from coatref.params import Params
from coatref.specification.spec import Spec


def onnx_variants(precision: Precision) -> tuple[Variant, ...]:
    """One in float32; onnxruntime has no convolution in float64 and casts half types to float32 by itself."""
    if precision != Precision("float32", "float32"):
        return ()

    def compute(params: Params, x: np.ndarray) -> Output:
        session = exported(params.spec, x.shape)
        values = [np.ascontiguousarray(x), *in_order(params)]
        names = [each.name for each in session.get_inputs()]
        (logits,) = session.run(None, dict(zip(names, values, strict=True)))
        return {"logits": logits}

    return (variant("onnxruntime", precision, compute, packages=("onnxruntime", "onnx", "torch"), slow=True),)


@functools.lru_cache(maxsize=8)
def exported(spec: Spec, shape: tuple[int, ...]) -> Any:
    """An onnxruntime session for images of one shape, whose inputs are the images and the parameters in order."""
    onnxruntime: Any = importlib.import_module("onnxruntime")  # which has no types
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(model_bytes(spec, shape), options, providers=["CPUExecutionProvider"])


def model_bytes(spec: Spec, shape: tuple[int, ...]) -> bytes:
    """The network as an ONNX model."""
    import torch

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = network(list(tensors), x)["logits"]
            return logits

    network = function_of(spec, "nchw")
    example, images = as_tensors(init(spec), np.zeros(shape, np.float32), "float32")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet("torch.onnx"), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of itself
        program = torch.onnx.export(Network().eval(), (images, *in_order(example)), dynamo=True, verbose=False)
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program.")
    model: bytes = program.model_proto.SerializeToString()
    return model


@contextlib.contextmanager
def quiet(name: str) -> Any:
    """No messages of a logger below errors for as long as the context lasts."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
