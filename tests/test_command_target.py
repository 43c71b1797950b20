"""Programs and folders of results as targets, and the files that both are handed."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coatref
from coatref.conformance.case_files import (
    DigestIndex,
    answer_path,
    case_path,
    digest,
    read_answer,
    read_case,
    write_case,
    write_cases,
)
from coatref.conformance.precision import Precision, as_stored
from coatref.conformance.targets import command, results
from coatref.conformance.tensor_files import read_tensors, stored_types, write_tensors
from coatref.errors import FileFormatError, InputError

Array = Any
SPEC = coatref.spec("coatnet_0", image_size=(32, 48), classes=5, depths=(2, 1, 1, 1, 1), widths=(4, 6, 8, 32, 64))
OTHER = coatref.spec("coatnet_0", image_size=(64, 32), classes=3, depths=(2, 1, 1, 1, 1), widths=(4, 6, 8, 32, 64))


def params(seed: int = 0, dtype: str = "float32", spec: coatref.Spec = SPEC) -> coatref.Params:
    drawn = coatref.init(spec, seed, dtype="float64", scheme="distinct")
    return drawn.replace({name: as_stored(array, dtype) for name, array in drawn.flatten().items()})


def images(batch: int = 2, dtype: str = "float32", spec: coatref.Spec = SPEC) -> Array:
    return as_stored(np.random.default_rng(batch).normal(size=(batch, *spec.image_size, 3)), dtype)


# --- tensors in files ---


@pytest.mark.parametrize("storage", ["float64", "float32", "float16", "bfloat16"])
def test_tensors_come_back_in_their_storage_type_as_the_safetensors_library_reads_them(
    tmp_path: Path, storage: str
) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs torch, which is not installed")
    arrays = {"mask": np.array([True, False, True]), "a": as_stored(np.linspace(-3, 3, 6).reshape(2, 3), storage)}
    arrays["edge"] = as_stored(np.array([0.0, -0.0, np.inf, 1e-39, 2.0**-14]), storage)
    write_tensors(tmp_path / "t.safetensors", arrays, storage, {"über": "maß"})
    theirs = safetensors.load_file(tmp_path / "t.safetensors")
    ours, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"über": "maß"} and str(theirs["a"].dtype) == f"torch.{storage}"
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours[name], array)
        found = theirs[name].float() if storage == "bfloat16" and name != "mask" else theirs[name]
        np.testing.assert_array_equal(found.numpy(), array)


def test_every_tensor_starts_at_a_multiple_of_its_item_size(tmp_path: Path) -> None:
    arrays = {"mask": np.ones(3, bool), "a": np.ones(2), "other": np.zeros(1, bool), "b": np.ones((3, 1))}
    write_tensors(tmp_path / "t.safetensors", arrays, "float64")
    content = (tmp_path / "t.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and all(header[name]["data_offsets"][0] % 8 == 0 for name in ("a", "b"))


def test_tensors_of_other_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Tensor a is int64"):
        write_tensors(tmp_path / "t.safetensors", {"a": np.arange(3)}, "float32")
    with pytest.raises(InputError, match="got 'int8'"):
        write_tensors(tmp_path / "t.safetensors", {}, "int8")


# --- cases ---


@pytest.mark.parametrize("storage", ["float64", "float32", "float16", "bfloat16"])
def test_a_case_comes_back_whole(tmp_path: Path, storage: str) -> None:
    precision = Precision(storage, "float64" if storage == "float64" else "float32")
    given, x = params(0, storage), images(2, storage)
    path = write_case(tmp_path, "a: case", SPEC, given, x, precision, check="wiring", about="About.")
    assert path.name == "a-case.safetensors" and len(set(stored_types(path).values())) == 1
    case = read_case(path)
    assert (case.name, case.check, case.about, case.precision) == ("a: case", "wiring", "About.", precision)
    assert case.params.spec == SPEC
    np.testing.assert_array_equal(case.x, x)
    for name, array in given.flatten().items():
        np.testing.assert_array_equal(case.params.flatten()[name], array)
    assert digest(case.params, case.x) == digest(given, x)


def test_the_digest_sees_every_number_and_no_type() -> None:
    given, x = params(), images()
    assert digest(given.to(dtype="float64"), x.astype(np.float64)) == digest(given, x)
    moved = x.copy()
    moved[-1, -1, -1, -1] += 1e-3
    bias = given.flatten()["head.classifier.b"]
    assert len({digest(given, x), digest(given, moved), digest(given.replace({"head.classifier.b": -bias}), x)}) == 3


def test_damaged_cases_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="write the cases first, with: coatref cases"):
        DigestIndex.read(tmp_path)
    with pytest.raises(InputError, match="There are no cases"):
        write_cases(tmp_path, [], Precision())
    write_tensors(tmp_path / "none.safetensors", {"x": images()}, "float32")
    with pytest.raises(FileFormatError, match="case format None"):
        read_case(tmp_path / "none.safetensors")
    path = write_case(tmp_path, "case", SPEC, params(), images(), Precision())
    tensors, metadata = read_tensors(path)
    del tensors["param/s0.conv1.w"]
    write_tensors(path, tensors, "float32", metadata)
    with pytest.raises(FileFormatError, match=r"no case that can be used.*s0\.conv1\.w"):
        read_case(path)
    with pytest.raises(InputError, match="which is not the"):
        write_case(tmp_path, "case", OTHER, params(), images(), Precision())
    (tmp_path / "index.json").write_text('{"format": "0"}')
    with pytest.raises(FileFormatError, match="has format '0'"):
        DigestIndex.read(tmp_path)
    index: Any = {"format": "1", "precision": {"storage": "float32", "accumulate": "float32"}}
    index["cases"] = [{"digest": "0", "file": "../../etc", "name": "n"}]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(FileFormatError, match="no plain file name"):
        DigestIndex.read(tmp_path)


# --- results ---


def written(folder: Path) -> list[Any]:
    cases = [
        ("amplifier: one", "amplifier", "About.", params(1), images(1)),
        ("amplifier one", "amplifier", "About.", params(2), images(2)),
        ("other", "random", "About.", params(3, spec=OTHER), images(3, spec=OTHER)),
    ]
    write_cases(folder, cases, Precision())
    return cases


def test_results_are_looked_up_by_what_they_were_computed_for(tmp_path: Path) -> None:
    cases = written(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "amplifier-one-2.safetensors",
        "amplifier-one.safetensors",
        "other.safetensors",
    ]
    target = results.make(str(tmp_path))
    assert target.spec == SPEC and target.precision == Precision() and target.variant is not None
    assert target.variant(OTHER).spec == OTHER
    with pytest.raises(InputError, match=r"no answer .*amplifier-one\.out\.safetensors to the case amplifier-one\.saf"):
        target.run(cases[0][3], cases[0][4])
    for file in DigestIndex.read(tmp_path).files.values():
        case = read_case(case_path(tmp_path, file))
        logits = coatref.forward(case.params, case.x)
        write_tensors(answer_path(tmp_path, file), {"logits": logits}, "float32")
    for _, _, _, given, x in cases:
        np.testing.assert_array_equal(target.run(given, x)["logits"], coatref.forward(given, x))
    with pytest.raises(InputError, match="has no case with these parameters"):
        target.run(params(9), images(1))
    with pytest.raises(InputError, match=r"written for float32, not for float64; judge with --dtype float32"):
        results.make(str(tmp_path), precision=Precision("float64", "float64"))


def test_an_answer_without_logits_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.out.safetensors", {"y": images()}, "float32")
    with pytest.raises(InputError, match="no tensor 'logits', only y"):
        read_answer(tmp_path / "a.out.safetensors")


# --- programs ---

RIGHT = """
import sys
from coatref import forward, load
from coatref.conformance.tensor_files import read_tensors, write_tensors
params = load(sys.argv[1])
x = read_tensors(sys.argv[2])[0]["input"]
write_tensors(sys.argv[3], {"logits": forward(params, x)}, "float32")
"""


def program(folder: Path, text: str) -> str:
    (folder / "my program.py").write_text(text)
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(folder / 'my program.py'))}"


def test_a_program_computes_any_network_that_it_is_told(tmp_path: Path) -> None:
    mine = program(tmp_path, RIGHT + "import json; assert json.load(open(sys.argv[4]))['channels'] == 3")
    target = command.make(f"{mine} {{params}} {{input}} {{output}} {{spec}}", spec=SPEC)
    assert target.takes_params and target.variant is not None
    for spec in (SPEC, OTHER):
        given, x = params(1, spec=spec), images(2, spec=spec)
        np.testing.assert_array_equal(target.variant(spec).run(given, x)["logits"], coatref.forward(given, x))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; print('no such layer', file=sys.stderr); sys.exit(3)", r"exit code 3\. It said:\nno such layer"),
        ("import os; os.abort()", "by signal 6"),
        ("pass", "wrote no {output} file. It said nothing"),
        ("import sys; open(sys.argv[3], 'w').write('x')", "cannot be used: .*no whole safetensors file"),
        ("import time; time.sleep(60)", "stopped after 2 seconds"),
        (RIGHT.replace('"logits"', '"y"'), "no tensor 'logits', only y"),
    ],
)
def test_a_program_that_fails_says_why(tmp_path: Path, text: str, message: str) -> None:
    options = {"timeout": "2"} if "sleep" in text else {}
    target = command.make(f"{program(tmp_path, text)} {{params}} {{input}} {{output}}", spec=SPEC, options=options)
    with pytest.raises((InputError, FileFormatError), match=message):
        target.run(params(), images())


def test_commands_that_cannot_be_judged_are_refused() -> None:
    for text, message in (
        ("./mine {input}", r"lacks \{output\}"),
        ('./mine "{input} {output}', "cannot be split into words"),
        ("./mine {params} {input} {output}", "pass --spec"),
    ):
        with pytest.raises(InputError, match=message):
            command.make(text)
    with pytest.raises(InputError, match=r"takes no \{params\}.*--weights"):
        command.make("./mine {input} {output}", spec=SPEC)
    with pytest.raises(InputError, match="timeout takes seconds above 0"):
        command.make("./mine {params} {input} {output}", spec=SPEC, options={"timeout": "soon"})
    with pytest.raises(InputError, match="cannot be started"):
        command.make("./no-such-program {params} {input} {output}", spec=SPEC).run(params(), images())
    quoted = command.make('"./mine {params} {input} {output}"', spec=SPEC)  # its quotation marks came with it
    assert quoted.takes_params and quoted.variant is None
    assert command.make("./mine {params} {input} {output} {spec}").spec == coatref.spec("coatnet_0")
    assert command.make("./mine {input} {output}", weights=params()).params is not None
