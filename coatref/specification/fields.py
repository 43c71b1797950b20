"""Checked, JSON-serialisable dataclasses: the machinery under the spec, with no knowledge of CoAtNet.

A class decorated with `record` is a frozen, keyword-only dataclass whose field values are checked against their type
hints when it is made (so a misspelt choice is refused at once), and which goes to JSON and back without loss. A union of
records is told apart by the records' `kind` fields.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, dataclass_transform

from coatref.errors import SpecError

T = TypeVar("T")

# A hostile file must not be able to ask for more than a machine has: these bound every number and list in a spec.
LARGEST_NUMBER = 10**6
LONGEST_TUPLE = 1000
LONGEST_TEXT = 200
LONGEST_SHOWN = 80  # characters of a value in an error message
LARGEST_JSON = 2 * 10**6  # characters; coatnet_7 takes about 5,000, and 1000 runs of one block 1,100,000


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass whose fields are checked when an instance is made.

    A method `check(self)`, where the class has one, is called afterwards, to refuse combinations that mean nothing.

    Raises:
        SpecError: (on making an instance) a value does not fit the field's type or a combination is invalid.
    """

    def __post_init__(self: Any) -> None:
        for name, hint in hints(typing.cast(type, type(self))).items():
            problem = misfit(getattr(self, name), hint)
            if problem:
                raise SpecError(f"{type(self).__name__}.{name} {problem}.")
        check = getattr(self, "check", None)
        if check is not None:
            check()

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Field name -> evaluated type hint, in the order of the class."""
    evaluated = typing.get_type_hints(cls)
    return {field.name: evaluated[field.name] for field in dataclasses.fields(cls)}


def is_union(hint: Any) -> bool:
    """Whether a type hint is `A | B`."""
    return typing.get_origin(hint) in (Union, types.UnionType)


def misfit(value: Any, hint: Any) -> str | None:
    """What is wrong with `value` as a `hint`, or None."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return None
        return f"must be one of {', '.join(map(repr, arguments))}, got {shown(value)}"
    if is_union(hint):
        problems = [misfit(value, option) for option in arguments]
        return None if None in problems else f"must be {describe(hint)}, got {shown(value)}"
    if origin is tuple:
        if not isinstance(value, tuple):
            return f"must be a tuple, got {shown(value)}"
        if len(value) > LONGEST_TUPLE:
            return f"must have at most {LONGEST_TUPLE} entries, got {len(value)}"
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(value) != len(arguments):
            return f"must have {len(arguments)} entries, got {len(value)}"
        problems = [misfit(entry, option) for entry, option in zip(value, arguments, strict=True)]
        return next((f"has an entry that {problem}" for problem in problems if problem), None)
    if hint is float:  # an int is a fine float; a bool is not
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if fits and abs(value) <= LARGEST_NUMBER:  # which NaN is not, nor an int that no float can hold
            return None
        return f"must be a finite number of at most {LARGEST_NUMBER}, got {shown(value)}"
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_NUMBER:
            return None
        return f"must be a whole number from 1 to {LARGEST_NUMBER}, got {shown(value)}"
    if hint is str:
        if isinstance(value, str) and len(value) <= LONGEST_TEXT and not any("\ud800" <= c <= "\udfff" for c in value):
            return None  # half a surrogate pair is no text that a file could hold
        return f"must be a text of at most {LONGEST_TEXT} characters, got {shown(value)}"
    if hint is types.NoneType:
        return None if value is None else f"must be None, got {shown(value)}"
    return None if isinstance(value, hint) else f"must be {describe(hint)}, got {shown(value)}"


def shown(value: Any) -> str:
    """A value for an error message: its repr, cut short."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a list nested too deep, an int of too many digits, a caller's own class
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def describe(hint: Any) -> str:
    """A type hint in words, for an error message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if is_union(hint):
        return " or ".join(describe(option) for option in arguments)
    if origin is tuple:
        return "a tuple"
    return {types.NoneType: "None", int: "a whole number", float: "a number", bool: "a bool", str: "a text"}.get(
        hint, f"a {getattr(hint, '__name__', hint)}"
    )


