"""All named specs, found by name."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

from coatref.errors import InputError, UnknownSpecError
from coatref.specification import chinhsuanwu, google, hw666, kecam, paper, timm
from coatref.specification.fields import LONGEST_TEXT
from coatref.specification.spec import Spec


def specs() -> tuple[str, ...]:
    """Names of all known specs: the paper's, its layouts and ablations, then "timm/..." and those of other projects."""
    return (*paper.names(), *timm.names(), *kecam.names(), *google.names(), *chinhsuanwu.names(), *hw666.names())


def spec(
    name: str,
    *,
    image_size: tuple[int, int] | int | None = None,
    classes: int | None = None,
    depths: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
) -> Spec:
    """The named spec, or a variant of it in size.

    Args:
        name: one of `specs()`.
        image_size: height and width in pixels (one number for a square) that the relative-bias tables are made for.
        classes: of the head.
        depths: number of blocks: for the paper's specs of S0 (its convolutions), S1, S2, ..., as for google's,
            chinhsuanwu's and hw666's; of S1 to S4 for timm's and kecam's (whose CoAtNet6 and 7 have two runs in S3, so five).
        widths: channels of the same.

    Returns:
        The spec; the same one for the same arguments. A variant keeps the name.

    Raises:
        UnknownSpecError: no spec has that name; the message names similar ones.
        SpecError, InputError, SizeError: the variant has no meaning.
    """
    known = specs()
    if name not in known:
        similar = difflib.get_close_matches(str(name)[:LONGEST_TEXT], known, n=3, cutoff=0.5)
        advice = f"similar names: {', '.join(similar)}" if similar else "coatref.specs() lists them all"
        raise UnknownSpecError(f"There is no spec named {name!r:.80}; {advice}.")
    size: dict[str, Any] = {}
    if image_size is not None:
        square = (image_size, image_size) if isinstance(image_size, int) else image_size
        size["image_size"] = tuple(square) if isinstance(square, list) else square
    if classes is not None:
        size["classes"] = classes
    numbers = (sequence("depths", depths), sequence("widths", widths))
    given = [*(numbers[0] or ()), *(numbers[1] or ()), *flat(size.get("image_size", ())), size.get("classes", 1)]
    # a cache takes True for 1 and 224.0 for 224, so only plain whole numbers may be looked up in it
    build = _build if all(type(number) is int for number in given) else _build.__wrapped__
    return build(name, *numbers, tuple(sorted(size.items())))


def flat(value: Any) -> tuple[Any, ...]:
    """The entries of a tuple, or the value itself as the only one."""
    return value if isinstance(value, tuple) else (value,)


def sequence(what: str, values: Sequence[int] | None) -> tuple[int, ...] | None:
    """Depths or widths as a tuple; their entries are checked by the parts that take them.

    Raises:
        InputError: they are no list or tuple.
    """
    if values is None or isinstance(values, (list, tuple)):
        return None if values is None else tuple(values)
    raise InputError(f"spec takes {what} as a list or tuple of whole numbers, got {type(values).__name__}.")


@functools.lru_cache(maxsize=256)
def _build(
    name: str, depths: tuple[int, ...] | None, widths: tuple[int, ...] | None, size: tuple[tuple[str, Any], ...]
) -> Spec:
    dialect, _, _ = name.partition("/")
    builders: dict[str, Callable[..., Spec]] = {
        "timm": timm.build,
        "kecam": kecam.build,
        "google": google.build,
        "chinhsuanwu": chinhsuanwu.build,
        "hw666": hw666.build,
    }
    build: Callable[..., Spec] = builders.get(dialect, paper.build)
    return build(name, depths, widths, **dict(size))


def resolve(spec_or_name: Spec | str) -> Spec:
    """A spec as it is, or the one of that name."""
    return spec_or_name if isinstance(spec_or_name, Spec) else spec(spec_or_name)
