"""Files of Keras: its weights in HDF5, and its `.keras` archives, which hold such a file."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path

from coatref.errors import FileFormatError
from coatref.weights.files.archive import content_of, damage_told, open_archive, place_of
from coatref.weights.files.disk import faults_of, opened, size_of
from coatref.weights.files.hdf5_objects import LAYOUT, SYMBOL_TABLE, objects, open_metadata
from coatref.weights.files.hdf5_values import dataset, text_attribute
from coatref.weights.files.json_text import parsed
from coatref.weights.files.keras_names import layer_names, plain_names, unused
from coatref.weights.files.limits import LARGEST_HEADER, MOST_TENSORS, refuse_bomb
from coatref.weights.files.stored import Content, Stored, Tensors

CONFIG, WEIGHTS = "config.json", "model.weights.h5"  # members of a .keras archive


def read_hdf5(path: Path, held: contextlib.ExitStack) -> Content:
    """The datasets of an HDF5 file under the names that Keras gives them, checked and not read yet, and no metadata.

    See `coatref.weights.files.keras_names` for the names, and `hdf5_objects` for what of HDF5 is read. A state of the
    optimizer is passed over.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is damaged, has links, holds what are no numbers, or is of a form of HDF5 that is not read.
    """
    file = opened(path, held)
    with faults_of(path, "no HDF5 file of weights"):
        return tensors_of(file, 0, size_of(file), {}), {}


def read_keras(path: Path, held: contextlib.ExitStack) -> Content:
    """The weights in a `.keras` archive, as those of an HDF5 file, by the names that its configuration gives the layers.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is damaged, or what is in it is: see `read_hdf5`.
    """
    file = opened(path, held)
    with faults_of(path, "no archive of Keras"):
        with damage_told():
            archive = open_archive(file, held)
            members = {member.filename: member for member in archive.infolist()}
            if CONFIG not in members or WEIGHTS not in members:
                raise FileFormatError(f"it has no members {CONFIG} and {WEIGHTS}")
            if members[WEIGHTS].compress_type != zipfile.ZIP_STORED:
                raise FileFormatError(f"its member {WEIGHTS} is packed, which Keras does not do")
            if members[CONFIG].file_size > LARGEST_HEADER:
                raise FileFormatError(f"its member {CONFIG} is longer than the {LARGEST_HEADER} bytes allowed")
            config = parsed(content_of(archive, members[CONFIG]))
            begin, end = place_of(file, members[WEIGHTS])
        return tensors_of(file, begin, end - begin, layer_names(config)), {}


def tensors_of(file: BufferedReader, start: int, size: int, known: Mapping[tuple[str, ...], str]) -> Tensors:
    """The datasets in a part of a file that is an HDF5 file.

    Args:
        file: open for reading.
        start: where the part begins.
        size: how many bytes it has.
        known: path of a group -> the layer's name, where something else tells it.

    Raises:
        FileFormatError: see `read_hdf5`; the message is a part of a sentence.
    """
    metadata, root = open_metadata(file, start, size)
    layers = dict(known)
    found: dict[tuple[str, ...], Stored] = {}
    unpacked = 0
    for path, messages in objects(metadata, root):
        if messages.has(SYMBOL_TABLE):
            name = text_attribute(metadata, messages, "name") if path[-1:] == ("vars",) else None
            if name is not None:
                layers[path[:-1]] = name
        elif not path or not messages.has(LAYOUT):
            raise FileFormatError(f"its object {'/'.join(path)!r:.100} is neither a group nor a dataset")
        elif not unused(path):
            found[path], needed = dataset(metadata, "/".join(path), messages)
            unpacked += needed
            if len(found) > MOST_TENSORS:
                raise FileFormatError(f"it has more than {MOST_TENSORS} datasets")
    refuse_bomb(unpacked, metadata.size)
    return plain_names(found, layers)
