"""The primitives on torch, by torch's own kernels.

Grids are channels last, (N, H, W, C). Seen as (N, C, H, W) such a tensor is in torch's "channels_last" memory format, which
its convolutions and pools take and give without a copy, so `grid_first` and `grid_last` move no data.

Whatever torch has no form for goes to the definition: arguments that do not belong together (which it refuses with its
own errors), mixed data types, empty arrays, key masks, a bias added after the softmax.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from coatref.errors import ShapeError
from coatref.primitives import DEFINITION, Form
from coatref.registry import Array
from coatref.specification.grids import output_length, padding_amounts
from coatref.tap import Tap, no_tap

with contextlib.suppress(ModuleNotFoundError):  # nothing below is called where torch is absent
    import torch
    import torch.nn.functional as F

Margins = tuple[int, int, int, int]  # rows above and below, columns before and after


def autocast(x: Array) -> bool:
    """Whether torch chooses the data types of products on x's device just now."""
    return bool(torch.is_autocast_enabled(x.device.type))


def transformed(*arrays: Array | None) -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp, ...) or forward-mode differentiation goes on.

    torch has no public question for it. torch.compile traces another one than eager code can ask: of each array, whether
    vmap is on it; of a gradient, `requires_grad` tells.
    """
    functorch = torch._C._functorch
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return any(array is not None and functorch.is_batchedtensor(array) for array in arrays)
    return functorch.maybe_current_level() is not None


def alike(x: Array, *others: Array | None) -> bool:
    """Whether torch's kernels take these together: all of x's data type, or all under autocast, and none of them empty."""
    same = all(other is None or other.dtype == x.dtype for other in others) or autocast(x)
    return same and x.numel() > 0


def grid_first(x: Array) -> Array:
    """(N, H, W, C) -> (N, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)


def grid_last(x: Array) -> Array:
    """(N, C, H, W) -> (N, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


def margins_of(x: Array, kernel: tuple[int, int], stride: int, padding: str) -> Margins | None:
    """The padding of a window over a grid; None where x is no grid or the window does not fit, which is to be refused."""
    if x.ndim != 4 or any(output_length(x.shape[1 + axis], kernel[axis], stride, padding) < 1 for axis in (0, 1)):  # type: ignore[arg-type]
        return None
    top, bottom = padding_amounts(x.shape[1], kernel[0], stride, padding)  # type: ignore[arg-type]
    left, right = padding_amounts(x.shape[2], kernel[1], stride, padding)  # type: ignore[arg-type]
    return top, bottom, left, right


def margins_there(x: Array, kernel: tuple[int, int], stride: int, padding: str) -> Margins:
    """The same in a network, whose spec has been checked: the window fits."""
    margins = margins_of(x, kernel, stride, padding)
    if margins is None:
        raise ShapeError(f"A {kernel[0]}x{kernel[1]} window with padding {padding!r} does not fit {tuple(x.shape)}.")
    return margins


def padded(x: Array, margins: Margins, value: float = 0.0) -> tuple[Array, tuple[int, int]]:
    """The grid, padded where the two sides differ (TensorFlow's SAME), and the padding left to the kernel."""
    top, bottom, left, right = margins
    if top == bottom and left == right:
        return x, (top, left)
    return F.pad(x, (0, 0, left, right, top, bottom), value=value), (0, 0)


def convolve(x: Array, w: Array, b: Array | None, stride: int, margins: Margins, groups: int) -> Array:
    """Convolution of a grid with w (D, C/groups, kh, kw). Shapes: (N, H, W, C) -> (N, H', W', D)."""
    x, padding = padded(x, margins)
    if not rounds_to_tf32(x, w):
        return grid_last(F.conv2d(grid_first(x), w, b, stride, padding, 1, groups))
    y = torch.cudnn_convolution(
        grid_first(x),
        w,
        padding,
        (stride, stride),
        (1, 1),
        groups,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        False,
    )
    return grid_last(y) if b is None else grid_last(y) + b


def rounds_to_tf32(x: Array, w: Array) -> bool:
    """Whether cuDNN would take the factors in TF32, with 10 bits of 23, though nobody asked for it.

    It does so by default, unlike torch's matrix products: one convolution then costs 3 digits of the logits. Who wants that
    says `torch.set_float32_matmul_precision("high")`, as for products.
    """
    return bool(
        x.is_cuda
        and x.dtype == w.dtype == torch.float32
        and not torch.compiler.is_compiling()  # Inductor has no form of the call with an explicit precision
        and not autocast(x)
        and torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
        and torch.get_float32_matmul_precision() == "highest"
    )


def slow_depthwise(x: Array) -> bool:
    """Whether torch's depthwise convolution of channels-last data is a plain loop: 29 ns for each number, in float64."""
    return bool(x.device.type == "cpu" and x.dtype == torch.float64)


# --- the primitives; see `coatref.ops` and `coatref.attention` for what each computes ---


def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: str = "same") -> Array:
    """`coatref.ops.conv2d` by `torch.nn.functional.conv2d`, oneDNN or cuDNN on channels-last data."""
    margins = margins_of(x, w.shape[:2], stride, padding)
    if margins is None or x.shape[3] != w.shape[2] or not alike(x, w, b) or w.numel() == 0:
        return DEFINITION.conv2d(x, w, b, stride=stride, padding=padding)
    return convolve(x, w.permute(3, 2, 0, 1), b, stride, margins, 1)


