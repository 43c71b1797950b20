"""Every block a second time: torch's own operators in NCHW and float64, driven by the same parameter tree.

Nothing here knows coatref: specs are read by the names of their fields alone, and the parameters are the arrays of the
tree. What torch has as one operator (convolution of any stride and groups, pools, norms, activations, scaled dot product
attention) is used as that one operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import second
import torch
import torch.nn.functional as F

Array = Any
Tensor = torch.Tensor
Tree = Mapping[str, Any]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "mish": F.mish,
    "tanh": torch.tanh,
}


def tensor(a: Array) -> Tensor:
    """A NumPy array as a tensor of its own."""
    return torch.from_numpy(np.array(a, np.float64))


def to_nchw(x: Array) -> Tensor:
    """A NumPy grid (N, H, W, C) as a tensor (N, C, H, W)."""
    return tensor(x).permute(0, 3, 1, 2)


def to_nhwc(x: Tensor) -> Array:
    """The inverse of `to_nchw`; features (N, C) stay as they are."""
    return (x if x.ndim == 2 else x.permute(0, 2, 3, 1)).numpy()


def bias(p: Tree) -> Tensor | None:
    """The bias of a layer, where it has one."""
    return tensor(p["b"]) if "b" in p else None


# --- windows ---


def padded(x: Tensor, kernel: int, stride: int, padding: str, value: float = 0.0) -> Tensor:
    """x with what TensorFlow's SAME adds, or (kernel - 1) // 2 on all sides, or nothing."""
    if padding == "same":
        sides = []
        for length in (x.shape[3], x.shape[2]):  # F.pad starts with the last axis
            total = max(kernel - (length % stride or stride), 0)
            sides += [total // 2, total - total // 2]
    else:
        sides = [(kernel - 1) // 2 if padding == "symmetric" else 0] * 4
    return F.pad(x, sides, value=value)


def convolution(p: Tree, x: Tensor, stride: int = 1, padding: str = "valid") -> Tensor:
    """A convolution by a kernel (kh, kw, C, D), or 1x1 by one of shape (C, D)."""
    w = tensor(p["w"])
    w = w[None, None] if w.ndim == 2 else w
    return F.conv2d(padded(x, w.shape[0], stride, padding), w.permute(3, 2, 0, 1), bias(p), stride)


def depthwise(p: Tree, x: Tensor, stride: int, padding: str) -> Tensor:
    """A convolution by a kernel (kh, kw, D), in as many groups as x has channels."""
    w = tensor(p["w"])
    x, groups = padded(x, w.shape[0], stride, padding), x.shape[1]
    return F.conv2d(x, w.permute(2, 0, 1)[:, None], bias(p), stride, groups=groups)


def pool(x: Tensor, spec: Any) -> Tensor:
    """A pool of stride 2."""
    if spec.kind == "max":
        return F.max_pool2d(padded(x, spec.size, 2, spec.padding, -math.inf), spec.size, 2)
    if spec.padding == "symmetric":
        counted = spec.padded_zeros == "counted"
        return F.avg_pool2d(x, spec.size, 2, padding=(spec.size - 1) // 2, count_include_pad=counted)
    means = F.avg_pool2d(padded(x, spec.size, 2, spec.padding), spec.size, 2)
    if spec.padded_zeros == "counted":
        return means
    return means / F.avg_pool2d(padded(torch.ones_like(x), spec.size, 2, spec.padding), spec.size, 2)


# --- channels ---


def norm(p: Tree, x: Tensor, spec: Any) -> Tensor:
    """BatchNorm with its running statistics, or LayerNorm over the channels of each position."""
    gamma, beta = tensor(p["gamma"]), tensor(p["beta"])
    if spec.kind == "batch":
        return F.batch_norm(x, tensor(p["mean"]), tensor(p["var"]), gamma, beta, training=False, eps=spec.epsilon)
    return F.layer_norm(x.movedim(1, -1), (x.shape[1],), gamma, beta, spec.epsilon).movedim(-1, 1)


def squeeze_excite(p: Tree, x: Tensor, activation: str) -> Tensor:
    """Each channel times a gate between 0 and 1."""
    means = F.adaptive_avg_pool2d(x, 1)
    return x * torch.sigmoid(convolution(p["expand"], ACTIVATIONS[activation](convolution(p["reduce"], means))))


def scaled(p: Tree, name: str, x: Tensor, spec: Any) -> Tensor:
    """A branch times its layer scale, where the run has one."""
    return x if spec is None else x * tensor(p[name]["gamma"]).reshape(1, -1, 1, 1)


def ffn(p: Tree, x: Tensor, activation: str) -> Tensor:
    """Two 1x1 convolutions."""
    return convolution(p["shrink"], ACTIVATIONS[activation](convolution(p["expand"], x)))


# --- blocks ---


def shortcut(p: Tree, x: Tensor, run: Any, stride: int) -> Tensor:
    """Proj(Pool(x))."""
    if stride == 2:
        x = pool(x, run.shortcut_pool)
    if x.shape[1] != run.width or (stride == 2 and run.projection == "always"):
        return convolution(p["shortcut"], x)
    assert "shortcut" not in p
    return x


def mbconv(p: Tree, x: Tensor, run: Any, stride: int) -> Tensor:
    """Eq. (5)."""
    strides = {place: stride if run.stride_at == place else 1 for place in ("pool", "expand", "depthwise")}
    act, se = ACTIVATIONS[run.activation], run.squeeze_excite
    y = norm(p["pre_norm"], x, run.pre_norm)
    residual = shortcut(p, {"input": x, "normalised": y}[run.residual_from], run, stride)
    if run.pre_norm_activation is not None:
        y = ACTIVATIONS[run.pre_norm_activation](y)
    if strides["pool"] == 2:
        y = pool(y, run.main_pool)
    y = act(norm(p["expand_norm"], convolution(p["expand"], y, strides["expand"]), run.inner_norm))
    y = depthwise(p["depthwise"], y, strides["depthwise"], run.padding)
    if se is not None and se.place == "before_norm":
        y = squeeze_excite(p["se"], y, se.activation)
    y = act(norm(p["depthwise_norm"], y, run.inner_norm))
    if se is not None and se.place == "after_activation":
        y = squeeze_excite(p["se"], y, se.activation)
    y = convolution(p["shrink"], y)
    if run.shrink_norm is not None:
        y = norm(p["shrink_norm"], y, run.shrink_norm)
    return residual + scaled(p, "layer_scale", y, run.layer_scale)


def convnext(p: Tree, x: Tensor, run: Any, stride: int) -> Tensor:
    """timm's ConvNeXtBlock."""
    y = x
    if stride == 2 and run.stride_at == "pool":
        y = pool(x, run.main_pool)
    y = depthwise(p["depthwise"], y, stride if run.stride_at == "depthwise" else 1, run.padding)
    y = ffn(p["ffn"], norm(p["norm"], y, run.norm), run.activation)
    return shortcut(p, x, run, stride) + scaled(p, "layer_scale", y, run.layer_scale)


def transformer(p: Tree, x: Tensor, run: Any, stride: int) -> Tensor:
    """Eq. (4), then the feed-forward network."""

    def pooled(y: Tensor) -> Tensor:
        return pool(y, run.main_pool) if stride == 2 else y

    if run.norm_pool_order == "norm_then_pool":
        normalised = norm(p["attn_norm"], x, run.attention_norm)
        y = pooled(normalised)
    else:
        y = normalised = norm(p["attn_norm"], pooled(x), run.attention_norm)
    residual = shortcut(p, {"input": x, "normalised": normalised}[run.residual_from], run, stride)
    y = self_attention(p["attn"], y, run.attention)
    x = residual + scaled(p, "attn_scale", y, run.layer_scale)
    y = norm(p["ffn_norm"], x, run.ffn_norm)
    branch = scaled(p, "ffn_scale", ffn(p["ffn"], y, run.ffn.activation), run.layer_scale)
    return {"input": x, "normalised": y}[run.residual_from] + branch


def self_attention(p: Tree, x: Tensor, spec: Any) -> Tensor:
    """Attention over the whole grid, or over one window after the other."""
    if spec.form != "windowed":
        return attend(p, x, spec)
    height, width = spec.window
    bands = []
    for top in range(0, x.shape[2], height):
        windows = [x[:, :, top : top + height, left : left + width] for left in range(0, x.shape[3], width)]
        bands.append(torch.cat([attend(p, window, spec) for window in windows], dim=3))
    return torch.cat(bands, dim=2)


def attend(p: Tree, x: Tensor, spec: Any) -> Tensor:
    """Attention of every position of x to every other."""
    n, _, height, width = x.shape
    inner = p["q"]["w"].shape[1]
    d, heads = spec.head_size, inner // spec.head_size
    q, k, v = (  # (N, heads, H*W, D)
        convolution(p[name], x).reshape(n, heads, d, height * width).transpose(2, 3) for name in ("q", "k", "v")
    )
    if spec.form == "linear":
        products = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(2, 3)
        y = products / products.sum(dim=3, keepdim=True) @ v
    else:
        scale = {"1/sqrt(d)": d**-0.5, "1/sqrt(heads*d)": inner**-0.5, "1": 1.0, "sqrt(d)": d**0.5}[spec.scale]
        w = relative_bias(p, spec.relative_bias, height, width)
        if w is None:
            y = F.scaled_dot_product_attention(q, k, v, scale=scale)
        elif spec.relative_bias.add == "post_softmax":
            y = F.scaled_dot_product_attention(q, k, v, scale=scale) + w @ v
        else:
            w = (w * scale if spec.scale_site == "logits_and_bias" else w).expand(n, heads, -1, -1)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=w, scale=scale)
    return convolution(p["o"], y.transpose(2, 3).reshape(n, inner, height, width))


def relative_bias(p: Tree, spec: Any, height: int, width: int) -> Tensor | None:
    """(heads or 1, H*W, H*W), or None."""
    if spec is None:
        return None
    if spec.kind == "log_mlp":
        rows, columns = (torch.arange(1 - length, length, dtype=torch.float64) for length in (height, width))
        offsets = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        layers, places = p["relative_bias"], offsets.sign() * (1 + offsets.abs()).log()
        units = F.relu(F.linear(places, tensor(layers["hidden"]["w"]).T, bias(layers["hidden"])))
        table = F.linear(units, tensor(layers["out"]["w"]).T, bias(layers["out"])).permute(2, 0, 1).numpy()
    else:
        table = p["relative_bias"]["table"]
    return tensor(second.gather_bias(table, height, width, spec.orientation))


# --- the ends of the network ---


def stem(p: Tree, x: Tensor, spec: Any) -> Tensor:
    """S0."""
    if spec.kind == "patch":
        return convolution(p["conv1"], x, spec.patch)
    for number in range(1, len(spec.widths) + 1):
        x = convolution(p[f"conv{number}"], x, 2 if number == 1 else 1, spec.padding)
        if number < len(spec.widths) or spec.after_last == "norm_and_activation":
            x = ACTIVATIONS[spec.activation](norm(p[f"norm{number}"], x, spec.norm))
    return x


def head(p: Tree, x: Tensor, spec: Any) -> Tensor:
    """Logits or probabilities, (N, classes)."""
    if spec.norm is not None and spec.order == "norm_then_pool":
        x = norm(p["norm"], x, spec.norm)
    y = x.mean(dim=(2, 3))
    if spec.norm is not None and spec.order == "pool_then_norm":
        y = norm(p["norm"], y, spec.norm)
    if spec.hidden is not None:
        y = ACTIVATIONS[spec.hidden.activation](F.linear(y, tensor(p["hidden"]["w"]).T, bias(p["hidden"])))
    y = F.linear(y, tensor(p["classifier"]["w"]).T, bias(p["classifier"]))
    return y.softmax(dim=1) if spec.output == "probabilities" else y


BLOCKS: dict[str, Callable[[Tree, Tensor, Any, int], Tensor]] = {
    "mbconv": mbconv,
    "transformer": transformer,
    "convnext": convnext,
}
