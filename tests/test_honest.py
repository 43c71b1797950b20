"""The honest implementations are right: in float64 they agree with the definition to rounding, on any spec."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pytest
import torch
from draw_specs import Drawn, specs
from hypothesis import given, settings

import coatref
from coatref.conformance.honest import variants as listing
from coatref.conformance.honest.torch_native import native
from coatref.conformance.honest.variants import Variant, absent, variants
from coatref.conformance.precision import Precision, as_stored, numpy_type, roundoff
from coatref.conformance.target import Target
from coatref.primitives import DEFINITION, Form, Primitives
from coatref.specification.parts import RelativeBias, Transformer
from coatref.tree import map_named

FLOAT64, FLOAT32 = Precision("float64", "float64"), Precision("float32", "float32")
PRECISIONS = (
    FLOAT64,
    FLOAT32,
    Precision("float16", "float32"),
    Precision("bfloat16", "float32"),
    Precision("float16", "float16"),
    Precision("bfloat16", "bfloat16"),
)
ALLOWED = {"float64": 1e-12, "float32": 1e-3, "float16": 0.02, "bfloat16": 0.2}  # of the largest output
SPECS = (
    coatref.spec("coatnet_0", image_size=(37, 67), classes=7, depths=(2, 1, 1, 2, 1), widths=(8, 16, 24, 32, 64)),
    coatref.spec("timm/coatnet_0_rw_224", image_size=(64, 96), classes=7, depths=(1, 1, 2, 1), widths=(16, 32, 64, 96)),
    coatref.spec("coatnet_0/strided-depthwise", image_size=(41, 71), classes=7, depths=(2, 1, 2, 1, 1), widths=(8, 16, 24, 32, 64)),
    coatref.spec("timm/coatnext_nano_rw_224", image_size=(64, 96), classes=7, depths=(1, 1, 2, 1), widths=(64, 128, 96, 160)),
)  # fmt: skip
TINY = SPECS[0].replace(name="tiny", image_size=(9, 13), stages=(SPECS[0].stages[3],))  # what compiles soonest


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_torch() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def all_of(precision: Precision, *, slow: bool = False, traced: bool = False) -> list[Variant]:
    return [each for each in variants(precision, traced=traced) if each.slow == slow]


def given_to(spec: coatref.Spec, dtype: str, seed: int = 3) -> tuple[coatref.Params, np.ndarray]:
    """Parameters and images as a target is handed them."""
    params = coatref.init(spec, seed, dtype="float64", scheme="distinct")
    stored = coatref.Params(map_named(lambda name, array: as_stored(array, dtype), params), spec)
    x = np.random.default_rng(seed).normal(size=(2, *spec.image_size, spec.channels))
    return stored, as_stored(x, dtype)


def distance(target: Target, params: coatref.Params, x: np.ndarray) -> float:
    """The largest error of the output against the definition in float64, relative to the largest output."""
    expected = coatref.forward(params.to(dtype="float64"), x.astype(np.float64), backend="definition")
    found = target.run(params, x)["logits"]
    assert isinstance(found, np.ndarray) and found.shape == expected.shape
    assert found.dtype == numpy_type(target.precision.storage)
    assert np.array_equal(found, as_stored(found, target.precision.storage))
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_right_in_float64(spec: coatref.Spec) -> None:
    params, x = given_to(spec, "float64")
    for variant in all_of(FLOAT64):
        assert distance(variant.make(spec), params, x) <= 1e-12, variant.name


@settings(max_examples=40, deadline=None, report_multiple_bugs=False)
@given(specs())
def test_right_on_any_spec(drawn: Drawn) -> None:
    params = coatref.init(drawn.spec, drawn.seed, dtype="float64", scheme="distinct")
    x = drawn.images()
    for variant in all_of(FLOAT64):
        found = variant.make(SPECS[0]).variant
        assert found is not None
        assert distance(found(drawn.spec), params, x) <= 1e-9, variant.name  # a drawn network may amplify


@pytest.mark.parametrize("kind", ("table", "log_mlp"))
@pytest.mark.parametrize("add", ("pre_softmax", "post_softmax"))
@pytest.mark.parametrize("site", ("query", "key", "query_and_key", "logits", "logits_and_bias"))
def test_right_with_any_attention(site: Any, add: Any, kind: Any) -> None:
    run = TINY.stages[0][0]
    assert isinstance(run, Transformer)
    bias = RelativeBias(kind=kind, add=add, hidden=5 if kind == "log_mlp" else None)
    attention = dataclasses.replace(run.attention, scale_site=site, relative_bias=bias)
    spec = TINY.replace(stages=((dataclasses.replace(run, attention=attention),),))
    params, x = given_to(spec, "float64")
    for variant in all_of(FLOAT64):
        assert distance(variant.make(spec), params, x) <= 1e-12, variant.name


@pytest.mark.parametrize("precision", PRECISIONS[1:], ids=str)
def test_sane_in_narrower_types(precision: Precision) -> None:
    for spec in SPECS[:2] if precision == FLOAT32 else SPECS[:1]:
        params, x = given_to(spec, precision.storage)
        for variant in all_of(precision):
            target = variant.make(spec)
            assert target.precision == variant.precision == precision
            assert distance(target, params, x) <= ALLOWED[precision.storage], variant.name


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(each, id=each.name, marks=[pytest.mark.deep] if each.name == "torch.compile" else [])
        for each in all_of(FLOAT64, slow=True)
    ],
)
def test_compiled_ones_are_right(variant: Variant) -> None:
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    assert distance(variant.make(TINY), *given_to(TINY, "float64")) <= 1e-12
    assert jax.config.jax_enable_x64 == before  # type: ignore[attr-defined]


def test_onnxruntime_is_right() -> None:
    (variant,) = (each for each in all_of(FLOAT32, slow=True) if each.name == "onnxruntime")
    assert distance(variant.make(TINY), *given_to(TINY, "float32")) <= 1e-5


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.deep
def test_compiled_ones_in_every_precision(precision: Precision) -> None:
    for spec in SPECS[:2]:
        params, x = given_to(spec, precision.storage)
        for variant in all_of(precision, slow=True):
            assert distance(variant.make(spec), params, x) <= ALLOWED[precision.storage], variant.name


def test_names_are_unique_and_nothing_is_absent() -> None:
    for precision in PRECISIONS:
        names = collections.Counter(variant.name for variant in variants(precision))
        assert names and max(names.values()) == 1, names
    assert absent() == {}
    assert variants(Precision("bfloat16", "float16")) == ()


def test_they_round_differently() -> None:
    params, x = given_to(SPECS[1], "float32")
    found = {variant.name: variant.make(SPECS[1]).run(params, x)["logits"].tobytes() for variant in all_of(FLOAT32)}
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("precision", (FLOAT64, Precision("float16", "float32")), ids=str)
def test_traced_values(precision: Precision) -> None:
    params, x = given_to(SPECS[1], precision.storage)
    expected = coatref.trace(params.to(dtype="float64"), x.astype(np.float64))
    allowed = ALLOWED[precision.storage]
    counts = set()
    for variant in all_of(precision, traced=True):
        values = variant.make(SPECS[1]).run(params, x)
        for name, value in values.items():
            if variant.name.endswith("folded") and name.endswith((".q", ".attn.logits")):
                continue  # the scale is in q's weights
            assert value.shape == expected[name].shape, (variant.name, name)
            largest = np.max(np.abs(expected[name]))
            assert np.max(np.abs(value - expected[name])) <= allowed * largest, (variant.name, name)
        counts.add(len(values))
    assert len(expected) in counts


def test_absent_libraries_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "present", lambda package: package not in ("jax", "onnxruntime"))
    reasons = absent()
    assert set(reasons) == {"jax", "onnxruntime"} and "onnxruntime" in reasons["onnxruntime"]
    assert not [each.name for each in variants(FLOAT32) if "jax" in each.name or "onnx" in each.name]


# --- stored in half types, computed in float32: torch's kernels round once ---


def in_float64(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: in_float64(each) for name, each in value.items()}
    return value.double().numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("layout", ("nchw", "channels-last"))
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_native_kernels_round_once(dtype: str, layout: Any) -> None:
    """Each primitive of a half network is the definition's, rounded once but for errors of float32."""
    forms = native(layout, wide=True)
    worst: dict[str, float] = {}

    def watched(name: str) -> Form:
        def compute(*args: Any, tap: Any = None, **kwargs: Any) -> Any:
            y = getattr(forms, name)(*args, **kwargs)
            exact = getattr(DEFINITION, name)(*map(in_float64, args), **in_float64(kwargs))
            allowed = roundoff(dtype) * np.abs(exact) + 4e-6 * np.max(np.abs(exact)) + 2.0**-25
            worst[name] = max(worst.get(name, 0.0), float(np.max(np.abs(in_float64(y) - exact) / allowed)))
            return y

        return compute

    watching = Primitives(**{each.name: watched(each.name) for each in dataclasses.fields(Primitives)})
    for spec in SPECS[:2]:
        params, x = given_to(spec, dtype)
        with torch.no_grad():
            tensors = params.to(xp="torch", dtype=dtype)
            coatref.forward(tensors, torch.tensor(x).to(getattr(torch, dtype)), backend=watching)
    assert len(worst) >= 9 and max(worst.values()) <= 1.0, worst
