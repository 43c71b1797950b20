"""Every bad input is refused by a coatref error that is also the built-in one a caller would expect, with a clear message.

Clear means: what was asked, what was found, where, and how to fix it.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import coatref
from coatref.errors import (
    CoatrefError,
    DtypeError,
    InputError,
    LibraryError,
    MissingDependencyError,
    ShapeError,
    SizeError,
    SpecError,
    UnknownSpecError,
    WeightsError,
)
from coatref.model import check_input
from coatref.params import tensor_tree
from coatref.registry import library_of
from coatref.specification import Attention, Head, MBConv, Norm, RelativeBias, Spec
from coatref.specification.grids import grids
from coatref.tree import flatten
from coatref.weights.timm import expected as timm_shapes

TINY = coatref.spec("coatnet_0", image_size=32, classes=3, depths=(2, 1, 1, 1, 1), widths=(4, 4, 4, 32, 32))
TIMM = coatref.spec("timm/coatnet_1_rw_224", image_size=32, classes=3, depths=(1, 1, 1, 1), widths=(8, 32, 32, 32))
PARAMS = coatref.init(TINY, scheme="distinct")
X = np.linspace(-1, 1, 2 * 32 * 32 * 3, dtype=np.float32).reshape(2, 32, 32, 3)


def refused(call: Callable[[], Any], error: type[CoatrefError], builtin: type[Exception], *parts: str) -> str:
    """The message of the error that a call must raise: exactly this class, a sentence, with these parts in it."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, type(caught.value)
    assert isinstance(caught.value, builtin)
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert 30 < len(message) < 2000
    assert message.endswith(".") or error is MissingDependencyError, message
    return message


def wrong(value: Any) -> Any:
    """An argument that a type checker would refuse as well."""
    return value


RUNNERS = [coatref.forward, coatref.trace]


# --- the image ---


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(
    "shape",
    [
        (),
        (3,),
        (32, 32),
        (32, 32, 3),
        (1, 2, 32, 32, 3),
        (2, 3, 32, 32),
        (2, 32, 32, 1),
        (2, 32, 32, 4),
        (2, 32, 32, 0),
    ],
)
def test_images_of_a_wrong_shape(run: Callable[..., Any], shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    refused(lambda: run(PARAMS, x), ShapeError, ValueError, "(N, H, W, 3)", str(shape), "permute_dims(x, (0, 2, 3, 1))")


def test_the_advice_for_channels_first_is_right() -> None:
    channels_first = np.ascontiguousarray(X.transpose(0, 3, 1, 2))
    message = refused(lambda: coatref.forward(PARAMS, channels_first), ShapeError, ValueError, "(2, 3, 32, 32)")
    advice = re.search(r"permute_dims\(x, (\(.*?\))\)", message)
    assert advice is not None
    axes = tuple(int(axis) for axis in advice[1].strip("()").split(","))
    again = coatref.forward(PARAMS, np.permute_dims(channels_first, axes))
    np.testing.assert_array_equal(again, coatref.forward(PARAMS, X))


@pytest.mark.parametrize("run", RUNNERS)
def test_an_empty_batch(run: Callable[..., Any]) -> None:
    refused(lambda: run(PARAMS, X[:0]), ShapeError, ValueError, "at least one image", "(0, 32, 32, 3)")


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(("height", "width"), [(0, 32), (32, 0), (0, 0)])
def test_images_without_height_or_width(run: Callable[..., Any], height: int, width: int) -> None:
    x = X[:, :height, :width, :]
    message = refused(
        lambda: run(PARAMS, x), SizeError, ValueError, f"{height}x{width}", "'coatnet_0'", "sizes that work"
    )
    for size in named_sizes(message):
        grids(TINY, *size)


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(
    "dtype", ["int64", "uint8", "bool", "complex64", "complex128", "object", "str", "datetime64[s]"]
)
def test_images_of_a_dtype_that_is_not_real_floating(run: Callable[..., Any], dtype: str) -> None:
    x = np.zeros(X.shape, dtype)
    refused(lambda: run(PARAMS, x), DtypeError, TypeError, "real floating", str(x.dtype), "cast")


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_tensors_and_jax_arrays_of_such_a_dtype(run: Callable[..., Any], dtype: str) -> None:
    for library, x in (
        ("torch", torch.zeros(X.shape, dtype=getattr(torch, dtype))),
        ("jax", jnp.zeros(X.shape, dtype)),
    ):
        params = PARAMS.to(xp=library)
        refused(partial(run, params, x), DtypeError, TypeError, "real floating", dtype)


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(
    ("image", "parameters"), [("float64", "float32"), ("float32", "float64"), ("float16", "float32")]
)
def test_images_and_parameters_of_two_dtypes(run: Callable[..., Any], image: str, parameters: str) -> None:
    params = PARAMS.to(dtype=parameters)
    for x, p in ((X.astype(image), params), (torch.asarray(X.astype(image)), params.to(xp="torch"))):
        parts = image, "s0.conv1.w", parameters, "params.to(dtype=...)"
        refused(partial(run, p, x), DtypeError, TypeError, *parts)


def test_one_parameter_of_another_dtype_is_named() -> None:
    changed = PARAMS.replace({"s4.0.ffn.shrink.b": PARAMS["s4"][0]["ffn"]["shrink"]["b"].astype(np.float64)})
    refused(lambda: coatref.forward(changed, X), DtypeError, TypeError, "s4.0.ffn.shrink.b", "float64", "float32")


LIBRARIES: dict[str, Callable[[], Any]] = {
    "numpy": lambda: X,
    "torch": lambda: torch.asarray(X),
    "jax": lambda: jnp.asarray(X),
}


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("of_x", LIBRARIES)
@pytest.mark.parametrize("of_params", LIBRARIES)
def test_images_and_parameters_of_two_libraries(run: Callable[..., Any], of_x: str, of_params: str) -> None:
    x, params = LIBRARIES[of_x](), PARAMS.to(xp=of_params)
    if of_x == of_params:
        check_input(params, x)
        return
    parts = f"x is a {of_x} array", f"a {of_params} array", "s0.conv1.w", f"params.to(xp={of_x!r})"
    refused(lambda: run(params, x), LibraryError, TypeError, *parts)
    check_input(params.to(xp=of_x), x)  # the advice is right


@pytest.mark.parametrize("run", RUNNERS)
def test_images_and_parameters_on_two_devices(run: Callable[..., Any]) -> None:
    """torch's "meta" device stands for a second one; it is on every machine."""
    on_cpu, on_meta = coatref.init(TINY, xp="torch"), coatref.init(TINY, xp="torch", device="meta")
    x = torch.asarray(X)
    parts = "device cpu", "meta", "s0.conv1.w", "params.to(device=...)"
    refused(lambda: run(on_meta, x), LibraryError, TypeError, *parts)
    refused(lambda: run(on_cpu, x.to("meta")), LibraryError, TypeError, "device meta", "on cpu")
    check_input(on_meta, x.to("meta"))


NOT_ARRAYS: dict[str, Any] = {
    "list": X.tolist(),
    "None": None,
    "float": 1.0,
    "text": "image.png",
    "bytes": b"image",
    "dict": {"x": X},
    "tuple": (X, X),
}


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("kind", NOT_ARRAYS)
def test_images_that_are_no_arrays(run: Callable[..., Any], kind: str) -> None:
    x = NOT_ARRAYS[kind]
    refused(lambda: run(PARAMS, x), LibraryError, TypeError, type(x).__name__, "Python array API", "numpy.asarray(x)")


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(each, id=type(each).__name__)
        for each in (torch.nn.Linear(3, 3), torch.float32, torch.Size([1, 2]), np.random.default_rng(0))
    ],
)
def test_images_that_are_other_things_of_an_array_library(x: Any) -> None:
    refused(lambda: coatref.forward(PARAMS, x), LibraryError, TypeError, type(x).__name__)


