"""CuPy's fast forms against the definition in float64, to within derived bounds: on a GPU, and without one on the CPU.

Where there is no GPU, g++ compiles the CUDA kernels and `cuda_on_cpu` runs them on NumPy's arrays, so that all but CuPy
itself is tested: the forms' Python, every index of every kernel, their arguments and barriers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import cuda_on_cpu
import numpy as np
import pytest
import units
from draw_specs import specs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import coatref
from coatref.backends import cupy_steps, folding, network
from coatref.backends.fused import Fused, from_primitives
from coatref.ops.activation import ACTIVATIONS
from coatref.ops.activation import activation as activated
from coatref.primitives import DEFINITION, Form, Primitives
from coatref.tap import no_tap
from coatref.tree import map_named

Array = Any
ROUNDOFF = units.ROUNDOFF | {"float16": 2.0**-11}
DTYPES = tuple(ROUNDOFF)
SLOPE = 1.2  # above the steepest of every activation (GELU's, 1.13)


# --- where it is computed ---


class Machine(NamedTuple):
    """A device, with the forms on it."""

    name: str
    xp: Any
    forms: dict[str, Form]
    fused: Fused

    def array(self, values: Array, dtype: str, layout: str = "straight") -> Array:
        """These values, their numbers in order ("straight") or not ("strided"), or at an odd address ("shifted")."""
        values = self.xp.asarray(np.asarray(values), dtype=bool if np.asarray(values).dtype == bool else dtype)
        if layout == "strided" and values.ndim:
            around = self.xp.zeros(tuple(2 * length + 1 for length in reversed(values.shape)), values.dtype)
            view = around[(slice(1, None, 2),) * values.ndim].T
            view[...] = values
            return view
        if layout == "shifted":
            view = self.xp.zeros(values.size + 1, values.dtype)[1:].reshape(values.shape)
            view[...] = values
            return view
        return values

    def values(self, array: Array) -> Array:
        """An array as NumPy's float64."""
        assert isinstance(array, self.xp.ndarray)
        return np.asarray(array.get() if hasattr(array, "get") else array, np.float64)


def of_steps(name: str, xp: Any, device: Any) -> Machine:
    steps = cupy_steps.Steps(device)
    return Machine(name, xp, cupy_steps.primitives(steps), cupy_steps.fused(steps))


@functools.cache
def machine(name: str) -> Machine:
    """The one of that name."""
    if name == "cpu":
        return of_steps("cpu", np, cuda_on_cpu.device())
    backend: Any = importlib.import_module("coatref.backends.cupy")
    return Machine(
        "gpu", importlib.import_module("cupy"), dict(backend.LIBRARY.primitives), backend.LIBRARY.fused(None)
    )


def absence(name: str) -> str | None:
    """Why there is none of that name here, or None."""
    if name == "cpu":
        return cuda_on_cpu.absence()
    if importlib.util.find_spec("cupy") is None:
        return "needs CuPy, which is not installed (pip install 'coatref[cupy]')"
    cupy: Any = importlib.import_module("cupy")
    return None if cupy.is_available() else "needs a CUDA device, and CuPy finds none"


everywhere = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=label, marks=[pytest.mark.skip(reason=reason)] if (reason := absence(name)) else [])
        for name, label in (("cpu", "on-cpu"), ("gpu", "cuda"))
    ],
)


