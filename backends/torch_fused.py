"""The steps of a prepared network on torch.

Weights lie as torch's kernels want them: (D, C, kh, kw) in channels_last memory for a convolution, (C, 1, kh, kw) for a
depthwise one, (D, C) for a dense one.

What the primitives of `torch_ops` cannot give is (a) oneDNN's products that apply an activation, or add the residual, to
each tile of the result while it is in cache, the ones that torch.compile uses on its own; and (b) writing into arrays that
a step before has made. Neither is known to autograd, to torch.func's transforms or to autocast, so both are left where
any of these looks on (`unwatched`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from coatref.backends import torch_ops
from coatref.backends.fused import Fused
from coatref.blocks.self_attention import merge_heads, split_heads
from coatref.primitives import DEFINITION
from coatref.registry import Array

with contextlib.suppress(ModuleNotFoundError):  # nothing below is called where torch is absent
    import torch
    import torch.nn.functional as F

Layer = Mapping[str, Array]

ONEDNN = {  # activation -> its name among oneDNN's, and which form of it
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
    "relu": ("relu", ""),
    "tanh": ("tanh", ""),
}


def unwatched(*arrays: Array | None) -> bool:
    """Whether nobody but the caller sees what is done to these: no gradient, transform or autocast, in this thread."""
    if torch.is_grad_enabled() and any(array is not None and array.requires_grad for array in arrays):
        return False
    if torch_ops.transformed(*arrays):
        return False
    return not any(torch_ops.autocast(array) for array in arrays[:1])


def has_onednn() -> bool:
    """Whether this torch has oneDNN's products with an epilogue; they are not public, so they may go one day."""
    try:
        products = torch.ops.mkldnn
        return bool(torch.backends.mkldnn.is_available()) and all(  # type: ignore[no-untyped-call]
            hasattr(getattr(products, name, None), overload)
            for name, overload in (
                ("_linear_pointwise", "default"),
                ("_linear_pointwise", "binary"),
                ("_convolution_pointwise", "default"),
            )
        )
    except NameError:  # no torch
        return False


HAS_ONEDNN = has_onednn()  # once: torch.compile does not trace the question


def by_onednn(x: Array, *others: Array | None) -> bool:
    """Whether oneDNN's products take these: float32 on the CPU, with nobody looking on."""
    fit = HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return fit and unwatched(x, *others)


def product(x: Array, w: Array, b: Array | None, residual: Array | None, act: str, form: str) -> Array:
    """oneDNN's act(x w + b), or x w + b + residual; an activation and a residual cannot both be had."""
    if residual is None:
        return torch.ops.mkldnn._linear_pointwise.default(x, w, b, act, [], form)
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, w, b, "add")


def opaque_product() -> None:
    """Make `product` an operator of torch's, `torch.ops.coatref.product`, which Inductor calls and does not look into.

    Inductor has forms of oneDNN's own two, but only for weights that are constants of the program, and raises for others.
    Its other way, a plain product and a loop for the activation, is 1.1 to 1.2 times as slow as no compilation at all.
    """
    torch.library.define(
        "coatref::product", "(Tensor x, Tensor w, Tensor? b, Tensor? residual, str act, str form) -> Tensor"
    )
    torch.library.impl("coatref::product", "CPU", product)
    torch.library.register_fake(
        "coatref::product", lambda x, w, b, residual, act, form: x.new_empty((*x.shape[:-1], w.shape[0]))
    )


if HAS_ONEDNN:
    opaque_product()


def activated(x: Array, act: str | None) -> Array:
    """The activation of an array that is given up."""
    if act is None:
        return x
    if act in ("silu", "relu", "mish") and unwatched(x):
        return {"silu": F.silu, "relu": F.relu, "mish": F.mish}[act](x, inplace=True)
    return torch_ops.activation(x, act)


def lay_out(layer: Layer) -> Layer:
    """The layer with its weights as torch's kernels want them."""
    w = layer["w"]
    if w.ndim == 4:
        w = w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    elif w.ndim == 3:
        w = w.permute(2, 0, 1).unsqueeze(1).contiguous()
    else:
        w = w.transpose(0, 1).contiguous()
    return {**layer, "w": w}


def conv2d(x: Array, w: Array, b: Array | None, *, stride: int, padding: str, act: str | None) -> Array:
    """act(conv(x) + b). Shapes: (N, H, W, C), w (D, C, kh, kw) -> (N, H', W', D)."""
    margins = torch_ops.margins_there(x, (w.shape[2], w.shape[3]), stride, padding)
    if act in ONEDNN and act is not None and not torch.compiler.is_compiling() and by_onednn(x, w, b):
        x, kept = torch_ops.padded(x, margins)
        name, form = ONEDNN[act]
        y = torch.ops.mkldnn._convolution_pointwise.default(
            torch_ops.grid_first(x), w, b, kept, (stride, stride), (1, 1), 1, name, [], form
        )
        return torch_ops.grid_last(y)
    return activated(torch_ops.convolve(x, w, b, stride, margins, 1), act)


def dense(x: Array, w: Array, b: Array | None, *, act: str | None = None, residual: Array | None = None) -> Array:
    """act(x w + b) + residual. Shapes: (..., C), w (D, C) -> (..., D)."""
    if act in ONEDNN and (act is None or residual is None) and by_onednn(x, w, b, residual):
        call = torch.ops.coatref.product if torch.compiler.is_compiling() else product
        return call(x, w, b, residual, *ONEDNN[act])
    y = activated(F.linear(x, w, b), act)
    if residual is None:
        return y
    return y.add_(residual) if unwatched(y, residual) else y + residual


