"""A report as JSON and back, without loss; the form is published as the JSON Schema in `schema.json` beside this file."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.resources
import json
import math
import operator
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from coatref.conformance.report.results import Report
from coatref.errors import InputError
from coatref.registry import missing

FORMAT = "coatref-report"
VERSION = 1
SCHEMA = "schema.json"

T = TypeVar("T")

# JSON has no such numbers, so they are written as texts.
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def to_json(report: Report) -> dict[str, Any]:
    """A report as a dictionary of what strict JSON holds; infinities and NaN are the texts "inf", "-inf", "nan"."""
    written: dict[str, Any] = _written(report, Report)
    return {"format": FORMAT, "version": VERSION, **written}


def dumps(report: Report) -> str:
    """A report as strict JSON text that ends in a line break."""
    return json.dumps(to_json(report), indent=1, allow_nan=False) + "\n"


def from_json(value: Mapping[str, Any]) -> Report:
    """The report that `to_json` gave, equal to the one that was written.

    Raises:
        InputError: it is not such a dictionary, or one of another version; names the first place that does not fit.
    """
    if not isinstance(value, Mapping) or value.get("format") != FORMAT:
        raise InputError(f'A report in JSON was expected, an object with "format": "{FORMAT}"; write one with to_json.')
    if type(value.get("version")) is not int or value["version"] != VERSION:
        raise InputError(
            f"A report of version {VERSION} was expected, got version {value.get('version')!r:.80}; "
            "read it with the coatref that wrote it."
        )
    body = {name: entry for name, entry in value.items() if name not in ("format", "version")}
    return _record(body, Report, "report")


def schema() -> dict[str, Any]:
    """The published JSON Schema (draft 2020-12) of a report, as a new dictionary."""
    text = (importlib.resources.files("coatref.conformance.report") / SCHEMA).read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def validate(value: Any) -> None:
    """Check that a value, as JSON was read, is a report by the published schema.

    Raises:
        InputError: it is not; names the first place that does not fit, and what is wrong there.
        MissingDependencyError: jsonschema is not installed.
    """
    try:
        jsonschema: Any = importlib.import_module("jsonschema")  # it has no type hints
    except ImportError as error:
        raise missing("jsonschema", "report", "Checking a report against its JSON Schema") from error
    problems = jsonschema.Draft202012Validator(schema()).iter_errors(value)
    problem = min(problems, key=lambda found: [str(step) for step in found.absolute_path], default=None)
    if problem is not None:
        raise InputError(
            f"The JSON is not a {FORMAT} of version {VERSION}: at {_place(problem.absolute_path)}, "
            f"{problem.message[:200]}; write one with coatref.conformance.report.as_json.to_json."
        )


def _place(path: Iterable[str | int]) -> str:
    """Where in a report, as "report.results[3].verdict"."""
    return "report" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Field name -> evaluated type hint."""
    evaluated = typing.get_type_hints(cls)
    return {field.name: evaluated[field.name] for field in dataclasses.fields(cls)}


def _without_none(hint: Any) -> Any:
    """The type besides None in a hint such as `float | None`."""
    (other,) = (option for option in typing.get_args(hint) if option is not types.NoneType)
    return other


def _written(value: Any, hint: Any) -> Any:
    """A value of the given type hint as JSON has it; numbers of NumPy become Python's."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _written(value, _without_none(hint))
    if dataclasses.is_dataclass(hint):
        return {name: _written(getattr(value, name), inner) for name, inner in _hints(typing.cast(type, hint)).items()}
    if origin is tuple:
        return [_written(entry, typing.get_args(hint)[0]) for entry in value]
    if origin is Mapping:
        return {str(name): str(entry) for name, entry in value.items()}
    if hint is float:
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if hint is int:
        return operator.index(value)
    return str(value)


def _record(value: Any, cls: type[T], place: str) -> T:
    """A dataclass from a dictionary with exactly its fields.

    Raises:
        InputError: a field is missing, unknown or of another type.
    """
    if not isinstance(value, Mapping):
        raise InputError(
            f"{place} must be an object of the fields of {cls.__name__}, got {value!r:.80}; write one with to_json."
        )
    hints = _hints(typing.cast(type, cls))
    wrong = [f"lacks {name}" for name in hints if name not in value]
    wrong += [f"has the unknown field {name!r:.80}" for name in value if name not in hints]
    if wrong:
        raise InputError(f"{place}, a {cls.__name__} in JSON, {wrong[0]}; write reports with to_json.")
    return cls(**{name: _read(value[name], hint, f"{place}.{name}") for name, hint in hints.items()})


def _read(value: Any, hint: Any, place: str) -> Any:
    """The inverse of `_written`.

    Raises:
        InputError: the value is not of that type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _read(value, _without_none(hint), place)
    if dataclasses.is_dataclass(hint):
        return _record(value, typing.cast(type, hint), place)
    if origin is tuple and isinstance(value, (list, tuple)):
        if arguments[-1] is Ellipsis or len(arguments) == len(value):
            return tuple(_read(entry, arguments[0], f"{place}[{index}]") for index, entry in enumerate(value))
    elif origin is Mapping:
        if isinstance(value, Mapping) and all(isinstance(text, str) for entry in value.items() for text in entry):
            return dict(value)
    elif origin is Literal:
        if isinstance(value, str) and value in arguments:
            return value
    elif hint is float:
        if isinstance(value, str) and value in _NOT_FINITE:
            return _NOT_FINITE[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif type(value) is hint:  # int or str
        return value
    raise InputError(f"{place} must be {_described(hint)}, got {value!r:.80}; write reports with to_json.")


def _described(hint: Any) -> str:
    """A type hint in words, for an error message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
    if origin is Mapping:
        return "an object of texts"
    return {float: 'a number, "inf", "-inf" or "nan"', int: "a whole number", str: "a text"}[hint]
