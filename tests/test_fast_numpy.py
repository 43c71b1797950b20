"""NumPy's fast forms: whole networks in small pieces and on several threads, activations over all of float32, faults.

`test_backends.py` judges every primitive and prepared networks as they come; there everything fits into one tile. Here
tiles, shares and parts of the batch are made so small that every network is cut in all the ways that a large one is.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.special
import units
from draw_specs import Drawn, specs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from signed import signed

import coatref
from coatref.backends import numpy as backend
from coatref.backends import numpy_blocks as blocks
from coatref.backends import numpy_passes as passes
from coatref.errors import InputError
from coatref.primitives import DEFINITION

Array = Any
DERIVATION = Path(__file__).parents[1] / "docs" / "derive_gelu.py"


@pytest.fixture(params=["loops", "passes"], autouse=True)
def elementwise_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test twice: with numba's compiled loops, and with NumPy's passes alone as where numba is absent."""
    if request.param == "passes":
        monkeypatch.setattr(passes, "loops", lambda: None)
        monkeypatch.setattr(blocks, "loops", lambda: None)
    elif reason := passes.no_loops():
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles, shares of channels, blocks of queries and parts of the batch of a few numbers each."""
    monkeypatch.setattr(passes, "TILE", 37)
    monkeypatch.setattr(blocks, "QUERIES", 19)
    monkeypatch.setattr(blocks, "EXPANDED", 200)
    monkeypatch.setattr(backend, "PIXELS", 60)


class Expected(NamedTuple):
    """A network's parameters and images, its output by the definition in float64, and one move of it."""

    params: coatref.Params
    x: Array
    reference: Array
    move: float


def expected(drawn: Drawn, dtype: str, batch: int) -> Expected:
    params = signed(coatref.init(drawn.spec, drawn.seed, dtype=dtype, scheme="distinct"))
    exact, x = params.to(dtype="float64"), drawn.images(batch, dtype)
    reference = coatref.forward(exact, x, backend="definition")
    return Expected(params, x.astype(dtype), reference, units.sensitivity(exact, x, dtype))


expected_once = functools.cache(expected)


def off_by(wanted: Expected, threads: int) -> float:
    """How far prepared parameters lead from the definition in float64, in moves; see `units`."""
    found = coatref.forward(coatref.prepare(wanted.params), wanted.x, threads=threads)
    assert found.dtype == wanted.x.dtype and found.shape == wanted.reference.shape and np.isfinite(found).all()
    return float(np.max(np.abs(found - wanted.reference))) / wanted.move


def check(dtype: str, examples: int, derandomize: bool = False) -> None:
    """Search for a network that is too far off."""

    @settings(max_examples=examples, deadline=None, derandomize=derandomize, database=None)
    @given(specs(), st.integers(1, 5), st.integers(1, 3))
    def run(drawn: Drawn, batch: int, threads: int) -> None:
        moves = off_by(expected(drawn, dtype, batch), threads)
        assert moves <= units.NETWORK_UNITS, f"is off by {moves:.3g} moves of the output"

    run()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_networks_in_small_pieces(dtype: str) -> None:
    check(dtype, 25)


@pytest.mark.deep
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_networks_in_small_pieces(dtype: str) -> None:
    check(dtype, 1500)


SMALL: dict[str, Any] = {"image_size": (64, 96), "classes": 7}
NETWORKS = (  # an ordinary size of piece, and every whole branch: squeeze-excite early and late, all pools, no biases
    coatref.spec("timm/coatnet_0_rw_224", depths=(1, 1, 2, 1), widths=(32, 64, 96, 160), **SMALL),
    coatref.spec("coatnet_0", depths=(2, 1, 2, 2, 1), widths=(24, 32, 64, 96, 160), **SMALL),
    coatref.spec("kecam/CoAtNet0", depths=(1, 2, 1, 1), widths=(32, 64, 96, 160), **SMALL),
    coatref.spec("timm/coatnext_nano_rw_224", depths=(1, 1, 1, 1), widths=(64, 64, 128, 256), **SMALL),
    coatref.spec("timm/coatnet_rmlp_nano_rw_224", depths=(1, 1, 1, 1), widths=(32, 64, 96, 160), **SMALL),
)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_ordinary_networks(spec: coatref.Spec, threads: int) -> None:
    for dtype, batch in (("float32", 3), ("float64", 2)):
        assert off_by(expected_once(Drawn(spec, 5), dtype, batch), threads) <= units.NETWORK_UNITS