def test_masked_images() -> None:
    refused(lambda: coatref.forward(PARAMS, np.ma.masked_array(X)), LibraryError, TypeError, "MaskedArray")


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("params", [dict(PARAMS), PARAMS.flatten(), None, X, "coatnet_0", TINY, PARAMS["s0"], [PARAMS]])
def test_parameters_that_are_no_params(run: Callable[..., Any], params: Any) -> None:
    parts = "Params", type(params).__name__, "coatref.init, load or convert"
    refused(lambda: run(params, X), InputError, ValueError, *parts)


def test_arguments_the_other_way_round() -> None:
    wrong: Any = X
    refused(lambda: coatref.forward(wrong, PARAMS), InputError, ValueError, "Params first", "ndarray")


def test_a_backend_that_is_none() -> None:
    backend: Any = "fast"
    refused(lambda: coatref.forward(PARAMS, X, backend=backend), InputError, ValueError, "'definition'", "'fast'")


# --- sizes ---


def named_sizes(message: str) -> list[tuple[int, int]]:
    """The sizes that a message says will work."""
    advice = message.rpartition("sizes that work: ")[2]
    return [(int(height), int(width)) for height, width in re.findall(r"(\d+)x(\d+)", advice)]


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 64), (48, 32), (1, 1)])
def test_a_size_that_the_tables_are_not_made_for(run: Callable[..., Any], height: int, width: int) -> None:
    x = np.zeros((1, height, width, 3), np.float32)
    parts = f"{height}x{width}", "32x32", "block s3.0", f"params.resize({height}, {width})"
    refused(lambda: run(PARAMS, x), SizeError, ValueError, *parts)
    assert coatref.forward(PARAMS.resize(height, width), x).shape == (1, 3)  # the advice is right


def test_a_size_that_gives_the_same_grids_needs_no_resize() -> None:
    assert coatref.forward(PARAMS, np.zeros((1, 31, 30, 3), np.float32)).shape == (1, 3)


@given(st.integers(1, 300), st.integers(1, 300))
@example(33, 33)
@example(32, 33)
@example(224, 225)
@example(1, 1)
@settings(deadline=None, max_examples=60)
def test_a_size_on_which_floor_and_ceil_disagree_names_sizes_that_work(height: int, width: int) -> None:
    """timm's strided convolutions round up and its pools down, so most odd grids have no meaning."""
    try:
        grids(TIMM, height, width)
    except SizeError:
        pass
    else:
        return
    asked = f"{height}x{width}"
    message = refused(
        lambda: TIMM.replace(image_size=(height, width)), SizeError, ValueError, asked, TIMM.name, "sizes that work: "
    )
    found = named_sizes(message)
    assert found and (height, width) not in found
    for size in found:
        assert set(grids(TIMM, *size)) >= {"s0", "s4.0"}
    if height == width:  # the nearest square on each side
        below = [side for side in meaningful_squares() if side < height][-1:]
        above = [side for side in meaningful_squares() if side > height][:1]
        assert found == [(side, side) for side in (*below, *above)]


