"""Changes of files: of any bytes, and of what a format is made of, with lengths and checksums made right again.

A change that leaves the outer form whole gets deeper: one member of an archive, the header of an array, one instruction of
a pickle, one field of a protocol buffer, one value of a JSON text.
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from benchmarks.fuzz.cases import NAMES, Case, packed, taken_apart
from benchmarks.fuzz.tables import rows_of, table, varint

LARGEST = 60_000  # bytes of a case

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 9, 16, 17, 24, 32, 48, 64, 100, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31,
           2**32 - 1, 2**32, 2**59, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, 10**30, 1e308, 0.5, -0.0, float("nan"), float("inf")),
    *("", "a", "..", "../x", "a/b", "\0", "\ud800", "F32", "BF16", "I64", "\u00e9" * 200, "x" * 3000, "square"),
    *([], {}, [0], [1, 2], [[]], {"a": 1}, [3] * 9, [2**40, 2**40], [0, 2**58], [-1], {"": {}}),
)
Change = Callable[[random.Random, bytes], bytes]


def mutated(reader: str, content: bytes, seed: int, others: list[bytes], plain: Change | None = None) -> bytes:
    """A changed case.

    Args:
        reader: whose case it is.
        content: a case, packed.
        seed: of the change.
        others: cases of the same reader, of which parts may be taken.
        plain: what changes bytes of no known form; None: `any_bytes`.
    """
    dice = random.Random(seed)
    plain = plain or any_bytes
    if dice.random() < 0.1:
        return plain(dice, content)[:LARGEST]
    case = taken_apart(reader, content)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        name = dice.choice([name for name in NAMES[reader] if name in case])
        if dice.random() < 0.75:
            name = NAMES[reader][0]
        try:
            form = name if name in FORMS else name.rpartition(".")[2].split("-")[0]
            change = plain if dice.random() < 0.2 else FORMS[form]
            case[name] = change(dice, case[name])
        except Exception:  # noqa: BLE001 - a changed file need not be one of its format any more
            case[name] = plain(dice, case[name])
    if others and dice.random() < 0.05:
        case |= some(dice, taken_apart(reader, dice.choice(others)))
    return packed(reader, case)[:LARGEST]


def some(dice: random.Random, case: Case) -> Case:
    """One file of a case."""
    name = dice.choice(list(case))
    return {name: case[name]}


# --- bytes ---


def any_bytes(dice: random.Random, content: bytes) -> bytes:
    """Bytes changed, lost, added, repeated or moved, or a number of some width put in."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 4, 8))):
        at = dice.randrange(len(changed) + 1) if dice.random() < 0.7 else dice.randrange(min(len(changed), 64) + 1)
        kind = dice.randrange(7)
        length = dice.choice((1, 1, 2, 4, 8, 40))
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = dice.randrange(256)
        elif kind == 2:
            width = dice.choice((1, 2, 4, 8))
            value = dice.choice((*NUMBERS, len(content), dice.randrange(len(content) + 1))) + dice.choice(
                (0, 0, 0, -1, 1)
            )
            changed[at : at + width] = (value % 2 ** (8 * width)).to_bytes(
                width, dice.choice(("little", "little", "big"))
            )
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = dice.randbytes(length)
        elif kind == 5:
            changed[at:at] = changed[at : at + length] * dice.choice((1, 1, 2, 50))
        elif kind == 6:
            source = dice.randrange(len(changed) + 1)
            changed[at : at + length] = changed[source : source + length]
    return bytes(changed[:LARGEST])


# --- JSON ---


def json_text(dice: random.Random, content: bytes) -> bytes:
    """A JSON text of which one value or key is another; rarely one that repeats a key, or is nested deeply."""
    value = json.loads(content)
    kind = dice.randrange(24)
    if kind == 0:
        depth = dice.choice((10, 300, 990, 1100, 20000))
        return b"[" * depth + content[:100] + b"]" * depth
    if kind == 1:
        return content.replace(b"{", b'{"a": 1, "a": 2, ', 1)
    if kind == 2:
        return content.replace(b"1", dice.choice((b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"1.0", b"-0")), 1)
    return json.dumps(json_value(dice, value), ensure_ascii=dice.random() < 0.9).encode("utf-8", "surrogatepass")


