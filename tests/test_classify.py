"""`coatref classify`: its images, names and numbers, and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from rich.console import Console
from timm_import import require_timm

import coatref
from coatref.cli import engine, main, photographs
from coatref.images import photograph

ESCAPE = "\x1b"
TINY = coatref.spec("coatnet_0", image_size=(64, 96), depths=(2, 1, 1, 1, 1), widths=(8, 8, 16, 32, 64), classes=7)
NAMES = ["tench", "[bold]hen", f"{ESCAPE}[31mred\nrose", "d", "e", "f\u202eevil", "g" * 300]


class Run(NamedTuple):
    """A finished command."""

    code: int
    out: str
    err: str


Classify = Callable[..., Run]


@pytest.fixture
def classify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Classify:
    """Run `coatref classify` in this process, on plain pipes of many columns."""
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Run:
        capsys.readouterr()
        code = main(["classify", *map(str, arguments)])
        return Run(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five different images of different sizes, and of other things."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "inner.png").mkdir()
    boxes = [(0, 0, 300, 200), (200, 100, 640, 400), (100, 200, 400, 427), (5, 6, 70, 80), (300, 0, 500, 427)]
    for name, box in zip(("b.png", "a.JPG", "é.webp", "c.tiff", "inner.png/d.png"), boxes, strict=True):
        photograph().crop(box).save(folder / name)
    photograph().crop((9, 9, 99, 44)).save(folder / "z.gif")
    for name in ("notes.txt", "model.h5", "png", ".png"):
        (folder / name).write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def inside(folder: Path) -> list[Path]:
    """What `folder` stands for."""
    return [folder / name for name in ("a.JPG", "b.png", "c.tiff", "z.gif", "é.webp")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of TINY that says nothing of its classes."""
    path = tmp_path_factory.mktemp("plain") / "tiny.safetensors"
    coatref.save(coatref.init(TINY, scheme="distinct"), path)
    return path


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """The same with names, as a folder in the hub's layout."""
    coatref.save(coatref.init(TINY, scheme="distinct"), tmp_path / "model.safetensors")
    write_config(tmp_path, label_names=NAMES)
    return tmp_path


def write_config(folder: Path, **stated: Any) -> None:
    """A config.json as timm writes it."""
    (folder / "config.json").write_text(json.dumps({"architecture": "mine", "pretrained_cfg": {}, **stated}))


