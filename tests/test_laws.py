"""Laws: the definition obeys each of them, and each is broken by a fitting mistake."""

import numpy as np
import pytest

import coatref
from coatref.conformance.cases import Case
from coatref.conformance.laws import laws
from coatref.conformance.mistakes.changed import Changed, compute
from coatref.conformance.mistakes.mistake import Mistake
from coatref.conformance.precision import declared
from coatref.conformance.suite import random_case
from coatref.conformance.variants import shrunk
from coatref.primitives import Primitives
from coatref.specification.spec import Spec

NAMES = {"law: repetition", "law: order of images", "law: order of classes", "law: order of hidden channels"}
SPECS = (
    "coatnet_0",
    "coatnet_0/post-softmax",
    "coatnet_0/linear-attention",
    "vit-rel",
    "timm/coatnet_nano_rw_224",
    "timm/coatnext_nano_rw_224",
    "timm/coatnet_rmlp_1_rw_224",
    "kecam/CoAtNet0",
)


def case_of(name: str, batch: int = 3) -> Case:
    """A small network with drawn weights and some images."""
    spec = shrunk(coatref.spec(name), 1, heads=2, classes=5)
    return random_case(spec, 1, batch, declared("float64"))


def apart(name: str, law_name: str, changed: Changed, batch: int = 3) -> float:
    """How far a computation is from obeying a law, relative to its output."""
    case = case_of(name, batch)
    law = next(law for law in laws(case, 1) if law.name == law_name)
    first = compute(changed, case.params, case.x)
    other = law.change(case)
    again = law.undo(compute(changed, other.params, other.x))
    return float(np.max(np.abs(again - first)) / np.max(np.abs(first)))


@pytest.mark.parametrize("name", [*SPECS, *(pytest.param(n, marks=pytest.mark.deep) for n in coatref.specs())])
def test_the_definition_obeys_every_law(name: str) -> None:
    case = case_of(name)
    found = list(laws(case, 1))
    assert {law.name for law in found} == NAMES
    for law in found:
        assert apart(name, law.name, Changed(case.spec)) < 1e-12, law.name


def test_each_law_changes_the_case() -> None:
    for name in SPECS:
        case = case_of(name)
        for law in laws(case, 1):
            other = law.change(case)
            ours, theirs = case.params.flatten(), other.params.flatten()
            same = all(np.array_equal(ours[key], theirs[key]) for key in ours) and np.array_equal(case.x, other.x)
            assert same == (law.name == "law: repetition"), (name, law.name)


def test_the_order_of_hidden_channels_moves_every_hidden_axis() -> None:
    """Each tensor that has a hidden axis is another one after it: a law that forgets one would test less."""
    for name in SPECS:
        case = case_of(name)
        law = next(law for law in laws(case, 1) if law.name.endswith("channels"))
        ours, theirs = case.params.flatten(), law.change(case).params.flatten()
        hidden = ("expand.", "depthwise", "shrink.w", ".se.reduce.w", "attn.q", "attn.k", "attn.v", "attn.o.w", "table")
        still = [
            key
            for key in ours
            if any(part in key for part in hidden)
            and np.array_equal(ours[key], theirs[key])
            and ".relative_bias." not in key
        ]
        assert [key for key in still if not few(case.spec, key)] == [], name


def few(spec: Spec, key: str) -> bool:
    """Whether heads are so few that their order may stay by chance, or the axis is not hidden (ConvNeXt's depthwise)."""
    return ".attn." in key or (".depthwise" in key and "coatnext" in spec.name)


def test_images_alone_have_no_order() -> None:
    assert {law.name for law in laws(case_of("vit-rel", 1), 1)} == NAMES - {"law: order of images"}


def over_batch(changed: Changed) -> Changed:
    """Batch statistics where running ones are meant."""
    from coatref.primitives import DEFINITION

    def batch_norm(x: np.ndarray, **rest: object) -> np.ndarray:
        y = DEFINITION.batch_norm(x, **rest)
        weights = np.linspace(0.5, 1.5, x.shape[0])[:, None, None, None]
        return np.asarray(y + 0.1 * np.mean(weights * y))

    return changed.but(forms=with_form(changed.forms, "batch_norm", batch_norm))


def with_form(forms: Primitives, name: str, form: object) -> Primitives:
    """Primitives with one other form."""
    from dataclasses import replace

    return replace(forms, **{name: form})  # type: ignore[arg-type]


def by_image(changed: Changed) -> Changed:
    """Each image's output depends on its place in the batch."""
    return changed.but(output=lambda y: y * (1 + np.arange(y.shape[0])[:, None]))


def by_class(changed: Changed) -> Changed:
    """Each class depends on its number."""
    return changed.but(output=lambda y: y + np.arange(y.shape[1]))


def by_call(changed: Changed) -> Changed:
    """Each call gives something else."""
    calls = iter(range(10**6))
    return changed.but(output=lambda y: y * (1 + next(calls)))


def first_half_only(changed: Changed) -> Changed:
    """Activations of the first half of the channels alone."""
    from coatref.primitives import DEFINITION

    def activation(x: np.ndarray, kind: str) -> np.ndarray:
        y = np.array(DEFINITION.activation(x, kind))
        half = x.shape[-1] // 2
        y[..., half:] = x[..., half:]
        return y

    return changed.but(forms=with_form(changed.forms, "activation", activation))


BREAKING = {
    "law: repetition": by_call,
    "law: order of images": by_image,
    "law: order of classes": by_class,
    "law: order of hidden channels": first_half_only,
}


@pytest.mark.parametrize("law", sorted(NAMES))
@pytest.mark.parametrize("name", ["coatnet_0", "timm/coatnext_nano_rw_224"])
def test_each_law_is_broken_by_a_fitting_mistake(law: str, name: str) -> None:
    spec = case_of(name).spec
    assert apart(name, law, BREAKING[law](Changed(spec))) > 1e-4


def test_batch_statistics_break_the_order_of_images() -> None:
    assert apart("coatnet_0", "law: order of images", over_batch(Changed(case_of("coatnet_0").spec))) > 1e-4


@pytest.mark.parametrize(
    ("mistake", "law"),
    [("softmax-over-batch", "law: repetition"), ("heads-merged-interleaved", "law: order of hidden channels")],
)
def test_known_mistakes_and_the_laws_they_break(mistake: str, law: str) -> None:
    """Interleaved heads make the order of heads matter; a softmax over images obeys repetition all the same."""
    from coatref.conformance.mistakes.catalogue import mistakes

    known: dict[str, Mistake] = {each.name: each for each in mistakes()}
    spec = case_of("coatnet_0").spec
    far = apart("coatnet_0", law, known[mistake].change(Changed(spec)))
    assert far == 0 if law == "law: repetition" else far > 1e-6
