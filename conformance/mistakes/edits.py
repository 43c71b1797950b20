"""The tools that mistakes are made with: other spec fields, other parameters, other values, other functions at one site."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from coatref.conformance.mistakes.changed import Changed, Flat, shapes
from coatref.conformance.mistakes.effective import effective
from coatref.conformance.mistakes.mistake import Mistake, NotApplicable
from coatref.errors import SpecError, WeightsError
from coatref.params import from_flat, tensor_tree
from coatref.primitives import Form
from coatref.registry import Array, device_of, namespace
from coatref.specification.spec import Block, Spec
from coatref.tap import Tap
from coatref.tree import flatten

Change = Callable[[Changed], Changed]
Seen = Mapping[str, Array]  # dotted name -> value of a run so far
NEUTRAL = {"bias": 0.0, "beta": 0.0, "mean": 0.0, "gamma": 1.0, "var": 1.0, "layer_scale": 1.0}


class Marked(float):
    """An epsilon that says at which sites it stands; in every other respect the number itself."""

    marks: frozenset[str]

    def __new__(cls, value: float, marks: frozenset[str]) -> Self:
        """The number with its marks."""
        made = super().__new__(cls, value)
        made.marks = marks
        return made


class MarkedSize(int):
    """The size of a pool, likewise."""

    marks: frozenset[str]

    def __new__(cls, value: int, marks: frozenset[str]) -> Self:
        """The size with its marks."""
        made = super().__new__(cls, value)
        made.marks = marks
        return made


def mark(label: str) -> Callable[[Any], Any]:
    """A function that puts a mark on an epsilon or a pool size, beside those that it has."""

    def marked(value: Any) -> Any:
        marks = getattr(value, "marks", frozenset()) | {label}
        return MarkedSize(value, marks) if isinstance(value, int) else Marked(value, marks)

    return marked


def where_marked(label: str, argument: str, otherwise: Form, form: Form) -> Form:
    """A primitive that computes by `form` where the named argument bears the mark, and as before elsewhere."""

    def chosen(*args: Any, **kwargs: Any) -> Array:
        here = label in getattr(kwargs[argument], "marks", ())
        return (form if here else otherwise)(*args, **kwargs)

    return chosen


def with_fields(node: Any, changes: Mapping[str, Any]) -> Any:
    """A spec, or a part of one, with fields changed in every part of a class.

    Args:
        node: a spec or a part.
        changes: "Class.field" or "Class.field.field" -> a value, or a function of the old value. Fields of one class are
            changed at the same time. A path through a part that is not there (None) changes nothing.
    """
    if isinstance(node, tuple):
        return tuple(with_fields(entry, changes) for entry in node)
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    new = {field.name: with_fields(getattr(node, field.name), changes) for field in dataclasses.fields(node)}
    for path, value in changes.items():
        cls, first, *rest = path.split(".")
        if cls == type(node).__name__:
            new[first] = at_path(new[first], rest, value)
    return dataclasses.replace(node, **new)


def at_path(old: Any, path: list[str], value: Any) -> Any:
    """A value with the part of it under a path of fields changed; marks stay on the numbers that bear them."""
    if path:
        if old is None:
            return None
        return dataclasses.replace(old, **{path[0]: at_path(getattr(old, path[0]), path[1:], value)})
    new = value(old) if callable(value) else value
    return type(old)(new, old.marks) if isinstance(old, (Marked, MarkedSize)) and not callable(value) else new


def split_runs(spec: Spec) -> Spec:
    """The same network with every run written as runs of one block, so that one block can be changed alone."""

    def alone(run: Any) -> tuple[Any, ...]:
        first = dataclasses.replace(run, depth=1)
        return (first, *[dataclasses.replace(first, stride=1)] * (run.depth - 1))

    return spec.replace(stages=tuple(tuple(one for run in stage for one in alone(run)) for stage in spec.stages))


def in_block(spec: Spec, name: str, changes: Mapping[str, Any]) -> Spec:
    """The spec with fields changed in the block of that name only."""
    spec = split_runs(spec)
    number, index = (int(part) for part in name[1:].split("."))
    stages = [list(stage) for stage in spec.stages]
    stages[number - 1][index] = with_fields(stages[number - 1][index], changes)
    return spec.replace(stages=tuple(tuple(stage) for stage in stages))


def respec(changed: Changed, make: Callable[[Spec], Spec]) -> Changed:
    """The computation of another spec from the same parameters: what it has no use for is dropped, a norm or bias that it
    has in addition is neutral.

    Raises:
        NotApplicable: the other spec has no meaning, or computes the same.
    """
    try:
        spec = make(changed.spec)
        alike = effective(spec) == effective(changed.spec)
    except SpecError as error:
        raise NotApplicable(f"Under {changed.spec.name!r} this change has no meaning: {error}") from None
    except ValueError as error:  # an image size without meaning
        raise NotApplicable(f"Under {changed.spec.name!r} this change leaves no usable grid: {error}") from None
    if alike:
        raise NotApplicable(f"Spec {changed.spec.name!r} at {changed.spec.image_size} computes so already.")
    return changed.but(spec=spec, read=chain(changed.read, fitted(spec)))


def fitted(spec: Spec) -> Callable[[Flat], Flat]:
    """Reads parameters by the names of a spec; kernels that are missing stay so, which `compute` refuses."""
    tensors = dict(flatten(tensor_tree(spec)))

    def read(flat: Flat) -> Flat:
        like = next(iter(flat.values()))
        xp = namespace(like)
        new = {}
        for name, tensor in tensors.items():
            if name in flat:
                new[name] = flat[name]
            elif tensor.role in NEUTRAL:
                new[name] = xp.full(tensor.shape, NEUTRAL[tensor.role], dtype=like.dtype, device=device_of(like))
        return new

    return read


def chain(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One function after the other."""
    return lambda value: second(first(value))


