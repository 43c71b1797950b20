"""Which dialect, and which network, the names and shapes of a checkpoint's tensors belong to."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from coatref.errors import CoatrefError, InputError
from coatref.specification.catalogue import spec as spec_named
from coatref.specification.spec import Spec
from coatref.tree import flatten
from coatref.weights.dialect import Dialect, Measured
from coatref.weights.dialects import DIALECTS
from coatref.weights.places import Place, Shape, expected

Size = tuple[int, int]
SHOWN = 6  # candidates and differences in a message


class Reading(NamedTuple):
    """How the tensors of a checkpoint can be read.

    Attributes:
        spec: the network, at the image size that its relative-bias tables were made for.
        dialect, layout: whose names and layouts they have.
        given: their plain name -> the name that the checkpoint has.
        places: of the spec in that layout, where they have been made already.
    """

    spec: Spec
    dialect: Dialect
    layout: str
    given: Mapping[str, str]
    places: Sequence[Place] | None = None


def plain_shapes(tensors: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Shape]:
    """Plain name and shape of every tensor, from the names that they are given under."""
    return {plain: tuple(tensors[name].shape) for plain, name in given.items()}


def reading_as(
    tensors: Mapping[str, Any], spec: Spec, dialect: str | None, *, ema: bool = True, any_size: bool = False
) -> Reading:
    """How to read tensors that belong to a spec: by the dialect named, or the one that has the most of their names.

    Args:
        tensors: by name, with shapes.
        spec: what they belong to.
        dialect: whose names they have; None: see above.
        ema: whether averaged copies are taken where there are any.
        any_size: whether relative-bias tables for another image size are taken; the spec of the result has that size.

    Raises:
        InputError: the dialect has no name for a layer of the spec, or none of the names is one of any dialect's.
    """
    if dialect is not None:
        found = reading(tensors, spec, DIALECTS[dialect], ema)
        if isinstance(found, str):
            raise InputError(
                f"Spec {spec.name!r} has a layer {found} for which {DIALECTS[dialect].project} has no name; use a "
                f"'{dialect}/...' spec, or our own names."
            )
    else:
        found = closest(tensors, spec, ema)
    if not any_size:
        return found
    fitting = at_their_size(found, plain_shapes(tensors, found.given))
    if len(fitting) > 1:
        raise InputError(ambiguity(fitting))
    return found._replace(spec=fitting[0], places=None) if fitting else found


def reading(tensors: Mapping[str, Any], spec: Spec, dialect: Dialect, ema: bool) -> Reading | str:
    """How to read tensors as a spec's in a dialect; or the name of a layer that the dialect lacks."""
    layout = dialect.layout_of(tensors)
    try:
        places = list(dialect.places(spec, layout))
    except KeyError as error:
        return str(error)
    return Reading(spec, dialect, layout, dialect.plain(tensors, ema), places)


def closest(tensors: Mapping[str, Any], spec: Spec, ema: bool) -> Reading:
    """The reading of most names as a spec's.

    Raises:
        InputError: none of the names is one of any dialect's, for that spec.
    """
    best, most, refusal = None, 0, None
    for dialect in DIALECTS.values():
        try:
            found = reading(tensors, spec, dialect, ema)
        except InputError as error:  # names that make no sense in this dialect, and may in another
            refusal = error
            continue
        if isinstance(found, str):
            continue
        wanted = expected(found.places or ()).keys()
        hits = len(wanted & found.given.keys())
        if hits > most or (best is None and not tensors):
            best, most = found, hits
        if hits == len(wanted):  # no other has all of these names; some have a few of ours
            return found
    if best is not None:
        return best
    if refusal is not None:
        raise refusal
    own = DIALECTS.get(spec.name.partition("/")[0])
    if own is not None and not isinstance(found := reading(tensors, spec, own, ema), str):
        return found  # whose names are then listed as missing, and these as surplus
    named = ", ".join(sorted(flatten_names(spec))[:3])
    others = " or ".join(
        f"a '{name}/...' spec for {each.project}" for name, each in DIALECTS.items() if name != "coatref"
    )
    raise InputError(
        f"None of the {len(tensors)} names given (such as {', '.join(map(str, list(tensors)[:3]))}) is one of spec "
        f"{spec.name!r} (such as {named}), under our names or another project's; use {others}."
    )


