"""A Hypothesis strategy for whole networks: every choice of every part, at sizes that compute in milliseconds.

A spec is built from the image on, and each part is drawn among what has a meaning on the grid that reaches it, so that
nothing is drawn in vain. The first option everywhere is the paper's, and the fewest blocks come first: that is what a
failure shrinks to.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from hypothesis import strategies as st

from coatref import Preprocessing
from coatref.specification import parts
from coatref.specification.fields import hints
from coatref.specification.grids import Grid, output_length, stem_grid
from coatref.specification.spec import Spec

T = TypeVar("T")
Padding = Literal["same", "symmetric", "valid"]
Window = tuple[int, Padding]  # size and padding of a pool, or of a convolution

CONVOLUTIONS: list[Window] = list(itertools.product((3, 1, 5, 2, 4), get_args(parts.Padding)))
POOLS: list[Window] = list(itertools.product((2, 3, 1, 4), get_args(Padding)))
EPSILONS = (1e-5, 1e-3, 1e-6, 0.1)
EXPANSIONS = (4.0, 1.0, 1.5, 2.0)
WIDTHS = (8, 6, 4, 10, 9, 12, 5, 7, 3, 2)
SIDES = (8, 6, 7, 9, 5, 10, 11, 4, 13, 3, 2)  # of an image under a stem of convolutions
PATCHES = (4, 3, 5, 2, 6, 1)  # along a side of an image under a stem of patches


class Drawn(NamedTuple):
    """A network to run: its spec, and the seed of its parameters and images."""

    spec: Spec
    seed: int

    def images(self, batch: int = 2, dtype: str = "float64") -> np.ndarray:
        """Images of the spec's size, (batch, H, W, channels), no two alike: float64 that `dtype` holds exactly."""
        random = np.random.default_rng([self.seed, 1])
        shape = (batch, *self.spec.image_size, self.spec.channels)
        return random.normal(0.0, 1.0, shape).astype(dtype).astype(np.float64)


@st.composite
def specs(draw: st.DrawFn, most_stages: int = 3) -> Drawn:
    """Draw a network of up to `most_stages` stages of up to two runs each, and a seed."""
    return Painter(draw).network(most_stages)


@functools.cache
def below(count: int) -> st.SearchStrategy[int]:
    """Indices of `count` options; made once, as making a strategy takes longer than drawing from it."""
    return st.integers(0, count - 1)


@functools.cache
def closed_choices(cls: type) -> dict[str, list[Any]]:
    """The fields of a part that are closed choices, with their options: the default first, None where it is allowed."""
    found = {}
    for name, hint in hints(cls).items():
        options = options_of(hint)
        if options is not None and name != "kind":
            default = getattr(cls, name, options[0])
            found[name] = sorted(options, key=lambda option, default=default: option != default)  # type: ignore[misc]
    return found


def options_of(hint: Any) -> list[Any] | None:
    """Every value of a `Literal`, a bool or either or None; None for any other type."""
    if hint is bool:
        return [True, False]
    arguments = get_args(hint)
    if len(arguments) == 2 and arguments[1] is type(None):
        inner = options_of(arguments[0])
        return None if inner is None else [None, *inner]
    return list(arguments) if arguments and all(isinstance(each, (str, int)) for each in arguments) else None


def slide(grid: Grid, size: int, stride: int, padding: Padding) -> Grid:
    """The grid that a sliding window makes of one."""
    return output_length(grid[0], size, stride, padding), output_length(grid[1], size, stride, padding)


def pools_to(grid: Grid, wanted: Grid | None = None) -> list[Window]:
    """Every pool of stride 2 that leaves exactly `wanted` of a grid, or anything at all."""
    left = {window: slide(grid, window[0], 2, window[1]) for window in POOLS}
    return [window for window in POOLS if (left[window] == wanted if wanted else min(left[window]) >= 1)]


def after_convolution(grid: Grid, window: Window, stride: int, stride_at: str, pool: Window) -> Grid:
    """The grid that the main branch of an MBConv or ConvNeXt block makes of one."""
    if stride == 2 and stride_at == "pool":
        grid, stride = slide(grid, pool[0], 2, pool[1]), 1
    if stride_at == "expand":
        grid, stride = slide(grid, 1, stride, window[1]), 1
    return slide(grid, window[0], stride, window[1])


