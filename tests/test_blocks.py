"""Every block against torch's own operators in NCHW (`tests/support/second_torch.py`), under every convention of a spec.

Each case is a small network with one run that departs from the defaults. Its blocks are compared one by one, each on the
input that coatref gave it, so that a mistake shows where it is made. Which parameters a block has, and of which shape, is
written out here, because both formulations take them from the same tree.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import second_torch
import torch
from second import assert_close
from second_torch import to_nchw, to_nhwc

import coatref
from coatref.specification import parts
from coatref.specification.parts import (
    Attention,
    ConvNeXt,
    ConvStem,
    FeedForward,
    Head,
    Hidden,
    LayerScale,
    MBConv,
    Norm,
    PatchStem,
    Pool,
    RelativeBias,
    SqueezeExcite,
    Transformer,
)
from coatref.specification.spec import Spec

Array = Any

BLOCK_ROUNDING = 1e-12  # of the largest value: some ten steps, each within 1e-13
ODD = (19, 26)  # the stem leaves 10x13, a stride of 2 then 5x7: both an even and an odd axis are halved
EVEN = (20, 24)  # the stem leaves 10x12, and pools without padding fit

STEM = ConvStem(widths=(5, 6))


class Case(NamedTuple):
    """A run, the image it is tried on, and shapes of some of its parameters (None: there is no such parameter)."""

    run: parts.Run
    image: tuple[int, int] = ODD
    shapes: Mapping[str, tuple[int, ...] | None] = {}


def norms(name: str, width: int, kind: str = "batch") -> dict[str, tuple[int, ...] | None]:
    """Shapes of a norm's parameters."""
    statistics = (width,) if kind == "batch" else None
    return {f"{name}.gamma": (width,), f"{name}.beta": (width,), f"{name}.mean": statistics, f"{name}.var": statistics}


def layer(name: str, *shape: int, bias: bool = True) -> dict[str, tuple[int, ...] | None]:
    """Shapes of a layer's parameters."""
    return {f"{name}.w": shape, f"{name}.b": shape[-1:] if bias else None}


def mbconvs(**changes: Any) -> MBConv:
    """Two MBConv blocks from 6 to 10 channels."""
    fields: dict[str, Any] = {"depth": 2, "width": 10}
    return MBConv(**fields | changes)


def transformers(**changes: Any) -> Transformer:
    """Two Transformer blocks from 6 to 12 channels with heads of 3."""
    fields: dict[str, Any] = {"depth": 2, "width": 12, "attention": Attention(head_size=3)}
    return Transformer(**fields | changes)


def attending(**changes: Any) -> Transformer:
    """The same with another attention."""
    return transformers(attention=Attention(head_size=3, **changes))


def biased(**changes: Any) -> Transformer:
    """The same with another relative bias."""
    return attending(relative_bias=RelativeBias(**changes))


def convnexts(**changes: Any) -> ConvNeXt:
    """Two ConvNeXt blocks from 6 to 12 channels."""
    fields: dict[str, Any] = {"depth": 2, "width": 12}
    return ConvNeXt(**fields | changes)


def batch(epsilon: float) -> Norm:
    """A BatchNorm whose epsilon cannot be overlooked."""
    return Norm(kind="batch", epsilon=epsilon)


def layers(epsilon: float) -> Norm:
    """A LayerNorm likewise."""
    return Norm(kind="layer", epsilon=epsilon)


SE = SqueezeExcite
AVG3 = Pool(kind="avg", size=3, padding="symmetric", padded_zeros="counted")

