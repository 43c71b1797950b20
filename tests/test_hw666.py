"""The hw666 specs against what its code has and computes on MindSpore, and against a second form with its names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import recorded_models
from hypothesis import given, settings
from hypothesis import strategies as st

import coatref
from coatref.conformance.judge import check
from coatref.specification import hw666 as hw666_specs
from coatref.weights import hw666 as table
from coatref.weights.export import export
from coatref.weights.recognise import recognised

torch: Any = pytest.importorskip("torch", reason="needs torch, which is not installed")

import hw666_model as model

ALL = hw666_specs.names()
SMALL: dict[str, Any] = {"depths": (2, 2, 1, 2, 2), "widths": (8, 8, 32, 32, 96), "classes": 7}  # S1 and S3 keep theirs


def small(*size: int, **changes: Any) -> coatref.Spec:
    return coatref.spec("hw666/coatnet_0", image_size=(size[0], size[-1]), **(SMALL | changes))


def state_of(spec: coatref.Spec) -> dict[str, np.ndarray]:
    """Tensors for a spec under their names, every number in them drawn."""
    return {name: recorded_models.numbers(name, shape) for name, shape in table.expected(spec).items()}


def params_of(spec: coatref.Spec) -> coatref.Params:
    return coatref.convert(state_of(spec), spec, dialect="hw666")


def difference(ours: np.ndarray, other: np.ndarray) -> float:
    assert ours.shape == other.shape
    return float(np.max(np.abs(ours - other)) / np.max(np.abs(other)))


# --- its own code, as recorded ---


def test_counts_are_those_of_its_code() -> None:
    counts = recorded_models.recorded("hw666").parameters
    assert {name: coatref.spec(name).num_parameters() for name in ALL} == counts


def test_names_and_shapes_are_those_of_its_code() -> None:
    found = recorded_models.recorded("hw666")
    assert table.expected(coatref.spec(**found.made)) == found.shapes


def test_logits_are_those_of_its_code() -> None:
    """MindSpore computed in float32."""
    found = recorded_models.recorded("hw666")
    spec = coatref.spec(**found.made)
    output = coatref.forward(params_of(spec), recorded_models.images(2, *spec.image_size))
    assert difference(output, found.logits) <= 1e-5


# --- a second form with its names ---


@pytest.mark.parametrize("spec", [small(64), small(64, 96), small(50, 37), small(33, 70, classes=2)])
def test_a_second_form(spec: coatref.Spec) -> None:
    """Also for images that some stage halves to an odd grid, on which its own pool fails."""
    params, x = params_of(spec), recorded_models.images(2, *spec.image_size)
    assert difference(coatref.forward(params, x), model.run(params, x)) <= 1e-12


# --- names and layouts ---


@st.composite
def drawn(draw: st.DrawFn) -> coatref.Spec:
    """A spec of its kind: sizes of the picture, depths, widths, classes."""
    side, count, heads = st.integers(33, 100), st.integers(1, 3), st.integers(1, 3)
    return coatref.spec(
        "hw666/coatnet_0",
        image_size=(draw(side), draw(side)),
        depths=(2, *(draw(count) for _ in range(4))),
        widths=(*(draw(st.integers(4, 40)) for _ in range(3)), 32 * draw(heads), 32 * draw(heads)),
        classes=draw(st.integers(1, 9)),
    )


@given(drawn(), st.integers(0, 99), st.sampled_from(("float32", "float64", "float16")))
@settings(max_examples=15, deadline=None)
def test_import_of_an_export_gives_every_bit_back(spec: coatref.Spec, seed: int, dtype: str) -> None:
    params = coatref.init(spec, seed, scheme="distinct", dtype=dtype)
    exported = export(params, "hw666")
    assert {name: array.shape for name, array in exported.items()} == table.expected(spec)
    again = coatref.convert(exported, spec, dialect="hw666").flatten()
    assert list(again) == list(params.flatten())
    for name, array in params.flatten().items():
        assert array.dtype == again[name].dtype and array.tobytes() == again[name].tobytes(), name


@given(drawn())
@settings(max_examples=15, deadline=None)
def test_shapes_tell_depths_widths_and_classes(spec: coatref.Spec) -> None:
    sizes = table.sizes(table.expected(spec))
    assert sizes is not None
    variant = coatref.spec("hw666/coatnet_2", image_size=spec.image_size, **sizes._asdict())
    assert variant.replace(name=spec.name) == spec


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_of_a_model_with_a_name_is_recognised(name: str) -> None:
    spec = coatref.spec(name, image_size=(96, 64), classes=10)
    tensors = {key: np.broadcast_to(0.0, shape) for key, shape in table.expected(spec).items()}
    found = recognised(tensors)
    assert found.spec == spec and found.dialect.name == "hw666"


def test_what_a_checkpoint_of_its_training_holds_besides() -> None:
    """AdamWeightDecay's moments and counters are left; an averaged copy, here of what is trained, is taken or left."""
    spec = small(64)
    own = state_of(spec)
    counters = ("scale_sense", "global_step", "learning_rate", "current_iterator_step", "last_overflow_iterator_step")
    training = {name: np.array([1.0]) for name in (*counters, "epoch_num", "step_num")}
    training |= {f"{moment}{name}": array + 1 for name, array in own.items() for moment in ("adam_m.", "adam_v.")}
    averaged = {f"ema.{name}": array + 2 for name, array in own.items() if "moving" not in name}
    params = coatref.convert({**own, **training, **averaged}, spec, dialect="hw666")
    plain = coatref.convert({**own, **training, **averaged}, spec, dialect="hw666", ema=False)
    right = params_of(spec).flatten()
    for name, array in right.items():
        taken = array if name.endswith(("mean", "var")) else array + 2
        assert np.array_equal(params.flatten()[name], taken), name
        assert np.array_equal(plain.flatten()[name], array), name


