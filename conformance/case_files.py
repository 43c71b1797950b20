"""Cases on disk, for implementations that cannot be called from here.

A folder of cases holds one safetensors file for each case and an index:

    index.json
    NAME.safetensors          a case: what to compute on
    NAME.out.safetensors      an answer: what an implementation made of it, written by its author

A case file (the format of safetensors is described in `coatref.conformance.tensor_files`) has the tensors

    "x"                  (N, H, W, channels), the images, channels last
    "param/DOTTED.NAME"  every parameter under coatref's dotted name, such as "param/s3.0.attn.q.w"; kernels are
                         (kh, kw, C, D), depthwise kernels (kh, kw, C), dense ones (C, D)

all of the storage type ("F64", "F32", "F16" or "BF16"), and the metadata, all texts:

    "coatref.case.format"     "1", the version of this format
    "coatref.case.name"       the case's name, as reports show it
    "coatref.case.check"      the kind of check it belongs to, such as "wiring"
    "coatref.case.about"      what it would show, in one sentence
    "coatref.case.spec"       the network, as the JSON of `Spec.to_json`
    "coatref.case.precision"  {"storage": ..., "accumulate": ...}, the declared arithmetic
    "coatref.case.digest"     identifies parameters and images; see `digest`

An answer file has the tensor "logits" (N, classes), of the storage type or float32 or wider, and optionally any value that
`coatref.trace` names, under that name and in that shape, such as "s3.0.attn.logits". It may have any metadata.

index.json is {"format": "1", "precision": {...}, "cases": [{"file", "name", "check", "about", "digest", "spec"}, ...]}, where
"file" is the NAME of the files and "spec" the name of the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coatref.conformance.precision import Precision
from coatref.conformance.tensor_files import read_tensors, write_tensors
from coatref.errors import CoatrefError, FileFormatError, InputError
from coatref.params import Params, from_flat
from coatref.specification.spec import Spec
from coatref.weights.files import path_of

FORMAT = "1"
KEY = "coatref.case."
PARAMETER = "param/"
INDEX = "index.json"

NamedCase = tuple[str, str, str, Params, np.ndarray]  # name, check, about, parameters, images


@dataclass(frozen=True, eq=False)
class Case:
    """A case as it was read: its name, what it is for, and what to compute on. `params.spec` is the network."""

    name: str
    check: str
    about: str
    precision: Precision
    params: Params
    x: np.ndarray


def digest(params: Params, x: np.ndarray) -> str:
    """A text that identifies parameters and images, whatever the type that holds them.

    SHA-256 over the images and then every parameter in order of its name: the name, a line end, the shape as JSON, a line
    end, and the values as little-endian float64 in C order.
    """
    sha = hashlib.sha256()
    for name, array in [("x", x), *sorted(params.flatten().items())]:
        values = np.asarray(array, dtype="<f8")
        sha.update(f"{name}\n{json.dumps(list(values.shape))}\n".encode())
        sha.update(values.tobytes())
    return sha.hexdigest()


def file_name(case: str) -> str:
    """A case's name as the name of a file: letters, digits, points and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", case).strip("-.") or "case"


def case_path(folder: str | os.PathLike[str], file: str) -> Path:
    """Where the case of that file name is."""
    return path_of(folder) / f"{file}.safetensors"


def answer_path(folder: str | os.PathLike[str], file: str) -> Path:
    """Where the answer to the case of that file name belongs."""
    return path_of(folder) / f"{file}.out.safetensors"


def write_case(
    folder: str | os.PathLike[str],
    name: str,
    spec: Spec,
    params: Params,
    x: np.ndarray,
    precision: Precision,
    *,
    check: str = "",
    about: str = "",
    file: str | None = None,
) -> Path:
    """Write one case, without the index.

    Args:
        folder: that exists.
        name, check, about: as in `Case`.
        spec: the network; it must be that of the parameters.
        params: NumPy arrays.
        x: (N, H, W, channels).
        precision: the declared arithmetic; tensors are written in its storage type.
        file: NAME of the file; made from the case's name when None.

    Returns:
        The path of the file.

    Raises:
        InputError: the spec is not that of the parameters.
        OSError: the file cannot be written.
    """
    if params.spec != spec:
        raise InputError(
            f"Case {name!r:.80} has parameters of spec {params.spec.name!r}, which is not the {spec.name!r} it was given."
        )
    values = {
        "format": FORMAT,
        "name": name,
        "check": check,
        "about": about,
        "spec": spec.to_json(),
        "precision": json.dumps(asdict(precision)),
        "digest": digest(params, x),
    }
    path = case_path(folder, file or file_name(name))
    tensors = {"x": x} | {PARAMETER + key: np.asarray(array) for key, array in params.flatten().items()}
    write_tensors(path, tensors, precision.storage, {KEY + key: value for key, value in values.items()})
    return path