MBCONVS = {
    "defaults": Case(
        mbconvs(),
        shapes={
            **layer("0.shortcut", 6, 10),
            **norms("0.pre_norm", 6),
            **layer("0.expand", 6, 40, bias=False),
            **norms("0.expand_norm", 40),
            **layer("0.depthwise", 3, 3, 40, bias=False),
            **norms("0.depthwise_norm", 40),
            **layer("0.se.reduce", 40, 2),
            **layer("0.se.expand", 2, 40),
            **layer("0.shrink", 40, 10),
            "0.shrink_norm.gamma": None,
            "0.layer_scale.gamma": None,
            "1.shortcut.w": None,
            **norms("1.pre_norm", 10),
            **layer("1.expand", 10, 40, bias=False),
        },
    ),
    "stride in the depthwise convolution": Case(
        mbconvs(stride_at="depthwise", expand_bias=True, depthwise_bias=True, shrink_bias=False, projection_bias=False),
        shapes={
            **layer("0.expand", 6, 40),
            **layer("0.depthwise", 3, 3, 40),
            **layer("0.shrink", 40, 10, bias=False),
            **layer("0.shortcut", 6, 10, bias=False),
        },
    ),
    "a bias of the expansion": Case(
        mbconvs(expand_bias=True, shrink_bias=False),
        shapes={
            **layer("0.expand", 6, 40),
            **layer("0.depthwise", 3, 3, 40, bias=False),
            **layer("0.shrink", 40, 10, bias=False),
            **layer("0.shortcut", 6, 10),
            **layer("0.se.reduce", 40, 2),
        },
    ),
    "a bias of the depthwise convolution": Case(
        mbconvs(depthwise_bias=True, projection_bias=False),
        shapes={
            **layer("0.expand", 6, 40, bias=False),
            **layer("0.depthwise", 3, 3, 40),
            **layer("0.shrink", 40, 10),
            **layer("0.shortcut", 6, 10, bias=False),
        },
    ),
    "symmetric padding": Case(mbconvs(stride_at="depthwise", padding="symmetric")),
    "kernel 5, same": Case(mbconvs(stride_at="depthwise", kernel=5), shapes=layer("0.depthwise", 5, 5, 40, bias=False)),
    "kernel 5, symmetric": Case(mbconvs(stride_at="depthwise", kernel=5, padding="symmetric")),
    "kernel 4, same": Case(mbconvs(stride_at="depthwise", kernel=4)),
    "no padding in the pool": Case(mbconvs(shortcut_pool=Pool(kind="avg", padding="valid")), image=EVEN),
    "stride in a pool": Case(mbconvs(stride_at="pool", main_pool=AVG3, shortcut_pool=Pool(kind="avg", size=3))),
    "pools exchanged": Case(mbconvs(stride_at="pool", main_pool=Pool(kind="avg", size=3), shortcut_pool=AVG3)),
    "max pools": Case(
        mbconvs(stride_at="pool", main_pool=Pool(size=3), shortcut_pool=Pool(size=3, padding="symmetric")),
    ),
    "counted zeros, same": Case(mbconvs(shortcut_pool=Pool(kind="avg", size=3, padded_zeros="counted"))),
    "se before the norm, of the input": Case(
        mbconvs(squeeze_excite=SE(place="before_norm", of="input", ratio=0.45, activation="relu", rounding="nearest")),
        shapes=layer("0.se.reduce", 40, 3) | layer("1.se.expand", 5, 40),  # 2.7 and 4.5
    ),
    "se of the expanded width": Case(
        mbconvs(squeeze_excite=SE(of="expanded", rounding="make_divisible", divisor=4, bias=False, activation="gelu")),
        shapes=layer("0.se.reduce", 40, 12, bias=False)
        | layer("0.se.expand", 12, 40, bias=False),  # 10 is nearer to 12
    ),
    "se rounded down": Case(mbconvs(squeeze_excite=SE(ratio=0.27)), shapes=layer("0.se.reduce", 40, 2)),
    "no se": Case(mbconvs(squeeze_excite=None), shapes={"0.se.reduce.w": None}),
    "pre-activation": Case(mbconvs(pre_norm_activation="silu", activation="mish", stride_at="depthwise")),
    "another pre-activation": Case(mbconvs(pre_norm_activation="tanh", activation="relu", residual_from="normalised")),
    "normalised residual": Case(mbconvs(residual_from="normalised")),
    "projection always": Case(
        mbconvs(width=6, projection="always"), shapes=layer("0.shortcut", 6, 6) | {"1.shortcut.w": None}
    ),
    "no projection": Case(mbconvs(width=6), shapes={"0.shortcut.w": None}),
    "no stride, three blocks": Case(mbconvs(stride=1, depth=3), shapes=layer("0.shortcut", 6, 10)),
    "no stride, no projection": Case(mbconvs(stride=1, width=6, projection="always"), shapes={"0.shortcut.w": None}),
    "layer norms": Case(
        mbconvs(pre_norm=layers(0.1), inner_norm=layers(0.2), shrink_norm=layers(0.3)),
        shapes=norms("0.pre_norm", 6, "layer")
        | norms("0.expand_norm", 40, "layer")
        | norms("1.shrink_norm", 10, "layer"),
    ),
    "batch norms": Case(
        mbconvs(pre_norm=batch(0.1), inner_norm=batch(0.2), shrink_norm=batch(0.3)), shapes=norms("0.shrink_norm", 10)
    ),
    "expansion of the input, down": Case(
        mbconvs(expansion=2.6, expansion_from="input", expansion_rounding="floor"),
        shapes=layer("0.expand", 6, 15, bias=False) | layer("1.expand", 10, 26, bias=False),  # 15.6 and 26
    ),
    "expansion to the nearest": Case(
        mbconvs(expansion=2.6, expansion_from="input"), shapes=layer("0.expand", 6, 16, bias=False)
    ),
    "expansion to a multiple": Case(
        mbconvs(expansion=1.9, expansion_from="input", expansion_rounding="make_divisible"),
        shapes=layer("0.expand", 6, 16, bias=False)
        | layer("1.expand", 10, 24, bias=False),  # 11.4: 8 loses too much; 19
    ),
    "expansion to a multiple of 5": Case(
        mbconvs(expansion=1.9, expansion_rounding="make_divisible", expansion_divisor=5),
        shapes=layer("0.expand", 6, 20, bias=False),  # 19
    ),
    "layer scale": Case(mbconvs(layer_scale=LayerScale(initial=0.1)), shapes={"1.layer_scale.gamma": (10,)}),
    "layer scale of the branch": Case(
        mbconvs(layer_scale=LayerScale(initial=0.1, per="branch")), shapes={"0.layer_scale.gamma": (1,)}
    ),
}

