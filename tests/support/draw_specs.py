"""A Hypothesis strategy for whole networks: every choice of every part, at sizes that compute in milliseconds.

A spec is built from the image on, and each part is drawn among what the grid it gets has a meaning for, so that nothing
is drawn in vain. The first choice everywhere is the paper's, and the fewest blocks come first: that is what a failure
shrinks to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from hypothesis import strategies as st

from coatref.errors import SizeError
from coatref.images import Preprocessing
from coatref.specification import parts
from coatref.specification.fields import hints
from coatref.specification.grids import Grid, block_grid, output_length, stem_grid
from coatref.specification.spec import Block, Spec

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[Any]], Any]

KERNELS = (3, 1, 5, 2, 4)
POOL_SIZES = (2, 3, 1, 4)
PADDINGS: tuple[Literal["same", "symmetric", "valid"], ...] = ("same", "symmetric", "valid")
EPSILONS = (1e-5, 1e-3, 1e-6, 0.1)
WIDTHS = (8, 6, 4, 10, 9, 12, 5, 7, 3, 2)
LENGTHS = (8, 6, 7, 9, 5, 10, 11, 4, 13, 3, 2)  # of the image's sides
MOST_POSITIONS = 36  # queries of one attention, so that a network stays small


class Drawn(NamedTuple):
    """A network to run: its spec and the seed of its parameters and images."""

    spec: Spec
    seed: int

    def images(self, batch: int = 2) -> np.ndarray:
        """Images of the spec's size, (batch, H, W, channels) in float64, no two alike; float32 holds them exactly."""
        random = np.random.default_rng([self.seed, 1])
        shape = (batch, *self.spec.image_size, self.spec.channels)
        return random.normal(0.0, 1.0, shape).astype(np.float32).astype(np.float64)


def choice(draw: Draw, options: Sequence[T]) -> T:
    """One of the options, the first where a failure shrinks to it."""
    drawn: T = draw(st.sampled_from(options))
    return drawn


def choices(draw: Draw, cls: type, *but: str) -> dict[str, Any]:
    """A drawn value for every field of a record that is a closed choice, except those named, the default first."""
    found: dict[str, Any] = {}
    for name, hint in hints(cls).items():
        if name in but or name == "kind":
            continue
        options = options_of(hint)
        if options is not None:
            default = getattr(cls, name, options[0])
            found[name] = choice(draw, sorted(options, key=lambda option: option != default))
    return found


def options_of(hint: Any) -> list[Any] | None:
    """Every value of a `Literal` or a bool, with None where the hint allows it; None for any other type."""
    if hint is bool:
        return [True, False]
    arguments = get_args(hint)
    if type(None) in arguments:
        inner = options_of(next(argument for argument in arguments if argument is not type(None)))
        return None if inner is None else [None, *inner]
    if arguments and all(isinstance(argument, (str, int)) for argument in arguments):
        return list(arguments)
    return None


def norms(draw: Draw, first: Literal["batch", "layer"]) -> parts.Norm:
    """A norm, of either kind and with any epsilon."""
    kinds: list[Literal["batch", "layer"]] = ["batch", "layer"] if first == "batch" else ["layer", "batch"]
    return parts.Norm(kind=choice(draw, kinds), epsilon=choice(draw, EPSILONS))


def layer_scales(draw: Draw) -> parts.LayerScale | None:
    """A layer scale or none."""
    if choice(draw, [True, False]):
        return None
    return parts.LayerScale(initial=choice(draw, (0.1, 1e-6)), **choices(draw, parts.LayerScale))


def pools(draw: Draw, windows: Sequence[tuple[int, Literal["same", "symmetric", "valid"]]]) -> parts.Pool:
    """A pool of one of the given (size, padding)."""
    size, padding = choice(draw, windows)
    kind: Literal["max", "avg"] = choice(draw, ("max", "avg"))
    return parts.Pool(kind=kind, size=size, padding=padding, **choices(draw, parts.Pool, "padding"))


