"""What several blocks share: a norm, a pool and a shortcut by their specs."""

from __future__ import annotations

from coatref import tensors
from coatref.primitives import Primitives
from coatref.registry import Array
from coatref.specification.parts import Norm, Pool
from coatref.specification.spec import Block
from coatref.tap import Tap
from coatref.tensors import Tensor, Tree


def norm(p: Tree, x: Array, spec: Norm, ops: Primitives) -> Array:
    """BatchNorm or LayerNorm over channels, as the spec says. Shapes: (..., C) -> (..., C)."""
    if spec.kind == "batch":
        return ops.batch_norm(x, **p, epsilon=spec.epsilon)
    return ops.layer_norm(x, **p, epsilon=spec.epsilon)


def pool(x: Array, spec: Pool, ops: Primitives) -> Array:
    """A pool of stride 2, as the spec says. Shapes: (N, H, W, C) -> (N, H', W', C)."""
    if spec.kind == "max":
        return ops.max_pool(x, size=spec.size, stride=2, padding=spec.padding)
    return ops.avg_pool(x, size=spec.size, stride=2, padding=spec.padding, padded_zeros=spec.padded_zeros)


def shortcut(p: Tree, x: Array, block: Block, ops: Primitives, tap: Tap) -> Array:
    """Proj(Pool(x)) of Eq. (4) and (5): the pool where the block has a stride, the projection where it has one.

    Shapes: (N, H, W, C) -> (N, H', W', D).
    """
    if block.stride == 2:
        x = pool(x, block.run.shortcut_pool, ops)  # (N, H, W, C) -> (N, H', W', C)
    if block.projected:
        x = ops.dense(x, **p["shortcut"])  # (N, H', W', C) -> (N, H', W', D)
    return tap("shortcut", x)


def shortcut_tensors(block: Block) -> dict[str, dict[str, Tensor]]:
    """Parameters of the shortcut's projection, where there is one."""
    if not block.projected:
        return {}
    return {"shortcut": tensors.layer((block.input_width, block.run.width), block.run.projection_bias)}
