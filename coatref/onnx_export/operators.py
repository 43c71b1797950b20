"""The primitives as ONNX operators.

In float32 and float16 they are the operators made for them: Conv, BatchNormalization, LayerNormalization and so on. In
float64 onnxruntime has no Conv, AveragePool or Erf, and ONNX keeps an epsilon in float32 only, so there the definition
itself is recorded, with Pad and MaxPool, which onnxruntime has.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from coatref import ops
from coatref.onnx_export.arrays import Order, Recorded, graph_of, held, known, laid, permuted, reshaped
from coatref.onnx_export.graph import constant, operate
from coatref.onnx_export.namespace import matmul
from coatref.ops.window import WindowPadding
from coatref.primitives import Primitives
from coatref.specification.grids import output_length, padding_amounts
from coatref.tap import Tap, no_tap

Array = Any  # a `Recorded`; what the definition gives has no type

GRID_FIRST: Order = (0, 3, 1, 2)  # (N, C, H, W), in which ONNX's convolutions and pools take a grid


def primitives_in(dtype: str) -> Primitives:
    """The primitives for a data type."""
    return DOUBLE if dtype == "float64" else SINGLE


# --- what windows have in common ---


def window(x: Array, size: tuple[int, int], stride: int, padding: WindowPadding) -> tuple[tuple[int, int], list[int]]:
    """Grid (H', W') that a sliding window gives, and ONNX's `pads`: above, left, below, right."""
    lengths: Any = x.shape[1:3]  # never the batch
    (top, bottom), (left, right) = (
        padding_amounts(length, each, stride, padding) for length, each in zip(lengths, size, strict=True)
    )
    grid = tuple(output_length(length, each, stride, padding) for length, each in zip(lengths, size, strict=True))
    return grid, [top, left, bottom, right]  # type: ignore[return-value]


def grid_operator(operator: str, x: Array, inputs: tuple[str, ...], grid: Any, width: Any, **attributes: Any) -> Array:
    """An operator from a grid to a grid, both channels first. Shapes: (N, H, W, C) -> (N, *grid, width)."""
    graph = graph_of(x)
    value = operate(graph, operator, laid(graph, x, GRID_FIRST), *inputs, **attributes)
    return held(graph, (x.shape[0], *grid, width), x.dtype, value, GRID_FIRST)


def padded(x: Array, size: tuple[int, int], stride: int, padding: WindowPadding) -> Array:
    """The grid with the zeros around it that a sliding window sees. Shapes: (N, H, W, C) -> (N, H + p, W + q, C)."""
    _, (top, left, bottom, right) = window(x, size, stride, padding)
    if not (top or left or bottom or right):
        return x
    graph = graph_of(x)
    before, after = {1: top, 2: left}, {1: bottom, 2: right}
    amounts = [each.get(axis, 0) for each in (before, after) for axis in x.order]
    zero, numbers = constant(graph, np.asarray(0, x.dtype)), constant(graph, np.asarray(amounts, np.int64))
    shape = tuple(
        length + before.get(axis, 0) + after.get(axis, 0) if axis in before else length
        for axis, length in enumerate(x.shape)
    )
    return Recorded(shape, x.dtype, graph, operate(graph, "Pad", x.value, numbers, zero), x.order)


def max_pool(x: Array, *, size: int = 2, stride: int = 2, padding: WindowPadding = "same") -> Array:
    """`coatref.ops.max_pool` as MaxPool."""
    grid, pads = window(x, (size, size), stride, padding)
    options: dict[str, Any] = {"kernel_shape": (size, size), "strides": (stride, stride), "pads": tuple(pads)}
    return grid_operator("MaxPool", x, (), grid, x.shape[3], **options)


# --- float32 and float16 ---