def depthwise_conv2d(x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: str = "same") -> Array:
    """`coatref.ops.depthwise_conv2d` by torch's convolution in as many groups as channels; in float64 see `slow_depthwise`."""
    margins = margins_of(x, w.shape[:2], stride, padding)
    if margins is None or x.shape[3] != w.shape[2] or not alike(x, w, b) or slow_depthwise(x):
        return DEFINITION.depthwise_conv2d(x, w, b, stride=stride, padding=padding)
    return convolve(x, w.permute(2, 0, 1).unsqueeze(1), b, stride, margins, w.shape[2])


def max_pool(x: Array, *, size: int = 2, stride: int = 2, padding: str = "same") -> Array:
    """`coatref.ops.max_pool` by `torch.nn.functional.max_pool2d`."""
    margins = margins_of(x, (size, size), stride, padding)
    if margins is None or not alike(x):
        return DEFINITION.max_pool(x, size=size, stride=stride, padding=padding)
    x, kept = padded(x, margins, -float("inf"))
    return grid_last(F.max_pool2d(grid_first(x), size, stride, kept))


def avg_pool(
    x: Array, *, size: int = 2, stride: int = 2, padding: str = "same", padded_zeros: str = "excluded"
) -> Array:
    """`coatref.ops.avg_pool` by `torch.nn.functional.avg_pool2d`, which counts positions itself where both sides are alike."""
    margins = margins_of(x, (size, size), stride, padding)
    if margins is None or not alike(x) or padded_zeros not in ("excluded", "counted"):
        return DEFINITION.avg_pool(x, size=size, stride=stride, padding=padding, padded_zeros=padded_zeros)
    wide, kept = padded(x, margins)
    if wide is x or padded_zeros == "counted":
        counted = padded_zeros == "counted"
        return grid_last(F.avg_pool2d(grid_first(wide), size, stride, kept, count_include_pad=counted))
    total = F.avg_pool2d(grid_first(wide), size, stride, divisor_override=1)
    inside = padded(torch.ones((1, *x.shape[1:3], 1), dtype=x.dtype, device=x.device), margins)[0]
    return grid_last(total / F.avg_pool2d(grid_first(inside), size, stride, divisor_override=1))


def global_avg_pool(x: Array) -> Array:
    """`coatref.ops.global_avg_pool` by `torch.mean`."""
    return torch.mean(x, dim=(1, 2))


