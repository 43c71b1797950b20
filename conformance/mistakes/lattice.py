"""The lattice of spec axes: every change of a single field of a spec, as a mistake."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal

from coatref.conformance.mistakes.changed import Changed, shapes
from coatref.conformance.mistakes.mistake import Mistake, NotApplicable
from coatref.errors import CoatrefError
from coatref.specification import parts
from coatref.specification.fields import hints, is_union
from coatref.specification.spec import Spec

EPSILONS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12)

# Where a field stands, and the part of the network that it belongs to.
PLACES = {
    "ConvStem": "stem convolution",
    "MBConv": "expansion",
    "Transformer": "attention logits",
    "ConvNeXt": "convnext",
    "Head": "classifier",
}
PRIMITIVE_OF = {
    "ConvStem.norm": "stem norm",
    "ConvStem.activation": "stem activation",
    "ConvStem.after_last": "stem activation",
    "MBConv.pre_norm": "mbconv pre-norm",
    "MBConv.pre_norm_activation": "mbconv pre-activation",
    "MBConv.inner_norm": "mbconv norm",
    "MBConv.activation": "mbconv activation",
    "MBConv.padding": "depthwise convolution",
    "MBConv.main_pool": "mbconv pool",
    "MBConv.shortcut_pool": "shortcut",
    "MBConv.residual_from": "residual",
    "MBConv.squeeze_excite": "squeeze-excite",
    "MBConv.shrink_norm": "shrink",
    "Transformer.main_pool": "attention pool",
    "Transformer.norm_pool_order": "attention pool",
    "Transformer.shortcut_pool": "shortcut",
    "Transformer.residual_from": "residual",
    "Transformer.attention_norm": "attention norm",
    "Transformer.attention.relative_bias": "relative bias",
    "Transformer.ffn_norm": "ffn norm",
    "Transformer.ffn.activation": "ffn activation",
    "Transformer.ffn": "ffn",
    "Head.norm": "head norm",
    "Head.order": "global pool",
    "Head.hidden": "head hidden",
    "Head.output": "output",
}


def lattice(spec: Spec) -> Iterator[Mistake]:
    """Every change of one field that keeps the shapes of all parameters, made in all parts of its kind at once."""
    owners: dict[str, Any] = {type(spec.stem).__name__: spec.stem, "Head": spec.head}
    for stage in spec.stages:
        for run in stage:
            owners.setdefault(type(run).__name__, run)
    ours = shapes(spec)
    for owner, part in owners.items():
        for path, value, other in changes(part, ()):
            field = ".".join((owner, *path))
            mistake = Mistake(
                name=f"lattice-{field}-{other}".lower().replace("_", "-").replace("/", "-").translate(NAMING),
                primitive=primitive_of(field),
                sentence=f"computes with {field} = {shown(other)}, and the spec says {shown(value)}",
                source="the lattice of spec fields",
                change=changing(owner, path, other),
                fields={field: str(other)},
            )
            try:
                if shapes(mistake.change(Changed(spec)).spec) == ours:
                    yield mistake
            except CoatrefError:
                continue


NAMING = str.maketrans({"(": "-", ")": "", "*": "-", "'": "", " ": "", "=": "-", "+": ""})


def shown(value: Any) -> str:
    """A field's value in a sentence."""
    return repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def primitive_of(field: str) -> str:
    """The part of the network that a field belongs to: by its longest known beginning."""
    known = [name for name in PRIMITIVE_OF if field.startswith(name)]
    return PRIMITIVE_OF[max(known, key=len)] if known else PLACES.get(field.partition(".")[0], "blocks")


def changes(part: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Every other value of every field of a part and of the parts in it: path, value now, other value."""
    cls: type = type(part)
    for name, hint in hints(cls).items():
        value = getattr(part, name)
        if name in ("kind", "fused_qkv", "resize") and not isinstance(part, (parts.Norm, parts.Pool)):
            continue
        if name == "epsilon":
            yield from (((*path, name), value, other) for other in EPSILONS if other != value)
        elif dataclasses.is_dataclass(value):
            yield from changes(value, (*path, name))
        else:
            for option in options(hint):
                if option != value:
                    yield (*path, name), value, option


def options(hint: Any) -> tuple[Any, ...]:
    """The closed choices of a type hint, None among them where it is optional."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if is_union(hint):
        return tuple(option for part in typing.get_args(hint) for option in options(part))
    return ()


def changing(owner: str, path: tuple[str, ...], other: Any) -> Any:
    """The change of one field in every part of a class."""

    def put(part: Any, rest: tuple[str, ...]) -> Any:
        if part is None:
            raise NotApplicable(f"a {owner} of the spec has no {'.'.join(path)}.")
        new = other if len(rest) == 1 else put(getattr(part, rest[0]), rest[1:])
        return dataclasses.replace(part, **{rest[0]: new})

    def change(changed: Changed) -> Changed:
        spec = changed.spec
        if type(spec.stem).__name__ == owner:
            spec = spec.replace(stem=put(spec.stem, path))
        elif owner == "Head":
            spec = spec.replace(head=put(spec.head, path))
        else:
            spec = spec.replace(
                stages=tuple(
                    tuple(put(run, path) if type(run).__name__ == owner else run for run in stage)
                    for stage in spec.stages
                )
            )
        return changed.but(spec=spec)

    return change
