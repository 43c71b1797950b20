"""What a candidate computes instead: named where it is known, located where it is not."""

import collections
import dataclasses
import math

import numpy as np
import pytest

import coatref
from coatref import Params, Spec
from coatref.conformance import suite
from coatref.conformance.judge import check
from coatref.conformance.mistakes.catalogue import mistakes
from coatref.conformance.mistakes.changed import Changed, compute, shapes
from coatref.conformance.mistakes.lattice import EPSILONS, lattice
from coatref.conformance.mistakes.mistake import PRIMITIVES, Mistake
from coatref.conformance.precision import Precision
from coatref.conformance.report.results import Report
from coatref.conformance.selftest import planted
from coatref.conformance.suite import random_case
from coatref.conformance.variants import shrunk
from coatref.primitives import DEFINITION

FLOAT32 = Precision()
BY_NAME = {mistake.name: mistake for mistake in mistakes()}


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The level "quick" without drawn configurations, and a diagnosis that no slow machine cuts short."""
    monkeypatch.setitem(suite.LEVELS, "quick", dataclasses.replace(suite.LEVELS["quick"], random=0, seconds=600.0))


def small(name: str = "coatnet_0") -> Spec:
    """A network of one block of each stage; of coatnet_0 the stages of convolutions."""
    spec = shrunk(coatref.spec(name), 1, heads=1, classes=5)
    return convolutions(spec) if name == "coatnet_0" else spec


def convolutions(spec: Spec) -> Spec:
    """The first two stages of a network, on a small picture."""
    return spec.replace(stages=spec.stages[:2], image_size=(24, 32))


def judged(*changes: Mistake, spec: Spec) -> Report:
    """The report on an implementation with mistakes, that exists for one spec only."""
    return check(dataclasses.replace(planted(changes, spec, FLOAT32), variant=None), level="quick", seed=1)


def named(report: Report) -> set[str]:
    """The mistakes that a report names."""
    return {finding.mistake for finding in report.findings}


# --- the lattice ---


@pytest.mark.parametrize("name", ["coatnet_0", "vit-rel", "coatnet_6", "timm/coatnext_nano_rw_224", "kecam/CoAtNet0"])
def test_lattice_changes_keep_shapes_and_change_the_spec(name: str) -> None:
    spec = shrunk(coatref.spec(name), 1, heads=1)
    found = list(lattice(spec))
    assert len({mistake.name for mistake in found}) == len(found) >= 20
    for mistake in found:
        other = mistake.change(Changed(spec)).spec
        assert other != spec and shapes(other) == shapes(spec), mistake.name
        assert mistake.primitive in PRIMITIVES and len(mistake.fields) == 1
        (field,) = mistake.fields
        assert field in mistake.sentence


def test_the_lattice_has_every_closed_choice_and_epsilon() -> None:
    spec = shrunk(coatref.spec("coatnet_0"), 1)
    options = collections.Counter(field for mistake in lattice(spec) for field in mistake.fields)
    assert options["ConvStem.norm.epsilon"] == len(EPSILONS) - 1
    assert options["MBConv.activation"] == 5 and options["Transformer.attention.scale"] == 3
    assert options["Transformer.attention.relative_bias.orientation"] >= 1 and options["Head.output"] == 1
    assert not any(field.endswith(("fused_qkv", "resize")) for field in options)


def test_lattice_changes_can_be_computed() -> None:
    spec = small("vit-rel")
    case = random_case(spec, 0, 1, FLOAT32)
    seen = [compute(mistake.change(Changed(spec)), case.params, case.x) for mistake in lattice(spec)]
    assert all(value.shape == (1, 5) for value in seen)


# --- known mistakes ---

SINGLE = (
    ("vit-rel", "bias-key-minus-query"),
    ("vit-rel", "ffn-activation-gelu"),
    ("vit-rel", "attention-norm-eps-1e-3"),
    ("vit-rel", "scale-missing"),
    ("vit-rel", "softmax-over-queries"),
    ("vit-rel", "v-bias-missing"),
    ("vit-rel", "global-pool-max"),
    ("vit-rel", "classifier-bias-missing"),
    ("coatnet_0", "stem-norm-eps-1e-5"),
    ("coatnet_0", "se-hard-sigmoid"),
    ("coatnet_0", "depthwise-kernel-flipped"),
    ("coatnet_0", "inner-norm-eps-1e-5"),
    ("coatnet_0", "shortcut-pool-avg"),
    ("coatnet_0", "expand-activation-missing"),
)


@pytest.mark.parametrize(("network", "name"), SINGLE)
def test_a_known_mistake_is_named(network: str, name: str) -> None:
    report = judged(BY_NAME[name], spec=small(network))
    assert report.verdict == "fail" and name in named(report) or equal(name, report, small(network)), report.summary
    assert report.findings[0].primitive == BY_NAME[name].primitive
    assert len(report.findings) == 1 and (report.findings[0].cases or report.findings[0].tensors)


def equal(name: str, report: Report, spec: Spec) -> bool:
    """Whether the mistake that is named instead of another computes the same in a network."""
    known = BY_NAME | {mistake.name: mistake for mistake in lattice(spec)}
    case = random_case(spec, 3, 2, FLOAT32)
    ours = compute(BY_NAME[name].change(Changed(spec)), case.params, case.x)
    theirs = [compute(known[other].change(Changed(spec)), case.params, case.x) for other in named(report)]
    return len(theirs) == 1 and bool(np.allclose(ours, theirs[0], rtol=1e-9, atol=0))


PAIRS = (
    ("ffn-activation-gelu", "bias-key-minus-query"),
    ("attention-norm-eps-1e-3", "classifier-bias-missing"),
    ("scale-missing", "ffn-norm-eps-1e-3"),
)


@pytest.mark.parametrize("pair", PAIRS)
def test_two_mistakes_at_once_are_both_named(pair: tuple[str, str]) -> None:
    report = judged(*(BY_NAME[name] for name in pair), spec=small("vit-rel"))
    parts = {finding.primitive for finding in report.findings}
    assert {BY_NAME[name].primitive for name in pair} <= parts, report.summary
    assert set(pair) <= named(report), report.summary


@pytest.mark.parametrize(
    ("name", "drawn"), [("bias-key-minus-query", True), ("bias-rows-flipped", True), ("scale-missing", False)]
)
def test_mistakes_in_the_relative_bias_have_a_heat_map(name: str, drawn: bool) -> None:
    spec = shrunk(coatref.spec("vit-rel"), 1, heads=1, classes=5)
    report = judged(BY_NAME[name], spec=spec)
    maps = [finding.heat_map for finding in report.findings]
    assert any(maps) == drawn
    for each in maps:
        if each is not None:
            assert len(each.expected) == 4 and len(each.expected[0]) == 6  # 64x96 in patches of 16
            assert np.shape(each.expected) == np.shape(each.found) and each.expected != each.found


# --- mistakes that nobody knows ---


def sharpened(changed: Changed) -> Changed:
    """Attention weights to the power of 1.5, made to sum to 1 again: a temperature of 2/3, which is in no list."""

    def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray, **options: object) -> np.ndarray:
        weights: dict[str, np.ndarray] = {}

        def keep(name: str, value: np.ndarray) -> np.ndarray:
            weights[name] = value
            return value**1.5 / np.sum(value**1.5, axis=-1, keepdims=True) if name == "weights" else value

        return np.asarray(DEFINITION.relative_attention(q, k, v, bias, **(options | {"tap": keep})))

    return changed.but(forms=dataclasses.replace(changed.forms, relative_attention=attention))


def test_an_unknown_mistake_is_located() -> None:
    mistake = Mistake("weights-sharpened", "softmax", "sharpens its weights", "nobody", sharpened)
    report = judged(mistake, spec=small("vit-rel"))
    assert report.verdict == "fail" and named(report) == {""}
    first = report.findings[0]
    assert first.primitive in ("relative bias", "softmax", "attention logits") and "no known change" in first.sentence
    assert first.places == ("s1.0",) and report.conforms_to == ""


def wrong_block(block: str) -> Mistake:
    """One block alone whose depthwise output is a little too large."""

    def change(changed: Changed) -> Changed:
        def tap() -> object:
            return lambda name, value: value * 1.01 if name == f"{block}.depthwise" else value

        return changed.but(taps=(*changed.taps, tap))

    return Mistake("block-too-large", "depthwise convolution", "is too large", "nobody", change)


@pytest.mark.parametrize("block", ["s1.0", *(pytest.param(n, marks=pytest.mark.deep) for n in ("s1.1", "s2.1"))])
def test_a_mistake_of_one_block_is_located_there(block: str) -> None:
    spec = convolutions(shrunk(coatref.spec("coatnet_0"), 2, heads=1, classes=5))
    report = judged(wrong_block(block), spec=spec)
    assert report.verdict == "fail" and "" in named(report), report.summary
    places = {place for finding in report.findings for place in finding.places}
    assert places == {block}, report.summary


def test_errors_that_are_not_finite_explain_nothing() -> None:
    def run(params: Params, x: np.ndarray) -> np.ndarray:
        return np.asarray(coatref.forward(params, x) * np.float32(math.nan))

    report = check(run, spec=small("vit-rel"), level="quick")
    assert named(report) == {""} and "NaN" in report.findings[0].sentence