def test_tables_are_resized_with_their_corners_aligned() -> None:
    """As its `eval.py` does: 7 rows of a table are every second one of 13, and 3 every third one of 7."""
    spec = small(64)
    params, high = params_of(spec), coatref.convert(state_of(spec), spec, dialect="hw666", image_size=(112, 64))
    for stage, step in (("s3", 2), ("s4", 3)):
        before, after = (each[stage][0]["attn"]["relative_bias"]["table"] for each in (params, high))
        assert after.shape[1] == step * (before.shape[1] - 1) + 1
        assert np.allclose(after[:, ::step], before, rtol=0, atol=1e-12)


def test_tensors_that_do_not_fit_are_refused() -> None:
    spec = small(64)
    right = state_of(spec)
    lacking = {name: array for name, array in right.items() if name != "s1.0.conv.7.bias"}
    name = "s3.0.attn.relative_position_bias.relative_position_bias_table"
    wrong: list[tuple[dict[str, np.ndarray], str]] = [
        (lacking, r"missing: s1\.0\.conv\.7\.bias \(8,\)"),
        ({**right, "s0.conv.0.bias": np.zeros(8)}, r"surplus: s0\.conv\.0\.bias \(8,\)"),
        ({**right, name: right[name].reshape(1, -1)}, r"relative_position_bias_table .*\(1, 49\)"),
        (state_of(small(64, 96)), r"relative_position_bias_table"),
        (state_of(small(64, widths=(8, 8, 32, 32, 64))), r"s4\.0\.attn\.q\.weight"),
    ]
    for state, message in wrong:
        with pytest.raises(coatref.WeightsError, match=message):
            coatref.convert(state, spec, dialect="hw666")
    with pytest.raises(coatref.InputError, match=r"has a layer 'norm2' for which hw666"):
        export(coatref.init(coatref.spec("coatnet_0", depths=(3, 1, 1, 1, 1), widths=(8, 8, 8, 32, 64))), "hw666")


def test_depths_and_widths_without_meaning() -> None:
    with pytest.raises(coatref.InputError, match="S0 to S4, 5 entries each, got 4 and 5"):
        coatref.spec("hw666/coatnet_0", depths=(2, 3, 5, 2))
    with pytest.raises(coatref.InputError, match="two convolutions in S0, got a depth of 3"):
        coatref.spec("hw666/coatnet_0", depths=(3, 2, 3, 5, 2))


# --- judged ---


def tiny(name: str) -> coatref.Spec:
    """One stage of each kind."""
    spec = coatref.spec(name, image_size=(16, 24), depths=(2, 1, 1, 1, 1), widths=(4, 5, 6, 32, 64), classes=3)
    return spec.replace(stages=spec.stages[1:3])


def test_it_conforms_to_its_own_spec() -> None:
    report = check(model.run, spec=tiny("hw666/coatnet_0"), level="quick")
    assert report.conforms, report.summary


def test_against_the_paper_it_lacks_the_biases_of_the_stem() -> None:
    """Given the paper's tensors, of the paper's widths; what else differs is in how many numbers there are."""
    report = check(model.run, spec=tiny("coatnet_0"), level="quick")
    assert not report.conforms
    assert [finding.mistake for finding in report.findings] == ["stem-bias-ignored"]