def flatten_names(spec: Spec) -> Iterator[str]:
    """Our names of a spec's tensors."""
    return (place.ours for place in DIALECTS["coatref"].places(spec, "torch"))


# --- without a spec ---


def recognised(
    tensors: Mapping[str, Any],
    dialect: str | None = None,
    *,
    ema: bool = True,
    architecture: str | None = None,
    image_size: Size | None = None,
) -> Reading:
    """The one named spec, perhaps at another image size, depths, widths or classes, that tensors belong to.

    Args:
        tensors: by name, with shapes.
        dialect: whose names they have; None: looked for in all.
        ema: whether averaged copies are taken where there are any.
        architecture: name of a spec that the checkpoint says it is: taken where it is among those that fit.
        image_size: that the checkpoint says it is for: taken where the tables leave it open.

    Raises:
        InputError: no named spec fits, or several do; the message tells what would tell them apart.
    """
    looked_in = DIALECTS.values() if dialect is None else (DIALECTS[dialect],)
    fitting: list[Reading] = []
    for only in dict.fromkeys((architecture, None)):  # what it says it is first, then any
        fitting = fitting or [found for each in looked_in for found in candidates(tensors, each, ema, image_size, only)]
    if not fitting:
        raise InputError(no_fit(tensors, ema))
    apart = {
        found.spec.replace(name="any"): found for found in reversed(fitting)
    }  # equal but for their names: the first
    if len(apart) > 1:
        raise InputError(ambiguity([found.spec for found in reversed(apart.values())]))
    return fitting[0]


def candidates(
    tensors: Mapping[str, Any], dialect: Dialect, ema: bool, image_size: Size | None, only: str | None = None
) -> list[Reading]:
    """The specs of a dialect that tensors fit exactly: those at their own depths and widths, else at changed ones.

    Args:
        tensors, ema, image_size: as in `recognised`.
        dialect: whose specs.
        only: the name of the one spec that is looked at; None: all.
    """
    try:
        layout, given = dialect.layout_of(tensors), dialect.plain(tensors, ema)
    except InputError:  # the names make no sense in this dialect
        return []
    shapes = plain_shapes(tensors, given)
    sizes = dialect.sizes(shapes)
    if sizes is None:
        return []
    names = [name for name in dialect.specs() if only in (None, name)]
    native = [name for name in names if sizes.depths is None or is_native(name, sizes)]
    for some in (native, [name for name in names if name not in native]):
        found = []
        for spec in (variant(name, sizes) for name in some):
            if spec is not None:
                reading = Reading(spec, dialect, layout, given)
                found += [reading._replace(spec=each) for each in at_their_size(reading, shapes, image_size)]
        if found:
            return found
    return []


def is_native(name: str, sizes: Measured) -> bool:
    """Whether a named spec has the depths and widths that were measured; some dialects measure the stem before them."""
    runs = runs_of(spec_named(name))
    found = list(zip(sizes.depths or (), sizes.widths or (), strict=True))
    return found[len(found) - len(runs) :] == runs


def variant(name: str, sizes: Measured) -> Spec | None:
    """A named spec with the sizes measured; None where it has no meaning with them."""
    try:
        return spec_named(name, depths=sizes.depths, widths=sizes.widths, classes=sizes.classes)
    except CoatrefError:  # another number of stages, or widths that its heads do not divide: it does not fit
        return None


def runs_of(spec: Spec) -> list[Size]:
    """Depth and width of every run."""
    return [(run.depth, run.width) for stage in spec.stages for run in stage]


def at_their_size(found: Reading, shapes: Mapping[str, Shape], hint: Size | None = None) -> list[Spec]:
    """The spec of a reading at the image sizes that the tables could be for; none where other shapes do not fit."""
    try:
        places = list(found.dialect.places(found.spec, found.layout))
    except KeyError:
        return []
    wanted = expected(places)
    if wanted.keys() != shapes.keys():
        return []
    tables = [place for place in places if place.ours.endswith(".table")]
    theirs = {place.theirs for place in tables}
    if any(shapes[name] != shape for name, shape in wanted.items() if name not in theirs):
        return []
    for size in (hint, found.spec.image_size) if hint else (found.spec.image_size,):
        if fitted := resized(found, size, shapes):
            return [fitted]
    fitting = [spec for size in image_sizes(found.spec, tables, shapes) if (spec := resized(found, size, shapes))]
    square = [spec for spec in fitting if spec.image_size[0] == spec.image_size[1]]
    return square[:1] or fitting


