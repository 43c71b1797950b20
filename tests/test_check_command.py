"""The judge's commands and `coatref.check`, with another judge in its place; the last tests have the real one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fake_judge
import numpy as np
import pytest
from fake_judge import report

import coatref
from coatref.cli import info, main
from coatref.conformance import commands, progress
from coatref.conformance.precision import Precision
from coatref.conformance.report import as_json
from coatref.conformance.report.results import Report
from coatref.errors import CoatrefError, InputError

ROOT = Path(__file__).resolve().parent.parent
TINY = coatref.spec("coatnet_0", image_size=(64, 96), classes=7, depths=(1, 1, 1, 1, 1), widths=(8, 8, 16, 32, 64))

Calls = list[dict[str, Any]]
Install = Callable[[Callable[[Any], Report]], Calls]


class Run(NamedTuple):
    """A finished command."""

    code: int
    out: str
    err: str


Cli = Callable[..., Run]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command in this process, in the surroundings of a plain pipe."""
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Run(code, *capsys.readouterr())

    return run


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a judge in the place of coatref's."""
    return lambda answer: fake_judge.install(monkeypatch, answer)


def stub(monkeypatch: pytest.MonkeyPatch, module: str, **contents: Any) -> None:
    """Put a module with these contents in the place of one of the judge's."""
    made = types.ModuleType(f"coatref.conformance.{module}")
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, made.__name__, made)


# --- check ---


@pytest.mark.parametrize(
    ("verdict", "code", "word"),
    [("pass", 0, "CONFORMS"), ("fail", 1, "FAILS"), ("cannot judge", 2, "CANNOT BE JUDGED")],
)
def test_the_exit_code_is_the_verdict(cli: Cli, judge: Install, verdict: Any, code: int, word: str) -> None:
    judge(lambda target: report(target, {"random 0": verdict}))
    run = cli("check", "fake:net")
    assert run.code == code and run.err == ""
    assert run.out.startswith(f"{word}  fake:net was looked at") and len(run.out.splitlines()) > 2
    quiet = cli("check", "fake:net", "--quiet")
    assert quiet == Run(code, f"{word}  fake:net was looked at: {verdict}.\n", "")


def test_options_reach_the_judge(cli: Cli, judge: Install, tmp_path: Path) -> None:
    calls = judge(report)
    params = coatref.init(TINY)
    coatref.save(params, tmp_path / "w.safetensors")
    (tmp_path / "spec.json").write_text(TINY.to_json())
    files = ("--spec", tmp_path / "spec.json", "--weights", tmp_path / "w.safetensors")
    run = cli("check", "a:b", *files, "--dtype=float16", "--accumulate=float16", "--level=deep", "--seed=7")
    assert run.code == 0, run.err
    (call,) = calls
    assert call.pop("weights").flatten().keys() == params.flatten().keys()
    expected = {"target": "a:b", "spec": TINY, "dtype": "float16", "accumulate": "float16", "level": "deep", "seed": 7}
    assert call == {**expected, "progress": None}  # stderr is no terminal


def test_defaults_reach_the_judge(cli: Cli, judge: Install) -> None:
    calls = judge(report)
    cli("check", "a:b")
    plain: dict[str, Any] = {"spec": None, "weights": None, "accumulate": None, "progress": None}
    assert calls == [{"target": "a:b", **plain, "dtype": "float32", "level": "default", "seed": 0}]


