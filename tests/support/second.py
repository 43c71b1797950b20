"""Every primitive a second time, in another way: loops over indices straight from the formulas, NumPy float64.

Nothing here knows coatref, so a mistake would have to be made twice to be missed. Sums are `math.fsum` (exact, rounded
once), elementwise functions are mpmath's at 100 bits (rounded once), paddings follow the text of TensorFlow's and torch's
documentation. Shapes and names of arguments are those of coatref: grids (N, H, W, C), heads (N, heads, positions, D). At
the end stand third ways of some of them. All are slow and meant for tiny grids.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mpmath
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = Any
Dense = Mapping[str, Array]

ROUNDING = 1e-13  # 450 units of float64's rounding: room for the order of sums of some hundred terms, for nothing else

# --- agreement ---


def assert_close(found: Array, reference: Array, tolerance: float = ROUNDING) -> None:
    """Same shape, no NaN that is not expected, and every difference within `tolerance` of the reference's largest value.

    Relative to the largest value and not to each one, because rounding errors of a sum are of the size of its terms.
    """
    found, reference = np.asarray(found), np.asarray(reference)
    assert found.shape == reference.shape, f"shape {found.shape} where {reference.shape} was expected"
    if reference.size == 0:
        return
    np.testing.assert_array_equal(np.isnan(found), np.isnan(reference))
    worst, size = np.nanmax(np.abs(found - reference)), np.nanmax(np.abs(reference))
    where = np.unravel_index(np.nanargmax(np.abs(found - reference)), reference.shape)
    assert worst <= tolerance * size, (
        f"off by {worst / size:.3g} of the largest value, {size:.6g}, at {tuple(map(int, where))}: "
        f"{found[where]!r} where {reference[where]!r} was expected"
    )


def whole(rng: np.random.Generator, *shape: int) -> Array:
    """Whole numbers from -8 to 8 as float64: every sum of their products is exact, so results must be equal."""
    return rng.integers(-8, 9, shape).astype(np.float64)


def positive(rng: np.random.Generator, *shape: int) -> Array:
    """Numbers from 0.5 to 1.5 with all their bits in use: sums do not cancel, so `ROUNDING` of the result is enough."""
    return rng.uniform(0.5, 1.5, shape)


def awkward(a: Array) -> Array:
    """The same values as a read-only view that is not contiguous, between NaNs that nothing may read."""
    a = np.asarray(a)
    axes = tuple(reversed(range(a.ndim)))
    around = np.full([2 * a.shape[axis] + 1 for axis in axes], np.nan if a.dtype.kind == "f" else False, a.dtype)
    view = around[(slice(None, 0, -2),) * a.ndim].transpose(axes)
    view[...] = a
    view.flags.writeable = False
    return view


# --- windows that slide over an axis ---


def sliding(length: int, kernel: int, stride: int, padding: str) -> list[list[int | None]]:
    """For each output of an axis the positions that its window covers, None in the padding.

    Raises:
        ValueError: not one window fits.
    """
    if padding == "same":  # https://www.tensorflow.org/api_docs/python/tf/nn, "Notes on padding"
        outputs = math.ceil(length / stride)
        remainder = length % stride
        total = max(kernel - stride, 0) if remainder == 0 else max(kernel - remainder, 0)
        before = total // 2
    elif padding == "symmetric":  # torch.nn.Conv2d with padding (k-1)//2, its formula for the output size
        before = (kernel - 1) // 2
        outputs = math.floor((length + 2 * before - (kernel - 1) - 1) / stride + 1)
    else:
        before = 0
        outputs = math.ceil((length - kernel + 1) / stride)
    if outputs < 1:
        raise ValueError("the window does not fit")
    starts = [index * stride - before for index in range(outputs)]
    return [[at if 0 <= at < length else None for at in range(start, start + kernel)] for start in starts]


def inside(rows: list[int | None], columns: list[int | None]) -> Iterator[tuple[int, int, int, int]]:
    """(k, l, row, column) of every tap of a window that lies in the grid."""
    for (k, row), (m, column) in itertools.product(enumerate(rows), enumerate(columns)):
        if row is not None and column is not None:
            yield k, m, row, column


def conv2d(x: Array, w: Array, b: Array | None, stride: int, padding: str) -> Array:
    """y[n,i,j,d] = b[d] + sum over k,l,c of x[n, s*i+k-p, s*j+l-p, c] w[k,l,c,d]."""
    kh, kw, channels, width = w.shape
    rows, columns = sliding(x.shape[1], kh, stride, padding), sliding(x.shape[2], kw, stride, padding)
    y = np.zeros((x.shape[0], len(rows), len(columns), width))
    image, kernel = x.tolist(), w.tolist()
    for n, i, j in np.ndindex(*y.shape[:3]):
        taps = [(image[n][r][s], kernel[k][m]) for k, m, r, s in inside(rows[i], columns[j])]
        for d in range(width):
            terms = [pixel[c] * tap[c][d] for pixel, tap in taps for c in range(channels)]
            y[n, i, j, d] = math.fsum([*terms, 0.0 if b is None else float(b[d])])
    return y


def depthwise_conv2d(x: Array, w: Array, b: Array | None, stride: int, padding: str) -> Array:
    """y[n,i,j,c] = b[c] + sum over k,l of x[n, s*i+k-p, s*j+l-p, c] w[k,l,c]."""
    kh, kw, channels = w.shape
    rows, columns = sliding(x.shape[1], kh, stride, padding), sliding(x.shape[2], kw, stride, padding)
    y = np.zeros((x.shape[0], len(rows), len(columns), channels))
    for n, i, j, c in np.ndindex(*y.shape):
        terms = [float(x[n, r, s, c] * w[k, m, c]) for k, m, r, s in inside(rows[i], columns[j])]
        y[n, i, j, c] = math.fsum([*terms, 0.0 if b is None else float(b[c])])
    return y


def pooled(x: Array, size: int, stride: int, padding: str, reduce: Callable[[list[float]], float]) -> Array:
    """`reduce` of the values of each window that lie in the grid."""
    rows, columns = sliding(x.shape[1], size, stride, padding), sliding(x.shape[2], size, stride, padding)
    y = np.zeros((x.shape[0], len(rows), len(columns), x.shape[3]))
    for n, i, j, c in np.ndindex(*y.shape):
        y[n, i, j, c] = reduce([float(x[n, r, s, c]) for _, _, r, s in inside(rows[i], columns[j])])
    return y


def max_pool(x: Array, size: int, stride: int, padding: str) -> Array:
    """The largest value of each window."""
    return pooled(x, size, stride, padding, max)


def avg_pool(x: Array, size: int, stride: int, padding: str, padded_zeros: str) -> Array:
    """The mean of each window: of its positions in the grid ("excluded") or of all ("counted")."""

    def mean(values: list[float]) -> float:
        return math.fsum(values) / (len(values) if padded_zeros == "excluded" else size * size)

    return pooled(x, size, stride, padding, mean)


def global_avg_pool(x: Array) -> Array:
    """The mean over all positions."""
    y = np.zeros((x.shape[0], x.shape[3]))
    for n, c in np.ndindex(*y.shape):
        y[n, c] = math.fsum(x[n, :, :, c].ravel().tolist()) / (x.shape[1] * x.shape[2])
    return y


# --- channels ---


def dense(x: Array, w: Array, b: Array | None = None) -> Array:
    """y[...,d] = b[d] + sum over c of x[...,c] w[c,d]."""
    y = np.zeros((*x.shape[:-1], w.shape[1]))
    for *place, d in np.ndindex(*y.shape):
        terms = [float(x[(*place, c)] * w[c, d]) for c in range(w.shape[0])]
        y[(*place, d)] = math.fsum([*terms, 0.0 if b is None else float(b[d])])
    return y


def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, epsilon: float) -> Array:
    """y[...,c] = gamma[c] (x[...,c] - mean[c]) / sqrt(var[c] + epsilon) + beta[c]."""
    y = np.zeros(x.shape)
    for *place, c in np.ndindex(*x.shape):
        deviation = math.sqrt(float(var[c]) + epsilon)
        y[(*place, c)] = float(gamma[c]) * (float(x[(*place, c)]) - float(mean[c])) / deviation + float(beta[c])
    return y


def layer_norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    """y[...,c] = gamma[c] (x[...,c] - m) / sqrt(v + epsilon) + beta[c], m and v of the channels of a position."""
    y = np.zeros(x.shape)
    for place in np.ndindex(*x.shape[:-1]):
        values = x[place].tolist()
        m = math.fsum(values) / len(values)
        v = math.fsum([(value - m) ** 2 for value in values]) / len(values)
        for c, value in enumerate(values):
            y[(*place, c)] = (value - m) / math.sqrt(v + epsilon) * float(gamma[c]) + float(beta[c])
    return y


SCALARS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: x * mpmath.ncdf(x),
    "gelu_tanh": lambda x: x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3))),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "relu": lambda x: x if x > 0 else mpmath.mpf(0),
    "mish": lambda x: x * mpmath.tanh(mpmath.log(1 + mpmath.exp(x))),
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
}


def elementwise(x: Array, kind: str) -> Array:
    """The function of that name of every element, computed at 100 bits."""
    with mpmath.workprec(100):
        flat = [float(SCALARS[kind](mpmath.mpf(value))) for value in np.asarray(x).ravel().tolist()]
    return np.asarray(flat, np.float64).reshape(np.shape(x))


def exp(x: float) -> float:
    """e^x, infinite where it overflows."""
    return math.exp(x) if x < 700 else math.inf


def softmax_of(logits: list[float]) -> list[float]:
    """1 / sum over l of exp(x_l - x_k), which is exp(x_k) / sum over l of exp(x_l); a logit of -inf has no weight."""
    there = [logit for logit in logits if logit != -math.inf]
    return [0.0 if own == -math.inf else 1 / math.fsum([exp(other - own) for other in there]) for own in logits]


def softmax(x: Array) -> Array:
    """`softmax_of` along the last axis."""
    y = np.zeros(x.shape)
    for place in np.ndindex(*x.shape[:-1]):
        y[place] = softmax_of(x[place].tolist())
    return y


def squeeze_excite(x: Array, reduce: Dense, expand: Dense, activation: str) -> Array:
    """y[n,i,j,c] = x[n,i,j,c] sigmoid(expand(act(reduce(means))))[n,c]."""
    hidden = elementwise(dense(global_avg_pool(x), reduce["w"], reduce.get("b")), activation)
    gate = elementwise(dense(hidden, expand["w"], expand.get("b")), "sigmoid")
    y = np.zeros(x.shape)
    for n, i, j, c in np.ndindex(*x.shape):
        y[n, i, j, c] = x[n, i, j, c] * gate[n, c]
    return y


# --- attention ---


def relative_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    *,
    scale: float = 1.0,
    scale_site: str = "query",
    add: str = "pre_softmax",
    shown: Array | None = None,
) -> Array:
    """Both forms of Eq. (3), one query at a time; `shown` (N, K) says which keys count.

    pre_softmax:   y_i = sum_j softmax_j(scale q_i.k_j + w_ij) v_j, or softmax_j(scale (q_i.k_j + w_ij))
    post_softmax:  y_i = sum_j (softmax_j(scale q_i.k_j) + w_ij) v_j
    """
    y = np.zeros(q.shape)
    for n, h, i in np.ndindex(*q.shape[:3]):
        keys = [j for j in range(k.shape[2]) if shown is None or shown[n, j]]
        w = [0.0 if bias is None else float(bias[h % len(bias), i, j]) for j in keys]
        products = [math.fsum((q[n, h, i] * k[n, h, j]).tolist()) for j in keys]
        if add == "post_softmax":
            weights = [a + b for a, b in zip(softmax_of([scale * p for p in products]), w, strict=True)]
        elif scale_site == "logits_and_bias":
            weights = softmax_of([scale * (p + b) for p, b in zip(products, w, strict=True)])
        else:
            weights = softmax_of([scale * p + b for p, b in zip(products, w, strict=True)])
        for d in range(v.shape[3]):
            y[n, h, i, d] = math.fsum([a * float(v[n, h, j, d]) for a, j in zip(weights, keys, strict=True)])
    return y


def linear_attention(q: Array, k: Array, v: Array) -> Array:
    """y_i = sum_j a_ij v_j / sum_j a_ij with a_ij = phi(q_i).phi(k_j): the sum over pairs, not the factored one."""

    def phi(row: Array) -> list[float]:
        return [t + 1 if t > 0 else math.exp(t) for t in row.tolist()]

    y = np.zeros(q.shape)
    for n, h, i in np.ndindex(*q.shape[:3]):
        a = [math.fsum([s * t for s, t in zip(phi(q[n, h, i]), phi(key), strict=True)]) for key in k[n, h]]
        for d in range(v.shape[3]):
            y[n, h, i, d] = math.fsum([w * float(t) for w, t in zip(a, v[n, h, :, d], strict=True)]) / math.fsum(a)
    return y


def gather_bias(table: Array, height: int, width: int, orientation: str = "query_minus_key") -> Array:
    """App. A.1, whose indices start at 1: the bias between (i, j) and (i', j') is P[i-i'+H, j-j'+W].

    "key_minus_query" exchanges the two positions; "transposed" has the two offsets in the other order.
    """
    bias = np.zeros((len(table), height * width, height * width))
    positions = list(itertools.product(range(1, height + 1), range(1, width + 1)))
    for (query, (i, j)), (key, (i2, j2)) in itertools.product(enumerate(positions), repeat=2):
        row, column = i - i2 + height, j - j2 + width
        if orientation == "key_minus_query":
            row, column = i2 - i + height, j2 - j + width
        bias[:, query, key] = (
            table[:, column - 1, row - 1] if orientation == "transposed" else table[:, row - 1, column - 1]
        )
    return bias


def log_mlp_bias_table(hidden: Dense, out: Dense, height: int, width: int) -> Array:
    """P[:,a,b] = out(relu(hidden(f(a-(H-1)), f(b-(W-1))))) with f(t) = sign(t) ln(1 + |t|)."""
    table = np.zeros((out["w"].shape[1], 2 * height - 1, 2 * width - 1))
    for a, b in np.ndindex(*table.shape[1:]):
        offsets = (a - (height - 1), b - (width - 1))
        place = [math.copysign(math.log(1 + abs(t)), t) for t in offsets]
        units = [
            max(0.0, place[0] * float(hidden["w"][0, u]) + place[1] * float(hidden["w"][1, u]) + float(hidden["b"][u]))
            for u in range(len(hidden["b"]))
        ]
        for h in range(len(table)):
            table[h, a, b] = math.fsum([s * float(t) for s, t in zip(units, out["w"][:, h], strict=True)]) + out["b"][h]
    return table


def resize_table(table: Array, rows: int, columns: int, sampling: str) -> Array:
    """Bilinear interpolation from the four entries around each place; places beyond the edge take the edge's value."""

    def around(length: int, target: int, t: int) -> tuple[int, int, float]:
        if sampling == "half_pixel":  # the centres of both pixel rows are at 1/2, 3/2, ... of the same interval
            s = (t + 0.5) / target * length - 0.5
        else:  # the first and the last entries coincide
            s = 0.0 if target == 1 else t / (target - 1) * (length - 1)
        s = min(max(s, 0.0), length - 1)
        lower = min(math.floor(s), max(length - 2, 0))
        return lower, min(lower + 1, length - 1), s - lower

    resized = np.zeros((len(table), rows, columns))
    for h, r, c in np.ndindex(*resized.shape):
        top, bottom, down = around(table.shape[1], rows, r)
        left, right, across = around(table.shape[2], columns, c)
        above = table[h, top, left] * (1 - across) + table[h, top, right] * across
        below = table[h, bottom, left] * (1 - across) + table[h, bottom, right] * across
        resized[h, r, c] = above * (1 - down) + below * down
    return resized