def to_plain(value: Any) -> Any:
    """A record as dicts, lists, texts and numbers, ready for `json.dumps`."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(entry) for entry in value]
    return value


def from_plain(plain: Any, hint: Any, where: str) -> Any:
    """The inverse of `to_plain` for a value of type `hint`; `where` names the place in error messages.

    Raises:
        SpecError: a field is unknown or missing, or a value does not fit.
    """
    if is_union(hint):
        return from_plain(plain, union_member(plain, hint, where), where)
    if dataclasses.is_dataclass(hint):
        return record_from_plain(plain, typing.cast("type[Any]", hint), where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(plain, list):
            raise SpecError(f"{where} must be a list, got {shown(plain)}.")
        if len(plain) > LONGEST_TUPLE:
            raise SpecError(f"{where} has {len(plain)} entries, more than the {LONGEST_TUPLE} allowed.")
        options = typing.get_args(hint)
        inner = [options[0]] * len(plain) if options[-1] is Ellipsis else list(options)
        if len(inner) != len(plain):
            raise SpecError(f"{where} must have {len(inner)} entries, got {len(plain)}.")
        return tuple(
            from_plain(entry, option, f"{where}[{index}]")
            for index, (entry, option) in enumerate(zip(plain, inner, strict=True))
        )
    problem = misfit(plain, hint)
    if problem:
        raise SpecError(f"{where} {problem}.")
    return plain


def record_from_plain(plain: Any, cls: type[Any], where: str) -> Any:
    """One record of class `cls` from its JSON object."""
    if not isinstance(plain, Mapping):
        raise SpecError(f"{where} must be an object with the fields of {cls.__name__}, got {shown(plain)}.")
    known = hints(typing.cast(type, cls))
    unknown = [str(name)[:50] for name in plain if name not in known]
    if unknown:
        raise SpecError(f"{where} has unknown fields {unknown[:5]}; {cls.__name__} has {', '.join(known)}.")
    values = {name: from_plain(value, known[name], f"{where}.{name}") for name, value in plain.items()}
    try:
        return cls(**values)
    except TypeError as error:  # a required field is absent
        raise SpecError(f"{where} is not a whole {cls.__name__}: {error}.") from None
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def union_member(plain: Any, hint: Any, where: str) -> Any:
    """The member of a union that `plain` is meant to be: None, the record of its `kind`, or the only one left."""
    options = typing.get_args(hint)
    if plain is None and types.NoneType in options:
        return types.NoneType
    options = tuple(option for option in options if option is not types.NoneType)
    if len(options) == 1:
        return options[0]
    kind = plain.get("kind") if isinstance(plain, Mapping) else None
    for option in options:
        if dataclasses.is_dataclass(option) and kind in typing.get_args(hints(typing.cast(type, option))["kind"]):
            return option
    raise SpecError(f"{where} must be {describe(hint)}, told apart by the field 'kind', got kind {shown(kind)}.")


def to_json(value: Any) -> str:
    """A record as JSON text, with the fields in the order of the class."""
    return json.dumps(to_plain(value), ensure_ascii=False)


def from_json(text: str, cls: type[T]) -> T:
    """A record of class `cls` from JSON text.

    Raises:
        SpecError: the text is not JSON, is too long or too deep, repeats a key, or does not describe a `cls`.
    """
    if not isinstance(text, str):
        raise SpecError(f"The JSON of a {cls.__name__} must be a text, got {shown(text)}.")
    if len(text) > LARGEST_JSON:
        raise SpecError(
            f"The JSON of a {cls.__name__} has {len(text)} characters, more than the {LARGEST_JSON} allowed."
        )
    try:
        plain = json.loads(text, object_pairs_hook=object_without_repeats)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"The JSON of a {cls.__name__} cannot be read: {str(error).rstrip('.')}.") from None
    return typing.cast(T, from_plain(plain, cls, cls.__name__))


def object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused when a key stands twice (readers disagree on which one counts)."""
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise SpecError("it repeats a key in one object")  # `from_json` makes a sentence of it
    return plain
