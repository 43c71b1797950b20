"""coatref: the reference definition of CoAtNet (Dai et al. 2021, arXiv 2106.04803), as pure functions.

    import coatref
    params = coatref.load("hf-hub:timm/coatnet_0_rw_224.sw_in1k")
    logits = coatref.forward(params, x)  # x: (N, H, W, 3), any array-API library

`specs` and `spec` give the named networks, `init`, `load` and `convert` their parameters, `forward` and `trace` compute,
`prepare` makes ready for many forward passes, `save` stores, `export` gives other projects' names and `export_onnx` an ONNX
file, and `check` judges another implementation. Every error raised on purpose derives from `CoatrefError`.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any, Literal

from coatref.errors import (
    CoatrefError,
    DtypeError,
    FileFormatError,
    InputError,
    LibraryError,
    MissingDependencyError,
    ShapeError,
    SizeError,
    SpecError,
    UnknownSpecError,
    WeightsError,
)
from coatref.images import preprocess, preprocess_images
from coatref.initialise import init
from coatref.model import forward, trace
from coatref.onnx_export import export_onnx
from coatref.params import Params
from coatref.prepared import Prepared, prepare
from coatref.specification import Preprocessing, Spec, spec, specs
from coatref.weights import convert, export, load, save

__all__ = [
    "CoatrefError",
    "DtypeError",
    "FileFormatError",
    "InputError",
    "LibraryError",
    "MissingDependencyError",
    "Params",
    "Prepared",
    "Preprocessing",
    "ShapeError",
    "SizeError",
    "Spec",
    "SpecError",
    "UnknownSpecError",
    "WeightsError",
    "check",
    "convert",
    "export",
    "export_onnx",
    "forward",
    "init",
    "load",
    "prepare",
    "preprocess",
    "preprocess_images",
    "save",
    "spec",
    "specs",
    "trace",
]

__version__ = "0.1.0"


def check(
    target: Any,
    *,
    spec: Spec | str | os.PathLike[str] | None = None,
    weights: Params | str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    accumulate: str | None = None,
    level: Literal["quick", "default", "deep"] = "default",
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Any:
    """Judge an implementation: whether it computes its spec, where it goes wrong, and what it computes instead.

        report = coatref.check("timm:coatnet_0_rw_224", level="quick")
        assert report.conforms, report.summary

    Args:
        target: what is judged: a text as for `coatref check`, such as "timm:coatnet_0_rw_224", "onnx:model.onnx" or
            "op:relative_attention=package.module:function"; a `coatref.conformance.Target`; or a function of parameters
            (`Params` of NumPy arrays) and images (N, H, W, channels) that gives the logits (N, classes), for which `spec`
            is needed.
        spec: the network that it claims to compute: a spec, the name of one, or the path of a JSON file of one; None:
            what the target says itself.
        weights: its weights, or the path of a file that `load` reads; None: those that it came with, and fresh ones.
        dtype: the type that it stores values in: "float64", "float32", "float16" or "bfloat16".
        accumulate: the type of its sums; None: what its kind of target does, which is float32 for the half types in most.
        level: how much is tried.
        seed: of everything that is drawn at random; equal arguments give equal verdicts.
        progress: called with the number of cases done, the number of all, and what is done next.

    Returns:
        A `coatref.conformance.Report`: `verdict` ("pass", "fail" or "cannot judge"), `conforms`, `summary`, `findings`,
        and every compared value. What is wrong with the candidate is told there, also an exception that it raises.

    Raises:
        CoatrefError: an argument cannot be used, or a library that the target needs is missing.
        OSError: a file cannot be read.
    """
    judging = importlib.import_module("coatref.conformance.judging")  # by name: no import leads from here to the judge
    return judging.judged(
        target,
        spec=spec,
        weights=weights,
        dtype=dtype,
        accumulate=accumulate,
        level=level,
        seed=seed,
        progress=progress,
    )
