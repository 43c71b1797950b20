"""What a dialect is: another project's names and layouts, and how to know them.

A dialect's module has one table of names, from ours to theirs, that a reader can hold beside the other project's source;
everything else that is done with it (importing, exporting, recognising) is the same for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from coatref.specification.spec import Spec
from coatref.weights.places import Place, Shape

# What stands before every name where a module was wrapped in another one: torch's DataParallel and torch.compile, an
# averaged copy (torch.optim.swa_utils), Lightning's usual attribute.
WRAPPERS = ("module.", "_orig_mod.", "model.", "ema_model.")

COUNTER = "n_averaged"  # beside the module in an averaged copy


class Measured(NamedTuple):
    """What the shapes of a checkpoint tell of a network's size, as `coatref.spec` takes it; None: nothing."""

    depths: tuple[int, ...] | None  # blocks of each stage or stack that the dialect numbers
    widths: tuple[int, ...] | None
    classes: int


def one_layout(names: Mapping[str, object]) -> str:
    """The layout of a dialect that has only one, torch's."""
    return "torch"


@dataclass(frozen=True)
class Dialect:
    """Another project's names and layouts.

    Attributes:
        name: as in "timm/coatnet_0_rw_224" and `coatref.export(params, "timm")`.
        project: as a sentence names it.
        layouts: that its files have; the first is that of `coatref.export(params, name)`.
        places: (spec, layout) -> every tensor of the spec with its place in theirs; KeyError names a layer that they lack.
        plain: (their names, whether to take averaged copies) -> plain name of each tensor that holds a parameter or a
            statistic, with nothing before it that files put there -> the name that it is given under.
        specs: names of its specs.
        sizes: plain names and shapes -> depths, widths and classes as those specs take them; None: these are no such names.
        layout_of: names -> which of the layouts they have.
    """

    name: str
    project: str
    layouts: tuple[str, ...]
    places: Callable[[Spec, str], Iterable[Place]]
    plain: Callable[[Mapping[str, object], bool], dict[str, str]]
    specs: Callable[[], tuple[str, ...]]
    sizes: Callable[[Mapping[str, Shape]], Measured | None]
    layout_of: Callable[[Mapping[str, object]], str] = one_layout


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Names without what wrappers put before all of them -> the names as given."""
    found = {name: name for name in names if name != COUNTER}
    while found:
        first = next(iter(found))
        prefix = next((each for each in WRAPPERS if first.startswith(each)), None)
        if prefix is None or not all(name.startswith(prefix) for name in found):
            break
        found = {name.removeprefix(prefix): given for name, given in found.items()}
    return found


def measured(
    shapes: Mapping[str, Shape],
    block: re.Pattern[str],
    widths: Iterable[tuple[str, int]],
    classifier: tuple[str, int],
) -> Measured | None:
    """Depths, widths and classes from names and shapes.

    Args:
        shapes: plain names and shapes.
        block: matches the name of a tensor in a block; its groups are the numbers of the stage and of the block.
        widths: last part of the name of a tensor and its axis that has the width of the stage.
        classifier: name of a tensor and its axis that has the number of classes.

    Returns:
        None where some stage has no width, or there is no classifier: these are no such names.
    """
    blocks: dict[int, set[str]] = {}
    found: dict[int, int] = {}
    for name, shape in shapes.items():
        place = block.match(name)
        if place is None:
            continue
        stage = int(place[1])
        blocks.setdefault(stage, set()).add(place[2])
        for last, axis in widths:
            if name.endswith(last) and len(shape) > axis:
                found[stage] = shape[axis]
    name, axis = classifier
    if not blocks or set(blocks) != set(found) or len(shapes.get(name, ())) <= axis:
        return None
    stages = sorted(blocks)
    return Measured(
        tuple(len(blocks[stage]) for stage in stages), tuple(found[stage] for stage in stages), shapes[name][axis]
    )
