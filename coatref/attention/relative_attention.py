"""Multi-head attention with a static relative bias: Eq. (2) and both forms of Eq. (3)."""

from __future__ import annotations

import math
from typing import Literal, get_args

from coatref.errors import InputError, ShapeError
from coatref.ops.activation import softmax
from coatref.ops.dense import matmul
from coatref.registry import Array, namespace
from coatref.tap import Tap, no_tap

ScaleSite = Literal["query", "key", "query_and_key", "logits", "logits_and_bias"]


def relative_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    *,
    scale: float = 1.0,
    scale_site: ScaleSite = "query",
    add: Literal["pre_softmax", "post_softmax"] = "pre_softmax",
    key_mask: Array | None = None,
    tap: Tap = no_tap,
) -> Array:
    """Attention of every query to every key, with a bias for each pair.

    pre_softmax, the form the paper uses:   y_i = sum_j softmax_j(scale q_i.k_j + bias_ij) v_j
    post_softmax, its other form:           y_i = sum_j (softmax_j(scale q_i.k_j) + bias_ij) v_j

    Eq. (3) has neither heads nor a scale; both are in every implementation. `bias` is the gathered one, so any bias can
    be put in, not only one that depends on the offset.

    Args:
        q: (N, heads, Q, D).
        k: (N, heads, K, D).
        v: (N, heads, K, D).
        bias: (heads, Q, K), (1, Q, K) for one bias shared by all heads, or None for plain attention.
        scale: usually 1/sqrt(D).
        scale_site: what is multiplied by it: q, k, both (by its root), their product, or the product with the bias
            added ("logits_and_bias"; the same as "logits" where the bias is added after the softmax).
        add: before or after the softmax.
        key_mask: bool, (K,) or (N, K); False hides a key. A query with no key left gives NaN.
        tap: sees "logits" and "weights", both (N, heads, Q, K).

    Returns:
        (N, heads, Q, D), the dtype of q.

    Raises:
        ShapeError: the shapes of q, k, v, bias and key_mask do not match.
        InputError: scale_site or add is none of the choices.
    """
    check_shapes(q, k, v, bias, key_mask)
    if scale_site not in get_args(ScaleSite) or add not in ("pre_softmax", "post_softmax"):
        raise InputError(
            f"relative_attention scales at {', '.join(get_args(ScaleSite))} and adds pre_softmax or post_softmax, got "
            f"{scale_site!r:.80} and {add!r:.80}."
        )
    xp = namespace(q)
    if scale_site == "query":
        q = q * scale
    elif scale_site == "key":
        k = k * scale
    elif scale_site == "query_and_key":
        q, k = q * math.sqrt(scale), k * math.sqrt(scale)
    logits = matmul(q, xp.permute_dims(k, (0, 1, 3, 2)))  # (N, heads, Q, D) @ (N, heads, D, K) -> (N, heads, Q, K)
    if scale_site == "logits":
        logits = logits * scale
    if bias is not None and add == "pre_softmax":
        logits = logits + bias
    if scale_site == "logits_and_bias":
        logits = logits * scale
    if key_mask is not None:
        shown = xp.reshape(key_mask, (-1, 1, 1, k.shape[2]))  # (K,) or (N, K) -> (1 or N, 1, 1, K)
        logits = xp.where(shown, logits, xp.full_like(logits, -math.inf))
    weights = softmax(tap("logits", logits))
    if bias is not None and add == "post_softmax":
        added = xp.broadcast_to(bias, weights.shape)
        if key_mask is not None:
            added = xp.where(shown, added, xp.zeros_like(added))
        weights = weights + added
    return matmul(tap("weights", weights), v)  # (N, heads, Q, K) @ (N, heads, K, D) -> (N, heads, Q, D)


def check_shapes(q: Array, k: Array, v: Array, bias: Array | None, key_mask: Array | None) -> None:
    """Refuse q, k, v, bias and mask whose shapes do not belong together."""
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ShapeError(
            f"relative_attention takes q (N, heads, Q, D) and k, v (N, heads, K, D), got {q.shape}, {k.shape}, {v.shape}."
        )
    if bias is not None and tuple(bias.shape) not in (
        (q.shape[1], q.shape[2], k.shape[2]),
        (1, q.shape[2], k.shape[2]),
    ):
        raise ShapeError(
            f"relative_attention: bias must be (heads, Q, K) = {(q.shape[1], q.shape[2], k.shape[2])} or have 1 head, "
            f"got {bias.shape}."
        )
    if key_mask is not None and tuple(key_mask.shape) not in ((k.shape[2],), (q.shape[0], k.shape[2])):
        raise ShapeError(
            f"relative_attention: key_mask must be (K,) or (N, K) = {(q.shape[0], k.shape[2])}, got {key_mask.shape}."
        )
