"""Mistakes of the whole: the image, the order and number of blocks, and the parameters as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from coatref.conformance.mistakes.changed import Changed, Flat, shapes
from coatref.conformance.mistakes.edits import (
    Change,
    any_of,
    chain,
    reading,
    require,
    tapping,
)
from coatref.conformance.mistakes.mistake import Mistake
from coatref.registry import Array, namespace
from coatref.specification.spec import Block, Spec


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    return (*images(), *blocks(), *parameters())


def images() -> tuple[Mistake, ...]:
    """What happens before the network."""

    def of(name: str, clause: str, source: str, edit: Callable[[Array], Array], needs: str = "") -> Mistake:
        def change(changed: Changed) -> Changed:
            height, width = changed.spec.image_size
            require(changed, needs != "channels" or changed.spec.channels > 1, "channels to mix up")
            require(changed, needs != "square" or height == width, "square image")
            return changed.but(image=chain(changed.image, edit))

        return Mistake(name, "image", clause, source, change)

    def memory(x: Array) -> Array:
        xp = namespace(x)
        n, height, width, channels = x.shape
        return xp.permute_dims(xp.reshape(x, (n, channels, height, width)), (0, 2, 3, 1))

    return (
        of("image-bgr", "takes the colours in the order BGR, not RGB", "a common slip: OpenCV reads BGR",
           lambda x: namespace(x).flip(x, axis=3), "channels"),
        of("image-times-255", "takes images from 0 to 255, not normalised ones", "a common slip in preprocessing",
           lambda x: x * 255.0),
        of("image-over-255", "divides images by 255 that are normalised already", "a common slip in preprocessing",
           lambda x: x / 255.0),
        of("image-normalised-twice", "maps images from [0, 1] to [-1, 1] that are normalised already",
           "a common slip: Keras models that rescale inside", lambda x: 2.0 * x - 1.0),
        of("image-transposed", "swaps height and width of the image", "a common slip: cv2 sizes are (width, height)",
           lambda x: namespace(x).permute_dims(x, (0, 2, 1, 3)), "square"),
        of("image-mirrored", "mirrors the image from left to right", "a training augmentation left on",
           lambda x: namespace(x).flip(x, axis=2)),
        of("image-upside-down", "turns the image upside down", "a common slip: bitmaps stored from the bottom",
           lambda x: namespace(x).flip(x, axis=1)),
        of("image-channels-first-view", "reads channels-last images as if they lay channels first in memory",
           "a common slip: view or reshape in place of permute", memory, "channels"),
    )  # fmt: skip


def block_parameters(spec: Spec, name: str) -> dict[str, tuple[int, ...]]:
    """Name within a block -> shape, of its parameters."""
    return {n.removeprefix(f"{name}."): s for n, s in shapes(spec).items() if n.startswith(f"{name}.")}


def alike(spec: Spec) -> list[list[Block]]:
    """The blocks of each run that have the same parameters, from its second block on and the first where it is alike."""
    groups: list[list[Block]] = []
    for block in spec.blocks():
        last = groups[-1][0] if groups else None
        same_run = last is not None and last.run == block.run and last.name.split(".")[0] == block.name.split(".")[0]
        if last is not None and same_run and block_parameters(spec, last.name) == block_parameters(spec, block.name):
            groups[-1].append(block)
        else:
            groups.append([block])
    return [group for group in groups if len(group) > 1]


def renamed(changed: Changed, source: dict[str, str]) -> Changed:
    """Blocks that take the parameters of others: name of block -> name of the block they are taken from."""
    names = {
        f"{block}.{part}": f"{other}.{part}"
        for block, other in source.items()
        for part in block_parameters(changed.spec, block)
    }
    return changed.but(read=chain(changed.read, lambda flat: {name: flat[names.get(name, name)] for name in flat}))


def blocks() -> tuple[Mistake, ...]:
    """Order and number of blocks."""

    def shared(changed: Changed) -> Changed:
        groups = alike(changed.spec)
        require(changed, bool(groups), "two blocks with parameters of the same shapes")
        return renamed(changed, {block.name: group[0].name for group in groups for block in group[1:]})

    def swapped(changed: Changed) -> Changed:
        groups = alike(changed.spec)
        require(changed, bool(groups), "two blocks with parameters of the same shapes")
        first, second = groups[-1][0].name, groups[-1][1].name
        return renamed(changed, {first: second, second: first})

    def reversed_order(changed: Changed) -> Changed:
        groups = alike(changed.spec)
        require(changed, bool(groups), "two blocks with parameters of the same shapes")
        return renamed(
            changed,
            {block.name: other.name for group in groups for block, other in zip(group, group[::-1], strict=True)},
        )

    def keeping(changed: Changed, last_only: bool) -> list[tuple[str, str]]:
        """(name, name of the block before) of blocks that change neither grid nor width."""
        found = list(changed.spec.blocks())
        pairs = [
            (block.name, before.name)
            for before, block in pairwise(found)
            if block.stride == 1 and block.input_width == block.run.width
        ]
        require(changed, bool(pairs), "block that keeps grid and width")
        return pairs[-1:] if last_only else pairs[:1]

    def dropped(last: bool) -> Change:
        def change(changed: Changed) -> Changed:
            ((name, before),) = keeping(changed, last)
            return tapping(changed, any_of([name]), lambda n, value, seen: seen[before], keep=any_of([before]))

        return change

    drop = "stochastic depth (App. A.2) left on, as hosein's in evaluation; timm's rw models have 7 blocks where the paper has 5"
    return (
        Mistake("first-keeping-block-dropped", "blocks", "leaves out its first block of stride 1", drop, dropped(False)),
        Mistake("last-block-dropped", "blocks", "leaves out its last block of stride 1", drop, dropped(True)),
        Mistake("blocks-share-parameters", "blocks", "uses the parameters of the first of several equal blocks in all of them",
                "a common slip: a list of one module repeated", shared),
        Mistake("blocks-swapped", "blocks", "swaps the parameters of the first two equal blocks of its last such stage",
                "a common slip in conversion of weights", swapped),
        Mistake("blocks-reversed", "blocks", "takes the equal blocks of each stage in reverse order",
                "a common slip in conversion of weights", reversed_order),
    )  # fmt: skip


def to_bits(bits: int) -> Callable[[Array], Array]:
    """Values rounded to so many significant bits (Veltkamp's splitting)."""

    def edit(array: Array) -> Array:
        eps = float(namespace(array).finfo(array.dtype).eps)
        factor = 2.0 ** (1 - bits) / eps + 1.0  # 2^s + 1, s the bits to drop
        scaled = array * factor
        return scaled - (scaled - array)

    return edit


def to_int8(array: Array) -> Array:
    """Values in steps of the largest divided by 127."""
    xp = namespace(array)
    step = xp.max(xp.abs(array)) / 127.0
    step = xp.where(step == 0.0, xp.ones_like(step), step)
    return xp.round(array / step) * step


def larger_entry(array: Array, factor: float) -> Array:
    """An array whose first entry is multiplied."""
    xp = namespace(array)
    flat = xp.reshape(array, (-1,))
    return xp.reshape(xp.concat([flat[:1] * factor, flat[1:]]), tuple(array.shape))


def parameters() -> tuple[Mistake, ...]:
    """The numbers themselves."""

    def every(edit: Callable[[Array], Array], pattern: str = r".*") -> Change:
        return lambda changed: reading(changed, pattern, lambda name, array: edit(array))

    def last_kernel(edit: Callable[[Array], Array]) -> Change:
        def change(changed: Changed) -> Changed:
            kernels = [name for name in shapes(changed.spec) if name.startswith("s") and name.endswith(".w")]
            return reading(changed, any_of(kernels[-1:]), lambda name, array: edit(array))

        return change

    def first_block(edit: Callable[[Array], Array]) -> Change:
        def change(changed: Changed) -> Changed:
            kernels = [name for name in shapes(changed.spec) if name.startswith("s1.0.") and name.endswith(".w")]
            return reading(changed, any_of(kernels[:1]), lambda name, array: edit(array))

        return change

    def biases_dropped(flat: Flat) -> Flat:
        return {name: array * 0.0 if name.endswith(".b") else array for name, array in flat.items()}

    quantised = "a common slip: a checkpoint stored in a narrower type"
    kernels = r".*\.w"
    return (
        Mistake("parameters-in-float16", "parameters", "has its parameters rounded to the 11 bits of float16", quantised,
                every(to_bits(11))),
        Mistake("parameters-in-bfloat16", "parameters", "has its parameters rounded to the 8 bits of bfloat16", quantised,
                every(to_bits(8))),
        Mistake("kernels-in-int8", "parameters", "has its kernels rounded to 8-bit integers, with one step for each tensor",
                quantised, every(to_int8, kernels)),
        Mistake("kernel-scaled-1-percent", "parameters", "has a kernel, the last before the head, that is larger by 1 %",
                "a damaged or mixed-up checkpoint", last_kernel(lambda w: w * 1.01)),
        Mistake("kernel-entry-1-percent", "parameters", "has one wrong number, larger by 1 %, in the first kernel of s1.0",
                "a damaged checkpoint", first_block(lambda w: larger_entry(w, 1.01))),
        Mistake("biases-not-loaded", "parameters", "has all biases of convolutions and dense layers at 0",
                "a common slip in conversion of weights",
                lambda changed: changed.but(read=chain(changed.read, biases_dropped))),
    )  # fmt: skip