class Painter:
    """Draws one network, from the image on; `grid` and `width` are what reaches the part that is drawn next."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.grid: Grid = (1, 1)
        self.width = 1
        self.used: set[int] = set()  # widths; a new one differs from all, so that no two axes can be taken for another

    def one(self, options: Sequence[T]) -> T:
        """One of the options; a failure shrinks to the first."""
        return options[self.draw(below(len(options)))]

    def closed(self, cls: type, *but: str) -> dict[str, Any]:
        """Values of all fields of a part that are closed choices, but for some."""
        return {name: self.one(options) for name, options in closed_choices(cls).items() if name not in but}

    def network(self, most_stages: int) -> Drawn:
        """The whole."""
        image_size, stem = self.stem()
        stages = tuple(
            tuple(self.run() for _ in range(self.one((1, 1, 2)))) for _ in range(self.draw(st.integers(1, most_stages)))
        )
        head = parts.Head(
            classes=self.one((11, 1, 2)),
            norm=self.one((self.norm("layer"), None)),
            hidden=self.one((parts.Hidden(width=self.one((None, 13)), **self.closed(parts.Hidden)), None)),
            **self.closed(parts.Head),
        )
        channels = self.one((3, 1, 2))
        spec = Spec(
            name="drawn",
            image_size=image_size,
            channels=channels,
            stem=stem,
            stages=stages,
            head=head,
            preprocessing=Preprocessing() if channels == 3 else Preprocessing(mean=(0.5,), std=(0.5,)),
        )
        return Drawn(spec, self.draw(st.integers(0, 2**32 - 1)))

    def new_width(self) -> int:
        """A width that no layer has yet, while there are any."""
        width = self.one([width for width in WIDTHS if width not in self.used] or WIDTHS)
        self.used.add(width)
        return width

    def norm(self, kind: str) -> parts.Norm:
        """A norm, by preference of the kind that is the default at its place."""
        kinds = sorted(closed_kinds(parts.Norm), key=lambda each: each != kind)
        return parts.Norm(kind=self.one(kinds), epsilon=self.one(EPSILONS))

    def pool(self, windows: Sequence[Window]) -> parts.Pool:
        """A pool of one of these sizes and paddings."""
        size, padding = self.one(windows)
        kind = self.one(closed_kinds(parts.Pool))
        return parts.Pool(kind=kind, size=size, padding=padding, **self.closed(parts.Pool, "padding"))

    def layer_scale(self) -> parts.LayerScale | None:
        """A layer scale or none."""
        return self.one((None, parts.LayerScale(initial=self.one((0.1, 1e-6)), **self.closed(parts.LayerScale))))

    def stem(self) -> tuple[Grid, parts.Stem]:
        """An image size, and a stem that leaves something of it."""
        stem: parts.Stem
        if self.one(("conv", "patch")) == "patch":
            stem = parts.PatchStem(patch=self.one((2, 1, 3)), width=self.new_width(), **self.closed(parts.PatchStem))
            size = (stem.patch * self.one(PATCHES), stem.patch * self.one(PATCHES[1:]))
        else:
            size = (self.one(SIDES), self.one(SIDES[1:]))
            widths = tuple(self.new_width() for _ in range(self.one((2, 1, 3))))
            kernel, padding = self.one(CONVOLUTIONS)
            stem = parts.ConvStem(
                widths=widths,
                kernel=kernel,
                padding="symmetric" if padding == "symmetric" else "same",
                norm=self.norm("batch"),
                bias=tuple(self.one((True, False)) for _ in widths),
                **self.closed(parts.ConvStem, "padding"),
            )
            if min(stem_grid(stem, size)) < 1:
                stem = replace(stem, padding="same")
        self.grid, self.width = stem_grid(stem, size), stem.width
        return size, stem

    def run(self) -> parts.Run:
        """The next run of blocks, of any kind."""
        depth, stride = self.one((1, 2)), self.one((2, 1) if min(self.grid) > 1 else (1, 1, 2))
        place: dict[str, Any] = {"depth": depth, "stride": stride}
        keeps = self.one((False, False, True))
        kind = self.one(("mbconv", "transformer", "convnext"))
        if kind == "convnext":
            place["width"] = self.width if keeps or self.width > 9 else self.width * self.one((2, 3))
        else:
            place["width"] = self.width if keeps else self.new_width()
        paint: dict[str, Callable[[dict[str, Any]], parts.Run]]
        paint = {"mbconv": self.mbconv, "transformer": self.transformer, "convnext": self.convnext}
        run = paint[kind](place)
        self.width = run.width
        return run

    def convolution(self, place: dict[str, Any], stride_at: str) -> dict[str, Any]:
        """Kernel, padding and pools of a run of convolution blocks; moves on to the grid after it."""
        stride, first = place["stride"], self.grid
        pooled = stride_at == "pool"
        pool = self.pool(pools_to(first)) if pooled else None
        of_pool: Window = (pool.size, pool.padding) if pool else POOLS[0]

        def fits(window: Window) -> bool:
            after = after_convolution(first, window, stride, stride_at, of_pool)
            if place["depth"] > 1 and after_convolution(after, window, 1, stride_at, of_pool) != after:
                return False
            return after == first if stride == 1 else min(after) >= 1 and bool(pools_to(first, after))

        kernel, padding = window = self.one([window for window in CONVOLUTIONS if fits(window)])
        self.grid = after_convolution(first, window, stride, stride_at, of_pool)
        shortcut_pool = self.pool(pools_to(first, self.grid) if stride == 2 else POOLS)
        return {"kernel": kernel, "padding": padding, "main_pool": pool, "shortcut_pool": shortcut_pool}

    def mbconv(self, place: dict[str, Any]) -> parts.MBConv:
        """A run of MBConv blocks."""
        closed = self.closed(parts.MBConv, "stride", "padding")
        squeeze_excite = parts.SqueezeExcite(
            ratio=self.one((0.25, 0.5, 1.0)), divisor=self.one((8, 2, 3)), **self.closed(parts.SqueezeExcite)
        )
        return parts.MBConv(
            **place,
            **closed,
            **self.convolution(place, closed["stride_at"]),
            expansion=self.one(EXPANSIONS),
            expansion_divisor=self.one((8, 2, 3)),
            pre_norm=self.norm("batch"),
            inner_norm=self.norm("batch"),
            squeeze_excite=self.one((squeeze_excite, None)),
            shrink_norm=self.one((None, self.norm("batch"))),
            layer_scale=self.layer_scale(),
        )

    def convnext(self, place: dict[str, Any]) -> parts.ConvNeXt:
        """A run of ConvNeXt blocks."""
        closed = self.closed(parts.ConvNeXt, "stride", "padding")
        return parts.ConvNeXt(
            **place,
            **closed,
            **self.convolution(place, closed["stride_at"]),
            norm=self.norm("layer"),
            expansion=self.one(EXPANSIONS),
            layer_scale=self.layer_scale(),
        )

    def transformer(self, place: dict[str, Any]) -> parts.Transformer:
        """A run of Transformer blocks."""
        closed = self.closed(parts.Transformer, "stride")
        main_pool, shortcut_pool = self.pool(POOLS), self.pool(POOLS)
        if place["stride"] == 2:
            main_pool = self.pool(pools_to(self.grid))
            after = slide(self.grid, main_pool.size, 2, main_pool.padding)
            shortcut_pool = self.pool(pools_to(self.grid, after))
            self.grid = after
            if closed["residual_from"] == "normalised":
                closed["norm_pool_order"] = "norm_then_pool"
        return parts.Transformer(
            **place,
            **closed,
            main_pool=main_pool,
            shortcut_pool=shortcut_pool,
            attention_norm=self.norm("layer"),
            attention=self.attention(place["width"], place["depth"]),
            ffn_norm=self.norm("layer"),
            ffn=parts.FeedForward(expansion=self.one(EXPANSIONS), **self.closed(parts.FeedForward)),
            layer_scale=self.layer_scale(),
        )

    def attention(self, width: int, depth: int) -> parts.Attention:
        """Attention on the grid reached, for a run of that output width."""
        closed, hidden = self.closed(parts.Attention), self.one((5, 4))
        fixed, linear = closed["heads_from"] == "fixed", closed["form"] == "linear"
        divided = {width}  # by the head size
        if closed["heads_from"] == "input":
            divided = {self.width, width} if depth > 1 else {self.width}  # later blocks start from `width`
        sizes = [size for size in (4, 3, 2, 5, 7, 1) if fixed or not any(width % size for width in divided)]
        window = self.one(divisors(self.grid[0])), self.one(divisors(self.grid[1]))
        bias = parts.RelativeBias(**self.closed(parts.RelativeBias))
        if self.one(closed_kinds(parts.RelativeBias)) == "log_mlp":
            orientation = "query_minus_key" if bias.orientation == "transposed" else bias.orientation
            bias = replace(bias, kind="log_mlp", hidden=hidden, orientation=orientation)
        return parts.Attention(
            **(closed | ({"scale": "1"} if linear else {})),
            window=window if closed["form"] == "windowed" else None,
            head_size=self.one(sizes),
            heads=self.one((2, 1, 3)) if fixed else None,
            relative_bias=None if linear else self.one((bias, bias, None)),
        )


def closed_kinds(cls: type) -> list[Any]:
    """The options of a part's field `kind`, its default first."""
    return list(get_args(hints(cls)["kind"]))


def divisors(length: int) -> list[int]:
    """Every divisor, the largest first."""
    return [each for each in range(length, 0, -1) if length % each == 0]