TRANSFORMERS = {
    "defaults": Case(
        transformers(),
        shapes={
            **layer("0.shortcut", 6, 12),
            **norms("0.attn_norm", 6, "layer"),
            **layer("0.attn.q", 6, 12),
            **layer("0.attn.k", 6, 12),
            **layer("0.attn.v", 6, 12),
            **layer("0.attn.o", 12, 12),
            "0.attn.relative_bias.table": (4, 9, 13),
            "0.attn_scale.gamma": None,
            "0.ffn_scale.gamma": None,
            **norms("0.ffn_norm", 12, "layer"),
            **layer("0.ffn.expand", 12, 48),
            **layer("0.ffn.shrink", 48, 12),
            "1.shortcut.w": None,
            **layer("1.attn.q", 12, 12),
        },
    ),
    "pool then norm": Case(transformers(norm_pool_order="pool_then_norm")),
    "normalised residual": Case(transformers(residual_from="normalised")),
    "normalised residual, pool then norm": Case(
        transformers(stride=1, residual_from="normalised", norm_pool_order="pool_then_norm")
    ),
    "projection always": Case(
        transformers(width=6, projection="always", projection_bias=False), shapes=layer("0.shortcut", 6, 6, bias=False)
    ),
    "no projection": Case(transformers(width=6), shapes={"0.shortcut.w": None}),
    "pools": Case(transformers(main_pool=AVG3, shortcut_pool=Pool(size=3))),
    "pools without padding": Case(
        transformers(main_pool=Pool(padding="valid"), shortcut_pool=Pool(kind="avg", padding="valid")), image=EVEN
    ),
    "batch norms": Case(
        transformers(attention_norm=batch(0.1), ffn_norm=batch(0.2)),
        shapes=norms("0.attn_norm", 6) | norms("0.ffn_norm", 12),
    ),
    "epsilons": Case(transformers(attention_norm=layers(0.1), ffn_norm=layers(0.2))),
    "layer scale": Case(
        transformers(layer_scale=LayerScale(initial=0.1)),
        shapes={"0.attn_scale.gamma": (12,), "0.ffn_scale.gamma": (12,)},
    ),
    "layer scale of the branch": Case(
        transformers(layer_scale=LayerScale(initial=0.1, per="branch")),
        shapes={"0.attn_scale.gamma": (1,), "0.ffn_scale.gamma": (1,)},
    ),
    "heads from the input": Case(
        attending(heads_from="input", scale="1/sqrt(heads*d)"),
        shapes={
            **layer("0.attn.v", 6, 6),
            **layer("0.attn.o", 6, 12),
            "0.attn.relative_bias.table": (2, 9, 13),
            "1.attn.relative_bias.table": (4, 9, 13),
        },
    ),
    "fixed heads": Case(
        attending(heads_from="fixed", heads=5, qkv_bias=False),
        shapes={
            **layer("0.attn.q", 6, 15, bias=False),
            **layer("0.attn.o", 15, 12),
            "0.attn.relative_bias.table": (5, 9, 13),
        },
    ),
    "one wide head": Case(
        transformers(attention=Attention(head_size=7, heads_from="fixed", heads=1)),
        shapes={**layer("0.attn.q", 6, 7), "0.attn.relative_bias.table": (1, 9, 13)},
    ),
    "no biases": Case(
        transformers(attention=Attention(head_size=3, qkv_bias=False, output_bias=False), ffn=FeedForward(bias=False)),
        shapes={
            **layer("0.attn.k", 6, 12, bias=False),
            **layer("0.attn.o", 12, 12, bias=False),
            **layer("0.ffn.expand", 12, 48, bias=False),
            **layer("0.ffn.shrink", 48, 12, bias=False),
        },
    ),
    "ffn of the input": Case(
        transformers(ffn=FeedForward(expansion=2.6, expansion_from="input", activation="silu")),
        shapes=layer("0.ffn.expand", 12, 15) | layer("1.ffn.expand", 12, 31),  # 15.6 and 31.2
    ),
    "one table for all heads": Case(biased(sharing="across_heads"), shapes={"0.attn.relative_bias.table": (1, 9, 13)}),
    "key minus query": Case(biased(orientation="key_minus_query")),
    "transposed": Case(biased(orientation="transposed"), shapes={"0.attn.relative_bias.table": (4, 13, 9)}),
    "after the softmax": Case(biased(add="post_softmax")),
    "after the softmax, one for all": Case(
        biased(add="post_softmax", sharing="across_heads", orientation="transposed")
    ),
    "an mlp": Case(
        biased(kind="log_mlp", hidden=7),
        shapes=layer("0.attn.relative_bias.hidden", 2, 7)
        | layer("0.attn.relative_bias.out", 7, 4)
        | {"0.attn.relative_bias.table": None},
    ),
    "an mlp, turned, one for all": Case(
        biased(kind="log_mlp", hidden=5, sharing="across_heads", orientation="key_minus_query"),
        shapes=layer("0.attn.relative_bias.out", 5, 1),
    ),
    "three blocks": Case(transformers(depth=3)),
    "no relative bias": Case(attending(relative_bias=None), shapes={"0.attn.relative_bias.table": None}),
    "windows": Case(
        transformers(stride=1, attention=Attention(head_size=3, form="windowed", window=(5, 4))),
        image=EVEN,
        shapes={"0.attn.relative_bias.table": (4, 9, 7)},
    ),
    "linear": Case(attending(form="linear", relative_bias=None, scale="1")),
} | {
    f"{scale} on {site}": Case(attending(scale=scale, scale_site=site))
    for scale, site in itertools.product(
        ("1/sqrt(d)", "1/sqrt(heads*d)", "1", "sqrt(d)"), ("query", "key", "query_and_key", "logits", "logits_and_bias")
    )
}