def depthwise(x: Array, w: Array, b: Array | None, *, stride: int, padding: str, act: str | None) -> Array:
    """act(depthwise conv(x) + b). Shapes: (N, H, W, C), w (C, 1, kh, kw) -> (N, H', W', C)."""
    margins = torch_ops.margins_there(x, (w.shape[2], w.shape[3]), stride, padding)
    if torch_ops.slow_depthwise(x):
        return activated(by_shifts(x, w, b, stride, margins), act)
    return activated(torch_ops.convolve(x, w, b, stride, margins, x.shape[3]), act)


def by_shifts(x: Array, w: Array, b: Array | None, stride: int, margins: torch_ops.Margins) -> Array:
    """Depthwise convolution as kh kw multiplications and additions of shifted views, one image after the other.

    In float64 that is 10 to 30 times as fast as torch's own loop over channels-last data.
    """
    (kh, kw), (top, bottom, left, right) = w.shape[2:], margins
    x = F.pad(x, (0, 0, left, right, top, bottom))
    rows, columns = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1  # H', W'
    taps = w.permute(2, 3, 1, 0).reshape(kh * kw, w.shape[0]).unbind(0)  # kh*kw times (C,)
    own = unwatched(x, w, b)
    images: list[Any] = []
    for image in x.split(1):
        views = [
            image[:, k : k + (rows - 1) * stride + 1 : stride, m : m + (columns - 1) * stride + 1 : stride, :]
            for k in range(kh)
            for m in range(kw)
        ]  # kh*kw times (1, H', W', C)
        y = views[0] * taps[0] if b is None else torch.addcmul(b, views[0], taps[0])
        for view, tap in zip(views[1:], taps[1:], strict=True):
            y = y.addcmul_(view, tap) if own else torch.addcmul(y, view, tap)
        images.append(y)
    return images[0] if len(images) == 1 else torch.cat(images)


def affine(x: Array, scale: Array, shift: Array, *, act: str | None) -> Array:
    """act(x scale + shift), two passes."""
    return activated(torch.addcmul(shift, x, scale), act)


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, *, epsilon: float) -> Array:
    """LayerNorm over channels. Shapes: (..., C) -> (..., C).

    Without an affine part torch's CPU kernel is a loop without vector instructions, 1.8 times as slow as with one.
    """
    if gamma is None and x.device.type == "cpu":
        gamma, beta = x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1])
    return F.layer_norm(x, x.shape[-1:], gamma, beta, epsilon)


def squeeze_excite(
    x: Array, reduce: Layer, expand: Layer, scale: Array | None, shift: Array | None, *, gate_act: str, act: str | None
) -> Array:
    """act(gate(x) x scale + shift). Shapes: (N, H, W, C) -> (N, H, W, C)."""
    means = torch.mean(x, dim=(1, 2))  # (N, H, W, C) -> (N, C)
    hidden = dense(means, reduce["w"], reduce.get("b"), act=gate_act)  # (N, C) -> (N, hidden)
    gate = torch.sigmoid(dense(hidden, expand["w"], expand.get("b")))  # (N, hidden) -> (N, C)
    gate = (gate if scale is None else gate * scale)[:, None, None, :]
    own = unwatched(x, gate, shift)
    if shift is None:
        y = x.mul_(gate) if own else x * gate
    else:
        y = torch.addcmul(shift, x, gate, out=x) if own else torch.addcmul(shift, x, gate)
    return activated(y, act)


def attention(qkv: Array, bias: Array | None, *, heads: int, add: str) -> Array:
    """Attention of all positions. Shapes: (N, H, W, 3*heads*D) -> (N, H, W, heads*D)."""
    n, height, width, channels = qkv.shape
    parts = qkv.reshape(n, height * width, 3, heads, channels // (3 * heads)).permute(2, 0, 3, 1, 4)
    q, k, v = parts.unbind(0)  # (N, heads, H*W, D) each, views
    y = torch_ops.relative_attention(q, k, v, bias, scale=1.0, add=add)
    return y.transpose(1, 2).reshape(n, height, width, channels // 3)


def linear_attention(qkv: Array, *, heads: int) -> Array:
    """Linear attention by the definition. Shapes: (N, H, W, 3*heads*D) -> (N, H, W, heads*D)."""
    q, k, v = (split_heads(part, heads) for part in qkv.chunk(3, dim=-1))
    return merge_heads(DEFINITION.linear_attention(q, k, v), tuple(qkv.shape[1:3]))


def add(x: Array, y: Array) -> Array:
    """x + y, where x is given up."""
    return x.add_(y) if unwatched(x, y) else x + y


STEPS = Fused(
    conv2d=conv2d,
    dense=dense,
    depthwise=depthwise,
    affine=affine,
    layer_norm=layer_norm,
    squeeze_excite=squeeze_excite,
    attention=attention,
    linear_attention=linear_attention,
    activation=torch_ops.activation,
    add=add,
    max_pool=torch_ops.max_pool,
    avg_pool=torch_ops.avg_pool,
    global_avg_pool=torch_ops.global_avg_pool,
    softmax=torch_ops.softmax,
    lay_out=lay_out,
)


def steps(pool: Any) -> Fused:
    """The steps; torch has threads of its own, so nothing is passed on."""
    return STEPS
