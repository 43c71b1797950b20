"""JAX's fast forms: both depthwise ones, under every transformation, over drawn networks, and with faults put in.

`test_backends.py` judges every primitive on JAX as its arguments come; `test_sharding.py` has many devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
import units
from draw_specs import Drawn, specs
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import coatref
from coatref import ops
from coatref.attention import relative_attention
from coatref.backends import jax_ops
from coatref.errors import InputError, ShapeError
from coatref.primitives import DEFINITION
from coatref.specification import Attention, ConvStem, Head, MBConv, PatchStem, Spec, SqueezeExcite, Transformer

Array = Any
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # each example is compiled anew

SPEC = Spec(
    name="small",
    image_size=(9, 6),
    stem=ConvStem(widths=(5,), bias=(True,)),
    stages=(
        (MBConv(depth=1, width=6, stride=1, expansion=2.0, squeeze_excite=SqueezeExcite(ratio=0.5)),),
        (Transformer(depth=1, width=8, attention=Attention(head_size=4)),),
    ),
    head=Head(classes=3),
)


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


# --- the primitives, at sizes and in ways that test_backends.py does not have ---


def depthwise_error(form: Callable[..., Array], call: tuple[int, ...], padding: Any, dtype: str) -> tuple[float, float]:
    """The error of one of the depthwise forms in units, and what is allowed."""
    seed, n, height, width, channels, kernel, stride = call
    random = np.random.default_rng(seed)
    x, w = (
        random.normal(size=size).astype(dtype) for size in ((n, height, width, channels), (kernel, kernel, channels))
    )
    exact = x.astype(np.float64), w.astype(np.float64)
    allowed, scale = units.depthwise_conv2d(*exact, stride=stride, padding=padding)
    margins = jax_ops.margins_of(x, (kernel, kernel), stride, padding)
    with jax.enable_x64(dtype == "float64"):
        found = np.asarray(form(jax.numpy.asarray(x), jax.numpy.asarray(w), stride=stride, margins=margins))
    assert found.dtype == dtype
    error = units.units(found, ops.depthwise_conv2d(*exact, stride=stride, padding=padding), scale, dtype)
    return error, 2 * allowed if dtype == "float64" else allowed


def check_depthwise(form: Callable[..., Array], dtype: str, examples: int) -> None:
    size = st.integers(4, 9)
    drawn = st.tuples(
        st.integers(0, 999), st.integers(1, 2), size, size, st.integers(1, 9), st.integers(1, 4), st.integers(1, 2)
    )

    @settings(max_examples=examples, deadline=None, phases=NO_SHRINKING, derandomize=True, database=None)
    @given(drawn, st.sampled_from(("same", "symmetric", "valid")))
    def check(call: tuple[int, ...], padding: Any) -> None:
        error, allowed = depthwise_error(form, call, padding, dtype)
        assert error <= allowed, f"is off by {error:.3g} units, where {allowed:g} are allowed"

    check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", [jax_ops.shifted, jax_ops.grouped])
def test_both_depthwise_forms(form: Callable[..., Array], dtype: str) -> None:
    check_depthwise(form, dtype, 6)


@pytest.mark.deep
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", [jax_ops.shifted, jax_ops.grouped])
def test_both_depthwise_forms_often(form: Callable[..., Array], dtype: str) -> None:
    check_depthwise(form, dtype, 100)


def shape(*lengths: int) -> Any:
    return jax.eval_shape(lambda: jax.numpy.zeros(lengths, np.float32))


def test_only_the_form_of_the_platform_is_compiled() -> None:
    program = jax.jit(jax_ops.depthwise_conv2d).lower(shape(1, 8, 8, 4), shape(3, 3, 4)).compile().as_text()
    assert program is not None and "pad" in program
    assert "convolution(" not in program and "conditional(" not in program


def test_patches_of_16_are_one_convolution() -> None:
    x, w = shape(1, 32, 32, 3), shape(16, 16, 3, 8)
    text = jax.jit(functools.partial(jax_ops.conv2d, stride=16, padding="valid")).lower(x, w).as_text()
    assert text.count("stablehlo.convolution") == 1 and "slice" not in text


@pytest.mark.parametrize("seed", range(3))
def test_attention_of_large_logits_is_within_the_bound(seed: int) -> None:
    """Logits up to a thousand, whose exponentials only the maximum keeps finite."""
    random = np.random.default_rng(seed)
    q, k, v, bias = (
        random.normal(size=size).astype(np.float32) * factor
        for size, factor in (((2, 3, 7, 4), 20), ((2, 3, 5, 4), 20), ((2, 3, 5, 4), 1), ((3, 7, 5), 30))
    )
    exact = [array.astype(np.float64) for array in (q, k, v, bias)]
    options: dict[str, Any] = {"scale": 0.5, "scale_site": "query", "add": "pre_softmax"}
    allowed, scale = units.relative_attention(*exact, **options)
    found = jax_ops.relative_attention(*(jax.numpy.asarray(array) for array in (q, k, v, bias)), **options)
    assert units.units(found, relative_attention(*exact, **options), scale, "float32") <= allowed


def test_what_the_definition_refuses_is_refused_in_its_words() -> None:
    x, w = jax.numpy.ones((1, 4, 4, 3)), jax.numpy.ones((5, 5, 3, 2))
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("conv2d", (x[0], w), {}),
        ("conv2d", (x, w), {"padding": "valid"}),
        ("conv2d", (x[..., :2], w), {}),
        ("conv2d", (x, w), {"padding": "full"}),
        ("depthwise_conv2d", (x, w[..., 0]), {"padding": "valid"}),
        ("depthwise_conv2d", (x[..., :2], w[..., 0]), {}),
        ("relative_attention", (x, x, x[:, :3]), {}),
        ("relative_attention", (x, x, x), {"add": "never"}),
        ("activation", (x, "softplus"), {}),
    ]
    for name, args, options in calls:
        with pytest.raises((ShapeError, InputError)) as ours:
            jax_ops.PRIMITIVES[name](*args, **options)
        with pytest.raises(type(ours.value)) as theirs:
            getattr(DEFINITION, name)(*args, **options)
        assert str(ours.value) == str(theirs.value)


# --- whole networks, prepared ---


def off_by(drawn: Drawn, dtype: str, how: Callable[..., Array]) -> float:
    """How far `how(params, x)` lies from the definition in NumPy and float64, in moves of the output."""
    exact = coatref.init(drawn.spec, drawn.seed, dtype=dtype, scheme="distinct").to(dtype="float64")
    x = drawn.images(dtype=dtype)
    reference = coatref.forward(exact, x, backend="definition")
    with jax.enable_x64(dtype == "float64"):
        found = np.asarray(how(exact.to(xp="jax", dtype=dtype), jax.numpy.asarray(x.astype(dtype))))
    assert found.dtype == dtype and found.shape == reference.shape
    return float(np.max(np.abs(found - reference))) / units.sensitivity(exact, x, dtype)


@jax.jit
def prepared(params: coatref.Params, x: Array) -> Array:
    """Preparation and forward pass in one program."""
    return coatref.forward(coatref.prepare(params), x)


def check_networks(dtype: str, examples: int, most_stages: int) -> None:
    @settings(max_examples=examples, deadline=None, phases=NO_SHRINKING, derandomize=True, database=None)
    @given(specs(most_stages))
    def check(drawn: Drawn) -> None:
        moves = off_by(drawn, dtype, prepared)
        assert moves <= units.NETWORK_UNITS, f"is off by {moves:.3g} moves of the output"

    check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_prepared_networks(dtype: str) -> None:
    check_networks(dtype, 3, 1)


@pytest.mark.deep
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_prepared_networks(dtype: str) -> None:
    check_networks(dtype, 60, 3)


def one_by_one(params: coatref.Params, x: Array) -> Array:
    return jax.vmap(lambda image: coatref.forward(params, image[None])[0])(x)


def in_turn(params: coatref.Params, x: Array) -> Array:
    return jax.lax.map(lambda image: coatref.forward(params, image[None])[0], x)


def eagerly_prepared(params: coatref.Params, x: Array) -> Array:
    return coatref.forward(coatref.prepare(params), x)


@pytest.mark.parametrize(
    "how", [jax.jit(one_by_one), jax.jit(in_turn), jax.jit(jax.checkpoint(coatref.forward)), eagerly_prepared]
)
def test_transformations(how: Callable[..., Array]) -> None:
    assert off_by(Drawn(SPEC, 3), "float32", how) <= units.NETWORK_UNITS


def test_patch_stem_prepared() -> None:
    spec = SPEC.replace(image_size=(32, 16), stem=PatchStem(patch=8, width=8))
    assert off_by(Drawn(spec, 3), "float32", prepared) <= units.NETWORK_UNITS


def test_gradients_are_those_of_the_definition(x64: None) -> None:
    """Of the fast forms, of prepared parameters seen through `prepare`, and with `jax.checkpoint`, which computes twice."""
    exact = coatref.init(SPEC, 3, dtype="float64", scheme="distinct")
    params, x = exact.to(xp="jax"), jax.numpy.asarray(Drawn(SPEC, 3).images())

    def gradient(forward: Callable[..., Array]) -> Callable[[coatref.Params], dict[str, np.ndarray]]:
        def loss(p: coatref.Params) -> Array:
            return (forward(p, x) * jax.numpy.cos(jax.numpy.arange(6.0)).reshape(2, 3)).sum()

        compiled = jax.jit(jax.grad(loss))
        return lambda p: {name: np.asarray(array) for name, array in compiled(p).flatten().items()}

    definition = gradient(functools.partial(coatref.forward, backend="definition"))
    wanted, u = definition(params), units.ROUNDOFF["float64"]
    moves = dict.fromkeys(wanted, u * max(float(np.max(np.abs(array))) for array in wanted.values()))
    for trial in range(4):
        shaken = definition(units.shaken_params(exact, "float64", np.random.default_rng(trial)).to(xp="jax"))
        moves = {name: max(most, float(np.max(np.abs(shaken[name] - wanted[name])))) for name, most in moves.items()}
    for forward in (coatref.forward, prepared, jax.checkpoint(coatref.forward)):
        for name, array in gradient(forward)(params).items():
            assert float(np.max(np.abs(array - wanted[name]))) <= units.NETWORK_UNITS * moves[name], name


# --- faults ---


def margins_swapped(form: Callable[..., Any]) -> Callable[..., Any]:
    def swapped(*args: Any) -> Any:
        margins = form(*args)
        return None if margins is None else tuple((after, before) for before, after in margins)

    return swapped


def without_bias(form: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, w, b=None, **options: form(x, w, **options)


def kernel_flipped(form: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, w, b=None, **options: form(x, w[::-1], b, **options)


def attention_without_bias(form: Callable[..., Any]) -> Callable[..., Any]:
    return lambda q, k, v, bias=None, **options: form(q, k, v, **options)


def attention_not_normalised(form: Callable[..., Any]) -> Callable[..., Any]:
    return lambda q, k, v, bias=None, **options: form(q, k, v, bias, **options) * (1 + 1e-4)


def hard_sigmoid(form: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, kind: x * jax.numpy.clip(x / 6 + 0.5, 0, 1) if kind == "silu" else form(x, kind)


WHOLE = coatref.spec(
    "timm/coatnet_0_rw_224", depths=(1, 1, 1, 1), widths=(8, 32, 32, 32), image_size=(32, 32), classes=3
)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("conv2d", without_bias),
        ("depthwise_conv2d", kernel_flipped),
        ("activation", hard_sigmoid),
        ("relative_attention", attention_without_bias),
        ("relative_attention", attention_not_normalised),
    ],
)
def test_a_wrong_form_is_found_out(name: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(jax_ops.PRIMITIVES, name, fault(jax_ops.PRIMITIVES[name]))
    compiled = jax.jit(lambda params, x: coatref.forward(coatref.prepare(params), x))
    assert off_by(Drawn(WHOLE, 3), "float32", compiled) > units.NETWORK_UNITS


def test_wrong_margins_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_ops, "margins_of", margins_swapped(jax_ops.margins_of))
    with pytest.raises(AssertionError, match="is off by"):
        check_depthwise(jax_ops.shifted, "float64", 30)
    compiled = jax.jit(lambda params, x: coatref.forward(coatref.prepare(params), x))
    same = WHOLE.replace(stem=ConvStem(widths=(8, 8), bias=(True, True), padding="same"))
    assert off_by(Drawn(same, 3), "float32", compiled) > units.NETWORK_UNITS


def test_the_network_without_a_fault_passes() -> None:
    assert off_by(Drawn(WHOLE, 3), "float32", prepared) <= units.NETWORK_UNITS
