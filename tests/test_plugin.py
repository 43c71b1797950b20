"""The judge in pytest: the plugin's options, and tests made by `coatref.conformance.parametrize`."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import fake_judge
import pytest
from fake_judge import report

import coatref
from coatref.conformance import parametrize
from coatref.conformance.report import as_json
from coatref.conformance.report.results import Finding, Report
from coatref.errors import InputError

pytest_plugins = "pytester"

# A run within this process forgets what it was the first to import, and NumPy's modules cannot be imported twice; so all
# that such runs may need is imported here.
for name in ("given", "judge", "judging", "report.html", "report.save", "report.text"):
    import_module(f"coatref.conformance.{name}")
for name in (
    "array_api_compat.numpy",
    "coatref.backends.numpy",
    "safetensors.numpy",
    "coatref.cli.output",
    "rich.console",
    "rich.padding",
    "rich.table",
    "scipy.special",
):
    import_module(name)

PLUGIN = ("-p", "coatref.conformance.plugin")
KINDS = ["wiring", "amplifier", "random", "law", "as-given", "probe"]  # the last two have no case in these reports

Calls = list[dict[str, Any]]
Install = Callable[[Callable[[Any], Report]], Calls]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a judge in the place of coatref's."""
    return lambda answer: fake_judge.install(monkeypatch, answer)


