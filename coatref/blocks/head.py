"""The head: global average pool and classifier."""

from __future__ import annotations

from typing import Any

from coatref import tensors
from coatref.blocks.common import norm
from coatref.primitives import Primitives
from coatref.registry import Array
from coatref.specification.parts import Head
from coatref.tap import Tap, no_tap
from coatref.tensors import Tree


def head(p: Tree, x: Array, spec: Head, *, ops: Primitives, tap: Tap = no_tap) -> Array:
    """Pool over all positions, then classify (Fig. 4: "Global Pool", "FC").

    A norm stands before or after the pool (the two differ), and a dense layer with an activation before the classifier,
    where the spec has them.

    Args:
        p: see `head_tensors`.
        x: (N, H, W, C).
        spec: norm, order, hidden layer and classes.
        ops: the functions to compute with.
        tap: sees "norm", "pool", "hidden" and "hidden_act".

    Returns:
        (N, classes), the logits; a softmax, where the spec has one, is applied by `coatref.forward`.
    """
    if spec.norm is not None and spec.order == "norm_then_pool":
        x = tap("norm", norm(p["norm"], x, spec.norm, ops))
    x = tap("pool", ops.global_avg_pool(x))  # (N, H, W, C) -> (N, C)
    if spec.norm is not None and spec.order == "pool_then_norm":
        x = tap("norm", norm(p["norm"], x, spec.norm, ops))
    if spec.hidden is not None:
        x = tap("hidden", ops.dense(x, **p["hidden"]))  # (N, C) -> (N, hidden)
        x = tap("hidden_act", ops.activation(x, spec.hidden.activation))
    return ops.dense(x, **p["classifier"])  # (N, hidden) -> (N, classes)


def head_tensors(spec: Head, width: int) -> dict[str, Any]:
    """The parameter tree of a head on features of `width` channels."""
    tree: dict[str, Any] = {}
    if spec.norm is not None:
        tree["norm"] = tensors.norm(spec.norm, width)
    if spec.hidden is not None:
        hidden = spec.hidden.width or width
        tree["hidden"] = tensors.layer((width, hidden), True)
        width = hidden
    tree["classifier"] = tensors.layer((width, spec.classes), spec.bias)
    return tree
