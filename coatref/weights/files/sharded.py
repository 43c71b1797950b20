"""safetensors files in shards: an index, `NAME.safetensors.index.json`, that tells which file beside it holds what.

The index is {"metadata": {...}, "weight_map": {NAME OF A TENSOR: NAME OF A FILE, ...}}. Its metadata, sizes and counts, is
passed over: they are those of the tensors, which the shards themselves tell.
"""

from __future__ import annotations

import contextlib
from io import BufferedReader
from pathlib import Path
from typing import Any

from coatref.errors import FileFormatError
from coatref.weights.files.disk import beside, faults_of, opened, size_of
from coatref.weights.files.json_text import parsed
from coatref.weights.files.limits import LARGEST_HEADER, MOST_SHARDS
from coatref.weights.files.safetensors_file import read_safetensors
from coatref.weights.files.stored import Content

ENDING = ".safetensors.index.json"


def read_sharded(path: Path, held: contextlib.ExitStack) -> Content:
    """The tensors of every shard that an index names, checked and not read yet, and no metadata.

    Raises:
        FileNotFoundError: there is no such file, or a shard is missing.
        FileFormatError: the index is damaged, a shard lies elsewhere or is damaged, or they do not hold the same tensors.
    """
    file = opened(path, held)
    with faults_of(path, "no index of safetensors files", "fetch it again"):
        shards = shards_of(read_index(file))
        places = {shard: beside(path, shard) for shard in shards}
    tensors = {}
    for shard, names in shards.items():
        try:
            found, _ = read_safetensors(places[shard], held)
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no file {places[shard]}, which {path} names; fetch it too.") from None
        if found.keys() != names:
            raise FileFormatError(
                f"{path} and the file {shard} that it names do not agree on what that holds, such as "
                f"{min(found.keys() ^ names)!r:.100}; fetch both again."
            )
        tensors.update(found)
    return tensors, {}


def read_index(file: BufferedReader) -> Any:
    """The JSON of an index.

    Raises:
        FileFormatError: it is too long, or no JSON; the message is a part of a sentence.
    """
    if size_of(file) > LARGEST_HEADER:
        raise FileFormatError(f"it has {size_of(file)} bytes, more than the {LARGEST_HEADER} allowed")
    return parsed(file.read(LARGEST_HEADER))


def shards_of(index: Any) -> dict[str, set[str]]:
    """Name of each shard -> names of its tensors.

    Raises:
        FileFormatError: the index is otherwise built, or names too many files; the message is a part of a sentence.
    """
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise FileFormatError("its weight_map is not a mapping of texts to texts")
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(shard, set()).add(name)
    if len(shards) > MOST_SHARDS:
        raise FileFormatError(f"it names {len(shards)} files, and {MOST_SHARDS} are allowed")
    return shards