def searched(name: str, cheap: int) -> settings:
    """Hypothesis's settings: so many examples on the CPU, and five times as many on a GPU."""
    return settings(
        max_examples=5 * cheap if name == "gpu" else cheap,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def units_off(found: np.ndarray, reference: np.ndarray, bound: Array, dtype: str) -> float:
    """The error as a share of `bound`, which is in roundings of the type; infinite where NaN or infinity differs."""
    with mock.patch.object(units, "ROUNDOFF", ROUNDOFF):
        return units.units(found, reference, bound, dtype)


# --- primitives ---


class Call(NamedTuple):
    """Float64 arrays by name, or of a dense layer by name, and the rest."""

    arrays: dict[str, Any]
    options: dict[str, Any]
    layout: str


@st.composite
def calls(draw: st.DrawFn, name: str, dtype: str) -> Call:
    """A call of a primitive. Channels divide by 16 bytes, or do not; grids are smaller, and larger, than a thread's part."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    one: Any = functools.partial(_one, draw)
    c, d = one(4, 8, 3, 16, 5, 1, 40), one(8, 5, 4, 24, 1)
    n, height, width = one(2, 1, 3), one(5, 7, 1, 2, 9), one(6, 3, 1, 4, 11)
    size = one(1.0, 1e-3, 10.0)

    def normal(*shape: int) -> Array:
        return (size * random.normal(0.0, 1.0, shape)).astype(dtype).astype(np.float64)

    def positive(*shape: int) -> Array:
        return random.uniform(0.01, 4.0, shape).astype(dtype).astype(np.float64)

    def layer(c: int, d: int) -> dict[str, np.ndarray]:
        return {"w": normal(c, d)} | ({"b": normal(d)} if one(True, False) else {})

    padding = one("same", "symmetric", "valid")
    kh, kw = one(3, 1, 2, 5, 7), one(3, 3, 1, 4)
    kw = kh if one(True, True, False) else kw
    side = one(2, 3, 1, 4)
    if padding == "valid":
        kh, kw, side = min(kh, height), min(kw, width), min(side, height, width)
    if padding == "symmetric":  # which an even kernel may leave no room for
        kh, kw = min(kh, height + (kh - 1) // 2 * 2), min(kw, width + (kw - 1) // 2 * 2)
        side = min(side, height + (side - 1) // 2 * 2, width + (side - 1) // 2 * 2)
    window = {"stride": one(1, 2, 3), "padding": padding}
    grid, epsilon, kind = normal(n, height, width, c), {"epsilon": one(1e-5, 1e-3, 1e-6)}, one(*ACTIVATIONS)
    arrays: dict[str, Any] = {"x": grid}
    options: dict[str, Any] = {}
    match name:
        case "conv2d":
            of = layer(kh * kw * c, d)
            arrays, options = {"x": grid, **of, "w": of["w"].reshape(kh, kw, c, d)}, window
        case "depthwise_conv2d":
            of = layer(kh * kw, c)
            arrays, options = {"x": grid, **of, "w": of["w"].reshape(kh, kw, c)}, window
        case "max_pool":
            options = {"size": side, **window}
        case "avg_pool":
            options = {"size": side, **window, "padded_zeros": one("excluded", "counted")}
        case "global_avg_pool":
            arrays = {"x": normal(n, one(height, 40), one(width, 40), c)}
        case "batch_norm":
            arrays |= {"gamma": normal(c), "beta": normal(c), "mean": normal(c), "var": positive(c)}
            options = epsilon
        case "layer_norm":
            c = one(c, 200)
            x = (normal(n, height, width, c) + one(0.0, 64.0)).astype(dtype).astype(np.float64)
            arrays, options = {"x": x, "gamma": normal(c), "beta": normal(c)}, epsilon
        case "activation":
            options = {"kind": kind}
        case "softmax":
            arrays = {"x": normal(n, height, one(width, 33, 300))}
        case "squeeze_excite":
            arrays |= {"reduce": layer(c, d), "expand": layer(d, c)}
            options = {"activation": kind}
        case "dense":
            arrays = {"x": one(grid, grid[0, 0], grid[0, 0, 0]), **layer(c, d)}
        case "relative_attention":
            arrays, options = attention(random, one, normal)
    return Call(arrays, options, one("straight", "strided", "shifted"))


def attention(random: np.random.Generator, one: Any, normal: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of relative attention."""
    n, heads, queries, keys, size = one(2, 1, 3), one(2, 1, 3), one(5, 1, 9), one(6, 1, 35, 8), one(4, 8, 3)
    arrays = {
        "q": normal(n, heads, queries, size),
        "k": normal(n, heads, keys, size),
        "v": normal(n, heads, keys, size),
    }
    if (bias := one("per_head", "shared", None)) is not None:
        arrays["bias"] = normal(heads if bias == "per_head" else 1, queries, keys)
    if (hidden := one("none", "keys", "of each image")) != "none":
        arrays["key_mask"] = random.uniform(size=(n, keys) if hidden == "of each image" else keys) < 0.7
        arrays["key_mask"][..., 0] = True
    site = one("query", "key", "query_and_key", "logits", "logits_and_bias")
    return arrays, {
        "scale": one(0.5, 1 / 7, 3.0),
        "scale_site": site,
        "add": one("pre_softmax", "post_softmax"),
    }


def _one(draw: st.DrawFn, *options: Any) -> Any:
    return options[draw(st.integers(0, len(options) - 1))]


def mapped(function: Callable[[Array], Array], value: Any) -> Any:
    return {key: function(each) for key, each in value.items()} if isinstance(value, dict) else function(value)


@contextlib.contextmanager
def cramped() -> Iterator[None]:
    """So little room for patches and logits that everything is computed in several parts."""
    with mock.patch.multiple(cupy_steps, PATCH_BYTES=2000, LOGIT_BYTES=1, DIRECT=20):
        yield


def no_definition(*args: Any, **options: Any) -> Array:
    raise AssertionError("a form hands to the definition what it could compute itself")


NO_DEFINITION = Primitives(**dict.fromkeys((field.name for field in dataclasses.fields(Primitives)), no_definition))


def share_of(here: Machine, name: str, call: Call, dtype: str, form: Form) -> float:
    """The error of a form, which must not ask the definition, as a share of what is allowed."""
    allowed, scale = units.BOUNDS[name](**call.arrays, **call.options)
    reference = getattr(DEFINITION, name)(**call.arrays, **call.options)
    given = {key: mapped(lambda x: here.array(x, dtype, call.layout), each) for key, each in call.arrays.items()}
    before = {key: mapped(lambda x: np.array(here.values(x)), each) for key, each in given.items()}
    with mock.patch.object(cupy_steps, "DEFINITION", NO_DEFINITION):
        found = form(**given, **call.options)
    assert str(found.dtype) == dtype
    for key, each in given.items():
        mapped(lambda x: None, each)
        np.testing.assert_equal(mapped(here.values, each), before[key], err_msg=f"{name} writes into {key}")
    error = units_off(here.values(found), reference, scale, dtype)
    return error / allowed if allowed else error


def check_primitive(here: Machine, name: str, dtype: str, options: settings) -> None:
    """Search for a call whose error is above the bound."""

    @options
    @given(calls(name, dtype), st.booleans())
    def check(call: Call, small: bool) -> None:
        with cramped() if small else contextlib.nullcontext():
            share = share_of(here, name, call, dtype, here.forms[name])
        assert share <= 1, f"{name} is off by {share:.3g} times what is allowed"

    check()


FORMS = tuple(cupy_steps.primitives(cupy_steps.Steps(None)))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("primitive", FORMS)
@everywhere
def test_primitive(name: str, primitive: str, dtype: str) -> None:
    check_primitive(machine(name), primitive, dtype, searched(name, 12))


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_come_out_as_in_the_definition(name: str, dtype: str) -> None:
    here = machine(name)
    x = np.array([np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0, 30.0, -30.0], dtype)
    with np.errstate(all="ignore"):
        for kind in ACTIVATIONS:
            wanted = activated(x.astype(np.float64), kind)
            found = here.values(here.forms["activation"](here.array(x, dtype), kind))
            np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted), err_msg=kind)
            np.testing.assert_allclose(found[~np.isnan(wanted)], wanted[~np.isnan(wanted)], atol=1e-2, err_msg=kind)
        grid = np.tile(x, (1, 4, 4, 1)).astype(np.float64)
        grid[:, 1:] = 0.5
        for primitive in ("max_pool", "avg_pool", "global_avg_pool", "softmax"):
            wanted = getattr(DEFINITION, primitive)(grid)
            found = here.values(here.forms[primitive](here.array(grid, dtype)))
            np.testing.assert_allclose(found, wanted, rtol=1e-2, err_msg=primitive)
        rows = np.full((3, 8), -np.inf)
        rows[1], rows[2, :3] = np.nan, (np.inf, 1.0, 2.0)
        np.testing.assert_array_equal(
            here.values(here.forms["softmax"](here.array(rows, dtype))), DEFINITION.softmax(rows)
        )


