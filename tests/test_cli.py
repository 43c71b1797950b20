"""The command line: what it prints, its exit codes, and that its numbers are those of the library."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
from PIL import Image

import coatref
from coatref import digits, registry
from coatref.backends import describe
from coatref.cli import breakdown, engine, main
from coatref.cli import digits as cli_digits
from coatref.cli.arguments import parse_size
from coatref.cli.output import print_json
from coatref.images import photograph
from coatref.specification.paper import PUBLISHED
from coatref.specification.parts import PatchStem

ROOT = Path(__file__).resolve().parent.parent
ESCAPE = "\x1b"
FORCING = (
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "PY_COLORS",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "COLUMNS",
    "TERMINAL_WIDTH",
)
TINY = coatref.spec("coatnet_0", image_size=(64, 96), depths=(2, 1, 1, 1, 1), widths=(8, 8, 16, 32, 64), classes=7)
SMALL = coatref.spec("vit-rel", image_size=(32, 16), depths=(1,), widths=(32,), classes=10)
SMALL = SMALL.replace(stem=PatchStem(patch=4, width=32))  # soon compiled: a 16x16 patch takes JAX seconds
SMALL_DIGITS = SMALL.replace(name="small", channels=1, preprocessing=coatref.Preprocessing(mean=(0.5,), std=(0.5,)))


class Run(NamedTuple):
    """A finished command."""

    code: int
    out: str
    err: str


Cli = Callable[..., Run]


@pytest.fixture(autouse=True)
def no_forced_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The surroundings of a plain pipe."""
    for name in FORCING:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process."""

    def run(*arguments: object) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Run(code, *capsys.readouterr())

    return run


def process(*arguments: object, code: str | None = None, **environment: str) -> Run:
    """Run a command, or code, in a process of its own, with pipes."""
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), *(["-c", code] if code else ["-m", "coatref"])]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return Run(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of TINY."""
    path = tmp_path_factory.mktemp("cli") / "tiny.safetensors"
    coatref.save(coatref.init(TINY, scheme="distinct"), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three different photographs."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / name for name in ("first.png", "[bold]second.png", "third.png")]
    for path, box in zip(paths, ((0, 0, 300, 200), (200, 100, 640, 400), (100, 200, 400, 427)), strict=True):
        photograph().crop(box).save(path)
    return paths


@pytest.fixture
def small_digits(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """75 random digits in place of the bundled ones, with labels of which a known part is right, and another network."""
    pictures = np.random.default_rng(0).integers(0, 17, (75, 8, 8)).astype(np.uint8)
    params = coatref.init(SMALL_DIGITS, scheme="distinct")

    def upscale(some: Any) -> Any:
        return np.kron(some.astype(np.float32) / 8 - 1, np.ones((4, 2), np.float32))[..., None]

    labels = np.argmax(coatref.forward(params, upscale(pictures)), axis=1)
    labels[10:15] = (labels[10:15] + 1) % 10
    monkeypatch.setattr(digits, "heldout", lambda: (pictures, labels))
    monkeypatch.setattr(digits, "upscale", upscale)
    monkeypatch.setattr(digits, "checkpoint", lambda: params)
    return pictures, labels


@pytest.fixture
def absent_library(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a registered array library that cannot be imported."""

    def namespace() -> Any:
        raise ImportError("no such thing")

    module = types.ModuleType("absent_backend")
    absent = registry.Library(name="absent", install="absent", namespace=namespace, to_numpy=lambda x: x)
    module.LIBRARY = absent  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "absent_backend", module)
    monkeypatch.setitem(registry.registered(), "absent", "absent_backend")
    return "absent"


def assert_is_error(run: Run, *words: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that holds the words."""
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: ") and run.err.endswith("\n") and run.err.count("\n") == 1
    for word in words:
        assert word in run.err


def top5(logits: Any) -> list[tuple[int, float, float]]:
    """Class, probability and logit of the five greatest logits."""
    logits = np.asarray(logits, np.float64)
    shares = np.exp(logits) / np.exp(logits).sum()
    return [
        (int(i), float(shares[i]), float(logits[i])) for i in sorted(range(len(logits)), key=lambda i: -logits[i])[:5]
    ]


# --- the whole ---


def test_version(cli: Cli) -> None:
    assert cli("--version") == Run(0, f"coatref {coatref.__version__}\n", "")


def test_help_is_shown_without_a_command_and_on_request(cli: Cli) -> None:
    bare, asked = cli(), cli("--help")
    assert bare.code == asked.code == 0
    for run in (bare, asked):
        assert all(command in run.out for command in ("specs", "spec", "forward", "info", "--version"))


@pytest.mark.parametrize("command", ["specs", "spec", "forward", "info"])
def test_every_help_has_examples(cli: Cli, command: str) -> None:
    run = cli(command, "--help")
    assert run.code == 0 and run.err == ""
    assert f"coatref {command}" in run.out.partition("Examples:")[2]
    assert ESCAPE not in run.out and max(map(len, run.out.splitlines())) <= 80


def test_python_m_coatref_runs_it() -> None:
    assert process("--version") == Run(0, f"coatref {coatref.__version__}\n", "")
    assert process("spec", "nope").code == 2


def test_naming_specs_imports_no_heavy_library() -> None:
    code = "import sys; from coatref.cli import main; main(['specs']); print(*sys.modules, file=sys.stderr)"
    run = process(code=code)
    assert run.code == 0
    assert set(run.err.split()) & {"torch", "jax", "cupy", "timm", "PIL", "scipy", "safetensors"} == set()


# --- specs ---


def test_specs_lists_every_name_with_its_size(cli: Cli) -> None:
    run = cli("specs")
    assert run.code == 0 and ESCAPE not in run.out and max(map(len, run.out.splitlines())) <= 80
    rows = [line.split() for line in run.out.splitlines()]
    for name in coatref.specs():
        spec = coatref.spec(name)
        assert [name, f"{spec.num_parameters():,}", f"{spec.image_size[0]}x{spec.image_size[1]}"] in rows


def test_specs_json_groups_the_names(cli: Cli) -> None:
    run = cli("specs", "--json")
    entries = json.loads(run.out)
    assert (run.code, run.err) == (0, "")
    assert [entry["name"] for entry in entries] == list(coatref.specs())
    for entry in entries:
        spec = coatref.spec(entry["name"])
        assert (entry["parameters"], tuple(entry["image_size"])) == (spec.num_parameters(), spec.image_size)
    of = {entry["name"]: entry["group"] for entry in entries}
    assert [name for name, group in of.items() if group == "paper"] == [f"coatnet_{n}" for n in range(8)]
    assert {name for name, group in of.items() if group == "layouts"} == {
        "vit-rel",
        "c-c-c-c",
        "c-c-c-t",
        "c-c-t-t",
        "c-t-t-t",
    }
    assert {group for name, group in of.items() if name.startswith("timm/")} == {"timm"}
    assert of["coatnet_2/head-64"] == "ablations"


# --- spec ---


def table_rows(text: str) -> list[list[str]]:
    """The words of each row of the first table, from its heading to its total."""
    rows = [line.split() for line in text.splitlines() if line.strip(" ─")]
    first = next(number for number, row in enumerate(rows) if row[0] == "stage")
    last = next(number for number, row in enumerate(rows) if row[0] == "total")
    return rows[first : last + 1]


def whole(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.parametrize("name", coatref.specs())
def test_parts_add_up_exactly(name: str) -> None:
    spec = coatref.spec(name)
    parts = breakdown.breakdown(spec)
    assert sum(part.parameters for part in parts) == spec.num_parameters()
    assert sum(part.multiply_adds for part in parts) == spec.multiply_adds(*spec.image_size)


@pytest.mark.parametrize(
    ("name", "options", "changes"),
    [
        ("coatnet_0", (), {}),
        ("coatnet_7", ("--size", "512"), {"image_size": 512}),
        ("coatnet_3", ("--size", "160x224", "--classes", "10"), {"image_size": (160, 224), "classes": 10}),
        ("vit-rel", (), {}),
        ("coatnet_0/linear-attention", (), {}),
        ("timm/coatnet_rmlp_2_rw_384", (), {}),
        ("timm/coatnet_nano_cc_224", (), {}),
        ("timm/coatnext_nano_rw_224", (), {}),
    ],
)
def test_spec_prints_rows_that_add_up_to_the_totals(
    cli: Cli, name: str, options: tuple[str, ...], changes: dict[str, Any]
) -> None:
    run = cli("spec", name, *options)
    assert run.code == 0 and ESCAPE not in run.out and max(map(len, run.out.splitlines())) <= 80
    spec = coatref.spec(name, **changes)
    rows = table_rows(run.out)
    totals = spec.num_parameters(), spec.multiply_adds(*spec.image_size)
    assert rows[-1] == ["total", *(f"{total:,}" for total in totals)]
    for column, total in zip((-2, -1), totals, strict=True):
        assert sum(whole(row[column]) for row in rows[1:-1]) == total
    assert f"{spec.image_size[0]}x{spec.image_size[1]}, {spec.head.classes} classes" in run.out


def test_spec_rows_of_coatnet_0(cli: Cli) -> None:
    rows = [row[:-2] for row in table_rows(cli("spec", "coatnet_0").out)]
    assert rows == [  # Table 3 of the paper, at 224; heads of 32 channels
        ["stage", "blocks", "width", "heads", "stride", "grid"],
        ["s0", "2", "conv", "64", "2", "112x112"],
        ["s1", "2", "mbconv", "96", "2", "56x56"],
        ["s2", "3", "mbconv", "192", "2", "28x28"],
        ["s3", "5", "transformer", "384", "12", "2", "14x14"],
        ["s4", "2", "transformer", "768", "24", "2", "7x7"],
        ["head", "classifier", "1000", "1x1"],
        ["total"],
    ]


def test_spec_rows_of_stages_with_two_runs_and_two_numbers_of_heads(cli: Cli) -> None:
    rows = [row[:-2] for row in table_rows(cli("spec", "coatnet_6").out)]
    assert ["s3", "8", "mbconv", "768", "2", "14x14"] in rows
    assert ["s3", "42", "transformer", "1536", "12", "1", "14x14"] in rows
    run = cli("spec", "timm/coatnet_0_rw_224")
    assert ["s4", "2", "transformer", "768", "12,", "24", "2", "7x7"] in [row[:-2] for row in table_rows(run.out)]
    assert "Two numbers of heads" in run.out
    assert "16x16 patches" in cli("spec", "vit-rel").out
    assert "windowed 7x7" in cli("spec", "coatnet_0/windowed-attention").out


def test_published_figures_of_coatnet_0_by_hand(cli: Cli) -> None:
    text = cli("spec", "coatnet_0").out.partition("as published")[2]
    rows = [line.split() for line in text.splitlines() if "%" in line]
    assert rows == [
        ["parameters", "25.04", "M", "25", "M", "+0.1", "%"],
        ["multiply-adds", "at", "224x224", "4.14", "G", "4.2", "G", "-1.4", "%"],
        ["multiply-adds", "at", "384x384", "13.05", "G", "13.4", "G", "-2.6", "%"],
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_stand_beside_ours(cli: Cli, name: str) -> None:
    plain, changed = cli("spec", name), cli("spec", name, "--classes", "10")
    text = plain.out.partition("as published")[2]
    assert text == changed.out.partition("as published")[2]  # the published network has 1000 classes
    millions, billions = PUBLISHED[name]
    spec = coatref.spec(name)
    lines = [line for line in text.splitlines() if "%" in line]
    expected = [("parameters", spec.num_parameters() / 1e6, millions, "M")]
    expected += [(f"{n}x{n}", spec.multiply_adds(n, n) / 1e9, paper, "G") for n, paper in billions.items()]
    for line, (what, ours, paper, unit) in zip(lines, expected, strict=True):
        assert what in line
        assert line.split()[-6:] == f"{ours:.2f} {unit} {paper:g} {unit} {100 * (ours / paper - 1):+.1f} %".split()


def test_no_published_figures_where_the_paper_prints_none(cli: Cli) -> None:
    for name in ("c-c-t-t", "coatnet_2/v1", "timm/coatnet_0_224"):
        assert "%" not in cli("spec", name).out


def test_spec_json_is_the_spec(cli: Cli) -> None:
    run = cli("spec", "coatnet_7", "--size", "96x128", "--classes", "5", "--json")
    assert (run.code, run.err) == (0, "")
    assert coatref.Spec.from_json(run.out) == coatref.spec("coatnet_7", image_size=(96, 128), classes=5)
    assert run.out.count("\n") > 100  # for people to read


# --- forward, with weights ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["numpy", "torch", "array_api_strict"])
def test_top_classes_are_those_of_forward(cli: Cli, tiny: Path, images: list[Path], backend: str, dtype: Any) -> None:
    if backend != "numpy":
        pytest.importorskip(backend)
    names = [argument for path in images for argument in ("--image", path)]
    run = cli("forward", "--weights", tiny, *names, "--backend", backend, "--dtype", dtype, "--json")
    found = json.loads(run.out)
    assert (run.code, run.err) == (0, "")
    params = coatref.load(tiny, dtype=dtype)
    logits = coatref.forward(params, coatref.preprocess([str(path) for path in images], TINY, dtype=dtype))
    assert [entry["image"] for entry in found["images"]] == [str(path) for path in images]
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for entry, row in zip(found["images"], logits, strict=True):
        assert entry["bundled"] is False
        assert [guess["index"] for guess in entry["top"]] == [index for index, _, _ in top5(row)]
        for guess, (_, probability, logit) in zip(entry["top"], top5(row), strict=True):
            assert guess["probability"] == pytest.approx(probability, abs=tolerance)
            assert guess["logit"] == pytest.approx(logit, abs=tolerance)
    used = found["engine"]
    assert (used["library"], used["dtype"], used["definition"]) == (backend, dtype, False)
    assert found["seconds"] > 0 and found["image_size"] == [64, 96] and found["spec"] == "coatnet_0"


def test_jax_in_float64_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    coatref.save(params := coatref.init(SMALL, dtype="float64", scheme="distinct"), tmp_path / "small.safetensors")
    run = process(
        "forward", "--weights", tmp_path / "small.safetensors", "--backend", "jax", "--dtype", "float64", "--json"
    )
    assert run.code == 0, run.err
    found = json.loads(run.out)
    row = coatref.forward(params, coatref.preprocess(photograph(), SMALL, dtype="float64"))[0]
    assert found["engine"]["dtype"] == "float64" and found["engine"]["time_includes_compiling"] is True
    for guess, (index, _, logit) in zip(found["images"][0]["top"], top5(row), strict=True):
        assert guess["index"] == index and guess["logit"] == pytest.approx(logit, abs=1e-12)  # float32 is off by 1e-7


def test_tables_of_two_images(cli: Cli, tiny: Path, images: list[Path]) -> None:
    run = cli("forward", "--weights", tiny, "--image", images[0], "--image", images[1])
    assert (run.code, run.err) == (0, "") and ESCAPE not in run.out
    rows = [line.split() for line in run.out.splitlines()]
    for path in images[:2]:
        assert [str(path)] in rows  # also the one whose name looks like markup
        best = top5(coatref.forward(coatref.load(tiny), coatref.preprocess(path, TINY))[0])
        for index, probability, logit in best:
            assert [str(index), f"{probability:.2%}", f"{logit:.4f}"] in rows
    assert re.search(rf"^2 images, \d+\.\d\d s, NumPy {np.__version__} float32$", run.out, re.MULTILINE)
    assert "bundled" not in run.out


def test_without_image_the_bundled_photograph_is_used_and_named(cli: Cli, tiny: Path) -> None:
    row = coatref.forward(coatref.load(tiny), coatref.preprocess(photograph(), TINY))[0]
    run = cli("forward", "--weights", tiny)
    assert "bundled photograph, china.jpg" in run.out and run.out.splitlines()[-1].startswith("1 image, ")
    entry = json.loads(cli("forward", "--weights", tiny, "--json").out)["images"][0]
    assert entry["bundled"] is True and entry["image"] == "china.jpg"
    assert entry["top"][0]["logit"] == pytest.approx(top5(row)[0][2], abs=1e-6)


def test_quiet_prints_a_line_for_each_image(cli: Cli, tiny: Path, images: list[Path]) -> None:
    run = cli("forward", "--weights", tiny, "--image", images[0], "--image", images[1], "--quiet")
    lines = run.out.splitlines()
    assert (run.code, run.err, len(lines)) == (0, "", 2)
    for line, path in zip(lines, images[:2], strict=True):
        index, probability, _ = top5(coatref.forward(coatref.load(tiny), coatref.preprocess(path, TINY))[0])[0]
        assert line == f"{path}: class {index}, {probability:.2%}"


def test_size_interpolates_the_tables(cli: Cli, tiny: Path) -> None:
    found = json.loads(cli("forward", "--weights", tiny, "--size", "96x128", "--json").out)
    params = coatref.load(tiny).resize(96, 128)
    row = coatref.forward(params, coatref.preprocess(photograph(), params.spec))[0]
    assert found["image_size"] == [96, 128]
    top = found["images"][0]["top"]
    assert [guess["index"] for guess in top] == [index for index, _, _ in top5(row)]
    assert [guess["logit"] for guess in top] == pytest.approx([logit for _, _, logit in top5(row)], abs=1e-6)


def test_spec_names_what_a_file_does_not_say(cli: Cli, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    params = coatref.init("timm/test_coatnet", scheme="distinct")
    arrays = dict(params.flatten())
    save_file(arrays, tmp_path / "bare.safetensors")
    row = coatref.forward(params, coatref.preprocess(photograph(), params.spec))[0]
    for options in ((), ("--spec", "timm/test_coatnet")):  # its tensors say it too
        run = cli("forward", "--weights", tmp_path / "bare.safetensors", *options, "--json")
        assert [g["index"] for g in json.loads(run.out)["images"][0]["top"]] == [index for index, _, _ in top5(row)]
    del arrays["s2.0.shrink.w"]
    save_file(arrays, tmp_path / "lacking.safetensors")
    assert_is_error(cli("forward", "--weights", tmp_path / "lacking.safetensors"), "does not say which network")


def test_probabilities_and_few_classes(cli: Cli, tmp_path: Path) -> None:
    spec = TINY.replace(head=dataclasses.replace(TINY.head, classes=3, output="probabilities"))
    params = coatref.init(spec, scheme="distinct")
    coatref.save(params, tmp_path / "p.safetensors")
    top = json.loads(cli("forward", "--weights", tmp_path / "p.safetensors", "--json").out)["images"][0]["top"]
    row = coatref.forward(params, coatref.preprocess(photograph(), spec))[0]
    assert [guess["logit"] for guess in top] == [None] * 3
    assert [guess["probability"] for guess in top] == pytest.approx(sorted(row, reverse=True), abs=1e-6)
    assert cli("forward", "--weights", tmp_path / "p.safetensors").code == 0


def test_output_that_is_not_finite_is_an_error(cli: Cli, tmp_path: Path) -> None:
    params = coatref.init(TINY, scheme="distinct")
    signs = np.where(np.arange(7) % 2, -1, 1).astype(np.float32)  # so that one class or the other overflows
    w, b = np.full((64, 7), 3e38, np.float32) * signs, np.full(7, 3.4e38, np.float32)
    huge = params.replace({"head.classifier.w": w, "head.classifier.b": b})
    coatref.save(huge, tmp_path / "huge.safetensors")
    with np.errstate(all="ignore"):
        assert_is_error(cli("forward", "--weights", tmp_path / "huge.safetensors", "--json"), "not finite")


def test_definition_is_passed_on(monkeypatch: pytest.MonkeyPatch, cli: Cli, tiny: Path) -> None:
    asked = []

    def spy(params: Any, x: Any, *, backend: Any = None, threads: Any = None) -> Any:
        asked.append((type(params).__name__, backend, threads))
        return coatref.forward(params, x, backend=backend, threads=threads)

    monkeypatch.setattr(engine, "forward", spy)
    assert "the definition alone" not in cli("forward", "--weights", tiny).out
    assert "the definition alone" in cli("forward", "--weights", tiny, "--definition").out
    cli("forward", "--weights", tiny, "--threads", 2)
    assert asked == [("Prepared", None, None), ("Params", "definition", None), ("Prepared", None, 2)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threads", 0), "whole number of threads from 1"),
        (("--threads", 2, "--definition"), "threads=2 was asked for, which is a setting of the fast forms of NumPy"),
        (("--threads", 2, "--backend", "torch"), "torch.set_num_threads"),
    ],
)
def test_threads_that_nobody_would_heed_are_refused(cli: Cli, options: tuple[Any, ...], words: str) -> None:
    run = cli("forward", *options)
    assert run.code == 2 and words in run.err


def test_time_compares_the_forms(cli: Cli, tiny: Path) -> None:
    run = cli("forward", "--weights", tiny, "--time", "--json")
    timings = json.loads(run.out)["timings"]
    assert [each["form"] for each in timings] == ["definition", "fast forms", "fast forms, prepared"]
    assert all(0 < each["fastest_seconds"] <= each["median_seconds"] and each["images"] == 1 for each in timings)
    assert all(each["rounds"] >= 3 for each in timings)
    words = cli("forward", "--weights", tiny, "--time", "-q").out
    assert "Forward pass of 1 image" in words and "fast forms, prepared" in words
    words = cli("forward", "--weights", tiny, "--time", "-q", "--definition").out
    assert "definition" in words and "prepared" not in words


def test_time_of_jax_compiles_every_form(cli: Cli) -> None:
    timings = json.loads(cli("forward", "--backend", "jax", "--time", "--json").out)["timings"]
    assert [each["form"] for each in timings] == ["definition", "fast forms", "fast forms, prepared"]
    assert {each["images"] for each in timings} == {30}


def test_time_is_that_of_the_forward_pass_alone() -> None:
    params = coatref.init(TINY)

    def prepare(some: Any) -> Any:
        time.sleep(0.5)
        return np.zeros((len(some), *TINY.image_size, 3), np.float32)

    outputs, seconds = engine.classify(
        engine.make_engine("numpy", "float32", None, False), params, [0, 1, 2], prepare, chunk=2, quiet=True
    )
    assert outputs.shape == (3, 7) and 0 < seconds < 0.5


def test_chunks_keep_their_size_where_another_would_be_compiled_anew() -> None:
    seen = []

    def forward(params: Any, batch: Any) -> Any:
        seen.append(batch.shape[0])
        return batch

    made = engine.make_engine("numpy", "float32", None, False)
    compiling = dataclasses.replace(made, forward=forward, compiles=True)
    for one, sizes in ((compiling, [2, 2, 2]), (dataclasses.replace(compiling, compiles=False), [2, 2, 1])):
        seen.clear()
        rows = np.arange(10.0).reshape(5, 2)
        outputs, _ = engine.classify(one, coatref.init(TINY), rows, lambda some: some, chunk=2, quiet=True)
        np.testing.assert_array_equal(outputs, rows)
        assert seen == sizes


def test_device_is_found_by_its_name_or_kind(cli: Cli, tiny: Path) -> None:
    pytest.importorskip("array_api_strict")
    used = json.loads(cli("forward", "--weights", tiny, "--device", "cpu", "--json").out)["engine"]
    assert used["device"] == "cpu"
    strict = ("--backend", "array_api_strict", "--device", "device1")
    assert json.loads(cli("forward", "--weights", tiny, *strict, "--json").out)["engine"]["device"] == "device1"
    assert "on device1" in cli("forward", "--weights", tiny, *strict).out


# --- forward, without arguments ---


def test_forward_alone_counts_the_right_digits(cli: Cli, small_digits: tuple[Any, Any]) -> None:
    run = cli("forward")
    assert (run.code, run.err) == (0, "") and ESCAPE not in run.out and max(map(len, run.out.splitlines())) <= 80
    assert re.fullmatch(
        rf"70 of 75 right \(93\.3 %\), \d+\.\d\d s, NumPy {np.__version__} float32", run.out.splitlines()[-1]
    )
    pictures, labels = small_digits
    rows = [line.split() for line in run.out.splitlines()]
    said = (labels[10] - 1) % 10  # the first wrong one comes last
    assert ["label", *map(str, [*labels[:3], labels[10]])] in rows
    assert ["predicted", *map(str, [*labels[:3], said]), "(wrong)"] in rows
    lines = [line.ljust(80) for line in run.out.splitlines()]
    start = next(n for n, line in enumerate(lines) if line.startswith("label")) - 8
    for column, index in enumerate([0, 1, 2, 10]):
        left = 10 + 17 * column
        drawn = [line[left : left + 16] for line in lines[start : start + 8]]
        levels = np.rint(pictures[index] / pictures[index].max() * 4).astype(int)
        assert drawn == ["".join(" ░▒▓█"[level] * 2 for level in row) for row in levels]


@pytest.mark.parametrize(("backend", "name"), [("numpy", "NumPy"), ("torch", "PyTorch"), ("jax", "JAX")])
def test_forward_alone_on_every_backend(cli: Cli, small_digits: tuple[Any, Any], backend: str, name: str) -> None:
    pytest.importorskip(backend)
    run = cli("forward", "--backend", backend, "--quiet", "--definition")
    assert run.code == 0 and len(run.out.splitlines()) == 1
    assert run.out.startswith("70 of 75 right (93.3 %), ") and name in run.out and "definition" in run.out
    assert ("compiling included" in run.out) == (backend == "jax")


def test_forward_alone_in_json(cli: Cli, small_digits: tuple[Any, Any]) -> None:
    run = cli("forward", "--json", "--dtype", "float64")
    found = json.loads(run.out)
    assert (run.code, run.err) == (0, "")
    assert (found["total"], found["right"], found["labels"]) == (75, 70, small_digits[1].tolist())
    assert sum(a == b for a, b in zip(found["labels"], found["predictions"], strict=True)) == 70
    assert (found["engine"]["dtype"], found["spec"], found["image_size"]) == ("float64", "small", [32, 16])


def test_the_bundled_checkpoint_reads_the_bundled_digits(cli: Cli) -> None:
    run = cli("forward", "--json")
    assert run.code == 0, run.err
    found = json.loads(run.out)
    pictures, labels = digits.heldout()
    logits = coatref.forward(digits.checkpoint(), digits.upscale(pictures[:40]))
    assert found["labels"] == labels.tolist()
    assert found["predictions"][:40] == np.argmax(logits, axis=1).tolist()
    assert found["right"] / found["total"] > 0.97


@pytest.mark.parametrize(
    ("right", "chosen"),
    [
        ([True] * 6, [0, 1, 2, 3]),
        ([False, True, True, True, True], [1, 2, 3, 0]),
        ([False] * 6, [0, 1, 2, 3]),
        ([True, False], [0, 1]),
        ([True], [0]),
        ([True, False, False, False, False], [0, 1, 2, 3]),
    ],
)
def test_digits_to_draw(right: list[bool], chosen: list[int]) -> None:
    assert cli_digits.choose(np.array(right)) == chosen


# --- info ---


def test_info_json(cli: Cli, absent_library: str) -> None:
    run = cli("info", "--json")
    assert run.code == 0
    found = json.loads(run.out)
    assert found["coatref"] == coatref.__version__ and found["packages"]["numpy"] == np.__version__
    of = {entry["name"]: entry for entry in found["libraries"]}
    assert {"numpy", "torch", "jax", "cupy", "array_api_strict", absent_library} <= set(of)
    assert "jaxlib" not in of  # the same library again
    forms = of["numpy"].pop("forms")
    assert forms == {key: describe()["numpy"][key] for key in ("primitives", "steps")}
    assert of["numpy"] == {
        "name": "numpy",
        "version": np.__version__,
        "dtypes": ["float16", "float32", "float64"],
        "refused_dtypes": {},
        "devices": ["cpu"],
        "erf": "own",
        "fast_forms": sorted(registry.library("numpy").primitives),
        "without": {},
        "unavailable": None,
    }
    assert "pip install absent" in of[absent_library]["unavailable"]
    if not of["array_api_strict"]["unavailable"]:
        assert of["array_api_strict"]["erf"] == "standard form"


def test_info_text(cli: Cli, absent_library: str) -> None:
    run = cli("info")
    assert run.code == 0 and ESCAPE not in run.out and max(map(len, run.out.splitlines())) <= 80
    assert f"coatref {coatref.__version__}, Python {sys.version.split()[0]}" in run.out
    for words in (f"numpy {np.__version__}", "devices: cpu", "by the definition: max_pool", "prepared: own steps", "error function: its own", "pip install absent"):
        assert words in " ".join(run.out.split())


def test_info_survives_a_library_that_breaks(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    def broken() -> tuple[str, ...]:
        raise RuntimeError("no driver\nhere")

    changed = dataclasses.replace(registry.library("numpy"), devices=broken)
    monkeypatch.setattr("coatref.cli.info.library", lambda name: changed)
    assert {entry["unavailable"] for entry in json.loads(cli("info", "--json").out)["libraries"]} == {
        "RuntimeError: no driver here"
    }


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], ["nope", "coatref --help"]),
        (["specs", "--nope"], ["--nope", "coatref specs --help"]),
        (["spec"], ["NAME"]),
        (["spec", "coatnet_9"], ["coatnet_9", "similar names: coatnet_"]),
        (["spec", "coatnet_0", "--classes", "x"], ["--classes"]),
        (["spec", "coatnet_0", "--classes", "0"], ["classes"]),
        (["spec", "coatnet_0", "--size", "224x"], ["224x", "256x320"]),
        (["spec", "coatnet_0", "--size", "-1"], ["-1"]),
        (["spec", "coatnet_0", "--size", "0"], ["image_size"]),
        (["spec", "coatnet_0/windowed-attention", "--size", "225"], ["windows", "sizes that work"]),
        (["forward", "--dtype", "float16"], ["float16", "float64"]),
        (["forward", "--backend", "nope"], ["nope", "numpy"]),
        (["forward", "--device", "cuda:7"], ["cuda:7", "cpu"]),
        (["forward", "--image", "x.jpg"], ["--image", "--weights"]),
        (["forward", "--spec", "coatnet_0", "--size", "32"], ["--spec and --size", "--weights"]),
        (["forward", "--weights", "/nowhere/x.safetensors"], ["/nowhere/x.safetensors"]),
        (["forward", "--weights", "x.txt"], [".txt"]),
    ],
)
def test_wrong_usage_and_errors_take_one_line(cli: Cli, arguments: list[str], words: list[str]) -> None:
    assert_is_error(cli(*arguments), *words)


def test_errors_about_files(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    (tmp_path / "bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    assert_is_error(cli("forward", "--weights", tiny, "--image", tmp_path / "bad.jpg"), "bad.jpg")
    assert_is_error(cli("forward", "--weights", tiny, "--image", tmp_path / "none.jpg"), "none.jpg")
    assert_is_error(cli("forward", "--weights", tiny, "--image", tmp_path), str(tmp_path))
    good = ("--image", tmp_path / "good.png", "--image", tmp_path / "bad.jpg")
    assert_is_error(cli("forward", "--weights", tiny, *good), "bad.jpg")
    assert_is_error(cli("forward", "--weights", tmp_path / "bad.safetensors"), "bad.safetensors")
    assert_is_error(cli("forward", "--weights", tiny, "--spec", "coatnet_1"), "coatnet_1")
    assert_is_error(cli("forward", "--weights", tiny, "--spec", "nope"), "nope")
    assert_is_error(cli("forward", "--weights", tiny, "--size", "0x32"), "0")


def test_weights_that_do_not_fit(cli: Cli, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = dict(coatref.init("timm/test_coatnet").flatten())
    del tensors["s1.0.expand.w"]
    save_file(tensors, tmp_path / "lacking.safetensors")
    run = cli("forward", "--weights", tmp_path / "lacking.safetensors", "--spec", "timm/test_coatnet")
    assert_is_error(run, "missing: s1.0.expand.w")


def test_a_missing_library_is_named(cli: Cli, tiny: Path, absent_library: str) -> None:
    assert_is_error(cli("forward", "--weights", tiny, "--backend", absent_library), "pip install absent")
    assert_is_error(cli("forward", "--backend", absent_library), "pip install absent")


def test_control_characters_of_a_name_do_not_reach_the_terminal(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / f"a{ESCAPE}[31m\nb.png"
    assert_is_error(cli("forward", "--weights", tiny, "--image", path))
    Image.new("RGB", (4, 4)).save(path)
    run = cli("forward", "--weights", tiny, "--image", path)
    assert run.code == 0 and ESCAPE not in run.out and "a?[31m b.png" in run.out


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, ""),  # what some versions of typer make of it
        (MemoryError(), 2, "error: There is not enough memory"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "error: [Errno 13] Permission denied: 'x'"),
        (coatref.InputError("two\nlines \x1b[31m"), 2, "error: two lines ?[31m\n"),
        (ZeroDivisionError("a fault of ours"), 2, "Traceback"),
    ],
)
def test_exit_codes_of_exceptions(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, raised: BaseException, code: int, words: str
) -> None:
    def fail() -> Any:
        raise raised

    monkeypatch.setattr(digits, "heldout", fail)
    run = cli("forward")
    assert run.code == code and run.out == "" and run.err.startswith(words)


@pytest.mark.parametrize("arguments", [["specs"], ["specs", "--json"], ["forward", "--help"]])
def test_a_closed_pipe_is_no_error(arguments: list[str]) -> None:
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "coatref", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(timeout=60) == 141


# --- pipes and terminals ---


def test_json_is_all_there_is_on_stdout(tiny: Path) -> None:
    run = process("forward", "--weights", tiny, "--json")
    assert run.code == 0 and ESCAPE not in run.out + run.err
    assert json.loads(run.out)["images"][0]["top"]


def test_json_never_holds_what_is_not_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        print_json({"value": float("nan")})
    assert capsys.readouterr().out == ""


def test_a_pipe_without_unicode_gets_plain_characters() -> None:
    run = process("spec", "coatnet_0", PYTHONIOENCODING="ascii")
    assert run.code == 0 and run.out.isascii() and "25,036,948" in run.out


def test_a_name_that_a_pipe_cannot_show(tiny: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "é.png")
    run = process("forward", "--weights", tiny, "--image", tmp_path / "é.png", PYTHONIOENCODING="ascii")
    assert run.code == 0 and "?.png" in run.out


@pytest.fixture
def terminal() -> Iterator[Callable[..., Run]]:
    """Run a command on a terminal of 80 columns: both streams come as `out`."""
    pty, termios, fcntl = (pytest.importorskip(name) for name in ("pty", "termios", "fcntl"))
    main_end, its_end = pty.openpty()
    fcntl.ioctl(
        its_end,
        termios.TIOCSWINSZ,
        b"\x28\x00\x50\x00\0\0\0\0" if sys.byteorder == "little" else b"\0\x28\0\x50\0\0\0\0",
    )

    def run(*arguments: object, **environment: str) -> Run:
        command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "coatref", *map(str, arguments)]
        env = os.environ | {"TERM": "xterm-256color"} | environment
        with subprocess.Popen(command, cwd=ROOT, env=env, stdin=its_end, stdout=its_end, stderr=its_end) as running:
            os.close(its_end)
            text = b""
            while True:
                try:
                    text += (piece := os.read(main_end, 65536))
                except OSError:  # what Linux says at the end
                    break
                if not piece:
                    break
            return Run(running.wait(timeout=60), text.decode(), "")

    yield run
    os.close(main_end)


def test_a_terminal_gets_styles_and_progress(terminal: Callable[..., Run], tiny: Path) -> None:
    run = terminal("forward", "--weights", tiny)
    assert run.code == 0 and f"{ESCAPE}[1m" in run.out and "classifying" in run.out


def test_no_progress_when_quiet_on_a_terminal(terminal: Callable[..., Run], tiny: Path) -> None:
    run = terminal("forward", "--weights", tiny, "--quiet")
    assert run.code == 0 and ESCAPE not in run.out and len(run.out.splitlines()) == 1


def test_no_color_is_honoured_on_a_terminal(terminal: Callable[..., Run], tiny: Path) -> None:
    run = terminal("forward", "--weights", tiny, NO_COLOR="1")
    assert run.code == 0
    styles = {number for codes in re.findall(r"\x1b\[([0-9;]*)m", run.out) for number in codes.split(";")}
    assert styles <= {"0", "1", "2"}  # none, bold, dim: no colours


@pytest.mark.parametrize("text", ["", "x", "12x", "x12", "1x2x3", "1.5", "-3", "１２", "1e3", "9999999", "auto"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(coatref.InputError, match="--size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), (" 96X128 ", (96, 128)), (None, None)])
def test_sizes(text: str | None, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size
