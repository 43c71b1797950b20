"""The primitives by torch's own kernels, as a torch user would write them.

Tensors are (N, H, W, C) as everywhere in coatref and turned to (N, C, H, W) around each kernel: laid out anew there
("nchw"), or as a view of channels that stay last in memory ("channels-last").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from coatref.attention import gather_bias as definition_of_gather_bias
from coatref.primitives import Form, Primitives
from coatref.registry import Array
from coatref.specification.grids import padding_amounts
from coatref.tap import Tap, no_tap

Layout = Literal["nchw", "channels-last"]


def native(layout: Layout, *, wide: bool = False) -> Primitives:
    """Torch's kernels as forms of the primitives.

    Args:
        layout: of what the convolutions and pools are given.
        wide: whether primitives that take several kernels compute in float32 inside where tensors are of a half type, so
            that a value is rounded to it only once in each primitive.
    """
    several: dict[str, Form] = {
        "avg_pool": partial(avg_pool, layout=layout),
        "batch_norm": partial(batch_norm, layout=layout),
        "squeeze_excite": squeeze_excite,
        "relative_attention": relative_attention,
        "linear_attention": linear_attention,
    }
    return Primitives(
        conv2d=partial(conv2d, layout=layout),
        depthwise_conv2d=partial(depthwise_conv2d, layout=layout),
        max_pool=partial(max_pool, layout=layout),
        global_avg_pool=global_avg_pool,
        layer_norm=layer_norm,
        activation=activation,
        softmax=softmax,
        dense=partial(dense, layout=layout),
        gather_bias=gather_bias,
        **{name: in_float32(form) if wide else form for name, form in several.items()},
    )


def in_float32(form: Form) -> Form:
    """A form that computes on half tensors in float32 and rounds its result once."""

    def raised(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: raised(each) for name, each in value.items()}
        return value.float() if hasattr(value, "is_floating_point") and value.is_floating_point() else value

    def compute(x: Array, *args: Any, **kwargs: Any) -> Array:
        import torch

        if x.dtype not in (torch.float16, torch.bfloat16):
            return form(x, *args, **kwargs)
        return form(raised(x), *map(raised, args), **raised(kwargs)).to(x.dtype)

    return compute


def to_channels_first(x: Array, layout: Layout) -> Array:
    """(N, H, W, C) -> (N, C, H, W), in the memory order of the layout."""
    import torch

    x = x.permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last if layout == "channels-last" else torch.contiguous_format)


def to_channels_last(x: Array) -> Array:
    """(N, C, H, W) -> (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def padded(x: Array, kernel: tuple[int, int], stride: int, padding: str, value: float) -> tuple[Array, tuple[int, int]]:
    """Images (N, C, H, W) padded as far as a kernel cannot pad them itself, and what is left to it: the same on both sides."""
    import torch.nn.functional as F

    top, bottom = padding_amounts(x.shape[2], kernel[0], stride, padding)  # type: ignore[arg-type]
    left, right = padding_amounts(x.shape[3], kernel[1], stride, padding)  # type: ignore[arg-type]
    if top == bottom and left == right:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def conv2d(
    x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: str = "same", layout: Layout = "nchw"
) -> Array:
    """`F.conv2d`. Shapes: (N, H, W, C), w (kh, kw, C, D) -> (N, H', W', D)."""
    import torch.nn.functional as F

    x, rest = padded(to_channels_first(x, layout), w.shape[:2], stride, padding, 0.0)
    kernel = to_channels_first(w.permute(3, 0, 1, 2), layout)  # (kh, kw, C, D) -> (D, C, kh, kw)
    return to_channels_last(F.conv2d(x, kernel, b, stride, rest))


def depthwise_conv2d(
    x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: str = "same", layout: Layout = "nchw"
) -> Array:
    """`F.conv2d` with a group for each channel. Shapes: (N, H, W, C), w (kh, kw, C) -> (N, H', W', C)."""
    import torch.nn.functional as F

    x, rest = padded(to_channels_first(x, layout), w.shape[:2], stride, padding, 0.0)
    kernel = to_channels_first(w.permute(2, 0, 1)[..., None], layout)  # (kh, kw, C) -> (C, 1, kh, kw)
    return to_channels_last(F.conv2d(x, kernel, b, stride, rest, groups=w.shape[2]))


def max_pool(x: Array, *, size: int = 2, stride: int = 2, padding: str = "same", layout: Layout = "nchw") -> Array:
    """`F.max_pool2d`. Shapes: (N, H, W, C) -> (N, H', W', C)."""
    import torch.nn.functional as F

    x, rest = padded(to_channels_first(x, layout), (size, size), stride, padding, -math.inf)
    return to_channels_last(F.max_pool2d(x, size, stride, rest))


def avg_pool(
    x: Array,
    *,
    size: int = 2,
    stride: int = 2,
    padding: str = "same",
    padded_zeros: str = "excluded",
    layout: Layout = "nchw",
) -> Array:
    """`F.avg_pool2d`; padding that it cannot leave out of the mean by itself is, by counting what is inside.

    Shapes: (N, H, W, C) -> (N, H', W', C).
    """
    import torch
    import torch.nn.functional as F

    first = to_channels_first(x, layout)
    y, rest = padded(first, (size, size), stride, padding, 0.0)
    if y is first or padded_zeros == "counted":
        return to_channels_last(F.avg_pool2d(y, size, stride, rest, count_include_pad=padded_zeros == "counted"))
    inside, _ = padded(torch.ones_like(first[:1, :1]), (size, size), stride, padding, 0.0)
    count = F.avg_pool2d(inside, size, stride, divisor_override=1)  # (1, 1, H', W')
    return to_channels_last(F.avg_pool2d(y, size, stride, divisor_override=1) / count)


def global_avg_pool(x: Array) -> Array:
    """`F.adaptive_avg_pool2d`. Shapes: (N, H, W, C) -> (N, C)."""
    import torch.nn.functional as F

    return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1).flatten(1)