def convolution(x: Array, w: Array, b: Array | None, stride: int, padding: WindowPadding, groups: int) -> Array:
    """Conv of a grid with w (D, C/groups, kh, kw). Shapes: (N, H, W, C) -> (N, H', W', D)."""
    size: Any = w.shape[2:]
    grid, pads = window(x, size, stride, padding)
    graph = graph_of(x)
    inputs = (laid(graph, w), *(() if b is None else (laid(graph, b),)))
    options: dict[str, Any] = {"kernel_shape": size, "strides": (stride, stride), "pads": tuple(pads)}
    return grid_operator("Conv", x, inputs, grid, w.shape[0], group=groups, **options)


def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: WindowPadding = "same") -> Array:
    """`coatref.ops.conv2d` as Conv."""
    return convolution(x, permuted(w, (3, 2, 0, 1)), b, stride, padding, 1)  # (kh, kw, C, D) -> (D, C, kh, kw)


def depthwise_conv2d(
    x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: WindowPadding = "same"
) -> Array:
    """`coatref.ops.depthwise_conv2d` as Conv in as many groups as channels."""
    channels: Any = w.shape[2]
    w = reshaped(permuted(w, (2, 0, 1)), (channels, 1, *w.shape[:2]))  # (kh, kw, C) -> (C, 1, kh, kw)
    return convolution(x, w, b, stride, padding, channels)


def dense(x: Array, w: Array, b: Array | None = None) -> Array:
    """`coatref.ops.dense` as a 1x1 Conv of a grid that has its channels first, else as MatMul and Add."""
    if x.ndim == 4 and x.order == GRID_FIRST:
        kernel = reshaped(permuted(w, (1, 0)), (w.shape[1], w.shape[0], 1, 1))  # (C, D) -> (D, C, 1, 1)
        return convolution(x, kernel, b, 1, "valid", 1)
    graph = graph_of(x, w)
    value = operate(graph, "MatMul", laid(graph, x), laid(graph, w))
    y = held(graph, (*x.shape[:-1], w.shape[1]), x.dtype, value)
    return y if b is None else y + b


def avg_pool(
    x: Array, *, size: int = 2, stride: int = 2, padding: WindowPadding = "same", padded_zeros: str = "excluded"
) -> Array:
    """`coatref.ops.avg_pool` as AveragePool."""
    grid, pads = window(x, (size, size), stride, padding)
    options: dict[str, Any] = {"kernel_shape": (size, size), "strides": (stride, stride), "pads": tuple(pads)}
    counted = int(padded_zeros == "counted")
    return grid_operator("AveragePool", x, (), grid, x.shape[3], count_include_pad=counted, **options)


def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Array:
    """`coatref.ops.batch_norm` as BatchNormalization, of a grid (N, H, W, C) or of rows (N, C)."""
    graph = graph_of(x)
    order = GRID_FIRST if x.ndim == 4 else (0, 1)
    inputs = (laid(graph, x, order), *(laid(graph, each) for each in (gamma, beta, mean, var)))
    return held(graph, x.shape, x.dtype, operate(graph, "BatchNormalization", *inputs, epsilon=epsilon), order)


