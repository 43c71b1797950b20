"""The forms: one entry for each way of computing the network. Their libraries are imported in the worker alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import Case
from coatref import Params


@dataclass(frozen=True)
class Runner:
    """A form that is ready to run."""

    run: Callable[[], Any]  # computes the logits of the batch, and returns when they are there
    logits: Callable[[Any], np.ndarray]  # what `run` returned, as NumPy's float64
    peak_memory: Callable[[], dict[str, int]] | None = None  # of a device; None: the process's own memory counts


Maker = Callable[[Case, Params, np.ndarray], Runner]  # (case, weights, images (N, H, W, 3)) -> Runner


@dataclass(frozen=True)
class Form:
    """One way of computing the network.

    `compiles`: the first run compiles, so its memory says nothing. `largest_batch` and `rounds` bound what is very slow.
    """

    title: str
    maker: str  # "module:function", a `Maker`
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "tf32")
    compiles: bool = False
    largest_batch: int | None = None
    rounds: int | None = None

    def make(self, case: Case, weights: Params, images: np.ndarray) -> Runner:
        """The form, ready to run; whatever its library raises where it cannot."""
        module, _, name = self.maker.partition(":")
        maker: Maker = getattr(importlib.import_module(f"benchmarks.forms.{module}"), name)
        return maker(case, weights, images)


CPU, CUDA, SINGLE = ("cpu",), ("cuda",), ("float32",)

FORMS: dict[str, Form] = {
    "timm-eager": Form("timm, eager (NCHW)", "timm:eager"),
    "timm-channels-last": Form("timm, eager, channels_last", "timm:channels_last"),
    "timm-compiled": Form("timm, torch.compile", "timm:compiled", compiles=True),
    "timm-frozen": Form("timm, torch.compile, frozen weights", "timm:frozen", CPU, SINGLE, compiles=True),
    "onnxruntime": Form("ONNX Runtime, timm's model", "onnx:runtime", CPU, SINGLE),
    "openvino": Form("OpenVINO, the same ONNX file", "onnx:openvino", CPU, SINGLE),
    "onnx-reference": Form("onnx.reference, the same file", "onnx:reference", CPU, SINGLE, largest_batch=1, rounds=1),
    "numpy-definition": Form("NumPy, definition", "numpy:definition", CPU),
    "numpy-fast": Form("NumPy, fast primitives, not prepared", "numpy:fast", CPU),
    "numpy-prepared": Form("NumPy, prepared, with numba", "numpy:prepared", CPU),
    "numpy-prepared-alone": Form("NumPy, prepared, without numba", "numpy:prepared_alone", CPU, SINGLE),
    "torch-fast": Form("torch, fast primitives, not prepared", "torch:fast"),
    "torch-prepared": Form("torch, prepared", "torch:prepared"),
    "torch-prepared-compiled": Form("torch, prepared, torch.compile", "torch:compiled", compiles=True),
    "jax-definition": Form("JAX, definition, jit", "jax:definition", compiles=True),
    "jax-prepared": Form("JAX, prepared, jit", "jax:prepared", compiles=True),
    "cupy-definition": Form("CuPy, definition", "cupy:definition", CUDA),
    "cupy-prepared": Form("CuPy, prepared", "cupy:prepared", CUDA),
    "planted-mistake": Form("a weight changed by 1 %: must be refused", "numpy:planted_mistake", CPU),
}

BASELINE = "timm-eager"
GROWING = ("timm-eager", "numpy-prepared", "torch-prepared", "jax-prepared")  # measured at every size and batch
DOUBLE = ("timm-eager", "numpy-definition", "numpy-prepared", "torch-prepared")  # measured in float64
ON_REQUEST = ("planted-mistake",)
ON_CUDA = (  # in order of use; a machine is lent for minutes only
    "timm-eager",
    "timm-channels-last",
    "timm-compiled",
    "torch-prepared",
    "torch-prepared-compiled",
    "cupy-definition",
    "cupy-prepared",
    "jax-prepared",
)
