"""Watching intermediate values without changing the computation.

A tap is a function (name, array) -> array that gives the array back. `forward` passes one that does nothing; `trace`
passes one that writes the arrays down. `inside(tap, "attn")` puts a name in front of every name.
"""

from __future__ import annotations

from collections.abc import Callable

from coatref.registry import Array

Tap = Callable[[str, Array], Array]


def no_tap(name: str, value: Array) -> Array:
    """The tap that does nothing."""
    return value


def inside(tap: Tap, scope: str) -> Tap:
    """A tap for a part of the network: "logits" inside scope "attn" is seen as "attn.logits"."""
    if tap is no_tap:
        return no_tap
    return lambda name, value: tap(f"{scope}.{name}", value)


def recorder(values: dict[str, Array]) -> Tap:
    """A tap that writes every array into `values`, in order of computation."""

    def write(name: str, value: Array) -> Array:
        values[name] = value
        return value

    return write
