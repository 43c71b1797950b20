"""The spec: named ones, JSON, closed choices, invalid combinations, grids and counts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import coatref
from coatref.errors import InputError, SizeError, SpecError, UnknownSpecError
from coatref.params import tensor_tree
from coatref.specification import (
    Attention,
    ConvNeXt,
    ConvStem,
    Head,
    MBConv,
    Norm,
    PatchStem,
    Pool,
    RelativeBias,
    Spec,
    Transformer,
)
from coatref.specification.fields import hints
from coatref.specification.grids import grids, output_length, padding_amounts
from coatref.specification.paper import with_mbconvs
from coatref.specification.parts import rounded
from coatref.tree import flatten


@pytest.mark.parametrize("name", coatref.specs())
def test_every_named_spec_survives_json_and_is_hashable(name: str) -> None:
    spec = coatref.spec(name)
    assert spec.name == name
    again = Spec.from_json(spec.to_json())
    assert again == spec and hash(again) == hash(spec)
    json.loads(spec.to_json())


def test_a_named_spec_is_the_same_object_every_time() -> None:
    assert coatref.spec("coatnet_0") is coatref.spec("coatnet_0")


def test_layouts_with_coatnet_0_sizes() -> None:
    """C-C-T-T at its default sizes is CoAtNet-0; the letters are S1 to S4."""
    assert coatref.spec("c-c-t-t").replace(name="coatnet_0") == coatref.spec("coatnet_0")
    kinds = {
        name: "".join("C" if isinstance(stage[0], MBConv) else "T" for stage in coatref.spec(name).stages)
        for name in ("c-c-c-c", "c-c-c-t", "c-c-t-t", "c-t-t-t")
    }
    assert kinds == {"c-c-c-c": "CCCC", "c-c-c-t": "CCCT", "c-c-t-t": "CCTT", "c-t-t-t": "CTTT"}


def test_sizes_can_be_chosen() -> None:
    spec = coatref.spec("c-t-t-t", depths=(3, 1, 2, 3, 4), widths=(8, 16, 32, 64, 96), image_size=(64, 96), classes=7)
    assert [(run.depth, run.width) for (run,) in spec.stages] == [(1, 16), (2, 32), (3, 64), (4, 96)]
    assert spec.stem == ConvStem(widths=(8, 8, 8), bias=(True, True, True))
    assert spec.image_size == (64, 96) and spec.head.classes == 7
    deep = coatref.spec("vit-rel", depths=(5,), widths=(96,), image_size=(48, 80))
    assert [name for name in grids(deep, 48, 80)] == ["s0", "s1.0", "s1.1", "s1.2", "s1.3", "s1.4"]
    assert set(grids(deep, 48, 80).values()) == {(3, 5)}


def test_mixed_stage_of_coatnet_6() -> None:
    """Table 12: S3 starts with MBConv blocks and goes on with Transformer blocks, wider, on the same grid."""
    spec = coatref.spec("coatnet_6")
    convolutions, attention = spec.stages[2]
    assert isinstance(convolutions, MBConv) and isinstance(attention, Transformer)
    assert (convolutions.stride, attention.stride, attention.width) == (2, 1, 1536)
    place = grids(spec, 224, 224)
    assert place["s3.0"] == place["s3.7"] == place["s3.8"] == place["s3.49"] == (14, 14)
    tree = tensor_tree(spec)
    assert tree["s3"][8]["shortcut"]["w"].shape == (768, 1536)
    assert "shortcut" not in tree["s3"][9]


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("coatnet_2/head-64", {"attention.head_size": {32, 64}}),
        ("coatnet_2/no-relative-attention", {"attention.relative_bias": {RelativeBias(), None}}),
        ("coatnet_2/strided-depthwise", {"stride_at": {"expand", "depthwise"}}),
    ],
)
def test_an_ablation_changes_what_it_says_and_nothing_else(name: str, difference: dict[str, Any]) -> None:
    base, changed = coatref.spec("coatnet_2"), coatref.spec(name)
    found: dict[str, Any] = {}
    for one, other in zip(base.stages, changed.stages, strict=True):
        for path, a, b in differences(one[0], other[0]):
            found.setdefault(path, set()).update({a, b})
    assert found == difference
    assert changed.replace(name=base.name, stages=base.stages) == base


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted path and both values wherever two records differ."""
    kind: Any = type(one)
    for name in hints(kind):
        a, b = getattr(one, name), getattr(other, name)
        here = f"{path}.{name}" if path else name
        if dataclasses.is_dataclass(a) and type(a) is type(b):
            yield from differences(a, b, here)
        elif a != b:
            yield here, a, b


