"""The wire format of protocol buffers, walked without a schema and without taking what it holds into memory.

A message is a sequence of fields: a varint that is 8 times the field's number, plus 0 for a varint, 1 for eight bytes, 2 for a
length (a varint) and so many bytes, or 5 for four bytes; and then that. A varint has seven bits in each byte, the lowest
first, and the eighth bit set in all but its last byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader

import numpy as np

from coatref.errors import FileFormatError

MOST_FIELDS = 500_000  # in a file; torch's graph of the largest CoAtNet has about 100,000
LONGEST_TEXT = 4096  # bytes
STEP = 2**16  # bytes of varints taken at once: the work on them takes many times as many

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
LENGTHS = {VARINT: 0, EIGHT: 8, FOUR: 4}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its number, its kind, the value of a varint, and where the bytes of the other kinds are."""

    number: int
    kind: int
    value: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Message:
    """A part of a file that is a message, and the number of all fields seen in the file so far, which is bounded."""

    file: BufferedReader
    begin: int
    end: int
    seen: list[int] = field(default_factory=lambda: [0])

    def inside(self, found: Field) -> Message:
        """The message that is in a field.

        Raises:
            FileFormatError: the field is of another kind; the message is a part of a sentence.
        """
        if found.kind != BYTES:
            raise FileFormatError(f"its field {found.number} is no message")
        return Message(self.file, found.begin, found.end, self.seen)

    def fields(self) -> Iterator[Field]:
        """Every field, in the order of the file.

        Raises:
            FileFormatError: there is no whole field where one should be, or too many; the message is a part of a sentence.
        """
        position = self.begin
        while position < self.end:
            self.seen[0] += 1
            if self.seen[0] > MOST_FIELDS:
                raise FileFormatError(f"it has more than {MOST_FIELDS} fields")
            self.file.seek(position)
            head = self.file.read(min(20, self.end - position))
            tag, used = varint(head, 0)
            kind, value, begin = tag & 7, 0, position + used
            if kind in (VARINT, BYTES):
                value, used = varint(head, used)
                begin = position + used
            length = value if kind == BYTES else LENGTHS.get(kind, -1)
            position = begin + length
            if length < 0 or position > self.end:
                raise FileFormatError(f"its field {tag >> 3} at byte {begin} is of no known kind, or ends beyond it")
            yield Field(tag >> 3, kind, value, begin, position)

    def text(self, found: Field) -> str:
        """The text in a field.

        Raises:
            FileFormatError: there is none, or a long one; the message is a part of a sentence.
        """
        content = self.content(found, LONGEST_TEXT)
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise FileFormatError(f"its field {found.number} at byte {found.begin} is no text") from None

    def content(self, found: Field, most: int) -> bytes:
        """The bytes in a field.

        Raises:
            FileFormatError: it has none, or more than `most`; the message is a part of a sentence.
        """
        if found.kind != BYTES or found.end - found.begin > most:
            raise FileFormatError(f"its field {found.number} at byte {found.begin} is longer than {most} bytes")
        self.file.seek(found.begin)
        return self.file.read(found.end - found.begin)


def varint(content: bytes, start: int) -> tuple[int, int]:
    """A varint in bytes, and where it ends.

    Raises:
        FileFormatError: there is no whole one of at most 64 bits; the message is a part of a sentence.
    """
    value = 0
    for index, byte in enumerate(content[start : start + 10]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value & (2**64 - 1), start + index + 1
    raise FileFormatError("it has a number that does not end")


def varints(content: bytes, dtype: str = "u8") -> np.ndarray:
    """All varints in bytes, one after the other, as unsigned numbers of a type, of which the lowest bits are kept.

    Raises:
        FileFormatError: they are not whole; the message is a part of a sentence.
    """
    parts = np.frombuffer(content, np.uint8)
    found = [np.empty(0, dtype)]
    position = 0
    while position < len(parts):
        piece = parts[position : position + STEP]
        ends = np.flatnonzero(piece < 128)
        if not len(ends):
            raise FileFormatError("it has numbers that do not end")
        found.append(of_piece(piece, ends).astype(dtype))
        position += int(ends[-1]) + 1
    return np.concatenate(found)


def of_piece(parts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The varints that end at some places of a few bytes, as uint64.

    Raises:
        FileFormatError: one is too long; the message is a part of a sentence.
    """
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if np.max(lengths) > 10:
        raise FileFormatError("it has numbers that do not end")
    values = np.zeros(len(ends), np.uint64)
    for index in range(int(np.max(lengths))):
        longer = lengths > index
        part = parts[starts[longer] + index].astype(np.uint64) & np.uint64(127)
        values[longer] |= part << np.uint64(7 * index)
    return values