def pool_windows(grid: Grid, wanted: Grid | None = None) -> list[tuple[int, Literal["same", "symmetric", "valid"]]]:
    """Every (size, padding) of a pool of stride 2 that leaves something of a grid, or leaves exactly `wanted`."""

    def left(size: int, padding: Literal["same", "symmetric", "valid"]) -> Grid:
        return output_length(grid[0], size, 2, padding), output_length(grid[1], size, 2, padding)

    windows = itertools.product(POOL_SIZES, PADDINGS)
    return [window for window in windows if (left(*window) == wanted if wanted else min(left(*window)) >= 1)]


def image_and_stem(draw: Draw) -> tuple[Grid, parts.Stem]:
    """An image size and a stem that leaves something of it."""
    if choice(draw, ("conv", "patch")) == "patch":
        patch = choice(draw, (2, 1, 3))
        rows, columns = choice(draw, (4, 3, 5, 2, 6, 1)), choice(draw, (3, 4, 5, 2, 6, 1))
        stem = parts.PatchStem(patch=patch, width=choice(draw, WIDTHS), **choices(draw, parts.PatchStem))
        return (patch * rows, patch * columns), stem
    size = (choice(draw, LENGTHS), choice(draw, LENGTHS[1:] + LENGTHS[:1]))
    layers = choice(draw, (2, 1, 3))
    widths = tuple(draw(st.permutations(WIDTHS))[:layers])
    kernel, padding = choice(draw, KERNELS), choice(draw, get_args(parts.Padding))
    conv = parts.ConvStem(
        widths=widths,
        kernel=kernel,
        padding=padding,
        norm=norms(draw, "batch"),
        bias=tuple(choice(draw, (True, False)) for _ in range(layers)),
        **choices(draw, parts.ConvStem, "padding"),
    )
    return size, conv if min(stem_grid(conv, size)) >= 1 else replace(conv, padding="same")


def kernels(draw: Draw, grid: Grid, strides: set[int]) -> tuple[int, parts.Padding]:
    """Kernel and padding of a depthwise convolution that gives ceil(length / stride) positions or, with stride 2, fewer."""

    def fits(kernel: int, padding: parts.Padding) -> bool:
        lengths = {(n, stride, output_length(n, kernel, stride, padding)) for n in grid for stride in strides}
        return all(found == n if stride == 1 else found >= 1 for n, stride, found in lengths)

    every = [window for window in itertools.product(KERNELS, get_args(parts.Padding)) if fits(*window)]
    return choice(draw, every)


def mbconvs(draw: Draw, place: dict[str, Any], grid: Grid, width: int, new_width: int) -> parts.MBConv:
    """A run of MBConv blocks whose shortcut still lacks its pool."""
    chosen = choices(draw, parts.MBConv, "stride", "padding")
    after = _halved(grid) if place["stride"] == 2 else grid
    outer = place["stride"] == 2 and place["depth"] == 1 and chosen["stride_at"] == "depthwise"
    kernel, padding = kernels(draw, grid if outer else after, {2} if outer else {1})
    squeeze_excite = None
    if choice(draw, (True, True, False)):
        squeeze_excite = parts.SqueezeExcite(
            ratio=choice(draw, (0.25, 0.5, 1.0)),
            divisor=choice(draw, (8, 2, 3)),
            **choices(draw, parts.SqueezeExcite),
        )
    return parts.MBConv(
        **place,
        **chosen,
        width=new_width,
        kernel=kernel,
        padding=padding,
        expansion=choice(draw, (4.0, 1.0, 1.5, 2.0)),
        expansion_divisor=choice(draw, (8, 2, 3)),
        main_pool=parts.Pool() if chosen["stride_at"] == "pool" else None,
        pre_norm=norms(draw, "batch"),
        inner_norm=norms(draw, "batch"),
        squeeze_excite=squeeze_excite,
        shrink_norm=choice(draw, (None, True)) and norms(draw, "batch"),
        layer_scale=layer_scales(draw),
    )
