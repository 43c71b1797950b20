"""Linear attention, option (C) of Sec. 2.1, which the authors tried and dropped."""

from __future__ import annotations

from coatref.ops.dense import matmul
from coatref.registry import Array, namespace


def linear_attention(q: Array, k: Array, v: Array) -> Array:
    """Attention without a softmax, at a cost linear in the number of positions.

    y_i = phi(q_i) (sum_j phi(k_j) v_j^T) / (phi(q_i) . sum_j phi(k_j)),  phi(t) = elu(t) + 1

    The feature map is that of Katharopoulos et al. 2020; the paper does not say which one it tried.

    Shapes: q (N, heads, Q, D), k and v (N, heads, K, D) -> (N, heads, Q, D).
    """
    xp = namespace(q)

    def phi(t: Array) -> Array:
        zero = xp.zeros_like(t)
        return xp.where(t > 0, t + 1.0, xp.exp(xp.minimum(t, zero)))  # the minimum keeps exp from overflowing unused

    q, k = phi(q), phi(k)
    summary = matmul(xp.permute_dims(k, (0, 1, 3, 2)), v)  # (N, heads, D, K) @ (N, heads, K, D) -> (N, heads, D, D)
    total = xp.sum(k, axis=2, keepdims=True)  # (N, heads, 1, D)
    return matmul(q, summary) / xp.sum(q * total, axis=-1, keepdims=True)