def split_windows(x: Array, window: tuple[int, int]) -> Array:
    """Window number a * W/w + b of image n holds rows a*h ... and columns b*w ... of it."""
    down, across = x.shape[1] // window[0], x.shape[2] // window[1]
    y = np.zeros((len(x) * down * across, *window, x.shape[3]))
    for n, i, j in np.ndindex(*x.shape[:3]):
        number = n * down * across + i // window[0] * across + j // window[1]
        y[number, i % window[0], j % window[1]] = x[n, i, j]
    return y


# --- third ways ---


def conv2d_by_matrix(x: Array, w: Array, stride: int, padding: str) -> Array:
    """The convolution as one matrix from all pixels to all outputs of an image."""
    rows, columns = sliding(x.shape[1], w.shape[0], stride, padding), sliding(x.shape[2], w.shape[1], stride, padding)
    matrix = np.zeros((len(rows), len(columns), w.shape[3], *x.shape[1:]))
    for i, j in np.ndindex(len(rows), len(columns)):
        for k, m, row, column in inside(rows[i], columns[j]):
            matrix[i, j, :, row, column, :] = w[k, m].T
    flat = x.reshape(len(x), -1) @ matrix.reshape(-1, x[0].size).T
    return flat.reshape(len(x), len(rows), len(columns), w.shape[3])


