"""Counting: trained parameters and multiply-adds of a spec, from shapes alone."""

from __future__ import annotations

import math

from coatref.params import tensor_tree
from coatref.specification.grids import Grid, grids
from coatref.specification.parts import ConvStem, Transformer
from coatref.specification.spec import Block, Spec
from coatref.tensors import Tree
from coatref.tree import flatten


def num_parameters(spec: Spec) -> int:
    """Number of trained scalars; BatchNorm's running statistics are not trained."""
    return sum(math.prod(tensor.shape) for _, tensor in flatten(tensor_tree(spec)) if tensor.trained)


def multiply_adds(spec: Spec, height: int, width: int) -> int:
    """Multiplications of all convolutions, dense layers and attention products, for one image.

    A kernel of shape (..., C, D) costs its number of entries at each output position. The bias MLP, which runs once for a
    whole batch, is counted once; the gather of Eq. (3)'s bias multiplies nothing.

    Raises:
        SizeError: the size has no meaning under the spec.
    """
    spec = spec.replace(image_size=(height, width))
    grid, tree = grids(spec, height, width), tensor_tree(spec)
    total = sum(kernel_entries(tree["head"], name) for name in tree["head"] if name != "norm")
    total += stem_multiply_adds(spec, tree["s0"], height, width)
    before = grid["s0"]
    for block in spec.blocks():
        stage, _, index = block.name.partition(".")
        total += block_multiply_adds(block, tree[stage][int(index)], before, grid[block.name])
        before = grid[block.name]
    return total


def kernel_entries(tree: Tree, *path: str) -> int:
    """Number of entries of a kernel in a tree of tensors, 0 where there is none."""
    for name in path:
        if name not in tree:
            return 0
        tree = tree[name]
    shape: tuple[int, ...] = tree["w"].shape
    return math.prod(shape)


def stem_multiply_adds(spec: Spec, tree: Tree, height: int, width: int) -> int:
    """Multiply-adds of the stem; after its first convolution the grid stays."""
    positions = math.prod(grids(spec, height, width)["s0"])
    layers = len(spec.stem.widths) if isinstance(spec.stem, ConvStem) else 1
    return positions * sum(kernel_entries(tree, f"conv{number}") for number in range(1, layers + 1))


def block_multiply_adds(block: Block, tree: Tree, before: Grid, after: Grid) -> int:
    """Multiply-adds of one block that turns the grid `before` into the grid `after`."""
    run, here = block.run, math.prod(after)
    total = kernel_entries(tree, "shortcut") * here
    if isinstance(run, Transformer):
        total += attention_multiply_adds(run, tree["attn"], after)
        return total + here * sum(kernel_entries(tree, "ffn", name) for name in ("expand", "shrink"))
    expand_at = math.prod(before) if block.stride == 2 and run.stride_at == "depthwise" else here
    total += kernel_entries(tree, "expand") * expand_at
    total += (kernel_entries(tree, "depthwise") + kernel_entries(tree, "shrink")) * here
    total += here * sum(kernel_entries(tree, "ffn", name) for name in ("expand", "shrink"))
    return total + sum(kernel_entries(tree, "se", name) for name in ("reduce", "expand"))  # once per image


def attention_multiply_adds(run: Transformer, tree: Tree, grid: Grid) -> int:
    """Multiply-adds of the projections, of the two products with the keys and values, and of the bias MLP."""
    spec, positions = run.attention, math.prod(grid)
    inner: int = tree["q"]["w"].shape[1]
    total = positions * sum(kernel_entries(tree, name) for name in ("q", "k", "v", "o"))
    if spec.form == "linear":
        return total + positions * inner * (2 * spec.head_size + 1)  # phi(k)^T v, phi(q) times it, and the normaliser
    keys = positions if spec.window is None else math.prod(spec.window)
    offsets = math.prod(2 * side - 1 for side in (spec.window or grid))
    mlp = sum(kernel_entries(tree, "relative_bias", name) for name in ("hidden", "out"))
    return total + 2 * positions * keys * inner + offsets * mlp
