"""The matrix products of a network: shapes and numbers, from the spec alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from coatref import Spec
from coatref.params import tensor_tree
from coatref.specification.grids import grids
from coatref.specification.parts import ConvStem, MBConv, Transformer

Shape = tuple[int, int, int, int]  # (products of one call, rows, inner length, columns)


@dataclass(frozen=True)
class Layer:
    """The products of one stage, and the multiply-adds of its depthwise convolutions, which are none."""

    products: Counter[Shape]
    depthwise: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the products alone."""
        return sum(count * math.prod(shape) for shape, count in self.products.items())


def stages(spec: Spec, height: int, width: int) -> dict[str, Layer]:
    """Every stage ("s0", "s1", ..., "head") of one image. Convolutions count as products of unfolded windows."""
    spec = spec.replace(image_size=(height, width))
    grid, tree = grids(spec, height, width), tensor_tree(spec)
    assert isinstance(spec.stem, ConvStem)  # of every network that is measured
    stem = [tree["s0"][f"conv{number + 1}"]["w"].shape for number in range(len(spec.stem.widths))]
    positions = math.prod(grid["s0"])
    found = {"s0": Layer(Counter((1, positions, math.prod(shape[:-1]), shape[-1]) for shape in stem), 0)}
    before = grid["s0"]
    for block in spec.blocks():
        stage, _, index = block.name.partition(".")
        part = tree[stage][int(index)]
        layer = block_layer(block, part, math.prod(before), math.prod(grid[block.name]))
        kept = found.get(stage, Layer(Counter(), 0))
        found[stage] = Layer(kept.products + layer.products, kept.depthwise + layer.depthwise)
        before = grid[block.name]
    head = [part["w"].shape for part in tree["head"].values() if "w" in part]
    return found | {"head": Layer(Counter((1, 1, *shape) for shape in head), 0)}


def block_layer(block: Any, tree: Any, before: int, here: int) -> Layer:
    """One block that turns `before` positions into `here`."""
    run, products, depthwise = block.run, Counter[Shape](), 0
    for path, shape in kernels(tree).items():
        rows = here
        if path[0] == "depthwise":
            depthwise += math.prod(shape) * here
            continue
        inner, columns = shape
        if path[0] == "se":
            rows = 1
        if path[0] == "expand" and isinstance(run, MBConv) and block.stride == 2 and run.stride_at == "depthwise":
            rows = before
        products[(1, rows, inner, columns)] += 1
    if isinstance(run, Transformer):
        inner, size = tree["attn"]["q"]["w"].shape[1], run.attention.head_size
        products[(inner // size, here, size, here)] += 1  # queries with keys
        products[(inner // size, here, here, size)] += 1  # weights with values
    return Layer(products, depthwise)


def kernels(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Every kernel of a block: its path and shape."""
    found: dict[tuple[str, ...], tuple[int, ...]] = {}
    for name, part in tree.items():
        if name == "w":
            found[path] = part.shape
        elif hasattr(part, "items"):
            found |= kernels(part, (*path, name))
    return found
