"""NumPy: arrays on the CPU; fast forms from BLAS products and passes over cache-sized tiles; erf of float64 from SciPy.

Threads are coatref's own (`divide`), with BLAS held to one thread each, so that a thread goes through many steps on data
that is in its cache. The forms compute in float32 and float64; float16 is left to the definition.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import numpy as np

from coatref import ops
from coatref.attention.relative_attention import ScaleSite, check_shapes
from coatref.attention.relative_attention import relative_attention as defined_attention
from coatref.backends import numpy_blocks as blocks
from coatref.backends.fused import Fused, from_primitives
from coatref.backends.numpy_blocks import ALONE, Layer, Team, shares
from coatref.backends.numpy_passes import Array, elementwise, erf32, finish, loops, no_loops, standardise, total
from coatref.errors import InputError
from coatref.ops.activation import ACTIVATIONS
from coatref.primitives import DEFINITION, Form
from coatref.registry import Library
from coatref.specification.grids import output_length
from coatref.tap import no_tap

FAST_DTYPES = ("float32", "float64")
PIXELS = 2 * 224 * 224  # of the images that are computed at a time: two make products a tenth faster than one


@functools.cache
def namespace() -> Any:
    """NumPy as array-api-compat wraps it."""
    import array_api_compat.numpy

    return array_api_compat.numpy


def erf(x: Any) -> Any:
    """The error function: SciPy's in float64; in float32 `erf32`, a quarter of its time, right to 4 ULP.

    float16 is computed in float32 and rounded once, since SciPy has no loop for it.
    """
    if x.dtype == np.float32:
        return erf32(x)
    import scipy.special

    return scipy.special.erf(x).astype(x.dtype, copy=False)


def to_numpy(x: Any) -> Any:
    """The array itself."""
    return x


# --- threads ---


def thread_count(threads: int | None = None) -> int:
    """How many threads to use: the argument, else COATREF_NUM_THREADS, else as many as the process may run on.

    Raises:
        InputError: the environment variable is no whole number from 1.
    """
    if threads is not None:
        return threads
    text = os.environ.get("COATREF_NUM_THREADS", "").strip()
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"COATREF_NUM_THREADS must be a whole number from 1, found {text!r:.80}; unset or correct it.")
    return int(text)


@functools.cache
def blas() -> Any:
    """The thread settings of the BLAS libraries of this process, looked up once (that takes a millisecond)."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def divide(compute: Callable[[Array, Team], Array], x: Array, threads: int | None = None) -> Array:
    """compute(part, team) over the batch, as many images at a time as have `PIXELS` pixels together.

    So few at a time keep their activations in the cache, where a whole batch does not fit: at batch 8 that takes half the
    time. Parts go side by side on the threads; what is left over is computed by all threads together, each on its share
    of the heads and channels.
    """
    count = thread_count(threads)
    at_a_time = max(1, min(PIXELS // max(1, x.shape[1] * x.shape[2]), -(-x.shape[0] // count)))
    parts = [x[start : start + at_a_time] for start in range(0, x.shape[0], at_a_time)]
    with blas().limit(limits=1, user_api="blas"):
        if count == 1:
            return concatenated([compute(part, ALONE) for part in parts])
        with ThreadPoolExecutor(count - 1) as pool:
            team = Team(count, functools.partial(together, pool, count))
            whole = len(parts) // count * count  # what the threads share evenly
            side_by_side = team.run(lambda n: compute(parts[n], ALONE), whole) if whole else []
            return concatenated([*side_by_side, *(compute(part, team) for part in parts[whole:])])


def together(pool: ThreadPoolExecutor, threads: int, function: Callable[[int], Any], count: int) -> list[Any]:
    """[function(0), ..., function(count - 1)], a share of them on the calling thread and the rest on the pool's."""
    cuts = shares(count, threads)
    others = [pool.submit(functools.partial(serial_part, function), cut) for cut in cuts[1:]]
    found = serial_part(function, cuts[0])
    for other in others:
        found += other.result()
    return found


def serial_part(function: Callable[[int], Any], cut: slice) -> list[Any]:
    """The function of every index of a share."""
    return [function(index) for index in range(cut.start, cut.stop)]


def concatenated(parts: list[Array]) -> Array:
    """The parts of a batch put together."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


# --- steps of a prepared network ---


def lay_out(layer: Layer) -> Layer:
    """Kernels contiguous; those of dense layers along C, so that their transpose is, which the products are fastest with."""
    w = layer["w"]
    kind = np.asfortranarray(w) if w.ndim == 2 else np.ascontiguousarray(w)
    return {**layer, "w": kind}


def dense(
    team: Team,
    x: Array,
    w: Array,
    b: Array | None,
    *,
    act: str | None = None,
    residual: Array | None = None,
) -> Array:
    """act(x w + b) + residual, one product for all positions, cut by positions for the threads."""
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])  # (..., C) -> (P, C)
    y = np.empty((rows.shape[0], w.shape[1]), x.dtype)
    added = None if residual is None else np.ascontiguousarray(residual).reshape(y.shape)
    cuts = shares(rows.shape[0], team.size, 16)

    def part(index: int) -> None:
        target = y[cuts[index]]
        np.matmul(rows[cuts[index]], w, out=target)
        finish(target, act, shift=None if b is None else b[None, :])
        if added is not None:
            target += added[cuts[index]]

    team.run(part, len(cuts))
    return y.reshape(*x.shape[:-1], w.shape[1])


def affine(team: Team, x: Array, scale: Array, shift: Array, *, act: str | None) -> Array:
    """act(x scale + shift) over tiles."""
    y = np.array(x, order="C", copy=True)
    flat = y.reshape(-1, x.shape[-1])
    cuts = shares(flat.shape[0], team.size)
    team.run(lambda index: finish(flat[cuts[index]], act, scale=scale[None, :], shift=shift[None, :]), len(cuts))
    return y


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, *, epsilon: float) -> Array:
    """LayerNorm over the last axis."""
    y = standardise(np.ascontiguousarray(x).reshape(-1, x.shape[-1]), epsilon, axis=1)
    if gamma is not None and beta is not None:
        y *= gamma
        y += beta
    return y.reshape(x.shape)


def squeeze_excite(
    x: Array, reduce: Layer, expand: Layer, scale: Array | None, shift: Array | None, *, gate_act: str, act: str | None
) -> Array:
    """act(gate(x) x scale + shift), in x, image by image."""
    x = np.ascontiguousarray(x)
    for image in x:
        flat = image.reshape(-1, x.shape[3])  # (P, C)
        means = total(flat, axis=0)[None, :] / flat.shape[0]  # (1, C)
        gate = blocks.excitation({"reduce": reduce, "expand": expand}, means, gate_act)[0]
        gate = gate if scale is None else gate * scale
        finish(flat, act, scale=gate[None, :], shift=None if shift is None else shift[None, :])
    return x


def attention(qkv: Array, bias: Array | None, *, heads: int, add: str) -> Array:
    """Attention over positions, head by head."""
    n, height, width, channels = qkv.shape
    positions = height * width
    y = blocks.by_channel(qkv).reshape(3, heads, channels // (3 * heads), n * positions)
    out = np.empty(y.shape[1:], qkv.dtype)
    for head in range(heads):
        of_head = None if bias is None else bias[head % bias.shape[0]]
        for start in range(0, n * positions, positions):
            q, k, v = y[:, head, :, start : start + positions]  # (D, P) each
            blocks.attend(q, k, v, of_head, add, out[head, :, start : start + positions])
    return blocks.by_position(out.reshape(channels // 3, -1), qkv.shape)


def avg_pool(
    x: Array, *, size: int = 2, stride: int = 2, padding: Any = "same", padded_zeros: Any = "excluded"
) -> Array:
    """The mean of each window: that of 2x2 as four in-place passes, others as the definition does it."""
    even = x.ndim == 4 and x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0  # then no padding adds anything
    known = padding in ("same", "symmetric", "valid") and padded_zeros in ("excluded", "counted")
    if size != 2 or stride != 2 or not even or not known:
        return ops.avg_pool(x, size=size, stride=stride, padding=padding, padded_zeros=padded_zeros)
    y = x[:, ::2, ::2, :] + x[:, 1::2, ::2, :]
    y += x[:, ::2, 1::2, :]
    y += x[:, 1::2, 1::2, :]
    y *= 0.25
    return y


def global_avg_pool(x: Array) -> Array:
    """The mean over positions, by a product with ones."""
    flat = np.ascontiguousarray(x).reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])  # (N, P, C)
    return np.stack([total(image, axis=0) for image in flat]) / flat.shape[1] if len(flat) else ops.global_avg_pool(x)


def softmax(x: Array) -> Array:
    """Softmax over the last axis, in place on a copy."""
    y = x - x.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def linear_attention(qkv: Array, *, heads: int) -> Array:
    """The definition's, which is no form of the paper's networks."""
    return from_primitives().linear_attention(qkv, heads=heads)


def fused(team: Team | None = None) -> Fused:
    """The steps, done by a team of threads; `prepare` asks for them too, and so is what compiles the loops."""
    loops()
    team = ALONE if team is None else team
    return Fused(
        conv2d=functools.partial(blocks.conv2d, team),
        dense=functools.partial(dense, team),
        depthwise=functools.partial(blocks.depthwise, team),
        affine=functools.partial(affine, team),
        layer_norm=layer_norm,
        squeeze_excite=squeeze_excite,
        attention=attention,
        linear_attention=linear_attention,
        activation=elementwise,
        add=np.add,
        max_pool=ops.max_pool,
        avg_pool=avg_pool,
        global_avg_pool=global_avg_pool,
        softmax=softmax,
        lay_out=lay_out,
        feed_forward=functools.partial(blocks.feed_forward, team),
        self_attention=functools.partial(blocks.self_attention, team),
        mbconv=functools.partial(blocks.mbconv, team),
    )


# --- primitives ---


def fitting(x: Array, kernel: tuple[int, ...], channels: int, stride: int, padding: Any) -> bool:
    """Whether a window of a convolution fits a grid; where it does not, the definition says what is wrong."""
    return (
        x.ndim == 4
        and x.shape[3] == channels
        and padding in ("same", "symmetric", "valid")
        and all(output_length(n, k, stride, padding) > 0 for n, k in zip(x.shape[1:3], kernel, strict=True))
    )


def primitive_conv2d(
    team: Team, x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: Any = "same"
) -> Array:
    """`coatref.ops.conv2d`."""
    if not fitting(x, w.shape[:2], w.shape[2], stride, padding):
        return ops.conv2d(x, w, b, stride=stride, padding=padding)
    return blocks.conv2d(team, x, w, b, stride=stride, padding=padding, act=None)


def primitive_depthwise(
    team: Team, x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: Any = "same"
) -> Array:
    """`coatref.ops.depthwise_conv2d`."""
    if not fitting(x, w.shape[:2], w.shape[2], stride, padding):
        return ops.depthwise_conv2d(x, w, b, stride=stride, padding=padding)
    return blocks.depthwise(team, x, w, b, stride=stride, padding=padding, act=None)


def primitive_dense(team: Team, x: Array, w: Array, b: Array | None = None) -> Array:
    """`coatref.ops.dense`."""
    if x.shape[-1] != w.shape[0]:
        return ops.dense(x, w, b)
    return dense(team, x, w, b)


def batch_norm(team: Team, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Array:
    """`coatref.ops.batch_norm`, as one scale and shift."""
    scale = gamma / np.sqrt(var + epsilon)
    return affine(team, x, scale, beta - mean * scale, act=None)


def activation(x: Array, kind: str) -> Array:
    """`coatref.ops.activation`."""
    return elementwise(x, kind) if kind in ACTIVATIONS else ops.activation(x, kind)


def primitive_squeeze_excite(x: Array, reduce: Layer, expand: Layer, *, activation: str) -> Array:
    """`coatref.ops.squeeze_excite`."""
    return squeeze_excite(np.array(x, order="C"), reduce, expand, None, None, gate_act=activation, act=None)


def relative_attention(
    team: Team,
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    *,
    scale: float = 1.0,
    scale_site: Any = "query",
    add: Any = "pre_softmax",
    key_mask: Array | None = None,
    tap: Any = no_tap,
) -> Array:
    """`coatref.attention.relative_attention`, head by head; a mask or a tap is left to the definition."""
    known = scale_site in get_args(ScaleSite) and add in ("pre_softmax", "post_softmax")
    if key_mask is not None or tap is not no_tap or not known:
        return defined_attention(q, k, v, bias, scale=scale, scale_site=scale_site, add=add, key_mask=key_mask, tap=tap)
    check_shapes(q, k, v, bias, key_mask)
    if bias is not None and scale_site == "logits_and_bias" and add == "pre_softmax":
        bias = bias * scale
    scaled = q * scale
    out = np.empty(q.shape, q.dtype)
    heads = q.shape[1]

    def part(index: int) -> None:
        n, head = divmod(index, heads)
        of_head = None if bias is None else bias[head % bias.shape[0]]
        blocks.attend(scaled[n, head].T, k[n, head].T, v[n, head].T, of_head, add, out[n, head].T)

    if q.size and k.size:
        team.run(part, q.shape[0] * heads)
    return out


def in_fast_types(form: Form, default: Form) -> Form:
    """The form in the types that it is made for, and the definition in others."""

    def chosen(*args: Any, **kwargs: Any) -> Array:
        first = args[0] if args else kwargs["x" if "x" in kwargs else "q"]
        return (form if first.dtype.name in FAST_DTYPES else default)(*args, **kwargs)

    return functools.update_wrapper(chosen, form.func if isinstance(form, functools.partial) else form)


def primitives(team: Team | None = None) -> Mapping[str, Form]:
    """The primitives, done by a team of threads."""
    team = ALONE if team is None else team
    forms: dict[str, Form] = {
        "conv2d": functools.partial(primitive_conv2d, team),
        "depthwise_conv2d": functools.partial(primitive_depthwise, team),
        "dense": functools.partial(primitive_dense, team),
        "batch_norm": functools.partial(batch_norm, team),
        "layer_norm": layer_norm,
        "activation": activation,
        "softmax": softmax,
        "squeeze_excite": primitive_squeeze_excite,
        "avg_pool": avg_pool,
        "global_avg_pool": global_avg_pool,
        "relative_attention": functools.partial(relative_attention, team),
    }
    return {name: in_fast_types(form, getattr(DEFINITION, name)) for name, form in forms.items()}


def without() -> Mapping[str, str]:
    """Compiled loops, where there are none."""
    reason = no_loops()
    return {"compiled loops in float32": reason} if reason else {}


LIBRARY = Library(
    name="numpy",
    install="numpy",
    namespace=namespace,
    to_numpy=to_numpy,
    dtypes=("float16", "float32", "float64"),
    erf=erf,
    device=lambda x: "cpu",
    refused=("MaskedArray", "matrix"),
    primitives=primitives(),
    without=without,
    bound=primitives,
    fused=fused,
    fused_dtypes=FAST_DTYPES,
    divide=divide,
)
