"""Whole branches of a block on NumPy arrays, cut by heads and channels so that each thread works alone.

A branch like x -> shrink(act(expand(x))) is cut by its inner channels: thread i computes act(x expand_i) for its own share
of the hidden channels and from it a part of the output, shrink_i of that; the parts are added up in the end. Attention is
cut the same way by heads, MBConv by expanded channels. The threads meet once in a branch (twice with squeeze-excite)
instead of after every step, each reads only its share of the weights, and what it makes stays in its own cache.

Transformer branches compute on one image as (C, P), channels first, P = H*W: BLAS is about a tenth faster on W^T x than on
x W when P is a few hundred, and the rows of W^T that a thread needs lie together. To its caller such an array is a view
with channels last, so nothing is copied between blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from coatref.backends.numpy_passes import Array, compiled, finish, loops, plain, standardise, total
from coatref.ops.activation import ACTIVATIONS, sigmoid
from coatref.specification.grids import padding_amounts

Layer = Mapping[str, Array]

QUERIES = 256 * 1024  # logits of one head at a time; more would leave the second-level cache
EXPANDED = 640 * 1024  # expanded numbers of MBConv at a time, and twice those of patches; 320 to 1280 are as good


class Team(NamedTuple):
    """Threads that work on one image: `run(function, count)` gives [function(0), ..., function(count - 1)]."""

    size: int
    run: Callable[[Callable[[int], Any], int], list[Any]]


def serial(function: Callable[[int], Any], count: int) -> list[Any]:
    """One after the other."""
    return [function(index) for index in range(count)]


ALONE = Team(1, serial)


def shares(length: int, count: int, multiple: int = 1) -> list[slice]:
    """`length` cut into at most `count` slices of nearly equal length, each but the last a multiple of `multiple`."""
    units = -(-length // multiple)
    count = max(1, min(count, units))
    edges = [min(length, units * index // count * multiple) for index in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def added(parts: Sequence[Array]) -> Array:
    """The sum of arrays that nobody else needs, in the first of them."""
    first, *rest = parts
    for part in rest:
        first += part
    return first


def by_channel(x: Array) -> Array:
    """(N, H, W, C) as (C, N*P); no copy where the memory is channels first already."""
    n, height, width, channels = x.shape
    return np.ascontiguousarray(x.transpose(3, 0, 1, 2)).reshape(channels, n * height * width)


def by_position(y: Array, shape: Sequence[int]) -> Array:
    """The inverse of `by_channel`, as a view. Shapes: (D, N*P) -> (N, H, W, D), N H W those of `shape`."""
    return y.reshape(y.shape[0], *shape[:3]).transpose(1, 2, 3, 0)


# --- transformer branches ---


def feed_forward(
    team: Team, p: Mapping[str, Layer], x: Array, *, act: str, epsilon: float | None, residual: Array
) -> Array:
    """residual + shrink(act(expand(LN(x)))), LN without its affine part, or nothing where epsilon is None.

    Shapes: (N, H, W, C) -> (N, H, W, D).
    """
    expand, shrink = p["expand"], p["shrink"]
    cuts = shares(expand["w"].shape[1], team.size, 16)
    y = by_channel(x)
    y = y if epsilon is None else standardise(y, epsilon, axis=0)

    def part(index: int) -> Array:
        hidden = expand["w"].T[cuts[index]] @ y  # (C, N*P) -> (share of the hidden channels, N*P)
        finish(hidden, act, shift=column(expand, cuts[index]))
        return shrink["w"].T[:, cuts[index]] @ hidden  # -> (D, N*P)

    return by_position(closed(added(team.run(part, len(cuts))), shrink, residual), x.shape)


def column(layer: Layer, cut: slice = slice(None)) -> Array | None:
    """The bias of some output channels as a column (D, 1), or None."""
    return layer["b"][cut, None] if "b" in layer else None


def closed(y: Array, layer: Layer, residual: Array) -> Array:
    """y + the layer's bias + residual, in y. Shapes: (D, N*P) and (N, H, W, D) -> (D, N*P)."""
    if "b" in layer:
        y += layer["b"][:, None]
    seen = y.reshape(y.shape[0], *residual.shape[:3])
    seen += residual.transpose(3, 0, 1, 2)
    return y