ODD: list[tuple[str, Callable[[Any], tuple[Any, ...]], dict[str, Any]]] = [
    ("conv2d", lambda a: (a(2, 4, 6, 3), a(3, 3, 4, 5)), {}),
    ("conv2d", lambda a: (a(2, 4, 6, 3), a(5, 5, 3, 5)), {"padding": "valid"}),
    ("conv2d", lambda a: (a(2, 4, 6, 3), a(3, 3, 3, 5)), {"padding": "sideways"}),
    ("conv2d", lambda a: (a(4, 6, 3), a(3, 3, 3, 5)), {}),
    ("depthwise_conv2d", lambda a: (a(2, 4, 6, 3), a(3, 3, 4)), {}),
    ("depthwise_conv2d", lambda a: (a(2, 4, 6, 3), a(3, 7, 3)), {"padding": "valid"}),
    ("max_pool", lambda a: (a(2, 4, 6, 3),), {"padding": "sideways"}),
    ("max_pool", lambda a: (a(2, 4, 6, 3),), {"size": 5, "padding": "valid"}),
    ("avg_pool", lambda a: (a(2, 4, 6, 3),), {"padded_zeros": "sideways"}),
    ("activation", lambda a: (a(2, 3), "sideways"), {}),
    ("activation", lambda a: (a(2, 3), None), {}),
    ("dense", lambda a: (a(2, 4, 6, 3), a(4, 5)), {}),
    ("dense", lambda a: (a(2, 4, 6, 3), a(3, 5), a(4)), {}),
    ("squeeze_excite", lambda a: (a(2, 4, 6, 3), {"w": a(4, 5)}, {"w": a(5, 3)}), {"activation": "relu"}),
    ("squeeze_excite", lambda a: (a(2, 4, 6, 3), {"w": a(3, 5)}, {"w": a(5, 3)}), {"activation": "sideways"}),
    ("relative_attention", lambda a: (a(2, 1, 3, 4), a(2, 1, 3, 5), a(2, 1, 3, 5)), {}),
    ("relative_attention", lambda a: (a(2, 1, 3, 4),) * 3 + (a(2, 3, 3),), {}),
    ("relative_attention", lambda a: (a(2, 1, 3, 4),) * 3, {"add": "sideways"}),
    ("relative_attention", lambda a: (a(2, 1, 3, 4),) * 3, {"scale_site": "sideways"}),
]


