"""Calls of single primitives, made by hand, each of which makes some known mistake large."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from coatref.conformance.primitive_cases import Call, drawn

Made = tuple[str, str, Mapping[str, Any], Mapping[str, Any]]  # name, about, args, options


def spread_out(low: float, high: float, *shape: int) -> Any:
    """Numbers from low to high, evenly."""
    return np.linspace(low, high, math.prod(shape)).reshape(shape)


def max_pool(random: np.random.Generator) -> Iterator[Made]:
    """Padding that wins over negative numbers."""
    for padding in ("same", "symmetric"):
        x = -random.integers(1, 90, (2, 5, 6, 3)).astype(np.float64)
        options = {"size": 3, "stride": 2, "padding": padding}
        yield (
            f"negative, padding {padding}",
            "All numbers are negative: padding with zeros would win.",
            {"x": x},
            options,
        )


def avg_pool(random: np.random.Generator) -> Iterator[Made]:
    """Padded zeros in the mean."""
    for zeros in ("excluded", "counted"):
        x = random.uniform(4, 8, (2, 5, 6, 3))
        options = {"size": 3, "stride": 2, "padding": "same", "padded_zeros": zeros}
        yield f"edges, zeros {zeros}", "Means at the edges show whether padding counts.", {"x": x}, options


def batch_norm(random: np.random.Generator) -> Iterator[Made]:
    """Epsilon beside a tiny variance."""
    for epsilon in (1e-3, 1e-5, 1e-6):
        var = epsilon * np.array([0.25, 0.5, 1.0, 2.0])
        x = math.sqrt(epsilon) * random.normal(size=(2, 3, 5, 4))
        args = {"x": x, "gamma": random.uniform(0.5, 2, 4), "beta": random.normal(size=4)}
        args |= {"mean": math.sqrt(epsilon) * random.normal(size=4), "var": var}
        yield f"variance near epsilon {epsilon:g}", "The variances are as small as epsilon.", args, {"epsilon": epsilon}


def layer_norm(random: np.random.Generator) -> Iterator[Made]:
    """Epsilon beside a tiny variance, and few channels."""
    for epsilon in (1e-3, 1e-5, 1e-6):
        x = math.sqrt(epsilon) * random.normal(size=(2, 3, 5, 4))
        args = {"x": x, "gamma": random.uniform(0.5, 2, 4), "beta": random.normal(size=4)}
        yield f"variance near epsilon {epsilon:g}", "The variances are as small as epsilon.", args, {"epsilon": epsilon}
    args = {
        "x": 2 + random.normal(size=(2, 3, 5, 3)),
        "gamma": np.array([0.5, 1.0, 2.0]),
        "beta": np.array([1.0, 2, 4]),
    }
    yield "few channels", "With three channels the biased and unbiased variance differ most.", args, {"epsilon": 1e-5}


def activation(random: np.random.Generator) -> Iterator[Made]:
    """Where the forms of GELU differ, the tails, and zero."""
    for kind in ("gelu", "gelu_tanh", "silu", "relu", "mish", "tanh"):
        if kind != "relu":  # it is zero there
            near = spread_out(-3, -1, 2, 3, 5, 4)
            yield f"{kind} between -3 and -1", "There exact and tanh GELU differ most.", {"x": near, "kind": kind}, {}
        far = np.concatenate([spread_out(-40, 40, 1, 4, 5, 3), np.zeros((1, 4, 5, 3))])
        yield f"{kind} in the tails", "Large numbers of both signs, and zero.", {"x": far, "kind": kind}, {}


def softmax(random: np.random.Generator) -> Iterator[Made]:
    """Near ties, and numbers whose exponential overflows."""
    yield "near ties", "All weights are nearly equal.", {"x": 0.1 * random.normal(size=(2, 3, 4, 5))}, {}
    large = 100 * random.normal(size=(2, 3, 4, 5)) + 300
    yield "large", "Without subtracting the largest number the exponential overflows.", {"x": large}, {}


def squeeze_excite(random: np.random.Generator) -> Iterator[Made]:
    """A gate that is neither open nor closed, and a hidden layer on both sides of zero."""
    for kind in ("silu", "relu", "gelu_tanh"):
        layers: dict[str, Any] = {
            "reduce": {"w": random.normal(size=(4, 3)), "b": np.array([-1.5, 0.25, 1.0])},
            "expand": {"w": random.normal(size=(3, 4)), "b": random.normal(size=4)},
        }
        x = 1 + random.normal(size=(2, 3, 5, 4))
        yield f"{kind} around zero", "The hidden layer takes both signs.", {"x": x, **layers}, {"activation": kind}


def gather_bias(random: np.random.Generator) -> Iterator[Made]:
    """Tables whose entries are all different."""
    for heads, height, width in ((2, 3, 4), (1, 4, 3), (3, 2, 5), (1, 1, 6), (2, 3, 3)):
        shape = (heads, 2 * height - 1, 2 * width - 1)
        table = np.arange(1.0, 1 + math.prod(shape)).reshape(shape)
        args = {"table": table, "height": height, "width": width}
        yield f"{heads} heads, grid {height}x{width}", "No two entries of the table are alike.", args, {}


def relative_attention(random: np.random.Generator) -> Iterator[Made]:
    """The scale, the bias, its place and shape, masks, and large logits."""

    def qkv(n: int, heads: int, queries: int, keys: int, depth: int) -> dict[str, Any]:
        shapes = {"q": queries, "k": keys, "v": keys}
        return {key: random.normal(size=(n, heads, length, depth)) for key, length in shapes.items()}

    usual: dict[str, Any] = {"scale": 0.5, "scale_site": "query", "add": "pre_softmax"}
    onehot = {key: random.integers(-2, 3, (2, 3, 6, 4)).astype(np.float64) for key in "qkv"}
    bias = np.zeros((3, 6, 6))
    for head in range(3):
        bias[head, np.arange(6), random.permutation(6)] = 2048.0
    about = "Each query gives all its weight to the one key that the bias marks."
    yield "bias marks one key", about, {**onehot, "bias": bias}, usual
    yield "near ties, no bias", "The scale decides how far weights are from equal.", qkv(2, 3, 4, 5, 4), usual
    tied = qkv(1, 4, 6, 6, 4)
    yield "near ties, bias", "Scale and bias are of one size.", {**tied, "bias": random.normal(size=(4, 6, 6))}, usual
    shared = {**qkv(2, 3, 4, 5, 4), "bias": random.normal(size=(1, 4, 5))}
    yield "bias with one head", "One bias serves all heads.", shared, usual
    for site in ("query", "key", "query_and_key", "logits", "logits_and_bias"):
        args = {**qkv(1, 2, 4, 5, 4), "bias": random.normal(size=(2, 4, 5))}
        yield f"scale at {site}", "Only one site scales the bias too.", args, {**usual, "scale_site": site}
    args = {**qkv(1, 2, 4, 5, 8), "bias": random.normal(size=(2, 4, 5))}
    yield "a scale of its own", "The scale is not 1/sqrt(d).", args, {**usual, "scale": 0.75}
    late = {**qkv(2, 3, 4, 5, 4), "bias": random.normal(size=(3, 4, 5))}
    yield "bias after the softmax", "The second form of Eq. (3).", late, {**usual, "add": "post_softmax"}
    for add in ("pre_softmax", "post_softmax"):
        for mask in (
            np.array([True, False, True, True, False]),
            np.array([[True] * 4 + [False], [False] + [True] * 4]),
        ):
            args = {**qkv(2, 3, 4, 5, 4), "bias": random.normal(size=(3, 4, 5))}
            where = "keys" if mask.ndim == 1 else "keys of each image"
            options = {**usual, "add": add, "key_mask": mask}
            yield f"masked {where}, {add}", "Hidden keys have no weight at all.", args, options
    big = qkv(1, 2, 4, 5, 4)
    big = {**big, "q": 20 * big["q"], "k": 20 * big["k"]}
    yield "large logits", "Without subtracting the largest logit the exponential overflows.", big, usual


def linear_attention(random: np.random.Generator) -> Iterator[Made]:
    """Both branches of elu + 1."""
    shapes = {"q": (2, 3, 4, 5), "k": (2, 3, 6, 5), "v": (2, 3, 6, 5)}
    args = {key: 2 * random.normal(size=shape) for key, shape in shapes.items()}
    yield "both signs", "The feature map has a branch for each sign.", args, {}


AMPLIFIERS: dict[str, Callable[[np.random.Generator], Iterator[Made]]] = {
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "activation": activation,
    "softmax": softmax,
    "squeeze_excite": squeeze_excite,
    "gather_bias": gather_bias,
    "relative_attention": relative_attention,
    "linear_attention": linear_attention,
}

BLOCKS: dict[str, list[dict[str, Any]]] = {  # configurations of whole blocks that show the usual mistakes
    "mbconv": [
        {
            "n": 2,
            "height": 5,
            "width": 8,
            "channels": 3,
            "out": 8,
            "stride": stride,
            "padding": "same",
            "stride_at": site,
        }
        for stride, site in ((2, "depthwise"), (2, "expand"), (1, "depthwise"))
    ],
    "transformer": [
        {"n": 2, "height": 5, "width": 6, "channels": channels, "out": 8, "depth": 4, "stride": stride, "scale": scale}
        for channels, stride, scale in ((3, 2, "1/sqrt(d)"), (8, 1, "1/sqrt(d)"), (8, 1, "1"))
    ],
}


def amplifiers(name: str) -> Iterator[Call]:
    """Every hand-made call of a primitive, always the same ones."""
    made = AMPLIFIERS[name](np.random.default_rng(1)) if name in AMPLIFIERS else iter(())
    for label, about, args, options in made:
        recipe = f"amplifier({name!r}, {label!r})"
        yield Call(args, options, name=f"amplifier: {label}", check="amplifier", about=about, recipe=recipe)
    for number, config in enumerate(BLOCKS.get(name, [])):
        call = drawn(name, config, number)
        label = ", ".join(f"{axis} {value}" for axis, value in config.items())
        about = "Odd, non-square grids with a stride and without."
        yield dataclasses.replace(call, name=f"amplifier: {label}", check="amplifier", about=about)


def amplifier(name: str, label: str) -> Call:
    """The hand-made call of that label."""
    return next(call for call in amplifiers(name) if call.name == f"amplifier: {label}")