CONVNEXTS = {
    "defaults": Case(
        convnexts(),
        image=EVEN,
        shapes={
            **layer("0.shortcut", 6, 12),
            **layer("0.depthwise", 7, 7, 12),
            **norms("0.norm", 12, "layer"),
            **layer("0.ffn.expand", 12, 48),
            **layer("0.ffn.shrink", 48, 12),
            "0.layer_scale.gamma": None,
            "1.shortcut.w": None,
        },
    ),
    "three times the width": Case(
        convnexts(
            width=18, kernel=3, padding="same", bias=False, projection_bias=False, norm=batch(0.1), activation="silu"
        ),
        image=EVEN,
        shapes={
            **layer("0.depthwise", 3, 3, 18, bias=False),
            **layer("0.shortcut", 6, 18, bias=False),
            **norms("0.norm", 18),
            **layer("0.ffn.expand", 18, 72, bias=False),
            **layer("0.ffn.shrink", 72, 18, bias=False),
        },
    ),
    "stride in a pool": Case(
        convnexts(stride_at="pool", main_pool=Pool(), shortcut_pool=AVG3, expansion=2.4),
        shapes=layer("0.ffn.expand", 12, 28),  # 28.8
    ),
    "layer scale": Case(
        convnexts(layer_scale=LayerScale(initial=0.1)), image=EVEN, shapes={"0.layer_scale.gamma": (12,)}
    ),
    "layer scale of the branch": Case(
        convnexts(layer_scale=LayerScale(initial=0.1, per="branch")), image=EVEN, shapes={"0.layer_scale.gamma": (1,)}
    ),
    "projection always": Case(convnexts(width=6, projection="always"), image=EVEN, shapes=layer("0.shortcut", 6, 6)),
    "no projection": Case(convnexts(width=6), image=EVEN, shapes={"0.shortcut.w": None}),
    "no bias of the projection": Case(
        convnexts(projection_bias=False, kernel=5),
        image=EVEN,
        shapes=layer("0.depthwise", 5, 5, 12) | layer("0.ffn.shrink", 48, 12) | layer("0.shortcut", 6, 12, bias=False),
    ),
    "no stride, three blocks": Case(convnexts(stride=1, depth=3), shapes=layer("0.shortcut", 6, 12)),
    "stride in another pool": Case(convnexts(stride_at="pool", main_pool=AVG3, shortcut_pool=Pool())),
}

