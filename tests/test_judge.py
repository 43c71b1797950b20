"""The judge as a whole: right implementations pass, wrong ones fail with the reason, and a report says what it must."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coatref
from coatref import Params, Spec
from coatref.conformance import suite
from coatref.conformance.evaluate import Answer, comparisons
from coatref.conformance.judge import check
from coatref.conformance.looking import Known, other_sizes
from coatref.conformance.mistakes.catalogue import mistakes
from coatref.conformance.precision import Precision, declared
from coatref.conformance.random_search import search
from coatref.conformance.report.as_json import dumps, from_json
from coatref.conformance.report.results import Comparison, Report
from coatref.conformance.run_case import outputs, run_case, verdict_of
from coatref.conformance.selftest import planted
from coatref.conformance.target import Target
from coatref.conformance.telling import conforms_elsewhere, overall, reproduce
from coatref.conformance.variants import shrunk

FLOAT32 = Precision()
RIGHT = (
    "coatnet_0",
    "coatnet_0/linear-attention",
    "coatnet_0/windowed-attention",
    "coatnet_0/post-softmax",
    "vit-rel",
    "coatnet_6",
    "timm/coatnext_nano_rw_224",
    "timm/coatnet_rmlp_2_rw_224",
    "timm/coatnet_nano_cc_224",
    "kecam/CoAtNet0",
)
SLOW = (
    "coatnet_0/post-softmax",
    "timm/coatnet_rmlp_2_rw_224",
    "coatnet_0/windowed-attention",
    "timm/coatnet_nano_cc_224",
)
BY_NAME = {mistake.name: mistake for mistake in mistakes()}


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The level "quick" with few drawn configurations, and a diagnosis that no slow machine cuts short."""
    monkeypatch.setitem(suite.LEVELS, "quick", dataclasses.replace(suite.LEVELS["quick"], random=1, seconds=600.0))


def tiny(name: str = "coatnet_0") -> Spec:
    """A network of few blocks."""
    return shrunk(coatref.spec(name), 1, heads=1, classes=5)


def one_size(*names: str, spec: Spec | None = None, traced: bool = False) -> Target:
    """An implementation with mistakes that exists for one spec only."""
    made = planted([BY_NAME[name] for name in names], spec or tiny(), FLOAT32, traced)
    return dataclasses.replace(made, variant=None)


def right(params: Params, x: np.ndarray) -> Any:
    """A right implementation."""
    return coatref.forward(params, x)


def judged(run: Callable[[Params, np.ndarray], Any], spec: Spec | None = None) -> Report:
    """The report on a function that computes a tiny network; it survives being written as JSON."""
    report = check(run, spec=spec or tiny(), level="quick")
    assert from_json(json.loads(dumps(report))).summary == report.summary
    return report


# --- what is right passes ---


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.deep if n in SLOW else ()) for n in RIGHT])
def test_a_right_implementation_passes(name: str) -> None:
    report = check(one_size(spec=tiny(name)), level="quick")
    assert report.conforms and report.exit_code == 0, report.summary
    assert not report.findings and report.counterexample is None and report.conforms_to == ""
    assert {"as given", "wiring", "amplifier", "law"} <= {result.check for result in report.results}
    assert all(result.verdict == "pass" for result in report.results if result.check != "amplifier")
    assert any("exists for one spec only" in text for text in report.not_covered)


@pytest.mark.parametrize("name", ["vit-rel", "kecam/CoAtNet0"])
def test_a_right_implementation_that_shows_every_value_passes(name: str) -> None:
    report = check(one_size(spec=tiny(name), traced=True), level="quick")
    assert report.conforms, [c for r in report.results for c in r.comparisons if c.verdict == "fail"]
    given = next(result for result in report.results if result.check == "as given")
    values = [comparison.value for comparison in given.comparisons]
    assert len(values) > 20 and values[-1] == "logits" and "s1.0.attn.logits" in values or name != "vit-rel"


def test_other_sizes_and_drawn_configurations_are_looked_at() -> None:
    report = check(planted([], shrunk(coatref.spec("vit-rel")), FLOAT32), level="quick")
    assert report.conforms and report.not_covered == ()
    names = [result.case for result in report.results if result.check == "random"]
    assert any(name.startswith("picture of ") for name in names) and any(name.startswith("seed ") for name in names)
    assert len({result.image[1:] for result in report.results}) > 1


