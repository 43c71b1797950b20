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

from coatref.backends.numpy_passes import Array, finish, standardise, total
from coatref.ops.activation import ACTIVATIONS, sigmoid
from coatref.specification.grids import output_length, padding_amounts

Layer = Mapping[str, Array]

QUERIES = 256 * 1024  # logits of one head at a time; more would leave the second-level cache
EXPANDED = 320 * 1024  # expanded numbers of MBConv at a time, likewise


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
    """One image (1, H, W, C) as (C, P); no copy where the memory is channels first already."""
    _, height, width, channels = x.shape
    return np.ascontiguousarray(x[0].transpose(2, 0, 1)).reshape(channels, height * width)


def by_position(y: Array, height: int, width: int) -> Array:
    """The inverse of `by_channel`, as a view. Shapes: (D, P) -> (1, H, W, D)."""
    return y.reshape(1, y.shape[0], height, width).transpose(0, 2, 3, 1)


def image_by_image(function: Callable[..., Array], x: Array, *others: Array) -> Array:
    """function(image, ...) of every image (1, H, W, C) of a batch, put together again."""
    if x.shape[0] == 1:
        return function(x, *others)
    parts = [function(*(array[n : n + 1] for array in (x, *others))) for n in range(x.shape[0])]
    return np.concatenate(parts) if parts else function(x, *others)


# --- transformer branches ---


def feed_forward(
    team: Team, p: Mapping[str, Layer], x: Array, *, act: str, epsilon: float | None, residual: Array
) -> Array:
    """residual + shrink(act(expand(LN(x)))), LN without its affine part, or nothing where epsilon is None.

    Shapes: (N, H, W, C) -> (N, H, W, D).
    """
    expand, shrink = p["expand"], p["shrink"]
    cuts = shares(expand["w"].shape[1], team.size, 16)

    def one(x: Array, residual: Array) -> Array:
        y = by_channel(x)
        y = y if epsilon is None else standardise(y, epsilon, axis=0)

        def part(index: int) -> Array:
            hidden = expand["w"].T[cuts[index]] @ y  # (C, P) -> (share of the hidden channels, P)
            finish(hidden, act, shift=column(expand, cuts[index]))
            return shrink["w"].T[:, cuts[index]] @ hidden  # -> (D, P)

        return by_position(closed(added(team.run(part, len(cuts))), shrink, residual), *x.shape[1:3])

    return image_by_image(one, x, residual)


def column(layer: Layer, cut: slice = slice(None)) -> Array | None:
    """The bias of some output channels as a column (D, 1), or None."""
    return layer["b"][cut, None] if "b" in layer else None


def closed(y: Array, layer: Layer, residual: Array) -> Array:
    """y + the layer's bias + residual, in y. Shapes: (D, P) and (1, H, W, D) -> (D, P)."""
    if "b" in layer:
        y += layer["b"][:, None]
    y += residual[0].transpose(2, 0, 1).reshape(y.shape)
    return y