@functools.cache
def meaningful_squares() -> list[int]:
    """The sides of all square images up to 400 pixels that have a meaning under TIMM."""
    found = []
    for side in range(1, 400):
        try:
            grids(TIMM, side, side)
        except SizeError:
            continue
        found.append(side)
    return found


@pytest.mark.parametrize("name", ["timm/coatnet_1_rw_224", "timm/coatnet_2_224", "timm/coatnext_nano_rw_224"])
def test_forward_on_the_sizes_that_a_refusal_names(name: str) -> None:
    widths = (64, 64, 128, 128)
    spec = coatref.spec(name, image_size=64, classes=3, depths=(1, 1, 1, 1), widths=widths)
    params, x = coatref.init(spec), np.zeros((1, 70, 70, 3), np.float32)
    message = refused(
        lambda: coatref.forward(params, x), SizeError, ValueError, "70x70", name, "main branch", "shortcut"
    )
    sizes = named_sizes(message)
    assert len(sizes) == 2 and sizes[0] < (70, 70) < sizes[1]
    for size in sizes:
        assert coatref.forward(params.resize(*size), np.zeros((1, *size, 3), np.float32)).shape == (1, 3)


def test_windows_that_do_not_tile() -> None:
    spec = coatref.spec("coatnet_0/windowed-attention")
    message = refused(
        lambda: spec.replace(image_size=(256, 320)),
        SizeError,
        ValueError,
        "256x320",
        "windows of 7x7 do not tile the 16x20 grid of block s3.0",
    )
    assert named_sizes(message)
    for size in named_sizes(message):
        grids(spec, *size)
    windowed = TINY.replace(
        stages=(*TINY.stages[:3], (coatref.spec("coatnet_0/windowed-attention").stages[3][0],)), image_size=(224, 224)
    )
    small = windowed.replace(stages=(*TINY.stages[:2], *windowed.stages[3:]), image_size=(112, 112))
    params, x = coatref.init(small), np.zeros((1, 96, 96, 3), np.float32)
    message = refused(lambda: coatref.forward(params, x), SizeError, ValueError, "96x96", "do not tile", "s3.0")
    assert named_sizes(message)


@pytest.mark.parametrize("size", [(0, 0), (-1, 32), (1.5, 32), ("a", 32), (True, True), (None, 32), (10**7, 32)])
def test_resize_to_what_is_no_size(size: tuple[Any, Any]) -> None:
    refused(lambda: PARAMS.resize(*size), SpecError, ValueError, "Spec.image_size", "whole number", repr(size[0]))


def test_resize_to_a_size_without_meaning() -> None:
    params = coatref.init(TIMM)
    message = refused(lambda: params.resize(33, 33), SizeError, ValueError, "33x33", TIMM.name, "sizes that work")
    for size in named_sizes(message):
        assert params.resize(*size).spec.image_size == size


def test_resize_to_nothing_left() -> None:
    spec = coatref.spec("vit-rel", depths=(1,), widths=(32,), image_size=32, classes=2)
    message = refused(lambda: coatref.init(spec).resize(24, 32), SizeError, ValueError, "24x32", "16x16 patches")
    assert (16, 16) in named_sizes(message) or (16, 32) in named_sizes(message)


# --- named specs ---


@pytest.mark.parametrize(
    "name", ["coatnet_9", "COATNET_0", "", "coatnet_0_rw_224", "timm/", "timm/resnet50", "coatnet_0/", "../x"]
)
def test_an_unknown_spec(name: str) -> None:
    refused(lambda: coatref.spec(name), UnknownSpecError, KeyError, repr(name))
    refused(lambda: coatref.init(name), UnknownSpecError, KeyError, repr(name))
    if name is not None:  # which asks for the spec to be recognised
        refused(lambda: coatref.convert(PARAMS.flatten(), name), UnknownSpecError, KeyError, repr(name))


def test_an_unknown_spec_names_similar_ones() -> None:
    refused(lambda: coatref.spec("coatnet_0_rw_224"), UnknownSpecError, KeyError, "timm/coatnet_0_rw_224")
    refused(lambda: coatref.spec("zzz"), UnknownSpecError, KeyError, "coatref.specs()")


@pytest.mark.parametrize("name", [None, 5, 1.5, b"coatnet_0", ("coatnet_0",)])
def test_a_spec_of_a_wrong_type(name: Any) -> None:
    refused(lambda: coatref.spec(name), UnknownSpecError, KeyError, repr(name))
    refused(lambda: coatref.init(name), UnknownSpecError, KeyError, repr(name))
    if name is not None:  # which asks for the spec to be recognised
        refused(lambda: coatref.convert(PARAMS.flatten(), name), UnknownSpecError, KeyError, repr(name))


@pytest.mark.parametrize("name", [["coatnet_0"], {"name": "coatnet_0"}, {1}])
def test_a_spec_that_is_a_list(name: Any) -> None:
    refused(lambda: coatref.init(name), UnknownSpecError, KeyError)


def entries(name: str) -> int:
    """How many depths a named spec takes."""
    if name.startswith(("timm/", "kecam/")):
        return 5 if name in ("kecam/CoAtNet6", "kecam/CoAtNet7") else 4
    return {"vit-rel": 1, "coatnet_6": 6, "coatnet_7": 6}.get(name.removeprefix("google/").partition("/")[0], 5)


@pytest.mark.parametrize("name", coatref.specs())
def test_a_wrong_number_of_depths_or_widths(name: str) -> None:
    count = entries(name)
    for number in {count - 1, count + 1, 2 * count} - {0}:
        refused(partial(coatref.spec, name, depths=(2,) * number), InputError, ValueError, repr(name), f"got {number}")
        refused(
            partial(coatref.spec, name, widths=(128,) * number), InputError, ValueError, repr(name), f"and {number}"
        )