@pytest.fixture(autouse=True)
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty project whose processes find the coatref under test."""
    found = [str(Path(coatref.__file__).parent.parent), str(Path(fake_judge.__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\naddopts = ['--strict-markers', '-p', 'no:cacheprovider']\n")


def lines(result: pytest.RunResult) -> str:
    return "\n".join(result.outlines)


# --- the plugin ---


def test_a_target_gives_a_test_for_each_kind_of_check(pytester: pytest.Pytester, judge: Install) -> None:
    calls = judge(report)
    result = pytester.runpytest(*PLUGIN, "-v", "--coatref-target", "fake:net")
    assert result.ret == 0, lines(result)
    result.assert_outcomes(passed=4, skipped=2)
    result.stdout.fnmatch_lines(["*collected 6 items", *(f"coatref::fake:net::{kind} *" for kind in KINDS)])
    result.stdout.fnmatch_lines(["*= coatref =*", "CONFORMS  fake:net was looked at: pass."])
    assert [call["target"] for call in calls] == ["fake:net"], "judged once, not for every kind"


def test_collecting_judges_nothing(pytester: pytest.Pytester, judge: Install) -> None:
    calls = judge(report)
    result = pytester.runpytest(*PLUGIN, "--collect-only", "-q", "--coatref-target", "fake:net")
    assert [line for line in result.outlines if "::" in line] == [f"coatref::fake:net::{kind}" for kind in KINDS]
    assert calls == []


def test_a_failing_kind_fails_with_the_report_on_it(pytester: pytest.Pytester, judge: Install) -> None:
    finding = Finding(
        "ffn activation", ("s3.0",), "uses the tanh form of GELU", "tanh-gelu", cases=("amplifier: gelu",)
    )
    other = Finding("softmax", (), "sums over the wrong axis", "other", cases=("law: batch",))
    judge(lambda target: report(target, {"amplifier: gelu": "fail"}, (finding, other)))
    result = pytester.runpytest(*PLUGIN, "--coatref-target", "fake:net")
    result.assert_outcomes(passed=3, failed=1, skipped=2)
    text = lines(result)
    for wanted in (
        "the reason of amplifier: gelu",
        "uses the tanh form of GELU",
        "coatref check fake:net",
        "FAILED coatref::fake:net::amplifier",
    ):
        assert wanted in text
    assert "sums over the wrong axis" not in text, "a finding of another kind of check"
    assert "Traceback" not in text and "an epsilon of 1e-3" not in text
    assert "FAILS  fake:net was looked at: fail." in result.outlines


def test_what_cannot_be_judged_fails(pytester: pytest.Pytester, judge: Install) -> None:
    judge(lambda target: report(target, {"random 0": "cannot judge"}))
    result = pytester.runpytest(*PLUGIN, "--coatref-target", "fake:net")
    result.assert_outcomes(passed=3, failed=1, skipped=2)
    assert "the reason of random 0" in lines(result)


def test_what_cannot_be_judged_is_skipped_where_the_rest_is_judged(pytester: pytest.Pytester, judge: Install) -> None:
    judge(lambda target: report(target, {"random 0": "cannot judge", "law: batch": "fail"}))
    result = pytester.runpytest(*PLUGIN, "-rs", "--coatref-target", "fake:net")
    result.assert_outcomes(passed=2, failed=1, skipped=3)
    assert "the reason of random 0" in lines(result)


def test_a_verdict_that_no_case_explains_fails_every_kind(pytester: pytest.Pytester, judge: Install) -> None:
    import dataclasses

    judge(lambda target: dataclasses.replace(report(target), verdict="fail", summary="all of it is off"))
    result = pytester.runpytest(*PLUGIN, "--coatref-target", "fake:net")
    result.assert_outcomes(failed=6)
    assert "all of it is off" in lines(result)


def test_an_error_of_the_judge_fails_every_kind_and_comes_once(pytester: pytest.Pytester, judge: Install) -> None:
    def refuse(target: Any) -> Report:
        raise InputError("There is no such target.")

    calls = judge(refuse)
    result = pytester.runpytest(*PLUGIN, "--coatref-target", "fake:net")
    result.assert_outcomes(failed=6)
    assert "CANNOT BE JUDGED  fake:net: There is no such target." in result.outlines
    assert len(calls) == 1


def test_options_reach_the_judge(pytester: pytest.Pytester, judge: Install) -> None:
    calls = judge(report)
    given = ("--coatref-dtype=float16", "--coatref-level=quick", "--coatref-seed=7", "--coatref-spec=coatnet_1")
    pytester.runpytest(*PLUGIN, "--coatref-target=a", "--coatref-target=b", *given, "--coatref-accumulate=float16")
    assert [call["target"] for call in calls] == ["a", "b"]
    for call in calls:
        assert (call["dtype"], call["accumulate"], call["level"], call["seed"]) == ("float16", "float16", "quick", 7)
        assert call["spec"] == coatref.spec("coatnet_1") and call["weights"] is None


def test_weights_and_a_spec_file_reach_the_judge(pytester: pytest.Pytester, judge: Install) -> None:
    spec = coatref.spec("coatnet_0", image_size=(64, 96), classes=7, depths=(1, 1, 1, 1, 1), widths=(8, 8, 16, 32, 64))
    params = coatref.init(spec)
    coatref.save(params, pytester.path / "w.safetensors")
    (pytester.path / "spec.json").write_text(spec.to_json())
    calls = judge(report)
    result = pytester.runpytest(
        *PLUGIN, "--coatref-target=a", "--coatref-weights=w.safetensors", "--coatref-spec=spec.json"
    )
    assert result.ret == 0
    assert calls[0]["spec"] == spec
    assert (calls[0]["weights"]["head"]["classifier"]["w"] == params["head"]["classifier"]["w"]).all()


def test_the_configuration_gives_the_same_options(pytester: pytest.Pytester, judge: Install) -> None:
    calls = judge(report)
    pytester.makepyprojecttoml(
        "[tool.pytest.ini_options]\ncoatref_targets = ['a', 'b']\ncoatref_level = 'quick'\ncoatref_seed = '5'\n"
    )
    pytester.runpytest(*PLUGIN, "--coatref-seed=6")
    assert [(call["target"], call["level"], call["seed"]) for call in calls] == [("a", "quick", 6), ("b", "quick", 6)]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--coatref-seed=-1", "whole number from 0"),
        ("--coatref-weights=absent.safetensors", "There is no file"),
    ],
)
def test_wrong_options_fail_and_say_why(pytester: pytest.Pytester, judge: Install, option: str, told: str) -> None:
    calls = judge(report)
    result = pytester.runpytest(*PLUGIN, "--coatref-target=a", option)
    result.assert_outcomes(failed=6)
    assert told in " ".join(result.outlines) and calls == []


def test_tests_are_chosen_by_marker_and_by_name(pytester: pytest.Pytester, judge: Install) -> None:
    calls = judge(report)
    pytester.makepyfile("def test_other(): pass")
    chosen = pytester.runpytest(*PLUGIN, "--coatref-target=a", "-m", "coatref", "-k", "wiring or other")
    chosen.assert_outcomes(passed=1, deselected=6)
    calls.clear()
    pytester.runpytest(*PLUGIN, "--coatref-target=a", "-m", "not coatref").assert_outcomes(passed=1, deselected=6)
    assert calls == []


def test_reports_are_written(pytester: pytest.Pytester, judge: Install) -> None:
    judge(report)
    pytester.runpytest(*PLUGIN, "--coatref-target=a", "--coatref-json=r.json", "--coatref-html=r.html")
    written = as_json.from_json(json.loads((pytester.path / "r.json").read_text()))
    repeat = "coatref check a --dtype float32 --level default --seed 0"
    assert written == dataclasses.replace(report("a"), reproduce=repeat)
    assert (pytester.path / "r.html").read_text().startswith("<!")
    pytester.runpytest(*PLUGIN, "--coatref-target=a", "--coatref-target=b", "--coatref-json=s.json")
    for number, target in enumerate("ab", start=1):
        assert json.loads((pytester.path / f"s-{number}.json").read_text())["target"] == target
    assert not (pytester.path / "s.json").exists()


def test_without_targets_nothing_is_added(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_other(): pass")
    result = pytester.runpytest(*PLUGIN)
    result.assert_outcomes(passed=1)
    assert "= coatref =" not in lines(result) and "coatref::" not in lines(result)


def test_the_fixture_checks_with_the_options_of_the_run(pytester: pytest.Pytester, judge: Install) -> None:
    calls = judge(report)
    pytester.makepyfile("def test_mine(coatref_check): assert coatref_check('mine', dtype='float64').conforms")
    pytester.runpytest(*PLUGIN, "--coatref-level=quick", "--coatref-seed=3").assert_outcomes(passed=1)
    assert [(call["target"], call["level"], call["seed"], call["dtype"]) for call in calls] == [
        ("mine", "quick", 3, "float64")
    ]


def test_verdicts_come_from_other_processes(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist", reason="needs pytest-xdist, which is not installed")
    pytester.makeconftest("import fake_judge, pytest\nfake_judge.install(pytest.MonkeyPatch(), fake_judge.report)\n")
    result = pytester.runpytest_subprocess(
        *PLUGIN, "-p", "xdist", "-n", "2", "--dist", "loadgroup", "--coatref-target=a", "--coatref-target=b"
    )
    result.assert_outcomes(passed=8, skipped=4)
    assert {f"CONFORMS  {target} was looked at: pass." for target in "ab"} <= set(result.outlines)


def test_the_plugin_is_light_and_imports_nothing_of_the_judge() -> None:
    code = "import sys, coatref.conformance.plugin; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"PIL", "click", "hypothesis", "jax", "onnx", "rich", "safetensors", "scipy", "timm", "torch", "typer"}
    assert {name.partition(".")[0] for name in run.stdout.split()} & heavy == set()
    assert "coatref.conformance.judge" not in run.stdout.split()


# --- parametrize ---


HEADER = "import coatref, coatref.conformance\nfrom coatref.conformance import parametrize\nseen = []\n"


def test_parametrize_gives_a_test_for_each_kind(pytester: pytest.Pytester, judge: Install) -> None:
    calls = judge(report)
    pytester.makepyfile(
        HEADER
        + """
