"""The probes: what each looks at, and that nothing else changes what it shows."""

import functools

import numpy as np
import pytest

import coatref
from coatref.conformance import surgery
from coatref.conformance.cases import Case, drawn_images, drawn_params, stored_params
from coatref.conformance.mistakes.catalogue import mistakes
from coatref.conformance.mistakes.changed import Changed, compute, shapes
from coatref.conformance.mistakes.mistake import Mistake, NotApplicable
from coatref.conformance.precision import FORMATS, Precision, declared, rounded
from coatref.conformance.probe_cases import PROBES, everywhere, last_fitting, probe_cases
from coatref.conformance.variants import shrunk
from coatref.specification.parts import MBConv, Transformer
from coatref.specification.spec import Spec
from coatref.tap import recorder

SPECS = ("coatnet_0", "vit-rel", "timm/coatnet_nano_rw_224", "timm/coatnext_nano_rw_224", "kecam/CoAtNet0")
ALL = [*SPECS, *(pytest.param(name, marks=pytest.mark.deep) for name in coatref.specs() if name not in SPECS)]
DTYPES = tuple(FORMATS)


@functools.cache
def small(name: str) -> Spec:
    """A network with a strided and a plain block of every kind."""
    return shrunk(coatref.spec(name), 2, heads=1, classes=5)


@functools.cache
def cases(name: str, dtype: str = "float64") -> tuple[Case, ...]:
    """The probes of a spec at their usual places."""
    return tuple(probe_cases(small(name), declared(dtype), 1, last_fitting))


def run(case: Case, changed: Changed | None = None) -> np.ndarray:
    """The output of a computation on a case."""
    with np.errstate(all="ignore"):
        return np.asarray(compute(changed or Changed(case.spec), case.params, case.x))


# --- every probe ---


@pytest.mark.parametrize("name", ALL)
def test_probes_have_names_of_their_own(name: str) -> None:
    names = [(case.name, case.check) for case in cases(name)]
    assert len(set(names)) == len(names) >= 10
    everything = [(case.name, case.check) for case in probe_cases(small(name), Precision(), 0, everywhere)]
    assert len(set(everything)) == len(everything) >= len(names)
    assert all(case.about.endswith(".") and case.primitive for case in cases(name))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_parameters_are_stored_numbers_and_the_output_is_finite(name: str, dtype: str) -> None:
    for case in cases(name, dtype):
        for key, array in case.params.flatten().items():
            assert np.all(np.isfinite(array)), (case.name, key)
            assert np.array_equal(rounded(array, dtype), array), (case.name, key)
            if key.endswith(".var"):
                assert np.min(array) > 0, (case.name, key)
        assert np.array_equal(rounded(case.x, dtype), case.x)
        logits = run(case)
        assert np.all(np.isfinite(logits)) and float(np.ptp(logits)) > 0, case.name


@pytest.mark.parametrize("name", ALL)
def test_every_probe_can_be_seen_in_the_output(name: str) -> None:
    """Its signal is no small part of the logits: they differ from those of the head alone."""
    spec = small(name)
    for case in cases(name):
        flat = case.params.flatten()
        surgery.silence(flat, spec)
        silent = run(Case(**(vars(case) | {"params": stored_params(spec, flat, declared("float64"))})))
        if case.place not in ("s0", "head") and case.primitive not in ("residual", "shortcut"):
            assert float(np.max(np.abs(run(case) - silent))) > 1e-3 * float(np.max(np.abs(run(case)))), case.name


# --- what each probe sees ---

STEM = ("stem convolution", "stem norm", "stem activation", "image")
OTHER_BRANCH = {
    "ffn": ("attention logits", "attention values", "attention output", "relative bias", "softmax", "attention norm"),
    "ffn activation": ("attention logits", "attention values", "attention output", "relative bias", "softmax"),
    "shrink": ("ffn", "ffn activation", "ffn norm", "attention logits", "relative bias", "softmax", "attention values"),
}
BEFORE = {  # in a branch on an empty stream, what the probe's constants hide: all that stands before them
    "shrink": ("depthwise convolution", "expansion", "mbconv pre-norm", "mbconv pre-activation"),
    "ffn activation": ("ffn norm",),
    "ffn": ("ffn norm",),
    "attention output": ("relative bias",),
    "attention values": ("relative bias",),
}
# Single mistakes that change constants too, with the reason.
EXCEPTIONS = {
    "attention-norm-missing": "without the normalisation its constants are gone",
    "ffn-norm-missing": "likewise",
    "inner-norm-missing": "likewise",
    "pre-norm-missing": "likewise",
    "output-projection-skipped": "it leaves out the layer whose zeros silence the branch",
}


