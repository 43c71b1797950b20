"""What the rounding errors of all primitives together make of every value: the definition run with them put in.

A probe is one run of the definition in float64 in which every element of every intermediate value is moved up or down, at
random, by the magnitude that `local.py` derives for it, and every parameter likewise by one rounding to storage (so that weights may be
folded, scaled or laid out anew). To first order the candidate's error is e = sum J d over all roundings d of the network,
and a probe's deviation is the same sum with d = +-b. Signs being independent, the deviations have the variance
sum J^2 b^2, the largest that independent mean-zero errors of magnitude b can have. Running the network keeps what rules
for intervals or variances lose: that errors meet again after a residual, cancel in a normalisation, or are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coatref.conformance.error_model import local
from coatref.conformance.precision import FORMATS, Precision, smallest_step
from coatref.ops.activation import sigmoid
from coatref.primitives import DEFINITION, Primitives
from coatref.tap import Tap, no_tap

Inject = Callable[[Any, Callable[[], Any]], Any]  # (value, magnitude of its error) -> value, moved or not

SUMS = ("attn_sum", "layer_scale", "attn_scale", "ffn_scale")  # values in a trace that no primitive computes


def injected(inject: Inject, precision: Precision, base: Primitives = DEFINITION) -> Primitives:
    """The forms of `base`, each of whose results goes through `inject` with the magnitude of its rounding error.

    Squeeze-excite and relative attention are injected at every value inside them, where `base` has the definition's own.
    """

    def with_errors(name: str) -> Callable[..., Any]:
        form = getattr(base, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            y = form(*args, **kwargs)
            return inject(y, lambda: local.LOCAL[name](precision, y, *args, **kwargs))

        return run

    forms = {name: with_errors(name) for name in local.LOCAL if hasattr(base, name)}

    def squeeze_excite(x: Any, reduce: Any, expand: Any, *, activation: str) -> Any:
        means = forms["global_avg_pool"](x)  # (N, H, W, C) -> (N, C)
        hidden = forms["activation"](forms["dense"](means, **reduce), activation)
        raw = forms["dense"](hidden, **expand)
        gate = inject(g := sigmoid(raw), lambda: local.sigmoid(precision, g, raw))
        y = x * gate[:, None, None, :]
        return inject(y, lambda: local.stored(precision, y))

    def attention(
        q: Any, k: Any, v: Any, bias: Any = None, *, scale: float = 1.0, tap: Tap = no_tap, **options: Any
    ) -> Any:
        inside: dict[str, Any] = {}

        def put_in(name: str, value: Any) -> Any:
            if name == "logits":
                early = options.get("add", "pre_softmax") == "pre_softmax"
                factor = scale if options.get("scale_site") == "logits_and_bias" else 1.0
                added = bias * factor if early and bias is not None else None
                finite = np.where(np.isfinite(value), value, 0.0)
                value = inject(value, lambda: local.logits(precision, finite, q, k, added, scale))
                inside[name] = value
            elif name == "weights":
                value = inject(value, lambda: local.softmax(precision, value, inside["logits"]))
                inside[name] = value
            return tap(name, value)

        y = base.relative_attention(q, k, v, bias, scale=scale, tap=put_in, **options)
        if "weights" not in inside:  # a form that shows nothing of its inside
            return inject(y, lambda: whole_attention(precision, y, q, k, v, bias, scale))
        return inject(y, lambda: local.weighted_values(precision, y, inside["weights"], v))

    if base.squeeze_excite is DEFINITION.squeeze_excite:
        forms["squeeze_excite"] = squeeze_excite
    else:
        own = base.squeeze_excite

        def other_gate(x: Any, *args: Any, **kwargs: Any) -> Any:
            y = own(x, *args, **kwargs)
            return inject(y, lambda: 8 * local.stored(precision, x))

        forms["squeeze_excite"] = other_gate
    forms["relative_attention"] = attention
    return Primitives(**forms)


def whole_attention(precision: Precision, y: Any, q: Any, k: Any, v: Any, bias: Any, scale: float) -> Any:
    """An attention as one step, for forms that are known mistakes: its largest logit's error on the size of v."""
    size = abs(scale) * np.max(np.abs(q)) * np.max(np.abs(k)) * q.shape[3]
    size = size + (0.0 if bias is None else np.max(np.abs(bias)))
    return np.zeros_like(y) + local.rounding(precision.storage) * (4 + size) * np.mean(np.abs(v))


def sums(inject: Inject, precision: Precision, blocks: frozenset[str]) -> Tap:
    """A tap that treats the sums and products between primitives like results of primitives."""

    def tap(name: str, value: Any) -> Any:
        if name in blocks or name.rpartition(".")[2] in SUMS:
            return inject(value, lambda: local.stored(precision, value))
        return value

    return tap


@dataclass
class Recorded:
    """Magnitudes in the order of computation, and whether some value does not fit into the storage type."""

    magnitudes: list[Any] = field(default_factory=list)
    overflow: bool = False


def record(precision: Precision, recorded: Recorded) -> Inject:
    """An `Inject` that changes nothing and writes the magnitudes down."""
    largest = FORMATS[precision.storage][2]

    def inject(value: Any, magnitude: Callable[[], Any]) -> Any:
        if precision.storage == "float16" and not np.max(np.abs(value), initial=0.0) <= largest:
            recorded.overflow = True
        found = magnitude()
        recorded.magnitudes.append(found if np.ndim(found) == 0 else np.asarray(found, np.float32))
        return value

    return inject


def replay(magnitudes: list[Any], random: np.random.Generator, precision: Precision) -> Inject:
    """An `Inject` that moves every element by its recorded magnitude, up or down."""
    remaining: Iterator[Any] = iter(magnitudes)
    floor = smallest_step(precision.storage)

    def inject(value: Any, magnitude: Callable[[], Any]) -> Any:
        size = next(remaining)
        if np.ndim(size) == 0 and size == 0.0:
            return value
        if np.shape(size) != np.shape(value):  # a number, or a form that broadcasts
            size = np.broadcast_to(size, np.shape(value))
        return value + signs(random, np.shape(value)) * (size + floor)

    return inject


def signs(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """+1 or -1 with equal chances, as float32."""
    count = int(np.prod(shape))
    bits = np.unpackbits(np.frombuffer(random.bytes(count // 8 + 1), np.uint8), count=count)
    return (bits.astype(np.float32) * 2 - 1).reshape(shape)


def shaken(flat: Mapping[str, Any], precision: Precision, random: np.random.Generator) -> dict[str, Any]:
    """Every parameter moved by the standard deviation of one rounding to storage, up or down.

    Tensors of whole numbers stay, so that a case made of them can be exact.
    """
    r = local.rounding(precision.storage)
    return {
        name: array if local.whole(array) else array * (1.0 + r * signs(random, array.shape).astype(np.float64))
        for name, array in flat.items()
    }
