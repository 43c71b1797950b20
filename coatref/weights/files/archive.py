"""Zip archives, looked into without believing what they say."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from io import BufferedReader

from coatref.errors import FileFormatError
from coatref.weights.files.disk import size_of
from coatref.weights.files.limits import LARGEST_HEADER, MOST_TENSORS, refuse_bomb

END = b"PK\5\6"  # begins the record at the end of an archive; a comment of less than 2**16 bytes may follow it
END_64 = b"PK\6\6"  # begins the one of an archive larger than 4 GB, which stands before it

LOCAL_HEADER = 30  # bytes before the name of a member, the lengths of that and of what follows it at 26

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError)


@contextlib.contextmanager
def damage_told() -> Iterator[None]:
    """Turn everything that Python's zipfile raises for a damaged archive into our error, a part of a sentence.

    Raises:
        FileFormatError: the archive is damaged.
    """
    try:
        yield
    except FileFormatError:
        raise
    except (*DAMAGE, OSError) as error:  # OSError: a seek to a place before the file
        raise FileFormatError(f"it is no whole zip archive ({type(error).__name__}: {str(error)[:200]})") from None


def open_archive(file: BufferedReader, held: contextlib.ExitStack) -> zipfile.ZipFile:
    """An archive whose list of members has been checked.

    Raises:
        FileFormatError: it is damaged; it has too many members, two of one name, or members that are larger than it,
            encrypted, or packed otherwise than by deflate; or it would unpack to far more than its size. The message is a
            part of a sentence.
    """
    size = size_of(file)
    with damage_told():
        refuse_long_list(file, size)
        archive = held.enter_context(zipfile.ZipFile(file))
    members = archive.infolist()
    if len(members) > MOST_TENSORS:
        raise FileFormatError(f"it has {len(members)} members, and {MOST_TENSORS} are allowed")
    if len(set(archive.namelist())) != len(members):
        raise FileFormatError("two of its members have the same name")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise FileFormatError(
                f"its member {member.filename!r:.100} is encrypted, or packed otherwise than by deflate"
            )
        if member.compress_size > size:  # as many are asked for at once when it is read
            raise FileFormatError(f"it has {size} bytes and its member {member.filename!r:.100} should take more")
    refuse_bomb(sum(member.file_size for member in members), size)
    return archive


def refuse_long_list(file: BufferedReader, size: int) -> None:
    """Refuse an archive whose list of members is long: it is read as a whole, and takes many times its size in memory.

    Raises:
        FileFormatError: it is longer than any list of tensors.
    """
    start = max(0, size - 2**16 - 2**10)
    file.seek(start)
    tail = file.read(size - start)
    for signature, at, width in ((END, 12, 4), (END_64, 40, 8)):
        place = -1
        while (place := tail.find(signature, place + 1)) >= 0:
            length = int.from_bytes(tail[place + at : place + at + width], "little")
            if LARGEST_HEADER < length <= size:
                raise FileFormatError(
                    f"its list of members takes {length} bytes, more than the {LARGEST_HEADER} allowed"
                )
    file.seek(0)


def content_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a member: as many as it says, so that no more are unpacked.

    Raises:
        FileFormatError: it is damaged; the message is a part of a sentence.
    """
    with damage_told(), archive.open(member) as stream:
        return stream.read(member.file_size)


def place_of(file: BufferedReader, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of a member that is not packed begin and end in the file.

    Raises:
        FileFormatError: they are not in it; the message is a part of a sentence.
    """
    file.seek(member.header_offset)
    header = file.read(LOCAL_HEADER)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    begin = member.header_offset + LOCAL_HEADER + name + extra
    end = begin + member.file_size
    if header[:4] != b"PK\3\4" or end > size_of(file):
        raise FileFormatError(f"its member {member.filename!r:.100} is not where it should be")
    return begin, end