def batch_norm(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float, layout: Layout = "nchw"
) -> Array:
    """`F.batch_norm` of images, or of the rows of anything else. Shapes: (..., C) -> (..., C)."""
    import torch.nn.functional as F

    if x.ndim != 4:
        rows = x.reshape(-1, x.shape[-1])
        return F.batch_norm(rows, mean, var, gamma, beta, False, 0.0, epsilon).reshape(x.shape)
    first = to_channels_first(x, layout)
    return to_channels_last(F.batch_norm(first, mean, var, gamma, beta, False, 0.0, epsilon))


def layer_norm(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
    """`F.layer_norm`. Shapes: (..., C) -> (..., C)."""
    import torch.nn.functional as F

    return F.layer_norm(x, (x.shape[-1],), gamma, beta, epsilon)


def activation(x: Array, kind: str) -> Array:
    """The activation of that name by its kernel, elementwise."""
    import torch
    import torch.nn.functional as F

    kernels: dict[str, Callable[[Array], Array]] = {
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
        "relu": F.relu,
        "mish": F.mish,
        "tanh": torch.tanh,
    }
    return kernels[kind](x)


def softmax(x: Array) -> Array:
    """`torch.softmax` over the last axis."""
    import torch

    return torch.softmax(x, -1)


def dense(x: Array, w: Array, b: Array | None = None, *, layout: Layout = "nchw") -> Array:
    """`F.linear`, or on a grid in "nchw" a 1x1 `F.conv2d`. Shapes: (..., C), w (C, D) -> (..., D)."""
    import torch.nn.functional as F

    if layout == "nchw" and x.ndim == 4:
        return conv2d(x, w[None, None], b, padding="valid", layout=layout)
    return F.linear(x, w.t(), b)


def squeeze_excite(x: Array, reduce: Mapping[str, Array], expand: Mapping[str, Array], *, activation: str) -> Array:
    """Squeeze-and-excitation by two `F.linear`. Shapes: (N, H, W, C) -> (N, H, W, C)."""
    import torch
    import torch.nn.functional as F

    hidden = F.linear(x.mean((1, 2)), reduce["w"].t(), reduce.get("b"))  # (N, C) -> (N, hidden)
    gate = torch.sigmoid(F.linear(_activate(hidden, activation), expand["w"].t(), expand.get("b")))  # (N, C)
    return x * gate[:, None, None, :]


_activate = activation  # `squeeze_excite` has an argument of that name


def gather_bias(table: Array, height: int, width: int) -> Array:
    """The definition's, which only selects. Shapes: (heads, 2H-1, 2W-1) -> (heads, H*W, H*W)."""
    return definition_of_gather_bias(table, height, width)


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
    """`F.scaled_dot_product_attention` with the bias as its mask; a bias after the softmax takes a product of its own.

    Shapes: q (N, heads, Q, D), k and v (N, heads, K, D) -> (N, heads, Q, D). The kernel shows no logits and no weights.
    """
    import torch
    import torch.nn.functional as F

    mask = None
    if bias is not None and add == "pre_softmax":
        mask = (bias * scale if scale_site == "logits_and_bias" else bias)[None]  # (1, heads, Q, K)
    if key_mask is not None:
        shown = key_mask.reshape(-1, 1, 1, k.shape[2])
        hidden = torch.zeros(shown.shape, dtype=q.dtype, device=q.device).masked_fill(~shown, -math.inf)
        mask = hidden if mask is None else mask + hidden
    y: Array = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if bias is not None and add == "post_softmax":
        if key_mask is not None:
            bias = torch.where(shown, bias, torch.zeros_like(bias))
        y = y + torch.matmul(bias.expand(q.shape[0], q.shape[1], -1, -1), v)
    return y


def linear_attention(q: Array, k: Array, v: Array) -> Array:
    """Linear attention by way of the weights of all pairs. Shapes as in `relative_attention`."""
    import torch

    def phi(t: Array) -> Array:
        return torch.where(t > 0, t + 1, torch.exp(t.clamp(max=0)))

    weights = torch.einsum("nhqd,nhkd->nhqk", phi(q), phi(k))  # (N, heads, Q, K), all positive
    return torch.einsum("nhqk,nhkd->nhqd", weights / weights.sum(-1, keepdim=True), v)
