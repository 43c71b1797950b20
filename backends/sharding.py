"""A network over many devices with JAX: how each parameter is split over a mesh, and what each device then holds.

Two axes of a `jax.sharding.Mesh`, either of which may be left out or have length 1. Over "data" the batch is split, and every
device has all parameters. Over "model" the layers are split in pairs (Shoeybi et al. 2019, Megatron-LM): the first of a pair
by its output channels, so that what lies between works on channels of its own, the second by its input channels, so that
what comes out is a sum over the devices:

    pair                                           between them, by channel or head
    s0: conv1 -> conv2                             norm1
    MBConv: expand -> shrink                       expand_norm, depthwise, depthwise_norm, se.expand; se.reduce sums
    attention: q, k, v (or qkv) -> o               relative-bias tables of each head, or bias
    feed-forward: ffn.expand -> ffn.shrink
    head: hidden -> classifier

A classifier alone is split by its input. All else is small and on every device: norms of the block's own width, layer
scales, projections of shortcuts, the stem of patches, ConvNeXt's depthwise convolution. What runs from block to block stays
whole, then, and a forward pass has one sum for each pair and one for each squeeze-excite: 26 in coatnet_0. (With the
projections split as well XLA would split the grids from block to block and gather them before every layer: 44 sums and 28
gathers.)

Prepared parameters hold q, k and v as one layer of columns [q | k | v], of which a device gets a run of columns, not its
heads' q, k and v. XLA moves what lies on the wrong device by a few permutations, in each block fewer numbers than one of
its two sums sends (coatnet_0 on 4x2: 37 thousand numbers in all, and 92 thousand in sums). The layer split by its input would need no permutations, but another sum, of three times
the width. The definition's q, k and v need neither: on many devices with slow links prefer it.

The program is the same as for one device: `jax.jit(coatref.forward)` on parameters and images placed so; XLA divides it and
puts in the sums. `docs/scale.md` shows it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from coatref.params import Params, tensor_tree
from coatref.prepared import Prepared
from coatref.specification.grids import grids
from coatref.specification.parts import Attention, ConvNeXt, ConvStem, MBConv, Transformer
from coatref.specification.spec import Block, Spec
from coatref.tree import flatten, map_named

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh, Mesh, NamedSharding

# Ends of dotted names -> the axis that is split; negative, so that it is the same for kernels of any kind.
OUTPUT, INPUT = -1, -2
AXES = {
    "expand.w": OUTPUT,
    "expand.b": OUTPUT,
    "expand_norm": OUTPUT,
    "depthwise.w": OUTPUT,
    "depthwise.b": OUTPUT,
    "depthwise_norm": OUTPUT,
    "se.reduce.w": INPUT,
    "shrink.w": INPUT,
}
STEM_AXES = {"conv1.w": OUTPUT, "conv1.b": OUTPUT, "norm1": OUTPUT, "conv2.w": INPUT}
HEAD_AXES = {"hidden.w": OUTPUT, "hidden.b": OUTPUT, "classifier.w": INPUT}
ATTENTION_AXES = {
    **{f"{name}.{part}": OUTPUT for name in ("q", "k", "v", "qkv") for part in ("w", "b")},
    "o.w": INPUT,
    "relative_bias.table": -3,
    "relative_bias.out.w": OUTPUT,
    "relative_bias.out.b": OUTPUT,
    "bias": -3,
}


def shardings(params: Params | Prepared, mesh: Mesh | AbstractMesh, *, model: str = "model") -> Any:
    """Where each parameter goes: a tree like `params`, for `jax.device_put(params, shardings(params, mesh))`.

    A parameter whose axis has a length that the mesh axis does not divide is put on every device whole; heads are never
    taken apart, so where their number is not divisible all of the attention is. The numbers that the network computes are
    those of one device, to within rounding, for every mesh.

    Args:
        params: parameters, prepared or not; of arrays or of shapes alone (`abstract`).
        mesh: the devices, or their number alone (an `AbstractMesh`).
        model: name of the mesh axis that the layers are split over; a mesh without it has all parameters everywhere.

    Returns:
        `params` with a `jax.sharding.NamedSharding` in place of every array.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    parts = dict(mesh.shape).get(model, 1)
    blocks = {block.name: block for block in params.spec.blocks()}

    def place(name: str, array: Any) -> NamedSharding:
        axis = split_axis(name, tuple(array.shape), params.spec, blocks, parts)
        if axis is None:
            return NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
        return NamedSharding(mesh, PartitionSpec(*(model if i == axis else None for i in range(len(array.shape)))))  # type: ignore[no-untyped-call]

    named = dict(flatten(map_named(place, params)))
    return jax.tree.unflatten(jax.tree.structure(params), list(named.values()))


