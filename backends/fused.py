"""The steps of a prepared network, each of which a library may do in one go.

The defaults are made of a library's primitives (`coatref.primitives`), step after step, so prepared parameters run on
every library. A backend replaces those that it can fuse. Every step takes and gives channels-last arrays as the
definition does; a layer comes as its parts, `w` and `b` (None without a bias), laid out by `lay_out`.

A step may write into an argument that is said to be *given up*: it was made by the step before and is not used again.
No step writes into anything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from coatref.blocks.self_attention import merge_heads, split_heads
from coatref.ops import sigmoid
from coatref.primitives import DEFINITION, Primitives
from coatref.registry import Array, dtype_name, library_of, namespace

Step = Callable[..., Array]
Layer = Mapping[str, Array]


@dataclass(frozen=True)
class Fused:
    """One function for each step of a prepared network.

    Attributes:
        conv2d: (x, w, b, *, stride, padding, act) -> act(conv(x) + b).
        dense: (x, w, b, *, act, residual) -> act(x w + b) + residual; act and residual may be None.
        depthwise: (x, w, b, *, stride, padding, act) -> act(depthwise conv(x) + b).
        affine: (x, scale, shift, *, act) -> act(x scale + shift).
        layer_norm: (x, gamma, beta, *, epsilon) -> LayerNorm; gamma and beta may both be None.
        squeeze_excite: (x, reduce, expand, scale, shift, *, gate_act, act) -> act(gate(x) x scale + shift), with the gate
            of `coatref.ops.squeeze_excite`; scale and shift may both be None. x is given up.
        attention: (qkv, bias, *, heads, add) -> (N, H, W, heads*D) from (N, H, W, 3*heads*D), with q scaled already, and
            bias (heads or 1, H*W, H*W) or None. qkv is given up.
        linear_attention: (qkv, *, heads) -> likewise.
        activation: (x, kind).
        add: (x, y) -> x + y. x is given up.
        max_pool, avg_pool, global_avg_pool, softmax: the primitives.
        lay_out: a layer {"w", "b"} as the library likes it; the kind shows in the axes of w: (kh, kw, C, D) of a
            convolution, (kh, kw, C) of a depthwise one, (C, D) of a dense one.

    Whole branches, for libraries that can do better than step after step; None: `coatref.backends.network` makes them of
    the steps. `p` is the branch's part of the prepared tree, and epsilon that of a LayerNorm without affine part in front
    of the branch, or None.

        feed_forward: (p, x, *, act, epsilon, residual) -> residual + shrink(act(expand(LN(x)))).
        self_attention: (p, x, *, heads, add, epsilon, residual) -> residual + o(attention(qkv(LN(x)))).
        mbconv: (p, x, *, act, stride, padding, gate_act, early_gate, residual) -> residual +
            shrink(SE(act(depthwise(act(expand(x)))))), every BatchNorm folded; stride is that of the depthwise convolution,
            gate_act None without squeeze-excite, early_gate where it stands before the norm, which is then left.
    """

    conv2d: Step
    dense: Step
    depthwise: Step
    affine: Step
    layer_norm: Step
    squeeze_excite: Step
    attention: Step
    linear_attention: Step
    activation: Step
    add: Step
    max_pool: Step
    avg_pool: Step
    global_avg_pool: Step
    softmax: Step
    lay_out: Callable[[Layer], Layer]
    feed_forward: Step | None = None
    self_attention: Step | None = None
    mbconv: Step | None = None


def from_primitives(ops: Primitives = DEFINITION) -> Fused:
    """The steps made of primitives, one after the other."""

    def activated(x: Array, act: str | None) -> Array:
        return x if act is None else ops.activation(x, act)

    def conv2d(x: Array, w: Array, b: Array | None, *, stride: int, padding: str, act: str | None) -> Array:
        return activated(ops.conv2d(x, w, b, stride=stride, padding=padding), act)

    def dense(x: Array, w: Array, b: Array | None, *, act: str | None = None, residual: Array | None = None) -> Array:
        y = activated(ops.dense(x, w, b), act)
        return y if residual is None else residual + y

    def depthwise(x: Array, w: Array, b: Array | None, *, stride: int, padding: str, act: str | None) -> Array:
        return activated(ops.depthwise_conv2d(x, w, b, stride=stride, padding=padding), act)

    def affine(x: Array, scale: Array, shift: Array, *, act: str | None) -> Array:
        return activated(x * scale + shift, act)

    def layer_norm(x: Array, gamma: Array | None, beta: Array | None, *, epsilon: float) -> Array:
        if gamma is None or beta is None:
            xp = namespace(x)
            one = xp.ones_like(x[0, 0, 0, :] if x.ndim == 4 else x[0, :])  # (C,)
            gamma, beta = one, xp.zeros_like(one)
        return ops.layer_norm(x, gamma, beta, epsilon=epsilon)

    def squeeze_excite(
        x: Array,
        reduce: Layer,
        expand: Layer,
        scale: Array | None,
        shift: Array | None,
        *,
        gate_act: str,
        act: str | None,
    ) -> Array:
        means = ops.global_avg_pool(x)  # (N, H, W, C) -> (N, C)
        gate = sigmoid(ops.dense(ops.activation(ops.dense(means, **reduce), gate_act), **expand))
        gate = namespace(x).reshape(gate if scale is None else gate * scale, (x.shape[0], 1, 1, x.shape[3]))
        y = x * gate
        return activated(y if shift is None else y + shift, act)

    def split(qkv: Array, heads: int) -> tuple[Array, Array, Array]:
        inner = qkv.shape[3] // 3
        q, k, v = (split_heads(qkv[:, :, :, n * inner : (n + 1) * inner], heads) for n in range(3))
        return q, k, v  # (N, heads, H*W, D) each

    def attention(qkv: Array, bias: Array | None, *, heads: int, add: Literal["pre_softmax", "post_softmax"]) -> Array:
        y = ops.relative_attention(*split(qkv, heads), bias, scale=1.0, scale_site="query", add=add)
        return merge_heads(y, (qkv.shape[1], qkv.shape[2]))

    def linear_attention(qkv: Array, *, heads: int) -> Array:
        return merge_heads(ops.linear_attention(*split(qkv, heads)), (qkv.shape[1], qkv.shape[2]))

    return Fused(
        conv2d=conv2d,
        dense=dense,
        depthwise=depthwise,
        affine=affine,
        layer_norm=layer_norm,
        squeeze_excite=squeeze_excite,
        attention=attention,
        linear_attention=linear_attention,
        activation=ops.activation,
        add=lambda x, y: x + y,
        max_pool=ops.max_pool,
        avg_pool=ops.avg_pool,
        global_avg_pool=ops.global_avg_pool,
        softmax=ops.softmax,
        lay_out=dict,
    )


def fused_for(like: Array, pool: Any = None) -> Fused:
    """The steps of an array's library: its own, and its primitives or the definition for the rest.

    Args:
        like: an array of the library and data type in question.
        pool: what the library's `divide` passes to the computation; see `coatref.registry.Library`.
    """
    library = library_of(like)
    own = library.fused_dtypes is None or dtype_name(library, like.dtype) in library.fused_dtypes
    if library.fused is not None and own:
        found: Fused = library.fused(pool)
        return found
    return from_primitives(dataclasses.replace(DEFINITION, **library.primitives))
