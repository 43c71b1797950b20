"""The pickle in a torch checkpoint, read as the list of instructions that it is, of which none is carried out.

Python's unpickler imports whatever a pickle names and calls it; torch's weights-only loading has a list of what may be
named, and still calls it. Here a name is a key of the table below and nothing is imported or called: the instructions
build tuples, lists and dicts of plain values, and a tensor is what the pickle says of it, its storage, offset, shape and
strides. Instructions are counted, and only plain values become keys, so no pickle takes much time or memory.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from coatref.errors import FileFormatError
from coatref.weights.files.limits import LONGEST_NAME
from coatref.weights.files.stored import MOST_AXES

MOST_INSTRUCTIONS = 500_000  # a tensor takes about 50, and a CoAtNet-7 with its optimizer has about 6000
MOST_ARGUMENTS = 8  # torch._utils._rebuild_tensor_v3 has all of them
LARGEST_KEY = 2**31 - 1  # numbers that are keys are small: those of parameters in the state of an optimizer

OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}

STORAGES = {  # torch's classes of storages -> safetensors' names of their types
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
TYPE = re.compile(r"(float|bfloat|complex|u?int|qu?int|bool|bits)[0-9a-z_]{0,20}")  # torch.float32 and so on
DTYPES = {"uint16": "U16", "uint32": "U32", "uint64": "U64"}  # torch's types that have no class of storages


@dataclass(frozen=True, eq=False, slots=True)
class Named:
    """Something that a pickle names, such as a class, and that may be named."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Other:
    """A value that is of no use here, such as a device or an object of settings."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """Numbers in the file: their key, the name of their type (None: it stands with the tensor), and how many they are."""

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A view of a storage: element (i, j, ...) is number offset + i strides[0] + j strides[1] + ... of it."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def rebuilt(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    """A tensor as `torch._utils._rebuild_tensor_v2` is told of it: then come requires_grad, hooks and metadata."""
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise FileFormatError("its pickle has a tensor of no storage")
    return Tensor(storage, storage.dtype, whole(offset), wholes(shape), wholes(strides))


def rebuilt_of_type(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    """The same for `_rebuild_tensor_v3`, which is told the type too: requires_grad, hooks, type, metadata."""
    if not isinstance(storage, Storage) or len(more) < 3 or not isinstance(more[2], Named):
        raise FileFormatError("its pickle has a tensor of no storage or no type")
    name = more[2].name.removeprefix("torch.")
    if name not in DTYPES:
        raise FileFormatError(f"its pickle has a tensor of type {more[2].name}, which coatref does not read")
    return Tensor(storage, DTYPES[name], whole(offset), wholes(shape), wholes(strides))


def parameter(data: Any, *more: Any) -> Any:
    """A `torch.nn.Parameter`, of which only its tensor counts."""
    return data


def ordered(*items: Any) -> dict[Any, Any]:
    """An `OrderedDict`, made empty or of pairs, which are gone then: one list that makes many dicts would take for ever."""
    content: dict[Any, Any] = {}
    pairs = items[0] if items and isinstance(items[0], list) else []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise FileFormatError("its pickle has a dict of something else than pairs")
        put(content, *pair)
    pairs.clear()
    return content


def size(*items: Any) -> tuple[Any, ...]:
    """A `torch.Size`."""
    return wholes(*items[:1])


def other(name: str) -> Callable[..., Any]:
    """What stands for every value made by something that is of no use here."""

    def made(*_: Any) -> Other:
        return Other(name)

    return made


USED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": ordered,
    "torch.Size": size,
    "torch._utils._rebuild_parameter": parameter,
    "torch._utils._rebuild_parameter_with_state": parameter,
    "torch._utils._rebuild_tensor": rebuilt,
    "torch._utils._rebuild_tensor_v2": rebuilt,
    "torch._utils._rebuild_tensor_v3": rebuilt_of_type,
}
UNUSED = (  # what stands beside tensors in checkpoints of training, and has no code that would have to run
    "_codecs.encode",  # as which Python 2's protocol has bytes
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.defaultdict",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "torch.device",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *("numpy.dtype", "numpy.ndarray"),
)
STORAGE = "torch.storage.UntypedStorage"


def named(module: Any, name: Any) -> Named:
    """A name in a pickle, if it is one of the table.

    Raises:
        FileFormatError: it is not, or is no text; the message is a part of a sentence.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise FileFormatError("its pickle asks for something by what is no name")
    full = f"{module[:100].replace('__builtin__', 'builtins')}.{name[:100]}"  # none of the table is so long
    if full in USED or full in UNUSED or full in (STORAGE, "torch.UntypedStorage"):
        return Named(full)
    if module == "torch" and (name in STORAGES or TYPE.fullmatch(name)):
        return Named(full)
    raise FileFormatError(
        f"its pickle asks for {full[:100]!r}, which is none of the tensors and plain values of weights"
    )


