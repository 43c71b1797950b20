"""Whether an ONNX file that coatref has written computes its network: onnxruntime against the definition.

The bound is the judge's own, by its error model (docs/error-model.md) for the file's data type: float16 is accumulated in
float32, as onnxruntime does on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coatref.conformance.evaluate import OUTPUT, answer, comparisons
from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.precision import as_stored, declared
from coatref.conformance.report.results import Verdict
from coatref.conformance.suite import LEVELS, SMALL, as_given
from coatref.conformance.targets.onnx_weights import read_graph
from coatref.errors import FileFormatError
from coatref.params import from_flat
from coatref.registry import missing
from coatref.specification.spec import Spec

BATCHES = (2, 1)  # images that go through the file together; two numbers, so that its batch axis is seen to be free


@dataclass(frozen=True)
class Agreement:
    """How a file's output compares with the definition's.

    Attributes:
        verdict: "pass", "fail", or "cannot judge" where rounding in the data type hides everything.
        precision: the arithmetic that the bound is for.
        difference: the largest, relative to the largest output.
        bound: what rounding allows the element that is nearest to its bound, on the same scale.
        margin: of the element, rms and bias tests the largest; 1 is the limit.
        reason: why it does not pass, as a clause; the numbers are None where nothing could be compared.
        seconds: that it took.
    """

    verdict: Verdict
    precision: str
    difference: float | None
    bound: float | None
    margin: float | None
    reason: str
    seconds: float
    batches: tuple[int, ...] = BATCHES

    def told(self) -> str:
        """In words, as a clause."""
        if self.verdict == "pass":
            return (
                f"onnxruntime is off by {self.difference:.1e} of the largest output at most, "
                f"{self.margin:.2g} times what rounding in {self.precision} allows"
            )
        if self.verdict == "fail":
            return f"it does not compute what the definition does in {self.precision}: {self.reason}"
        return f"it cannot be told whether it computes what the definition does: {self.reason}"


def agreement(
    path: Path, spec: Spec, arrays: Mapping[str, np.ndarray], *, dtype: str, layout: str, seed: int = 0
) -> Agreement:
    """Run random images through a file and through the definition.

    Args:
        path: of the file.
        spec: that it should compute.
        arrays: its parameters, in its data type, under dotted names.
        dtype: of the file, and of the images.
        layout: of its images, "NHWC" or "NCHW".
        seed: of the images and of the error model's probes.

    Raises:
        FileFormatError: onnxruntime refuses the file.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    began, precision = time.perf_counter(), declared(dtype)

    def told(
        verdict: Verdict,
        reason: str,
        difference: float | None = None,
        bound: float | None = None,
        margin: float | None = None,
    ) -> Agreement:
        finite = margin if margin is not None and math.isfinite(margin) else None
        return Agreement(verdict, str(precision), difference, bound, finite, reason, time.perf_counter() - began)

    if wrong := misheld(path, arrays):
        return told("fail", f"its initialisers are not the parameters: {', '.join(wrong[:8])}")
    case = as_given(spec, from_flat(spec, arrays), seed, sum(BATCHES), precision)
    images = as_stored(case.x, dtype)
    found = np.asarray(outputs(path, images if layout == "NHWC" else images.transpose(0, 3, 1, 2)), np.float64)
    probes = LEVELS["quick"].probes[0 if spec.num_parameters() <= SMALL else 1]
    right = answer(Changed(spec), case.params, case.x, precision, {}, probes, seed)
    (compared,) = comparisons({OUTPUT: found}, right, precision)
    largest = float(np.max(np.abs(right.expected[OUTPUT]))) or 1.0
    difference, bound = (None if each is None else each / largest for each in (compared.max_error, compared.bound))
    return told(compared.verdict, compared.reason, difference, bound, compared.margin)


def misheld(path: Path, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Parameters that are not in the file bit by bit, and initialisers that are no parameters."""
    held = read_graph(str(path)).arrays
    same = {
        name
        for name, array in arrays.items()
        if name in held and held[name].dtype == array.dtype and np.array_equal(held[name], array)
    }
    return [name for name in (*arrays, *(name for name in held if name not in arrays)) if name not in same]


def outputs(path: Path, images: np.ndarray) -> np.ndarray:
    """What onnxruntime computes on the CPU, the images in batches of `BATCHES`.

    Raises:
        FileFormatError: it refuses the file, or fails on the images.
        MissingDependencyError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing("onnxruntime", "onnx", "Validating an ONNX file") from None
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors alone
    parts, start = [], 0
    try:
        session = onnxruntime.InferenceSession(str(path), settings, ["CPUExecutionProvider"])
        for count in BATCHES:
            batch = np.ascontiguousarray(images[start : start + count])
            parts.append(session.run(None, {session.get_inputs()[0].name: batch})[0])
            start += count
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common class that is public
        raise FileFormatError(
            f"onnxruntime refuses {path.name}: {type(error).__name__}: {str(error)[:500]}; try another opset."
        ) from None
    return np.concatenate(parts)