def self_attention(
    team: Team, p: Mapping[str, Any], x: Array, *, heads: int, add: str, epsilon: float | None, residual: Array
) -> Array:
    """residual + o(attention(LN(x))); see `feed_forward` for LN, and `coatref.attention` for the attention.

    Shapes: (N, H, W, C) -> (N, H, W, D).
    """
    qkv, o, bias = p["qkv"], p["o"], p.get("bias")
    inner, positions = o["w"].shape[0], x.shape[1] * x.shape[2]
    size = inner // heads
    cuts = shares(heads, team.size)
    y = by_channel(x)
    y = y if epsilon is None else standardise(y, epsilon, axis=0)

    def part(index: int) -> Array:
        cut, count = cuts[index], cuts[index].stop - cuts[index].start
        rows = slice(cut.start * size, cut.stop * size)
        if len(cuts) == 1:
            mixed = projected(qkv, slice(None), y).reshape(3, count, size, y.shape[1])
        else:  # this thread's heads of q, of k and of v
            mixed = np.empty((3, count, size, y.shape[1]), y.dtype)
            for which in range(3):
                shifted = slice(which * inner + rows.start, which * inner + rows.stop)
                projected(qkv, shifted, y, out=mixed[which].reshape(count * size, -1))
        found = np.empty((count, size, y.shape[1]), y.dtype)
        for head in range(count):
            of_head = None if bias is None else bias[(cut.start + head) % bias.shape[0]]
            for start in range(0, y.shape[1], positions):
                q, k, v = mixed[:, head, :, start : start + positions]  # (D, P) each
                attend(q, k, v, of_head, add, found[head, :, start : start + positions])
        return o["w"].T[:, rows] @ found.reshape(count * size, -1)  # (share of heads * D, N*P) -> (D, N*P)

    return by_position(closed(added(team.run(part, len(cuts))), o, residual), x.shape)


def projected(layer: Layer, cut: slice, y: Array, out: Array | None = None) -> Array:
    """Some output channels of a dense layer on (C, P)."""
    found = np.matmul(layer["w"].T[cut], y, out=out)
    if "b" in layer:
        found += layer["b"][cut, None]
    return found


