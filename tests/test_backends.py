"""Every array library gives the numbers of NumPy in float64, to within bounds that `units` derives.

Hypothesis draws the configurations: arguments of each primitive, and whole networks (`draw_specs`). A `Way` is a library
with a data type, a device and a manner of calling; each is judged on each primitive and end to end, on the definition and
on the forms of its own that the library has.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import array_api_strict as strict
import jax
import numpy as np
import pytest
import torch
import units
from draw_specs import Drawn, closed_choices, specs
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from signed import signed

import coatref
from coatref.ops.activation import ACTIVATIONS
from coatref.primitives import DEFINITION, Form, Primitives, primitives_for
from coatref.registry import Library, resolve_library
from coatref.specification import parts
from coatref.specification.fields import hints
from coatref.specification.parts import Attention
from coatref.tree import map_named

Array = Any
NAMES = tuple(field.name for field in dataclasses.fields(Primitives))


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_torch() -> Iterator[None]:
    """On arrays as small as these its threads wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- the ways ---


def plainly(function: Form) -> Form:
    return function


def straight(array: np.ndarray) -> np.ndarray:
    return array


def strided(array: np.ndarray) -> np.ndarray:
    """The same values, read-only, every other number of a larger array with its axes in the other order, amid NaN."""
    around = np.full([2 * length + 1 for length in reversed(array.shape)], np.nan if array.dtype.kind == "f" else False)
    view = around.astype(array.dtype)[(slice(1, None, 2),) * array.ndim].T
    view[...] = array
    view.flags.writeable = False
    return view


class Way(NamedTuple):
    """One way of computing: `manner` turns a function of arrays into how it is called, `layout` lays an array out first."""

    name: str
    library: str
    dtype: str
    device: Any = None
    manner: Callable[[Form], Form] = plainly
    layout: Callable[[Array], Array] = straight

    @property
    def its(self) -> Library:
        """The library."""
        return resolve_library(self.library)

    def array(self, values: np.ndarray) -> Array:
        """These float64 values as an array of the library; Booleans stay what they are."""
        xp = self.its.namespace()
        dtype = xp.bool if values.dtype == bool else getattr(xp, self.dtype)
        return self.layout(xp.asarray(values, dtype=dtype, device=self.device))

    def values(self, array: Array) -> np.ndarray:
        """An array of the library as float64 values, once its library, data type and device are seen to be right."""
        assert coatref.registry.library_of(array).name == self.its.name
        assert array.dtype == getattr(self.its.namespace(), self.dtype)
        assert self.device is None or str(self.its.device(array)) == str(self.device)
        return np.asarray(self.its.to_numpy(array), np.float64)

    def params(self, drawn: Drawn) -> coatref.Params:
        """The drawn network's parameters."""
        params = signed(
            coatref.init(
                drawn.spec, drawn.seed, xp=self.library, dtype=self.dtype, device=self.device, scheme="distinct"
            )
        )
        return coatref.Params(map_named(lambda name, array: self.layout(array), params), params.spec)

    @contextlib.contextmanager
    def configured(self) -> Iterator[None]:
        """The library set as this way wants it: array-api-strict at its strictest, JAX with 64-bit types or without.

        Compiled float32 has 64-bit types at hand, to show that none comes in where nobody asked for it.
        """
        if self.library == "jax":
            with jax.enable_x64(self.dtype == "float64" or self.manner is jax.jit):
                yield
        elif self.library == "array_api_strict":
            strict.set_array_api_strict_flags(
                boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
            )
            try:
                yield
            finally:
                strict.reset_array_api_strict_flags()
        else:
            yield


def channels_first(array: Array) -> Array:
    """The same torch tensor with its last axis laid out before the others, as images have that came as (N, C, H, W)."""
    first = 1 if array.ndim > 2 else 0
    return torch.movedim(torch.movedim(array, -1, first).contiguous(), first, -1)


def ways() -> Iterator[Way]:
    """All of them."""
    yield Way("numpy-float64-strided", "numpy", "float64", layout=strided)
    yield Way("numpy-float32", "numpy", "float32")
    for dtype in ("float32", "float64"):
        yield Way(f"torch-{dtype}", "torch", dtype)
        yield Way(f"torch-{dtype}-cuda", "torch", dtype, "cuda:0")
        yield Way(f"cupy-{dtype}", "cupy", dtype)
        yield Way(f"jax-{dtype}", "jax", dtype)
        yield Way(f"jax-{dtype}-jit", "jax", dtype, manner=jax.jit)
    yield Way("torch-float64-strided", "torch", "float64", layout=channels_first)
    info = strict.__array_namespace_info__()
    for device in info.devices():
        for dtype in sorted({"float32", "float64"} & set(info.dtypes(device=device))):
            yield Way(f"strict-{dtype}-{device._device}", "array_api_strict", dtype, device)