def test_the_unprepared_forms_use_threads_too() -> None:
    spec = NETWORKS[0]
    params = coatref.init(spec, 1, dtype="float64", scheme="distinct")
    x = Drawn(spec, 1).images(3)
    reference = coatref.forward(params, x, backend="definition")
    for threads in (1, 2):
        moved = np.max(np.abs(coatref.forward(params, x, threads=threads) - reference))
        assert moved <= units.NETWORK_UNITS * units.sensitivity(params, x, "float64")


def test_inputs_stay_as_they_are_and_may_have_any_strides() -> None:
    spec = NETWORKS[0]
    prepared = coatref.prepare(coatref.init(spec, 1, scheme="distinct"))
    x = Drawn(spec, 1).images(2, "float32").astype("float32")
    first = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(
        0, 2, 3, 1
    )  # as images have that came channels first
    first.flags.writeable = False
    before = first.tobytes()
    np.testing.assert_array_equal(coatref.forward(prepared, first), coatref.forward(prepared, x))
    assert first.tobytes() == before


def test_equal_calls_give_equal_bits() -> None:
    """Work is cut by the number of threads alone, so the sums are the same whichever thread is first."""
    prepared = coatref.prepare(coatref.init(NETWORKS[1], 1, scheme="distinct"))
    x = Drawn(NETWORKS[1], 1).images(3, "float32").astype("float32")
    first = coatref.forward(prepared, x, threads=2)
    for _ in range(5):
        np.testing.assert_array_equal(coatref.forward(prepared, x, threads=2), first)


def test_float16_is_left_to_the_primitives() -> None:
    params = coatref.init(NETWORKS[0], 1, dtype="float16", scheme="distinct")
    x = Drawn(NETWORKS[0], 1).images(1, "float16").astype("float16")
    prepared = coatref.forward(coatref.prepare(params), x)
    assert prepared.dtype == np.float16
    exact = coatref.forward(params.to(dtype="float64"), x.astype("float64"), backend="definition")
    assert np.max(np.abs(prepared - exact)) < 0.05 * np.max(np.abs(exact))


# --- threads ---


def test_threads_come_from_the_argument_then_the_environment_then_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COATREF_NUM_THREADS", "3")
    assert backend.thread_count(5) == 5
    assert backend.thread_count() == 3
    monkeypatch.delenv("COATREF_NUM_THREADS")
    assert backend.thread_count() >= 1
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("COATREF_NUM_THREADS", wrong)
        with pytest.raises(InputError, match="COATREF_NUM_THREADS"):
            backend.thread_count()


def test_blas_is_held_to_one_thread_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers() -> list[int]:
        return [info["num_threads"] for info in backend.blas().info() if info["user_api"] == "blas"]

    before, within = numbers(), []

    def compute(part: Array, team: Any) -> Array:
        within.append(numbers())
        return part

    x = np.zeros((3, 224, 224, 1), np.float32)
    np.testing.assert_array_equal(backend.divide(compute, x, 2), x)
    assert numbers() == before and within and all(set(each) == {1} for each in within)


def test_an_error_in_a_thread_comes_out() -> None:
    def compute(part: Array, team: Any) -> Array:
        return np.concatenate(team.run(lambda index: part if index == 0 else part[0, 0, 0, 0] + [1, 2] @ part, 2))

    with pytest.raises(ValueError, match="matmul"):
        backend.divide(compute, np.zeros((1, 300, 300, 3)), 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 16))
def test_shares_cover_everything_once(length: int, count: int, multiple: int) -> None:
    cuts = blocks.shares(length, count, multiple)
    assert np.concatenate([np.arange(length)[cut] for cut in cuts]).tolist() == list(range(length))
    assert len(cuts) <= count and all(cut.stop > cut.start for cut in cuts)
    assert all(cut.start % multiple == 0 for cut in cuts)


# --- activations in float32, over every number of the format ---

# The largest error found over every float32 from -infinity to infinity, rounded up, in units of 2^-24 of |x| (of |erf x|
# for erf): the fit, the rounding of each step, and NumPy's exp and tanh. The test is that nothing is above it.
WORST = {"gelu": 3.0, "gelu_tanh": 3.0, "silu": 3.0, "mish": 5.0, "relu": 0.0, "tanh": 8.0, "erf": 8.0}


