"""The judge of single primitives: right forms pass, every known mistake is found and named."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coatref.blocks import mbconv, transformer
from coatref.conformance.form_mistakes.form_mistake import FormMistake
from coatref.conformance.form_mistakes.known import PRIMITIVE_MISTAKES, form_mistakes
from coatref.conformance.primitive_cases import AXES, drawn, wiring
from coatref.conformance.primitive_judge import check_primitive
from coatref.conformance.targets.op import ARGUMENTS, candidate, judge, make
from coatref.errors import InputError
from coatref.primitives import DEFINITION, Primitives

Array = Any
Form = Callable[..., Array]
BLOCKS: dict[str, Form] = {"mbconv": mbconv, "transformer": transformer}


def mistaken(name: str, mistake: FormMistake | None, dtype: str = "float32") -> Form:
    """The definition with a mistake, or as it is, computing in NumPy and answering in `dtype`."""
    if name in BLOCKS:

        def block(p: Any, x: Array, block: Any) -> Array:
            form: Form = lambda p, x, block, *, change: BLOCKS[name](p, x, block, ops=change(DEFINITION))
            form = mistake.wrap(form) if mistake else form
            return np.asarray(form(p, x, block, change=lambda forms: forms)).astype(dtype)

        return block
    form = mistake.wrap(getattr(DEFINITION, name)) if mistake else getattr(DEFINITION, name)

    def run(*args: Any, **options: Any) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(form(*args, **options)).astype(dtype)

    return run


def mistake_of(primitive: str, name: str) -> FormMistake:
    return next(mistake for mistake in form_mistakes(primitive) if mistake.name == name)


def test_there_are_cases_and_mistakes_of_every_primitive() -> None:
    names = {field.name for field in dataclasses.fields(Primitives)}
    assert set(PRIMITIVE_MISTAKES) == names and set(AXES) == names | set(BLOCKS) == set(ARGUMENTS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", AXES)
def test_the_definition_conforms(name: str, dtype: str) -> None:
    report = check_primitive(name, mistaken(name, None, dtype), dtype=dtype, level="quick")
    assert report.conforms, [finding.sentence for finding in report.findings]
    assert report.exit_code == 0 and not report.findings and report.counterexample is None


@pytest.mark.parametrize("name", ["relative_attention", "dense", "layer_norm"])
def test_half_types_accumulated_wider_conform(name: str) -> None:
    def wide(*args: Any, **options: Any) -> Array:
        wider = [a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype != bool else a for a in args]
        return getattr(DEFINITION, name)(*wider, **options).astype(np.float16)

    assert check_primitive(name, wide, dtype="float16", level="quick").conforms


# some of each primitive; `test_every_mistake_is_named` has the rest
@pytest.mark.parametrize(
    ("primitive", "mistake"),
    [
        ("conv2d", "padding-at-beginning"),
        ("depthwise_conv2d", "kernel-transposed"),
        ("depthwise_conv2d", "stride-phase"),
        ("max_pool", "padding-zeros"),
        ("avg_pool", "padding-counted"),
        ("batch_norm", "epsilon-outside-root"),
        ("layer_norm", "epsilon-1e-06"),
        ("layer_norm", "variance-unbiased"),
        ("activation", "gelu_tanh-for-gelu"),
        ("softmax", "over-queries"),
        ("squeeze_excite", "activation-relu"),
        ("gather_bias", "key-minus-query"),
        ("gather_bias", "offsets-swapped"),
        ("relative_attention", "scale-missing"),
        ("relative_attention", "bias-first-head"),
        ("relative_attention", "mask-missing"),
        ("relative_attention", "softmax-over-queries"),
        ("linear_attention", "sum-missing"),
        ("mbconv", "depthwise_conv2d: kernel-flipped"),
        ("transformer", "attention.scale=1/sqrt(heads*d)"),
    ],
)
def test_a_mistake_is_named(primitive: str, mistake: str) -> None:
    report = check_primitive(primitive, mistaken(primitive, mistake_of(primitive, mistake)), level="quick")
    assert report.verdict == "fail" and report.counterexample is not None
    assert [finding.mistake for finding in report.findings if finding.mistake] == [mistake]
    assert all(finding.cases for finding in report.findings)


@pytest.mark.deep
@pytest.mark.parametrize("primitive", PRIMITIVE_MISTAKES)
def test_every_mistake_is_named(primitive: str) -> None:
    for mistake in form_mistakes(primitive):
        report = check_primitive(primitive, mistaken(primitive, mistake), level="quick")
        assert [finding.mistake for finding in report.findings if finding.mistake] == [mistake.name]


def test_two_mistakes_at_once_are_both_named() -> None:
    two = [mistake_of("depthwise_conv2d", name) for name in ("bias-missing", "kernel-flipped")]
    both = dataclasses.replace(two[0], wrap=lambda form: two[0].wrap(two[1].wrap(form)))
    report = check_primitive("depthwise_conv2d", mistaken("depthwise_conv2d", both), level="quick")
    [finding] = report.findings
    assert set(finding.mistake.split(" + ")) == {"bias-missing", "kernel-flipped"}


def test_an_unknown_mistake_gives_the_smallest_counterexample() -> None:
    def odd(x: Array, w: Array, b: Array | None = None) -> Array:
        y = DEFINITION.dense(x, w, b)
        return y * np.float32(1.001) if w.shape[1] == 7 and x.shape[-1] > 2 else y

    report = check_primitive("dense", odd)
    [finding] = report.findings
    assert (
        finding.mistake == ""
        and "No known mistake" in finding.sentence
        and "smallest counterexample" in finding.sentence
    )
    assert report.counterexample is not None
    assert "w (3, 7)" in report.counterexample.sentence and "should be" in report.counterexample.sentence


def test_what_is_only_near_a_known_mistake_is_not_named_so() -> None:
    def odd(x: Array, kind: str) -> Array:
        return DEFINITION.activation(x, "gelu_tanh" if kind == "gelu" else kind) * np.float32(1 + 1e-5)

    [finding] = check_primitive("activation", odd, level="quick").findings
    assert finding.mistake == ""


def raising(x: Array) -> Array:
    raise RuntimeError("no kernel for this size")


def in_place(x: Array) -> Array:
    y = DEFINITION.softmax(x)
    x[...] = 0
    return y


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (raising, "it raised RuntimeError: no kernel for this size"),
        (lambda x: DEFINITION.softmax(x)[..., None], "No known mistake"),
        (lambda x: DEFINITION.softmax(x).astype(np.float64), "it gave float64, and float32 was expected"),
        (lambda x: DEFINITION.softmax(x) * np.float32(np.nan), "values that are not finite"),
        (lambda x: None, "it gave NoneType, which is no array"),
        (in_place, "it wrote into its argument x"),
    ],
)
def test_what_is_no_right_value_is_a_failure(function: Form, sentence: str) -> None:
    report = check_primitive("softmax", function, level="quick")
    assert report.verdict == "fail" and all(result.verdict == "fail" for result in report.results)
    assert sentence in report.findings[0].sentence


def overflowing(x: Array) -> Array:
    with np.errstate(all="ignore"):
        exponentials = np.exp(x)
        return exponentials / np.sum(exponentials, axis=-1, keepdims=True)


def test_a_softmax_that_overflows_is_told() -> None:
    report = check_primitive("softmax", overflowing, level="quick")
    [finding] = report.findings
    assert "the exponential of a large number overflows" in finding.sentence
    assert finding.cases == ("amplifier: large",)


def test_options_that_a_kernel_lacks_can_be_left_out() -> None:
    def unstrided(x: Array, w: Array, b: Array | None = None, *, stride: int, padding: str) -> Array:
        if stride != 1:
            raise NotImplementedError
        return DEFINITION.depthwise_conv2d(x, w, b, padding=padding)

    assert not check_primitive("depthwise_conv2d", unstrided, level="quick").conforms
    report = check_primitive("depthwise_conv2d", unstrided, level="quick", only={"stride": 1})
    assert report.conforms and "stride = 1" in report.not_covered[0]


def test_the_same_seed_judges_the_same_cases() -> None:
    first, second, other = (check_primitive("dense", DEFINITION.dense, level="quick", seed=seed) for seed in (3, 3, 4))
    assert [result.case for result in first.results] == [result.case for result in second.results]
    assert [result.case for result in first.results] != [result.case for result in other.results]


def test_a_recipe_makes_the_same_call_again() -> None:
    for call in (*wiring("conv2d"), drawn("mbconv", {"n": 2}, 3)):
        again = eval(call.recipe, {"drawn": drawn})
        for name, array in call.arrays().items():
            np.testing.assert_array_equal(again.arrays()[name], array)


def test_functions_are_found_by_their_place() -> None:
    report = judge("op:relative_bias=coatref.attention:gather_bias", level="quick")
    assert report.conforms and report.spec == "gather_bias" and "relative_bias=coatref.attention" in report.reproduce


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("op:dense", "does not name a primitive and what computes it"),
        ("op:nothing=a:b", "There is no primitive 'nothing'"),
        ("op:dense=coatref.ops:nothing", "names no function that can be imported"),
        ("op:dense=coatref.ops:ACTIVATIONS", "names no function"),
        ('op:dense=cmd:"./mine {input}"', "lacks {output}"),
    ],
)
def test_texts_that_name_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge(text)


def test_wrong_usage_is_refused() -> None:
    with pytest.raises(InputError, match="level must be one of quick, default, deep"):
        check_primitive("dense", DEFINITION.dense, level="long")
    with pytest.raises(InputError, match="takes a function, got int"):
        check_primitive("dense", 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not a network"):
        make("dense=coatref.ops:dense")


PROGRAM = """
import json, sys
import numpy as np
from coatref.conformance.tensor_files import read_tensors, stored_types, write_tensors
from coatref.primitives import DEFINITION

tensors, options = read_tensors(sys.argv[1])
assert options.pop("op") == "relative_attention"
assert set(stored_types(sys.argv[1]).values()) <= {"BF16", "BOOL"}
options = {key: json.loads(value) for key, value in options.items()}
y = DEFINITION.relative_attention(**tensors, **options)
write_tensors(sys.argv[2], {"y": y}, "bfloat16")
"""


def test_a_program_is_judged_in_real_bfloat16(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = f"{sys.executable} {tmp_path / 'program.py'} {{input}} {{output}}"
    function = candidate(f"op:relative_attention=cmd:{command}", storage="bfloat16")
    call = drawn("relative_attention", {"mask": "images", "n": 2}, 1).stored("bfloat16")
    y = function(*call.args.values(), **call.options)
    exact = call.widened()
    right = DEFINITION.relative_attention(*exact.args.values(), **exact.options)
    np.testing.assert_allclose(y, right, rtol=2**-7, atol=2**-8)
