"""The catalogue of known mistakes: each can be made somewhere, changes what is computed there, and says what it is."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from typing import Any

import numpy as np
import pytest

import coatref
from coatref import WeightsError
from coatref.conformance.mistakes import norms
from coatref.conformance.mistakes.catalogue import AXES, combined, mistake, mistakes
from coatref.conformance.mistakes.changed import Changed, compute
from coatref.conformance.mistakes.edits import changes_shapes, split_runs, with_fields
from coatref.conformance.mistakes.effective import effective
from coatref.conformance.mistakes.mistake import PRIMITIVES, Mistake, NotApplicable, applies
from coatref.errors import InputError
from coatref.specification import parts
from coatref.specification.spec import Spec
from coatref.tap import recorder

PAPER: dict[str, Any] = {"depths": (2, 2, 1, 3, 2), "widths": (6, 8, 16, 32, 64), "classes": 5}
TIMM: dict[str, Any] = {"depths": (1, 2, 3, 2), "widths": (8, 32, 64, 96), "classes": 5, "image_size": (32, 64)}
AVG3 = parts.Pool(kind="avg", size=3, padding="symmetric")
MAX3 = parts.Pool(kind="max", size=3, padding="symmetric")
NAMES = [each.name for each in mistakes()]


def pooled(spec: Spec, pool: parts.Pool, **changes: Any) -> Spec:
    """The spec with one pool everywhere, at the stride of MBConv too."""
    every = {"MBConv.main_pool": pool, "MBConv.stride_at": "pool", "MBConv.shortcut_pool": pool}
    every |= {"Transformer.main_pool": pool, "Transformer.shortcut_pool": pool}
    changed: Spec = with_fields(spec, every | {name.replace("__", "."): value for name, value in changes.items()})
    return changed


@functools.cache
def specs() -> dict[str, Spec]:
    """Small specs that together have a place for every mistake, the cheapest first."""
    odd = coatref.spec("coatnet_0", image_size=(66, 70), **PAPER)
    convnext: dict[str, Any] = {
        "depths": (1, 1, 2, 1),
        "widths": (64, 64, 64, 128),
        "classes": 5,
        "image_size": (32, 64),
    }
    nextone = coatref.spec("timm/coatnext_nano_rw_224", **convnext)
    own = {
        "ConvStem__after_last": "norm_and_activation",
        "MBConv__shrink_norm": parts.BATCH_NORM,
        "MBConv__expand_bias": True,
        "MBConv__residual_from": "normalised",
        "MBConv__projection": "always",
        "SqueezeExcite__rounding": "make_divisible",
        "Transformer__norm_pool_order": "pool_then_norm",
        "Head__output": "probabilities",
        "Attention__scale": "1/sqrt(heads*d)",
        "RelativeBias__orientation": "key_minus_query",
        "FeedForward__expansion_from": "input",
    }
    layer = {"MBConv__pre_norm": parts.LAYER_NORM, "MBConv__inner_norm": parts.LAYER_NORM}
    batch = {"ConvNeXt.norm": parts.BATCH_NORM, "ConvNeXt.activation": "gelu_tanh"}
    floor = parts.Pool(padding="valid")
    linear = coatref.spec("coatnet_0/linear-attention", image_size=(66, 70), **PAPER)
    even = coatref.spec("coatnet_0", image_size=(66, 70), **(PAPER | {"widths": (8, 8, 16, 32, 64)}))
    return {
        "vit": coatref.spec("vit-rel", image_size=(32, 48), depths=(2,), widths=(64,), classes=5),
        "square": coatref.spec("coatnet_0", image_size=(64, 64), **PAPER),
        "odd": odd,
        "paper": coatref.spec("coatnet_0", image_size=(64, 96), **PAPER),
        "strided": coatref.spec("coatnet_0/strided-depthwise", image_size=(64, 96), **PAPER),
        "linear": linear,
        "linear without odd rows": with_fields(
            linear, {"Transformer.main_pool": floor, "Transformer.shortcut_pool": floor}
        ),
        "post": coatref.spec("coatnet_0/post-softmax", image_size=(64, 96), **PAPER),
        "mixed": coatref.spec(
            "coatnet_6", image_size=(32, 64), depths=(2, 1, 1, 2, 2, 1), widths=(6, 8, 16, 24, 128, 256), classes=5
        ),
        "max of 3x3": pooled(odd, MAX3, **layer),
        "mean of 3x3": pooled(odd, AVG3),
        "mean of 3x3 and zeros": pooled(even, dataclasses.replace(AVG3, padded_zeros="counted"), **own),
        "timm nano": coatref.spec("timm/coatnet_nano_rw_224", **TIMM),
        "timm 0": coatref.spec("timm/coatnet_0_224", **TIMM),
        "timm 0 rw": coatref.spec("timm/coatnet_0_rw_224", **TIMM),
        "timm bn": coatref.spec("timm/coatnet_bn_0_rw_224", **TIMM),
        "next": nextone,
        "next with batch norm": with_fields(nextone, batch),
        "timm nano mlp": coatref.spec("timm/coatnet_rmlp_nano_rw_224", **TIMM),
        "layer scale": coatref.spec("timm/coatnet_rmlp_2_rw_224", **(TIMM | {"widths": (64, 64, 64, 96)})),
    }


@functools.cache
def case(name: str) -> tuple[coatref.Params, np.ndarray, np.ndarray]:
    """Parameters and two images of a spec, none of which can be written to, and the definition's output."""
    spec = specs()[name]
    params = coatref.init(spec, 1, dtype="float64", scheme="distinct")
    x = np.random.default_rng(7).normal(0.0, 1.0, (2, *spec.image_size, spec.channels))
    for array in (x, *params.flatten().values()):
        array.flags.writeable = False
    return params, x, coatref.forward(params, x, backend="definition")