def call(function: Any, arguments: Any) -> Any:
    """What a pickle has by calling something of a table, of plain arguments.

    Raises:
        FileFormatError: it is not to be called so; the message is a part of a sentence.
    """
    if not isinstance(function, Named) or not isinstance(arguments, tuple):
        raise FileFormatError("its pickle calls what is no name")
    if function.name in UNUSED:
        return Other(function.name)
    if function.name not in USED or len(arguments) > MOST_ARGUMENTS:
        raise FileFormatError(f"its pickle calls {function.name} with {len(arguments)} arguments")
    try:
        return USED[function.name](*arguments)
    except TypeError:
        raise FileFormatError(f"its pickle calls {function.name} with {len(arguments)} arguments") from None


def storage_of(identity: Any) -> Storage:
    """The storage that a pickle refers to: ("storage", its class, its key, where it was, how many numbers, ...).

    Raises:
        FileFormatError: it refers to something else; the message is a part of a sentence.
    """
    if (
        not isinstance(identity, tuple)
        or not 5 <= len(identity) <= 6
        or identity[0] != "storage"
        or identity[5:] not in ((), (None,))
    ):
        raise FileFormatError("its pickle refers to something else than a storage")
    _, kind, key, _, count = identity[:5]
    if not isinstance(kind, Named) or not isinstance(key, str):
        raise FileFormatError("its pickle refers to a storage without a class or a key")
    name = kind.name.removeprefix("torch.")
    if name not in STORAGES and not name.endswith("UntypedStorage"):
        raise FileFormatError(f"its pickle refers to a storage of class {kind.name}, which coatref does not read")
    return Storage(key, STORAGES.get(name), whole(count))


def whole(value: Any) -> int:
    """A whole number of things.

    Raises:
        FileFormatError: it is none; the message is a part of a sentence.
    """
    if type(value) is not int or not 0 <= value < 2**63:
        raise FileFormatError("its pickle counts with something else than whole numbers")
    return value


def wholes(values: Any) -> tuple[int, ...]:
    """A shape or strides.

    Raises:
        FileFormatError: they are none; the message is a part of a sentence.
    """
    if not isinstance(values, (tuple, list)) or len(values) > MOST_AXES:
        raise FileFormatError(f"its pickle has a tensor without a shape or strides of at most {MOST_AXES} axes")
    return tuple(whole(value) for value in values)


def put(content: Any, key: Any, value: Any) -> None:
    """Put a pair into a dict; a key that is no short text or small number is kept apart, as it may take long to find."""
    if isinstance(content, dict):
        if isinstance(key, (str, bytes)):
            plain = len(key) <= LONGEST_NAME
        else:
            plain = type(key) is int and 0 <= key <= LARGEST_KEY
        content[key if plain else Other(type(key).__name__)] = value
    elif not isinstance(content, Other):
        raise FileFormatError("its pickle puts a pair into what is no dict")