def split_axis(name: str, shape: tuple[int, ...], spec: Spec, blocks: dict[str, Block], parts: int) -> int | None:
    """The axis of a parameter that is split into so many parts, or None."""
    if parts == 1:
        return None
    head, _, rest = name.partition(".")
    if head in ("s0", "head"):
        axes = HEAD_AXES if head == "head" else STEM_AXES
        if head == "s0" and not (isinstance(spec.stem, ConvStem) and len(spec.stem.widths) == 2):
            return None
    else:
        index, _, rest = rest.partition(".")
        run = blocks[f"{head}.{index}"].run
        axes = AXES
        if isinstance(run, ConvNeXt) and rest.startswith("depthwise"):
            return None
        if rest.startswith("attn.") and isinstance(run, Transformer):
            axes, rest = ATTENTION_AXES, rest.removeprefix("attn.")
            if heads_of(blocks[f"{head}.{index}"]) % parts:
                return None
    return divided(rest, shape, axes, parts)


def heads_of(block: Block) -> int:
    """The attention heads of a Transformer block."""
    assert isinstance(block.run, Transformer)
    attention: Attention = block.run.attention
    return attention.head_count(block.input_width, block.run.width)


def divided(name: str, shape: tuple[int, ...], axes: dict[str, int], parts: int) -> int | None:
    """The axis that `axes` has for a name, if `parts` divides its length."""
    matches = [axis for key, axis in axes.items() if f".{name}.".find(f".{key}.") >= 0]
    if not matches or len(shape) < -matches[0]:
        return None
    axis = len(shape) + matches[0]
    return axis if shape[axis] % parts == 0 else None


def images(mesh: Mesh, *, data: str = "data") -> NamedSharding:
    """Where a batch of images goes: split over the mesh axis `data`, the same on all devices of the others."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec(data if data in mesh.shape else None))  # type: ignore[no-untyped-call]


# --- what each device holds ---


def abstract(spec: Spec, dtype: str = "float32") -> Params:
    """The parameters of a spec as shapes and data type alone (`jax.ShapeDtypeStruct`), for 2.44 B of them at no cost."""
    import jax

    kind = jax.numpy.dtype(dtype)
    struct: Any = jax.ShapeDtypeStruct
    return Params(map_named(lambda name, tensor: struct(tensor.shape, kind), tensor_tree(spec)), spec)


def bytes_of_parameters(params: Params | Prepared, mesh: Mesh | AbstractMesh, *, model: str = "model") -> int:
    """Bytes of parameters on each device of a mesh (a `jax.sharding.AbstractMesh` does: no device is needed)."""
    import jax

    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(shardings(params, mesh, model=model)), strict=True)
    return sum(math.prod(each.shard_shape(array.shape)) * array.dtype.itemsize for array, each in leaves)


def numbers_of_activations(spec: Spec, height: int, width: int, parts: int = 1) -> int:
    """Numbers of activations alive at once for one image, at the widest place of the network, split over `parts`.

    Counted block by block from shapes: the residual, and the two largest consecutive values of the branch.

        stem       conv1 and conv2                        C1 P / parts + C2 P
        MBConv     input, expanded before and after       C P + E (P + P') / parts
        attention  input, logits and weights, qkv         D P + (2 heads P^2 + 3 heads d P) / parts
        ffn        input, expanded before and after       D P + 2 E P / parts

    with P the positions of a grid. It is what the definition needs; XLA fuses and reuses, so it may need less.
    """
    positions = {name: math.prod(grid) for name, grid in grids(spec, height, width).items()}
    shapes = {name: tensor.shape for name, tensor in flatten(tensor_tree(spec))}
    most, before = 0, positions["s0"]
    if isinstance(spec.stem, ConvStem):
        most = before * (spec.stem.widths[0] // parts + spec.stem.widths[-1])
    for block in spec.blocks():
        after, wide = positions[block.name], block.input_width
        if isinstance(block.run, MBConv):
            expanded = shapes[f"{block.name}.expand.w"][1]
            grid = before if block.run.stride_at == "depthwise" and block.run.main_pool is None else after
            alive = wide * before + expanded * (grid + after) // parts
        else:
            expanded = shapes[f"{block.name}.ffn.expand.w"][1]
            alive = block.run.width * after + 2 * expanded * after // parts
            if isinstance(block.run, Transformer):
                heads = heads_of(block)
                inner, share = heads * block.run.attention.head_size, parts if heads % parts == 0 else 1
                keys = math.prod(block.run.attention.window) if block.run.attention.window is not None else after
                alive = max(alive, wide * after + (2 * heads * after * keys + 3 * inner * after) // share)
        most, before = max(most, alive), after
    return most
