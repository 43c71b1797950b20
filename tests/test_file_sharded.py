"""safetensors in shards: an index can name nothing but files beside it, and they must hold what it says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hostile_files import (
    MEGABYTES,
    QUICK,
    SECONDS,
    damages,
    memory_limit,
    read_all,
    read_or_refused,
    refused,
    same_bits,
    time_limit,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from coatref.errors import FileFormatError
from coatref.weights.files import open_file
from coatref.weights.files.limits import LARGEST_HEADER, MOST_SHARDS

random = np.random.default_rng(0)
FIRST: dict[str, np.ndarray] = {"a.w": random.normal(size=(3, 4)), "a.b": random.normal(size=4).astype("f4")}
SECOND: dict[str, np.ndarray] = {"b.w": random.normal(size=(5, 2)).astype("f2"), "count": np.array(7)}
SHARDS = {"model-00001-of-00002.safetensors": FIRST, "model-00002-of-00002.safetensors": SECOND}
MAP = {name: shard for shard, arrays in SHARDS.items() for name in arrays}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An index, with its shards beside it."""
    (tmp_path / "repository").mkdir()
    for shard, arrays in SHARDS.items():
        safetensors.numpy.save_file(arrays, tmp_path / "repository" / shard, metadata={"format": "pt"})
    return written(tmp_path / "repository" / "model.safetensors.index.json", MAP)


def written(path: Path, weight_map: Any, **more: Any) -> Path:
    path.write_text(json.dumps({"metadata": {"total_size": 1234}, "weight_map": weight_map} | more))
    return path


def test_every_tensor_of_every_shard(path: Path) -> None:
    same_bits(read_all(path), FIRST | SECOND)
    with open_file(path) as (_, metadata):
        assert metadata == {}
    path.rename(path.with_name("Other.SafeTensors.Index.JSON"))
    same_bits(read_all(path.with_name("Other.SafeTensors.Index.JSON")), FIRST | SECOND)


