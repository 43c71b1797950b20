"""Known mistakes in single primitives, each as a change of the definition's form.

A mistake takes the form of a primitive (a function with the definition's arguments) and gives the mistaken one, which
calls it with other arguments or does something to its result. So two mistakes can be made at once, one around the other,
and the error model of the form inside serves the mistaken one too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coatref.primitives import Form

Wrap = Callable[[Form], Form]


@dataclass(frozen=True)
class FormMistake:
    """One mistake.

    Attributes:
        name: short, unique for the primitive.
        sentence: what it computes and what it should, as a clause that follows "it".
        wrap: the right form to the mistaken one. Where that has no use for the form it is given, the definition's
            rounding errors are taken for its own.
    """

    name: str
    sentence: str
    wrap: Wrap


def option(**fixed: Any) -> Wrap:
    """Other keyword options than those given."""
    return lambda form: lambda *args, **kwargs: form(*args, **(kwargs | fixed))


def result(change: Callable[[Any], Any]) -> Wrap:
    """Something done to the result."""
    return lambda form: lambda *args, **kwargs: change(form(*args, **kwargs))
