"""Relative attention, its bias and its relatives against second formulations (`tests/support/second.py`), in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import second
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from second import assert_close, awkward, positive

from coatref import attention
from coatref.errors import ShapeError

Array = Any

seeds = st.integers(0, 2**32 - 1)
SITES = ("query", "key", "query_and_key", "logits", "logits_and_bias")
ORIENTATIONS = ("query_minus_key", "key_minus_query", "transposed")
SAMPLINGS = ("half_pixel", "align_corners")


@st.composite
def lengths(draw: st.DrawFn, count: int, largest: int = 6) -> tuple[int, ...]:
    """Lengths of axes, no two the same."""
    return tuple(draw(st.lists(st.integers(1, largest), min_size=count, max_size=count, unique=True)))


# --- attention ---


class Attention(NamedTuple):
    """One configuration of relative attention."""

    images: int
    heads: int
    queries: int
    keys: int
    depth: int
    bias_heads: str  # "none", "one" or "all"
    add: Any
    scale_site: Any
    scale: float
    mask: str  # "none", "keys" or "images and keys"


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    images, heads, depth = draw(lengths(3, 4))
    queries, keys = draw(st.lists(st.integers(1, 9), min_size=2, max_size=2, unique=True))
    add = draw(st.sampled_from(["pre_softmax", "post_softmax"]))
    return Attention(
        images,
        heads,
        queries,
        keys,
        depth,
        draw(st.sampled_from(["none", "one", "all"])),
        add,
        draw(st.sampled_from(SITES if add == "pre_softmax" else SITES[:-1])),
        draw(st.sampled_from([1.0, 1 / math.sqrt(depth), 0.3, 2.5])),
        draw(st.sampled_from(["none", "keys", "images and keys"])),
    )


@settings(deadline=None, max_examples=200)
@given(attentions(), seeds)
@example(Attention(2, 3, 7, 8, 4, "all", "pre_softmax", "logits_and_bias", 0.3, "images and keys"), 1)
@example(Attention(2, 3, 8, 7, 4, "one", "post_softmax", "query_and_key", 0.3, "images and keys"), 2)
def test_relative_attention(c: Attention, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(c.images, c.heads, c.queries, c.depth))
    k = rng.normal(size=(c.images, c.heads, c.keys, c.depth))
    v = positive(rng, c.images, c.heads, c.keys, c.depth)
    bias = None
    if c.bias_heads != "none":
        bias = rng.normal(size=(1 if c.bias_heads == "one" else c.heads, c.queries, c.keys))
        bias = np.abs(bias) if c.add == "post_softmax" else bias  # so that the sum does not cancel
    shown = rng.random((c.images, c.keys)) < 0.6
    shown[:, rng.integers(c.keys)] = True
    key_mask = {"none": None, "keys": shown[0], "images and keys": shown}[c.mask]
    seen: dict[str, Array] = {}

    def tap(name: str, value: Array) -> Array:
        seen[name] = value
        return value

    found = attention.relative_attention(
        q, k, v, bias, scale=c.scale, scale_site=c.scale_site, add=c.add, key_mask=key_mask, tap=tap
    )
    rows = None if key_mask is None else np.broadcast_to(key_mask, shown.shape)
    options: Any = {"scale": c.scale, "scale_site": c.scale_site, "add": c.add, "shown": rows}
    assert_close(found, second.relative_attention(q, k, v, bias, **options))
    assert list(seen) == ["logits", "weights"]
    assert_close(np.matmul(seen["weights"], v), found)
    if rows is not None:
        hidden = np.broadcast_to(~rows[:, None, None, :], seen["weights"].shape)
        assert np.all(seen["weights"][hidden] == 0) and np.all(seen["logits"][hidden] == -np.inf)


def test_defaults_are_the_form_of_the_paper_without_a_scale() -> None:
    rng = np.random.default_rng(1)
    q, k, v = rng.normal(size=(3, 2, 3, 5, 4))
    bias = rng.normal(size=(3, 5, 5))
    assert_close(attention.relative_attention(q, k, v, bias), second.relative_attention(q, k, v, bias))
    found = attention.relative_attention(q, k, v, bias, scale=0.3)  # and a scale does not reach the bias
    assert_close(found, second.relative_attention(q, k, v, bias, scale=0.3))


@pytest.mark.parametrize("add", ["pre_softmax", "post_softmax"])
def test_large_logits_do_not_overflow(add: Any) -> None:
    rng = np.random.default_rng(1)
    q, k, v = 40.0 * second.whole(rng, 3, 1, 2, 3, 4)  # logits of tens of thousands, exact
    bias = second.whole(rng, 2, 3, 3)
    found = attention.relative_attention(q, k, v, bias, add=add)
    assert_close(found, second.relative_attention(q, k, v, bias, add=add))


def test_a_query_without_keys_gives_nan_and_no_other_does() -> None:
    q, k, v = np.random.default_rng(1).normal(size=(3, 2, 3, 5, 4))
    shown = np.asarray([[False] * 5, [True] * 5])
    with np.errstate(invalid="ignore"):
        y = attention.relative_attention(q, k, v, key_mask=shown)
    assert np.all(np.isnan(y[0]))
    assert_close(y[1:], second.relative_attention(q[1:], k[1:], v[1:]))


@settings(deadline=None, max_examples=40)
@given(lengths(5), seeds)
def test_linear_attention(sizes: tuple[int, ...], seed: int) -> None:
    images, heads, queries, keys, depth = sizes
    rng = np.random.default_rng(seed)
    q = 2.0 * rng.normal(size=(images, heads, queries, depth))
    k = 2.0 * rng.normal(size=(images, heads, keys, depth))
    v = positive(rng, images, heads, keys, depth)
    assert_close(attention.linear_attention(q, k, v), second.linear_attention(q, k, v))


def test_linear_attention_does_not_overflow() -> None:
    q, k, v = 800.0 * np.random.default_rng(1).normal(size=(3, 1, 2, 6, 4))
    assert_close(attention.linear_attention(q, k, v), second.linear_attention(q, k, v))


# --- the relative bias ---


@settings(deadline=None, max_examples=60)
@given(lengths(3, 5), st.sampled_from(ORIENTATIONS), seeds)
@example((2, 3, 4), "transposed", 1)
@example((2, 1, 3), "key_minus_query", 2)
def test_gather_bias(sizes: tuple[int, ...], orientation: Any, seed: int) -> None:
    heads, height, width = sizes
    shape = (2 * width - 1, 2 * height - 1) if orientation == "transposed" else (2 * height - 1, 2 * width - 1)
    table = np.random.default_rng(seed).normal(size=(heads, *shape))
    papers = attention.oriented(table, orientation)
    bias = attention.gather_bias(papers, height, width)
    assert bias.shape == (heads, height * width, height * width)
    np.testing.assert_array_equal(bias, second.gather_bias(table, height, width, orientation))
    np.testing.assert_array_equal(bias, second.gather_bias_by_einsum(papers, height, width))


@settings(deadline=None, max_examples=20)
@given(lengths(2))
def test_relative_offsets(sizes: tuple[int, ...]) -> None:
    height, width = sizes
    rows, columns = attention.relative_offsets(height, width, np)
    for i, j, k, m in np.ndindex(height, width, height, width):
        assert (rows[i * width + j, k * width + m], columns[i * width + j, k * width + m]) == (i - k, j - m)
    assert rows.min() == 1 - height and columns.max() == width - 1


def test_every_entry_of_a_table_is_used_as_often_as_its_offset_occurs() -> None:
    height, width = 3, 5
    numbers = np.arange(5 * 9.0).reshape(1, 5, 9)
    used, times = np.unique(attention.gather_bias(numbers, height, width), return_counts=True)
    np.testing.assert_array_equal(used, numbers.ravel())
    np.testing.assert_array_equal(times, np.outer([1, 2, 3, 2, 1], [1, 2, 3, 4, 5, 4, 3, 2, 1]).ravel())


@settings(deadline=None, max_examples=25)
@given(lengths(4, 5), seeds)
def test_log_mlp_bias_table(sizes: tuple[int, ...], seed: int) -> None:
    heads, height, width, units = sizes
    rng = np.random.default_rng(seed)
    hidden = {"w": rng.normal(size=(2, units)), "b": rng.normal(size=units)}
    out = {"w": positive(rng, units, heads), "b": positive(rng, heads)}
    found = attention.log_mlp_bias_table(hidden, out, height, width)
    assert_close(found, second.log_mlp_bias_table(hidden, out, height, width))


def test_log_coordinates() -> None:
    places = attention.log_coordinates(2, 3, np, np.float64)
    assert places.shape == (3, 5, 2) and places.dtype == np.float64
    rows, columns = np.log([2.0, 1.0, 2.0]) * [-1, 0, 1], np.log([3.0, 2.0, 1.0, 2.0, 3.0]) * [-1, -1, 0, 1, 1]
    np.testing.assert_allclose(places[..., 0], np.repeat(rows[:, None], 5, axis=1), rtol=1e-15)
    np.testing.assert_allclose(places[..., 1], np.repeat(columns[None], 3, axis=0), rtol=1e-15)


# --- resizing ---


@settings(deadline=None, max_examples=60)
@given(lengths(3), lengths(2, 9), st.sampled_from(SAMPLINGS), st.booleans(), seeds)
@example((2, 7, 14), (12, 24), "half_pixel", True, 1)
@example((2, 4, 6), (1, 3), "align_corners", True, 2)
@example((2, 1, 3), (5, 1), "half_pixel", False, 3)
def test_resize_table(sizes: tuple[int, ...], new: tuple[int, ...], sampling: Any, of_grids: bool, seed: int) -> None:
    heads, *old = sizes
    if of_grids:  # the sizes that tables have; else any at all
        old, new = [2 * length - 1 for length in old], tuple(2 * length - 1 for length in new)
    rows, columns = new
    table = positive(np.random.default_rng(seed), heads, *old)
    found = attention.resize_table(table, rows, columns, sampling)
    assert_close(found, second.resize_table(table, rows, columns, sampling))
    by_torch = torch.nn.functional.interpolate(
        torch.from_numpy(table)[None],
        size=[rows, columns],
        mode="bilinear",
        align_corners=sampling == "align_corners",
        antialias=False,
    )
    assert_close(found, by_torch[0].numpy())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_resizing_to_the_same_size_changes_nothing(sampling: Any) -> None:
    table = np.random.default_rng(1).normal(size=(3, 5, 9))
    np.testing.assert_array_equal(attention.resize_table(table, 5, 9, sampling), table)


def test_resizing_takes_half_pixels_where_nothing_is_said() -> None:
    table = np.random.default_rng(1).normal(size=(3, 5, 9))
    assert_close(attention.resize_table(table, 7, 13), second.resize_table(table, 7, 13, "half_pixel"))


# --- windows ---


@settings(deadline=None, max_examples=30)
@given(lengths(4, 5), lengths(2, 5), seeds)
def test_windows(sizes: tuple[int, ...], counts: tuple[int, ...], seed: int) -> None:
    n, h, w, channels = sizes
    assume(h * counts[0] != w * counts[1])
    x = np.random.default_rng(seed).normal(size=(n, h * counts[0], w * counts[1], channels))
    windows = attention.split_windows(x, (h, w))
    np.testing.assert_array_equal(windows, second.split_windows(x, (h, w)))
    np.testing.assert_array_equal(attention.merge_windows(windows, *x.shape[1:3]), x)


# --- what holds for every primitive ---


class Case(NamedTuple):
    """A function with shapes of what has a batch axis (given without it) and of what has none; tables: the heads are it."""

    call: Callable[..., Array]
    batched: tuple[tuple[int, ...], ...]
    fixed: tuple[tuple[int, ...], ...] = ()


QKV = ((3, 5, 4), (3, 6, 4), (3, 6, 4))
CASES: dict[str, Case] = {
    "relative_attention": Case(attention.relative_attention, QKV, ((3, 5, 6),)),
    "post_softmax": Case(lambda *a: attention.relative_attention(*a, add="post_softmax"), QKV, ((1, 5, 6),)),
    "scaled": Case(lambda *a: attention.relative_attention(*a, scale=0.3, scale_site="query_and_key"), QKV),
    "masked": Case(lambda *a: attention.relative_attention(*a[:3], key_mask=a[3] > 0.7), (*QKV, (6,))),
    "linear_attention": Case(attention.linear_attention, QKV),
    "gather_bias": Case(lambda table: attention.gather_bias(table, 3, 5), ((5, 9),)),
    "flipped": Case(lambda table: attention.oriented(table, "key_minus_query"), ((5, 9),)),
    "transposed": Case(lambda table: attention.oriented(table, "transposed"), ((5, 9),)),
    "resize_table": Case(lambda table: attention.resize_table(table, 7, 13), ((5, 9),)),
    "split_windows": Case(lambda x: attention.split_windows(x, (3, 2)).reshape(len(x), 4, 3, 2, 5), ((6, 4, 5),)),
    "merge_windows": Case(lambda x: attention.merge_windows(x.reshape(4 * len(x), 3, 2, 5), 6, 4), ((4, 3, 2, 5),)),
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_data_type_of_a_computed_table_is_that_of_its_weights(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    layers = [awkward(positive(rng, *shape).astype(dtype)) for shape in ((2, 4), (4,), (4, 3), (3,))]
    hidden, out = {"w": layers[0], "b": layers[1]}, {"w": layers[2], "b": layers[3]}
    table = attention.log_mlp_bias_table(hidden, out, 2, 5)
    assert table.dtype == dtype
    assert_close(table.astype(np.float64), second.log_mlp_bias_table(hidden, out, 2, 5), 1e-5)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    q, k, v = np.zeros((3, 2, 3, 5, 4))
    for wrong in (
        (q[0], k, v),
        (q, k[0], v[0]),
        (q, k[:, :, :3], v),
        (q[:1], k, v),
        (q[:, :1], k, v),
        (q[..., :3], k, v),
    ):
        with pytest.raises(ShapeError, match="takes q"):
            attention.relative_attention(*wrong)
    shapes: tuple[tuple[int, ...], ...] = ((5, 5), (2, 5, 5), (3, 5, 4), (3, 1, 5))
    for shape in shapes:
        with pytest.raises(ShapeError, match="bias must be"):
            attention.relative_attention(q, k, v, np.zeros(shape))
    shapes = ((2, 9, 5), (2, 3, 5), (2, 5, 9, 1))
    for shape in shapes:
        with pytest.raises(ShapeError, match="3x5 grid"):
            attention.gather_bias(np.zeros(shape), 3, 5)
    for window in ((4, 2), (3, 3)):
        with pytest.raises(ShapeError, match="do not tile"):
            attention.split_windows(np.zeros((1, 6, 4, 2)), window)
