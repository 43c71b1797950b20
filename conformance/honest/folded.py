"""An inference-style rewrite: everything that depends on parameters alone is computed first and folded into them.

BatchNorm becomes a scale and a shift, or goes into the kernel of the layer before it; the attention's scale goes into the
query's weights and, where it multiplies the bias too, into the table; softmax is normalised after the product with v.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from coatref.conformance.honest.folded_weights import fold_attention, fold_norms
from coatref.conformance.honest.variant import Variant, outputs, variant
from coatref.conformance.precision import Precision
from coatref.conformance.target import Output
from coatref.params import Params
from coatref.primitives import DEFINITION
from coatref.registry import Array
from coatref.tap import Tap, no_tap


def folded_variants(precision: Precision) -> tuple[Variant, ...]:
    """The rewrite on NumPy, with BatchNorm as a scale and a shift, and with BatchNorm in the kernels.

    They give their output alone: a query with the scale in its weights is not the value that a trace has by that name.
    """
    if precision.storage != precision.accumulate or precision.storage not in ("float32", "float64"):
        return ()

    def scaled(params: Params, x: np.ndarray) -> Output:
        return outputs(fold_attention(params), x, FOLDED)

    def in_kernels(params: Params, x: np.ndarray) -> Output:
        return outputs(fold_norms(fold_attention(params)), x, FOLDED)

    return (
        variant("folded", precision, scaled),
        variant("folded into kernels", precision, in_kernels),
    )


def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Array:
    """x s + t with s = gamma / sqrt(var + epsilon) and t = beta - mean s. Shapes: (..., C) -> (..., C)."""
    scale = gamma / np.sqrt(var + epsilon)
    return x * scale + (beta - mean * scale)


def relative_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    *,
    scale: float = 1.0,
    scale_site: str = "query",
    add: str = "pre_softmax",
    key_mask: Array | None = None,
    tap: Tap = no_tap,
) -> Array:
    """Attention that divides by the sum of the exponentials once for each output. Shapes as in the definition.

    With a mask, or a bias after the softmax, it is the definition.
    """
    if key_mask is not None or add == "post_softmax":
        site: Any = scale_site
        return DEFINITION.relative_attention(
            q, k, v, bias, scale=scale, scale_site=site, add=add, key_mask=key_mask, tap=tap
        )
    logits = np.matmul(q, np.swapaxes(k, 2, 3))  # (N, heads, Q, K)
    if bias is not None and scale_site != "logits_and_bias":
        logits = logits * scale + bias
    else:
        logits = (logits if bias is None else logits + bias) * scale
    logits = tap("logits", logits)
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return np.matmul(weights, v) / np.sum(weights, axis=-1, keepdims=True)  # (N, heads, Q, D)


FOLDED = dataclasses.replace(DEFINITION, batch_norm=batch_norm, relative_attention=relative_attention)