def layer_norm(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
    """`coatref.ops.layer_norm` as LayerNormalization."""
    graph = graph_of(x)
    inputs = (laid(graph, each) for each in (x, gamma, beta))
    return held(graph, x.shape, x.dtype, operate(graph, "LayerNormalization", *inputs, axis=-1, epsilon=epsilon))


def softmax(x: Array) -> Array:
    """`coatref.ops.softmax` as Softmax."""
    graph = graph_of(x)
    return held(graph, x.shape, x.dtype, operate(graph, "Softmax", laid(graph, x), axis=-1))


def unary(operator: str, x: Array) -> Array:
    """An operation on each element by itself."""
    return Recorded(x.shape, x.dtype, x.graph, operate(graph_of(x), operator, x.value), x.order)


def activation(x: Array, kind: str) -> Array:
    """`coatref.ops.activation`, with Erf, Sigmoid, Relu, Softplus and Tanh where it has them."""
    match kind:
        case "gelu":
            return 0.5 * x * (1.0 + unary("Erf", x * math.sqrt(0.5)))
        case "silu":
            return x * unary("Sigmoid", x)
        case "relu":
            return unary("Relu", x)
        case "mish":
            return x * unary("Tanh", unary("Softplus", x))
    return ops.activation(x, kind)


def squeeze_excite(x: Array, reduce: Any, expand: Any, *, activation: str) -> Array:
    """`coatref.ops.squeeze_excite` in the primitives above."""
    hidden = kinds(dense(ops.global_avg_pool(x), **reduce), activation)  # (N, H, W, C) -> (N, hidden)
    gate = unary("Sigmoid", dense(hidden, **expand))  # (N, hidden) -> (N, C)
    return x * reshaped(gate, (gate.shape[0], 1, 1, gate.shape[1]))


kinds = activation  # under another name where an argument has this one


def relative_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    *,
    scale: float = 1.0,
    scale_site: str = "query",
    add: str = "pre_softmax",
    tap: Tap = no_tap,
) -> Array:
    """`coatref.attention.relative_attention` with Softmax; a network hides no keys."""
    if scale_site in ("query", "query_and_key"):
        q = q * (scale if scale_site == "query" else math.sqrt(scale))
    if scale_site in ("key", "query_and_key"):
        k = k * (scale if scale_site == "key" else math.sqrt(scale))
    logits = matmul(q, permuted(k, (0, 1, 3, 2)))  # (N, heads, Q, D) @ (N, heads, D, K) -> (N, heads, Q, K)
    if scale_site == "logits":
        logits = logits * scale
    if bias is not None and add == "pre_softmax":
        logits = logits + bias
    if scale_site == "logits_and_bias":
        logits = logits * scale
    weights = softmax(tap("logits", logits))
    if bias is not None and add == "post_softmax":
        weights = weights + bias
    return matmul(tap("weights", weights), v)  # (N, heads, Q, K) @ (N, heads, K, D) -> (N, heads, Q, D)


# --- float64 ---


def double_conv2d(
    x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: WindowPadding = "same"
) -> Array:
    """`coatref.ops.conv2d`, its padding by Pad."""
    wide = padded(x, w.shape[:2], stride, padding)
    return ops.conv2d(wide, w, b, stride=stride, padding="valid")


def double_depthwise_conv2d(
    x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: WindowPadding = "same"
) -> Array:
    """`coatref.ops.depthwise_conv2d`, its padding by Pad."""
    wide = padded(x, w.shape[:2], stride, padding)
    return ops.depthwise_conv2d(wide, w, b, stride=stride, padding="valid")


def double_avg_pool(
    x: Array, *, size: int = 2, stride: int = 2, padding: WindowPadding = "same", padded_zeros: str = "excluded"
) -> Array:
    """`coatref.ops.avg_pool`, its padding by Pad; the windows' positions inside the grid are counted beforehand."""
    wide = padded(x, (size, size), stride, padding)
    zeros_counted = ops.avg_pool(wide, size=size, stride=stride, padding="valid", padded_zeros="counted")
    if padded_zeros == "counted" or wide is x:
        return zeros_counted
    height, width = x.shape[1:3]
    inside = np.ones((1, height, width, 1))
    share = ops.avg_pool(inside, size=size, stride=stride, padding=padding, padded_zeros="counted")  # (1, H', W', 1)
    return zeros_counted / known(share)


SINGLE = Primitives(
    conv2d=conv2d,
    depthwise_conv2d=depthwise_conv2d,
    max_pool=max_pool,
    avg_pool=avg_pool,
    batch_norm=batch_norm,
    layer_norm=layer_norm,
    activation=activation,
    softmax=softmax,
    squeeze_excite=squeeze_excite,
    dense=dense,
    relative_attention=relative_attention,
)
DOUBLE = Primitives(
    conv2d=double_conv2d, depthwise_conv2d=double_depthwise_conv2d, max_pool=max_pool, avg_pool=double_avg_pool
)
