"""Where a checkpoint is: a file, a folder in the hub's layout, or a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from coatref.errors import FileFormatError, InputError, WeightsError
from coatref.registry import missing
from coatref.weights.files import path_of
from coatref.weights.files.json_text import parsed

HUB = "hf-hub:"  # timm's prefix, and ours
REPOSITORY = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}")
CONFIG = "config.json"
LARGEST_CONFIG = 8 * 10**6  # bytes; timm's for 21,841 classes with their descriptions have some 2 million

# Names of the weights in a folder of the hub's layout, the better ones first.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)


class Located(NamedTuple):
    """A checkpoint's file, and what the config.json beside it says (None: there is none)."""

    path: Path
    config: dict[str, Any] | None


def located(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Located:
    """The file of a checkpoint, downloaded where it is not here yet.

    Args:
        source: a path; a folder with one of `WEIGHTS` in it; or "hf-hub:OWNER/NAME", perhaps with "@REVISION".
        revision: branch, tag or commit of a repository on the hub; None: its main one.
        cache_dir: folder that downloads are kept in; None: huggingface_hub's own (`HF_HOME`).
        token: of an account on the hub, or True for the one that is logged in; None: as huggingface_hub does.
        local_files_only: take only what is in the cache, and ask no server.

    Raises:
        InputError: it is no path, names no repository, or the hub has no such repository, revision or file.
        FileNotFoundError: there is no such file, or nothing of `WEIGHTS` in the folder.
        FileFormatError: the config.json is not to be read.
        OSError: the hub cannot be reached.
        MissingDependencyError: huggingface_hub is needed and not installed.
    """
    if isinstance(source, str) and source.startswith(HUB):
        return on_the_hub(
            source.removeprefix(HUB),
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
    path = path_of(source)
    if path.is_dir():
        name = next((name for name in WEIGHTS if (path / name).is_file()), None)
        if name is None:
            raise FileNotFoundError(f"There is none of {', '.join(WEIGHTS)} in the folder {path}; name a file.")
        path = path / name
    beside = path.parent / CONFIG
    return Located(path, read_json(beside) if beside.is_file() else None)


def on_the_hub(repository: str, *, revision: str | None, **options: Any) -> Located:
    """Download what a repository has; see `located`."""
    name, _, at = repository.partition("@")
    if not REPOSITORY.fullmatch(name) or ".." in name:
        raise InputError(
            f"{HUB}{repository:.200} names no repository of the hub; write {HUB}OWNER/NAME, perhaps with @REVISION."
        )
    if at and revision:
        raise InputError(f"{HUB}{repository:.200} names a revision, and revision={revision!r:.80} another; give one.")
    options["revision"] = at or revision
    config = fetch(name, CONFIG, **options)
    for file in WEIGHTS:
        path = fetch(name, file, **options)
        if path is None:
            continue
        if file.endswith(".index.json"):
            for shard in shards(path):
                if fetch(name, shard, **options) is None:
                    raise WeightsError(f"{file} of {name} lists the file {shard:.200}, which the repository lacks.")
        return Located(path, None if config is None else read_json(config))
    raise InputError(
        f"The repository {name} has none of {', '.join(WEIGHTS)} on the hub, or offline none in the cache; see whether "
        "its name is right."
    )


def fetch(repository: str, file: str, **options: Any) -> Path | None:
    """The path of one file of a repository, downloaded where it is not in the cache; None: it has no such file.

    Raises:
        InputError: there is no such repository or revision, or it is not open to this account.
        OSError: the hub cannot be reached.
        MissingDependencyError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import constants, errors, hf_hub_download
    except ImportError:
        raise missing("huggingface_hub", "hub", f"Loading {HUB}{repository}") from None
    try:
        endpoint = os.environ.get("HF_ENDPOINT") or None  # huggingface_hub looks at it only when it is imported
        return Path(hf_hub_download(repository, file, endpoint=endpoint, **options))
    except errors.LocalEntryNotFoundError:
        if options.get("local_files_only") or constants.HF_HUB_OFFLINE:
            return None
        raise OSError(
            f"The hub cannot be reached for {file} of {repository}, which is not in the cache either; see whether there "
            "is a network, or set HF_ENDPOINT to a mirror."
        ) from None
    except errors.EntryNotFoundError:
        return None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"The hub has no repository {repository}, or none that is open to this account; see whether its name is right, "
            "or pass token=..."
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(
            f"The repository {repository} has no revision {options.get('revision')!r:.100}; name one of its branches, tags "
            "or commits."
        ) from None
    except errors.HfHubHTTPError as error:
        raise OSError(f"The hub failed to give {file} of {repository}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something, cut short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def shards(index: Path) -> list[str]:
    """The files that the index of a sharded checkpoint lists.

    Raises:
        FileFormatError: it is no such index.
    """
    listed = read_json(index).get("weight_map")
    names = list(listed.values()) if isinstance(listed, dict) else []
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]{1,200}", name) for name in names):
        raise FileFormatError(f"{index} lists no files of a sharded checkpoint; fetch it again.")
    return list(dict.fromkeys(names))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        FileFormatError: it is too large, or no JSON object.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_CONFIG + 1)
    if len(content) > LARGEST_CONFIG:
        raise FileFormatError(f"{path} has more than the {LARGEST_CONFIG} bytes that it may have.")
    try:
        value = parsed(content)
    except FileFormatError as error:
        raise FileFormatError(f"{path} cannot be used: {error}.") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds a JSON {type(value).__name__} and not an object.")
    return value