@pytest.mark.parametrize(("primitive", "arrays", "options"), ODD)
@everywhere
def test_what_the_definition_refuses_is_refused_in_its_words(
    name: str, primitive: str, arrays: Any, options: dict[str, Any]
) -> None:
    here = machine(name)
    given = arrays(lambda *shape: here.xp.ones(shape, "float32"))
    with pytest.raises(Exception) as wanted:
        getattr(DEFINITION, primitive)(*given, **options)
    with pytest.raises(type(wanted.value)) as found:
        here.forms[primitive](*given, **options)
    assert str(found.value) == str(wanted.value)


@everywhere
def test_what_the_kernels_are_not_made_for_goes_to_the_definition(name: str) -> None:
    here = machine(name)
    random = np.random.default_rng(0)
    x, w = here.array(random.normal(size=(2, 4, 6, 3)), "float32"), here.array(random.normal(size=(3, 5)), "float64")
    mixed = here.forms["dense"](x, w)
    assert mixed.dtype == (x[0, 0] @ w).dtype
    np.testing.assert_allclose(here.values(mixed), here.values(x) @ here.values(w), rtol=1e-5)
    empty = here.xp.zeros((0, 4, 6, 3), "float32")
    assert here.forms["depthwise_conv2d"](empty, here.xp.ones((3, 3, 3), "float32")).shape == (0, 4, 6, 3)
    assert here.forms["activation"](empty, "gelu").shape == empty.shape
    assert here.forms["layer_norm"](x, x[0, 0, 0], x[0, 0, 0], epsilon=1e-3).shape == x.shape
    wide = {"w": here.xp.ones((3, 20000), "float32")}, {"w": here.xp.ones((20000, 3), "float32")}
    wanted = DEFINITION.squeeze_excite(x, *wide, activation="relu")
    found = here.forms["squeeze_excite"](x, *wide, activation="relu")
    np.testing.assert_allclose(here.values(found), here.values(wanted), rtol=1e-5)


# --- the steps of a prepared network ---


