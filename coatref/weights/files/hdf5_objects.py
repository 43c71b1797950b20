"""The objects of an HDF5 file: groups, datasets and the messages that describe them.

The HDF5 library is not used: of files with a few bytes changed, some crash it and some keep it busy for ever, which nothing
in Python can catch. Of the format, this reads what the library writes unless told otherwise, and so what Keras and h5py
write: superblocks of version 0 and 1, object headers of version 1, groups as symbol tables. All of it is described in the
"HDF5 File Format Specification", version 3, whose names are used here. Links of any kind are refused: only an object that
the file itself holds, in one place, is ever reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from typing import NamedTuple

from coatref.errors import FileFormatError
from coatref.weights.files.limits import LONGEST_NAME, MOST_TENSORS

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 2**64 - 1  # an address of nothing
DEEPEST = 16  # groups in groups
LARGEST_METADATA = 64 * 2**20  # bytes, everything but the numbers; a file of the largest CoAtNet has about 3 million

DATASPACE, DATATYPE, LINK_INFO, LINK, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE = (
    *(0x01, 0x03, 0x02, 0x06, 0x07, 0x08, 0x0B, 0x0C, 0x10, 0x11),
)
A_LINK = "it has a link, which may lead anywhere; copy what it leads to into the file itself"
SHARED = 0x02  # flag of a message that stands elsewhere


@dataclass
class Metadata:
    """A part of a file that is an HDF5 file, and how much of it has been read so far, which is bounded.

    Attributes:
        file: the file.
        start: where the part begins.
        size: how many bytes it has.
        entered: addresses of the structures read so far, none of which may be met twice.
        taken: how many bytes were read.
        heaps: the global heaps read so far: address -> index of an object -> its bytes.
    """

    file: BufferedReader
    start: int
    size: int
    entered: set[int] = field(default_factory=set)
    taken: int = 0
    heaps: dict[int, dict[int, bytes]] = field(default_factory=dict)

    def take(self, address: int, count: int) -> bytes:
        """So many bytes from an address on.

        Raises:
            FileFormatError: they are not in the file, or too much has been read; the message is a part of a sentence.
        """
        self.taken += count
        if address + count > self.size:
            raise FileFormatError(f"it has {self.size} bytes and should go on to {address + count}")
        if self.taken > LARGEST_METADATA:
            raise FileFormatError(f"it has more than {LARGEST_METADATA} bytes beside its numbers")
        self.file.seek(self.start + address)
        return self.file.read(count)

    def enter(self, address: int) -> None:
        """Begin with a structure, which must not have been read before.

        Raises:
            FileFormatError: it has been; the message is a part of a sentence.
        """
        if address in self.entered:
            raise FileFormatError(f"what it has at byte {address} is in two places")
        self.entered.add(address)


class Messages(NamedTuple):
    """What an object header says: pairs of the number of a message and its bytes."""

    address: int
    pairs: tuple[tuple[int, bytes], ...]

    def one(self, number: int) -> bytes:
        """The message of a number.

        Raises:
            FileFormatError: there is none, or more than one; the message is a part of a sentence.
        """
        found = [content for each, content in self.pairs if each == number]
        if len(found) != 1:
            raise FileFormatError(f"its object at byte {self.address} has {len(found)} messages of type {number}")
        return found[0]

    def has(self, number: int) -> bool:
        """Whether there is a message of a number."""
        return any(each == number for each, _ in self.pairs)


def number(content: bytes, begin: int, width: int) -> int:
    """An unsigned number in bytes.

    Raises:
        FileFormatError: they end before it does; the message is a part of a sentence.
    """
    if begin + width > len(content):
        raise FileFormatError("one of its structures ends too early")
    return int.from_bytes(content[begin : begin + width], "little")


def open_metadata(file: BufferedReader, start: int, size: int) -> tuple[Metadata, int]:
    """A part of a file as an HDF5 file, and the address of its root group.

    Raises:
        FileFormatError: it is none, or is of a later form; the message is a part of a sentence.
    """
    metadata = Metadata(file, start, size)
    if size < 8 or metadata.take(0, 8) != SIGNATURE:
        raise FileFormatError("it does not begin as one")
    version = metadata.take(8, 1)[0]
    if version > 1:
        raise later(f"superblock {version}")
    block = metadata.take(0, 100)
    if block[13:15] != b"\x08\x08":
        raise FileFormatError("its addresses do not take 8 bytes")
    base = 24 + 4 * version
    if number(block, base, 8) != 0:
        raise FileFormatError("its addresses count from within it")
    end = number(block, base + 16, 8)
    if end > size:
        raise FileFormatError(f"it has {size} bytes and should have {end}")
    metadata.size = end
    return metadata, number(block, base + 40, 8)


def later(what: str) -> FileFormatError:
    """The error for a part of the format that the library writes only when told to."""
    return FileFormatError(
        f"it is of a later form of HDF5 ({what}) than Keras and h5py write by themselves; copy it with h5py, without "
        "libver and track_order"
    )


def messages(metadata: Metadata, address: int) -> Messages:
    """The messages of the object header at an address.

    Raises:
        FileFormatError: there is none, or it has been read before; the message is a part of a sentence.
    """
    metadata.enter(address)
    prefix = metadata.take(address, 16)
    if prefix[:4] == b"OHDR":
        raise later("object header 2")
    if prefix[0] != 1:
        raise FileFormatError(f"it has no object at byte {address}, where one should be")
    left = number(prefix, 2, 2)
    blocks = [(address + 16, number(prefix, 8, 4))]
    found: list[tuple[int, bytes]] = []
    for begin, length in blocks:  # which grows
        block, position = metadata.take(begin, length), 0
        while position + 8 <= length and left > 0:
            kind, size, flags = number(block, position, 2), number(block, position + 2, 2), block[position + 4]
            content = block[position + 8 : position + 8 + size]
            if len(content) != size:
                raise FileFormatError(f"a message of its object at byte {address} ends too early")
            if kind == CONTINUATION:
                place = number(content, 0, 8)
                metadata.enter(place)
                blocks.append((place, number(content, 8, 8)))
            elif flags & SHARED:
                raise FileFormatError(
                    f"its object at byte {address} has a message, of type {kind}, that stands elsewhere"
                )
            else:
                found.append((kind, content))
            position, left = position + 8 + size, left - 1
    return Messages(address, tuple(found))


def objects(metadata: Metadata, root: int) -> Iterator[tuple[tuple[str, ...], Messages]]:
    """Every group and dataset by its path, groups before what is in them.

    Raises:
        FileFormatError: the file is damaged, has links, or too much in it; the message is a part of a sentence.
    """
    todo: list[tuple[tuple[str, ...], int]] = [((), root)]
    seen = 0
    while todo:
        path, address = todo.pop()
        found = messages(metadata, address)
        if any(number(content, 1, 1) & 8 and number(content, 2, 1) for kind, content in found.pairs if kind == LINK):
            raise FileFormatError(A_LINK)
        if found.has(LINK_INFO) or found.has(LINK):
            raise later("groups that are no symbol tables")
        yield path, found
        if found.has(SYMBOL_TABLE):
            for name, place in members(metadata, found.one(SYMBOL_TABLE)):
                seen += 1
                if len(path) == DEEPEST or seen > 4 * MOST_TENSORS:
                    raise FileFormatError(f"it has more than {4 * MOST_TENSORS} objects, or groups {DEEPEST} deep")
                todo.append(((*path, name), place))


def members(metadata: Metadata, table: bytes) -> Iterator[tuple[str, int]]:
    """Name and address of each object in a group, by its symbol table message.

    Raises:
        FileFormatError: the group is damaged, or has a link; the message is a part of a sentence.
    """
    tree, heap = number(table, 0, 8), number(table, 8, 8)
    head = metadata.take(heap, 32)
    if head[:4] != b"HEAP":
        raise FileFormatError(f"it has no names at byte {heap}, where they should be")
    names, before = metadata.take(number(head, 24, 8), number(head, 8, 8)), b""
    for node in leaves(metadata, tree, 0, 8):
        metadata.enter(node)
        start = metadata.take(node, 8)
        count = number(start, 6, 2)
        if start[:4] != b"SNOD":
            raise FileFormatError(f"it has no part of a group at byte {node}, where one should be")
        entries = metadata.take(node + 8, 40 * count)
        for at in range(0, 40 * count, 40):
            if number(entries, at + 16, 4) not in (0, 1):
                raise FileFormatError(A_LINK)
            name = name_at(names, number(entries, at, 8))
            if name.encode() <= before:  # no other reader would find it
                raise FileFormatError(f"its object {name!r:.100} is not in the order of names")
            before = name.encode()
            yield name, number(entries, at + 8, 8)


def name_at(names: bytes, offset: int) -> str:
    """The name that begins at an offset of a local heap.

    Raises:
        FileFormatError: there is none, or it is no name; the message is a part of a sentence.
    """
    name = names[offset : offset + LONGEST_NAME + 1].partition(b"\0")
    try:
        text = name[0].decode()
    except UnicodeDecodeError:
        text = ""
    if not text or not name[1] or "/" in text or text in (".", ".."):
        raise FileFormatError(f"it has an object without a name of at most {LONGEST_NAME} characters")
    return text


def leaves(metadata: Metadata, address: int, kind: int, width: int, level: int | None = None) -> Iterator[int]:
    """What the leaves of a tree (B-tree of version 1) of a group point to.

    Raises:
        FileFormatError: the tree is damaged; the message is a part of a sentence.
    """
    for _, child in entries(metadata, address, kind, width, level):
        yield child


def entries(
    metadata: Metadata, address: int, kind: int, width: int, level: int | None = None
) -> Iterator[tuple[bytes, int]]:
    """Key and address of each child in the leaves of a tree (B-tree of version 1).

    Args:
        metadata: the file.
        address: of a node.
        kind: 0 for a group, whose leaves point to parts of it; 1 for chunks of numbers.
        width: of a key, in bytes.
        level: how many levels are below the node; None for the root, which says so itself.

    Raises:
        FileFormatError: the tree is damaged; the message is a part of a sentence.
    """
    metadata.enter(address)
    head = metadata.take(address, 24)
    if head[:4] != b"TREE" or head[4] != kind or level not in (None, head[5]) or head[5] > DEEPEST:
        raise FileFormatError(f"it has no tree at byte {address}, where one should be")
    count = number(head, 6, 2)
    content = metadata.take(address + 24, count * (width + 8))
    for at in range(0, len(content), width + 8):
        key, child = content[at : at + width], number(content, at + width, 8)
        if head[5] == 0:
            yield key, child
        else:
            yield from entries(metadata, child, kind, width, head[5] - 1)
