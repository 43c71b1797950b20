"""Prepared parameters: the same network, laid out once for the library that will run it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from coatref.errors import InputError
from coatref.params import Params
from coatref.specification.spec import Spec
from coatref.tree import Branch, register_node


class Prepared(Branch):
    """Arrays of a folded network with the static `spec` that they compute; `prepare` makes it, `forward` runs it.

    A pytree like `Params`. Its names are those of `coatref.backends.folding`, and it is made for one image size, since the
    biases of all pairs of positions are gathered: resize the parameters first, then prepare them.
    """

    __slots__ = ("_spec",)
    _spec: Spec

    def __init__(self, children: Mapping[str, Any], spec: Spec) -> None:
        super().__init__(children)
        object.__setattr__(self, "_spec", spec)

    @property
    def spec(self) -> Spec:
        """Everything about the network that is not an array; also where a part of it is folded into another."""
        return self._spec

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._children, self._spec)

    def __repr__(self) -> str:
        return f"Prepared({self.spec.name!r})"


def prepare(params: Params) -> Prepared:
    """The parameters made ready for many forward passes on their array library.

    BatchNorm, LayerNorm's affine part, layer scales and the attention scale are folded into the linear layers beside them,
    wherever that gives the same function for every image (not across zero padding, a max pool or an activation); relative
    biases are gathered; q, k and v become one layer; weights are laid out as the library likes them. `params` is not
    changed, and nothing is kept: `coatref.forward(prepare(params), x)` gives what `coatref.forward(params, x)` gives, to
    within rounding.

    Args:
        params: from `coatref.init`, `load` or `convert`, in the library, dtype and on the device that will compute.

    Returns:
        A pytree of arrays of the same library, dtype and device, for images of `params.spec.image_size`.

    Raises:
        InputError: `params` are no parameters (or are prepared already).
    """
    if not isinstance(params, Params):
        raise InputError(
            f"prepare takes coatref Params, got {type(params).__name__}; make them with coatref.init, load or convert."
        )
    folding = importlib.import_module(
        "coatref.backends.folding"
    )  # by name: no import leads from here to the fast forms
    importlib.import_module("coatref.backends.network")  # so that `forward` finds it there, also inside torch.compile
    prepared: Prepared = folding.fold(params)
    return prepared


def _flatten_prepared(prepared: Prepared) -> tuple[list[Any], Any]:
    return list(prepared.values()), (prepared.spec, tuple(prepared))


def _unflatten_prepared(aux: Any, children: Any) -> Prepared:
    return Prepared(dict(zip(aux[1], children, strict=True)), aux[0])


register_node(Prepared, _flatten_prepared, _unflatten_prepared)
