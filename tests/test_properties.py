"""Properties that the paper states, or that follow from its equations, with inputs drawn by Hypothesis."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import second
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from second import assert_close, positive, whole

import coatref
from coatref import attention, ops
from coatref.specification.parts import Attention, RelativeBias

Array = Any

seeds = st.integers(0, 2**32 - 1)
paddings = st.sampled_from(["same", "symmetric", "valid"])


@st.composite
def lengths(draw: st.DrawFn, count: int, largest: int = 6) -> tuple[int, ...]:
    """Lengths of axes, no two the same."""
    return tuple(draw(st.lists(st.integers(1, largest), min_size=count, max_size=count, unique=True)))


def at(grid: tuple[int, int], corner: tuple[int, int], window: tuple[int, int]) -> Array:
    """Flat positions, row by row, of a window of a grid whose first row and column are `corner`."""
    rows, columns = (np.arange(start, start + length) for start, length in zip(corner, window, strict=True))
    return (rows[:, None] * grid[1] + columns[None, :]).ravel()


# --- shapes ---


@settings(deadline=None, max_examples=40)
@given(lengths(5, 9), st.sampled_from([1, 3, 5]), st.integers(1, 3), st.sampled_from(["same", "symmetric"]))
def test_odd_kernels_give_a_grid_of_the_rounded_up_quotient(
    sizes: tuple[int, ...], kernel: int, stride: int, padding: Any
) -> None:
    n, height, width, channels, out = sizes
    x = np.zeros((n, height, width, channels))
    grid = (math.ceil(height / stride), math.ceil(width / stride))
    options: Any = {"stride": stride, "padding": padding}
    assert ops.conv2d(x, np.zeros((kernel, kernel, channels, out)), **options).shape == (n, *grid, out)
    assert ops.depthwise_conv2d(x, np.zeros((kernel, kernel, channels)), **options).shape == (n, *grid, channels)
    for pool in (ops.max_pool, ops.avg_pool):
        assert pool(x, size=kernel, **options).shape == (n, *grid, channels)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 3), st.sampled_from([(32, 64), (96, 32), (33, 63), (57, 90)]), st.integers(1, 7))
def test_stages_of_the_paper_halve_the_grid_each(images: int, size: tuple[int, int], classes: int) -> None:
    spec = coatref.spec(
        "coatnet_0", image_size=size, depths=(2, 1, 1, 1, 1), widths=(8, 12, 16, 32, 64), classes=classes
    )
    params = coatref.init(spec, 0, dtype="float64", scheme="distinct")
    values = coatref.trace(params, np.zeros((images, *size, 3)))
    for stage, width in enumerate((8, 12, 16, 32, 64)):
        grid = tuple(math.ceil(length / 2 ** (stage + 1)) for length in size)
        assert values[f"s{stage}"].shape == (images, *grid, width)
    assert values["logits"].shape == (images, classes)


# --- convolution: translation equivariance, Table 1 ---


@settings(deadline=None, max_examples=60)
@given(lengths(2, 4), st.data(), st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 4)]), st.integers(1, 3), paddings, seeds)
def test_depthwise_convolution_moves_with_its_input(
    sizes: tuple[int, ...], data: st.DataObject, kernel: tuple[int, int], stride: int, padding: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n, channels = sizes
    height, width = 6 * stride + 9, 6 * stride + 10
    down, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    canvas = whole(rng, n, height + 3 * stride, width + 3 * stride, channels)
    w, b = whole(rng, *kernel, channels), whole(rng, channels)
    here = ops.depthwise_conv2d(canvas[:, :height, :width], w, b, stride=stride, padding=padding)
    moved = canvas[:, stride * down : stride * down + height, stride * right : stride * right + width]
    there = ops.depthwise_conv2d(moved, w, b, stride=stride, padding=padding)
    edge = 0 if padding == "valid" else math.ceil(max(kernel) / stride)  # beyond it no window reaches the padding
    rows, columns = here.shape[1] - down - edge, here.shape[2] - right - edge
    assert rows > edge and columns > edge
    np.testing.assert_array_equal(
        there[:, edge:rows, edge:columns], here[:, down + edge : down + rows, right + edge : right + columns]
    )


@settings(deadline=None, max_examples=40)
@given(lengths(4, 7), st.data(), st.sampled_from([(1, 1), (3, 3), (2, 3), (7, 7)]), seeds)
def test_depthwise_convolution_on_a_torus_moves_with_its_input_everywhere(
    sizes: tuple[int, ...], data: st.DataObject, kernel: tuple[int, int], seed: int
) -> None:
    n, height, width, channels = sizes
    rng = np.random.default_rng(seed)
    x, w = whole(rng, n, height, width, channels), whole(rng, *kernel, channels)
    step = (data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1)))

    def circular(grid: Array) -> Array:
        wrapped = np.pad(grid, ((0, 0), (0, kernel[0] - 1), (0, kernel[1] - 1), (0, 0)), mode="wrap")
        return ops.depthwise_conv2d(wrapped, w, padding="valid")

    np.testing.assert_array_equal(circular(np.roll(x, step, (1, 2))), np.roll(circular(x), step, (1, 2)))


# --- relative attention: Eq. (3) ---


@settings(deadline=None, max_examples=40)
@given(lengths(4, 5), st.sampled_from(["pre_softmax", "post_softmax"]), seeds)
def test_both_forms_of_equation_3_word_for_word(sizes: tuple[int, ...], add: Any, seed: int) -> None:
    """One head, no projections, no scale: x_i for q, k and v, and w a number for each offset i - j of two positions."""
    images, height, width, depth = sizes
    rng = np.random.default_rng(seed)
    x = positive(rng, images, height * width, depth)
    table = positive(rng, 1, 2 * height - 1, 2 * width - 1)
    positions = list(itertools.product(range(height), range(width)))
    w = {
        (down, right): float(table[0, down + height - 1, right + width - 1])
        for down in range(1 - height, height)
        for right in range(1 - width, width)
    }
    y = np.zeros_like(x)
    for n in range(images):
        for i, place in enumerate(positions):
            w_i = [w[place[0] - other[0], place[1] - other[1]] for other in positions]
            dots = [math.fsum((x[n, i] * x[n, j]).tolist()) for j in range(len(positions))]
            if add == "pre_softmax":
                numerators = [math.exp(dot + offset) for dot, offset in zip(dots, w_i, strict=True)]
                weights = [numerator / math.fsum(numerators) for numerator in numerators]
            else:
                numerators = [math.exp(dot) for dot in dots]
                weights = [
                    numerator / math.fsum(numerators) + offset
                    for numerator, offset in zip(numerators, w_i, strict=True)
                ]
            for d in range(depth):
                y[n, i, d] = math.fsum([weight * float(x_j) for weight, x_j in zip(weights, x[n, :, d], strict=True)])
    heads = x[:, None]  # (N, 1, H*W, D)
    found = attention.relative_attention(heads, heads, heads, attention.gather_bias(table, height, width), add=add)
    assert_close(found[:, 0], y)


@settings(deadline=None, max_examples=40)
@given(lengths(5, 5), st.data(), st.sampled_from(["pre_softmax", "post_softmax"]), seeds)
def test_relative_attention_on_a_torus_moves_with_its_input(
    sizes: tuple[int, ...], data: st.DataObject, add: Any, seed: int
) -> None:
    n, heads, height, width, depth = sizes
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, n, heads, height, width, depth))
    v = positive(rng, n, heads, height, width, depth)
    step = (data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1)))
    row, column = np.divmod(np.arange(height * width), width)
    bias = positive(rng, heads, height, width)[
        :, (row[:, None] - row[None]) % height, (column[:, None] - column[None]) % width
    ]

    def attend(*grids: Array) -> Array:
        q, k, v = (grid.reshape(n, heads, height * width, depth) for grid in grids)
        return attention.relative_attention(q, k, v, bias, add=add).reshape(grids[0].shape)

    moved = attend(*(np.roll(grid, step, (2, 3)) for grid in (q, k, v)))
    assert_close(moved, np.roll(attend(q, k, v), step, (2, 3)))


@settings(deadline=None, max_examples=25)
@given(lengths(3, 4), lengths(2, 3), st.sampled_from(["pre_softmax", "post_softmax"]), seeds)
def test_a_window_of_content_is_attended_to_alike_wherever_it_lies(
    sizes: tuple[int, ...], window: tuple[int, int], add: Any, seed: int
) -> None:
    """Everything outside the window is hidden; inside, only offsets count (Table 1, translation equivariance)."""
    n, heads, depth = sizes
    grid = (window[0] + 1, window[1] + 4)
    rng = np.random.default_rng(seed)
    content = tuple(
        make(size=(n, heads, window[0] * window[1], depth)) for make in (rng.normal, rng.normal, rng.random)
    )
    table = positive(rng, heads, 2 * grid[0] - 1, 2 * grid[1] - 1)
    bias = attention.gather_bias(table, *grid)
    cropped = table[:, grid[0] - window[0] : grid[0] + window[0] - 1, grid[1] - window[1] : grid[1] + window[1] - 1]
    q, k, v = content
    alone = attention.relative_attention(q, k, v, attention.gather_bias(cropped, *window), add=add)
    for corner in np.ndindex(grid[0] - window[0] + 1, grid[1] - window[1] + 1):
        places = at(grid, (corner[0], corner[1]), window)
        q, k, v = rng.normal(size=(3, n, heads, grid[0] * grid[1], depth))
        q[:, :, places], k[:, :, places], v[:, :, places] = content
        shown = np.zeros(grid[0] * grid[1], bool)
        shown[places] = True
        found = attention.relative_attention(q, k, v, bias, add=add, key_mask=shown)
        assert_close(found[:, :, places], alone)


@settings(deadline=None, max_examples=40)
@given(lengths(5, 6), st.sampled_from(["q", "k", "both"]), seeds)
def test_without_content_relative_attention_is_a_global_convolution(
    sizes: tuple[int, ...], zero: str, seed: int
) -> None:
    n, heads, height, width, depth = sizes
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, n, heads, height * width, depth))
    q, k = (np.zeros_like(a) if zero in (name, "both") else a for name, a in (("q", q), ("k", k)))
    v = positive(rng, n, heads, height * width, depth)
    table = rng.normal(size=(heads, 2 * height - 1, 2 * width - 1))
    bias = attention.gather_bias(table, height, width)
    found = attention.relative_attention(q, k, v, bias)
    assert_close(found, second.global_convolution(v, np.exp(table), height, width))
    # The other form: the mean of all positions, and the kernel itself without a softmax over it.
    after = attention.relative_attention(q, k, v, np.abs(bias), add="post_softmax")
    images = v.reshape(n, heads, height, width, depth)
    total = np.zeros_like(images)
    for i, j, i2, j2 in np.ndindex(height, width, height, width):
        weight = np.abs(table[:, i - i2 + height - 1, j - j2 + width - 1])
        total[:, :, i, j] += weight[:, None] * images[:, :, i2, j2]
    assert_close(after, total.reshape(v.shape) + np.mean(v, axis=2, keepdims=True))


@settings(deadline=None, max_examples=40)
@given(lengths(4, 5), lengths(1, 9), st.booleans(), st.sampled_from(["query", "key", "query_and_key", "logits"]), seeds)
def test_attention_is_that_of_torch(
    sizes: tuple[int, ...], keys: tuple[int], biased: bool, site: Any, seed: int
) -> None:
    n, heads, queries, depth = sizes
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(n, heads, queries, depth))
    k, v = rng.normal(size=(n, heads, *keys, depth)), positive(rng, n, heads, *keys, depth)
    bias = rng.normal(size=(heads, queries, *keys)) if biased else np.zeros((heads, queries, *keys))
    found = attention.relative_attention(q, k, v, bias, scale=1 / math.sqrt(depth), scale_site=site)
    attend: Any = torch.nn.functional.scaled_dot_product_attention
    mask = torch.from_numpy(bias).expand(n, -1, -1, -1) if biased else None
    assert_close(found, attend(*map(torch.from_numpy, (q, k, v)), mask).numpy())
    if not biased:
        without = attention.relative_attention(q, k, v, scale=1 / math.sqrt(depth), scale_site=site)
        np.testing.assert_array_equal(found, without)


@settings(deadline=None, max_examples=40)
@given(lengths(4, 7), st.sampled_from(["softmax", "linear"]), seeds)
def test_without_bias_attention_knows_no_order_of_positions(sizes: tuple[int, ...], form: str, seed: int) -> None:
    n, heads, positions, depth = sizes
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, n, heads, positions, depth))
    v = positive(rng, n, heads, positions, depth)
    attend: Any = attention.relative_attention if form == "softmax" else attention.linear_attention
    order, other = rng.permutation(positions), rng.permutation(positions)
    y = attend(q, k, v)
    assert_close(attend(q[:, :, order], k[:, :, order], v[:, :, order]), y[:, :, order])
    assert_close(attend(q, k[:, :, other], v[:, :, other]), y)  # queries alone keep their places


@settings(deadline=None, max_examples=30)
@given(lengths(4, 5), seeds)
def test_heads_do_not_see_each_other(sizes: tuple[int, ...], seed: int) -> None:
    n, heads, positions, depth = sizes
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, n, heads, positions, depth))
    v, bias = positive(rng, n, heads, positions, depth), rng.normal(size=(heads, positions, positions))
    y = attention.relative_attention(q, k, v, bias)
    for h in range(heads):
        one = slice(h, h + 1)
        assert_close(y[:, one], attention.relative_attention(q[:, one], k[:, one], v[:, one], bias[one]))
    shared = attention.relative_attention(q, k, v, bias[:1])
    assert_close(shared, attention.relative_attention(q, k, v, np.repeat(bias[:1], heads, axis=0)))


# --- the network ---


def tiny(name: str = "coatnet_0", **changes: Any) -> coatref.Params:
    """Parameters of a small non-square network in float64, no two channels alike."""
    sizes: dict[str, Any] = {"image_size": (32, 64), "depths": (2, 1, 1, 1, 1), "widths": (8, 12, 16, 32, 64)}
    spec = coatref.spec(name, classes=5, **sizes | changes)
    return coatref.init(spec, 1, dtype="float64", scheme="distinct")


NETWORKS: dict[str, dict[str, Any]] = {
    "coatnet_0": {},
    "coatnet_0/post-softmax": {},
    "coatnet_0/strided-depthwise": {"image_size": (33, 57)},
    "coatnet_0/linear-attention": {},
    "timm/coatnet_rmlp_nano_rw_224": {"depths": (1, 1, 1, 1), "widths": (8, 32, 32, 64)},
    "timm/coatnext_nano_rw_224": {"depths": (1, 1, 1, 1), "widths": (64, 64, 64, 96)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_a_batch_do_not_see_each_other(name: str) -> None:
    params = tiny(name, **NETWORKS[name])
    x = np.random.default_rng(1).normal(size=(3, *params.spec.image_size, 3))
    logits = coatref.forward(params, x, backend="definition")
    assert logits.shape == (3, 5) and logits.dtype == np.float64
    for n in range(3):
        assert_close(logits[n : n + 1], coatref.forward(params, x[n : n + 1], backend="definition"))
    assert_close(coatref.forward(params, x[::-1], backend="definition"), logits[::-1])
    assert np.min(np.std(logits, axis=0)) > 1e-3  # the images do make a difference


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([(32, 64), (64, 32), (70, 96)]), st.sampled_from(["half_pixel", "align_corners"]), seeds)
def test_resized_parameters_hold_interpolated_tables_and_all_else_as_it_was(
    size: tuple[int, int], sampling: Any, seed: int
) -> None:
    spec = coatref.spec("coatnet_0", image_size=(48, 80), depths=(1, 1, 1, 2, 1), widths=(4, 4, 4, 32, 32), classes=2)
    s1, s2, *attentive = spec.stages
    changed: dict[str, Any] = {"attention": Attention(relative_bias=RelativeBias(resize=sampling))}
    stages = (s1, s2, *((dataclasses.replace(run, **changed),) for (run,) in attentive))
    params = coatref.init(spec.replace(stages=stages), seed, dtype="float64", scheme="distinct")
    resized = params.resize(*size)
    assert resized.spec.image_size == size
    grids = {stage: tuple(math.ceil(length / 2**step) for length in size) for stage, step in (("s3", 4), ("s4", 5))}
    for name, array in params.flatten().items():
        if name.endswith("table"):
            rows, columns = (2 * length - 1 for length in grids[name[:2]])
            assert_close(resized.flatten()[name], second.resize_table(array, rows, columns, sampling))
        else:
            np.testing.assert_array_equal(resized.flatten()[name], array)
    assert coatref.forward(resized, np.zeros((1, *size, 3))).shape == (1, 2)


@settings(deadline=None, max_examples=10)
@given(seeds)
def test_relative_bias_alone_tells_the_patches_of_vit_rel_apart(seed: int) -> None:
    """Nothing else in that network looks at where a patch lies, and the head takes the mean of all."""
    params = tiny("vit-rel", image_size=(32, 64), depths=(2,), widths=(32,))
    rng = np.random.default_rng(seed)
    patches = rng.normal(size=(1, 2, 4, 16, 16, 3))
    order = rng.permutation(8)
    assume(not np.array_equal(order, np.arange(8)))
    mixed = patches.reshape(8, 16, 16, 3)[order].reshape(patches.shape)

    def image(blocks: Array) -> Array:
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(1, 32, 64, 3)

    zero = {name: np.zeros_like(array) for name, array in params.flatten().items() if name.endswith("table")}
    assert zero
    without = params.replace(zero)

    def both(weights: coatref.Params) -> list[Array]:
        return [coatref.forward(weights, image(blocks), backend="definition") for blocks in (mixed, patches)]

    found, reference = both(without)
    assert_close(found, reference)
    found, reference = both(params)
    assert np.max(np.abs(found - reference)) > 1e-6