@pytest.mark.parametrize("name", ["coatnet_0", "coatnet_6", "vit-rel", "c-t-t-t", "timm/coatnet_0_rw_224"])
def test_no_depths_or_widths_at_all(name: str) -> None:
    refused(lambda: coatref.spec(name, depths=()), InputError, ValueError, repr(name))
    refused(lambda: coatref.spec(name, widths=[]), InputError, ValueError, repr(name))


FAMILIES = ["coatnet_0", "coatnet_6", "vit-rel", "c-c-c-t", "coatnet_2/head-64", "timm/coatnet_0_rw_224"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("value", [0, -1, 10**7, 10**30, 1.5, "2", None, True])
def test_depths_and_widths_without_meaning(name: str, value: Any) -> None:
    count = entries(name)
    for place in range(count):
        depths, widths = [2] * count, [128] * count
        depths[place] = widths[place] = value
        if name != "vit-rel" and not name.startswith("timm/") and place == 0:
            continue  # the stem's: see below
        refused(partial(coatref.spec, name, depths=depths), SpecError, ValueError, "depth", repr(value))
        refused(partial(coatref.spec, name, widths=widths), SpecError, ValueError, "width", repr(value))


@pytest.mark.parametrize("name", ["coatnet_0", "coatnet_6", "c-c-c-t"])
def test_stems_without_meaning(name: str) -> None:
    rest = (2,) * (entries(name) - 1)
    for depth in (0, -1):
        refused(partial(coatref.spec, name, depths=(depth, *rest)), SpecError, ValueError, "ConvStem", "at least one")
    for width in (0, -1, 10**7, 1.5, "64"):
        widths: Any = (width, *(128,) * (entries(name) - 1))
        refused(partial(coatref.spec, name, widths=widths), SpecError, ValueError, "ConvStem.widths", repr(width))
    refused(lambda: coatref.spec(name, depths=(1001, *rest)), SpecError, ValueError, "1000", "1001")


@pytest.mark.parametrize("depth", [2.0, None, "2", 10**12])
def test_a_stem_depth_that_is_no_small_whole_number(depth: Any) -> None:
    refused(lambda: coatref.spec("coatnet_0", depths=(depth, 2, 2, 2, 2)), SpecError, ValueError, repr(depth))


def test_widths_that_the_heads_do_not_divide() -> None:
    parts = "head_size 32", "width 100", "multiples"
    refused(lambda: coatref.spec("coatnet_0", widths=(64, 96, 192, 100, 768)), SpecError, ValueError, *parts)
    parts = "head_size 32", "width 40", "multiples"
    refused(lambda: coatref.spec("timm/coatnet_0_rw_224", widths=(64, 40, 96, 96)), SpecError, ValueError, *parts)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("classes", [0, -1, 10**7, 1.5, "10", True])
def test_classes_without_meaning(name: str, classes: Any) -> None:
    refused(lambda: coatref.spec(name, classes=classes), SpecError, ValueError, "Head.classes", repr(classes))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "size", [0, -1, 10**7, True, (224,), (224, 224, 3), "224", (0, 224), (224.0, 225.0), (None, 3)]
)
def test_image_sizes_without_meaning(name: str, size: Any) -> None:
    refused(lambda: coatref.spec(name, image_size=size), SpecError, ValueError, "Spec.image_size")


@pytest.mark.parametrize(
    "arguments",
    [
        {"depths": 3},
        {"depths": [[1]] * 5},
        {"depths": np.array([2, 2, 2, 2, 2])},
        {"image_size": 224.0},
        {"image_size": [[224], [224]]},
        {"classes": [10]},
        {"widths": {64, 96, 192, 384, 768}},
    ],
    ids=str,
)
def test_sizes_of_a_wrong_type(arguments: dict[str, Any]) -> None:
    with pytest.raises(CoatrefError):
        coatref.spec("coatnet_0", **arguments)


def test_a_value_is_refused_also_where_an_equal_one_was_taken_before() -> None:
    coatref.spec("coatnet_0", classes=1)
    refused(lambda: coatref.spec("coatnet_0", classes=True), SpecError, ValueError, "Head.classes")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("coatnet_2/v1", {"depths": (2, 1, 1, 1, 1)}), ("coatnet_6/s4-3072", {"widths": (8, 8, 8, 128, 128, 128)})],
)
def test_sizes_that_a_variant_sets_itself_are_not_ignored(name: str, sizes: dict[str, Any]) -> None:
    try:
        spec = coatref.spec(name, **sizes)
    except InputError:
        return
    runs = [run for stage in spec.stages for run in stage]
    assert "depths" not in sizes or [run.depth for run in runs] == list(sizes["depths"][1:])
    assert "widths" not in sizes or [run.width for run in runs] == list(sizes["widths"][1:])


