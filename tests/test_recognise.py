"""Whose tensors these are: dialect, named spec and sizes from names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import coatref
from coatref.weights.dialects import DIALECTS
from coatref.weights.places import expected
from coatref.weights.recognise import differences, recognised

THEIRS = [name for name in DIALECTS if name != "coatref"]
ALL = [
    (dialect, layout, name)
    for dialect in THEIRS
    for layout in DIALECTS[dialect].layouts
    for name in DIALECTS[dialect].specs()
]

# Specs of one dialect with the same tensors at their native sizes: what tells them apart is no tensor's name or shape.
TWINS = [{"timm/coatnet_rmlp_2_rw_224", "timm/coatnet_rmlp_2_rw_384"}]


def tensors(spec: coatref.Spec, dialect: str, layout: str | None = None) -> dict[str, Any]:
    """Arrays of the right names and shapes that take no memory."""
    places = DIALECTS[dialect].places(spec, layout or DIALECTS[dialect].layouts[0])
    return {name: np.broadcast_to(np.float32(1), shape) for name, shape in expected(places).items()}


def twins(name: str) -> set[str]:
    return next((group for group in TWINS if name in group), {name})


@pytest.mark.parametrize(("dialect", "layout", "name"), ALL)
def test_every_named_spec_is_known_by_its_tensors(dialect: str, layout: str, name: str) -> None:
    spec = coatref.spec(name)
    given = tensors(spec, dialect, layout)
    if len(twins(name)) > 1:
        with pytest.raises(coatref.InputError, match="2 specs have exactly these names and shapes") as caught:
            recognised(given)
        assert all(repr(twin) in str(caught.value) for twin in twins(name))
        assert "image_size.0: 224 or 384" in str(caught.value)
        found = recognised(given, architecture=name)
    else:
        found = recognised(given)
    assert (found.spec, found.dialect.name, found.layout) == (spec, dialect, layout)


@pytest.mark.parametrize("dialect", THEIRS)
def test_other_sizes(dialect: str) -> None:
    """Classes and image size of one's own; and, where one spec alone has such stages, depths and widths."""
    name = DIALECTS[dialect].specs()[1]
    for size in (96, 288, 384):
        spec = coatref.spec(name, image_size=size, classes=17)
        assert recognised(tensors(spec, dialect)).spec == spec


def test_depths_and_widths_of_ones_own() -> None:
    spec = coatref.spec("google/coatnet_0", depths=(2, 1, 1, 3, 1), widths=(64, 32, 64, 96, 160), image_size=(64, 96))
    assert recognised(tensors(spec, "google")).spec == spec
    spec = coatref.spec("kecam/CoAtNet0", depths=(1, 1, 3, 1), widths=(32, 64, 96, 160), image_size=64, classes=5)
    found = recognised(tensors(spec, "kecam")).spec  # which several named ones are then, all the same
    assert found.replace(name=spec.name) == spec
    spec = coatref.spec("timm/coatnet_pico_rw_224", depths=(1, 1, 3, 1), classes=5)
    with pytest.raises(coatref.InputError, match="stride_at: "):  # strided depthwise, or a pool: no tensor shows it
        recognised(tensors(spec, "timm"))
    assert recognised(tensors(spec, "timm"), architecture=spec.name).spec == spec


def test_images_that_are_not_square() -> None:
    """A flat table tells the product of its sides alone: which is which must be said."""
    spec = coatref.spec("timm/coatnet_0_rw_224", image_size=(96, 160))
    with pytest.raises(coatref.InputError, match="image_size.0: "):
        recognised(tensors(spec, "timm"))
    assert recognised(tensors(spec, "timm"), image_size=(96, 160)).spec == spec
    flipped = spec.replace(image_size=(160, 96))
    assert recognised(tensors(spec, "timm"), image_size=(160, 96)).spec == flipped
    spec = coatref.spec("google/coatnet_0", image_size=(96, 160))  # whose tables have both sides
    assert recognised(tensors(spec, "google")).spec == spec


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "ema_model.module."])
def test_wrappers_are_looked_through(prefix: str) -> None:
    given = tensors(coatref.spec("timm/test_coatnet"), "timm")
    wrapped = {f"{prefix}{name}": array for name, array in given.items()} | {"n_averaged": np.ones((), np.float32)}
    assert recognised(wrapped).spec == coatref.spec("timm/test_coatnet")
    params = coatref.convert(wrapped)
    assert params.spec.name == "timm/test_coatnet"
    half = {f"{'' if index % 2 else prefix}{name}": array for index, (name, array) in enumerate(given.items())}
    with pytest.raises(coatref.InputError, match="no 'timm/...' spec has exactly|no names"):
        recognised(half)


def test_own_names() -> None:
    params = coatref.init("coatnet_0", 0)
    with pytest.raises(coatref.InputError, match=r"specs have exactly .*'coatnet_0'"):
        coatref.convert(params.flatten())
    only = coatref.spec("c-c-c-t", classes=3)
    given = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes(only).items()}
    assert coatref.convert(given).spec == only


def shapes(spec: coatref.Spec) -> Mapping[str, tuple[int, ...]]:
    return expected(DIALECTS["coatref"].places(spec, "torch"))


def test_names_of_nobody() -> None:
    with pytest.raises(
        coatref.InputError, match=r"2 tensors \(such as a, b\) have no names of a dialect that is known"
    ):
        coatref.convert({"a": np.ones(1), "b": np.ones(1)})
    with pytest.raises(coatref.InputError, match="0 tensors"):
        coatref.convert({})
    given = tensors(coatref.spec("timm/coatnet_0_rw_224"), "timm")
    del given["norm.weight"]
    with pytest.raises(coatref.InputError, match=r"names of timm, depths \(2, 3, 7, 2\), widths \(96, 192, 384, 768\)"):
        coatref.convert(given)


def test_the_dialect_may_be_given() -> None:
    given = tensors(coatref.spec("timm/test_coatnet"), "timm")
    assert coatref.convert(given, dialect="timm").spec.name == "timm/test_coatnet"
    with pytest.raises(coatref.InputError, match="names of timm, depths"):
        coatref.convert(given, dialect="kecam")


def test_differences() -> None:
    first, second = coatref.spec("coatnet_0"), coatref.spec("coatnet_0", image_size=(96, 224), classes=3)
    assert differences(first, second) == [("image_size.0", "224", "96"), ("head.classes", "1000", "3")]
    assert differences(first, first) == []
