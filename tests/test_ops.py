"""Every elementary function against a second formulation of it (`tests/support/second.py`), in float64.

Hypothesis draws the configuration and a seed; NumPy draws the numbers. No two axes have the same length, so that none can
stand in for another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import array_api_strict as strict
import mpmath
import numpy as np
import pytest
import second
from hypothesis import example, given, settings
from hypothesis import strategies as st
from second import assert_close, awkward, positive, whole

from coatref import ops
from coatref.errors import InputError, ShapeError

Array = Any
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu", "mish", "tanh")

seeds = st.integers(0, 2**32 - 1)
paddings = st.sampled_from(["same", "symmetric", "valid"])
kernels = st.sampled_from([(1, 1), (3, 3), (2, 3), (7, 7), (3, 2), (1, 4), (5, 2), (4, 1)])


@st.composite
def distinct(draw: st.DrawFn, count: int, taken: Sequence[int] = (), largest: int = 8) -> list[int]:
    """`count` lengths of axes, no two the same and none of those taken."""
    lengths = st.integers(1, largest).filter(lambda length: length not in taken)
    return draw(st.lists(lengths, min_size=count, max_size=count, unique=True))


class Convolution(NamedTuple):
    """One configuration of a convolution or pool; `out` is not used by depthwise ones."""

    images: int
    grid: tuple[int, int]
    channels: int
    out: int
    kernel: tuple[int, int]
    stride: int
    padding: Any
    bias: bool


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    kernel = draw(kernels)
    images, height, width, channels, out = draw(distinct(5, kernel))
    return Convolution(
        images, (height, width), channels, out, kernel, draw(st.integers(1, 3)), draw(paddings), draw(st.booleans())
    )


LARGE_KERNEL = Convolution(2, (9, 10), 3, 1, (7, 7), 2, "valid", True)
ONE_PIXEL_HIGH = Convolution(2, (1, 5), 4, 3, (3, 3), 2, "symmetric", False)
ODD_GRID = Convolution(2, (5, 9), 4, 3, (3, 3), 2, "same", True)
STRIDE_BEYOND_KERNEL = Convolution(2, (7, 8), 4, 5, (2, 3), 3, "same", True)


# --- convolution ---


@settings(deadline=None, max_examples=100)
@given(convolutions(), seeds)
@example(LARGE_KERNEL, 1)
@example(ONE_PIXEL_HIGH, 2)
@example(ODD_GRID, 3)
@example(STRIDE_BEYOND_KERNEL, 4)
def test_conv2d(c: Convolution, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for numbers in (whole, positive):
        x = numbers(rng, c.images, *c.grid, c.channels)
        w = numbers(rng, *c.kernel, c.channels, c.out)
        b = numbers(rng, c.out) if c.bias else None
        try:
            reference = second.conv2d(x, w, b, c.stride, c.padding)
        except ValueError:
            with pytest.raises(ShapeError, match="does not fit"):
                ops.conv2d(x, w, b, stride=c.stride, padding=c.padding)
            return
        found = ops.conv2d(x, w, b, stride=c.stride, padding=c.padding)
        assert_close(found, reference, 0.0 if numbers is whole else second.ROUNDING)
        if b is None:
            assert_close(found, second.conv2d_by_matrix(x, w, c.stride, c.padding))


@settings(deadline=None, max_examples=100)
@given(convolutions(), seeds)
@example(LARGE_KERNEL, 1)
@example(ONE_PIXEL_HIGH, 2)
@example(ODD_GRID, 3)
@example(STRIDE_BEYOND_KERNEL, 4)
def test_depthwise_conv2d(c: Convolution, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for numbers in (whole, positive):
        x, w = numbers(rng, c.images, *c.grid, c.channels), numbers(rng, *c.kernel, c.channels)
        b = numbers(rng, c.channels) if c.bias else None
        try:
            reference = second.depthwise_conv2d(x, w, b, c.stride, c.padding)
        except ValueError:
            with pytest.raises(ShapeError, match="does not fit"):
                ops.depthwise_conv2d(x, w, b, stride=c.stride, padding=c.padding)
            return
        found = ops.depthwise_conv2d(x, w, b, stride=c.stride, padding=c.padding)
        assert_close(found, reference, 0.0 if numbers is whole else second.ROUNDING)


@settings(deadline=None, max_examples=30)
@given(convolutions(), seeds)
def test_depthwise_conv2d_on_a_torus_by_fft(c: Convolution, seed: int) -> None:
    (kh, kw), (height, width) = c.kernel, (c.grid[0] + c.kernel[0], c.grid[1] + c.kernel[1])
    rng = np.random.default_rng(seed)
    x, w = positive(rng, c.images, height, width, c.channels), positive(rng, kh, kw, c.channels)
    wrapped = np.pad(x, ((0, 0), (0, kh - 1), (0, kw - 1), (0, 0)), mode="wrap")
    assert_close(ops.depthwise_conv2d(wrapped, w, padding="valid"), second.circular_depthwise_by_fft(x, w))


def test_convolution_does_not_flip_the_kernel() -> None:
    x, w = np.zeros((1, 3, 4, 1)), np.arange(6.0).reshape(2, 3, 1)
    x[0, 1, 2, 0] = 1.0
    for y in (
        ops.conv2d(x, w[..., None], padding="valid"),
        ops.depthwise_conv2d(x, w, padding="valid"),
    ):
        np.testing.assert_array_equal(y[0, :, :, 0], [[5.0, 4.0], [2.0, 1.0]])


def test_the_odd_row_of_same_padding_goes_to_the_end() -> None:
    x, ones = np.asarray([1.0, 10.0, 100.0, 1000.0]).reshape(1, 1, 4, 1), np.ones((1, 3, 1))
    stride_2 = ops.depthwise_conv2d(x, ones, stride=2, padding="same")  # windows start at 0 and 2
    np.testing.assert_array_equal(stride_2.ravel(), [111.0, 1100.0])
    even_kernel = ops.depthwise_conv2d(x, np.ones((1, 2, 1)), padding="same")
    np.testing.assert_array_equal(even_kernel.ravel(), [11.0, 110.0, 1100.0, 1000.0])
    symmetric = ops.depthwise_conv2d(x, ones, stride=2, padding="symmetric")  # windows start at -1 and 1
    np.testing.assert_array_equal(symmetric.ravel(), [11.0, 1110.0])


# --- pooling ---


class Pooling(NamedTuple):
    """One configuration of a pool."""

    images: int
    grid: tuple[int, int]
    channels: int
    size: int
    stride: int
    padding: Any


@st.composite
def poolings(draw: st.DrawFn) -> Pooling:
    images, height, width, channels = draw(distinct(4))
    size = draw(st.sampled_from([1, 2, 3, 4, 7]))
    return Pooling(images, (height, width), channels, size, draw(st.integers(1, 3)), draw(paddings))


@settings(deadline=None, max_examples=100)
@given(poolings(), seeds)
@example(Pooling(2, (5, 7), 3, 3, 2, "symmetric"), 1)
@example(Pooling(2, (5, 7), 3, 2, 2, "same"), 2)
@example(Pooling(1, (4, 6), 3, 3, 2, "same"), 3)
@example(Pooling(2, (8, 9), 3, 7, 1, "valid"), 4)
@example(Pooling(3, (1, 2), 4, 3, 3, "same"), 5)
def test_pools(c: Pooling, seed: int) -> None:
    x = whole(np.random.default_rng(seed), c.images, *c.grid, c.channels) - 9.0  # below 0, so a padded 0 would win
    where: Any = {"size": c.size, "stride": c.stride, "padding": c.padding}
    try:
        reference = second.max_pool(x, **where)
    except ValueError:
        for pool in (ops.max_pool, ops.avg_pool):
            with pytest.raises(ShapeError, match="does not fit"):
                pool(x, **where)
        return
    assert_close(ops.max_pool(x, **where), reference, 0.0)
    assert_close(ops.max_pool(x, **where), second.pool_by_views(x, **where, kind="max"), 0.0)
    for padded_zeros in ("excluded", "counted"):
        found = ops.avg_pool(x, **where, padded_zeros=padded_zeros)
        assert_close(found, second.avg_pool(x, **where, padded_zeros=padded_zeros))
        assert_close(found, second.pool_by_views(x, **where, kind=padded_zeros))


def test_defaults_of_the_pools_are_those_of_their_spec() -> None:
    x = whole(np.random.default_rng(1), 2, 5, 7, 3)
    assert_close(ops.max_pool(x), second.max_pool(x, 2, 2, "same"), 0.0)
    assert_close(ops.avg_pool(x), second.avg_pool(x, 2, 2, "same", "excluded"))


@settings(deadline=None, max_examples=20)
@given(st.data(), seeds)
def test_global_avg_pool(data: st.DataObject, seed: int) -> None:
    x = positive(np.random.default_rng(seed), *data.draw(distinct(4)))
    assert_close(ops.global_avg_pool(x), second.global_avg_pool(x))


# --- channels ---


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 4), st.booleans(), seeds)
def test_dense(data: st.DataObject, axes: int, bias: bool, seed: int) -> None:
    *shape, width = data.draw(distinct(axes + 1))
    rng = np.random.default_rng(seed)
    for numbers in (whole, positive):
        x, w = numbers(rng, *shape), numbers(rng, shape[-1], width)
        b = numbers(rng, width) if bias else None
        assert_close(ops.dense(x, w, b), second.dense(x, w, b), 0.0 if numbers is whole else second.ROUNDING)


@settings(deadline=None, max_examples=20)
@given(st.data(), seeds)
def test_matmul(data: st.DataObject, seed: int) -> None:
    n, heads, rows, inner, columns = data.draw(distinct(5, largest=6))
    rng = np.random.default_rng(seed)
    a, b = whole(rng, n, heads, rows, inner), whole(rng, n, heads, inner, columns)
    assert_close(ops.matmul(a, b), np.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2), 0.0)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from([2, 4]), st.sampled_from([1e-3, 1e-5, 0.5]), seeds)
def test_batch_norm(data: st.DataObject, axes: int, epsilon: float, seed: int) -> None:
    shape = data.draw(distinct(axes))
    rng = np.random.default_rng(seed)
    x, (gamma, beta, mean) = positive(rng, *shape), positive(rng, 3, shape[-1])
    var = positive(rng, shape[-1]) * 10.0 ** rng.integers(-6, 1, shape[-1])  # down to where any epsilon is seen
    found = ops.batch_norm(x, gamma, beta, -mean, var, epsilon=epsilon)  # below 0, so that nothing cancels
    assert_close(found, second.batch_norm(x, gamma, beta, -mean, var, epsilon))


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from([2, 4]), st.sampled_from([1e-3, 1e-5, 1e-6]), st.sampled_from([1.0, 1e-2]), seeds)
def test_layer_norm(data: st.DataObject, axes: int, epsilon: float, size: float, seed: int) -> None:
    shape = data.draw(distinct(axes))
    rng = np.random.default_rng(seed)
    x, (gamma, beta) = size * rng.normal(size=shape), positive(rng, 2, shape[-1])
    assert_close(ops.layer_norm(x, gamma, beta, epsilon=epsilon), second.layer_norm(x, gamma, beta, epsilon))


def test_layer_norm_loses_nothing_where_the_mean_is_large() -> None:
    rng = np.random.default_rng(1)
    x = whole(rng, 2, 3, 8) + 2.0**26  # sums are exact; the square of a value is not
    gamma, beta = positive(rng, 2, 8)
    assert_close(ops.layer_norm(x, gamma, beta, epsilon=1e-5), second.layer_norm(x, gamma, beta, 1e-5))


@settings(deadline=None, max_examples=30)
@given(st.data(), st.sampled_from(ACTIVATIONS), st.booleans(), seeds)
def test_squeeze_excite(data: st.DataObject, activation: str, bias: bool, seed: int) -> None:
    n, height, width, channels, hidden = data.draw(distinct(5, largest=6))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, height, width, channels)) + 1.0
    reduce, expand = {"w": rng.normal(size=(channels, hidden))}, {"w": rng.normal(size=(hidden, channels))}
    if bias:
        reduce["b"], expand["b"] = rng.normal(size=hidden), rng.normal(size=channels)
    found = ops.squeeze_excite(x, reduce, expand, activation=activation)
    assert_close(found, second.squeeze_excite(x, reduce, expand, activation))


# --- elementwise ---

EDGES = (0.0, 1e-300, 1e-9, 0.5, 1.0, 5.5, 9.0, 37.0, 40.0, 700.0, 800.0, 1e5)


@pytest.mark.parametrize("kind", [*ACTIVATIONS, "sigmoid"])
def test_activations(kind: str) -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([4.0 * rng.normal(size=400), EDGES, np.negative(EDGES)])
    function: Callable[[Array], Array] = ops.sigmoid if kind == "sigmoid" else lambda x: ops.activation(x, kind)
    for part in (x[np.abs(x) < 20], x):  # apart, so that a large value does not widen the tolerance of small ones
        assert_close(function(part), second.elementwise(part, kind))
    if kind in ops.__all__ and kind != "sigmoid":
        np.testing.assert_array_equal(getattr(ops, kind)(x), function(x))


@pytest.mark.parametrize("kind", ["sigmoid", "silu"])
def test_small_values_of_sigmoid_keep_their_relative_accuracy(kind: str) -> None:
    x = np.linspace(-700.0, 30.0, 500)
    found = ops.sigmoid(x) if kind == "sigmoid" else ops.silu(x)
    np.testing.assert_allclose(found, second.elementwise(x, kind), rtol=second.ROUNDING, atol=0)


def test_gelu_is_within_a_few_units_of_its_argument() -> None:
    x = np.linspace(-12.0, 12.0, 1001)
    assert np.all(np.abs(ops.gelu(x) - second.elementwise(x, "gelu")) <= 4 * np.spacing(np.abs(x)))


def test_the_two_gelus_differ_by_what_is_stated() -> None:
    x = np.linspace(-6.0, 6.0, 20001)
    assert 4.6e-4 < np.max(np.abs(ops.gelu(x) - ops.gelu_tanh(x))) <= 4.75e-4


def test_gelu_on_a_library_without_an_error_function() -> None:
    x = np.linspace(-9.0, 9.0, 301)
    assert_close(np.from_dlpack(ops.gelu(strict.asarray(x))), second.elementwise(x, "gelu"))


def test_activations_of_any_shape() -> None:
    x = np.random.default_rng(1).normal(size=(2, 3, 4))
    for kind in ACTIVATIONS:
        y = ops.activation(x, kind)
        assert y.shape == x.shape
        np.testing.assert_allclose(y.ravel(), ops.activation(x.ravel(), kind), rtol=1e-15)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(InputError, match=r"no activation 'swish'; known are gelu, "):
        ops.activation(np.zeros(3), "swish")


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(1, 4), st.sampled_from([1.0, 30.0, 1e4]), st.booleans(), seeds)
def test_softmax(data: st.DataObject, axes: int, size: float, hidden: bool, seed: int) -> None:
    shape = data.draw(distinct(axes, largest=6))
    rng = np.random.default_rng(seed)
    x = np.round(size * rng.normal(size=shape) * 64) / 64  # differences of large logits are exact
    if hidden and shape[-1] > 1:
        x[..., rng.integers(shape[-1])] = -np.inf
    assert_close(ops.softmax(x), second.softmax(x))
    np.testing.assert_allclose(np.sum(ops.softmax(x), axis=-1), 1.0, rtol=second.ROUNDING)


# --- what holds for every primitive ---


class Case(NamedTuple):
    """A primitive with shapes of what has a batch axis (given without it) and of what has none."""

    call: Callable[..., Array]
    batched: tuple[tuple[int, ...], ...]
    fixed: tuple[tuple[int, ...], ...] = ()


CASES: dict[str, Case] = {
    "conv2d": Case(lambda x, w, b: ops.conv2d(x, w, b, stride=2), ((5, 7, 4),), ((3, 2, 4, 6), (6,))),
    "depthwise_conv2d": Case(lambda x, w, b: ops.depthwise_conv2d(x, w, b, stride=2), ((5, 7, 4),), ((3, 2, 4), (4,))),
    "max_pool": Case(lambda x: ops.max_pool(x, size=3), ((5, 7, 4),)),
    "avg_pool": Case(lambda x: ops.avg_pool(x, size=3), ((5, 7, 4),)),
    "avg_pool_counted": Case(lambda x: ops.avg_pool(x, padded_zeros="counted"), ((5, 7, 4),)),
    "global_avg_pool": Case(ops.global_avg_pool, ((5, 7, 4),)),
    "batch_norm": Case(lambda *a: ops.batch_norm(*a, epsilon=1e-3), ((5, 7, 4),), ((4,), (4,), (4,), (4,))),
    "layer_norm": Case(lambda *a: ops.layer_norm(*a, epsilon=1e-3), ((5, 7, 4),), ((4,), (4,))),
    "dense": Case(ops.dense, ((5, 7, 4),), ((4, 6), (6,))),
    "matmul": Case(ops.matmul, ((2, 5, 4), (2, 4, 7))),
    "softmax": Case(ops.softmax, ((5, 7, 4),)),
    "sigmoid": Case(ops.sigmoid, ((5, 7, 4),)),
    "squeeze_excite": Case(
        lambda x, w, b, w2, b2: ops.squeeze_excite(x, {"w": w, "b": b}, {"w": w2, "b": b2}, activation="silu"),
        ((5, 7, 4),),
        ((4, 2), (2,), (2, 4), (4,)),
    ),
    **{kind: Case(lambda x, kind=kind: ops.activation(x, kind), ((5, 7, 4),)) for kind in ACTIVATIONS},
}


def arrays(case: Case, images: int, dtype: Any = np.float64) -> list[Array]:
    """Numbers for a case, the same for the same number of images."""
    rng = np.random.default_rng(images)
    shapes = [(images, *shape) for shape in case.batched] + list(case.fixed)
    return [positive(rng, *shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("name", CASES)
def test_an_empty_batch_gives_an_empty_batch(name: str) -> None:
    case = CASES[name]
    assert case.call(*arrays(case, 0)).shape == (0, *case.call(*arrays(case, 3)).shape[1:])


@pytest.mark.parametrize("name", CASES)
def test_images_of_a_batch_do_not_see_each_other(name: str) -> None:
    case = CASES[name]
    given_arrays = arrays(case, 3)
    y = case.call(*given_arrays)
    split = len(case.batched)
    for n in range(3):
        alone = case.call(*(a[n : n + 1] for a in given_arrays[:split]), *given_arrays[split:])
        assert_close(y[n : n + 1], alone)


@pytest.mark.parametrize("name", CASES)
def test_layout_of_the_inputs_does_not_matter_and_nothing_is_written(name: str) -> None:
    case = CASES[name]
    given_arrays = arrays(case, 3)
    odd = [awkward(a) for a in given_arrays]
    before = [a.tobytes() for a in odd]
    assert_close(case.call(*odd), case.call(*given_arrays))
    assert [a.tobytes() for a in odd] == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_the_data_type_stays(name: str, dtype: Any) -> None:
    case = CASES[name]
    y = case.call(*arrays(case, 3, dtype))
    assert y.dtype == dtype
    assert_close(y.astype(np.float64), case.call(*(a.astype(np.float64) for a in arrays(case, 3, dtype))), 1e-5)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    x = np.zeros((2, 5, 7, 4))
    with pytest.raises(ShapeError, match=r"conv2d: x has 4 channels"):
        ops.conv2d(x, np.zeros((3, 3, 1, 6)))
    with pytest.raises(ShapeError, match=r"depthwise_conv2d: x has 4 channels"):
        ops.depthwise_conv2d(x, np.zeros((3, 3, 1)))  # would broadcast
    with pytest.raises(ShapeError, match=r"dense: x has 4 channels"):
        ops.dense(x, np.zeros((7, 4)))
    with pytest.raises(ShapeError, match=r"\(N, H, W, C\) was expected"):
        ops.max_pool(x[0])


def test_the_second_formulation_knows_its_constants() -> None:
    """The 100 bits of `second.elementwise` hold where float64 would have cancelled."""
    with mpmath.workprec(200):
        exact = float(-10 * mpmath.erfc(10 / mpmath.sqrt(2)) / 2)
    np.testing.assert_allclose(second.elementwise(np.asarray([-10.0]), "gelu"), [exact], rtol=1e-15)