# --- specs of one's own ---


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: TINY.replace(name=5), ("Spec.name", "text", "5")),
        (lambda: TINY.replace(name="x" * 201), ("Spec.name", "200 characters")),
        (lambda: TINY.replace(name="\ud800"), ("Spec.name", "text", r"\ud800")),
        (lambda: TINY.replace(channels=0), ("Spec.channels", "whole number from 1", "0")),
        (lambda: TINY.replace(channels=2.0), ("Spec.channels", "2.0")),
        (lambda: TINY.replace(channels=10**5000), ("Spec.channels", "int that cannot be shown")),
        (lambda: TINY.replace(image_size=[32, 32]), ("Spec.image_size", "tuple", "[32, 32]")),
        (lambda: TINY.replace(image_size=(32,)), ("Spec.image_size", "2 entries", "got 1")),
        (lambda: TINY.replace(stages=()), ("'coatnet_0'", "stage without blocks")),
        (lambda: TINY.replace(stages=((),)), ("'coatnet_0'", "stage without blocks")),
        (lambda: TINY.replace(stages=TINY.stages * 251), ("Spec.stages", "1000 entries", "1004")),
        (lambda: TINY.replace(stages="CCTT"), ("Spec.stages", "tuple", "'CCTT'")),
        (lambda: TINY.replace(head=None), ("Spec.head", "Head", "None")),
        (lambda: TINY.replace(head=np.zeros((1000, 1000))), ("Spec.head", "Head")),
        (lambda: Norm(kind=wrong("group"), epsilon=1e-5), ("Norm.kind", "'batch', 'layer'", "'group'")),
        (lambda: Norm(kind=wrong(np.array(["batch", "layer"])), epsilon=1e-5), ("Norm.kind", "'batch'")),
        (lambda: Norm(kind="batch", epsilon=math.nan), ("Norm.epsilon", "finite", "nan")),
        (lambda: Norm(kind="batch", epsilon=math.inf), ("Norm.epsilon", "finite", "inf")),
        (lambda: Norm(kind="batch", epsilon=10**400), ("Norm.epsilon", "finite")),
        (lambda: Norm(kind="batch", epsilon=True), ("Norm.epsilon", "number", "True")),
        (lambda: Norm(kind="batch", epsilon=wrong("1e-5")), ("Norm.epsilon", "number", "'1e-5'")),
        (lambda: Norm(kind="batch", epsilon=0.0), ("Norm.epsilon", "above 0", "0.0")),
        (lambda: Head(order=wrong("pool")), ("Head.order", "pool_then_norm", "'pool'")),
        (lambda: Attention(form="windowed"), ("Attention.window", "windowed")),
        (lambda: Attention(window=(7, 7)), ("Attention.window", "windowed")),
        (lambda: Attention(heads_from="fixed"), ("Attention.heads", "fixed")),
        (lambda: Attention(form="linear"), ("Attention.relative_bias", "linear")),
        (lambda: RelativeBias(kind="log_mlp"), ("RelativeBias.hidden", "log_mlp")),
        (lambda: RelativeBias(hidden=3), ("RelativeBias.hidden", "log_mlp")),
    ],
)
def test_a_spec_without_meaning(make: Callable[[], Any], parts: tuple[str, ...]) -> None:
    refused(make, SpecError, ValueError, *parts)


# --- init and to ---


@pytest.mark.parametrize("make", [lambda **how: coatref.init(TINY, **how), PARAMS.to], ids=["init", "to"])
@pytest.mark.parametrize(
    ("how", "parts"),
    [
        ({"dtype": "int32"}, ("'int32'", "numpy", "float16, float32, float64")),
        ({"dtype": "float8"}, ("'float8'", "numpy", "float16, float32, float64")),
        ({"dtype": "bfloat16"}, ("'bfloat16'", "numpy")),
        ({"dtype": np.int32}, ("'int32'", "numpy")),
        ({"dtype": torch.float32}, ("'torch.float32'", "numpy")),
        ({"xp": "torch", "dtype": torch.int32}, ("'torch.int32'", "torch")),
        ({"xp": "tensorflow"}, ("'tensorflow'", "numpy", "torch")),
        ({"xp": 5}, ("'5'", "numpy", "torch")),
        ({"xp": math}, ("'math'", "numpy", "torch")),
        ({"xp": ["numpy"]}, ("known are", "numpy", "torch")),
    ],
    ids=str,
)
def test_an_unknown_library_or_dtype(make: Callable[..., Any], how: dict[str, Any], parts: tuple[str, ...]) -> None:
    refused(lambda: make(**how), InputError, ValueError, *parts)
    refused(lambda: coatref.convert(PARAMS.flatten(), TINY, **how), InputError, ValueError, *parts)


def test_a_library_that_is_not_installed() -> None:
    try:
        import cupy  # noqa: F401
    except ImportError:
        refused(
            lambda: coatref.init(TINY, xp="cupy"),
            MissingDependencyError,
            ImportError,
            "'cupy'",
            "pip install 'coatref[cupy]'",
        )
    else:
        pytest.skip("CuPy is installed")


def test_jax_without_64_bit_types_refuses_float64() -> None:
    parts = "'float64'", "jax", 'jax.config.update("jax_enable_x64", True)'
    with jax.enable_x64(False):
        for call in (
            lambda: coatref.init(TINY, xp="jax", dtype="float64"),
            lambda: coatref.init(TINY, xp=jnp, dtype=jnp.float64),
            lambda: PARAMS.to(xp="jax", dtype="float64"),
            lambda: PARAMS.to(dtype="float64").to(xp="jax"),
            lambda: coatref.convert(PARAMS.flatten(), TINY, xp="jax", dtype="float64"),
            lambda: coatref.convert(PARAMS.to(dtype="float64").flatten(), TINY, xp="jax"),
        ):
            refused(call, InputError, ValueError, *parts)
    with jax.enable_x64(True):
        assert coatref.init(TINY, xp="jax", dtype="float64").flatten()["s0.conv1.w"].dtype == jnp.float64


@pytest.mark.parametrize("seed", [-1, 1.5, None, "a", [1], np.array([1, 2])], ids=str)
def test_a_seed_that_is_no_whole_number(seed: Any) -> None:
    refused(lambda: coatref.init(TINY, seed), InputError, ValueError, "seed", "from 0")


