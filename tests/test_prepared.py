"""Prepared parameters: what they are, what they refuse, that they fold what they may and nothing else; and `describe`."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import array_api_strict as strict
import jax
import numpy as np
import pytest
import torch
import units
from draw_specs import Drawn, specs
from hypothesis import given, settings
from signed import signed

import coatref
from coatref.backends import describe, folding, network
from coatref.backends.fused import from_primitives
from coatref.errors import InputError, SizeError
from coatref.specification.parts import MBConv, Norm, Pool, Transformer
from coatref.tree import flatten

SPEC = coatref.spec("coatnet_0", image_size=(64, 96), depths=(2, 1, 1, 2, 1), widths=(8, 16, 32, 64, 96), classes=7)


def params(spec: coatref.Spec = SPEC, **options: Any) -> coatref.Params:
    return signed(coatref.init(spec, 3, scheme="distinct", **options))


def images(spec: coatref.Spec = SPEC, batch: int = 2, dtype: str = "float32") -> Any:
    return Drawn(spec, 3).images(batch, dtype).astype(dtype)


# --- what they are ---


def test_they_are_an_immutable_pytree_with_a_spec() -> None:
    prepared = coatref.prepare(params())
    assert prepared.spec == SPEC and repr(prepared) == "Prepared('coatnet_0')"
    assert list(prepared) == ["s0", "s1", "s2", "s3", "s4", "head"]
    leaves, structure = jax.tree.flatten(prepared)
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is coatref.Prepared and again.spec == SPEC
    np.testing.assert_array_equal(coatref.forward(again, images()), coatref.forward(prepared, images()))
    pickled = pickle.loads(pickle.dumps(prepared))
    np.testing.assert_array_equal(coatref.forward(pickled, images()), coatref.forward(prepared, images()))
    leaves, structure = torch.utils._pytree.tree_flatten(prepared)
    assert len(leaves) == len(list(flatten(prepared)))
    with pytest.raises(AttributeError, match="immutable"):
        prepared.spec = SPEC  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        prepared["s0"]["conv1"]["w"][...] = 0.0


def test_the_parameters_are_not_touched_and_nothing_is_shared() -> None:
    given, before = params(), {name: array.tobytes() for name, array in params().flatten().items()}
    prepared = coatref.prepare(given)
    assert {name: array.tobytes() for name, array in given.flatten().items()} == before
    loose = coatref.Params({name: given[name] for name in given}, SPEC)
    assert not any(
        np.shares_memory(one, two) for _, one in flatten(prepared) for _, two in flatten(loose) if one.size > 1
    )


@pytest.mark.parametrize("wrong", [None, {}, 3, "coatnet_0"])
def test_only_parameters_are_prepared(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"prepare takes coatref Params, got \w+; make them with"):
        coatref.prepare(wrong)
    with pytest.raises(InputError, match="got Prepared"):
        coatref.prepare(coatref.prepare(params()))  # type: ignore[arg-type]


def test_forward_refuses_what_prepared_parameters_cannot_do() -> None:
    prepared, x = coatref.prepare(params()), images()
    with pytest.raises(InputError, match=r"backend='definition' was asked for; give forward the parameters"):
        coatref.forward(prepared, x, backend="definition")
    with pytest.raises(InputError, match="trace follows the definition"):
        coatref.trace(prepared, x)  # type: ignore[arg-type]
    with pytest.raises(SizeError, match=r"made for 64x96.*resize\(96, 64\).*prepare"):
        coatref.forward(prepared, np.swapaxes(x, 1, 2))
    with pytest.raises(coatref.DtypeError, match="float64"):
        coatref.forward(prepared, x.astype("float64"))
    with pytest.raises(coatref.LibraryError, match="numpy"):
        coatref.forward(prepared, torch.from_numpy(x))
    for threads in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="whole number of threads from 1"):
            coatref.forward(prepared, x, threads=threads)  # type: ignore[arg-type]


def test_a_bias_of_an_mlp_is_gathered_for_one_size() -> None:
    spec = coatref.spec(
        "timm/coatnet_rmlp_nano_rw_224", depths=(1, 1, 1, 1), widths=(32, 32, 32, 64), image_size=(64, 96)
    )
    given = coatref.init(spec, 3)
    other = np.zeros((1, 96, 64, 3), np.float32)
    assert coatref.forward(given, other).shape == (1, 1000)
    with pytest.raises(SizeError, match="prepare"):
        coatref.forward(coatref.prepare(given), other)
    assert coatref.forward(coatref.prepare(given.resize(96, 64)), other).shape == (1, 1000)


# --- folding ---


@settings(max_examples=60, deadline=None)
@given(specs())
def test_folding_alone_is_exact(drawn: Drawn) -> None:
    """The folded tree, computed step by step by the definition's primitives in float64, on a library without fast forms."""
    given = signed(coatref.init(drawn.spec, drawn.seed, dtype="float64", scheme="distinct"))
    x = drawn.images()
    reference = coatref.forward(given, x, backend="definition")
    found = network.forward(coatref.prepare(given.to(xp=strict)), strict.asarray(x), fused=from_primitives())
    moved = np.max(np.abs(np.from_dlpack(found) - reference))
    assert moved <= units.NETWORK_UNITS * units.sensitivity(given, x, "float64")