STEMS: dict[str, tuple[ConvStem | PatchStem, tuple[int, int], dict[str, tuple[int, ...] | None]]] = {
    "defaults": (
        STEM,
        ODD,
        {**layer("conv1", 3, 3, 3, 5), **norms("norm1", 5), **layer("conv2", 3, 3, 5, 6), "norm2.gamma": None},
    ),
    "symmetric padding": (ConvStem(widths=(5, 6), padding="symmetric", activation="gelu"), ODD, {}),
    "norm after the last": (
        ConvStem(widths=(6,), bias=(False,), after_last="norm_and_activation", norm=batch(0.1)),
        EVEN,
        layer("conv1", 3, 3, 3, 6, bias=False) | norms("norm1", 6) | {"conv2.w": None},
    ),
    "three convolutions": (
        ConvStem(widths=(4, 5, 6), bias=(False, True, False), kernel=5, norm=layers(0.1), activation="silu"),
        ODD,
        {
            **layer("conv1", 5, 5, 3, 4, bias=False),
            **layer("conv2", 5, 5, 4, 5),
            **layer("conv3", 5, 5, 5, 6, bias=False),
            **norms("norm2", 5, "layer"),
            "norm3.gamma": None,
        },
    ),
    "an even kernel": (ConvStem(widths=(5, 6), kernel=4), ODD, {}),
    "patches": (PatchStem(patch=4, width=6), EVEN, layer("conv1", 4, 4, 3, 6)),
    "patches without bias": (PatchStem(patch=2, width=7, bias=False), EVEN, layer("conv1", 2, 2, 3, 7, bias=False)),
}