def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Array:
    """`coatref.ops.batch_norm` as x s + (beta - mean s), one pass over the data by `torch.addcmul`.

    As fast as `torch.nn.functional.batch_norm`, which has no derivative with respect to the statistics.
    """
    scale = gamma * torch.rsqrt(var + epsilon)
    return torch.addcmul(beta - mean * scale, x, scale)


def layer_norm(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
    """`coatref.ops.layer_norm` by `torch.nn.functional.layer_norm`."""
    if x.ndim < 1 or gamma.shape != x.shape[-1:] or beta.shape != x.shape[-1:] or not alike(x, gamma, beta):
        return DEFINITION.layer_norm(x, gamma, beta, epsilon=epsilon)
    return F.layer_norm(x, x.shape[-1:], gamma, beta, epsilon)


def activation(x: Array, kind: str) -> Array:
    """`coatref.ops.activation` by torch's functions of the same names."""
    match kind:
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu(x)
        case "relu":
            return torch.relu(x)
        case "mish":
            return F.mish(x)
        case "tanh":
            return torch.tanh(x)
    return DEFINITION.activation(x, kind)


def softmax(x: Array) -> Array:
    """`coatref.ops.softmax` by `torch.softmax`."""
    return torch.softmax(x, dim=-1) if alike(x) else DEFINITION.softmax(x)


def dense(x: Array, w: Array, b: Array | None = None) -> Array:
    """`coatref.ops.dense` by `torch.nn.functional.linear`."""
    if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[0] or not alike(x, w, b):
        return DEFINITION.dense(x, w, b)
    return F.linear(x, w.transpose(0, 1), b)


def squeeze_excite(x: Array, reduce: Mapping[str, Array], expand: Mapping[str, Array], *, activation: str) -> Array:
    """`coatref.ops.squeeze_excite` in the primitives above."""
    hidden = kinds(dense(global_avg_pool(x), **reduce), activation)  # (N, H, W, C) -> (N, hidden)
    gate = torch.sigmoid(dense(hidden, **expand))  # (N, hidden) -> (N, C)
    return x * gate[:, None, None, :]


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
    key_mask: Array | None = None,
    tap: Tap = no_tap,
) -> Array:
    """`coatref.attention.relative_attention` by `scaled_dot_product_attention`, with the bias as its mask.

    The logits are never written to memory. Where somebody looks at them (`tap`), keys are hidden, a bias comes after the
    softmax, a scale has no root (which one of torch's kernels takes) or torch.func maps it (torch maps its kernel by a
    loop), the definition computes.
    """
    shaped = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    pairs = (*q.shape[2:3], *k.shape[2:3])  # Q, K
    biased = bias is None or tuple(bias.shape) in ((*q.shape[1:2], *pairs), (1, *pairs))
    known = scale_site in ("query", "key", "query_and_key", "logits", "logits_and_bias") and scale > 0
    early = add == "pre_softmax" or (bias is None and add == "post_softmax")
    plain = key_mask is None and tap is no_tap and not transformed(q, k, v, bias)
    if not (shaped and biased and known and early and plain and alike(q, k, v, bias)):
        return DEFINITION.relative_attention(
            q, k, v, bias, scale=scale, scale_site=scale_site, add=add, key_mask=key_mask, tap=tap
        )
    if bias is not None and scale_site == "logits_and_bias":
        bias = bias * scale
    mask = None if bias is None else bias.expand(*q.shape[:2], *pairs)  # (N, heads, Q, K), a view
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


PRIMITIVES: dict[str, Form] = {
    "conv2d": conv2d,
    "depthwise_conv2d": depthwise_conv2d,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "global_avg_pool": global_avg_pool,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "activation": activation,
    "softmax": softmax,
    "squeeze_excite": squeeze_excite,
    "dense": dense,
    "relative_attention": relative_attention,
}