@pytest.mark.parametrize("scheme", ["traning", "", None, 1])
def test_an_unknown_scheme(scheme: Any) -> None:
    refused(lambda: coatref.init(TINY, scheme=scheme), InputError, ValueError, repr(scheme), "training", "distinct")


@pytest.mark.parametrize(
    "how", [{"device": "cuda:99"}, {"xp": "torch", "device": "nonsense"}, {"xp": "jax", "device": "x"}], ids=str
)
def test_an_unknown_device(how: dict[str, Any]) -> None:
    calls: list[Callable[..., Any]] = [partial(coatref.init, TINY), PARAMS.to, partial(coatref.convert, own(), TINY)]
    for call in calls:
        with pytest.raises(CoatrefError, match=how["device"]):
            call(**how)


def test_parameters_without_values_cannot_be_moved_to_another_library() -> None:
    params = coatref.init(TINY, xp="torch", device="meta")
    with pytest.raises(CoatrefError, match="meta"):
        params.to(xp="numpy")


# --- params ---


def arrays_equal(first: coatref.Params, second: coatref.Params) -> bool:
    """Whether two sets of parameters are the same to the bit, and of the same spec."""
    ours, theirs = first.flatten(), second.flatten()
    return (
        first.spec == second.spec
        and list(ours) == list(theirs)
        and all(
            str(ours[name].dtype) == str(theirs[name].dtype)
            and library_of(ours[name]).to_numpy(ours[name]).tobytes()
            == library_of(theirs[name]).to_numpy(theirs[name]).tobytes()
            for name in ours
        )
    )


def test_params_are_immutable() -> None:
    before = copy.deepcopy(PARAMS)
    params: Any = PARAMS
    for node in (params, params["s0"], params["s3"][0]["attn"]):
        name = next(iter(node))
        with pytest.raises(TypeError):
            node[name] = X
        with pytest.raises(TypeError):
            del node[name]
        for attribute in ("spec", "new", "_children", "_spec"):
            with pytest.raises(AttributeError, match="immutable"):
                setattr(node, attribute, X)
            with pytest.raises(AttributeError, match="immutable"):
                delattr(node, attribute)
    with pytest.raises(TypeError):
        params["s3"][0] = {}
    PARAMS.flatten().clear()
    dict(PARAMS).clear()
    assert arrays_equal(PARAMS, before)


def test_arrays_of_init_load_and_convert_are_read_only(tmp_path: Any) -> None:
    path = tmp_path / "own.safetensors"
    coatref.save(PARAMS, path)
    source = {name: array.copy() for name, array in PARAMS.flatten().items()}
    for params in (
        coatref.init(TINY),
        coatref.init(TINY, dtype="float64"),
        coatref.load(path),
        coatref.load(path, dtype="float64"),
        coatref.load(path, dtype="float32", device="cpu"),
        coatref.convert(source, TINY),
        coatref.convert(source, TINY, dtype="float16"),
        coatref.convert({name: torch.asarray(array) for name, array in source.items()}, TINY),
    ):
        for name, array in params.flatten().items():
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
            assert not np.shares_memory(array, source[name])


def test_arrays_of_to_and_resize_are_read_only() -> None:
    for params in (PARAMS.to(dtype="float64"), PARAMS.resize(64, 64)):
        assert not any(array.flags.writeable for array in params.flatten().values())


def test_what_convert_gives_does_not_change_with_what_it_was_given() -> None:
    source = {name: array.copy() for name, array in PARAMS.flatten().items()}
    params = coatref.convert(source, TINY)
    for array in source.values():
        array[...] = 7
    assert arrays_equal(params, PARAMS)
    tensors = {name: torch.asarray(array.copy()) for name, array in PARAMS.flatten().items()}
    params = coatref.convert(tensors, TINY, xp="torch")
    for tensor in tensors.values():
        tensor.fill_(7)
    assert arrays_equal(params, PARAMS.to(xp="torch"))


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_params_survive_pickling_and_copying(library: str) -> None:
    params = PARAMS.to(xp=library)
    for again in (
        pickle.loads(pickle.dumps(params)),
        copy.deepcopy(params),
        copy.copy(params),
    ):
        assert type(again) is coatref.Params
        assert arrays_equal(again, params)
        assert type(again["s3"][0]) is type(params["s3"][0])
        check_input(again, LIBRARIES[library]())
    branch = pickle.loads(pickle.dumps(params["s3"][0]))
    assert dict(flatten(branch)).keys() == dict(flatten(params["s3"][0])).keys()


def test_replace_of_unknown_names_and_wrong_shapes() -> None:
    bias = np.zeros(3, np.float32)
    refused(
        lambda: PARAMS.replace({"head.classifier.bias": bias}),
        WeightsError,
        ValueError,
        "surplus: head.classifier.bias (3,)",
    )
    parts = "misshapen: head.classifier.b (expected (3,), found (4,))", "'coatnet_0'"
    refused(lambda: PARAMS.replace({"head.classifier.b": np.zeros(4, np.float32)}), WeightsError, ValueError, *parts)
    wrong: Any = {1: bias}
    refused(lambda: PARAMS.replace(wrong), WeightsError, ValueError, "surplus: 1 (3,)")
    again = PARAMS.replace({"head.classifier.b": bias})
    assert again["head"]["classifier"]["b"] is bias and PARAMS["head"]["classifier"]["b"] is not bias