def after(value: np.ndarray, bound: Array, act: str | None) -> tuple[np.ndarray, Array]:
    """An activation of a value that is known to within `bound` roundings."""
    if act is None:
        return value, bound
    result: Array = activated(value, act)
    return result, SLOPE * bound + units.ACTIVATION_UNITS[act][0] * np.abs(value)


def of_primitive(name: str, call: Call) -> tuple[np.ndarray, Array]:
    """The value of a primitive and the roundings it may be off by."""
    allowed, scale = units.BOUNDS[name](**call.arrays, **call.options)
    return getattr(DEFINITION, name)(**call.arrays, **call.options), allowed * scale


class Step(NamedTuple):
    """A call of a step, the value that it must give, and the roundings that it may be off by."""

    arrays: dict[str, Any]
    options: dict[str, Any]
    value: np.ndarray
    bound: Array


@st.composite
def step_calls(draw: st.DrawFn, name: str, dtype: str) -> Step:
    """A call of a step of `Fused`."""
    one: Any = functools.partial(_one, draw)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    act = one(None, *ACTIVATIONS)

    def normal(*shape: int) -> Array:
        return random.normal(0.0, 1.0, shape).astype(dtype).astype(np.float64)

    if name in ("conv2d", "depthwise", "dense"):
        call = draw(calls({"depthwise": "depthwise_conv2d"}.get(name, name), dtype))
        value, bound = after(*of_primitive({"depthwise": "depthwise_conv2d"}.get(name, name), call), act)
        arrays, options = call.arrays | {"b": call.arrays.get("b")}, call.options | {"act": act}
        if name == "dense" and one(True, False):
            arrays["residual"] = normal(*value.shape)
            bound = bound + np.abs(value) + np.abs(arrays["residual"])
            value = value + arrays["residual"]
        return Step(arrays, options, value, bound)
    if name in ("affine", "squeeze_excite"):
        call = draw(calls("squeeze_excite", dtype))
        x, c = call.arrays["x"], call.arrays["x"].shape[3]
        scale, shift = normal(c), normal(c)
        if name == "affine":
            value, bound = after(x * scale + shift, 2 * (np.abs(x * scale) + np.abs(shift)), act)
            return Step({"x": x, "scale": scale, "shift": shift}, {"act": act}, value, bound)
        value, bound = of_primitive("squeeze_excite", call)
        arrays = call.arrays | {"scale": None, "shift": None}
        if one(True, False):
            arrays |= {"scale": scale, "shift": shift}
            bound = bound * np.abs(scale) + 3 * (np.abs(value * scale) + np.abs(shift))
            value = value * scale + shift
        value, bound = after(value, bound, act)
        return Step(arrays, {"gate_act": call.options["activation"], "act": act}, value, bound)
    if name == "attention":
        n, height, width, heads, size = one(2, 1, 3), one(3, 1), one(2, 4, 9), one(2, 1, 3), one(4, 8, 3)
        qkv, early = normal(n, height, width, 3 * heads * size), one(True, False)
        bias = one(None, normal(heads, height * width, height * width), normal(1, height * width, height * width))
        parts = (qkv[..., part * heads * size : (part + 1) * heads * size] for part in range(3))
        q, k, v = (np.moveaxis(part.reshape(n, height * width, heads, size), 2, 1) for part in parts)
        add = "pre_softmax" if early else "post_softmax"
        given = Call({"q": q, "k": k, "v": v, "bias": bias}, {"scale": 1.0, "scale_site": "query", "add": add}, "")
        merged = (
            np.moveaxis(each, 1, 2).reshape(n, height, width, heads * size)
            for each in of_primitive("relative_attention", given)
        )
        return Step({"qkv": qkv, "bias": bias}, {"heads": heads, "add": add}, *merged)
    if name == "layer_norm":
        call = draw(calls("layer_norm", dtype))
        ones = np.ones_like(call.arrays["gamma"])
        plain = Call({"x": call.arrays["x"], "gamma": ones, "beta": 0 * ones}, call.options, "")
        return Step({"x": call.arrays["x"], "gamma": None, "beta": None}, call.options, *of_primitive(name, plain))
    if name == "add":
        x, y = normal(2, 3, 4, 8), normal(2, 3, 4, 8)
        return Step({"x": x, "y": y}, {}, x + y, np.abs(x) + np.abs(y))
    call = draw(calls(name, dtype))
    return Step(call.arrays, call.options, *of_primitive(name, call))


