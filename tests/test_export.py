"""Export is the inverse of import: names, shapes and every bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from timm_import import require_timm

import coatref
from coatref.specification import timm as timm_specs
from coatref.weights import timm as table
from coatref.weights.export import DIALECTS, export

TIMM = timm_specs.names()


def tiny(name: str) -> coatref.Spec:
    """A spec of timm's with the fewest channels and blocks, no two alike, on an image that is not square."""
    first = coatref.spec(name).stages[2]
    depths = (1, 2, 2, 2) if len(first) > 1 else (1, 1, 2, 1)  # mixed stages need a block of each kind
    factor = coatref.spec(name).stem.width  # ConvNeXt takes multiples of its input width only
    widths = (factor, 2 * factor, 4 * factor, 8 * factor) if "next" in name else (32, 64, 96, 128)
    return coatref.spec(name, image_size=(64, 96), classes=7, depths=depths, widths=widths)


def assert_same(ours: coatref.Params, others: coatref.Params) -> None:
    """The same spec, names, types and bits."""
    assert ours.spec == others.spec
    mine, theirs = ours.flatten(), others.flatten()
    assert list(mine) == list(theirs)
    for name, array in mine.items():
        assert array.dtype == theirs[name].dtype, name
        assert array.shape == theirs[name].shape, name
        assert array.tobytes() == theirs[name].tobytes(), name


def test_the_dialects() -> None:
    assert list(DIALECTS)[:2] == ["coatref", "timm"]


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("dialect", ["coatref", "timm"])
def test_import_of_an_export_gives_every_bit_back(name: str, dialect: Any) -> None:
    params = coatref.init(tiny(name), 3, scheme="distinct")
    exported = export(params, dialect)
    assert_same(coatref.convert(exported, params.spec, dialect=dialect), params)


@pytest.mark.parametrize("name", TIMM)
def test_names_and_shapes_are_those_that_timm_has(name: str) -> None:
    spec = tiny(name)
    exported = export(coatref.init(spec), "timm")
    assert {key: array.shape for key, array in exported.items()} == table.expected(spec)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_types_stay(dtype: str) -> None:
    params = coatref.init(tiny("timm/coatnet_0_rw_224"), 1, dtype=dtype, scheme="distinct")
    exported = export(params, "timm")
    assert {str(array.dtype) for array in exported.values()} == {dtype}
    assert_same(coatref.convert(exported, params.spec), params)


def test_paper_specs_export_under_our_names() -> None:
    spec = coatref.spec("coatnet_0", image_size=(64, 96), classes=7, depths=(2, 1, 1, 2, 1), widths=(8, 16, 24, 32, 64))
    params = coatref.init(spec, 2, scheme="distinct")
    assert_same(coatref.convert(export(params, "coatref"), spec), params)


def test_arrays_are_new_and_contiguous() -> None:
    params = coatref.init(tiny("timm/test_coatnet"), 1)
    before = {name: array.copy() for name, array in params.flatten().items()}
    for dialect in ("coatref", "timm"):
        for array in export(params, dialect).values():
            assert array.flags.c_contiguous and array.flags.writeable
            array.fill(5.0)
    assert all(np.array_equal(array, before[name]) for name, array in params.flatten().items())


def test_fused_qkv_has_heads_first() -> None:
    """Row h * 3 * D + part * D + d of the fused kernel is output channel h * D + d of q, k or v."""
    params = coatref.init(tiny("timm/test_coatnet"), 4, scheme="distinct")
    attention, exported = params["s4"][0]["attn"], export(params, "timm")
    fused, bias = exported["stages.3.blocks.0.attn.qkv.weight"], exported["stages.3.blocks.0.attn.qkv.bias"]
    heads, size = attention["q"]["w"].shape[1] // 32, 32
    assert heads > 1
    for head in range(heads):
        for part, letter in enumerate("qkv"):
            for channel in (0, 5, 31):
                row = (head * 3 + part) * size + channel
                assert np.array_equal(fused[row, :, 0, 0], attention[letter]["w"][:, head * size + channel])
                assert bias[row] == attention[letter]["b"][head * size + channel]


def test_parameters_of_other_libraries() -> None:
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed")
    params = coatref.init(tiny("timm/test_coatnet"), 5, scheme="distinct")
    for dtype, expected in (("float32", params), ("bfloat16", params.to(xp=torch, dtype="bfloat16").to(xp="numpy"))):
        exported = export(params.to(xp=torch, dtype=dtype), "timm")
        assert {str(array.dtype) for array in exported.values()} == {"float32"}
        assert_same(coatref.convert(exported, params.spec), expected)


def test_a_timm_model_takes_it() -> None:
    timm = require_timm()
    import torch

    spec = coatref.spec("timm/test_coatnet")
    params = coatref.init(spec, 6, scheme="distinct")
    model = timm.create_model("test_coatnet", pretrained=False)
    model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in export(params, "timm").items()}, strict=True
    )
    assert_same(coatref.convert(model.state_dict(), spec), params)


def test_unknown_dialects_are_refused() -> None:
    params = coatref.init(tiny("timm/test_coatnet"))
    with pytest.raises(coatref.InputError, match="'keras'.*coatref, timm"):
        export(params, "keras")
    with pytest.raises(coatref.InputError, match="takes coatref Params, got dict"):
        export({}, "timm")  # type: ignore[arg-type]


def test_a_layer_that_timm_lacks_is_refused() -> None:
    spec = coatref.spec("coatnet_0", image_size=(64, 96), depths=(3, 1, 1, 1, 1), widths=(8, 16, 24, 32, 64))
    with pytest.raises(coatref.InputError, match=r"'coatnet_0' has a layer 'norm2' for which timm has no name"):
        export(coatref.init(spec), "timm")