def names(spec: coatref.Spec) -> set[str]:
    return {name for name, _ in flatten(coatref.prepare(coatref.init(spec, scheme="distinct")))}


def with_runs(**changes: Any) -> coatref.Spec:
    """SPEC with some fields of every MBConv or Transformer changed, where they have them."""

    def changed(run: Any) -> Any:
        mine = {name: value for name, value in changes.items() if name in {f.name for f in dataclasses.fields(run)}}
        return dataclasses.replace(run, **mine)

    return SPEC.replace(stages=tuple(tuple(changed(run) for run in stage) for stage in SPEC.stages))


def test_what_the_papers_network_keeps() -> None:
    found = names(SPEC)
    assert not any("norm" in name and not name.startswith(("s3.0.attn_norm", "s4.0.attn_norm")) for name in found)
    assert {"s3.0.attn_norm.gamma", "s3.0.attn_norm.beta"} <= found  # a max pool stands behind it
    assert "s3.1.attn_norm.gamma" not in found
    assert {"s3.0.attn.qkv.w", "s3.0.attn.qkv.b", "s3.0.attn.bias", "s1.0.expand.b", "s1.0.depthwise.b"} <= found
    assert not any(name.endswith(("mean", "var", "table")) for name in found)


def test_a_norm_stays_where_folding_would_not_be_exact() -> None:
    pooled = Pool(kind="max", size=2, padding="valid")
    assert "s1.0.pre_norm.scale" in names(with_runs(stride_at="pool", main_pool=pooled))
    average = Pool(kind="avg", size=2, padding="valid")
    assert "s1.0.pre_norm.scale" not in names(with_runs(stride_at="pool", main_pool=average))
    counted = Pool(kind="avg", size=3, padding="symmetric", padded_zeros="counted")
    assert not folding.means_keep_affine_maps(counted)
    assert "s1.0.pre_norm.scale" in names(with_runs(pre_norm_activation="gelu"))
    found = names(with_runs(residual_from="normalised"))
    assert {"s1.0.pre_norm.scale", "s3.1.attn_norm.gamma", "s3.1.ffn_norm.gamma"} <= found


FAULTS: dict[str, Any] = {
    "folded_after": lambda layer, affine: folding_was["folded_after"](layer, None),
    "folded_before": lambda affine, layer: folding_was["folded_before"](
        None if affine is None else (affine[0], 0 * affine[1]), layer
    ),
    "batch_affine": lambda p, spec: folding_was["batch_affine"](p, Norm(kind="batch", epsilon=1.001 * spec.epsilon)),
    "scale_factor": lambda spec, heads: 1.0,
    "means_keep_affine_maps": lambda pool: True,
}
folding_was: dict[str, Any] = {name: getattr(folding, name) for name in FAULTS}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_fold_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, name, FAULTS[name])
    with pytest.raises(AssertionError, match="moved"):
        for spec in (SPEC, with_runs(layer_scale=coatref.specification.LayerScale(initial=0.1))):
            given, x = params(spec, dtype="float64"), images(spec, dtype="float64")
            found = network.forward(coatref.prepare(given), x)
            off = np.max(np.abs(found - coatref.forward(given, x, backend="definition")))
            assert off <= units.NETWORK_UNITS * units.sensitivity(given, x, "float64"), "moved"


# --- describe ---


def test_describe_tells_which_form_serves_what() -> None:
    found = describe()
    assert set(found) >= {"numpy", "torch", "jax", "cupy", "array_api_strict"}
    assert found["numpy"]["unavailable"] is None
    assert found["numpy"]["primitives"]["dense"] == "coatref.backends.numpy.primitive_dense"
    assert found["numpy"]["primitives"]["max_pool"] == "coatref.ops.pooling.max_pool"
    assert found["numpy"]["steps"]["mbconv"] == "coatref.backends.numpy_blocks.mbconv"
    assert set(found["array_api_strict"]["steps"].values()) == {"the primitives"}
    for entry in found.values():
        assert isinstance(entry["unavailable"], str) or entry["unavailable"] is None
        assert entry["unavailable"] or {"primitives", "steps", "without"} <= set(entry)


def test_describe_tells_why_a_library_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    from coatref.registry import IN_TREE, library, registered

    monkeypatch.setitem(IN_TREE, "absent", "coatref.backends.nowhere")
    registered.cache_clear()
    try:
        assert "nowhere" in describe()["absent"]["unavailable"]
    finally:
        registered.cache_clear()
        library.cache_clear()


def test_parts_used_here_are_in_the_spec() -> None:
    runs = [run for stage in SPEC.stages for run in stage]
    assert {type(run) for run in runs} == {MBConv, Transformer}