@pytest.mark.deep
@pytest.mark.parametrize("name", coatref.specs())
def test_a_right_implementation_of_every_spec_passes_traced_and_not(name: str) -> None:
    for traced in (False, True):
        report = check(planted([], shrunk(coatref.spec(name)), FLOAT32, traced), level="default")
        assert report.conforms and report.not_covered == (), report.summary


def test_wide_heads_still_make_a_small_network() -> None:
    for name in coatref.specs():
        assert suite.small_spec(coatref.spec(name)).num_parameters() <= suite.SMALL, name


# --- what cannot be compared fails ---


def nan_in_one_element(logits: np.ndarray) -> Any:
    """One NaN."""
    logits = logits.copy()
    logits[-1, -1] = np.nan
    return logits


BAD: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "NaN": (nan_in_one_element, "NaN"),
    "infinite": (lambda y: y * np.float32(np.inf), "NaN or infinite"),
    "transposed": (lambda y: y.T, "shape"),
    "too many axes": (lambda y: y[:, None, None, :], "shape"),
    "a scalar": (lambda y: y[0, 0], "shape"),
    "one class too few": (lambda y: y[:, :-1], "shape"),
    "whole numbers": (lambda y: np.rint(y).astype(np.int64), "data type int64"),
    "booleans": (lambda y: y > 0, "data type bool"),
    "too narrow": (lambda y: y.astype(np.float16), "narrower than the declared float32"),
    "complex": (lambda y: y.astype(np.complex64), "data type complex64"),
    "text": (lambda y: "logits", "no array but str"),
    "a list": (lambda y: y.tolist(), "no array but list"),
    "nothing": (lambda y: None, "no array but NoneType"),
    "another name": (lambda y: {"probabilities": y}, "no 'logits'"),
    "an empty mapping": (lambda y: {}, "gave: nothing"),
    "a surplus value": (lambda y: {"logits": y, "s9.9.norm": y}, "no value named s9.9.norm"),
    "a value of another shape": (lambda y: {"logits": y, "s1.0": y}, "shape"),
    "a value of another type": (lambda y: {"logits": y, "s1.0": y.astype(np.int32)}, "'s1.0' has the data type int32"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_compared_is_a_failure(what: str) -> None:
    spoil, words = BAD[what]
    report = judged(lambda params, x: spoil(right(params, x)), tiny("vit-rel"))
    assert report.verdict == "fail" and report.exit_code == 1
    given = next(result for result in report.results if result.check == "as given")
    assert given.verdict == "fail"
    told = [given.problem, *(comparison.reason for comparison in given.comparisons)]
    assert any(words in text for text in told), told
    assert report.findings and report.conforms_to == ""
    assert report.summary.startswith("python:") and "does not compute" in report.summary


def raising(error: BaseException) -> Callable[[Params, np.ndarray], Any]:
    """A candidate that raises."""

    def run(params: Params, x: np.ndarray) -> Any:
        raise error

    return run


@pytest.mark.parametrize(
    "error", [ValueError("no such grid"), SystemExit(0), RuntimeError("no such grid"), KeyError("w")]
)
def test_an_exception_is_a_failure_with_its_text(error: BaseException) -> None:
    report = judged(raising(error), tiny("vit-rel"))
    assert report.verdict == "fail" and {result.verdict for result in report.results} == {"fail"}
    assert all(f"it raised {type(error).__name__}: {error}" in result.problem for result in report.results)
    assert f"{type(error).__name__}: {error}" in report.findings[0].sentence


def test_an_exception_at_some_inputs_only_is_a_failure_and_no_other_spec_is_blamed() -> None:
    def run(params: Params, x: np.ndarray) -> Any:
        if x.shape[0] > 1:
            raise ValueError("one image at a time")
        return right(params, x)

    spec = tiny("vit-rel")
    report = judged(run, spec)
    assert report.verdict == "fail" and report.conforms_to == ""
    assert "one image at a time" in report.summary
    allowed = Target("one at a time", spec, lambda p, x: {"logits": run(p, x)}, any_batch=False)
    assert check(allowed, level="quick").conforms


def test_nan_at_one_image_of_a_batch_fails() -> None:
    def run(params: Params, x: np.ndarray) -> Any:
        logits = right(params, x)
        return np.concatenate([logits[:1], logits[1:] * np.nan]) if x.shape[0] > 1 else logits

    report = judged(run, tiny("vit-rel"))
    assert report.verdict == "fail" and "NaN" in report.summary


def test_a_candidate_that_is_not_deterministic_fails() -> None:
    calls = iter(range(10**6))

    def run(params: Params, x: np.ndarray) -> dict[str, Any]:
        return {"logits": right(params, x) * np.float32(1 + 1e-3 * (next(calls) % 2))}

    def variant(spec: Spec) -> Target:
        return Target("random", spec, run, variant=variant)

    assert (
        check(variant(shrunk(coatref.spec("vit-rel"))), level="quick").verdict == "fail"
    )  # and no error of Hypothesis


def test_a_candidate_that_answers_otherwise_the_second_time_breaks_a_law() -> None:
    asked: set[bytes] = set()

    def run(params: Params, x: np.ndarray) -> Any:
        key = x.tobytes() + b"".join(array.tobytes() for array in params.flatten().values())
        again = key in asked
        asked.add(key)
        return right(params, x) * np.float32(1.01 if again else 1.0)

    report = judged(run, tiny("vit-rel"))
    assert report.verdict == "fail"
    assert [result.case for result in report.results if result.verdict == "fail" and result.check == "law"] == [
        "law: repetition"
    ]


def test_a_drawn_configuration_that_fails_only_once_is_kept_and_raises_nothing() -> None:
    target = one_size(spec=tiny("vit-rel"))
    good = run_case(target, suite.as_given(target.spec, None, 0, 1, FLOAT32), 4, 0)
    bad = dataclasses.replace(good, result=dataclasses.replace(good.result, verdict="fail"))
    calls = iter(range(10**6))
    found = search(target.spec, 3, 0, True, lambda drawn: good if next(calls) else bad)
    assert bad in found


def test_a_candidate_cannot_change_what_it_is_judged_by() -> None:
    def run(params: Params, x: np.ndarray) -> Any:
        x = x.copy()
        logits = right(params, x)
        for array in params.flatten().values():
            array[...] = 0
        return logits

    assert judged(run, tiny("vit-rel")).conforms


def test_nothing_compared_is_no_pass() -> None:
    assert overall([]) == "cannot judge" and verdict_of(()) == "cannot judge"
    unclear, passed, failed = (Comparison("logits", verdict) for verdict in ("cannot judge", "pass", "fail"))
    assert verdict_of((unclear,)) == "cannot judge" and verdict_of((unclear, passed)) == "pass"
    assert verdict_of((unclear, passed, failed)) == "fail"


def test_errors_of_one_primitive_may_lean_to_one_side() -> None:
    random = np.random.default_rng(0)
    expected = random.normal(size=(40, 50))
    deviations = [random.normal(size=expected.shape) * 1e-7 for _ in range(16)]
    found = expected + 0.5e-7
    for names, verdict in ((["logits"], "fail"), (["s1.0.attn.q", "logits"], "pass")):
        known = Answer(dict.fromkeys(names, expected), dict.fromkeys(names, deviations))
        compared = comparisons(dict.fromkeys(names, found), known, FLOAT32)
        assert {each.verdict for each in compared} == {verdict}


# --- candidates that can only be looked at from one side ---


def test_weights_baked_in_are_judged_as_given_and_the_rest_is_said_to_be_missing() -> None:
    spec = tiny("vit-rel")
    own = coatref.init(spec, 5, dtype="float32", scheme="distinct")
    wrong = own.replace({"head.classifier.b": own["head"]["classifier"]["b"] + np.float32(1e-3)})
    for weights, verdict in ((own, "pass"), (wrong, "fail")):

        def run(params: Params, x: np.ndarray, weights: Params = weights) -> dict[str, Any]:
            return {"logits": right(weights, x)}

        report = check(Target("baked", spec, run, params=own, takes_params=False), level="quick")
        assert report.verdict == verdict and len(report.results) == 1 or verdict == "fail"
        assert report.not_covered and "its own weights" in report.not_covered[0]
        assert not report.excludes or "known mistakes" not in report.excludes[0]


def test_a_variant_that_refuses_some_sizes_is_told() -> None:
    spec = shrunk(coatref.spec("vit-rel"))

    def variant(other: Spec) -> Target:
        if other.image_size != spec.image_size:
            raise coatref.SizeError("it takes one size of picture.")
        return dataclasses.replace(planted([], other, FLOAT32), variant=variant)

    report = check(variant(spec), level="quick")
    assert report.conforms
    found, refused = other_sizes(variant(spec))
    assert found == [] and refused and all(text in report.not_covered for text in refused)
    assert any("it takes one size of picture" in text for text in report.not_covered)


def test_a_candidate_that_is_not_adaptive_is_given_only_the_fixed_cases() -> None:
    report = check(dataclasses.replace(one_size(spec=tiny("vit-rel")), adaptive=False), level="quick")
    assert report.conforms and {"law"}.isdisjoint(result.check for result in report.results)
    assert any("Drawn configurations and laws" in text for text in report.not_covered)


# --- what a failure says ---


def test_other_shapes_give_a_finding_with_the_tensors_and_the_mistake() -> None:
    report = check(one_size("output-bias-missing", spec=tiny("vit-rel")), level="quick")
    assert report.verdict == "fail"
    first = report.findings[0]
    assert first.mistake == "output-bias-missing" and first.primitive == "attention output"
    assert (
        first.tensors == ("s1.0.attn.o.b",)
        and "takes parameters of other shapes: s1.0.attn.o.b is missing" in first.sentence
    )


def test_other_shapes_that_no_known_mistake_has_are_told_all_the_same() -> None:
    target = one_size(spec=tiny("vit-rel"))
    assert target.expects is not None
    expects = {**target.expects, "s9.extra": (3,), "head.classifier.b": (4,)}
    report = check(dataclasses.replace(target, expects=expects, run=raising(ValueError("3"))), level="quick")
    first = report.findings[0]
    assert first.mistake == "" and set(first.tensors) == {"s9.extra", "head.classifier.b"}
    assert "head.classifier.b is (4,) and should be (5,)" in first.sentence and "s9.extra is surplus" in first.sentence


def test_a_candidate_that_computes_another_spec_is_told_which() -> None:
    spec = tiny()
    other = tiny("coatnet_0/strided-depthwise")

    def run(params: Params, x: np.ndarray) -> Any:
        return right(coatref.params.from_flat(other, params.flatten()), x)

    report = judged(run, spec)
    assert report.conforms_to == "coatnet_0/strided-depthwise" and report.verdict == "fail"
    assert "It conforms to coatnet_0/strided-depthwise" in report.summary


def test_no_other_spec_explains_a_candidate_that_raises_at_some_cases() -> None:
    target = one_size()
    other = tiny("coatnet_0/strided-depthwise")

    def run(params: Params, x: np.ndarray) -> dict[str, Any]:
        return {"logits": right(coatref.params.from_flat(other, params.flatten()), x)}

    target = dataclasses.replace(target, run=run)
    wrong = run_case(target, suite.as_given(target.spec, None, 0, 1, FLOAT32), 4, 0)
    raised = dataclasses.replace(wrong, answer=None)
    assert conforms_elsewhere(target, [wrong], 0, math.inf, Known()) == other.name
    assert conforms_elsewhere(target, [wrong, raised], 0, math.inf, Known()) == ""


def test_a_planted_mistake_in_the_output_is_also_in_what_is_traced() -> None:
    spec = tiny("vit-rel")
    case = suite.as_given(spec, None, 0, 1, FLOAT32)
    for name in ("output-probabilities", "bias-key-minus-query"):
        plain, traced = (outputs(one_size(name, spec=spec, traced=each), case) for each in (False, True))
        assert np.array_equal(plain["logits"], traced["logits"]) and len(traced) > 20 > len(plain)


def test_two_independent_faults_of_a_traced_candidate_show_in_one_run() -> None:
    names = ("attention-norm-eps-1e-3", "bias-key-minus-query")
    report = check(one_size(*names, spec=tiny("vit-rel"), traced=True), level="quick")
    found = {finding.primitive for finding in report.findings}
    assert {BY_NAME[name].primitive for name in names} <= found, report.summary
    given = next(result for result in report.results if result.check == "as given")
    failing = [comparison.value for comparison in given.comparisons if comparison.verdict == "fail"]
    assert {"s1.0.attn_norm", "s1.0.attn.bias"} <= set(failing)
    assert next(c for c in given.comparisons if c.value == "logits").verdict == "pass"  # on the candidate's own values


def test_the_counterexample_runs_as_written(tmp_path: Path) -> None:
    (tmp_path / "candidate.py").write_text(
        "import coatref\nimport numpy as np\n\n\ndef run(params, x):\n"
        "    return coatref.forward(params, x) * np.float32(1.001)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        report = check("python:candidate:run", spec=tiny("vit-rel"), level="quick")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("candidate", None)
    assert report.verdict == "fail" and report.counterexample is not None
    (tmp_path / "show.py").write_text(report.counterexample.script)
    shown = subprocess.run([sys.executable, "show.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("fail"), shown.stdout


@pytest.mark.parametrize("wanted", ["picture of", "all branches", "as given", "seed "])
def test_the_counterexample_makes_the_case_itself_again(wanted: str) -> None:
    from coatref.conformance.counterexample import counterexample
    from coatref.conformance.looking import look

    target = planted([], shrunk(coatref.spec("vit-rel")), FLOAT32)
    target = dataclasses.replace(target, variant=None) if wanted == "all branches" else target
    level = dataclasses.replace(suite.LEVELS["quick"], large=None)
    outcomes, _ = look(target, level, 3, None, Known())
    outcome = [each for each in outcomes if each.case.name.startswith(wanted)][-1]
    failed = dataclasses.replace(outcome, result=dataclasses.replace(outcome.result, verdict="fail"))
    made = counterexample(target, [failed], 3)
    assert made is not None
    line = next(line for line in made.script.splitlines() if line.startswith("case = "))
    names = {"suite": suite, "spec": outcome.case.spec, "target": target}
    exec(line, names)  # noqa: S102 - it is our own
    case: Any = names["case"]
    assert np.array_equal(case.x, outcome.case.x)
    theirs, ours = case.params.flatten(), outcome.case.params.flatten()
    assert theirs.keys() == ours.keys() and all(np.array_equal(theirs[name], ours[name]) for name in ours)


def test_reproduce_says_each_argument_once() -> None:
    target = one_size()
    plain = reproduce(target, "quick", 4)
    assert plain == "coatref check planted --spec coatnet_0 --dtype float32 --level quick --seed 4"
    said = dataclasses.replace(target, command="timm:x --spec coatnet_0 --dtype float32")
    assert reproduce(said, "quick", 4) == "coatref check timm:x --spec coatnet_0 --dtype float32 --level quick --seed 4"
    half = dataclasses.replace(target, precision=declared("bfloat16"))
    assert "--dtype bfloat16 --accumulate float32" in reproduce(half, "quick", 4)


def test_equal_arguments_give_an_equal_report() -> None:
    one, two = (check(one_size(spec=tiny("vit-rel")), level="quick", seed=2) for _ in range(2))
    assert timeless(one) == timeless(two)
    name = next(m.name for m in mistakes() if m.primitive == "ffn activation")
    three, four = (check(one_size(name, spec=tiny("vit-rel")), level="quick", seed=2) for _ in range(2))
    assert three.verdict == "fail" and timeless(three) == timeless(four)


def timeless(report: Report) -> Report:
    """A report without the seconds it took."""
    results = tuple(dataclasses.replace(result, seconds=0.0) for result in report.results)
    return dataclasses.replace(report, results=results, seconds=0.0)


def test_progress_is_called_before_every_case() -> None:
    seen: list[tuple[int, int, str]] = []
    report = check(one_size(spec=tiny("vit-rel")), level="quick", progress=lambda *args: seen.append(args))
    assert seen[0][2] == "as given" and "laws" in {what for _, _, what in seen}
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert all(0 <= done <= total for done, total, _ in seen)
    assert len(seen) >= len([result for result in report.results if result.check != "law"])


def test_a_summary_names_the_claim_and_the_largest_margin() -> None:
    report = check(one_size(spec=tiny("vit-rel")), level="quick")
    margins = [result.margin for result in report.results if result.margin is not None]
    assert report.summary.startswith("planted computes vit-rel in float32") and f"{max(margins):.2g}" in report.summary
    assert report.excludes and report.versions["coatref"] == coatref.__version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"level": "thorough"}, "levels"),
        ({"dtype": "float8"}, "float8"),
        ({"spec": None}, "spec"),
    ],
)
def test_unusable_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(coatref.CoatrefError, match=words):
        check(right, **{"spec": tiny("vit-rel"), "level": "quick", **arguments})
    with pytest.raises(coatref.CoatrefError, match="function"):
        check(3, spec="vit-rel")  # type: ignore[arg-type]