def blind_to(case: Case) -> tuple[str, ...]:
    """The parts that a probe must not see."""
    probe = next(p for p in PROBES if case.name.startswith(f"{p.name} in ") and p.primitive == case.primitive)
    if probe.stream != "empty":
        return OTHER_BRANCH.get(case.primitive, ())
    return tuple(dict.fromkeys((*STEM, *OTHER_BRANCH.get(case.primitive, ()), *BEFORE.get(case.primitive, ()))))


def applied(mistake: Mistake, case: Case) -> np.ndarray | None:
    """The output with a mistake; None where it cannot be made, or takes other parameters."""
    try:
        changed = mistake.change(Changed(case.spec))
    except NotApplicable:
        return None
    return run(case, changed) if shapes(changed.spec) == shapes(case.spec) else None


def sampled(parts: tuple[str, ...], each: int = 4) -> list[Mistake]:
    """Some mistakes of each of some parts."""
    found: list[Mistake] = []
    for part in parts:
        found += [m for m in mistakes() if m.primitive == part and m.name not in EXCEPTIONS][:each]
    return found


@pytest.mark.parametrize("name", ALL)
def test_a_probe_does_not_see_what_comes_later_in_the_order(name: str) -> None:
    seen = []
    for case in cases(name):
        expected = run(case)
        size = float(np.max(np.abs(expected)))
        for mistake in sampled(blind_to(case)):
            found = applied(mistake, case)
            if found is not None and not float(np.max(np.abs(found - expected))) <= 1e-9 * size:
                seen.append((case.name, mistake.primitive, mistake.name))
    assert seen == []


SHOWN = (  # mistakes, and the probe that shows them first among those that look at the mistaken part
    ("classifier", "classifier-classes-shifted"),
    ("last layer", "ffn-shrink-bias-ignored"),
    ("activation", "ffn-activation-gelu"),
    ("first layer", "ffn-expand-bias-ignored"),
    ("output projection", "output-kernel-transposed"),
    ("values", "v-bias-missing"),
    ("sum of weights", "softmax-plus-one"),
    ("shrink", "shrink-activation"),
    ("second activation", "mbconv-activation-gelu"),
    ("second norm", "inner-norm-eps-1e-5"),
    ("squeeze-excite", "se-hard-sigmoid"),
    ("depthwise edges", "depthwise-padding-replicate"),
    ("first activation", "mbconv-activation-gelu"),
    ("first norm", "inner-norm-eps-1e-5"),
    ("pre-activation", "pre-activation-gelu"),
    ("pre-norm", "pre-norm-eps-1e-5"),
    ("residual", "mbconv-residual-missing"),
    ("shortcut", "shortcut-missing-at-stride"),
    ("stem activation", "stem-activation-gelu"),
    ("stem norm", "stem-norm-eps-1e-5"),
    ("stem", "stem-kernel-flipped"),
    ("stride", "expand-stride-phase"),
    ("depthwise kernel", "depthwise-kernel-flipped"),
    ("squeeze-excite of a picture", "se-max"),
    ("attention norm", "attention-norm-eps-1e-3"),
    ("ffn norm", "ffn-norm-eps-1e-3"),
    ("attention pool", "attention-pool-avg"),
    ("picture", "shortcut-pool-subsampled"),
    ("relative bias", "softmax-over-queries"),
    ("relative bias", "bias-key-minus-query"),
    ("queries and keys", "scale-missing"),
    ("attention", "scale-after-bias"),
)


@pytest.mark.parametrize(("probe", "name"), SHOWN)
def test_a_probe_sees_the_mistakes_of_its_own_part(probe: str, name: str) -> None:
    mistake = next(m for m in mistakes() if m.name == name)
    found = [(applied(mistake, case), run(case)) for case in cases("coatnet_0") if case.name.startswith(f"{probe} in ")]
    assert found
    differences = [
        float(np.max(np.abs(wrong - right)) / np.max(np.abs(right))) for wrong, right in found if wrong is not None
    ]
    assert differences and max(differences) > 1e-4, differences


ELSEWHERE = (  # parts that the probes leave to the case as given: of blocks that no probe looks at, and of all cases
    "blocks",
    "image",
    "output",
    "parameters",
)


@pytest.mark.parametrize("step", [53, pytest.param(1, marks=pytest.mark.deep)])
@pytest.mark.parametrize("name", ["coatnet_0", "timm/coatnet_nano_rw_224"])
def test_every_mistake_shows_in_some_probe(name: str, step: int) -> None:
    """Of those that keep the shapes, and do not need several images."""
    hidden = []
    for mistake in mistakes()[::step]:
        outputs = [(applied(mistake, case), run(case)) for case in cases(name)]
        if any(wrong is None for wrong, _ in outputs) or mistake.primitive in ELSEWHERE:
            continue
        if not any(
            wrong.shape != right.shape
            or not float(np.max(np.abs(wrong - right))) <= 1e-6 * float(np.max(np.abs(right)))
            for wrong, right in outputs
            if wrong is not None
        ):
            hidden.append(mistake.name)
    assert all("batch" in each for each in hidden), hidden


