"""Names of a checkpoint's classes: what its config.json says, else the tables that an installed timm brings."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coatref.errors import FileFormatError
from coatref.specification.fields import shown

LONGEST_NAME = 1000  # characters; the longest description that timm writes, with its definition, has 454

# timm's tables of classes by their number, which says what they are as far as timm knows: `infer_imagenet_subset`.
TABLES = {
    1000: "imagenet_synsets.txt",
    11221: "imagenet21k_miil_synsets.txt",
    11821: "imagenet12k_synsets.txt",
    21841: "imagenet22k_synsets.txt",
    21842: "imagenet22k_ms_synsets.txt",
    21843: "imagenet21k_goog_synsets.txt",
}
WORDS = "imagenet_synset_to_lemma.txt"  # WordNet's number of a class -> its names


def class_names(classes: int, config: Mapping[str, Any] | None) -> list[str] | None:
    """The name of every class, in order: a text as it was found, so print it with care.

    Args:
        classes: how many the network has.
        config: the checkpoint's config.json, as timm writes it: "label_names" and "label_descriptions", at the top or in
            "pretrained_cfg". None: it has none.

    Returns:
        The config's descriptions, or names where it has no descriptions; else, where timm is installed and `classes` is
        the number of one of its ImageNet tables, the words in that; else None. A number of classes does not prove which
        they are: a network of 1000 classes is taken for one of ImageNet-1k, as timm takes it.

    Raises:
        FileFormatError: the config's names are not one text for each class.
    """
    stated = names_in(classes, config or {})
    return imagenet_names(classes) if stated is None else stated


def names_in(classes: int, config: Mapping[str, Any]) -> list[str] | None:
    """The names that a config.json gives, checked; None where it gives none.

    "label_names" is a list, or an object from a class's number to its name, in which classes may be absent: such a class is
    called by its number. "label_descriptions" is an object from names to longer ones.

    Raises:
        FileFormatError: they are not one text for each class.
    """
    inner = config.get("pretrained_cfg")
    places = (config, inner if isinstance(inner, Mapping) else {})
    names, descriptions = (
        next((place[key] for place in places if place.get(key) is not None), None)
        for key in ("label_names", "label_descriptions")
    )
    if names is None:
        return None
    if isinstance(names, Mapping):
        names = in_order(classes, names)
    if not isinstance(names, (list, tuple)) or len(names) != classes:
        raise FileFormatError(
            f"The config's label_names must be {classes} texts, one for each class of the network, and is {shown(names)}; "
            "correct it, or take it out."
        )
    if descriptions is not None and not isinstance(descriptions, Mapping):
        raise FileFormatError(
            f"The config's label_descriptions must be an object of names and descriptions and is {shown(descriptions)}; "
            "correct it, or take it out."
        )
    for name in names:
        refuse_odd_name(name)
    found = [name if descriptions is None else descriptions.get(name, name) for name in names]
    for name in found:
        refuse_odd_name(name)
    return found


def in_order(classes: int, names: Mapping[str, Any]) -> list[Any]:
    """Names by class number as a list; an absent one is the number.

    Raises:
        FileFormatError: a key is no number of a class.
    """
    numbers = {str(number): number for number in range(classes)}
    result: list[Any] = list(numbers)
    for key, name in names.items():
        if key not in numbers:
            raise FileFormatError(
                f"The config's label_names names a class {shown(key)}, and the network's are 0 to {classes - 1}; correct "
                "it, or take it out."
            )
        result[numbers[key]] = name
    return result


def refuse_odd_name(name: Any) -> None:
    """Refuse what is no text of a sensible length.

    Raises:
        FileFormatError: it is not.
    """
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise FileFormatError(
            f"The config names a class {shown(name)}, and a name is a text of 1 to {LONGEST_NAME} characters; correct it, or "
            "take the names out."
        )


def imagenet_names(classes: int) -> list[str] | None:
    """The words for every class of the ImageNet table with that many, from the installed timm; None without either.

    The tables are read as files: importing timm imports torch and torchvision, which takes seconds and fails where one of
    them is broken, and nothing here needs them.
    """
    folder = timm_tables()
    if (
        folder is None
        or classes not in TABLES
        or not all((folder / file).is_file() for file in (TABLES[classes], WORDS))
    ):
        return None
    synsets = (folder / TABLES[classes]).read_text(encoding="utf-8").splitlines()
    words = dict(csv.reader((folder / WORDS).read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    return [words.get(synset, synset) for synset in synsets]


def timm_tables() -> Path | None:
    """The folder of timm's tables, without importing timm; None where it is not installed."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "data" / "_info"