def test_relative_paths(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    same_bits(read_all(Path(path.name)), FIRST | SECOND)


def test_one_shard_and_none(path: Path) -> None:
    shard = "model-00001-of-00002.safetensors"
    same_bits(read_all(written(path, dict.fromkeys(FIRST, shard))), FIRST)
    assert read_all(written(path, {})) == {}


PLACES = [
    *("", ".", "..", "/", "\\", "\0", "a\0.safetensors", "a/b.safetensors", "./a.safetensors", "../a.safetensors"),
    *("..\\a.safetensors", "/etc/passwd", "C:a.safetensors", "C:\\a.safetensors", "\\\\host\\a.safetensors", " "),
    *("a.safetensors:stream", "~/a.safetensors/", "a\n.safetensors", "\u202ea.safetensors", "n" * 256),
]


@pytest.mark.parametrize("name", PLACES)
def test_names_with_a_path_in_them(path: Path, name: str) -> None:
    for folder in (path.parent, path.parent.parent):
        safetensors.numpy.save_file(FIRST, folder / "a.safetensors")
    written(path, dict.fromkeys(FIRST, name))
    refused(lambda: read_all(path), FileFormatError, str(path), "plain name")


def test_a_link_out_of_the_folder(path: Path) -> None:
    """Where a file of the index's name would be, an archive may have brought a link to anything."""
    shard, elsewhere = path.parent / "model-00001-of-00002.safetensors", path.parent.parent / "a.safetensors"
    shard.rename(elsewhere)
    shard.symlink_to(elsewhere)
    refused(lambda: read_all(path), FileFormatError, str(path), "link that leads out")
    elsewhere.rename(path.parent / "b.safetensors")
    shard.unlink()
    shard.symlink_to("b.safetensors")
    same_bits(read_all(path), FIRST | SECOND)


def test_a_link_to_the_folder(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path.parent)
    same_bits(read_all(tmp_path / "link" / path.name), FIRST | SECOND)


@pytest.mark.parametrize("blobs", ["models--owner--name/blobs", "blobs/ab"])
def test_a_cache_of_the_hub(path: Path, tmp_path: Path, blobs: str) -> None:
    """Every file of a snapshot is a link to the repository's blobs, in newer versions to those of the whole cache."""
    snapshot = tmp_path / "cache" / "models--owner--name" / "snapshots" / "0123abc"
    store = tmp_path / "cache" / blobs
    snapshot.mkdir(parents=True)
    store.mkdir(parents=True)
    for number, file in enumerate(sorted(path.parent.iterdir())):
        file.rename(store / f"{number:064}")
        (snapshot / file.name).symlink_to(os.path.relpath(store / f"{number:064}", snapshot))
    same_bits(read_all(snapshot / path.name), FIRST | SECOND)
    shard = snapshot / "model-00001-of-00002.safetensors"
    shard.rename(tmp_path / "cache" / "models--owner--name" / "link")
    (tmp_path / "other.safetensors").write_bytes(shard.parent.joinpath(path.name).read_bytes())
    shard.symlink_to(tmp_path / "other.safetensors")
    refused(lambda: read_all(snapshot / path.name), FileFormatError, "link that leads out")


def test_a_shard_that_is_missing_or_no_file(path: Path) -> None:
    shard = path.parent / "model-00002-of-00002.safetensors"
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors.*index\.json names"):
        read_all(path)
    os.mkfifo(shard)
    refused(lambda: read_all(path), FileFormatError, str(shard), "regular file")


def test_a_shard_that_is_damaged(path: Path) -> None:
    shard = path.parent / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(lambda: read_all(path), FileFormatError, str(shard), "fetch it again")


def test_shards_that_hold_something_else(path: Path) -> None:
    first, second = SHARDS
    for weight_map, part in (
        (MAP | {"more": first}, "'more'"),
        ({name: shard for name, shard in MAP.items() if name != "a.b"}, "'a.b'"),
        (MAP | {"a.b": second}, "'a.b'"),
    ):
        written(path, weight_map)
        refused(lambda: read_all(path), FileFormatError, str(path), part, "do not agree")
    safetensors.numpy.save_file(SECOND | {"a.b": FIRST["a.b"]}, path.parent / second)
    written(path, MAP)
    refused(lambda: read_all(path), FileFormatError, str(path), "'a.b'", second)


INDEXES: dict[str, tuple[str, str]] = {
    "nothing": ("", "JSON"),
    "no JSON": ("{'weight_map': {}}", "JSON"),
    "a list": ("[]", "weight_map"),
    "no map": ("{}", "weight_map"),
    "a map that is a list": ('{"weight_map": ["a"]}', "weight_map"),
    "a map to numbers": ('{"weight_map": {"a": 1}}', "weight_map"),
    "a map to lists": ('{"weight_map": {"a": ["b"]}}', "weight_map"),
    "a name twice": ('{"weight_map": {"a": "b", "a": "b"}}', "repeats a key"),
    "a map twice": ('{"weight_map": {}, "weight_map": {}}', "repeats a key"),
    "brackets": ("[" * 10**5, "JSON"),
    "half a surrogate": ('{"weight_map": {"a": "\\ud800.safetensors"}}', "plain name"),
    "many files": (
        json.dumps({"weight_map": {str(n): f"{n}.safetensors" for n in range(MOST_SHARDS + 1)}}),
        f"{MOST_SHARDS} are allowed",
    ),
    "a long one": ("{" + " " * LARGEST_HEADER + "}", f"{LARGEST_HEADER} allowed"),
}


@pytest.mark.parametrize("what", INDEXES)
def test_a_hostile_index(path: Path, what: str) -> None:
    content, part = INDEXES[what]
    path.write_text(content)
    with time_limit(SECONDS), memory_limit(MEGABYTES):
        refused(lambda: read_all(path), FileFormatError, str(path), part)


@given(st.lists(damages(), min_size=1, max_size=3))
@settings(QUICK, max_examples=60)
def test_damage_is_seen_or_harmless(path: Path, damage: list[Callable[[bytes], bytes]]) -> None:
    content = written(path, MAP).read_bytes()
    for each in damage:
        content = each(content)
    path.write_bytes(content)
    try:
        read_or_refused(path)
    except FileNotFoundError as error:
        assert "names" in str(error)
