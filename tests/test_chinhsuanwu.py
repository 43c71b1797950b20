"""The chinhsuanwu specs against what its code has and computes, and against a module with its names and conventions."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import recorded_models
from hypothesis import given, settings
from hypothesis import strategies as st

import coatref
from coatref.conformance.judge import check
from coatref.conformance.target import Target
from coatref.conformance.targets.resolve import resolve
from coatref.specification import chinhsuanwu as chinhsuanwu_specs
from coatref.specification import paper
from coatref.weights import chinhsuanwu as table
from coatref.weights.export import export
from coatref.weights.recognise import recognised

torch: Any = pytest.importorskip("torch", reason="needs torch, which is not installed")

import chinhsuanwu_model as model

ALL = chinhsuanwu_specs.names()
SMALL: dict[str, Any] = {"depths": (3, 1, 2, 1, 2), "widths": (8, 8, 16, 24, 24), "classes": 7}  # S1 and S4 keep theirs


def small(*size: int, **changes: Any) -> coatref.Spec:
    return coatref.spec("chinhsuanwu/coatnet_0", image_size=(size[0], size[-1]), **(SMALL | changes))


def with_bias(spec: coatref.Spec) -> coatref.Spec:
    """What some copies have: a bias in the classifier."""
    return spec.replace(head=dataclasses.replace(spec.head, bias=True))


def state_of(spec: coatref.Spec) -> dict[str, np.ndarray]:
    """A state dict for a spec, every number in it drawn."""
    return {name: recorded_models.numbers(name, shape) for name, shape in table.expected(spec).items()}


def filled(module: Any, state: dict[str, np.ndarray]) -> Any:
    """A module in float64 with these numbers."""
    module = module.double().eval()
    left = module.load_state_dict({name: torch.from_numpy(np.asarray(a)) for name, a in state.items()}, strict=False)
    assert not left.unexpected_keys and all(key.endswith(table.IGNORED) for key in left.missing_keys)
    return module


def theirs(module: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output: np.ndarray = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    return output


def difference(ours: np.ndarray, other: np.ndarray) -> float:
    assert ours.shape == other.shape
    return float(np.max(np.abs(ours - other)) / np.max(np.abs(other)))


# --- its own code, as recorded ---


def test_counts_are_those_of_its_code() -> None:
    counts = recorded_models.recorded("chinhsuanwu").parameters
    assert {name: coatref.spec(name).num_parameters() for name in ALL} == counts
    assert counts["chinhsuanwu/coatnet_0"] == 17_789_624  # that its issue 4 quotes


def test_names_and_shapes_are_those_of_its_code() -> None:
    found = recorded_models.recorded("chinhsuanwu")
    spec = coatref.spec(**found.made)
    named = {name: shape for name, shape in found.shapes.items() if not name.endswith(table.IGNORED)}
    assert table.expected(spec) == named
    left = {name.rpartition(".")[2] for name in found.shapes.keys() - named.keys()}
    assert left == {"num_batches_tracked", "relative_index"}


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_logits_are_those_of_its_code(prefix: str) -> None:
    found = recorded_models.recorded("chinhsuanwu")
    spec = coatref.spec(**found.made)
    state = {prefix + name: recorded_models.numbers(name, shape) for name, shape in found.shapes.items()}
    output = coatref.forward(coatref.convert(state, spec), recorded_models.images(2, *spec.image_size))
    assert difference(output, found.logits) <= 1e-12


def test_the_width_of_1026_keeps_its_8_heads() -> None:
    spec = coatref.spec("chinhsuanwu/coatnet_2")
    assert spec.width == 1026
    shapes = table.expected(spec)
    assert shapes["s4.1.attn.1.fn.to_qkv.weight"] == (768, 1026)
    assert shapes["s4.1.attn.1.fn.to_out.0.weight"] == (1026, 256)
    assert shapes["s4.0.attn.1.fn.relative_bias_table"] == (13 * 13, 8)
    assert [shapes[f"s4.{block}.ff.1.fn.net.0.weight"] for block in (0, 1)] == [(2048, 1026), (4104, 1026)]


# --- a module with its names ---


@pytest.mark.parametrize("spec", [small(64), small(64, 96), with_bias(small(96, 64)), small(50, 37, classes=2)])
def test_a_module_with_its_names(spec: coatref.Spec) -> None:
    """For images that are not square, or that some stage halves to an odd grid, its conventions without its mistakes."""
    module = filled(model.factory(spec), state_of(spec))
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if not name.endswith(table.IGNORED)} == table.expected(spec)
    x = recorded_models.images(2, *spec.image_size)
    params = coatref.convert(module.state_dict(), spec)
    assert difference(coatref.forward(params, x), theirs(module, x)) <= 1e-12


def test_its_last_pool_is_a_mean_over_the_grid_only_on_the_square() -> None:
    for height, width in ((96, 96), (64, 96), (96, 64)):
        grid = torch.arange(2.0 * 5 * (height // 32) * (width // 32)).reshape(2, 5, height // 32, width // 32)
        if height > width:
            with pytest.raises(RuntimeError, match="too small"):
                model.last_pool(grid, height)
            continue
        found = model.last_pool(grid, height)
        assert torch.equal(found, grid.mean(dim=(2, 3))) if height == width else len(found) == 2 * 2


# --- names and layouts ---


@st.composite
def drawn(draw: st.DrawFn) -> coatref.Spec:
    """A spec of its kind: sizes of the picture, depths, widths, classes, and a bias in the classifier or none."""
    side, count = st.integers(33, 100), st.integers(1, 3)
    spec = coatref.spec(
        "chinhsuanwu/coatnet_0",
        image_size=(draw(side), draw(side)),
        depths=tuple(draw(count) for _ in range(5)),
        widths=tuple(draw(st.lists(st.integers(4, 40), min_size=5, max_size=5))),
        classes=draw(st.integers(1, 9)),
    )
    return draw(st.sampled_from((spec, with_bias(spec))))


@given(drawn(), st.integers(0, 99), st.sampled_from(("float32", "float64", "float16")))
@settings(max_examples=15, deadline=None)
def test_import_of_an_export_gives_every_bit_back(spec: coatref.Spec, seed: int, dtype: str) -> None:
    params = coatref.init(spec, seed, scheme="distinct", dtype=dtype)
    exported = export(params, "chinhsuanwu")
    assert {name: array.shape for name, array in exported.items()} == table.expected(spec)
    again = coatref.convert(exported, spec).flatten()
    assert list(again) == list(params.flatten())
    for name, array in params.flatten().items():
        assert array.dtype == again[name].dtype and array.tobytes() == again[name].tobytes(), name


@given(drawn())
@settings(max_examples=15, deadline=None)
def test_shapes_tell_depths_widths_and_classes(spec: coatref.Spec) -> None:
    sizes = table.sizes(table.expected(spec))
    assert sizes is not None
    variant = coatref.spec("chinhsuanwu/coatnet_3", image_size=spec.image_size, **sizes._asdict())
    assert variant.replace(name=spec.name, head=spec.head) == spec and variant.head.classes == spec.head.classes


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_of_a_model_with_a_name_is_recognised(name: str) -> None:
    spec = coatref.spec(name, image_size=96, classes=10)
    tensors: dict[str, Any] = {key: np.broadcast_to(0.0, shape) for key, shape in table.expected(spec).items()}
    tensors |= {"s0.0.1.num_batches_tracked": np.array(3), "s3.0.attn.1.fn.relative_index": np.zeros((36**2, 1), int)}
    found = recognised(tensors)
    assert found.spec == spec and found.dialect.name == "chinhsuanwu"


def test_tensors_that_do_not_fit_are_refused() -> None:
    spec = small(64)
    right = state_of(spec)
    lacking = {name: array for name, array in right.items() if name != "s1.0.conv.fn.8.bias"}
    wrong: list[tuple[dict[str, np.ndarray], str]] = [
        (lacking, r"missing: s1\.0\.conv\.fn\.8\.bias \(8,\)"),
        ({**right, "fc.bias": np.zeros(7)}, r"surplus: fc\.bias \(7,\)"),
        ({**right, "fc.weight": np.zeros((24, 7))}, r"fc\.weight .*\(24, 7\)"),
        (state_of(small(64, 96)), r"s3\.0\.attn\.1\.fn\.relative_bias_table"),
        (state_of(small(64, widths=(8, 8, 16, 24, 32))), r"s4\.0\.attn\.1\.fn\.to_out\.0\.weight"),
    ]
    for state, message in wrong:
        with pytest.raises(coatref.WeightsError, match=message):
            coatref.convert(state, spec)
    with pytest.raises(coatref.InputError, match=r"'coatnet_0' has a layer 'norm' for which chinhsuanwu"):
        export(coatref.init(coatref.spec("coatnet_0", depths=(2, 1, 1, 1, 1), widths=(8, 8, 8, 32, 64))), "chinhsuanwu")


def test_depths_and_widths_without_meaning() -> None:
    with pytest.raises(coatref.InputError, match="S0 to S4, 5 entries each, got 4 and 5"):
        coatref.spec("chinhsuanwu/coatnet_0", depths=(2, 3, 5, 2))
    with pytest.raises(coatref.SpecError, match="S0"):
        coatref.spec("chinhsuanwu/coatnet_0", depths=(1.5, 2, 3, 5, 2))  # type: ignore[arg-type]


# --- judged ---


def candidate(spec: coatref.Spec) -> Target:
    """The module with its names, as a user gives it; to be judged at one size."""
    made = resolve("torch:chinhsuanwu_model:factory", spec=spec, precision="float32", dialect="chinhsuanwu")
    return dataclasses.replace(made, variant=None)


def tiny(name: str = "chinhsuanwu/coatnet_0") -> coatref.Spec:
    """One stage of each kind."""
    spec = coatref.spec(name, image_size=(16, 24), depths=(2, 1, 1, 1, 1), widths=(4, 5, 6, 32, 64), classes=3)
    return spec.replace(stages=spec.stages[1:3])


def test_it_conforms_to_its_own_spec() -> None:
    report = check(candidate(tiny()), level="quick")
    assert report.conforms, report.summary


def test_what_no_tensor_shows_is_found() -> None:
    """Judged as a network that has its tensors, and norms before it pools as the paper does."""
    order: Any = {"norm_pool_order": "norm_then_pool"}
    spec = paper.with_transformers(tiny(), lambda run: dataclasses.replace(run, **order))
    report = check(candidate(spec), level="quick")
    assert not report.conforms
    assert [finding.mistake for finding in report.findings] == ["pool-then-norm"]
    assert report.findings[0].fields == {"Transformer.norm_pool_order": "pool_then_norm"}


def test_against_the_paper_its_tensors_differ() -> None:
    shapes = {place.ours: place.shape for place in table.places(tiny())}
    report = check(dataclasses.replace(candidate(tiny("coatnet_0")), expects=shapes), level="quick")
    assert not report.conforms
    named = set(report.findings[0].tensors)
    assert {"s0.conv1.b", "s0.norm2.gamma", "s1.0.shrink_norm.mean", "s2.0.attn.q.w", "head.norm.gamma"} <= named
    assert re.search(r"s1\.0\.expand\.w is \(4, 16\) and should be \(4, 24\)", report.findings[0].sentence)