def examples(way: Way, cheap: int, compiled: int) -> int:
    """How many examples a way gets: JAX compiles each anew, operation by operation where it is not told to compile all."""
    if way.library != "jax":
        return max(1, cheap // 3) if way.library == "array_api_strict" else cheap
    return compiled if way.manner is jax.jit else (compiled + 1) // 2


def absence(way: Way) -> str | None:
    """Why a way cannot be gone here, or None."""
    if way.library == "cupy":
        if importlib.util.find_spec("cupy") is None:
            return "needs CuPy, which is not installed (pip install 'coatref[cupy]')"
        cupy: Any = importlib.import_module("cupy")
        return None if cupy.is_available() else "needs a CUDA device, and CuPy finds none"
    if way.device == "cuda:0" and not torch.cuda.is_available():
        return "needs a CUDA device and a CUDA build of torch"
    return None


WAYS = list(ways())


def parameters() -> pytest.MarkDecorator:
    """The ways as pytest parameters; those that cannot be gone here are skipped and say why."""
    return pytest.mark.parametrize(
        "way",
        [
            pytest.param(way, id=way.name, marks=[pytest.mark.skip(reason=reason)] if (reason := absence(way)) else [])
            for way in WAYS
        ],
    )


def searched(examples: int, way: Way | None = None) -> settings:
    """Hypothesis's settings: so many examples, of any duration.

    No shrinking for JAX, which compiles each example for a second, nor where a known fault is sought: that search is the
    same in every run, and what it finds is not kept for others.
    """
    wrong = way is not None and way.name == "wrong"
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    if way is None or not (wrong or way.library == "jax"):
        phases += [Phase.target, Phase.shrink]
    found = settings(max_examples=examples, deadline=None, phases=phases, report_multiple_bugs=False)
    return settings(found, database=None, derandomize=True) if wrong else found


# --- one primitive ---


class Call(NamedTuple):
    """Arguments of a primitive: float64 arrays, by name or in a dense layer by name, and the rest."""

    arrays: dict[str, Any]
    options: dict[str, Any]


@st.composite
def calls(draw: st.DrawFn, name: str, dtype: str) -> Call:
    """Draw a call of the primitive of that name, of numbers that `dtype` holds; no two axes have the same length."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, height, width, c, d, kernel = draw(st.permutations((2, 3, 4, 5, 6, 7)))
    size = draw(st.sampled_from((1.0, 1e-3, 10.0)))
    one = functools.partial(_one, draw)

    def normal(*shape: int) -> np.ndarray:
        return (size * random.normal(0.0, 1.0, shape)).astype(dtype).astype(np.float64)

    def positive(*shape: int) -> np.ndarray:
        return random.uniform(0.01, 4.0, shape).astype(dtype).astype(np.float64)

    def dense(c: int, d: int) -> dict[str, np.ndarray]:
        return {"w": normal(c, d)} | ({"b": normal(d)} if one(True, False) else {})

    window = {"stride": one(1, 2), "padding": one("same", "symmetric", "valid")}
    pool = {"size": min(kernel, height, width), **window}
    grid, heads = normal(n, height, width, c), {"q": (n, c, height, d), "k": (n, c, width, d), "v": (n, c, width, d)}
    kh, kw = min(kernel, height), min(kernel - 1, width)
    epsilon = {"epsilon": one(1e-5, 1e-3, 1e-6)}
    kind = one(*ACTIVATIONS)
    match name:
        case "conv2d":
            layer = dense(kh * kw * c, d)
            return Call({"x": grid, **layer, "w": layer["w"].reshape(kh, kw, c, d)}, window)
        case "depthwise_conv2d":
            layer = dense(kh * kw, c)
            return Call({"x": grid, **layer, "w": layer["w"].reshape(kh, kw, c)}, window)
        case "max_pool":
            return Call({"x": grid}, pool)
        case "avg_pool":
            return Call({"x": grid}, pool | {"padded_zeros": one("excluded", "counted")})
        case "global_avg_pool":
            return Call({"x": grid}, {})
        case "batch_norm":
            statistics = {"mean": normal(c), "var": positive(c)}
            return Call({"x": grid, "gamma": normal(c), "beta": normal(c), **statistics}, epsilon)
        case "layer_norm":
            return Call(
                {"x": (grid + one(0.0, 64.0)).astype(dtype).astype(np.float64), "gamma": normal(c), "beta": normal(c)},
                epsilon,
            )
        case "activation":
            return Call({"x": grid}, {"kind": kind})
        case "softmax":
            return Call({"x": grid}, {})
        case "squeeze_excite":
            return Call({"x": grid, "reduce": dense(c, d), "expand": dense(d, c)}, {"activation": kind})
        case "dense":
            return Call({"x": one(grid, grid[0, 0]), **dense(c, d)}, {})
        case "gather_bias":
            return Call({"table": normal(n, 2 * height - 1, 2 * width - 1)}, {"height": height, "width": width})
        case "relative_attention":
            arrays = {each: normal(*shape) for each, shape in heads.items()}
            if (bias := one("per_head", "shared", None)) is not None:
                arrays["bias"] = normal(c if bias == "per_head" else 1, height, width)
            if (hidden := one("none", "keys", "of each image")) != "none":
                arrays["key_mask"] = random.uniform(size=(n, width) if hidden == "of each image" else width) < 0.7
                arrays["key_mask"][..., 0] = True
            add, site = one("pre_softmax", "post_softmax"), one(*get_args(hints(Attention)["scale_site"]))
            return Call(arrays, {"scale": one(0.5, 1 / 7, 3.0), "scale_site": site, "add": add})
        case "linear_attention":
            return Call({each: normal(*shape) for each, shape in heads.items()}, {})
    raise AssertionError(f"no call is drawn for {name}")


def _one(draw: st.DrawFn, *options: Any) -> Any:
    return options[draw(st.integers(0, len(options) - 1))]


def error_of(way: Way, name: str, call: Call) -> tuple[float, float]:
    """The largest error in units of any form that the way's library has of a primitive, and the number allowed."""
    allowed, scale = units.BOUNDS[name](**call.arrays, **call.options)
    reference = getattr(DEFINITION, name)(**call.arrays, **call.options)
    with way.configured():
        given = {key: _map_arrays(way.array, each) for key, each in call.arrays.items()}
        forms = {getattr(primitives_for(next(iter(given.values()))), name), getattr(DEFINITION, name)}
        results = [way.values(way.manner(functools.partial(form, **call.options))(**given)) for form in forms]
    error = max(units.units(result, reference, scale, way.dtype) for result in results)
    return error, allowed * (2 if way.dtype == "float64" else 1)


def _map_arrays(function: Form, value: Any) -> Any:
    return {key: function(each) for key, each in value.items()} if isinstance(value, dict) else function(value)


def check_primitive(way: Way, name: str, examples: int) -> tuple[float, float]:
    """Search for a call on which a way's error is above the bound; the largest found, in units and as a share of it."""
    worst = (0.0, 0.0)

    @searched(examples, way)
    @given(calls(name, way.dtype))
    def check(call: Call) -> None:
        nonlocal worst
        error, allowed = error_of(way, name, call)
        assert error <= allowed, f"{name} on {way.name} is off by {error:.3g} units, where {allowed:g} are allowed"
        worst = max(worst[0], error), max(worst[1], error / allowed if allowed else 0.0)

    check()
    return worst


@pytest.mark.parametrize("name", NAMES)
@parameters()
def test_primitive(way: Way, name: str) -> None:
    if way.name == "jax-float32":
        pytest.skip("takes as long as jax-float64 to compile every operation; `-m deep` runs it")
    check_primitive(way, name, examples(way, cheap=15, compiled=3))


def test_every_primitive_has_a_bound() -> None:
    assert tuple(units.BOUNDS) == NAMES
    assert set(units.ACTIVATION_UNITS) == set(ACTIVATIONS)


# --- whole networks ---


def moves_of(way: Way, drawn: Drawn) -> float:
    """How far a way's output lies from NumPy's in float64, in moves of the output under perturbations of one unit."""
    exact = signed(coatref.init(drawn.spec, drawn.seed, dtype=way.dtype, scheme="distinct")).to(dtype="float64")
    x = drawn.images(dtype=way.dtype)
    reference = coatref.forward(exact, x, backend="definition")
    with way.configured():
        params, given = way.params(drawn), way.array(x)
        results = [way.values(way.manner(coatref.forward)(params, given))]
        if way.name != "wrong":
            results.append(way.values(way.manner(prepared_forward)(params, given)))
        if primitives_for(given) != DEFINITION:
            results.append(
                way.values(way.manner(functools.partial(coatref.forward, backend="definition"))(params, given))
            )
    for result in results:
        assert result.shape == reference.shape
    return max(float(np.max(np.abs(result - reference))) for result in results) / units.sensitivity(exact, x, way.dtype)


def prepared_forward(params: coatref.Params, x: Array) -> Array:
    """The fast forms on prepared parameters."""
    return coatref.forward(coatref.prepare(params), x)


def check_network(way: Way, count: int, most_stages: int = 3) -> float:
    """Search for a network on which a way's output is too far off; the largest distance found, in moves."""
    worst = [0.0]

    @searched(count, way)
    @given(specs(most_stages))
    def check(drawn: Drawn) -> None:
        moves = moves_of(way, drawn)
        worst.append(moves)
        assert moves <= units.NETWORK_UNITS, f"{way.name} is off by {moves:.3g} moves of the output"

    check()
    return max(worst)


@parameters()
def test_network(way: Way) -> None:
    if way.name == "jax-float64":
        pytest.skip("takes as long as jax-float32 to compile every operation; `-m deep` runs it")
    check_network(way, examples(way, cheap=12, compiled=2), most_stages=1 if way.library == "jax" else 3)


@searched(25)
@given(specs())
def test_read_only_inputs_are_as_good_and_stay_as_they_are(drawn: Drawn) -> None:
    x = drawn.images()
    x.flags.writeable = False
    params = coatref.init(drawn.spec, drawn.seed, dtype="float64", scheme="distinct")
    loose = coatref.Params(map_named(lambda name, array: array.copy(), params), params.spec)
    before = [array.tobytes() for array in (x, *params.flatten().values())]
    np.testing.assert_array_equal(coatref.forward(params, x), coatref.forward(loose, x.copy()))
    assert [array.tobytes() for array in (x, *params.flatten().values())] == before
    assert [array.tobytes() for array in (x, *loose.flatten().values())] == before


@searched(10)
@given(specs())
def test_torch_maps_over_the_batch(drawn: Drawn) -> None:
    """torch.func.vmap of one image at a time is the batch; `tests/test_pytrees.py` has the gradients and JAX's vmap."""
    way = Way("torch-float64", "torch", "float64")
    params, x = way.params(drawn), way.array(drawn.images(3))
    one_by_one = torch.func.vmap(lambda image: coatref.forward(params, image[None, ...])[0, ...])(x)
    exact = signed(coatref.init(drawn.spec, drawn.seed, dtype="float64", scheme="distinct"))
    reference = coatref.forward(exact, drawn.images(3), backend="definition")
    moved = units.sensitivity(exact, drawn.images(3), "float64")
    assert np.max(np.abs(way.values(one_by_one) - reference)) <= units.NETWORK_UNITS * moved


# --- the judges, on what is known to be wrong ---


def in_float32(value: Any) -> Any:
    """Every float64 array in float32 and back."""
    if isinstance(value, dict):
        return {key: in_float32(each) for key, each in value.items()}
    is_float = isinstance(value, np.ndarray) and value.dtype == np.float64
    return value.astype(np.float32).astype(np.float64) if is_float else value


def from_float32(function: Form) -> Form:
    return lambda **given: function(**in_float32(given))


def to_float32(function: Form) -> Form:
    return lambda *args, **kwargs: in_float32(function(*args, **kwargs))


def with_nan(function: Form) -> Form:
    def spoilt(**given: Any) -> Array:
        y = np.array(function(**given))
        y[(-1,) * y.ndim] = np.nan
        return y

    return spoilt


def instead(**changes: Any) -> Callable[[Form], Form]:
    """With other options than those given."""
    return lambda function: lambda *args, **given: function(*args, **(given | changes))


def transposed(function: Form) -> Form:
    return lambda *args, **given: np.swapaxes(function(*args, **given), -1, -2)


def without_bias(function: Form) -> Form:
    return lambda x, w, b=None: function(x, w)


def with_tanh(function: Form) -> Form:
    return lambda x, kind: function(x, "gelu_tanh" if kind == "gelu" else kind)


FAULTS: list[tuple[str, Callable[[Form], Form]]] = [
    *((name, fault) for name in NAMES for fault in (from_float32, to_float32, with_nan)),
    ("activation", with_tanh),
    ("layer_norm", instead(epsilon=1.0001e-5)),
    ("batch_norm", instead(epsilon=1.0000001e-3)),
    ("avg_pool", instead(padded_zeros="counted")),
    ("max_pool", instead(padding="symmetric")),
    ("conv2d", instead(padding="symmetric")),
    ("depthwise_conv2d", instead(stride=1)),
    ("relative_attention", instead(scale=0.5 + 1e-12)),
    ("relative_attention", instead(scale_site="logits_and_bias")),
    ("squeeze_excite", instead(activation="gelu_tanh")),
    ("softmax", transposed),
    ("gather_bias", transposed),
    ("dense", without_bias),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_wrong_primitive_is_found_out(name: str, fault: Callable[[Form], Form]) -> None:
    def manner(form: Form) -> Form:
        options = form.keywords if isinstance(form, functools.partial) else {}
        return functools.partial(fault(form.func if isinstance(form, functools.partial) else form), **options)

    with pytest.raises(AssertionError, match=r"is off by .* units, where"):
        check_primitive(Way("wrong", "numpy", "float64", manner=manner), name, 100)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("dense", to_float32),
        ("gather_bias", transposed),
        ("batch_norm", instead(epsilon=1.0000001e-3)),
        ("layer_norm", instead(epsilon=1.0001e-5)),
        ("activation", with_tanh),
        ("max_pool", to_float32),
    ],
)
def test_a_network_with_a_wrong_primitive_is_found_out(name: str, fault: Callable[[Form], Form]) -> None:
    wrong = Primitives(**{name: fault(getattr(DEFINITION, name))})

    def manner(forward: Form) -> Form:
        return lambda params, x: coatref.forward(params, x, backend=wrong)

    with pytest.raises(AssertionError, match=r"is off by .* moves of the output"):
        check_network(Way("wrong", "numpy", "float64", manner=manner), 300)