GIVEN_UP = {("squeeze_excite", "x"), ("attention", "qkv"), ("add", "x")}
STEPS = (
    *("conv2d", "dense", "depthwise", "affine", "layer_norm", "squeeze_excite", "attention", "activation", "add"),
    *("max_pool", "avg_pool", "global_avg_pool", "softmax"),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", STEPS)
@everywhere
def test_step(name: str, step: str, dtype: str) -> None:
    here = machine(name)

    @searched(name, 12)
    @given(step_calls(step, dtype), st.sampled_from(("straight", "strided", "shifted")), st.booleans())
    def check(call: Step, layout: str, small: bool) -> None:
        def placed(value: Any) -> Any:
            return None if value is None else mapped(lambda x: here.array(x, dtype, layout), value)

        given = {key: placed(each) for key, each in call.arrays.items()}
        with cramped() if small else contextlib.nullcontext():
            found = getattr(here.fused, step)(**given, **call.options)
        share = units_off(here.values(found), call.value, call.bound + 1e-30, dtype)
        share /= 2 if dtype == "float64" else 1  # the value to compare with is rounded too, then
        assert share <= 1, f"{step} is off by {share:.3g} times what is allowed"
        for key, each in given.items():
            if each is not None and (step, key) not in GIVEN_UP:
                np.testing.assert_equal(mapped(here.values, each), mapped(here.values, placed(call.arrays[key])))

    check()


def test_no_step_is_left_to_the_primitives_but_linear_attention() -> None:
    plain, own = from_primitives(), machine("cpu").fused if absence("cpu") is None else machine("gpu").fused
    left = {
        field.name
        for field in dataclasses.fields(Fused)
        if getattr(own, field.name) is not None
        and getattr(getattr(own, field.name), "__qualname__", "")
        == getattr(getattr(plain, field.name), "__qualname__", None)
    }
    assert left == {"linear_attention"}


# --- networks ---


def moves_of(here: Machine, drawn: Any, dtype: str, fused: Fused | None = None) -> float:
    """How far the prepared network, and the network on the primitives, are off, in moves as `units` counts them."""
    exact = coatref.init(drawn.spec, drawn.seed, dtype=dtype, scheme="distinct").to(dtype="float64")
    x = drawn.images(dtype=dtype)
    reference = coatref.forward(exact, x, backend="definition")
    params, given = map_to(here, exact, dtype), here.array(x, dtype)
    fused = fused or here.fused
    with mock.patch.object(folding, "fused_for", lambda library: fused):
        prepared = coatref.prepare(params)
    results = [
        network.run(prepared, given, fused, no_tap),
        coatref.forward(params, given, backend=Primitives(**here.forms)),
    ]
    worst = max(float(np.max(np.abs(here.values(result) - reference))) for result in results)
    return worst / units.sensitivity(exact, x, dtype)


def map_to(here: Machine, params: coatref.Params, dtype: str) -> coatref.Params:
    """The parameters on a machine."""
    return coatref.Params(map_named(lambda name, array: here.array(array, dtype), params), params.spec)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@everywhere
def test_network(name: str, dtype: str) -> None:
    here = machine(name)

    @searched(name, 12)
    @given(specs())
    def check(drawn: Any) -> None:
        moves = moves_of(here, drawn, dtype)
        assert moves <= units.NETWORK_UNITS, f"off by {moves:.3g} moves of the output"

    check()


@pytest.mark.skipif(absence("gpu") is not None, reason=str(absence("gpu")))
def test_a_network_through_the_front_door_on_cuda() -> None:
    cupy: Any = importlib.import_module("cupy")
    spec = coatref.spec("timm/coatnet_0_rw_224")
    exact = coatref.init(spec, 0, dtype="float16", scheme="distinct").to(dtype="float64")
    x = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype("float16").astype("float64")
    wanted = coatref.forward(exact, x, backend="definition")
    for dtype, tolerance in (("float64", 1e-13), ("float32", 1e-5), ("float16", 3e-2)):
        params = exact.to(xp="cupy", dtype=dtype)
        for ready in (params, coatref.prepare(params)):
            found = cupy.asnumpy(coatref.forward(ready, cupy.asarray(x, dtype))).astype("float64")
            assert np.max(np.abs(found - wanted)) <= tolerance * np.max(np.abs(wanted)), (dtype, ready)


# --- planted faults ---

FAULTS: list[tuple[str, str, str, str]] = [  # primitive, kernels, what stands in their source, what is planted
    ("depthwise_conv2d", "depthwise", "first * STRIDE + m - o.left", "first * STRIDE + m - o.top"),
    ("depthwise_conv2d", "depthwise", "(first + t) * stride + l - o.left", "(first + t) * stride + l - o.left + 1"),
    ("conv2d", "patches", "tap / o.size_w, l = tap - k * o.size_w", "tap / o.size_h, l = tap - k * o.size_h"),
    ("avg_pool", "pool", "kind == MEAN_COUNTED", "kind != MEAN_COUNTED"),
    ("relative_attention", "softmax", "bias_heads == 1 ? 0 : h", "bias_heads == 1 ? 0 : n"),
    ("relative_attention", "softmax", "r.late = late != 0", "r.late = false"),
    ("layer_norm", "layer_norm", "+ (A)epsilon)", ")"),
    ("squeeze_excite", "gates", "work[thread] = sum;\n    __syncthreads();", "work[thread] = sum;"),
    ("global_avg_pool", "partial_sums", "p += STRIPES", "p += STRIPES + 1"),
    ("activation", "chain", "(A)0.044715", "(A)0.04"),
]


@pytest.mark.skipif(absence("cpu") is not None, reason=str(absence("cpu")))
@pytest.mark.parametrize(("primitive", "kernel", "right", "wrong"), FAULTS)
def test_a_wrong_kernel_is_found_out(primitive: str, kernel: str, right: str, wrong: str) -> None:
    def planted(source: str) -> str:
        assert right in source
        return source.replace(right, wrong)

    wrong_kernels = cuda_on_cpu.Kernels(
        32, tuple(n for n in cupy_steps.kernel_names(32) if n.startswith(kernel)), planted
    )
    right_kernels = cuda_on_cpu.kernels(32)

    class Mixed:
        def launch(self, name: str, *arguments: Any) -> None:
            (wrong_kernels if name in wrong_kernels.place else right_kernels).launch(name, *arguments)

    here = of_steps("cpu", np, cuda_on_cpu.device(lambda bits: Mixed()))  # type: ignore[arg-type, return-value]
    phases = [Phase.generate]
    options = settings(searched("cpu", 200), phases=phases, database=None, derandomize=True)
    with pytest.raises(AssertionError, match=r"times what is allowed"):
        check_primitive(here, primitive, "float32", options)


@pytest.mark.skipif(absence("cpu") is not None, reason=str(absence("cpu")))
def test_a_network_with_a_wrong_step_is_found_out() -> None:
    here = machine("cpu")

    def shifted(*args: Any, **options: Any) -> Array:
        return here.fused.layer_norm(*args, **(options | {"epsilon": 1.001 * options["epsilon"]}))

    wrong = dataclasses.replace(here.fused, layer_norm=shifted)

    @settings(searched("cpu", 100), phases=[Phase.generate], database=None, derandomize=True)
    @given(specs())
    def check(drawn: Any) -> None:
        assert moves_of(here, drawn, "float64", wrong) <= units.NETWORK_UNITS, "off by too many moves"

    with pytest.raises(AssertionError, match="too many moves"):
        check()


@pytest.mark.skipif(absence("cpu") is not None, reason=str(absence("cpu")))
def test_a_barrier_that_some_threads_never_reach_is_found_out() -> None:
    def planted(source: str) -> str:
        branch = "    if (threadIdx.y == 0 && c < channels) {"
        assert branch in source
        return source.replace(branch, f"{branch} __syncthreads();")

    stuck = cuda_on_cpu.Kernels(32, ("partial_sums<1>", "means"), planted)
    here = of_steps("cpu", np, cuda_on_cpu.device(lambda bits: stuck))
    with pytest.raises(AssertionError, match="wait for others"):
        here.forms["global_avg_pool"](np.ones((1, 3, 3, 5), "float32"))
