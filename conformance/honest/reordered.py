"""The definition in NumPy with its sums in another order, drawn by a seed, and its formulas in other honest forms.

A variance is always taken of centred values: E[x^2] - m^2 loses its digits where the mean is large.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coatref.errors import InputError
from coatref.ops import sigmoid
from coatref.ops.window import shifted
from coatref.primitives import DEFINITION, Primitives
from coatref.registry import Array
from coatref.tap import Tap, no_tap


def reordered(seed: int) -> Primitives:
    """Forms whose sums are in the order that the seed draws; 0 reverses them.

    Convolutions are one product of patches (im2col) with an even seed, and a sum over shifted images with an odd one.
    """
    if type(seed) is not int or seed < 0:
        raise InputError(f"reordered takes a whole number from 0 as its seed, got {seed!r:.80}.")
    forms = Reordered(seed)
    return dataclasses.replace(
        DEFINITION,
        conv2d=forms.conv2d,
        depthwise_conv2d=forms.depthwise_conv2d,
        avg_pool=forms.avg_pool,
        global_avg_pool=forms.global_avg_pool,
        batch_norm=batch_norm,
        layer_norm=forms.layer_norm,
        activation=activation,
        softmax=forms.softmax,
        squeeze_excite=forms.squeeze_excite,
        dense=forms.dense,
        relative_attention=forms.relative_attention,
        linear_attention=forms.linear_attention,
    )


def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Array:
    """BatchNorm with the division first. Shapes: (..., C) -> (..., C)."""
    return (x - mean) / np.sqrt(var + epsilon) * gamma + beta


def activation(x: Array, kind: str) -> Array:
    """gelu_tanh as x sigmoid(2u), silu as a quotient; the others are the definition's."""
    if kind == "gelu_tanh":
        return x * sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x)))
    if kind == "silu":
        return x / (1.0 + np.exp(-x))  # exp(-x) overflows to infinity where the quotient is 0
    return DEFINITION.activation(x, kind)


def product(a: Array, b: Array, order: np.ndarray, blocks: int) -> Array:
    """a @ b with its terms in that order, in blocks that are added up in pairs. Shapes: (..., I, K), (..., K, J)."""
    a, b = a[..., order], b[..., order, :]
    parts = [
        np.matmul(a[..., piece], b[..., piece, :])
        for piece in np.array_split(np.arange(len(order)), blocks)
        if len(piece)
    ]
    return in_pairs(parts)


def in_pairs(parts: list[Array]) -> Array:
    """The sum of arrays, of neighbours first."""
    while len(parts) > 1:
        rest = parts[len(parts) - len(parts) % 2 :]
        parts = [a + b for a, b in zip(parts[:-1:2], parts[1::2], strict=False)] + rest
    return parts[0]


