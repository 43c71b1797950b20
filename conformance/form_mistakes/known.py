"""All known mistakes of every primitive, and of whole blocks: other fields of their spec, or a primitive's mistake inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from coatref.conformance.form_mistakes import attention, channels, grid
from coatref.conformance.form_mistakes.form_mistake import FormMistake, Wrap
from coatref.primitives import Form, Primitives

PRIMITIVE_MISTAKES: dict[str, Callable[[], Iterator[FormMistake]]] = {
    "conv2d": grid.convolution,
    "depthwise_conv2d": grid.convolution,
    "max_pool": grid.max_pool,
    "avg_pool": grid.avg_pool,
    "global_avg_pool": grid.global_avg_pool,
    "batch_norm": channels.batch_norm,
    "layer_norm": channels.layer_norm,
    "activation": channels.activation,
    "softmax": channels.softmax,
    "squeeze_excite": channels.squeeze_excite,
    "dense": grid.dense,
    "gather_bias": attention.gather_bias,
    "relative_attention": attention.relative_attention,
    "linear_attention": attention.linear_attention,
}


def run_changed(**changes: Any) -> Wrap:
    """Another block: fields of its run, or of its attention under "attention."."""

    def wrap(form: Form) -> Form:
        def run(p: Any, x: Any, block: Any, **rest: Any) -> Any:
            spec = block.run
            own = {name: value for name, value in changes.items() if "__" not in name}
            for name, value in changes.items():
                part, _, inner = name.partition("__")
                if inner:
                    own[part] = dataclasses.replace(getattr(spec, part), **{inner: value})
            return form(p, x, block._replace(run=dataclasses.replace(spec, **own)), **rest)

        return run

    return wrap


def lifted(primitive: str, mistake: FormMistake) -> FormMistake:
    """A mistake of a primitive, made everywhere in a block."""

    def wrap(form: Form) -> Form:
        def run(p: Any, x: Any, block: Any, *, change: Callable[[Primitives], Primitives]) -> Any:
            def both(forms: Primitives) -> Primitives:
                forms = change(forms)
                return dataclasses.replace(forms, **{primitive: mistake.wrap(getattr(forms, primitive))})

            return form(p, x, block, change=both)

        return run

    return FormMistake(f"{primitive}: {mistake.name}", f"{mistake.sentence}, in {primitive}", wrap)


# fields of a block's run, "part__field" for a field of a part, with the values to try; a value that fits none is passed over
FIELDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "mbconv": {
        "padding": ("same", "symmetric"),
        "stride_at": ("expand", "depthwise"),
        "residual_from": ("normalised",),
        "squeeze_excite__place": ("before_norm",),
        "squeeze_excite__activation": ("relu", "gelu"),
        "shortcut_pool__kind": ("avg",),
        "pre_norm_activation": ("gelu", "gelu_tanh", "silu"),
        "squeeze_excite": (None,),
    },
    "transformer": {
        "attention__scale": ("1/sqrt(d)", "1/sqrt(heads*d)", "1", "sqrt(d)"),
        "attention__scale_site": ("logits_and_bias",),
        "norm_pool_order": ("pool_then_norm",),
        "residual_from": ("normalised",),
        "shortcut_pool__kind": ("avg",),
        "main_pool__kind": ("avg",),
        "attention__relative_bias": (None,),
    },
}

INSIDE = {  # primitives that a block is made of
    "mbconv": ("batch_norm", "depthwise_conv2d", "activation", "squeeze_excite", "max_pool", "dense"),
    "transformer": ("layer_norm", "relative_attention", "gather_bias", "activation", "max_pool", "dense"),
}


def form_mistakes(name: str) -> tuple[FormMistake, ...]:
    """Every known mistake of a primitive or block."""
    if name in PRIMITIVE_MISTAKES:
        return tuple(PRIMITIVE_MISTAKES[name]())
    found = [
        FormMistake(
            f"{field.replace('__', '.')}={value}",
            f"computes as if the block had {field.replace('__', '.')} {value!r}",
            run_changed(**{field: value}),
        )
        for field, values in FIELDS[name].items()
        for value in values
    ]
    for primitive in INSIDE[name]:
        found += [lifted(primitive, mistake) for mistake in PRIMITIVE_MISTAKES[primitive]()]
    return tuple(found)
