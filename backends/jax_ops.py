"""The primitives on JAX, where another form than the definition's pays.

All of them trace: they work eagerly and under `jit`, `vmap`, `grad`, `checkpoint` and a mesh. XLA fuses elementwise steps by
itself, so pools, norms and activations stay the definition's.

Whatever these forms do not take goes to the definition: arguments that do not belong together (which it refuses with its own
errors), mixed data types, empty arrays.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

from coatref.attention.relative_attention import check_shapes
from coatref.ops import matmul
from coatref.primitives import DEFINITION, Form
from coatref.registry import Array
from coatref.specification.grids import output_length, padding_amounts
from coatref.tap import Tap, no_tap

with contextlib.suppress(ModuleNotFoundError):  # nothing below is called where JAX is absent
    import jax
    import jax.numpy as jnp
    from jax import lax

Margins = tuple[tuple[int, int], tuple[int, int]]  # rows above and below, columns before and after


def margins_of(x: Array, kernel: tuple[int, int], stride: int, padding: Any) -> Margins | None:
    """The padding of a window over a grid; None where x is no grid or the window does not fit, which is to be refused."""
    if x.ndim != 4 or any(output_length(x.shape[1 + axis], kernel[axis], stride, padding) < 1 for axis in (0, 1)):
        return None
    rows, columns = (padding_amounts(x.shape[1 + axis], kernel[axis], stride, padding) for axis in (0, 1))
    return rows, columns


def alike(x: Array, *others: Array | None) -> bool:
    """Whether lax takes these together: all of x's data type, and none of them empty."""
    return x.size > 0 and all(other is None or (other.dtype == x.dtype and other.size > 0) for other in others)


def convolve(x: Array, w: Array, stride: int, margins: Margins, groups: int = 1) -> Array:
    """`jax.lax` convolution at the precision of the type. Shapes: (N, H, W, C), (kh, kw, C/groups, D) -> (N, H', W', D)."""
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(stride, stride),
        padding=margins,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=lax.Precision.HIGHEST,
    )


# --- the primitives; see `coatref.ops` and `coatref.attention` for what each computes ---


def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: str = "same") -> Array:
    """`coatref.ops.conv2d` by `jax.lax.conv_general_dilated`.

    On a CPU the stem's second convolution takes half the time of patches and a product (4.3 against 9.3 ms an image on one
    core): its patches are 14 MB, written, read and packed. And 16x16 patches are one operation, not 256 slices.
    """
    margins = margins_of(x, w.shape[:2], stride, padding)
    if margins is None or x.shape[3] != w.shape[2] or not alike(x, w, b):
        return DEFINITION.conv2d(x, w, b, stride=stride, padding=padding)
    y = convolve(x, w, stride, margins)
    return y if b is None else y + b


def depthwise_conv2d(x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: str = "same") -> Array:
    """`coatref.ops.depthwise_conv2d`: on accelerators by a lax convolution in as many groups as channels, on CPUs by shifts.

    XLA on CPUs fuses the sum of shifted grids into one loop, and has no fast grouped convolution (8 to 17 times slower). The
    grid is padded in one step, together with the activation before it, and kept apart from the loop behind it by a barrier:
    else XLA computes the activation twice or the padding nine times (1.6 to 5 times slower).

    The platform is that which the program is compiled for (`jax.lax.platform_dependent`), so the choice is right under `jit`
    for any device, and only the form that was chosen is compiled.
    """
    margins = margins_of(x, w.shape[:2], stride, padding)
    if margins is None or x.shape[3] != w.shape[2] or not alike(x, w, b):
        return DEFINITION.depthwise_conv2d(x, w, b, stride=stride, padding=padding)
    here, elsewhere = (functools.partial(form, stride=stride, margins=margins) for form in (shifted, grouped))
    y = lax.platform_dependent(x, w, cpu=here, default=elsewhere)
    return y if b is None else y + b


def shifted(x: Array, w: Array, *, stride: int, margins: Margins) -> Array:
    """Depthwise convolution as a sum over the window. Shapes: (N, H, W, C), (kh, kw, C) -> (N, H', W', C)."""
    padded = lax.optimization_barrier(jnp.pad(x, ((0, 0), *margins, (0, 0))))  # type: ignore[no-untyped-call]
    return DEFINITION.depthwise_conv2d(padded, w, None, stride=stride, padding="valid")


def grouped(x: Array, w: Array, *, stride: int, margins: Margins) -> Array:
    """Depthwise convolution by lax. Shapes: (N, H, W, C), (kh, kw, C) -> (N, H', W', C)."""
    return convolve(x, w[:, :, None, :], stride, margins, groups=w.shape[2])  # (kh, kw, C) -> (kh, kw, 1, C)


def activation(x: Array, kind: str) -> Array:
    """`coatref.ops.activation`; SiLU by `jax.nn.silu`, whose sigmoid needs no absolute value, choice and second branch."""
    return jax.nn.silu(x) if kind == "silu" else DEFINITION.activation(x, kind)


def relative_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    *,
    scale: float = 1.0,
    scale_site: Any = "query",
    add: Any = "pre_softmax",
    key_mask: Array | None = None,
    tap: Tap = no_tap,
) -> Array:
    """`coatref.attention.relative_attention`, of which the usual case is normalised after the product with v.

    y_i = (sum_j e_ij v_j) / sum_j e_ij, e_ij = exp(l_ij - max_j l_ij): D divisions for a query and not K, one pass less over
    the weights (1.5 against 1.8 ms for 12 heads of 196 positions on one core).
    """
    if tap is not no_tap or scale_site != "query" or add != "pre_softmax" or key_mask is not None:
        options = {"scale": scale, "scale_site": scale_site, "add": add, "key_mask": key_mask, "tap": tap}
        return DEFINITION.relative_attention(q, k, v, bias, **options)
    check_shapes(q, k, v, bias, key_mask)
    if not math.isclose(scale, 1.0):
        q = q * scale
    logits = matmul(q, jnp.matrix_transpose(k))  # (N, heads, Q, D) @ (N, heads, D, K) -> (N, heads, Q, K)
    if bias is not None:
        logits = logits + bias
    weights = jnp.exp(logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    return matmul(weights, v) / jnp.sum(weights, axis=-1, keepdims=True)  # (N, heads, Q, K) @ (N, heads, K, D)


PRIMITIVES: dict[str, Form] = {
    "conv2d": conv2d,
    "depthwise_conv2d": depthwise_conv2d,
    "activation": activation,
    "relative_attention": relative_attention,
}