def reading(changed: Changed, pattern: str, edit: Callable[[str, Array], Array]) -> Changed:
    """The computation with every parameter changed whose whole name matches a pattern.

    Raises:
        NotApplicable: there is none.
    """
    require(changed, any(re.fullmatch(pattern, name) for name in shapes(changed.spec)), "parameters of that kind")

    def read(flat: Flat) -> Flat:
        return {name: edit(name, array) if re.fullmatch(pattern, name) else array for name, array in flat.items()}

    return changed.but(read=chain(changed.read, read))


def tapping(changed: Changed, pattern: str, edit: Callable[[str, Array, Seen], Array], keep: str = "") -> Changed:
    """The computation with every value changed whose whole name matches a pattern.

    Args:
        changed: the computation.
        pattern: of names in `coatref.trace`.
        edit: (name, value, values seen) -> value.
        keep: a pattern of earlier values that `edit` needs; "previous" is always the value before.
    """

    def make() -> Tap:
        seen: dict[str, Array] = {}

        def tap(name: str, value: Array) -> Array:
            if re.fullmatch(pattern, name):
                value = edit(name, value, seen)
            if keep and re.fullmatch(keep, name):
                seen[name] = value
            seen["previous"] = value
            return value

        return tap

    return changed.but(taps=(*changed.taps, make))


def require(changed: Changed, there: bool, what: str) -> None:
    """Refuse a spec without what a mistake is made in.

    Raises:
        NotApplicable: it is not there.
    """
    if not there:
        raise NotApplicable(f"Spec {changed.spec.name!r} at {changed.spec.image_size} has no {what}.")


def blocks_of(spec: Spec, *kinds: type) -> list[Block]:
    """The blocks of some kinds, in order."""
    return [block for block in spec.blocks() if isinstance(block.run, kinds)]


def any_of(names: list[str]) -> str:
    """A pattern for exactly these names."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def by_fields(name: str, primitive: str, sentence: str, source: str, changes: Mapping[str, Any]) -> Mistake:
    """A mistake that spec fields express."""
    return Mistake(
        name=name,
        primitive=primitive,
        sentence=sentence,
        source=source,
        change=lambda changed: respec(changed, lambda spec: with_fields(spec, changes)),
        fields={path: str(value) for path, value in changes.items() if not callable(value)},
    )


def square_transposed(name: str, primitive: str, pattern: str, words: str) -> Mistake:
    """Dense kernels transposed where their shape does not tell."""

    def change(changed: Changed) -> Changed:
        square = [n for n, s in shapes(changed.spec).items() if re.fullmatch(pattern, n) and s[0] == s[1] > 1]
        require(changed, bool(square), f"square kernel of {words}")
        return reading(changed, any_of(square), lambda n, w: namespace(w).permute_dims(w, (1, 0)))

    clause = f"transposes the square kernels of {words}"
    return Mistake(name, primitive, clause, "a common slip in conversion of weights: torch stores (out, in)", change)


def changes_shapes(mistake: Mistake, spec: Spec) -> bool:
    """Whether the mistaken network takes parameters of other shapes than the spec's, so that it shows in its weights and
    `compute` refuses to run it.

    Raises:
        NotApplicable: the mistake cannot be made in the spec.
    """
    changed = mistake.change(Changed(spec))
    stand_ins = {name: np.broadcast_to(np.ones((), np.float32), shape) for name, shape in shapes(spec).items()}
    try:
        from_flat(changed.spec, changed.read(stand_ins))
    except WeightsError:
        return True
    return False
