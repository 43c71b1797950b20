"""Squeeze-and-excitation (Hu et al. 2018), Sec. 2.2 and Table 3 of the paper."""

from __future__ import annotations

from collections.abc import Mapping

from coatref.ops.activation import activation as apply_activation
from coatref.ops.activation import sigmoid
from coatref.ops.dense import dense
from coatref.ops.pooling import global_avg_pool
from coatref.registry import Array, namespace


def squeeze_excite(x: Array, reduce: Mapping[str, Array], expand: Mapping[str, Array], *, activation: str) -> Array:
    """Scale each channel by a gate computed from the means of all channels.

    y = x * sigmoid(expand(act(reduce(mean over positions of x))))

    Args:
        x: (N, H, W, C).
        reduce: dense layer {"w": (C, hidden), "b": (hidden,)}, "b" optional.
        expand: dense layer {"w": (hidden, C), "b": (C,)}, "b" optional.
        activation: between the two, by name.

    Returns:
        (N, H, W, C), the dtype of x.
    """
    means = global_avg_pool(x)  # (N, H, W, C) -> (N, C)
    gate = sigmoid(dense(apply_activation(dense(means, **reduce), activation), **expand))  # (N, hidden) -> (N, C)
    return x * namespace(x).reshape(gate, (gate.shape[0], 1, 1, gate.shape[1]))
