"""What the judge of single primitives runs: calls with numbers drawn for sizes and options, and hand-made ones.

A configuration is a mapping of small numbers and texts, such as {"n": 2, "channels": 3, "padding": "same"}: one choice of
each of the primitive's `AXES`. With a seed and a kind of numbers it makes one call, always the same one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coatref.blocks import mbconv_tensors, transformer_tensors
from coatref.conformance.precision import as_stored
from coatref.initialise import draw_distinct
from coatref.specification.grids import block_grid
from coatref.specification.parts import Attention, MBConv, RelativeBias, Transformer
from coatref.specification.spec import Block
from coatref.tree import map_named

Random = np.random.Generator
Draw = Callable[..., Any]  # shape -> numbers, float64
Config = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a primitive.

    Attributes:
        args: the positional arguments by name, in order: arrays, trees of arrays, or plain values.
        options: the keyword arguments.
        name, check, about: as in `report.results.CaseResult`.
        recipe: Python text that makes the same call again.
    """

    args: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    check: str = "random"
    about: str = ""
    recipe: str = ""

    def stored(self, dtype: str) -> Call:
        """The same call with every array rounded to a storage type, as a candidate is handed it."""
        return self.mapped(lambda a: a.copy() if a.dtype == bool else as_stored(a, dtype))

    def widened(self) -> Call:
        """The same call in float64, as the definition computes it."""
        return self.mapped(lambda a: a.copy() if a.dtype == bool else a.astype(np.float64))

    def mapped(self, change: Callable[[Any], Any]) -> Call:
        """The same call with every array changed."""
        args = {key: each_array(change, value) for key, value in self.args.items()}
        return dataclasses.replace(
            self, args=args, options={key: each_array(change, value) for key, value in self.options.items()}
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by its dotted name, such as "x", "reduce.w" or "key_mask"."""
        found: dict[str, np.ndarray] = {}
        for key, value in (dict(self.args) | dict(self.options)).items():
            leaves(key, value, found)
        return found

    def plain(self) -> dict[str, Any]:
        """Every argument and option that is no array."""
        both = dict(self.args) | dict(self.options)
        return {key: value for key, value in both.items() if not isinstance(value, (np.ndarray, Mapping))}

    @property
    def size(self) -> int:
        """Number of elements of all arrays."""
        return sum(array.size for array in self.arrays().values())


def each_array(change: Callable[[Any], Any], value: Any) -> Any:
    """A value with every array in it changed."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, Mapping):
        return {key: each_array(change, child) for key, child in value.items()}
    return value


def leaves(name: str, value: Any, into: dict[str, np.ndarray]) -> None:
    """Write every array of a tree under its dotted name."""
    if isinstance(value, np.ndarray):
        into[name] = value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            leaves(f"{name}.{key}", child, into)


def numbers(random: Random, kind: str) -> Draw:
    """A source of arrays: "whole" numbers from -3 to 3, or "normal" ones."""
    if kind == "whole":
        return lambda *shape: random.integers(-3, 4, shape).astype(np.float64)
    return lambda *shape: random.normal(size=shape)


# --- what can be chosen for each primitive; the first of each is the smallest ---

GRID = {"n": (1, 2, 3), "height": (2, 1, 3, 4, 5, 7, 8), "width": (3, 1, 2, 4, 5, 6, 9), "channels": (2, 1, 3, 5, 8)}
HEADS = {
    "n": (1, 2),
    "heads": (2, 1, 3, 4),
    "queries": (2, 1, 3, 6, 12),
    "keys": (3, 1, 2, 5, 12),
    "depth": (2, 1, 4, 8, 32),
}
WINDOW = {"kernel": (3, 1, 2, 5), "stride": (1, 2, 3), "padding": ("same", "symmetric", "valid")}
POOL = {"size": (2, 1, 3), "stride": (2, 1), "padding": ("same", "symmetric", "valid")}
EPSILON = {"epsilon": (1e-5, 1e-3, 1e-6)}
KINDS = ("gelu", "gelu_tanh", "silu", "relu", "mish", "tanh")

AXES: dict[str, dict[str, tuple[Any, ...]]] = {
    "conv2d": {**GRID, "out": (2, 1, 3), "bias": (True, False), **WINDOW},
    "depthwise_conv2d": {**GRID, "bias": (True, False), **WINDOW},
    "max_pool": {**GRID, **POOL},
    "avg_pool": {**GRID, **POOL, "padded_zeros": ("excluded", "counted")},
    "global_avg_pool": GRID,
    "batch_norm": {**GRID, **EPSILON},
    "layer_norm": {**GRID, **EPSILON},
    "activation": {**GRID, "kind": KINDS},
    "softmax": {"n": (1, 2), "heads": (1, 3), "queries": (2, 1, 5), "keys": (3, 1, 2, 7, 16)},
    "squeeze_excite": {**GRID, "hidden": (1, 2, 3), "bias": (True, False), "activation": ("silu", "relu", "gelu_tanh")},
    "dense": {**GRID, "out": (3, 1, 2, 7), "bias": (True, False)},
    "gather_bias": {"heads": (1, 2, 3), "height": (2, 1, 3, 4), "width": (3, 1, 2, 5)},
    "relative_attention": {
        **HEADS,
        "bias": ("per head", "shared", "none"),
        "scale": ("1/sqrt(d)", "1", "0.25"),
        "scale_site": ("query", "key", "query_and_key", "logits", "logits_and_bias"),
        "add": ("pre_softmax", "post_softmax"),
        "mask": ("none", "keys", "images"),
    },
    "linear_attention": HEADS,
    "mbconv": {
        **GRID,
        "out": (3, 2, 8),
        "stride": (1, 2),
        "padding": ("same", "symmetric"),
        "stride_at": ("depthwise", "expand"),
        "kind": KINDS[:3],
    },
    "transformer": {
        **GRID,
        "out": (4, 8),
        "depth": (2, 4),
        "stride": (1, 2),
        "scale": ("1/sqrt(d)", "1/sqrt(heads*d)", "1"),
        "orientation": ("query_minus_key", "key_minus_query", "transposed"),
        "kind": ("gelu_tanh", "gelu"),
    },
}


# --- from a configuration to arguments ---


def grid_of(c: Config, draw: Draw) -> Any:
    """x, (N, H, W, C)."""
    return draw(c["n"], c["height"], c["width"], c["channels"])


def weighted(c: Config, draw: Draw, *kernel: int) -> dict[str, Any]:
    """x, w and, where the configuration has one, b."""
    width = kernel[-1]
    return {"x": grid_of(c, draw), "w": draw(*kernel)} | ({"b": draw(width)} if c["bias"] else {})


def window(c: Config) -> dict[str, Any]:
    """Stride and padding."""
    return {"stride": c["stride"], "padding": c["padding"]}


def layer(draw: Draw, rows: int, columns: int, bias: bool) -> dict[str, Any]:
    """A dense layer of squeeze-excite."""
    return {"w": draw(rows, columns)} | ({"b": draw(columns)} if bias else {})


def attention_arguments(c: Config, random: Random, draw: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and options of `relative_attention`."""
    n, heads, queries, keys, depth = (c[axis] for axis in HEADS)
    args = {"q": draw(n, heads, queries, depth), "k": draw(n, heads, keys, depth), "v": draw(n, heads, keys, depth)}
    if c["bias"] != "none":
        args["bias"] = draw(heads if c["bias"] == "per head" else 1, queries, keys)
    scale = 1 / math.sqrt(depth) if c["scale"] == "1/sqrt(d)" else float(c["scale"])
    options: dict[str, Any] = {"scale": scale, "scale_site": c["scale_site"], "add": c["add"]}
    if c["mask"] != "none":
        mask = random.integers(0, 2, (keys,) if c["mask"] == "keys" else (n, keys)).astype(bool)
        mask[..., int(random.integers(keys))] = True  # every query keeps a key
        options["key_mask"] = mask
    return args, options


def block_arguments(run: MBConv | Transformer, c: Config, random: Random, draw: Draw) -> dict[str, Any]:
    """Parameters, x and block of `mbconv` and `transformer`.

    Raises:
        SizeError: nothing is left of the grid.
    """
    block = Block("s1.0", run, c["channels"], c["stride"])
    grid = block_grid(block, (c["height"], c["width"]))
    tree = mbconv_tensors(block) if isinstance(run, MBConv) else transformer_tensors(block, grid)
    params = plain_tree(map_named(lambda _, tensor: draw_distinct(tensor, random), tree))
    return {"p": params, "x": grid_of(c, draw), "block": block}


def plain_tree(tree: Any) -> Any:
    """A tree of mappings as one of dicts."""
    return {key: plain_tree(child) for key, child in tree.items()} if isinstance(tree, Mapping) else tree


def arguments(name: str, c: Config, random: Random, draw: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and options of a primitive, in the order of its signature."""
    if name in ("conv2d", "depthwise_conv2d"):
        kernel = (c["kernel"], c["kernel"], c["channels"], *([c["out"]] if name == "conv2d" else []))
        return weighted(c, draw, *kernel), window(c)
    if name in ("max_pool", "avg_pool"):
        zeros = {"padded_zeros": c["padded_zeros"]} if name == "avg_pool" else {}
        return {"x": grid_of(c, draw)}, {"size": c["size"], **window(c), **zeros}
    if name in ("batch_norm", "layer_norm"):
        channels = c["channels"]
        args = {"x": grid_of(c, draw), "gamma": draw(channels), "beta": draw(channels)}
        if name == "batch_norm":
            args |= {"mean": draw(channels), "var": random.uniform(0.25, 2.0, channels)}
        return args, {"epsilon": c["epsilon"]}
    if name == "global_avg_pool":
        return {"x": grid_of(c, draw)}, {}
    if name == "activation":
        return {"x": 3 * grid_of(c, draw), "kind": c["kind"]}, {}
    if name == "softmax":
        return {"x": 3 * draw(c["n"], c["heads"], c["queries"], c["keys"])}, {}
    if name == "squeeze_excite":
        reduce = layer(draw, c["channels"], c["hidden"], c["bias"])
        expand = layer(draw, c["hidden"], c["channels"], c["bias"])
        return {"x": grid_of(c, draw), "reduce": reduce, "expand": expand}, {"activation": c["activation"]}
    if name == "dense":
        return weighted(c, draw, c["channels"], c["out"]), {}
    if name == "gather_bias":
        height, width = c["height"], c["width"]
        return {"table": draw(c["heads"], 2 * height - 1, 2 * width - 1), "height": height, "width": width}, {}
    if name == "relative_attention":
        return attention_arguments(c, random, draw)
    if name == "linear_attention":
        n, heads, queries, keys, depth = (c[axis] for axis in HEADS)
        shapes = {"q": queries, "k": keys, "v": keys}
        return {key: draw(n, heads, length, depth) for key, length in shapes.items()}, {}
    if name == "mbconv":
        run: MBConv | Transformer = MBConv(
            depth=1, width=c["out"], padding=c["padding"], stride_at=c["stride_at"], activation=c["kind"], expansion=2.0
        )
    else:
        bias = RelativeBias(orientation=c["orientation"])
        attention = Attention(head_size=c["depth"], scale=c["scale"], relative_bias=bias)
        run = Transformer(depth=1, width=c["out"], attention=attention)
        run = dataclasses.replace(run, ffn=dataclasses.replace(run.ffn, activation=c["kind"], expansion=2.0))
    return block_arguments(run, c, random, draw), {}


def drawn(name: str, config: Config, seed: int, kind: str = "normal") -> Call:
    """The call of a primitive that a configuration and a seed make, in float64.

    Args:
        name: of the primitive.
        config: one choice of each of its `AXES`; those left out have their first.
        seed: of the numbers.
        kind: "normal" or "whole" numbers.

    Raises:
        ShapeError, SizeError: the configuration has no meaning, such as a window that does not fit.
    """
    whole = {axis: choices[0] for axis, choices in AXES[name].items()} | dict(config)
    random = np.random.default_rng(seed)
    args, options = arguments(name, whole, random, numbers(random, kind))
    recipe = f"drawn({name!r}, {dict(config)!r}, {seed}, {kind!r})"
    text = ", ".join(f"{axis} {value}" for axis, value in config.items())
    return Call(args, options, name=f"random: {text}, seed {seed}", about="Drawn at random.", recipe=recipe)


def wiring(name: str) -> Iterator[Call]:
    """Calls with whole numbers on odd and non-square sizes, in every combination of options that changes the wiring."""
    sizes = {"n": 2, "height": 5, "width": 6, "channels": 3}
    other = {"n": 1, "height": 4, "width": 7, "channels": 2}
    configs: list[dict[str, Any]] = [sizes, other]
    if name in ("conv2d", "depthwise_conv2d"):
        configs = [
            {**grid, "kernel": kernel, "stride": stride, "padding": padding, "bias": grid is sizes}
            for grid, kernel in ((sizes, 3), (other, 2))
            for stride in (1, 2)
            for padding in WINDOW["padding"]
        ]
    elif name in ("max_pool", "avg_pool"):
        zeros = ("excluded", "counted") if name == "avg_pool" else (None,)
        configs = [
            {**grid, "size": size, "stride": 2, "padding": padding} | ({"padded_zeros": zero} if zero else {})
            for grid, size in ((sizes, 3), (other, 2))
            for padding in POOL["padding"]
            for zero in zeros
        ]
    elif name == "dense":
        configs = [{**sizes, "out": 7, "bias": True}, {**other, "out": 1, "bias": False}]
    elif name == "gather_bias":
        configs = [{"heads": h, "height": r, "width": c} for h, r, c in ((3, 3, 4), (1, 4, 2), (2, 1, 5))]
    elif name not in ("global_avg_pool",):
        return
    for number, config in enumerate(configs):
        call = drawn(name, config, number, "whole")
        text = ", ".join(f"{axis} {value}" for axis, value in config.items())
        about = "Whole numbers, for which sums are exact, on odd and non-square sizes."
        yield dataclasses.replace(call, name=f"wiring: {text}", check="wiring", about=about)
