"""The definition, or the definition with something changed: what a mistake is a function on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coatref import model
from coatref.params import Params, from_flat, tensor_tree
from coatref.primitives import DEFINITION, Primitives
from coatref.registry import Array
from coatref.specification.spec import Spec
from coatref.tap import Tap, no_tap
from coatref.tree import flatten

Flat = Mapping[str, Array]  # dotted name -> array


def same(value: Any) -> Any:
    """The value itself."""
    return value


@dataclass(frozen=True)
class Changed:
    """A computation made of the definition's parts; without arguments but the spec, the definition itself.

    Attributes:
        spec: the network that is computed, which may differ from the one whose parameters come in.
        read: how parameters are read: flat parameters of the claimed spec to flat parameters of `spec`.
        image: what happens to the images first.
        forms: the functions that compute.
        taps: each makes a tap for one run, which may remember values and give back others: how a residual is left out or
            a stage is skipped. Applied in order to every value that `coatref.trace` names.
        output: what happens to the output last.
    """

    spec: Spec
    read: Callable[[Flat], Flat] = same
    image: Callable[[Array], Array] = same
    forms: Primitives = DEFINITION
    taps: tuple[Callable[[], Tap], ...] = ()
    output: Callable[[Array], Array] = same

    def but(self, **changes: Any) -> Changed:
        """This computation with some attributes changed."""
        return dataclasses.replace(self, **changes)


def compute(changed: Changed, params: Params, x: Array, tap: Tap = no_tap) -> Array:
    """The output of a changed definition for parameters of the claimed spec.

    Args:
        changed: what to compute.
        params: parameters of the claimed spec.
        x: (N, H, W, channels), any array library.
        tap: sees every value after the changes, and may replace it.

    Raises:
        WeightsError: the changed spec takes parameters of other shapes.
    """
    own = from_flat(changed.spec, changed.read(params.flatten()))
    taps = [make() for make in changed.taps]

    def all_taps(name: str, value: Array) -> Array:
        for each in taps:
            value = each(name, value)
        return tap(name, value)

    watched = all_taps if taps or tap is not no_tap else no_tap
    return changed.output(model.run(own, changed.image(x), changed.forms, watched))


def shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Dotted name -> shape of every parameter of a spec."""
    return {name: tensor.shape for name, tensor in flatten(tensor_tree(spec))}