@pytest.mark.parametrize(
    "make",
    [
        lambda: Norm(kind="group", epsilon=1e-5),  # type: ignore[arg-type]
        lambda: Norm(kind="layer", epsilon=0.0),
        lambda: Norm(kind="layer", epsilon=math.nan),
        lambda: Pool(kind="median"),  # type: ignore[arg-type]
        lambda: Pool(size=0),
        lambda: RelativeBias(kind="log_mlp"),
        lambda: RelativeBias(hidden=8),
        lambda: RelativeBias(kind="log_mlp", hidden=8, orientation="transposed"),
        lambda: Attention(form="windowed"),
        lambda: Attention(window=(7, 7)),
        lambda: Attention(heads_from="fixed"),
        lambda: Attention(heads=8),
        lambda: Attention(form="linear", scale="1"),
        lambda: Attention(form="linear", relative_bias=None),
        lambda: MBConv(depth=1, width=8, stride_at="pool"),
        lambda: MBConv(depth=1, width=8, main_pool=Pool()),
        lambda: MBConv(depth=0, width=8),
        lambda: MBConv(depth=1, width=8, stride=3),  # type: ignore[arg-type]
        lambda: MBConv(depth=True, width=8),
        lambda: MBConv(depth=1, width=8, expand_bias=1),  # type: ignore[arg-type]
        lambda: MBConv(depth=1, width=8, activation="gelu_erf"),  # type: ignore[arg-type]
        lambda: Transformer(depth=1, width=32, residual_from="normalised", norm_pool_order="pool_then_norm"),
        lambda: ConvStem(widths=()),
        lambda: ConvStem(widths=(8, 8), bias=(True,)),
        lambda: Head(classes=0),
        lambda: Spec(name="x", stem=PatchStem(patch=16, width=8), stages=()),
        lambda: Spec(name="x", stem=PatchStem(patch=16, width=8), stages=((),)),
        lambda: Spec(name="x", stem=PatchStem(patch=16, width=8), stages=((Transformer(depth=1, width=40),),)),
        lambda: Spec(name="x", stem=PatchStem(patch=16, width=8), stages=((ConvNeXt(depth=1, width=12),),)),
        lambda: Spec(name="x", channels=1, stem=PatchStem(patch=16, width=8), stages=((MBConv(depth=1, width=8),),)),
        lambda: coatref.spec("coatnet_0").replace(image_size=(0, 224)),
        lambda: coatref.spec("coatnet_0").replace(image_size=[224, 224]),
    ],
)
def test_what_means_nothing_is_refused(make: Any) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert isinstance(caught.value, ValueError) and len(str(caught.value)) < 400


def test_unknown_names_and_wrong_numbers_of_sizes() -> None:
    with pytest.raises(UnknownSpecError, match="coatnet_0"):
        coatref.spec("coatnet0")
    with pytest.raises(KeyError):
        coatref.spec("resnet50")
    for name in ("coatnet_0", "coatnet_6", "vit-rel", "c-c-t-t", "timm/coatnet_0_224"):
        with pytest.raises(InputError, match="depth"):
            coatref.spec(name, depths=(1, 2))


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.pop("name"),
        lambda plain: plain.update(surprise=1),
        lambda plain: plain["stem"].update(kind="transformer"),
        lambda plain: plain["stem"].pop("kind"),
        lambda plain: plain["stages"][0][0].update(width="96"),
        lambda plain: plain["stages"][0][0].update(width=1e99),
        lambda plain: plain["stages"][0][0].update(depth=10**9),
        lambda plain: plain.update(stages=plain["stages"] * 300),
        lambda plain: plain["stages"][2][0]["attention"].update(relative_bias="table"),
        lambda plain: plain.update(image_size=[224]),
        lambda plain: plain.update(image_size=[224, 224, 3]),
        lambda plain: plain.update(head=None),
        lambda plain: plain.update(name="x" * 10**5),
    ],
)
def test_json_that_is_no_spec_is_refused(change: Any) -> None:
    plain = json.loads(coatref.spec("coatnet_0").to_json())
    change(plain)
    with pytest.raises(SpecError) as caught:
        Spec.from_json(json.dumps(plain))
    assert len(str(caught.value)) < 600


@given(
    length=st.integers(1, 40),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 4),
    padding=st.sampled_from(["same", "symmetric", "valid"]),
)
def test_output_length_counts_the_windows_that_fit(length: int, kernel: int, stride: int, padding: Any) -> None:
    before, after = padding_amounts(length, kernel, stride, padding)
    rows = before + length + after
    assert output_length(length, kernel, stride, padding) == sum(1 for i in range(0, rows, stride) if i + kernel <= rows)
    if padding == "same":
        assert output_length(length, kernel, stride, padding) == math.ceil(length / stride)
        assert 0 <= after - before <= 1


