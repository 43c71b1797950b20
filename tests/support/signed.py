"""Parameters whose norms turn some channels over: a max pool and a norm commute only while every gamma is positive."""

from __future__ import annotations

from typing import Any

import coatref
from coatref.registry import device_of, namespace
from coatref.tree import map_named


def signed(params: coatref.Params) -> coatref.Params:
    """The same with every other gamma negative, in the library of the parameters."""

    def turned(name: str, array: Any) -> Any:
        if not name.endswith("gamma"):
            return array
        xp = namespace(array)
        index = xp.arange(array.shape[0], device=device_of(array))
        return array * xp.astype(1 - 2 * (index % 2), array.dtype)

    return coatref.Params(map_named(turned, params), params.spec)
