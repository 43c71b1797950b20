"""The fast primitives take a batch of no images and of one, as the definition does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coatref.primitives import DEFINITION, primitives_for
from coatref.registry import library

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RANDOM.normal(size=shape).astype(np.float32)


def calls(n: int) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """A call of every primitive that takes a batch: arrays, and the rest."""
    x = normal(n, 5, 4, 3)
    layer = {"w": normal(3, 2), "b": normal(2)}
    heads = {name: normal(n, 2, 6, 4) for name in ("q", "k", "v")}
    return {
        "conv2d": ({"x": x, "w": normal(3, 2, 3, 6), "b": normal(6)}, {"stride": 2, "padding": "same"}),
        "depthwise_conv2d": ({"x": x, "w": normal(3, 2, 3), "b": normal(3)}, {"stride": 1, "padding": "symmetric"}),
        "max_pool": ({"x": x}, {"size": 2, "stride": 2, "padding": "same"}),
        "avg_pool": ({"x": x}, {"size": 3, "stride": 2, "padding": "same"}),
        "global_avg_pool": ({"x": x}, {}),
        "batch_norm": (
            {"x": x, **{name: normal(3) for name in ("gamma", "beta", "mean")}, "var": np.abs(normal(3))},
            {"epsilon": 1e-3},
        ),
        "layer_norm": ({"x": x, "gamma": normal(3), "beta": normal(3)}, {"epsilon": 1e-5}),
        "activation": ({"x": x}, {"kind": "gelu"}),
        "softmax": ({"x": x}, {}),
        "squeeze_excite": ({"x": x, "reduce": layer, "expand": {"w": normal(2, 3)}}, {"activation": "silu"}),
        "dense": ({"x": x, **layer}, {}),
        "relative_attention": (heads | {"bias": normal(2, 6, 6)}, {"scale": 0.5}),
        "linear_attention": (heads, {}),
    }


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("primitive", calls(1))
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_small_batches(name: str, primitive: str, count: int) -> None:
    arrays, options = calls(count)[primitive]
    its = library(name)

    def given(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: given(each) for key, each in value.items()}
        return its.namespace().asarray(value)

    there = {key: given(value) for key, value in arrays.items()}
    first = there.get("x", there.get("q"))
    found = its.to_numpy(getattr(primitives_for(first), primitive)(**there, **options))
    expected = getattr(DEFINITION, primitive)(**arrays, **options)
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)  # shapes are what this looks at; bounds: test_backends