@pytest.mark.parametrize("name", ["coatnet_0", "timm/coatnet_0_rw_224", "timm/coatnet_rmlp_1_rw_224", "vit-rel"])
@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_sizes_named_in_an_error_work(name: str, height: int, width: int) -> None:
    """Every size has a meaning, or an error that names sizes that have one."""
    spec = coatref.spec(name)
    try:
        place = grids(spec, height, width)
    except SizeError as error:
        named = str(error).rpartition("sizes that work: ")[2].rstrip(".").split(" and ")
        assert named != ["none nearby"]
        for size in named:
            grids(spec, *map(int, size.split("x")))
    else:
        assert all(min(grid) >= 1 for grid in place.values())


def test_tf_same_padding_gives_every_size_a_meaning() -> None:
    spec = coatref.spec("coatnet_0")
    for height, width in ((1, 1), (33, 50), (223, 225)):
        place = grids(spec, height, width)
        assert place["s4.1"] == (math.ceil(height / 32), math.ceil(width / 32))


@pytest.mark.parametrize(
    ("width", "rounding", "expected"),
    [
        (9.9, "floor", 9),
        (0.2, "floor", 1),
        (9.5, "nearest", 10),
        (9.4, "nearest", 9),
        (0.1, "nearest", 1),
        (20, "make_divisible", 24),  # 16 would lose a fifth
        (19, "make_divisible", 24),  # 16 would lose more than a tenth
        (17, "make_divisible", 16),
        (3, "make_divisible", 8),
    ],
)
def test_rounding_of_widths(width: float, rounding: Any, expected: int) -> None:
    assert rounded(width, rounding, 8) == expected


def test_counts_of_a_network_small_enough_to_count_by_hand() -> None:
    """3x5 grid of patches, one block with 2 heads of 4 channels; every number below is written out."""
    attention = Attention(head_size=4, qkv_bias=False)
    block = Transformer(depth=1, width=8, stride=1, attention=attention)
    spec = Spec(
        name="hand",
        image_size=(6, 10),
        stem=PatchStem(patch=2, width=6),
        stages=((block,),),
        head=Head(classes=10, hidden=None),
    )
    parameters = {
        "patches": 2 * 2 * 3 * 6 + 6,
        "shortcut": 6 * 8 + 8,
        "attention norm": 6 + 6,
        "q, k, v": 3 * 6 * 8,
        "table": 2 * 5 * 9,
        "o": 8 * 8 + 8,
        "ffn norm": 8 + 8,
        "ffn": 8 * 32 + 32 + 32 * 8 + 8,
        "head norm": 8 + 8,
        "classifier": 8 * 10 + 10,
    }
    assert spec.num_parameters() == sum(parameters.values())
    products = {
        "patches": 15 * 2 * 2 * 3 * 6,
        "shortcut": 15 * 6 * 8,
        "q, k, v": 15 * 3 * 6 * 8,
        "q k and weights v": 2 * 2 * 15 * 15 * 4,
        "o": 15 * 8 * 8,
        "ffn": 15 * 2 * 8 * 32,
        "classifier": 8 * 10,
    }
    assert spec.multiply_adds(6, 10) == sum(products.values())


def test_running_statistics_are_not_counted() -> None:
    spec = coatref.spec("coatnet_0", depths=(2, 1, 1, 1, 1), widths=(8, 8, 16, 32, 64), image_size=(32, 32))
    total = sum(math.prod(tensor.shape) for _, tensor in flatten(tensor_tree(spec)))
    statistics = sum(math.prod(t.shape) for name, t in flatten(tensor_tree(spec)) if name.endswith((".mean", ".var")))
    assert statistics > 0 and spec.num_parameters() == total - statistics


def test_squeeze_excite_runs_once_for_an_image() -> None:
    spec = coatref.spec("c-c-c-c", depths=(2, 1, 1, 1, 1), widths=(8, 8, 16, 32, 64), image_size=(64, 64))
    without = with_mbconvs(spec, lambda run: replace(run, squeeze_excite=None))
    expanded = [4 * run.width for (run,) in spec.stages]
    hidden = [run.width // 4 for (run,) in spec.stages]
    difference = sum(2 * e * h for e, h in zip(expanded, hidden, strict=True))
    assert spec.multiply_adds(64, 64) - without.multiply_adds(64, 64) == difference
    assert spec.multiply_adds(128, 96) - without.multiply_adds(128, 96) == difference
