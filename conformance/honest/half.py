"""Values stored in a narrow type and computed in a wider one: rounded after each primitive, and nowhere inside it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from coatref.conformance.honest.variant import Variant, outputs, variant
from coatref.conformance.precision import Precision, as_stored, numpy_type, rounded
from coatref.conformance.target import Output
from coatref.params import Params
from coatref.primitives import Form, Primitives
from coatref.registry import Array
from coatref.tap import Tap, no_tap


def stored_variant(
    name: str, precision: Precision, forms: Primitives, *, attention: bool = False, traced: bool = False
) -> Variant:
    """A variant on NumPy that computes in `precision.accumulate` and rounds each value to `precision.storage`.

    Args:
        name: of the variant.
        precision: that it declares.
        forms: the functions that compute, before their results are rounded.
        attention: whether the attention's logits and weights are rounded too, as by an implementation that writes them
            to memory; else they stay inside the primitive, as in a fused kernel.
        traced: whether to give every value that `coatref.trace` names.
    """
    rounding = storing(forms, precision, attention=attention)

    def tap(path: str, value: Array) -> Array:
        return store(value, precision)

    def compute(params: Params, x: np.ndarray) -> Output:
        images = x.astype(precision.accumulate)
        values = outputs(params.to(dtype=precision.accumulate), images, rounding, tap, traced=traced)
        return {path: as_stored(value, precision.storage) for path, value in values.items()}

    return variant(name, precision, compute)


def store(value: Array, precision: Precision) -> Array:
    """An array of the accumulation type rounded to the storage type, still in the accumulation type."""
    if precision.storage == "bfloat16" and value.dtype == np.float32:
        return leading_bits(value)
    if precision.storage == "bfloat16":
        return rounded(value, "bfloat16").astype(precision.accumulate)
    return value.astype(numpy_type(precision.storage)).astype(precision.accumulate)


def leading_bits(value: np.ndarray) -> np.ndarray:
    """Float32 numbers rounded to the nearest that bfloat16 holds, ties to even, by their bits: `rounded` made quick.

    What is not finite stays as it is.
    """
    bits = np.ascontiguousarray(value).view(np.uint32)
    even = (bits >> 16) & np.uint32(1)
    kept = ((bits + (np.uint32(0x7FFF) + even)) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isfinite(value), kept, value)


def storing(forms: Primitives, precision: Precision, *, attention: bool = False) -> Primitives:
    """Primitives whose results are rounded to the storage type.

    A tap is given to the attention only where its logits and weights are to be rounded.
    """

    def rounds(form: Form) -> Form:
        def compute(*args: Any, tap: Tap = no_tap, **kwargs: Any) -> Array:
            watched = {"tap": tap} if attention and tap is not no_tap else {}
            return store(form(*args, **kwargs, **watched), precision)

        return compute

    return Primitives(**{field.name: rounds(getattr(forms, field.name)) for field in dataclasses.fields(forms)})