def self_attention(
    team: Team, p: Mapping[str, Any], x: Array, *, heads: int, add: str, epsilon: float | None, residual: Array
) -> Array:
    """residual + o(attention(LN(x))); see `feed_forward` for LN, and `coatref.attention` for the attention.

    Shapes: (N, H, W, C) -> (N, H, W, D).
    """
    qkv, o, bias = p["qkv"], p["o"], p.get("bias")
    inner = o["w"].shape[0]
    size = inner // heads
    cuts = shares(heads, team.size)

    def one(x: Array, residual: Array) -> Array:
        y = by_channel(x)
        y = y if epsilon is None else standardise(y, epsilon, axis=0)

        def part(index: int) -> Array:
            cut, count = cuts[index], cuts[index].stop - cuts[index].start
            rows = slice(cut.start * size, cut.stop * size)
            if len(cuts) == 1:
                mixed = projected(qkv, slice(None), y).reshape(3, count, size, y.shape[1])
            else:  # this thread's heads of q, of k and of v
                mixed = np.empty((3, count, size, y.shape[1]), y.dtype)
                for part_index in range(3):
                    shifted = slice(part_index * inner + rows.start, part_index * inner + rows.stop)
                    projected(qkv, shifted, y, out=mixed[part_index].reshape(count * size, -1))
            found = np.empty((count, size, y.shape[1]), y.dtype)
            for head in range(count):
                of_head = None if bias is None else bias[(cut.start + head) % bias.shape[0]]
                attend(mixed[0, head], mixed[1, head], mixed[2, head], of_head, add, found[head])
            return o["w"].T[:, rows] @ found.reshape(count * size, -1)  # (share of heads * D, P) -> (D, P)

        return by_position(closed(added(team.run(part, len(cuts))), o, residual), *x.shape[1:3])

    return image_by_image(one, x, residual)


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
        if early:
            logits += bias[cut]  # type: ignore[index]
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        sums = total(logits, axis=1)  # (Q,)
        found = v @ logits.T  # (D, K) (K, Q) -> (D, Q)
        np.divide(found, sums, out=out[:, cut])
        if bias is not None and not early:
            out[:, cut] += v @ bias[cut].T


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
    pieces = max(team.size, -(-x.shape[1] * x.shape[2] * expanded // EXPANDED))
    cuts = shares(expanded, -(-pieces // team.size) * team.size, 16)
    norm = p.get("depthwise_norm", {})

    def one(x: Array, residual: Array) -> Array:
        rows = np.ascontiguousarray(x).reshape(-1, x.shape[3])  # (P, C)

        def front(index: int) -> tuple[Array, Array | None]:
            y = convolved(p, rows, x.shape, cuts[index], act, stride, padding)  # (H', W', share of the channels)
            flat = y.reshape(-1, y.shape[2])
            if not early_gate:
                finish(flat, act, shift=row(p["depthwise"], cuts[index]))
            elif "b" in p["depthwise"]:
                flat += p["depthwise"]["b"][cuts[index]]
            return flat, None if gate_act is None else total(flat, axis=0) / flat.shape[0]

        fronts = team.run(front, len(cuts))
        gate = None
        if gate_act is not None:
            gate = excitation(p["se"], np.concatenate([means for _, means in fronts]), gate_act)  # (expanded,)

        def back(index: int) -> Array:
            (flat, _), cut, w = fronts[index], cuts[index], p["shrink"]["w"][cuts[index]]
            if early_gate and gate is not None:
                finish(flat, act, scale=(gate * norm["scale"])[None, cut], shift=norm["shift"][None, cut])
            elif gate is not None:
                w = gate[cut, None] * w  # (y g) w = y (g w): on the weights, which are fewer than the activations
            return flat @ w  # (P', share of the channels) -> (P', D)

        y = added(team.run(back, len(cuts))).reshape(residual.shape)
        if "b" in p["shrink"]:
            y += p["shrink"]["b"]
        y += residual
        return y

    return image_by_image(one, x, residual)


def row(layer: Layer, cut: slice = slice(None)) -> Array | None:
    """The bias of some output channels as a row (1, D), or None."""
    return layer["b"][None, cut] if "b" in layer else None


def excitation(p: Mapping[str, Layer], means: Array, act: str) -> Array:
    """The gate of squeeze-excite from the channels' means. Shapes: (C,) -> (C,)."""
    hidden = means @ p["reduce"]["w"]
    if "b" in p["reduce"]:
        hidden += p["reduce"]["b"]
    gate = ACTIVATIONS[act](hidden) @ p["expand"]["w"]
    return sigmoid(gate + p["expand"]["b"] if "b" in p["expand"] else gate)


def convolved(
    p: Mapping[str, Layer], rows: Array, shape: tuple[int, ...], cut: slice, act: str, stride: int, padding: str
) -> Array:
    """depthwise(act(expand(x))) for some of the expanded channels, the depthwise bias left out.

    Shapes: rows (P, C) of an image of `shape` -> (H', W', share of the channels).
    """
    expand, (_, height, width, _) = p["expand"], shape
    y = rows @ expand["w"][:, cut]  # (P, C) -> (P, share)
    channels = y.shape[1]
    padded, inside = bordered(height, width, channels, p["depthwise"]["w"].shape[:2], stride, padding, y.dtype)
    shift = expand["b"][cut] if "b" in expand else None
    finish(y.reshape(height, width, channels), act, shift=None if shift is None else shift[None, None, :], out=inside)
    return slide(padded, p["depthwise"]["w"][:, :, cut], stride)


def bordered(
    height: int, width: int, channels: int, kernel: Sequence[int], stride: int, padding: Any, dtype: Any
) -> tuple[Array, Array]:
    """A grid with a border of zeros as the padding asks for it, and the view of its inside, which is not set."""
    top, bottom = padding_amounts(height, kernel[0], stride, padding)
    left, right = padding_amounts(width, kernel[1], stride, padding)
    whole = np.empty((top + height + bottom, left + width + right, channels), dtype)
    whole[:top] = 0.0
    whole[top + height :] = 0.0
    whole[:, :left] = 0.0
    whole[:, left + width :] = 0.0
    return whole, whole[top : top + height, left : left + width]


def windows(padded: Array, kh: int, kw: int, stride: int) -> Array:
    """A read-only view of all windows. Shapes: (H, W, C) -> (H', W', kh, kw, C)."""
    height, width = ((length - k) // stride + 1 for length, k in zip(padded.shape[:2], (kh, kw), strict=True))
    down, right, along = padded.strides
    shape = (height, width, kh, kw, padded.shape[2])
    strides = (stride * down, stride * right, down, right, along)
    return np.lib.stride_tricks.as_strided(padded, shape, strides, writeable=False)


def slide(padded: Array, w: Array, stride: int) -> Array:
    """A depthwise convolution without bias or padding, by one einsum over the windows, three times as fast as shifts.

    Shapes: (H, W, C), (kh, kw, C) -> (H', W', C).
    """
    return np.einsum("ijklc,klc->ijc", windows(padded, *w.shape[:2], stride), w)


def depthwise(team: Team, x: Array, w: Array, b: Array | None, *, stride: int, padding: str, act: str | None) -> Array:
    """act(depthwise conv(x) + b). Shapes: (N, H, W, C) -> (N, H', W', C)."""
    cuts = shares(x.shape[3], team.size, 16)

    def one(x: Array) -> Array:
        def part(index: int) -> Array:
            cut = cuts[index]
            share = x[0, :, :, cut]
            padded, inside = bordered(*share.shape, w.shape[:2], stride, padding, x.dtype)
            inside[...] = share
            y = slide(padded, w[:, :, cut], stride)
            finish(y.reshape(-1, y.shape[2]), act, shift=None if b is None else b[None, cut])
            return y

        parts = team.run(part, len(cuts))
        return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2))[None]

    return image_by_image(one, x)


def conv2d(team: Team, x: Array, w: Array, b: Array | None, *, stride: int, padding: str, act: str | None) -> Array:
    """act(conv(x) + b), as products of patches with the kernel, some rows of the grid at a time.

    All patches of a 3x3 stem at 224x224 are 14 MB; those of a few rows stay in the cache.

    Shapes: (N, H, W, C) -> (N, H', W', D).
    """
    kh, kw, _, width = w.shape
    flat = w.reshape(-1, width)  # (kh*kw*C, D)
    out_h, out_w = (
        output_length(length, k, stride, padding)  # type: ignore[arg-type]
        for length, k in zip(x.shape[1:3], (kh, kw), strict=True)
    )
    band = max(1, EXPANDED // 2 // (out_w * flat.shape[0]))  # rows of the output at a time
    bands = [slice(start, min(start + band, out_h)) for start in range(0, out_h, band)]

    def one(x: Array) -> Array:
        padded, inside = bordered(*x.shape[1:], (kh, kw), stride, padding, x.dtype)
        inside[...] = x[0]
        seen = windows(padded, kh, kw, stride)
        y = np.empty((out_h, out_w, width), x.dtype)

        def part(index: int) -> None:
            for cut in bands[index :: team.size]:
                patches = seen[cut].reshape(-1, flat.shape[0])  # (h * W', kh*kw*C), a copy
                target = y[cut].reshape(-1, width)
                np.matmul(patches, flat, out=target)
                finish(target, act, shift=None if b is None else b[None, :])

        team.run(part, team.size)
        return y[None]

    return image_by_image(one, x)