def write_cases(folder: str | os.PathLike[str], cases: Iterable[NamedCase], precision: Precision) -> Path:
    """Write cases (name, check, about, parameters, images) and their index; the folder is made where it is not there.

    Returns:
        The path of the index.

    Raises:
        InputError: there are no cases.
        OSError: a file cannot be written.
    """
    folder = path_of(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, str]] = []
    for name, check, about, params, x in cases:
        file = unused(file_name(name), {entry["file"] for entry in entries})
        write_case(folder, name, params.spec, params, x, precision, check=check, about=about, file=file)
        entry = {"file": file, "name": name, "check": check, "about": about}
        entries.append(entry | {"digest": digest(params, x), "spec": params.spec.name})
    if not entries:
        raise InputError(f"There are no cases to write to {folder}.")
    index = {"format": FORMAT, "precision": asdict(precision), "cases": entries}
    (folder / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder / INDEX


def unused(file: str, taken: set[str]) -> str:
    """The file name, with a number behind it where it is taken (also by one that differs in capitals only)."""
    lower, number, found = {name.lower() for name in taken}, 1, file
    while found.lower() in lower:
        number += 1
        found = f"{file}-{number}"
    return found


def read_case(path: str | os.PathLike[str]) -> Case:
    """One case from its file.

    Raises:
        FileNotFoundError, FileFormatError: there is no such file, or it is no case of this format.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get(KEY + "format") != FORMAT:
        raise FileFormatError(
            f"{path} has case format {metadata.get(KEY + 'format')!r:.50} and this version reads {FORMAT!r}; "
            "write the cases anew with `coatref cases`."
        )
    try:
        spec = Spec.from_json(metadata[KEY + "spec"])
        precision = precision_from(json.loads(metadata[KEY + "precision"]))
        x = tensors.pop("x")
        params = from_flat(spec, {key.removeprefix(PARAMETER): array for key, array in tensors.items()})
        name, check, about = (metadata[KEY + key] for key in ("name", "check", "about"))
    except (CoatrefError, KeyError, ValueError) as error:
        raise FileFormatError(f"{path} is no case that can be used: {error}") from None
    return Case(name, check, about, precision, params, x)


def precision_from(plain: Any) -> Precision:
    """The declared arithmetic from its JSON object.

    Raises:
        InputError: it is none.
    """
    if not isinstance(plain, dict) or set(plain) != {"storage", "accumulate"}:
        raise InputError(f"A precision has the texts storage and accumulate, got {plain!r:.80}.")
    return Precision(**plain)


def read_answer(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The values of an answer file: "logits", and others by their names in a trace.

    Raises:
        FileNotFoundError, FileFormatError: there is no such file, or it is no whole safetensors file.
        InputError: it has no "logits".
    """
    tensors, _ = read_tensors(path)
    if "logits" not in tensors:
        raise InputError(f"{path} has no tensor 'logits', only {', '.join(sorted(tensors)[:8]) or 'none at all'}.")
    return tensors


@dataclass(frozen=True)
class DigestIndex:
    """The index of a folder of cases: which file is the case of given parameters and images.

    Attributes:
        folder: that it lies in.
        precision: of all its cases.
        files: digest -> NAME of the files.
        names: digest -> name of the case.
    """

    folder: Path
    precision: Precision
    files: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def read(folder: str | os.PathLike[str]) -> DigestIndex:
        """The index of a folder that `write_cases` wrote.

        Raises:
            InputError: the folder has no index.
            FileFormatError: the index is damaged, or of another format.
        """
        path = path_of(folder) / INDEX
        if not path.is_file():
            raise InputError(f"There is no {path}; write the cases first, with: coatref cases {path.parent}")
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if plain["format"] != FORMAT:
                raise ValueError(f"it has format {plain['format']!r:.50} and this version reads {FORMAT!r}")
            cases = [(str(case["digest"]), str(case["file"]), str(case["name"])) for case in plain["cases"]]
            precision = precision_from(plain["precision"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is no index of cases: {type(error).__name__}: {error}") from None
        if bad := [file for _, file, _ in cases if file_name(file) != file]:
            raise FileFormatError(f"{path} names the file {bad[0]!r:.80}, which is no plain file name.")
        return DigestIndex(
            path.parent,
            precision,
            {key: file for key, file, _ in cases},
            {key: name for key, _, name in cases},
        )

    def find(self, params: Params, x: np.ndarray) -> str:
        """NAME of the files of the case with these parameters and images.

        Raises:
            InputError: there is none.
        """
        found = self.files.get(digest(params, x))
        if found is None:
            raise InputError(
                f"{self.folder} has no case with these parameters (of spec {params.spec.name!r}) and images "
                f"{tuple(np.shape(x))}: judge with the spec, precision, level and seed that the cases were written with, or "
                f"write them anew with: coatref cases {self.folder}"
            )
        return found