def attend(q: Array, k: Array, v: Array, bias: Array | None, add: str, out: Array) -> None:
    """out <- sum_j softmax_j(q_i . k_j + bias_ij) v_j of one head; q is scaled.

    The weights are divided by their sum after the product with v, on D numbers for each query in place of P.

    Shapes: q (D, Q), k and v (D, K), bias (Q, K), out (D, Q).
    """
    early = bias is not None and add == "pre_softmax"
    step = max(1, QUERIES // k.shape[1])
    for start in range(0, q.shape[1], step):
        cut = slice(start, start + step)
        logits = q[:, cut].T @ k  # (D, Q)^T (D, K) -> (Q, K)
        sums = exponentials(logits, bias[cut] if early and bias is not None else None)  # (Q,)
        found = v @ logits.T  # (D, K) (K, Q) -> (D, Q)
        np.divide(found, sums, out=out[:, cut])
        if bias is not None and not early:
            out[:, cut] += v @ bias[cut].T


def exponentials(logits: Array, bias: Array | None) -> Array:
    """The sums of exp(logits + bias - their largest) along rows; the exponentials take the place of the logits.

    Shapes: (Q, K), (Q, K) -> (Q,).
    """
    if (found := compiled(logits, None)) is not None:
        sums = np.empty(logits.shape[0], logits.dtype)
        found.exponentials(logits, logits[:1] if bias is None else np.ascontiguousarray(bias), bias is not None, sums)
        return sums
    if bias is not None:
        logits += bias
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    return total(logits, axis=1)


# --- convolution branches, channels last ---


def mbconv(
    team: Team,
    p: Mapping[str, Any],
    x: Array,
    *,
    act: str,
    stride: int,
    padding: str,
    gate_act: str | None,
    early_gate: bool,
    residual: Array,
) -> Array:
    """residual + shrink(SE(act(depthwise(act(expand(x)))))), norms folded; early_gate: SE stands before the norm.

    Shapes: (N, H, W, C) -> (N, H', W', D).
    """
    expanded = p["expand"]["w"].shape[1]
    pieces = -(-x.shape[0] * x.shape[1] * x.shape[2] * expanded // EXPANDED)
    cuts = shares(expanded, -(-pieces // team.size) * team.size, 16)
    norm = p.get("depthwise_norm", {})
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[3])  # (N*P, C)

    def front(index: int) -> tuple[Array, Array | None]:
        then = None if early_gate else act
        y = convolved(p, rows, x.shape, cuts[index], act, stride, padding, then)  # (N, H', W', share of the channels)
        images = y.reshape(y.shape[0], -1, y.shape[3])  # (N, P', share)
        means = None if gate_act is None else np.stack([total(image, axis=0) for image in images]) / images.shape[1]
        return images, means

    fronts = team.run(front, len(cuts))
    gate = None
    if gate_act is not None:
        gate = excitation(p["se"], np.concatenate([means for _, means in fronts], axis=1), gate_act)  # (N, expanded)

    def back(index: int) -> Array:
        (images, _), cut, w = fronts[index], cuts[index], p["shrink"]["w"][cuts[index]]
        if gate is None:
            return (images.reshape(-1, images.shape[2]) @ w).reshape(*images.shape[:2], -1)  # share -> D
        if early_gate:
            for image, of_image in zip(images, gate, strict=True):
                finish(image, act, scale=(of_image * norm["scale"])[None, cut], shift=norm["shift"][None, cut])
            return (images.reshape(-1, images.shape[2]) @ w).reshape(*images.shape[:2], -1)  # share -> D
        # (y g) w = y (g w): on the weights, which are fewer than the activations
        return images @ (gate[:, cut, None] * w)  # (N, P', share) (N, share, D) -> (N, P', D)

    y = added(team.run(back, len(cuts))).reshape(residual.shape)
    if "b" in p["shrink"]:
        y += p["shrink"]["b"]
    y += residual
    return y


def row(layer: Layer, cut: slice = slice(None)) -> Array | None:
    """The bias of some output channels as a row (1, D), or None."""
    return layer["b"][None, cut] if "b" in layer else None


def excitation(p: Mapping[str, Layer], means: Array, act: str) -> Array:
    """The gate of squeeze-excite from the channels' means. Shapes: (N, C) -> (N, C)."""
    hidden = means @ p["reduce"]["w"]
    if "b" in p["reduce"]:
        hidden += p["reduce"]["b"]
    gate = ACTIVATIONS[act](hidden) @ p["expand"]["w"]
    return sigmoid(gate + p["expand"]["b"] if "b" in p["expand"] else gate)


def convolved(
    p: Mapping[str, Layer],
    rows: Array,
    shape: Sequence[int],
    cut: slice,
    act: str,
    stride: int,
    padding: Any,
    then: str | None,
) -> Array:
    """then(depthwise(act(expand(x)))) for some of the expanded channels.

    Shapes: rows (N*P, C) of images of `shape` -> (N, H', W', share of the channels).
    """
    expand, (n, height, width, _) = p["expand"], shape
    y = rows @ expand["w"][:, cut]  # (N*P, C) -> (N*P, share)
    w, shift = p["depthwise"]["w"][:, :, cut], row(p["depthwise"], cut)
    if compiled(y, act) is not None and compiled(y, then) is not None:
        finish(y, act, shift=row(expand, cut))
        return slide_by_loops(y.reshape(n, height, width, -1), w, shift, stride, padding, then)
    y = y.reshape(n, height, width, -1)
    padded, inside = bordered(y.shape, w.shape, stride, padding, y.dtype)
    before = expand["b"][cut][None, None, :] if "b" in expand else None
    for image, target in zip(y, inside, strict=True):
        finish(image, act, shift=before, out=target)
    y = slide(padded, w, stride)
    finish(y.reshape(-1, y.shape[3]), then, shift=shift)
    return y


def slide_by_loops(x: Array, w: Array, shift: Array | None, stride: int, padding: Any, act: str | None) -> Array:
    """act(depthwise conv(x) + shift) by a compiled loop. Shapes: (N, H, W, C), contiguous -> (N, H', W', C)."""
    loop, (n, height, width, channels) = loops(), x.shape
    top, bottom = padding_amounts(height, w.shape[0], stride, padding)
    left, right = padding_amounts(width, w.shape[1], stride, padding)
    rows, columns = (
        (top + height + bottom - w.shape[0]) // stride + 1,
        (left + width + right - w.shape[1]) // stride + 1,
    )
    y = np.empty((n, rows, columns, channels), x.dtype)
    loop.depthwise(x, np.ascontiguousarray(w), plain(shift, channels, 0.0), top, left, stride, y, loop.CODES[act])
    return y


def bordered(shape: Sequence[int], kernel: Sequence[int], stride: int, padding: Any, dtype: Any) -> tuple[Array, Array]:
    """Grids with a border of zeros as the padding asks for it, and the view of their inside, which is not set.

    Shapes: (N, H, W, C) -> (N, H + border, W + border, C) and a view (N, H, W, C) of it.
    """
    n, height, width, channels = shape
    top, bottom = padding_amounts(height, kernel[0], stride, padding)
    left, right = padding_amounts(width, kernel[1], stride, padding)
    whole = np.empty((n, top + height + bottom, left + width + right, channels), dtype)
    whole[:, :top] = 0.0
    whole[:, top + height :] = 0.0
    whole[:, :, :left] = 0.0
    whole[:, :, left + width :] = 0.0
    return whole, whole[:, top : top + height, left : left + width]


def windows(padded: Array, kh: int, kw: int, stride: int) -> Array:
    """A read-only view of all windows. Shapes: (N, H, W, C) -> (N, H', W', kh, kw, C)."""
    height, width = ((length - k) // stride + 1 for length, k in zip(padded.shape[1:3], (kh, kw), strict=True))
    each, down, right, along = padded.strides
    shape = (padded.shape[0], height, width, kh, kw, padded.shape[3])
    strides = (each, stride * down, stride * right, down, right, along)
    return np.lib.stride_tricks.as_strided(padded, shape, strides, writeable=False)


def slide(padded: Array, w: Array, stride: int) -> Array:
    """A depthwise convolution without bias or padding, by one einsum over the windows, three times as fast as shifts.

    Shapes: (N, H, W, C), (kh, kw, C) -> (N, H', W', C).
    """
    return np.einsum("nijklc,klc->nijc", windows(padded, w.shape[0], w.shape[1], stride), w)


def depthwise(team: Team, x: Array, w: Array, b: Array | None, *, stride: int, padding: str, act: str | None) -> Array:
    """act(depthwise conv(x) + b). Shapes: (N, H, W, C) -> (N, H', W', C)."""
    cuts = shares(x.shape[3], team.size, 16)

    def part(index: int) -> Array:
        share, of_share = x[:, :, :, cuts[index]], w[:, :, cuts[index]]
        if compiled(x, act) is not None:
            shift = None if b is None else b[cuts[index]]
            return slide_by_loops(np.ascontiguousarray(share), of_share, shift, stride, padding, act)
        padded, inside = bordered(share.shape, w.shape, stride, padding, x.dtype)
        inside[...] = share
        y = slide(padded, of_share, stride)
        finish(y.reshape(-1, y.shape[3]), act, shift=None if b is None else b[None, cuts[index]])
        return y

    parts = team.run(part, len(cuts))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=3)


def conv2d(team: Team, x: Array, w: Array, b: Array | None, *, stride: int, padding: str, act: str | None) -> Array:
    """act(conv(x) + b), as products of patches with the kernel, some rows of the grid at a time.

    All patches of a 3x3 stem at 224x224 are 14 MB; those of a few rows stay in the cache.

    Shapes: (N, H, W, C) -> (N, H', W', D).
    """
    kh, kw, _, width = w.shape
    flat = w.reshape(-1, width)  # (kh*kw*C, D)
    padded, inside = bordered(x.shape, w.shape, stride, padding, x.dtype)
    inside[...] = x
    seen = windows(padded, kh, kw, stride)
    n, out_h, out_w = seen.shape[:3]
    y = np.empty((n, out_h, out_w, width), x.dtype)
    band = max(1, EXPANDED // 2 // max(1, out_w * flat.shape[0]))  # rows of the output at a time
    bands = [(image, slice(start, start + band)) for image in range(n) for start in range(0, out_h, band)]

    def part(index: int) -> None:
        for image, cut in bands[index :: team.size]:
            patches = seen[image, cut].reshape(-1, flat.shape[0])  # (h * W', kh*kw*C), a copy
            target = y[image, cut].reshape(-1, width)
            np.matmul(patches, flat, out=target)
            finish(target, act, shift=None if b is None else b[None, :])

    team.run(part, team.size)
    return y