def test_a_network_of_images_in_float32_is_found_out() -> None:
    def manner(forward: Form) -> Form:
        return lambda params, x: forward(params, in_float32(x))

    with pytest.raises(AssertionError, match=r"moves of the output"):
        check_network(Way("wrong", "numpy", "float64", manner=manner), 20)


# --- the draws ---


def seen(value: Any, found: collections.defaultdict[tuple[type, str], set[Any]]) -> None:
    """Collect from a spec, or a part of one, the values of all fields that are closed choices."""
    if isinstance(value, tuple):
        for each in value:
            seen(each, found)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            found[type(value), field.name].add(len(inner) if isinstance(inner, tuple) else inner)
            seen(inner, found)


def test_specs_draws_every_choice_of_every_part() -> None:
    found: collections.defaultdict[tuple[type, str], set[Any]] = collections.defaultdict(set)
    sizes: set[tuple[int, int]] = set()

    @settings(max_examples=600, deadline=None, derandomize=True, database=None, phases=(Phase.generate,))
    @given(specs())
    def draw(drawn: Drawn) -> None:
        seen(drawn.spec, found)
        sizes.add(drawn.spec.image_size)

    draw()
    records = [cls for cls in vars(parts).values() if dataclasses.is_dataclass(cls) and isinstance(cls, type)]
    assert len(records) == 14
    for cls in records:
        choices = closed_choices(cls) | ({"kind": get_args(hints(cls)["kind"])} if "kind" in hints(cls) else {})
        for name, options in choices.items():
            assert found[cls, name] >= set(options), f"{cls.__name__}.{name}: never {set(options) - found[cls, name]}"
        for name, hint in hints(cls).items():
            if type(None) in get_args(hint):  # a part that may be absent
                assert None in found[cls, name] and len(found[cls, name]) > 1, f"{cls.__name__}.{name}"
    assert {(height % 2, width % 2) for height, width in sizes} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert sum(height != width for height, width in sizes) > 50


# --- by hand ---


@pytest.mark.deep
def test_measured_units(capsys: pytest.CaptureFixture[str]) -> None:
    """Many more examples of everything, and a table of what was measured."""
    here = [way for way in WAYS if absence(way) is None]
    with capsys.disabled():
        print("\nlargest error in units, and its largest share of the bound (of twice the bound in float64)")
        for way in here:
            found = {name: check_primitive(way, name, examples(way, cheap=300, compiled=6)) for name in NAMES}
            print(f"{way.name:26}", *(f"{name} {error:.2g} {share:.0%} " for name, (error, share) in found.items()))
        print(f"largest distance of whole networks in moves, of {units.NETWORK_UNITS} allowed")
        for way in here:
            print(f"{way.name:26}", f"{check_network(way, examples(way, cheap=300, compiled=24)):.2f}", flush=True)