HEADS: dict[str, tuple[Head, dict[str, tuple[int, ...] | None]]] = {
    "defaults": (
        Head(classes=4),
        norms("norm", 10, "layer") | layer("hidden", 10, 10) | layer("classifier", 10, 4),
    ),
    "norm then pool": (Head(classes=4, norm=layers(0.1), order="norm_then_pool"), {}),
    "batch norm": (Head(classes=4, norm=batch(0.1)), norms("norm", 10)),
    "batch norm then pool": (Head(classes=4, norm=batch(0.1), order="norm_then_pool", hidden=None), {"hidden.w": None}),
    "a narrower hidden layer": (Head(classes=4, hidden=Hidden(width=7)), layer("hidden", 10, 7)),
    "no norm": (Head(classes=4, norm=None), {"norm.gamma": None}),
    "no norm then pool": (Head(classes=4, norm=None, order="norm_then_pool"), {"norm.gamma": None}),
    "a wider hidden layer": (
        Head(classes=4, hidden=Hidden(width=13, activation="gelu"), bias=False),
        layer("hidden", 10, 13) | layer("classifier", 13, 4, bias=False),
    ),
    "probabilities": (Head(classes=4, output="probabilities"), {}),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On grids this small a second thread of torch only waits, for seconds where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(run: parts.Run, image: tuple[int, int], stem: ConvStem | PatchStem = STEM, head: Head | None = None) -> Any:
    """Parameters of a network of one run."""
    spec = Spec(
        name="case",
        image_size=image,
        stem=stem,
        stages=((run,),),
        head=head or Head(classes=4),
    )
    return coatref.init(spec, 1, dtype="float64", scheme="distinct")


def images(params: Any) -> Array:
    """Three random images for a network."""
    return np.random.default_rng(2).normal(size=(3, *params.spec.image_size, 3))


def check_shapes(params: Any, prefix: str, shapes: Mapping[str, tuple[int, ...] | None]) -> None:
    """The parameters have the shapes that were written out."""
    flat = params.flatten()
    found = {name: flat[f"{prefix}.{name}"].shape if f"{prefix}.{name}" in flat else None for name in shapes}
    assert found == dict(shapes)


CASES = {
    f"{kind}: {name}": case
    for kind, cases in (("mbconv", MBCONVS), ("transformer", TRANSFORMERS), ("convnext", CONVNEXTS))
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_block(name: str) -> None:
    case = CASES[name]
    params = network(case.run, case.image)
    check_shapes(params, "s1", case.shapes)
    values = coatref.trace(params, images(params))
    before = values["s0"]
    for index in range(case.run.depth):
        stride = case.run.stride if index == 0 else 1
        reference = second_torch.BLOCKS[case.run.kind](params["s1"][index], to_nchw(before), case.run, stride)
        before = values[f"s1.{index}"]
        assert_close(before, to_nhwc(reference), BLOCK_ROUNDING)
    assert f"s1.{case.run.depth}" not in values


@pytest.mark.parametrize("name", STEMS)
def test_stem(name: str) -> None:
    spec, image, shapes = STEMS[name]
    params = network(mbconvs(depth=1), image, stem=spec)
    check_shapes(params, "s0", shapes)
    x = images(params)
    assert_close(
        coatref.trace(params, x)["s0"], to_nhwc(second_torch.stem(params["s0"], to_nchw(x), spec)), BLOCK_ROUNDING
    )


@pytest.mark.parametrize("name", HEADS)
def test_head(name: str) -> None:
    spec, shapes = HEADS[name]
    params = network(mbconvs(depth=1), ODD, head=spec)
    check_shapes(params, "head", shapes)
    x = images(params)
    values = coatref.trace(params, x)
    found = values["probabilities" if spec.output == "probabilities" else "logits"]
    assert_close(found, second_torch.head(params["head"], to_nchw(values["s1"]), spec).numpy(), BLOCK_ROUNDING)
    assert_close(coatref.forward(params, x, backend="definition"), found)
    assert list(values)[-1] == spec.output


def test_a_network_of_all_blocks_is_their_composition() -> None:
    """Two runs in a stage and three kinds of block, from the image to the logits in one go."""
    stages: tuple[tuple[parts.Run, ...], ...] = (
        (mbconvs(depth=1), transformers(depth=2, stride=1)),
        (convnexts(width=24, depth=2, shortcut_pool=Pool(kind="avg")), attending(scale="1")),
    )
    spec = Spec(name="case", image_size=ODD, stem=STEM, stages=stages, head=Head(classes=4))
    params = coatref.init(spec, 1, dtype="float64", scheme="distinct")
    pixels = np.random.default_rng(2).normal(size=(2, *ODD, 3))
    y = second_torch.stem(params["s0"], to_nchw(pixels), spec.stem)
    for name, runs in zip(("s1", "s2"), stages, strict=True):
        blocks = iter(params[name])
        for run in runs:
            for index in range(run.depth):
                y = second_torch.BLOCKS[run.kind](next(blocks), y, run, run.stride if index == 0 else 1)
        assert next(blocks, None) is None
    logits = second_torch.head(params["head"], y, spec.head).numpy()
    assert_close(coatref.forward(params, pixels, backend="definition"), logits, BLOCK_ROUNDING)


# --- no convention is forgotten ---

NOT_HERE = {
    ("RelativeBias", "resize"),  # in `tests/test_properties.py`
    ("Attention", "fused_qkv"),  # how a checkpoint stores q, k and v
    ("LayerScale", "initial"),  # where a training starts
    ("Head", "classes"),
}


def records(value: Any) -> Iterator[Any]:
    """A record and all records inside it."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from records(getattr(value, field.name))


def unseen(hint: Any, values: set[Any]) -> set[Any]:
    """What a field of that type has not been tried with: a choice, None, a kind of norm, or a second number or record."""
    wanted: set[Any] = set()
    for option in typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (hint,):
        if option is types.NoneType:
            wanted |= {None}
        elif option in (bool, tuple[bool, ...]):
            wanted |= {True, False}
        elif typing.get_origin(option) is Literal and option is not parts.Activation:
            wanted |= set(typing.get_args(option))
        elif option is Norm:
            wanted |= {"batch", "layer"}
            values = values | {norm.kind for norm in values if norm is not None}
        elif len(values - {None}) < 2:  # one value would not show that the field is looked at
            wanted |= {"another one"}
    return wanted - values


def cases_records() -> list[Any]:
    """Every record of every case."""
    ends = [stem for stem, *_ in STEMS.values()] + [head for head, _ in HEADS.values()]
    return [record for top in [*(case.run for case in CASES.values()), *ends] for record in records(top)]


CLASSES = [each for each in vars(parts).values() if isinstance(each, type) and each.__module__ == parts.__name__]
HINTS = {(cls.__name__, name): hint for cls in CLASSES for name, hint in typing.get_type_hints(cls).items()}


def test_the_cases_use_every_choice_of_every_field() -> None:
    used: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for record in cases_records():
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            used[type(record).__name__, field.name] |= set(value) if isinstance(value, tuple) else {value}
    assert len(CLASSES) >= 14 and HINTS.keys() >= NOT_HERE
    missing = {field: unseen(hint, used[field]) for field, hint in HINTS.items() if field not in NOT_HERE}
    assert {field: values for field, values in missing.items() if values} == {}
    activations = {
        value
        for field, hint in HINTS.items()
        if parts.Activation in (hint, *typing.get_args(hint))
        for value in used[field]
    }
    assert activations >= set(typing.get_args(parts.Activation))


def test_no_two_fields_of_one_type_always_agree_so_that_none_can_stand_in_for_another() -> None:
    for (cls, one), (other_cls, other) in itertools.combinations(HINTS, 2):
        if cls == other_cls and HINTS[cls, one] == HINTS[cls, other]:
            same_class = [record for record in cases_records() if type(record).__name__ == cls]
            assert any(getattr(record, one) != getattr(record, other) for record in same_class), (cls, one, other)