def test_options_of_the_adapter_resolve_the_target_first(
    cli: Cli, judge: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, asked = judge(lambda target: report("resolved")), []

    def resolve(text: str, **given: Any) -> object:
        asked.append((text, given))
        return marker

    marker = object()
    stub(monkeypatch, "targets.resolve", resolve=resolve)
    options = ("--dialect=timm", "--mapping=m:f", "--names=names.json", "--layout=NCHW", "--timeout=5", "--jit=no")
    assert cli("check", "torch:m:f", "--spec=coatnet_0", "--dtype=bfloat16", *options).code == 0
    given = {"dialect": "timm", "mapping": "m:f", "names": "names.json", "layout": "NCHW", "timeout": "5", "jit": "no"}
    spec = coatref.spec("coatnet_0")
    assert asked == [("torch:m:f", {"spec": spec, "weights": None, "precision": "bfloat16", **given})]
    assert calls[0]["target"] is marker
    cli("check", "torch:m:f", "--dtype=bfloat16", "--accumulate=float64", "--layout=NCHW")
    assert asked[1][1]["precision"] == Precision("bfloat16", "float64")


def test_weights_of_timm_need_no_spec(cli: Cli, judge: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(path: Any, spec: Any, **options: Any) -> Any:
        asked.append(spec)
        if spec is None:
            raise InputError("it does not say which network it holds")
        return coatref.init(TINY)

    monkeypatch.setattr(sys.modules["coatref.weights.load"], "load", load)
    judge(report)
    assert cli("check", "timm:coatnet_0_rw_224", "--weights", "x.pth").code == 0
    assert asked == [None, "timm/coatnet_0_rw_224"]
    refused = cli("check", "timm:resnet50", "--weights", "x.pth")
    assert refused.code == 2 and "does not say which network" in refused.err


REPEAT = "coatref check a:b --dtype float32 --level default --seed 0"  # the command that was given, in full


def test_json_to_stdout_is_all_that_is_there(cli: Cli, judge: Install) -> None:
    judge(lambda target: report(target, {"law: batch": "fail"}))
    run = cli("check", "a:b", "--json", "-")
    assert run.code == 1
    expected = dataclasses.replace(report("a:b", {"law: batch": "fail"}), reproduce=REPEAT)
    assert as_json.from_json(json.loads(run.out)) == expected
    assert run.err == "FAILS  a:b was looked at: fail.\n"


def test_reports_are_written(cli: Cli, judge: Install, tmp_path: Path) -> None:
    judge(report)
    run = cli("check", "a:b", "--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert run.code == 0 and run.out.startswith("CONFORMS")
    written = as_json.from_json(json.loads((tmp_path / "r.json").read_text()))
    assert written == dataclasses.replace(report("a:b"), reproduce=REPEAT)
    assert (tmp_path / "r.html").read_text().startswith("<!")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("a:b", "--level=deepest"), "quick, default, deep"),
        (("a:b", "--seed=-1"), "--seed"),
        (("a:b", "--dtype=int8"), "float32"),
        (("a:b", "--dtype=float64", "--accumulate=float32"), "narrower"),
        (("a:b", "--spec=coatnet_99"), "There is no spec named"),
        (("a:b", "--spec=absent.json"), "There is no spec file absent.json"),
        (("a:b", "--weights=absent.safetensors"), "There is no file"),
        (("a:b", "--json=absent/r.json"), "There is no folder absent"),
        (("a:b", "--html=absent/r.html"), "There is no folder absent"),
        (("--html=r.html",), "needs a TARGET"),
        (("--any-spec=no",), "--any-spec needs a TARGET"),
        (("op:softmax=m:f", "--spec=coatnet_0", "--layout=NCHW"), "spec and layout"),
        (("a:b", "c:d"), "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_judged(
    cli: Cli, judge: Install, arguments: tuple[str, ...], told: str
) -> None:
    calls = judge(report)
    run = cli("check", *arguments)
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: ") and told in run.err and len(run.err.splitlines()) == 1
    assert calls == []


def test_a_spec_file_that_is_no_text_is_refused(cli: Cli, judge: Install, tmp_path: Path) -> None:
    judge(report)
    (tmp_path / "s.json").write_bytes(b"\xff\xfe")
    run = cli("check", "a:b", "--spec", tmp_path / "s.json")
    assert run.code == 2 and "is no JSON text" in run.err


def test_an_error_of_the_judge_is_code_2(cli: Cli, judge: Install) -> None:
    def refuse(target: Any) -> Report:
        raise CoatrefError("no such thing")

    judge(refuse)
    assert cli("check", "a:b") == Run(2, "", "error: no such thing\n")


def test_primitives_have_a_judge_of_their_own(cli: Cli, judge: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, asked = judge(report), []

    def check_primitive(target: str, **given: Any) -> Report:
        asked.append((target, given))
        return report(target)

    stub(monkeypatch, "targets.op", judge=check_primitive)
    assert (
        cli("check", "op:layer_norm=cmd:./f {input} {output}", "--dtype=float64", "--seed=3", "--timeout=5").code == 0
    )
    given = {"dtype": "float64", "accumulate": None, "level": "default", "seed": 3, "options": {"timeout": "5"}}
    assert asked == [("op:layer_norm=cmd:./f {input} {output}", given)] and calls == []


# --- check without a target ---


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two array libraries that are installed, one that is not, and the strict one."""
    monkeypatch.setattr(info, "library_names", lambda: ["numpy", "torch", "cupy", "array_api_strict"])
    monkeypatch.setattr(info, "describe", lambda name: {"unavailable": "it is not here" if name == "cupy" else None})


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (("pass", "pass"), 0),
        (("pass", "fail"), 1),
        (("cannot judge", "pass"), 2),
        (("fail", "cannot judge"), 1),
    ],
)
@pytest.mark.usefixtures("libraries")
def test_without_a_target_the_libraries_here_are_judged(
    cli: Cli, judge: Install, verdicts: tuple[Any, Any], code: int
) -> None:
    of = dict(zip(("backend:numpy", "backend:torch"), verdicts, strict=True))
    calls = judge(lambda target: report(target, {"random 0": of[target]}))
    run = cli("check", "--level=quick", "--dtype=float64")
    assert run.code == code and [call["target"] for call in calls] == list(of)
    assert {(call["level"], call["dtype"]) for call in calls} == {("quick", "float64")}
    assert [line.split("  ")[1].split()[0] for line in run.out.splitlines()] == list(of)
    many = cli("check", "--json", "-")
    assert [entry["target"] for entry in json.loads(many.out)] == list(of) and many.code == code


@pytest.mark.usefixtures("libraries")
def test_a_library_that_cannot_be_judged_does_not_keep_the_others_from_it(cli: Cli, judge: Install) -> None:
    def answer(target: str) -> Report:
        if target == "backend:numpy":
            raise InputError("It has no\nbfloat16.")
        return report(target)

    judge(answer)
    run = cli("check")
    assert run.code == 2
    assert run.out.splitlines()[0] == "CANNOT BE JUDGED  backend:numpy: It has no bfloat16."
    assert run.out.splitlines()[1].startswith("CONFORMS  backend:torch")


# --- progress ---


def test_progress_is_shown_on_a_terminal_alone(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    with progress.progress_bar(False) as report_to:
        assert report_to is None
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.progress_bar(True) as report_to:
        assert report_to is None
    assert capsys.readouterr() == ("", "")
    with progress.progress_bar(False, "judging") as report_to:
        assert report_to is not None
        report_to(1, 9, "amplifier: [bold]epsilon")
    shown = capsys.readouterr()
    assert "[bold]epsilon" in shown.err and "1/9" in shown.err and shown.out == ""


# --- cases and selftest ---


def test_cases_are_written(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from coatref.conformance.case_files import read_case

    asked: list[Any] = []

    def made(spec: Any, **given: Any) -> Any:
        asked.append((spec, given))
        yield "random 0", "random", "what it shows", coatref.init(TINY), np.zeros((1, 64, 96, 3), np.float32)

    stub(monkeypatch, "judge", cases=made)
    (tmp_path / "spec.json").write_text(TINY.to_json())
    run = cli("cases", tmp_path / "out", "--spec", tmp_path / "spec.json", "--level=quick", "--seed=3")
    assert run.code == 0 and "index.json" in run.out, run.err
    assert asked == [(TINY, {"dtype": "float32", "accumulate": None, "level": "quick", "seed": 3})]
    (entry,) = json.loads((tmp_path / "out" / "index.json").read_text())["cases"]
    assert read_case(tmp_path / "out" / f"{entry['file']}.safetensors").params.spec == TINY
    assert cli("cases", tmp_path, "--level=many").code == 2


@pytest.mark.parametrize("good", [True, False])
def test_selftest(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, good: bool) -> None:
    asked: list[Any] = []
    result = types.SimpleNamespace(ok=good, markdown=lambda: "| mistake | killed |\n", to_json=lambda: {"ok": good})

    def run_selftest(*given: Any) -> Any:
        asked.append(given)
        return result

    stub(monkeypatch, "selftest", run=run_selftest)
    code = 0 if good else 1
    assert cli("selftest") == Run(code, "| mistake | killed |\n\n", "")
    files = ("--write", tmp_path / "matrix.md", "--json", tmp_path / "m.json")
    assert cli("selftest", "--level=full", "--seed=2", *files) == Run(code, "", "")
    assert (tmp_path / "matrix.md").read_text() == "| mistake | killed |\n"
    assert json.loads((tmp_path / "m.json").read_text()) == {"ok": good}
    assert json.loads(cli("selftest", "--json", "-").out) == {"ok": good}
    assert asked[:2] == [("sample", 0, None), ("full", 2, None)]
    refused = cli("selftest", "--level=quick")
    assert refused.code == 2 and "sample, full" in refused.err
    lost = cli("selftest", "--write", tmp_path / "absent" / "m.md")
    assert lost.code == 2 and "There is no folder" in lost.err and len(asked) == 3


# --- the whole ---


@pytest.mark.parametrize("command", ["check", "cases", "selftest"])
def test_every_help_has_examples(cli: Cli, command: str) -> None:
    run = cli(command, "--help")
    assert run.code == 0 and run.err == ""
    assert f"coatref {command}" in run.out.partition("Examples:")[2]
    assert max(map(len, run.out.splitlines())) <= 80
    assert command in cli("--help").out


def test_the_help_imports_no_heavy_library() -> None:
    code = "import sys; from coatref.cli import main; main(['check', '--help']); print(*sys.modules, file=sys.stderr)"
    environment = os.environ | {"PYTHONPATH": str(Path(coatref.__file__).parent.parent)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    loaded = {name.partition(".")[0] for name in run.stderr.split()}
    assert loaded & {"PIL", "hypothesis", "jax", "onnx", "pytest", "safetensors", "scipy", "timm", "torch"} == set()
    assert {"coatref.conformance.judge", "coatref.conformance.report.html"} & set(run.stderr.split()) == set()


def test_every_command_of_the_judge_is_registered_by_name() -> None:
    from coatref.cli import app

    assert app.COMMANDS == (commands.__name__,)


# --- coatref.check ---


def test_check_in_python(judge: Install, tmp_path: Path) -> None:
    calls = judge(report)
    params = coatref.init(TINY)
    coatref.save(params, tmp_path / "w.safetensors")

    def candidate(params: Any, x: Any) -> Any:
        return x

    def seen(done: int, total: int, what: str) -> None:
        return None

    found = coatref.check(candidate, spec="coatnet_0", weights=params, accumulate="float64", progress=seen)
    assert found == report(candidate)  # type: ignore[arg-type]
    assert calls[0]["target"] is candidate and calls[0]["spec"] == coatref.spec("coatnet_0")
    assert calls[0]["weights"] is params and calls[0]["accumulate"] == "float64" and calls[0]["progress"] is seen
    coatref.check("a:b", weights=tmp_path / "w.safetensors")
    assert calls[1]["weights"].spec == TINY
    with pytest.raises(InputError, match="whole number from 0"):
        coatref.check("a:b", seed=True)
    with pytest.raises(InputError, match="quick, default, deep"):
        coatref.check("a:b", level="most")  # type: ignore[arg-type]


def test_check_is_the_same_by_both_names() -> None:
    import coatref.conformance

    assert coatref.conformance.check is coatref.check
    assert sorted(coatref.conformance.__all__) == ["Precision", "Report", "Target", "check", "parametrize"]


# --- with the real judge ---


@pytest.mark.parametrize(("target", "code", "word"), [("fixed:1.0", 0, "CONFORMS"), ("fixed:1.01", 1, "FAILS")])
def test_check_with_the_real_judge(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, code: int, word: str
) -> None:
    fake_judge.add_kind(monkeypatch)
    run = cli("check", target, "--level=quick", "--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert run.code == code and run.err == "" and run.out.startswith(f"{word}  {target} ")
    found = as_json.from_json(json.loads((tmp_path / "r.json").read_text()))
    assert (found.target, found.exit_code, found.level, found.spec) == (target, code, "quick", "vit-rel")
    assert (tmp_path / "r.html").read_text().startswith("<!")


@pytest.mark.deep
def test_check_of_the_libraries_here_with_the_real_judge(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(fake_judge.TINY.to_json())
    run = cli("check", "--spec", tmp_path / "spec.json", "--level=quick")
    assert run.code == 0 and run.out.startswith("CONFORMS  backend:numpy ")


def test_cases_of_the_real_judge_are_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(fake_judge.TINY.to_json())
    assert cli("cases", tmp_path / "out", "--spec", tmp_path / "spec.json", "--level=quick", "--quiet") == Run(
        0, "", ""
    )
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert {"as given", "amplifier"} <= {entry["check"] for entry in index["cases"]}