def shares_of(paths: list[Path]) -> Any:
    """The probabilities (N, 7) of images, by the library."""
    logits = coatref.forward(coatref.init(TINY, scheme="distinct"), coatref.preprocess([str(p) for p in paths], TINY))
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def assert_is_error(run: Run, *words: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that holds the words."""
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: ") and run.err.count("\n") == 1 and ESCAPE not in run.err
    for word in words:
        assert word in run.err


@pytest.mark.parametrize("options", [(), ("--batch", 2), ("--batch", 5), ("--batch", 9), ("--dtype", "float64")])
def test_numbers_are_the_librarys_in_every_batch(
    classify: Classify, plain: Path, inside: list[Path], options: tuple[Any, ...]
) -> None:
    run = classify(*inside, "--weights", plain, "--top", 3, "--json", *options)
    assert (run.code, run.err) == (0, "")
    found = json.loads(run.out)
    assert (found["spec"], found["weights"], found["image_size"]) == ("coatnet_0", str(plain), [64, 96])
    assert [entry["image"] for entry in found["images"]] == [str(path) for path in inside]
    for entry, shares in zip(found["images"], shares_of(inside), strict=True):
        best = sorted(range(7), key=lambda index: -shares[index])[:3]
        assert [guess["index"] for guess in entry["top"]] == best
        assert [guess["probability"] for guess in entry["top"]] == pytest.approx([shares[i] for i in best], abs=1e-5)
        assert all(guess["name"] is None for guess in entry["top"])


def test_a_batch_is_that_many_images(
    classify: Classify, plain: Path, inside: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def preprocess(images: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(len(images))
        return coatref.preprocess(images, *rest, **options)

    monkeypatch.setattr(photographs, "preprocess", preprocess)
    for options, expected in (((), [1] * 5), (("--batch", 3), [3, 2]), (("--batch", 100), [5])):
        sizes.clear()
        assert classify(*inside, "--weights", plain, *options).code == 0
        assert sizes == expected


def test_at_another_size(classify: Classify, plain: Path, inside: list[Path]) -> None:
    found = json.loads(classify(inside[0], "--weights", plain, "--size", "96x64", "--json").out)
    params = coatref.load(plain).resize(96, 64)
    logits = coatref.forward(params, coatref.preprocess(inside[0], params.spec))[0]
    assert found["image_size"] == [96, 64]
    assert found["images"][0]["top"][0]["logit"] == pytest.approx(float(np.max(logits)), abs=1e-5)


# --- names ---


def test_names_come_from_the_config(classify: Classify, named: Path, inside: list[Path]) -> None:
    run = classify(inside[0], "--weights", named, "--top", 7, "--json")
    top = json.loads(run.out)["images"][0]["top"]
    assert sorted(guess["index"] for guess in top) == list(range(7))
    assert all(guess["name"] == NAMES[guess["index"]] for guess in top)
    assert ESCAPE not in run.out


def test_a_table_has_the_names_and_nothing_that_moves_the_terminal(
    classify: Classify, named: Path, inside: list[Path]
) -> None:
    run = classify(*inside[:2], "--weights", named, "--top", 7)
    assert (run.code, run.err) == (0, "") and ESCAPE not in run.out and "\u202e" not in run.out
    lines = [line.strip() for line in run.out.splitlines()]
    shown = ["tench", "[bold]hen", "?[31mred rose", "d", "e", "f?evil", "g" * 117 + "..."]
    for path, shares in zip(inside[:2], shares_of(inside[:2]), strict=True):
        assert str(path) in lines
        for index in range(7):
            row = [line for line in lines if line.split()[:2] == [str(index), f"{shares[index]:.2%}"]]
            assert row and any(line.endswith(shown[index]) for line in row)
    assert lines[-1].startswith("2 images, ")


def test_quiet_prints_a_line_for_each_image(classify: Classify, named: Path, plain: Path, inside: list[Path]) -> None:
    best = [int(np.argmax(shares)) for shares in shares_of(inside[:2])]
    shares = shares_of(inside[:2]).max(axis=1)
    write_config(named, label_names=[f"name {index}" for index in range(7)])
    for source, called in ((named, " (name {})"), (plain, "")):
        run = classify(*inside[:2], "--weights", source, "--quiet")
        expected = [
            f"{path}: class {index}{called.format(index)}, {share:.2%}"
            for path, index, share in zip(inside, best, shares, strict=False)
        ]
        assert run.out.splitlines() == expected and run.err == ""


def test_without_names_there_are_numbers(classify: Classify, plain: Path, inside: list[Path]) -> None:
    run = classify(inside[0], "--weights", plain)
    assert run.code == 0 and "name" not in run.out


def test_a_thousand_classes_are_named_by_timm(classify: Classify, tmp_path: Path, inside: list[Path]) -> None:
    timm = require_timm()
    spec = TINY.replace(head=dataclasses.replace(TINY.head, classes=1000))
    coatref.save(coatref.init(spec, scheme="distinct"), tmp_path / "w.safetensors")
    top = json.loads(classify(inside[0], "--weights", tmp_path / "w.safetensors", "--json").out)["images"][0]["top"]
    words = timm.data.ImageNetInfo("imagenet-1k").label_descriptions()
    assert [guess["name"] for guess in top] == [words[guess["index"]] for guess in top]


def test_more_classes_than_there_are(classify: Classify, plain: Path, inside: list[Path]) -> None:
    top = json.loads(classify(inside[0], "--weights", plain, "--top", 1000, "--json").out)["images"][0]["top"]
    assert len(top) == 7 and sum(guess["probability"] for guess in top) == pytest.approx(1)


def test_keras_weights_see_what_keras_sees(classify: Classify, tmp_path: Path, inside: list[Path]) -> None:
    spec = TINY.replace(preprocessing=coatref.spec("kecam/CoAtNet0").preprocessing)
    params = coatref.init(spec, scheme="distinct", dtype="float64")
    coatref.save(params, tmp_path / "w.safetensors")
    run = classify(inside[1], "--weights", tmp_path / "w.safetensors", "--dtype", "float64", "--json")
    logits = coatref.forward(params, coatref.preprocess(inside[1], spec, dtype="float64"))[0]
    other = coatref.forward(params, coatref.preprocess(inside[1], TINY, dtype="float64"))[0]
    found = json.loads(run.out)["images"][0]["top"][0]["logit"]
    assert found == pytest.approx(np.max(logits), abs=1e-12) and found != pytest.approx(np.max(other), abs=1e-6)


# --- folders ---


def test_a_folder_is_the_images_right_in_it(
    classify: Classify, plain: Path, folder: Path, inside: list[Path], tmp_path: Path
) -> None:
    alone = tmp_path / "alone.bin"  # a file named outright may be called anything
    alone.write_bytes(inside[0].read_bytes())
    found = json.loads(classify(alone, folder, inside[3], "--weights", plain, "--json").out)
    assert [entry["image"] for entry in found["images"]] == [str(path) for path in (alone, *inside, inside[3])]


def test_a_folder_without_images_is_an_error(classify: Classify, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert_is_error(classify(tmp_path, "--weights", plain), str(tmp_path), ".png")


# --- refusals ---


def test_an_image_that_cannot_be_read_is_named(
    classify: Classify, plain: Path, inside: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / f"bad{ESCAPE}[31m.png"
    bad.write_text("no image")
    assert_is_error(classify(*inside, bad, "--weights", plain, "--batch", 4), "bad?[31m.png", "Pillow")
    truncated = tmp_path / "half.png"
    truncated.write_bytes(inside[1].read_bytes()[:3000])
    assert_is_error(classify(truncated, "--weights", plain), "half.png")


def test_images_that_are_not_there_are_missed_before_the_weights_are_sought(
    classify: Classify, inside: list[Path], tmp_path: Path
) -> None:
    nowhere = tmp_path / "none.safetensors"
    assert_is_error(classify(inside[0], tmp_path / "none.jpg", "--weights", nowhere), "none.jpg")
    assert_is_error(classify(inside[0], "--weights", nowhere), "none.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        assert_is_error(classify(tmp_path / "pipe.png", "--weights", nowhere), "pipe.png", "pipe or device")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--top", "0"), "--top"),
        (("--top", "x"), "--top"),
        (("--batch", "0"), "--batch"),
        (("--dtype", "float16"), "float16"),
        (("--backend", "nope"), "nope"),
        (("--device", "cuda:7"), "cuda:7"),
        (("--size", "224x"), "224x"),
        (("--size", "0x32"), "0"),
        (("--spec", "nope"), "nope"),
    ],
)
def test_wrong_options_take_one_line(
    classify: Classify, plain: Path, inside: list[Path], options: tuple[str, ...], word: str
) -> None:
    assert_is_error(classify(inside[0], "--weights", plain, *options), word)


def test_images_and_weights_are_needed(classify: Classify, plain: Path, inside: list[Path]) -> None:
    assert_is_error(classify("--weights", plain), "IMAGES", "coatref classify --help")
    assert_is_error(classify(inside[0]), "--weights", "coatref classify --help")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"label_names": NAMES[:6]}, "7 texts"),
        ({"label_names": [*NAMES[:6], 7]}, "a name is a text"),
        ({"label_names": {"7": "x"}}, "0 to 6"),
        ([], "config.json"),
    ],
)
def test_a_config_with_nonsense_is_refused(
    classify: Classify, named: Path, inside: list[Path], content: Any, word: str
) -> None:
    (named / "config.json").write_text(json.dumps(content))
    assert_is_error(classify(inside[0], "--weights", named), word)


# --- terminals ---


@pytest.mark.parametrize("options", [(), ("--quiet",), ("--json",)])
def test_progress_on_a_terminal(
    classify: Classify, plain: Path, inside: list[Path], options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()

    def console(*, stderr: bool = False) -> Console:
        return Console(file=terminal, force_terminal=True, width=80)

    monkeypatch.setattr(engine, "console", console)
    assert classify(*inside, "--weights", plain, "--batch", 2, *options).code == 0
    assert ("classifying" in terminal.getvalue() and "5/5" in terminal.getvalue()) == (not options)
    assert bool(terminal.getvalue()) == (not options)
