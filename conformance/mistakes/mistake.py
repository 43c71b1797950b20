"""A known mistake: a change of the definition, with the words for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from coatref.conformance.mistakes.changed import Changed
from coatref.errors import CoatrefError
from coatref.specification.spec import Spec

# The parts of the network that a mistake can be in; `finding.primitive` is one of these.
PRIMITIVES = (
    "stem convolution",
    "stem norm",
    "stem activation",
    "mbconv pre-norm",
    "mbconv pre-activation",
    "mbconv pool",
    "expansion",
    "mbconv norm",
    "mbconv activation",
    "depthwise convolution",
    "squeeze-excite",
    "shrink",
    "shortcut",
    "residual",
    "attention norm",
    "attention pool",
    "attention logits",
    "relative bias",
    "softmax",
    "attention values",
    "attention output",
    "ffn norm",
    "ffn",
    "ffn activation",
    "convnext",
    "layer scale",
    "blocks",
    "head norm",
    "global pool",
    "head hidden",
    "classifier",
    "output",
    "image",
    "parameters",
)


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        name: short and unique, in lower case with hyphens, such as "scale-by-width".
        primitive: one of PRIMITIVES.
        sentence: what the mistaken implementation computes and what it should, as a clause that can follow "the
            candidate": "scales the attention logits by 1/sqrt(heads*d), not by 1/sqrt(d)".
        source: the place in the paper that speaks of it or the convention it comes from, and who makes it.
        change: the definition (or an already changed one) to the mistaken one; raises `NotApplicable` where the spec has
            nothing that it could be made in, or where it would change nothing.
        fields: spec fields and values that express it, where a spec can: {"Attention.scale": "1/sqrt(heads*d)"}.
    """

    name: str
    primitive: str
    sentence: str
    source: str
    change: Callable[[Changed], Changed]
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a name or a primitive outside the lists."""
        if self.primitive not in PRIMITIVES or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9.]+)*", self.name):
            raise ValueError(f"Mistake {self.name!r}: primitive {self.primitive!r} or the name is not as it must be.")


class NotApplicable(CoatrefError):
    """A mistake cannot be made in a spec: it has no such part, or already computes so."""


def applies(mistake: Mistake, spec: Spec) -> bool:
    """Whether the mistake can be made in an implementation of a spec."""
    try:
        mistake.change(Changed(spec))
    except NotApplicable:
        return False
    return True
