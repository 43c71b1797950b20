"""Normalisation over channels."""

from __future__ import annotations

from coatref.registry import Array, namespace


def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Array:
    """BatchNorm with given (running) statistics, as at inference.

    y[..., c] = gamma[c] (x[..., c] - mean[c]) / sqrt(var[c] + epsilon) + beta[c]

    Args:
        x: (..., C).
        gamma: (C,).
        beta: (C,).
        mean: (C,), running mean.
        var: (C,), running variance (biased or not is the trainer's business).
        epsilon: added to the variance.

    Returns:
        (..., C), the dtype of x.
    """
    xp = namespace(x)
    return (x - mean) * (gamma / xp.sqrt(var + epsilon)) + beta


def layer_norm(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
    """LayerNorm over the channels of each position.

    y[..., c] = gamma[c] (x[..., c] - m) / sqrt(v + epsilon) + beta[c], with m and v the mean and the biased variance of
    x[..., :]. The variance is taken of the centred values, which loses nothing when the mean is large.

    Shapes: (..., C), gamma and beta (C,) -> (..., C).
    """
    xp = namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)  # (..., C)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)  # (..., 1)
    return centred / xp.sqrt(variance + epsilon) * gamma + beta
