"""A program in another language, judged: the C program in `tests/c`, right and with planted mistakes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coatref.conformance.targets.op import judge

if shutil.which("gcc") is None:
    pytest.skip("needs gcc, which is not installed", allow_module_level=True)

SOURCE = Path(__file__).parent / "c" / "kernels.c"


def compiled(folder: Path, *flags: str) -> Path:
    program = folder / "kernels"
    words = ["gcc", "-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", *flags, "-o", str(program), str(SOURCE), "-lm"]
    subprocess.run(words, check=True)
    return program


def target(primitive: str, program: Path) -> str:
    return f'op:{primitive}=cmd:"{program} {primitive} {{input}} {{output}}"'


@pytest.mark.parametrize("flags", [(), ("-DDOUBLE_SUMS",)])
@pytest.mark.parametrize("primitive", ["depthwise_conv2d", "relative_attention"])
def test_a_right_program_conforms(tmp_path: Path, primitive: str, flags: tuple[str, ...]) -> None:
    report = judge(target(primitive, compiled(tmp_path, *flags)), level="quick")
    assert report.conforms, [finding.sentence for finding in report.findings]
    assert all(result.verdict == "pass" for result in report.results) and len(report.results) > 20


@pytest.mark.parametrize(
    ("bug", "primitive", "mistake", "sentence"),
    [
        (1, "relative_attention", "scale-by-width", "scales the logits by 1/sqrt(heads*d), not by 1/sqrt(d)"),
        (2, "relative_attention", "bias-transposed", "adds bias[key, query], not bias[query, key]"),
        (5, "relative_attention", "bias-after-softmax", "adds the bias after the softmax, not before"),
        (3, "depthwise_conv2d", "padding-symmetric-for-same", "pads (k-1)//2 rows on each side where SAME padding"),
        (4, "depthwise_conv2d", "kernel-flipped", "flips the kernel"),
    ],
)
def test_a_planted_mistake_is_named(tmp_path: Path, bug: int, primitive: str, mistake: str, sentence: str) -> None:
    report = judge(target(primitive, compiled(tmp_path, f"-DBUG={bug}")), level="quick")
    assert report.verdict == "fail" and report.exit_code == 1
    named = [finding for finding in report.findings if finding.mistake]
    assert [finding.mistake for finding in named] == [mistake] and sentence in named[0].sentence
    assert report.counterexample is not None and "show(" in report.counterexample.script


def test_the_counterexample_runs_as_it_is(tmp_path: Path) -> None:
    report = judge(target("depthwise_conv2d", compiled(tmp_path, "-DBUG=4")), level="quick")
    assert report.counterexample is not None
    done = subprocess.run(
        [sys.executable, "-c", report.counterexample.script], capture_output=True, text=True, check=True
    )
    assert "fail: " in done.stdout