def exactly(name: str, x: Array) -> Array:
    """The function in float64, by SciPy and NumPy."""
    match name:
        case "gelu":
            return x * scipy.special.ndtr(x)
        case "gelu_tanh":
            return x * scipy.special.expit(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        case "silu":
            return x * scipy.special.expit(x)
        case "mish":
            return x * np.tanh(np.logaddexp(0.0, x))
        case "relu":
            return np.maximum(x, 0.0)
        case "tanh":
            return np.tanh(x)
    return scipy.special.erf(x)


def worst_error(name: str, bits: Array) -> float:
    """The largest error over float32 numbers given by their bits, in the units of `WORST`."""
    with np.errstate(all="ignore"):
        x = bits.astype(np.uint32).view(np.float32)
        x = x[np.isfinite(x)]
        wide = x.astype(np.float64)
        reference = exactly(name, wide)
        found = passes.erf32(x) if name == "erf" else passes.elementwise(x, name)
        size = np.abs(reference) if name in ("erf", "tanh") else np.abs(wide)
        one = np.maximum(size * 2.0**-24, float(np.finfo(np.float32).tiny))
        error = np.abs(found.astype(np.float64) - reference) / one
    assert not np.isnan(error).any()
    return float(error.max(initial=0.0))


def some_bits() -> Iterator[Array]:
    """Every 1021st number, and the thousand around each power of two and around each end of the polynomials."""
    yield np.arange(0, 2**32, 1021, dtype=np.uint64)
    edges = [
        np.float32(edge).view(np.uint32) for edge in (*(2.0**k for k in range(-126, 128)), 3.0, 4.0, 5.5, 6.0, 20.0)
    ]
    around = np.arange(-500, 500)
    yield np.concatenate([(int(edge) + around) for edge in edges]).astype(np.uint64)
    yield np.concatenate([(int(edge) + around) for edge in edges]).astype(np.uint64) + 2**31


@pytest.mark.parametrize("name", WORST)
def test_activations_on_a_sample_of_float32(name: str) -> None:
    assert max(worst_error(name, bits) for bits in some_bits()) <= WORST[name]


@pytest.mark.deep
@pytest.mark.parametrize("name", WORST)
def test_activations_on_all_of_float32(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    step = 2**24
    worst = max(worst_error(name, np.arange(start, start + step, dtype=np.uint64)) for start in range(0, 2**32, step))
    with capsys.disabled():
        print(f"\n{name}: {worst:.3f} units of 2^-24 at most")
    assert worst <= WORST[name]


@pytest.mark.skipif(not DERIVATION.is_file(), reason="needs the checkout: docs/derive_gelu.py is not beside the tests")
def test_the_polynomials_are_those_of_the_derivation() -> None:
    found = importlib.util.spec_from_file_location("derive_gelu", DERIVATION)
    assert found is not None and found.loader is not None
    derivation = importlib.util.module_from_spec(found)
    found.loader.exec_module(derivation)
    for name, stated in (("MINUS_LOG_ODDS32", 0.49), ("ARTANH_ERF32", 1.60)):
        table = getattr(passes, name)
        assert derivation.error(name, table) <= stated
        # the fit, made anew, gives the same polynomial: no coefficient is another one's, and none was edited
        np.testing.assert_allclose(table, derivation.fit(name), rtol=1e-4)


def test_activations_of_infinity_and_nan_are_those_of_the_definition() -> None:
    x = np.asarray([math.inf, -math.inf, math.nan, 0.0, -0.0, 3e38, -3e38], np.float32)
    with np.errstate(all="ignore"):
        for name in passes.IN_PLACE:
            expected = DEFINITION.activation(x, name)
            np.testing.assert_array_equal(passes.elementwise(x, name), expected, err_msg=name)


# --- faults ---


def loses_the_last_tile(y: Array, act: str | None, **options: Any) -> None:
    passes.finish(y[: max(1, y.shape[0] - 1)], act, **{key: cut(value, y) for key, value in options.items()})


def cut(value: Array, y: Array) -> Array:
    return value[: max(1, y.shape[0] - 1)] if value is not None and value.shape[0] == y.shape[0] else value


def loses_the_last_channel(length: int, count: int, multiple: int = 1) -> list[slice]:
    *rest, last = RIGHT["shares"](length, count, multiple)
    return [*rest, slice(last.start, max(last.start + 1, last.stop - 1))]


def without_bias(q: Array, k: Array, v: Array, bias: Array | None, add: str, out: Array) -> None:
    RIGHT["attend"](q, k, v, None, add, out)


def with_transposed_bias(q: Array, k: Array, v: Array, bias: Array | None, add: str, out: Array) -> None:
    RIGHT["attend"](q, k, v, None if bias is None else bias.T, add, out)


def without_largest_weight(q: Array, k: Array, v: Array, bias: Array | None, add: str, out: Array) -> None:
    RIGHT["attend"](q[:, :-1], k, v, None if bias is None else bias[:-1], add, out[:, :-1])


def swapped_borders(shape: Any, kernel: Any, stride: int, padding: Any, dtype: Any) -> Any:
    whole, _ = RIGHT["bordered"](shape, kernel, stride, padding, dtype)
    return whole, whole[:, whole.shape[1] - shape[1] :, whole.shape[2] - shape[2] :]


def windows_of_the_batch(padded: Array, kh: int, kw: int, stride: int) -> Array:
    return RIGHT["windows"](padded, kh, kw, stride)[:, :, :, ::-1]


def with_other_epsilon(x: Array, epsilon: float, axis: int) -> Array:
    return RIGHT["standardise"](x, 1.001 * epsilon, axis)


def half_a_gate(p: Any, means: Array, act: str) -> Array:
    return RIGHT["excitation"](p, means[::-1], act)


RIGHT: dict[str, Callable[..., Any]] = {
    name: getattr(blocks, name) for name in ("shares", "attend", "bordered", "windows", "standardise", "excitation")
}
FAULTS: dict[str, list[Callable[..., Any]]] = {
    "finish": [loses_the_last_tile],
    "shares": [loses_the_last_channel],
    "attend": [without_bias, with_transposed_bias, without_largest_weight],
    "bordered": [swapped_borders],
    "windows": [windows_of_the_batch],
    "standardise": [with_other_epsilon],
    "excitation": [half_a_gate],
}


@pytest.mark.parametrize(
    ("name", "fault"),
    [pytest.param(name, fault, id=fault.__name__) for name, faults in FAULTS.items() for fault in faults],
)
def test_a_wrong_piece_is_found_out(name: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, name, fault)
    with pytest.raises((AssertionError, ValueError)):  # ValueError: shapes that do not fit any more
        for spec in NETWORKS:
            assert off_by(expected_once(Drawn(spec, 5), "float64", 2), 1) <= units.NETWORK_UNITS


def transposed_taps(x: Array, w: Array, shift: Array, top: int, left: int, stride: int, y: Array, code: int) -> None:
    passes.loops().depthwise(x, np.ascontiguousarray(w.swapaxes(0, 1)), shift, top, left, stride, y, code)


def no_activation(x: Array, w: Array, shift: Array, top: int, left: int, stride: int, y: Array, code: int) -> None:
    passes.loops().depthwise(x, w, shift, top, left, stride, y, 0)


def other_bias(logits: Array, bias: Array, biased: bool, sums: Array) -> None:
    passes.loops().exponentials(logits, np.ascontiguousarray(bias[::-1]), biased, sums)


def no_scale(y: Array, scale: Array, shift: Array, code: int) -> None:
    passes.loops().by_column(y, np.ones_like(scale), shift, code)


def no_shift(y: Array, shift: Array, code: int) -> None:
    passes.loops().by_row(y, np.zeros_like(shift), code)


LOOP_FAULTS: dict[str, list[Callable[..., Any]]] = {
    "depthwise": [transposed_taps, no_activation],
    "exponentials": [other_bias],
    "by_column": [no_scale],
    "by_row": [no_shift],
}


@pytest.mark.parametrize(
    ("name", "fault"),
    [pytest.param(name, fault, id=fault.__name__) for name, faults in LOOP_FAULTS.items() for fault in faults],
)
def test_a_wrong_loop_is_found_out(
    name: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, elementwise_by: str
) -> None:
    right = passes.loops()
    if right is None:
        return  # the same test with loops is the one that says something
    names = ("CODES", "activate_in_place", "by_column", "by_row", "depthwise", "exponentials")
    wrong = types.SimpleNamespace(**{each: getattr(right, each) for each in names} | {name: fault})
    compiled = passes.compiled
    for module in (passes, blocks):
        monkeypatch.setattr(module, "compiled", lambda y, act: wrong if compiled(y, act) is not None else None)
    monkeypatch.setattr(blocks, "loops", lambda: wrong)
    with pytest.raises(AssertionError):
        for spec in NETWORKS:
            assert off_by(expected_once(Drawn(spec, 5), "float32", 3), 1) <= units.NETWORK_UNITS


@pytest.mark.parametrize("name", sorted(set(WORST) - {"erf", "relu", "tanh"}))
def test_a_polynomial_one_digit_off_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "loops", lambda: None)

    def off(y: Array, t: Array, u: Array, out: Array) -> None:
        RIGHT_PASSES[name](y * np.float32(1 + 1e-6), t, u, out)

    monkeypatch.setitem(passes.IN_PLACE, name, off)
    assert max(worst_error(name, bits) for bits in some_bits()) > WORST[name]


RIGHT_PASSES = dict(passes.IN_PLACE)
