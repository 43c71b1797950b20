"""The examples of `docs/judge.md` do what the page says.

A fenced block there is marked by what stands behind its language: "file=NAME" is the content of a file, and "run" is run.
The comment that ends a command is its exit code; where it says "slow" too, the command runs only with `-m deep`. Each section
runs in a folder of its own, which has all files of the page and those that the first section makes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm_import

import coatref
from coatref.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "judge.md"
if not PAGE.is_file():
    pytest.skip("needs the checkout: the docs are not part of the sdist's tests", allow_module_level=True)

TIMM = ("torch", "torchvision", "timm")
NEEDS = {  # part of a command -> packages that it needs
    "backend:torch": ("torch",),
    "backend:jax": ("jax",),
    "jax:": ("jax",),
    "timm:": TIMM,
    "mynet:": TIMM,
    "export.py": (*TIMM, "onnx", "onnxruntime"),
    "kecam:": ("torch", "h5py", "keras_cv_attention_models"),
    "jsonschema": ("jsonschema",),
}
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?P<words>\S.*?) +# (?P<code>[012])(, [\w ]+)?")
SLOW = ", slow"


class Section(NamedTuple):
    """A heading, and the blocks below it that run: language and text."""

    title: str
    blocks: list[tuple[str, str]]


def sections() -> tuple[dict[str, str], list[Section]]:
    """The files of the page, and the sections in which something runs."""
    files: dict[str, str] = {}
    found = []
    for part in re.split(r"^##+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        blocks = []
        for language, marks, text in BLOCK.findall(part):
            words = marks.split()
            name = next((word.removeprefix("file=") for word in words if word.startswith("file=")), None)
            if name is not None:
                files[name] = text
            if "run" in words:
                blocks.append((language, text))
        if blocks:
            found.append(Section(part.partition("\n")[0], blocks))
    return files, found


FILES, SECTIONS = sections()
SETUP, *EXAMPLES = SECTIONS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory of an example, with the page's files; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python FILE` has it
    places = [Path(coatref.__file__).parent.parent, tmp_path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run_line(line: str) -> None:
    """Run one command, whose exit code must be the one in its comment."""
    match = COMMAND.fullmatch(line.strip())
    assert match is not None, f"no exit code stands behind: {line}"
    program, *words = shlex.split(match["words"])
    code = 0
    if program == "coatref":
        code = main(words)
    elif program == "python":
        runpy.run_path(words[0], run_name="__main__")
    elif program == "pytest":  # in a process of its own, which judges anew
        plugin = ["-p", "coatref.conformance.plugin", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *plugin, *words], capture_output=True, text=True, check=False
        )
        code = done.returncode
        print(done.stdout, done.stderr)
    else:
        pytest.fail(f"a command that is not known: {program}")
    assert code == int(match["code"]), line


def run(section: Section, *, slow: bool = False) -> None:
    """Run every block of a section, in its order; of the commands only those that are slow, or are not."""
    for language, text in section.blocks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other packages' own
            if language == "sh":
                for line in text.splitlines():
                    if line.endswith(SLOW) == slow:
                        run_line(line)
            else:
                exec(compile(text, str(PAGE), "exec"), {"__name__": "example"})  # noqa: S102 - our own page's


def cases() -> Iterator[Any]:
    """Each section with its fast commands, and again with its slow ones."""
    for section in EXAMPLES:
        lines = [line for language, text in section.blocks if language == "sh" for line in text.splitlines()]
        slow = [line.endswith(SLOW) for line in lines]
        if not all(slow) or not lines:
            yield pytest.param(section, False, id=section.title)
        if any(slow):
            yield pytest.param(section, True, id=f"{section.title}, slow", marks=pytest.mark.deep)


@pytest.mark.parametrize(("section", "slow"), [*cases()])
def test_the_examples_of_a_section(
    section: Section, slow: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for _, text in section.blocks for line in text.splitlines() if line.endswith(SLOW) == slow]
    needed = {
        package for word, packages in NEEDS.items() for package in packages if any(word in line for line in lines)
    }
    for package in sorted(needed):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, which is not installed")
    if "timm" in needed:
        timm_import.timm()
    run(SETUP)
    run(section, slow=slow)
    printed = " ".join(capsys.readouterr().out.split())
    if section.title == "onnx":
        assert "holds other weights than those given: s4.0.ffn.expand.w (by up to 1 %)" in printed
    if section.title.startswith("7 "):
        said = re.findall(r'begins "(.*?)"', PAGE.read_text(encoding="utf-8"))
        assert said and said[0] in printed


def test_every_kind_of_target_has_an_example() -> None:
    from coatref.conformance.targets.resolve import KINDS

    commands = " ".join(text for section in EXAMPLES for _, text in section.blocks)
    for kind in (*KINDS, "op"):
        assert f"check {kind}:" in commands or f"check '{kind}:" in commands, kind


def test_the_table_of_levels_is_that_of_the_code() -> None:
    from coatref.conformance.primitive_judge import EXAMPLES as calls
    from coatref.conformance.suite import LEVELS

    names = ("quick", "default", "deep")
    rows = {
        "drawn configurations, at most": [str(LEVELS[name].random) for name in names],
        "simulated roundings, small and large network": [
            " and ".join(str(count) for count in LEVELS[name].probes) for name in names
        ],
        "seconds for the diagnosis of a failure, at most": [f"{LEVELS[name].seconds:g}" for name in names],
        "random calls of a primitive (`op:`)": [str(calls[name]) for name in names],
    }
    page = PAGE.read_text(encoding="utf-8")
    for title, cells in rows.items():
        assert f"| {title} | {' | '.join(cells)} |" in page
    assert [LEVELS[name].everywhere for name in names] == [False, False, True]
    large = LEVELS["quick"].large
    assert large is not None and len(large) == 3 and LEVELS["default"].large is None