def read_pickle(stream: IO[bytes]) -> Any:
    """What the next pickle of a stream describes, with a `Tensor` for each tensor.

    Raises:
        FileFormatError: it is damaged, too long, or asks for anything else than tensors and plain values; the message is
            a part of a sentence.
    """
    try:
        return interpreted(stream)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"its pickle is damaged ({type(error).__name__}: {str(error)[:100]})") from None


VALUES = (  # instructions that push a value which stands behind them
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": other("set"),
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
ESCAPED = ("STRING", "PERSID", "INST")  # have texts with escapes, of some of which Python warns


def interpreted(stream: IO[bytes]) -> Any:
    """What the next pickle of a stream describes.

    Raises:
        FileFormatError: it asks for something else than tensors and plain values; the message is a part of a sentence.
        ValueError, IndexError, KeyError, OverflowError: it is damaged.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below the marks
    memo: dict[int, Any] = {}
    argument: Any
    for name, argument in instructions(stream):
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[len(stack) - TUPLES[name] :])]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            outer.append(stack)
            stack = []
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET", "APPENDS", "SETITEMS", "ADDITEMS", "POP_MARK"):
            items, stack = stack, outer.pop()
            of_mark(name, items, stack)
        elif name == "APPEND":
            of_mark("APPENDS", [stack.pop()], stack)
        elif name == "SETITEM":
            of_mark("SETITEMS", [stack.pop(-2), stack.pop()], stack)
        elif name == "GLOBAL":
            stack.append(named(*argument))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [named(stack[-2], stack[-1])]
        elif name in ("REDUCE", "NEWOBJ"):
            stack[-2:] = [call(stack[-2], stack[-1])]
        elif name == "BUILD":  # attributes of the value below, of which none is of use
            stack.pop()
        elif name == "BINPERSID":
            stack.append(storage_of(stack.pop()))
        elif name == "POP":
            stack.pop()
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise FileFormatError(f"its pickle has the instruction {name}, which torch does not write")
    raise FileFormatError(f"its pickle has more than {MOST_INSTRUCTIONS} instructions")


def instructions(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Name and argument of each of the first instructions of a stream.

    Raises:
        FileFormatError: one is not known; the message is a part of a sentence.
        ValueError, OverflowError: an argument is damaged.
    """
    for _ in range(MOST_INSTRUCTIONS):
        code = stream.read(1)
        opcode = OPCODES.get(code)
        if opcode is None:
            raise FileFormatError(f"its pickle is damaged: {code!r} is no instruction, or the end too early")
        if opcode.name in ESCAPED:
            raise FileFormatError(f"its pickle has the instruction {opcode.name}, which torch does not write")
        if opcode.name == "GLOBAL":
            yield opcode.name, (line(stream), line(stream))
        else:
            yield opcode.name, None if opcode.arg is None else opcode.arg.reader(stream)


def line(stream: IO[bytes]) -> str:
    """The text of the next line of a stream.

    Raises:
        ValueError: it does not end, or is no text.
    """
    content = stream.readline()
    if content[-1:] != b"\n":
        raise ValueError("no newline found")
    return content[:-1].decode()


def of_mark(name: str, items: list[Any], stack: list[Any]) -> None:
    """Carry out an instruction on everything since the last mark: a new value on the stack, or more in the one there.

    Raises:
        FileFormatError: what is there takes no more; the message is a part of a sentence.
    """
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "LIST":
        stack.append(items)
    elif name == "FROZENSET":
        stack.append(Other("frozenset"))
    elif name == "APPENDS":
        if isinstance(stack[-1], list):
            stack[-1].extend(items)
        elif not isinstance(stack[-1], Other):
            raise FileFormatError("its pickle appends to what is no list")
    elif name in ("DICT", "SETITEMS"):
        if name == "DICT":
            stack.append({})
        for key, value in zip(items[::2], items[1::2], strict=True):
            put(stack[-1], key, value)