def json_value(dice: random.Random, value: Any) -> Any:
    """A value of which one part is another."""
    places: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, (dict, list)):
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            places += [(part, key) for key in keys]
            todo += [part[key] for key in keys]
    if not places or dice.random() < 0.02:
        return copy.deepcopy(dice.choice(ODD))
    where, key = dice.choice(places)
    kind = dice.randrange(8)
    if kind == 0:
        del where[key]
    elif kind == 1:
        other, again = dice.choice(places)
        where[key] = copy.deepcopy(other[again])
    elif kind == 2 and isinstance(where, dict):
        where[str(dice.choice((*ODD, key + "x", key[:-1], key + "." + key)))[:4000]] = where.pop(key)
    elif kind == 3 and isinstance(where, list):
        where.insert(key, copy.deepcopy(where[key]))
    elif isinstance(where[key], int) and not isinstance(where[key], bool) and kind < 7:
        where[key] += dice.choice((1, -1, 4, -4, 8, *NUMBERS))
    else:
        where[key] = copy.deepcopy(dice.choice(ODD))
    return value


# --- safetensors ---


def safetensors_file(dice: random.Random, content: bytes) -> bytes:
    """Another header, of the length that the file says; sometimes other data too."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if dice.random() < 0.35:
        header = joined(dice, json.loads(header), data)
    elif dice.random() < 0.7:
        header = json_text(dice, header)
    else:
        header = any_bytes(dice, header)
    return struct.pack("<Q", len(header)) + header + data


def joined(dice: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    """A header whose tensors have other types and shapes of as many bytes, or other names."""
    names = [name for name in header if name != "__metadata__"]
    name = dice.choice(names)
    entry = header[name]
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    entry["dtype"] = dice.choice(("F16", "BF16", "F32", "F64", "I8", "U8", "U16", "I64", "BOOL", "F8_E4M3"))
    width = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "U16": 2, "I64": 8}.get(entry["dtype"], 1)
    entry["shape"] = dice.choice(([size // width], [1, size // width, 1], [size // width // 2, 2], [0, size], [1] * 9))
    if dice.random() < 0.3:
        other = dice.choice(names)
        header = {(other + ".x" if each == name else each): value for each, value in header.items()}
    return json.dumps(header).encode()


def network_file(dice: random.Random, content: bytes) -> bytes:
    """A right file of which tensors are gone, added, named or shaped otherwise."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    texts = header.pop("__metadata__", None)
    shapes = {name: entry["shape"] for name, entry in header.items()}
    for _ in range(dice.choice((1, 1, 2, 5))):
        name = dice.choice(list(shapes))
        kind = dice.randrange(8)
        if kind == 0:
            del shapes[name]
        elif kind == 1:
            shapes[renamed(dice, name)] = shapes[name]
        elif kind == 2:
            shapes = {renamed(dice, each) if each == name else each: shape for each, shape in shapes.items()}
        elif kind == 3:
            shapes[name] = dice.choice(
                ([], [0], [1], [2, 2], [0, 2**40], [2**57, 0], [1] * 8, shapes[name][::-1], [5] * 4)
            )
        elif kind == 4:
            old, new = (
                dice.choice((".", "/", "0", "1", "_", "blocks")),
                dice.choice((".", "/", "9" * 1200, "1", "", "\ud800")),
            )
            shapes = {each.replace(old, new): shape for each, shape in shapes.items()}
        elif kind == 5:
            prefix = dice.choice(("module.", "model.", "_orig_mod.", "x/", "module.module."))
            shapes = {prefix + each: shape for each, shape in shapes.items()}
        elif shapes[name]:
            shapes[name] = [*shapes[name]]
            shapes[name][dice.randrange(len(shapes[name]))] = dice.choice((0, 1, 2, 3, 7, 64))
        shapes = shapes or {"x": [1]}
    position, new_header = 0, {} if texts is None or dice.random() < 0.5 else {"__metadata__": texts}
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        if size > 4000:
            size, shape = 2, []
        new_header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(new_header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(position)


def renamed(dice: random.Random, name: str) -> str:
    """Another name: a part is gone, repeated, or another number."""
    parts = re.split(r"([./_:])", name)
    at = dice.randrange(len(parts))
    parts[at] = dice.choice(
        ("", parts[at] * 2, str(dice.choice(NUMBERS)), "x", "9" * 900, "\u0663", "weight", dice.choice(parts))
    )
    return "".join(parts)


# --- archives ---


def archive(dice: random.Random, content: bytes, change: Change | None = None) -> bytes:
    """An archive of which one member is another, with right checksums; or packed otherwise, or with another list."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [(member.filename, old.read(member), member.compress_type) for member in old.infolist()]
    kind = dice.randrange(12)
    if members:
        index = dice.randrange(len(members))
        name, data, packing = members[index]
        if kind == 0:
            packing = zipfile.ZIP_STORED + zipfile.ZIP_DEFLATED - packing
        elif kind == 1:
            name = dice.choice((name + "x", "../" + name, "a/" + name, name[1:], "\u00e9.npy", "x" * 300 + ".npy"))
        elif kind == 2:
            del members[index]
        elif kind == 3:
            members.append((name + "2", data, packing))
        elif kind == 4:
            data = data + bytes(dice.choice((1, 8, 50_000)))
        else:
            data = (change or member_of(name))(dice, data)
        if index < len(members):
            members[index] = (name, data, packing)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as new:
        for name, data, packing in members:
            new.writestr(zipfile.ZipInfo(name), data, packing)
    packed_again = target.getvalue()
    return listed_otherwise(dice, packed_again) if dice.random() < 0.2 else packed_again


def listed_otherwise(dice: random.Random, content: bytes) -> bytes:
    """An archive whose list or local headers say something else of a member, or of the list."""
    places = [at for mark in (b"PK\1\2", b"PK\5\6", b"PK\3\4") for at in every(content, mark)]
    at = dice.choice(places) + dice.choice((4, 6, 8, 10, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 42))
    width = dice.choice((2, 4))
    old = int.from_bytes(content[at : at + width], "little")
    value = dice.choice((*NUMBERS, old + 1, old - 1, old + 30, old * 2, 0xFFFFFFFF, 8, 1)) & ((1 << 8 * width) - 1)
    return content[:at] + value.to_bytes(width, "little") + content[at + width :]


def every(content: bytes, mark: bytes) -> list[int]:
    """Where some bytes begin."""
    found, at = [], content.find(mark)
    while at >= 0:
        found.append(at)
        at = content.find(mark, at + 1)
    return found


def member_of(name: str) -> Change:
    """What changes a member of an archive, by its name."""
    for ending, change in (
        (".npy", array_file),
        (".pkl", pickle),
        (".json", json_text),
        (".h5", hdf5_file),
    ):
        if name.endswith(ending):
            return change
    return any_bytes


def array_file(dice: random.Random, content: bytes) -> bytes:
    """An array whose header says something else, of the length that it says."""
    width = 2 if content[6] == 1 else 4
    length = int.from_bytes(content[8 : 8 + width], "little")
    header, data = content[8 + width : 8 + width + length], content[8 + width + length :]
    kind = dice.randrange(6)
    words = {
        b"<f4": (b"<f2", b"<i4", b">f4", b"|O", b"<c8", b"<U1", b"<f16", b"<m8", b"=f4", b"f4"),
        b"False": (b"True", b"0", b"None"),
        b"(": (
            b"(0, ",
            b"(-1, ",
            b"(1, ",
            b"(9223372036854775807, ",
            b"(18446744073709551616, ",
            b"((",
            b"[",
            b"(1" + b",1" * 40,
        ),
        b"'shape'": (b"'shape': (), 'shape'", b"'Shape'"),
    }
    if kind < 4:
        word = dice.choice([word for word in words if word in header])
        header = header.replace(word, dice.choice(words[word]), 1)
    elif kind == 4:
        header = any_bytes(dice, header)
    else:
        data = any_bytes(dice, data)
    version = dice.choice((content[6], content[6], 1, 2, 3, 4))
    return content[:6] + bytes([version, 0]) + len(header).to_bytes(2 if version == 1 else 4, "little") + header + data


# --- pickles ---


def pickle(dice: random.Random, content: bytes) -> bytes:
    """A pickle of which instructions are lost, repeated, moved, added or have another argument."""
    stream = io.BytesIO(content)
    parts: list[bytes] = []
    starts = [at for _, _, at in pickletools.genops(stream)]
    for begin, end in zip(starts, [*starts[1:], stream.tell()], strict=True):
        parts.append(content[begin:end])
    tail = content[stream.tell() :]
    for _ in range(dice.choice((1, 1, 2, 3, 6))):
        at = dice.randrange(len(parts))
        length = dice.choice((1, 1, 2, 5, 12))
        kind = dice.randrange(6)
        if kind == 0:
            del parts[at : at + length]
        elif kind == 1:
            parts[at:at] = parts[at : at + length] * dice.choice((1, 1, 2, 100))
        elif kind == 2:
            source = dice.randrange(len(parts))
            parts[at:at] = parts[source : source + length]
        elif kind == 3:
            parts[at:at] = [instruction(dice) for _ in range(dice.choice((1, 2, 3)))]
        elif kind == 4:
            parts[at] = instruction(dice)
        elif len(parts[at]) > 1:
            parts[at] = parts[at][:1] + any_bytes(dice, parts[at][1:])
        parts = parts or [b"."]
    return b"".join(parts) + tail


INSTRUCTIONS = (
    *(b"}", b"]", b")", b"(", b"t", b"l", b"d", b"u", b"s", b"a", b"e", b"0", b"1", b"N", b"\x88", b"\x89", b"R", b"b", b"\x81"),
    *(b"\x85", b"\x86", b"\x87", b"Q", b".", b"\x8f", b"\x90", b"\x91", b"\x94", b"\x93", b"2", b"h\0", b"h\1", b"q\0", b"q\1"),
    *(b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\xff", b"I01\n", b"I-7\n", b"L99L\n", b"F1e999\n", b"G\x7f\xf8\0\0\0\0\0\0"),
    *(b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\xff" + b"\x7f" * 255, b"\x8b\xd0\x07\0\0" + b"\x7f" * 2000, b"\x8b\xff\xff\xff\x7f"),
    *(b"X\3\0\0\0abc", b"X\3\0\0\0\xed\xa0\x80", b"V\\ud800\n", b"S'a\\d'\n", b"S'\\x4'\n", b"U\1a", b"C\1a", b"\x8c\1a", b"P7\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch\nSize\n", b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
    *(b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nFloatStorage\n", b"ctorch\nfloat32\n", b"ctorch.storage\nUntypedStorage\n"),
    *(b"c__builtin__\nset\n", b"cbuiltins\nbytearray\n", b"cargparse\nNamespace\n", b"X\7\0\0\0storage", b"X\3\0\0\0cpu"),
    *(b"\x80\x02", b"\x95" + bytes(8), b"\x96" + bytes(8), b"\x82\1", b"i", b"o", b"cnewline\n", b"\x92", b"p1\n", b"g1\n", b"r\0\0\1\0"),
)  # fmt: skip


def instruction(dice: random.Random) -> bytes:
    """An instruction of a pickle, some with an argument that asks for trouble."""
    return dice.choice(INSTRUCTIONS)


def torch_file(dice: random.Random, content: bytes) -> bytes:
    """A checkpoint with another pickle: a member of the archive, or one of the stream of the older format."""
    if content[:2] == b"PK":
        change = pickle_inside if dice.random() < 0.7 else None
        return archive(dice, content, change)
    stream, ends = io.BytesIO(content), [0]
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    which = dice.choice((0, 1, 2, 3, 3, 3, 3, 3, 4, 4))
    begin, end = ends[which], ends[which + 1]
    return content[:begin] + pickle(dice, content[begin:end]) + content[end:]


def pickle_inside(dice: random.Random, content: bytes) -> bytes:
    """A pickle changed, anything else as it is."""
    return pickle(dice, content) if content[:1] == b"\x80" else content


# --- HDF5 ---

MARKS = (b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR")


def hdf5_file(dice: random.Random, content: bytes) -> bytes:
    """A number in the metadata is another: an address of something, a length, a count."""
    changed = bytearray(content)
    places = [at for mark in MARKS for at in every(content, mark)]
    headers = [at for at in every(content, b"\1\0") if at % 8 == 0]  # of objects
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        around = dice.choice((places, headers, headers, [0]))
        start = dice.choice(around or [0])
        at = start + dice.choice((dice.randrange(0, 160), 8 * dice.randrange(0, 40), 4 * dice.randrange(0, 60)))
        width = dice.choice((1, 1, 2, 4, 8, 8))
        old = int.from_bytes(changed[at : at + width], "little")
        value = dice.choice(
            (
                *(dice.choice(NUMBERS), dice.choice(places or [0]), dice.choice(headers or [0]), len(content)),
                *(old + 1, old - 1, old + 8, old - 8, old * 2, old ^ 1 << dice.randrange(8 * width)),
            )
        )
        changed[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
    if dice.random() < 0.05:
        begin, end = sorted((dice.choice(headers or [0]), dice.randrange(len(changed))))
        changed += changed[begin:end]
    return bytes(changed[:LARGEST])


# --- protocol buffers ---


def protobuf(dice: random.Random, content: bytes, depth: int = 0) -> bytes:
    """A message of which one field, at any depth, is changed, lost, repeated or moved, with lengths made right."""
    fields = fields_of(content)
    if not fields:
        return varint(dice.randrange(1, 130)) + varint(dice.choice(NUMBERS))
    at = dice.randrange(len(fields))
    tag, value = fields[at]
    kind = dice.randrange(10)
    if kind == 0:
        del fields[at]
    elif kind == 1:
        fields[at:at] = [fields[at]] * dice.choice((1, 1, 2, 9))
    elif kind == 2:
        fields.insert(at, dice.choice(fields))
    elif kind == 3:
        fields[at] = (tag & 7 | 8 * dice.randrange(1, 18), value)
    elif isinstance(value, int):
        fields[at] = (tag, dice.choice((*NUMBERS, value + 1, max(0, value - 1), dice.randrange(24))) % 2**64)
    elif tag & 7 == 2:
        try:
            fields[at] = (
                tag,
                protobuf(dice, value, depth + 1) if depth < 6 and len(value) > 1 else any_bytes(dice, value),
            )
        except (ValueError, IndexError):
            fields[at] = (
                tag,
                any_bytes(dice, value) if dice.random() < 0.8 else dice.choice((b"w.bin", b"../w.bin", b"m.onnx")),
            )
    else:
        fields[at] = (tag, dice.randbytes(len(value)))
    return b"".join(
        varint(tag)
        + (varint(value) if isinstance(value, int) else (varint(len(value)) if tag & 7 == 2 else b"") + value)
        for tag, value in fields
    )


def fields_of(content: bytes) -> list[tuple[int, int | bytes]]:
    """Tag and value of each field.

    Raises:
        ValueError, IndexError: it is no message.
    """
    fields: list[tuple[int, int | bytes]] = []
    place = 0
    while place < len(content):
        tag, place = read_varint(content, place)
        length = {1: 8, 5: 4}.get(tag & 7, 0)
        value: int | bytes
        if tag & 7 == 0:
            value, place = read_varint(content, place)
        elif tag & 7 in (1, 2, 5) and tag >> 3:
            if tag & 7 == 2:
                length, place = read_varint(content, place)
            value, place = content[place : place + length], place + length
        else:
            raise ValueError("no field")
        if place > len(content):
            raise ValueError("no whole field")
        fields.append((tag, value))
    return fields


def read_varint(content: bytes, place: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while shift < 70:
        byte = content[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
    raise ValueError("no number")


def index_file(dice: random.Random, content: bytes) -> bytes:
    """A table with another entry: its key, or a field of its value; the order is kept most of the time."""
    rows = rows_of(content)
    if not rows or dice.random() < 0.1:
        rows.append((dice.randbytes(3), dice.choice(rows)[1] if rows else b""))
    at = dice.randrange(len(rows))
    key, value = rows[at]
    kind = dice.randrange(8)
    if kind == 0:
        del rows[at]
    elif kind == 1:
        key = any_bytes(dice, key)
    elif kind == 2:
        value = any_bytes(dice, value)
    else:
        value = protobuf(dice, value)
    if kind:
        rows[at] = (key, value)
    if dice.random() < 0.9:
        rows = sorted(dict(rows).items())
    return table(rows, dice.choice((1, 2, 7)))


FORMS: dict[str, Change] = {
    "safetensors": safetensors_file,
    "model.safetensors": network_file,
    "json": json_text,
    "npz": archive,
    "h5": hdf5_file,
    "keras": archive,
    "onnx": protobuf,
    "bin": any_bytes,
    "pth": torch_file,
    "index": index_file,
    "data": any_bytes,
}