@dataclass(frozen=True)
class Reordered:
    """The forms whose order is drawn; shapes and arguments are those of the definition."""

    seed: int

    def order(self, length: int, what: str) -> np.ndarray:
        """An order of so many terms; another one for each use."""
        if self.seed == 0:
            return np.arange(length)[::-1]
        return np.random.default_rng([self.seed, length, zlib.crc32(what.encode())]).permutation(length)

    @property
    def blocks(self) -> int:
        """How many blocks a product is made in."""
        return 1 + self.seed % 4

    def dense(self, x: Array, w: Array, b: Array | None = None) -> Array:
        """A linear map, from blocks of permuted channels."""
        y = product(x.reshape(-1, w.shape[0]), w, self.order(w.shape[0], "dense"), self.blocks)
        y = y if b is None else y + b
        return y.reshape(*x.shape[:-1], w.shape[1])

    def conv2d(self, x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: str = "same") -> Array:
        """Convolution, as one product of patches or as a sum of products of shifted images."""
        kh, kw, channels, width = w.shape
        views = shifted(x, (kh, kw), stride, padding, 0.0)  # type: ignore[arg-type]
        if self.seed % 2 == 0:
            return self.dense(np.concatenate(views, axis=-1), w.reshape(kh * kw * channels, width), b)
        taps = self.order(kh * kw, "taps")
        y = in_pairs([np.matmul(views[each], w[each // kw, each % kw]) for each in taps])
        return y if b is None else y + b

    def depthwise_conv2d(
        self, x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: str = "same"
    ) -> Array:
        """Depthwise convolution with its window in another order, added up in pairs."""
        kh, kw, _ = w.shape
        views = shifted(x, (kh, kw), stride, padding, 0.0)  # type: ignore[arg-type]
        y = in_pairs([views[each] * w[each // kw, each % kw] for each in self.order(kh * kw, "taps")])
        return y if b is None else y + b

    def avg_pool(
        self, x: Array, *, size: int = 2, stride: int = 2, padding: str = "same", padded_zeros: str = "excluded"
    ) -> Array:
        """Average pool with its window in another order."""

        def total(values: Array) -> Array:
            views = shifted(values, (size, size), stride, padding, 0.0)  # type: ignore[arg-type]
            return in_pairs([views[each] for each in self.order(size * size, "taps")])

        if padded_zeros == "counted":
            return total(x) * x.dtype.type(1 / size**2)
        return total(x) / total(np.ones((1, *x.shape[1:3], 1), x.dtype))

    def global_avg_pool(self, x: Array) -> Array:
        """The mean over positions in another order, one axis after the other where the seed is odd."""
        if self.seed % 2:
            x = x[:, :, self.order(x.shape[2], "columns"), :]
            return np.mean(np.mean(x, axis=2), axis=1)  # (N, H, W, C) -> (N, H, C) -> (N, C)
        positions = x.reshape(x.shape[0], -1, x.shape[3])  # (N, H*W, C)
        return np.mean(positions[:, self.order(positions.shape[1], "positions")], axis=1)

    def layer_norm(self, x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
        """LayerNorm with permuted sums and the factor first."""
        order = self.order(x.shape[-1], "norm")
        centred = x - np.mean(x[..., order], axis=-1, keepdims=True)
        variance = np.mean(np.square(centred)[..., order], axis=-1, keepdims=True)
        return centred * (gamma / np.sqrt(variance + epsilon)) + beta

    def softmax(self, x: Array) -> Array:
        """Softmax as a product with the reciprocal of a permuted sum."""
        e = np.exp(x - np.max(x, axis=-1, keepdims=True))
        return e * (1.0 / np.sum(e[..., self.order(x.shape[-1], "softmax")], axis=-1, keepdims=True))

    def squeeze_excite(
        self, x: Array, reduce: Mapping[str, Array], expand: Mapping[str, Array], *, activation: str
    ) -> Array:
        """Squeeze-and-excitation from the forms above."""
        hidden = DEFINITION.activation(self.dense(self.global_avg_pool(x), **reduce), activation)
        return x * sigmoid(self.dense(hidden, **expand))[:, None, None, :]

    def relative_attention(
        self,
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
        """Attention with the scale at another site and permuted sums over channels and keys."""
        logits = product(q, np.swapaxes(k, 2, 3), self.order(q.shape[3], "channels"), self.blocks)
        logits = logits * scale  # the query or the key is not scaled, which is the same
        if bias is not None and add == "pre_softmax":
            logits = logits + (bias * scale if scale_site == "logits_and_bias" else bias)
        if key_mask is not None:
            shown = key_mask.reshape(-1, 1, 1, k.shape[2])
            logits = np.where(shown, logits, np.full_like(logits, -math.inf))
        weights = self.softmax(tap("logits", logits))
        if bias is not None and add == "post_softmax":
            weights = weights + (bias if key_mask is None else np.where(shown, bias, np.zeros_like(bias)))
        return product(tap("weights", weights), v, self.order(k.shape[2], "keys"), self.blocks)

    def linear_attention(self, q: Array, k: Array, v: Array) -> Array:
        """Linear attention with permuted keys, divided before the last product."""

        def phi(t: Array) -> Array:
            return np.where(t > 0, t + 1.0, np.exp(np.minimum(t, 0)))

        q, k = phi(q), phi(k)
        order = self.order(k.shape[2], "keys")
        total = np.sum(q * np.sum(k[:, :, order], axis=2, keepdims=True), axis=-1, keepdims=True)  # (N, heads, Q, 1)
        return np.matmul(q / total, product(np.swapaxes(k, 2, 3), v, order, self.blocks))