@pytest.mark.parametrize("name", ALL)
def test_every_part_of_a_spec_has_a_probe(name: str) -> None:
    """At the last fitting block as everywhere: a part whose probe is built nowhere would go unseen."""
    everything = {case.name.partition(" in ")[0] for case in probe_cases(small(name), Precision(), 0, everywhere)}
    assert {case.name.partition(" in ")[0] for case in cases(name)} == everything
    changing = [block for block in list(small(name).blocks())[1:] if block.stride == 2 or block.projected]
    assert ("shortcut" in everything) == bool(changing)


# --- surgery ---


def test_silence_leaves_only_stem_shortcuts_and_head() -> None:
    for name in SPECS:
        spec = small(name)
        flat = drawn_params(spec, 0, Precision()).flatten()
        surgery.silence(flat, spec)
        seen: dict[str, np.ndarray] = {}
        params = stored_params(spec, flat, Precision())
        x = drawn_images(spec, 0, 1, Precision())
        compute(Changed(spec), params, x, recorder(seen))
        for block in spec.blocks():
            if block.stride == 1 and not block.projected:
                before = previous(spec, block.name)
                assert np.array_equal(seen[block.name], seen[before]), (name, block.name)
            elif not isinstance(block.run, Transformer):
                assert np.array_equal(seen[block.name], seen[f"{block.name}.shortcut"]), (name, block.name)


def previous(spec: Spec, block: str) -> str:
    """The name of the value that a block takes."""
    names = ["s0", *(each.name for each in spec.blocks())]
    return names[names.index(block) - 1]


def test_an_empty_stream_is_zero_in_every_block() -> None:
    for name in SPECS:
        spec = small(name)
        flat = drawn_params(spec, 0, Precision()).flatten()
        surgery.silence(flat, spec)
        surgery.empty_stream(flat, spec)
        seen: dict[str, np.ndarray] = {}
        x = drawn_images(spec, 0, 1, Precision())
        compute(Changed(spec), stored_params(spec, flat, Precision()), x, recorder(seen))
        assert all(not np.any(seen[key]) for key in ("s0", *(block.name for block in spec.blocks()))), name


def test_silence_keeps_the_branches_that_it_is_told_to() -> None:
    spec = small("coatnet_0")
    for block in spec.blocks():
        for branch in surgery.branches(block):
            flat = drawn_params(spec, 0, Precision()).flatten()
            surgery.silence(flat, spec, [branch])
            others = [b for each in spec.blocks() for b in surgery.branches(each) if b != branch]
            layer = surgery.last_layer(block, branch)
            assert np.any(flat[f"{layer}.w"])
            owners = {b: each for each in spec.blocks() for b in surgery.branches(each)}
            assert not any(np.any(flat[f"{surgery.last_layer(owners[b], b)}.w"]) for b in others)


def test_constant_and_transparent_normalisations_do_what_they_say() -> None:
    spec = small("coatnet_0")
    block = next(block for block in spec.blocks() if isinstance(block.run, MBConv))
    assert isinstance(block.run, MBConv)
    norm = f"{block.name}.expand_norm"
    x = drawn_images(spec, 0, 1, Precision())

    def seen(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        compute(Changed(spec), stored_params(spec, flat, declared("float64")), x, recorder(values))
        return values

    flat = drawn_params(spec, 0, Precision()).flatten()
    channels = flat[f"{norm}.gamma"].shape[0]
    surgery.constant(flat, norm, np.arange(channels, dtype=np.float64))
    given = seen(flat)[norm]
    assert np.array_equal(given, np.broadcast_to(np.arange(channels), given.shape))
    surgery.transparent(flat, norm, block.run.inner_norm, 3.0)
    values = seen(flat)
    scale = 1 / np.sqrt(1 + block.run.inner_norm.epsilon)
    assert np.allclose(values[norm], values[f"{block.name}.expand"] * scale + 3.0, rtol=1e-12)


def test_linear_values_pass_through_every_activation() -> None:
    from coatref import ops

    for kind, start in surgery.LINEAR_FROM.items():
        if kind == "tanh":
            continue
        values = start + np.linspace(0, 20, 41)
        assert np.allclose(ops.activation(values, kind), values, rtol=1e-15, atol=0), kind


def test_centred_kernels_do_not_see_what_their_inputs_have_in_common() -> None:
    random = np.random.default_rng(0)
    for shape in ((1, 1, 6, 4), (3, 3, 5, 4), (7, 3)):
        w = surgery.centred(random, shape)
        assert np.allclose(np.sum(w, axis=tuple(range(w.ndim - 1))), 0, atol=1e-12) and np.any(w)
    assert np.any(surgery.centred(random, (4,)))