def circular_depthwise_by_fft(x: Array, w: Array) -> Array:
    """y[i,j,c] = sum over k,l of x[(i+k) mod H, (j+l) mod W, c] w[k,l,c], as a product of Fourier transforms."""
    spectrum = np.fft.fft2(x, axes=(1, 2)) * np.conj(np.fft.fft2(w, s=x.shape[1:3], axes=(0, 1)))
    return np.fft.ifft2(spectrum, axes=(1, 2)).real


def pool_by_views(x: Array, size: int, stride: int, padding: str, kind: str) -> Array:
    """Pooling on NumPy's sliding windows of a grid padded with NaN, which its nan-functions pass over."""
    starts = [sliding(length, size, stride, padding) for length in x.shape[1:3]]
    before = [next(k for k, at in enumerate(axis[0]) if at is not None) for axis in starts]
    padded = np.pad(x, ((0, 0), (before[0], size), (before[1], size), (0, 0)), constant_values=np.nan)
    windows = sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    windows = windows[:, : len(starts[0]), : len(starts[1])]
    if kind == "max":
        return np.nanmax(windows, axis=(-2, -1))
    return np.nanmean(windows, axis=(-2, -1)) if kind == "excluded" else np.nansum(windows, axis=(-2, -1)) / size**2


def gather_bias_by_einsum(table: Array, height: int, width: int) -> Array:
    """App. A.1's form for TPUs: two einsums with one-hot lookup matrices, along height and along width."""

    def lookup(length: int) -> Array:
        one_hot = np.zeros((length, length, 2 * length - 1))
        for i, i2 in np.ndindex(length, length):
            one_hot[i, i2, i - i2 + length - 1] = 1
        return one_hot

    along_height = np.einsum("hrc,ikr->hikc", table, lookup(height))
    bias = np.einsum("hikc,jlc->hijkl", along_height, lookup(width))
    return bias.reshape(len(table), height * width, height * width)


def global_convolution(v: Array, kernel: Array, height: int, width: int) -> Array:
    """y_i = sum_j kernel[i-j] v_j / sum_j kernel[i-j], i and j over all positions, by Fourier transforms.

    Shapes: v (N, heads, H*W, D), kernel (heads, 2H-1, 2W-1) of the offsets from -(H-1) and -(W-1) on.
    """
    size = (3 * height - 2, 3 * width - 2)  # the whole linear convolution, so nothing wraps round
    n, heads, _, depth = v.shape
    images = np.concatenate([v, np.ones((n, heads, height * width, 1))], axis=-1).reshape(n, heads, height, width, -1)
    spectrum = np.fft.fft2(images, s=size, axes=(2, 3)) * np.fft.fft2(kernel, s=size, axes=(1, 2))[None, ..., None]
    full = np.fft.ifft2(spectrum, axes=(2, 3)).real[:, :, height - 1 : 2 * height - 1, width - 1 : 2 * width - 1]
    return (full[..., :depth] / full[..., depth:]).reshape(v.shape)