@parametrize("fake:net", level="quick", seed=4, dtype="float16")
def test_net(case_result, tmp_path):
    assert case_result.status == "pass" and case_result.report.conforms and tmp_path.is_dir()
    assert case_result.cases and {case.check for case in case_result.cases} == {case_result.check}

class TestNet:
    @parametrize("fake:net")
    def test_method(self, conformance_case, request):
        assert request.node.name.startswith("test_method[") and conformance_case.check
"""
    )
    result = pytester.runpytest("-v")
    result.assert_outcomes(passed=8, skipped=4)
    result.stdout.fnmatch_lines([f"*::test_net[[]{kind}[]] *" for kind in KINDS])
    assert [(call["level"], call["seed"], call["dtype"]) for call in calls] == [
        ("quick", 4, "float16"),
        ("default", 0, "float32"),
    ]


def test_each_run_judges_anew(pytester: pytest.Pytester, judge: Install) -> None:
    import types

    calls = judge(report)
    module = types.ModuleType("kept")  # outlives the run, as a test module that stays imported does
    sys.modules["kept"] = module
    try:
        pytester.makepyfile(
            HEADER
            + """
import kept
if not hasattr(kept, "made"):
    @parametrize("fake:net")
    def made(case_result): pass
    kept.made = made
test_net = kept.made
"""
        )
        for number in (1, 2):
            pytester.runpytest().assert_outcomes(passed=4, skipped=2)
            assert len(calls) == number
    finally:
        del sys.modules["kept"]


def test_a_failure_fails_before_the_function_is_called(pytester: pytest.Pytester, judge: Install) -> None:
    judge(lambda target: report(target, {"law: batch": "fail"}))
    pytester.makepyfile(
        HEADER + "@parametrize('fake:net')\ndef test_net(case_result): print('called', case_result.check)"
    )
    result = pytester.runpytest("-s")
    result.assert_outcomes(passed=3, failed=1, skipped=2)
    text = lines(result)
    assert "the reason of law: batch" in text and "called wiring" in text and "called law" not in text


def test_the_plugin_sums_up_parametrized_tests_too(pytester: pytest.Pytester, judge: Install) -> None:
    judge(report)
    pytester.makepyfile(HEADER + "@parametrize('fake:net')\ndef test_net(case_result): pass")
    result = pytester.runpytest(*PLUGIN)
    result.stdout.fnmatch_lines(["*= coatref =*", "CONFORMS  fake:net was looked at: pass."])


GELU = Finding("ffn activation", ("s3.0",), "uses the tanh form of GELU", "tanh-gelu", cases=("amplifier: gelu",))
BAD = {"amplifier: gelu": "fail", "law: batch": "fail"}


@pytest.mark.parametrize(
    ("expected", "outcomes"),
    [
        ({"amplifier: gelu": "known", "law": "too"}, {"passed": 3, "xfailed": 2, "skipped": 2}),
        ({"tanh-gelu": "known"}, {"passed": 3, "xfailed": 1, "failed": 1, "skipped": 2}),
    ],
)
def test_expected_failures(
    pytester: pytest.Pytester, judge: Install, expected: dict[str, str], outcomes: dict[str, int]
) -> None:
    judge(lambda target: report(target, BAD, (GELU,)))  # type: ignore[arg-type]
    pytester.makepyfile(
        HEADER + f"@parametrize('fake:net', expected_failed={expected!r})\ndef test_net(case_result): pass"
    )
    result = pytester.runpytest("-rx")
    result.assert_outcomes(**outcomes)
    assert "known" in lines(result)


def test_one_expected_case_does_not_excuse_another_of_its_kind(pytester: pytest.Pytester, judge: Install) -> None:
    judge(lambda target: report(target, {"amplifier: gelu": "fail", "amplifier: epsilon": "fail"}))
    expected = "{'amplifier: gelu': 'known'}"
    pytester.makepyfile(HEADER + f"@parametrize('a', expected_failed={expected})\ndef test_net(case_result): pass")
    result = pytester.runpytest()
    result.assert_outcomes(passed=4, failed=1, skipped=2)
    assert "the reason of amplifier: epsilon" in lines(result)
    assert "the reason of amplifier: gelu" not in lines(result)


def test_stale_expected_failures_fail(pytester: pytest.Pytester, judge: Install) -> None:
    judge(lambda target: report(target, {"amplifier: gelu": "fail"}))
    expected = {"amplifier: gelu": "known", "law: batch": "was so once", "no-such-mistake": "misspelt"}
    pytester.makepyfile(HEADER + f"@parametrize('a', expected_failed={expected!r})\ndef test_net(case_result): pass")
    result = pytester.runpytest()
    result.assert_outcomes(passed=3, xfailed=1, failed=1, skipped=2)
    text = lines(result)
    assert "test_net[expected-failures]" in text
    assert "stale expected failure: law: batch no longer fails; remove it" in text
    assert "stale expected failure: no-such-mistake is no case that ran and no mistake that was found" in text
    assert "amplifier: gelu no longer" not in text


def test_parametrize_refuses_what_it_cannot_use() -> None:
    with pytest.raises(InputError, match="case_result or conformance_case"):
        parametrize("a")(lambda other: None)
    with pytest.raises(InputError, match="names to reasons"):
        parametrize("a", expected_failed={"wiring"})  # type: ignore[arg-type]


# --- with the real judge ---


def test_the_real_judge_in_the_plugin_and_in_parametrize(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import fake_judge, pytest\nfake_judge.add_kind(pytest.MonkeyPatch())\n")
    pytester.makepyfile(
        HEADER
        + """
@parametrize("fixed:1.0")
def test_right(case_result):
    assert [case.verdict for case in case_result.cases] == ["pass"] and case_result.report.conforms

@parametrize("fixed:1.01", expected_failed={"as given": "the factor", "law": "never was wrong"})
def test_wrong(case_result):
    raise AssertionError("not called")
"""
    )
    targets = ("--coatref-target=fixed:1.0", "--coatref-target=fixed:1.01")
    chosen = ("--coatref-level=quick", "-k", "as-given or expected")
    result = pytester.runpytest_subprocess(*PLUGIN, *targets, *chosen)  # NumPy's modules cannot be loaded twice
    result.assert_outcomes(passed=2, failed=2, xfailed=1, deselected=20)
    text = lines(result)
    assert "FAILED coatref::fixed:1.01::as-given" in text and "stale expected failure: law is no case" in text
    assert "CONFORMS  fixed:1.0 computes vit-rel" in text and "FAILS  fixed:1.01 does not compute vit-rel" in text