def resized(found: Reading, size: Size, shapes: Mapping[str, Shape]) -> Spec | None:
    """The spec of a reading at an image size, if all shapes fit it then."""
    try:
        spec = found.spec.replace(image_size=size)
    except CoatrefError:
        return None
    return spec if expected(found.dialect.places(spec, found.layout)) == shapes else None


def image_sizes(spec: Spec, tables: list[Place], shapes: Mapping[str, Shape]) -> Iterator[Size]:
    """Image sizes that the largest relative-bias table could be for, squares first.

    A table stored flat tells only the product of its rows and columns, so every way to write it as one is tried.
    """
    if not tables:
        return
    largest = max(tables, key=lambda place: math.prod(place.shape))
    heads, rows, columns = largest.shape
    count = math.prod(shapes[largest.theirs]) // heads
    # pixels for each position of that table's grid, at the size that the spec has now
    strides = [round(2 * side / (length + 1)) for side, length in zip(spec.image_size, (rows, columns), strict=True)]
    sides = [n for n in range(1, math.isqrt(count) + 1, 2) if count % n == 0]
    pairs = sorted({(n, count // n) for n in sides} | {(count // n, n) for n in sides}, key=lambda p: abs(p[0] - p[1]))
    for pair in pairs:
        height, width = ((length + 1) // 2 * stride for length, stride in zip(pair, strides, strict=True))
        yield height, width


# --- what to say ---


def no_fit(tensors: Mapping[str, Any], ema: bool) -> str:
    """A sentence for tensors that no named spec has: of the dialect whose names they are, or of none."""
    for name, dialect in DIALECTS.items():
        try:
            plain = dialect.plain(tensors, ema)
        except InputError:
            continue
        sizes = dialect.sizes(plain_shapes(tensors, plain))
        if sizes is not None and sizes.depths is not None:
            return (
                f"The {len(tensors)} tensors have names of {dialect.project}, depths {sizes.depths}, widths {sizes.widths} "
                f"and {sizes.classes} classes, and no '{name}/...' spec has exactly those names and shapes; pass the spec "
                "that they belong to, which tells what is missing or surplus."
            )
    return (
        f"The {len(tensors)} tensors (such as {', '.join(f'{name:.100}' for name in list(tensors)[:3])}) have no names "
        f"of a dialect that is known ({', '.join(each.project for each in DIALECTS.values())}), or fit no named spec; pass "
        "spec=..., for example spec='timm/coatnet_0_rw_224' (coatref.specs() lists them)."
    )


def ambiguity(fitting: list[Spec]) -> str:
    """A sentence for tensors that several specs have: which ones, and in what the specs differ."""
    first, second = fitting[0], fitting[1]
    apart = "; ".join(f"{path}: {ours} or {theirs}" for path, ours, theirs in differences(first, second)[:SHOWN])
    names = ", ".join(repr(spec.name) for spec in fitting[:SHOWN])
    return (
        f"{len(fitting)} specs have exactly these names and shapes: {names}{', ...' if len(fitting) > SHOWN else ''}; "
        f"pass spec=... with the right one, or a config.json beside the file whose 'architecture' names it; {first.name!r} "
        f"and {second.name!r} differ in what no tensor shows ({apart})."
    )


def differences(first: Spec, second: Spec) -> list[tuple[str, str, str]]:
    """Fields in which two specs differ: path, value of the first, value of the second; the name is none of them."""
    missing = object()
    sides = [dict(flatten(json.loads(spec.to_json()))) for spec in (first, second)]
    found = []
    for path in dict.fromkeys(itertools.chain(*sides)):
        values = [side.get(path, missing) for side in sides]
        if path != "name" and values[0] != values[1]:
            shown = ["absent" if value is missing else str(value) for value in values]
            found.append((path, shown[0], shown[1]))
    return found
