"""All dialects by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from coatref.params import tensor_tree
from coatref.specification import catalogue
from coatref.specification.spec import Spec
from coatref.tree import flatten
from coatref.weights import chinhsuanwu, google, hw666, kecam, timm
from coatref.weights.dialect import Dialect, Measured
from coatref.weights.places import Place, Shape, same


def own_places(spec: Spec, layout: str = "torch") -> Iterator[Place]:
    """Every tensor of the spec under its own dotted name, as it is."""
    for name, tensor in flatten(tensor_tree(spec)):
        yield Place(name, name, tensor.shape, same(tensor.shape))


def own_plain(names: Mapping[str, object], ema: bool = True) -> dict[str, str]:
    """Every name as it is."""
    return {name: name for name in names}


def own_sizes(shapes: Mapping[str, Shape]) -> Measured | None:
    """The classes; of the rest, only the specs as they are named are looked at."""
    shape = shapes.get("head.classifier.w", ())
    return Measured(None, None, shape[1]) if len(shape) == 2 else None


OWN = Dialect(
    name="coatref",
    project="coatref",
    layouts=("torch",),
    places=own_places,
    plain=own_plain,
    specs=catalogue.specs,
    sizes=own_sizes,
)

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        OWN,
        timm.DIALECT,
        kecam.DIALECT,
        google.DIALECT,
        chinhsuanwu.DIALECT,
        hw666.DIALECT,
    )
}