@pytest.mark.parametrize("value", [[1.0, 2.0, 3.0], None, 1.0])
def test_replace_by_what_is_no_array(value: Any) -> None:
    with pytest.raises(CoatrefError, match="head.classifier.b"):
        PARAMS.replace({"head.classifier.b": value})


# --- convert ---


def own(**changes: Any) -> dict[str, Any]:
    """Right tensors under our names, with some changed ("__" for a dot) or, where None, left out."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in (PARAMS.flatten() | named).items() if value is not None}


def timm(**changes: Any) -> dict[str, Any]:
    """Right tensors under timm's names, likewise."""
    random = np.random.default_rng(0)
    right = {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in timm_shapes(TIMM).items()}
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in (right | named).items() if value is not None}


def test_right_tensors_are_taken() -> None:
    assert arrays_equal(coatref.convert(own(), TINY), PARAMS)
    assert coatref.convert(timm(), TIMM).spec == TIMM
    extra = np.zeros((), np.int64)
    assert coatref.convert(timm(stem__norm1__num_batches_tracked=extra), TIMM).spec == TIMM


ZEROS = np.zeros((5, 6), np.float32)


@pytest.mark.parametrize(
    ("tensors", "spec", "parts"),
    [
        (own(s0__conv2__b=None), TINY, ("missing: s0.conv2.b (4,)",)),
        (own(zz=ZEROS), TINY, ("surplus: zz (5, 6)",)),
        (own(s0__conv1__w=ZEROS), TINY, ("misshapen: s0.conv1.w (expected (3, 3, 3, 4), found (5, 6))",)),
        (
            own(s0__conv2__b=None, head__norm__gamma=None, zz=ZEROS, s0__conv1__w=ZEROS),
            TINY,
            ("missing: s0.conv2.b (4,), head.norm.gamma (32,)", "surplus: zz (5, 6)", "misshapen: s0.conv1.w"),
        ),
        (timm(stem__conv2__weight=None), TIMM, ("missing: stem.conv2.weight (64, 32, 3, 3)",)),
        (timm(zz=ZEROS), TIMM, ("surplus: zz (5, 6)",)),
        (timm(head__fc__bias=ZEROS), TIMM, ("misshapen: head.fc.bias (expected (3,), found (5, 6))",)),
        (own(s0__conv1__w=np.zeros((3, 3, 4, 3), np.float32)), TINY, ("expected (3, 3, 3, 4), found (3, 3, 4, 3)",)),
        (own(head__classifier__b=np.float32(1)), TINY, ("head.classifier.b (expected (3,), found ())",)),
    ],
)
def test_missing_surplus_and_misshapen_tensors_are_listed(
    tensors: dict[str, Any], spec: Spec, parts: tuple[str, ...]
) -> None:
    before = dict(tensors)
    refused(lambda: coatref.convert(tensors, spec), WeightsError, ValueError, repr(spec.name), *parts, "Give exactly")
    assert tensors.keys() == before.keys() and all(tensors[name] is before[name] for name in before)


def test_long_lists_are_cut() -> None:
    surplus = {f"extra.{index}": ZEROS for index in range(1000)}
    message = refused(lambda: coatref.convert(own() | surplus, TINY), WeightsError, ValueError, "extra.0", "992 more")
    assert "extra.500" not in message


def test_the_state_dict_of_another_network() -> None:
    other = {f"layer.{index}.weight": ZEROS for index in range(100)}
    parts = "100 names", "layer.0.weight", "'coatnet_0'", "head.classifier.b", "timm"
    refused(lambda: coatref.convert(other, TINY), InputError, ValueError, *parts)
    refused(
        lambda: coatref.convert(other, TIMM), WeightsError, ValueError, "stem.conv1.weight", "surplus: layer.0.weight"
    )
    refused(lambda: coatref.convert(timm(), TINY), WeightsError, ValueError, "missing: stem.conv1.bias", "'coatnet_0'")
    refused(lambda: coatref.convert(own(), TIMM), WeightsError, ValueError, TIMM.name)
    narrow = coatref.spec("coatnet_0", image_size=32, classes=3, depths=(2, 1, 1, 1, 1), widths=(4, 4, 4, 32, 64))
    refused(lambda: coatref.convert(own(), narrow), WeightsError, ValueError, "expected (64,), found (32,)")
    refused(
        lambda: coatref.convert(own(), "coatnet_1"), WeightsError, ValueError, "'coatnet_1'", "missing", "misshapen"
    )


def test_no_tensors_at_all() -> None:
    for spec in (TINY, TIMM):
        refused(partial(coatref.convert, {}, spec), WeightsError, ValueError, "missing", "s0.conv1.w")


class Shaped:
    """What has a shape and is no array."""

    shape = (3,)


@pytest.mark.parametrize(
    "value", [[1.0, 2.0, 3.0], None, 1.0, "weights", torch.float32, torch.nn.Linear(3, 3), torch.Size([3]), Shaped()]
)
@pytest.mark.parametrize("tensors", [own, timm])
def test_values_that_are_no_arrays(tensors: Callable[[], dict[str, Any]], value: Any) -> None:
    given = tensors()
    name = list(given)[5]
    given[name] = value
    spec = TINY if tensors is own else TIMM
    refused(
        lambda: coatref.convert(given, spec),
        WeightsError,
        ValueError,
        name,
        type(value).__name__,
        "no arrays",
        "state_dict()",
    )