def always_reshapes(each: Mistake) -> bool:
    """Whether a mistake takes parameters of other shapes in every spec in which it can be made."""
    return all(changes_shapes(each, spec) for spec in specs().values() if applies(each, spec))


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, in units of the largest expected number."""
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def test_catalogue_is_large_and_unambiguous() -> None:
    assert len(NAMES) >= 110
    assert len(set(NAMES)) == len(NAMES)
    assert {each.primitive for each in mistakes()} == set(PRIMITIVES)
    sentences = [each.sentence for each in mistakes()]
    assert len(set(sentences)) == len(sentences), [s for s in sentences if sentences.count(s) > 1]
    for each in mistakes():
        assert each.sentence[0].islower() and not each.sentence.endswith("."), each
        assert "{}" not in each.sentence and each.source, each


def test_axes_name_mistakes() -> None:
    assert {name for named in AXES.values() for name in named} <= set(NAMES)


def test_definition_is_the_change_of_nothing() -> None:
    params, x, y = case("paper")
    assert np.array_equal(compute(Changed(params.spec), params, x), y)


def test_lookup_by_name() -> None:
    assert mistake("scale-by-width").fields == {"Attention.scale": "1/sqrt(heads*d)"}
    with pytest.raises(InputError, match="scale-by-width"):
        mistake("scale-by-widths")


@pytest.mark.parametrize("name", NAMES)
def test_mistake_changes_what_is_computed(name: str) -> None:
    """In the first three specs where it can be made without other shapes; else its weights must be refused."""
    each, seen, shown = mistake(name), 0, 0
    for place, spec in specs().items():
        if shown == 3 or not applies(each, spec):
            continue
        seen += 1
        params, x, y = case(place)
        before = x.tobytes()
        if changes_shapes(each, spec):
            with pytest.raises(WeightsError):
                compute(each.change(Changed(spec)), params, x)
            continue
        found = compute(each.change(Changed(spec)), params, x)
        assert found.shape == y.shape and np.isfinite(found).all()
        assert difference(found, y) > 1e-9, f"{name} changes nothing in {place!r}"
        assert x.tobytes() == before
        shown += 1
    assert seen, f"{name} can be made in none of the specs"


def test_mistakes_that_show_in_shapes_only() -> None:
    """In every spec here these take other parameters; all the others can be run somewhere."""
    assert {each.name for each in mistakes() if always_reshapes(each)} == {
        *("expansion-of-input", "expansion-of-output", "expansion-1", "expansion-6"),
        *("se-of-input", "se-of-output", "se-of-expanded", "se-ratio-1-16"),
        *("se-rounded-to-8", "se-rounded-down", "se-rounded-to-nearest"),
        *(
            "projection-always",
            "heads-fixed-8",
            "heads-from-input",
            "heads-from-output",
            "head-size-32",
            "head-size-64",
        ),
        *("bias-one-table", "ffn-of-input", "ffn-of-output", "ffn-expansion-1", "ffn-expansion-2"),
    }


@pytest.mark.parametrize("place", ["paper", "timm nano"])
def test_pairs_compose(place: str) -> None:
    spec = specs()[place]
    params, x, _ = case(place)
    constant = "head-norm-over-positions"  # the mean over positions of what it gives is beta, whatever came in
    usable = [m for m in mistakes() if m.name != constant and applies(m, spec) and not changes_shapes(m, spec)]
    pairs = random.Random(3).sample(list(itertools.combinations(usable, 2)), 60)
    composed, hidden = (
        0,
        list[tuple[str, str]](),
    )  # a few pairs hide one another: what a softmax over images leaves of a bias is nothing
    for first, second in pairs:
        try:
            changed = combined(first, second)(Changed(spec))
            found = compute(changed, params, x)
        except (NotApplicable, WeightsError):  # the first has taken away what the second would change
            continue
        composed += 1
        alone = [compute(each.change(Changed(spec)), params, x) for each in (first, second)]
        if first.primitive != second.primitive and min(difference(found, one) for one in alone) < 1e-12:
            hidden.append((first.name, second.name))
    assert composed >= 50
    assert len(hidden) <= 3, hidden


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("bias-xy-grid", "square"),  # right on square grids
        ("bias-missing", "linear"),
        ("attention-pool-zeros-counted", "paper"),  # 2x2 pools pad odd grids only
        ("depthwise-padding-symmetric", "paper"),  # no difference without a stride
        ("head-pool-then-norm", "timm bn"),  # BatchNorm and the mean can be swapped
        ("se-missing", "vit"),
        ("layer-scale-missing", "paper"),
        ("stem-norm-eps-1e-3", "paper"),  # the spec's own
    ],
)
def test_mistakes_that_would_change_nothing_are_refused(name: str, place: str) -> None:
    assert not applies(mistake(name), specs()[place])


def test_mistakes_of_one_block_leave_the_blocks_before_it_alone() -> None:
    params, x, _ = case("paper")
    right = coatref.trace(params, x)
    for name, block in (("last-scale-missing", "s4.1"), ("last-se-missing", "s2.0"), ("last-bias-missing", "s4.1")):
        found: dict[str, np.ndarray] = {}
        compute(mistake(name).change(Changed(params.spec)), params, x, recorder(found))
        first = next(n for n in right if n in found and not np.array_equal(found[n], right[n]))
        assert first.startswith(block), (name, first)


def test_marks_reach_one_site_only() -> None:
    params, x, _ = case("paper")
    right = coatref.trace(params, x)
    firsts = {"stem-norm": "s0.norm1", "pre-norm": "s1.0.pre_norm", "inner-norm": "s1.0.expand_norm",
              "attention-norm": "s3.0.attn_norm", "ffn-norm": "s3.0.ffn_norm", "head-norm": "head.norm"}  # fmt: skip
    for site, expected in firsts.items():
        found: dict[str, np.ndarray] = {}
        change = mistake(f"{site}-eps-outside-root").change
        compute(change(Changed(params.spec)), params, x, recorder(found))
        assert next(n for n in right if not np.array_equal(found[n], right[n])) == expected
    assert set(firsts) | {"convnext-norm"} == set(norms.SITES)


def test_effective_ignores_how_a_spec_is_written() -> None:
    for spec in specs().values():
        assert effective(split_runs(spec)) == effective(spec)


def test_mistakes_on_torch() -> None:
    """A sample that works on values, parameters and forms computes the same on another library."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    params, x, _ = case("square")
    other, image = params.to(xp=torch), torch.asarray(np.array(x))
    for each in random.Random(5).sample(mistakes(), 120):
        if applies(each, params.spec) and not changes_shapes(each, params.spec):
            changed = each.change(Changed(params.spec))
            found = np.asarray(compute(changed, other, image))
            assert difference(found, compute(changed, params, x)) < 1e-9, each.name