@pytest.mark.parametrize("key", [1, None, ("a", "b"), b"s0.conv1.w", "x" * 201, "x" * 10**6])
@pytest.mark.parametrize(("tensors", "spec"), [(own, TINY), (timm, TIMM)])
def test_keys_that_are_no_names(tensors: Callable[[], dict[Any, Any]], spec: Spec, key: Any) -> None:
    refused(
        lambda: coatref.convert(tensors() | {key: ZEROS}, spec),
        WeightsError,
        ValueError,
        repr(key)[:80],
        "200 characters",
    )


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64", "object", "str"])
@pytest.mark.parametrize(("tensors", "spec"), [(own, TINY), (timm, TIMM)])
def test_tensors_of_a_dtype_that_is_not_floating(tensors: Callable[[], dict[str, Any]], spec: Spec, dtype: str) -> None:
    given = tensors()
    name = list(given)[5]
    given[name] = np.zeros(given[name].shape, dtype)
    parts = f"Tensor {name}", str(given[name].dtype), "float32"
    refused(lambda: coatref.convert(given, spec), WeightsError, ValueError, *parts)


def test_tensors_without_values() -> None:
    shape = PARAMS["s0"]["conv1"]["w"].shape
    for odd in (torch.zeros(shape, device="meta"), torch.zeros(shape).to_sparse()):
        refused(
            partial(coatref.convert, own(s0__conv1__w=odd), TINY),
            WeightsError,
            ValueError,
            "Tensor s0.conv1.w",
            "dense",
        )
    params = PARAMS.to(xp="jax")
    message = refused(
        lambda: jax.eval_shape(lambda p: coatref.convert(p.flatten(), TINY), params),
        WeightsError,
        ValueError,
        "Tensor ",
    )
    assert "Tracer" in message


def test_tensors_that_want_gradients_and_bfloat16_are_taken() -> None:
    tensors = {name: torch.nn.Parameter(torch.asarray(array.copy())) for name, array in own().items()}
    assert arrays_equal(coatref.convert(tensors, TINY), PARAMS)
    for library in ("torch", "jax"):
        halves = PARAMS.to(xp=library, dtype="bfloat16")
        widened = coatref.convert(halves.flatten(), TINY)
        assert {str(array.dtype) for array in widened.flatten().values()} == {"float32"}
        assert arrays_equal(widened.to(xp=library, dtype="bfloat16"), halves)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("tensors", "spec"), [(own, TINY), (timm, TIMM)])
def test_values_that_are_not_finite(
    tensors: Callable[[], dict[str, Any]], spec: Spec, value: float, tmp_path: Any
) -> None:
    given = tensors()
    name = next(name for name in given if name in ("s3.0.attn.q.b", "stages.2.blocks.0.norm1.weight", "head.fc.bias"))
    given[name] = np.full(given[name].shape, value, np.float32)
    ours = {"head.fc.bias": "head.classifier.b", "stages.2.blocks.0.norm1.weight": "s3.0.attn_norm.gamma"}.get(
        name, name
    )
    parts = "1 tensors hold NaN or infinite", ours, "allow_non_finite=True"
    refused(lambda: coatref.convert(given, spec), WeightsError, ValueError, *parts)
    params = coatref.convert(given, spec, allow_non_finite=True)
    np.testing.assert_array_equal(params.flatten()[ours], np.full(params.flatten()[ours].shape, value))
    path = tmp_path / "damaged.safetensors"
    coatref.save(params, path)
    refused(lambda: coatref.load(path), WeightsError, ValueError, *parts)
    assert arrays_equal(coatref.load(path, allow_non_finite=True), params)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_values_too_large_for_the_dtype_asked(library: str) -> None:
    given = own(head__classifier__b=np.array([1, 70000, 2], np.float32))
    parts = "too large for", "float16", "head.classifier.b", "wider"
    call = partial(coatref.convert, given, TINY, xp=library, dtype="float16")
    refused(call, WeightsError, ValueError, *parts)
    assert library_of(call(allow_non_finite=True)["head"]["classifier"]["b"]).name == library


@pytest.mark.parametrize("given", [None, [1], "path", PARAMS.spec, iter([]), X])
def test_a_state_dict_that_is_no_mapping(given: Any) -> None:
    refused(lambda: coatref.convert(given, TINY), InputError, ValueError, "mapping", type(given).__name__)


@pytest.mark.parametrize("dialect", ["keras", "", "TIMM", 1, ["timm"]])
def test_an_unknown_dialect(dialect: Any) -> None:
    parts = "dialect", "coatref, timm", repr(dialect)
    refused(lambda: coatref.convert(own(), TINY, dialect=dialect), InputError, ValueError, *parts)


def test_the_wrong_dialect() -> None:
    refused(
        lambda: coatref.convert(own(), TINY, dialect="timm"), WeightsError, ValueError, "missing: stem.conv1.weight"
    )
    refused(lambda: coatref.convert(timm(), TIMM, dialect="coatref"), WeightsError, ValueError, "missing: s0.conv1.w")


def test_a_spec_that_timm_has_no_names_for() -> None:
    run = MBConv(depth=1, width=4, shrink_norm=Norm(kind="batch", epsilon=1e-3))
    odd = TINY.replace(stages=((run,),))
    refused(lambda: coatref.convert(timm(), odd, dialect="timm"), InputError, ValueError, "shrink_norm", "'timm/...'")


def test_expected_shapes_are_those_of_the_spec() -> None:
    """What the lists above call expected is the parameter tree itself."""
    shapes: Mapping[str, Any] = dict(flatten(tensor_tree(TINY)))
    assert {name: shapes[name].shape for name in shapes} == {
        name: array.shape for name, array in PARAMS.flatten().items()
    }
