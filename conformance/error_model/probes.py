"""What the rounding errors of all primitives together make of every value: the definition run with them put in.

A probe is one run of the definition in float64 in which every element of every intermediate value is moved at random,
uniformly and by the standard deviation that `local.py` derives for it, and every parameter likewise by one rounding to storage (so that
weights may be folded, scaled or laid out anew). To first order the candidate's error is e = sum J d over all roundings d
of the network, and a probe's deviation is the same sum with d of standard deviation b. These being independent, the deviations have
the variance sum J^2 b^2, the largest that independent mean-zero errors of magnitude b can have. Running the network keeps what
rules for intervals or variances lose: that errors meet again after a residual, cancel in a normalisation, or are averaged.

Rounding is a function of what is rounded: where a value occurs several times, as along a constant image, its error does
too, and no average makes it smaller. Kernels that treat edges apart, or add up in another order there, round twins
differently all the same. So equal elements are moved by an error of their own and by one that they share.
"""

from __future__ import annotations

import math
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

SAMPLE = 4096  # elements in which equal ones are looked for first
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


def sums(inject: Inject, precision: Precision, blocks: frozenset[str], flat: Mapping[str, Any] | None = None) -> Tap:
    """A tap that treats what lies between primitives like results of primitives: sums, products, a bias from an MLP.

    Args:
        inject: what becomes of them.
        precision: as declared.
        blocks: names of blocks, whose results are sums.
        flat: dotted name -> parameter, float64; among them those of the MLPs.
    """
    given = {} if flat is None else flat

    def tap(name: str, value: Any) -> Any:
        if name in blocks or name.rpartition(".")[2] in SUMS:
            return inject(value, lambda: local.stored(precision, value))
        mlp = f"{name.removesuffix('bias')}relative_bias"
        if name.endswith(".attn.bias") and f"{mlp}.hidden.w" in given:
            hidden, out = ({leaf: given[f"{mlp}.{part}.{leaf}"] for leaf in ("w", "b")} for part in ("hidden", "out"))
            return inject(value, lambda: local.log_mlp(precision, hidden, out, value.shape[-1]))
        return value

    return tap


@dataclass(frozen=True)
class Rounding:
    """How far the elements of one value may be moved.

    Attributes:
        size: the magnitude of each, or one number for all.
        twins: number of the group of equal elements that each belongs to, 0 for those that have no equal; None: none has.
    """

    size: Any
    twins: Any = None


@dataclass
class Recorded:
    """The roundings in the order of computation, and whether some value does not fit into the declared type."""

    magnitudes: list[Rounding] = field(default_factory=list)
    overflow: bool = False


def record(precision: Precision, recorded: Recorded) -> Inject:
    """An `Inject` that changes nothing and writes the magnitudes down.

    Where float64 is declared the definition itself, in float64, is as far from the truth as the candidate may be.
    """
    largest = FORMATS[precision.storage][2]
    share = math.sqrt(2) if precision.accumulate == "float64" else 1.0

    def inject(value: Any, magnitude: Callable[[], Any]) -> Any:
        if precision.storage == "float16" and not np.max(np.abs(value), initial=0.0) <= largest:
            recorded.overflow = True
        found = share * magnitude()
        if not np.all(np.isfinite(found)):  # what is formed inside the primitive does not fit
            recorded.overflow, found = True, 0.0
        size = found if np.ndim(found) == 0 else np.asarray(found, np.float32)
        recorded.magnitudes.append(Rounding(size, twins(value, size)))
        return value

    return inject


def twins(value: Any, size: Any) -> Any:
    """Which elements are equal: group numbers of the shape of `value`, or None where hardly any two are.

    Elements count as equal whose leading 38 bits agree, since the definition's own sums may differ in their last ones.
    Whether there are enough to matter is seen from a sample.
    """
    moved = np.broadcast_to(np.asarray(size) > 0, np.shape(value))
    if not np.any(moved):
        return None
    bits = np.ascontiguousarray(value, np.float64).view(np.int64)
    keys = (bits + (1 << 13)) >> 14
    sample = np.random.default_rng(0).choice(keys.size, min(keys.size, SAMPLE), replace=False, shuffle=False)
    some = np.ravel(keys)[sample][np.ravel(moved)[sample]]
    if len(np.unique(some)) >= 0.99 * len(some):
        return None
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    groups = np.where(counts > 1, np.arange(1, len(counts) + 1), 0)
    return groups[inverse].reshape(np.shape(value)).astype(np.int32)


def replay(magnitudes: list[Rounding], random: np.random.Generator, precision: Precision) -> Inject:
    """An `Inject` that moves every element at random by its recorded magnitude."""
    remaining: Iterator[Rounding] = iter(magnitudes)
    floor = smallest_step(precision.storage)

    def inject(value: Any, magnitude: Callable[[], Any]) -> Any:
        rounding = next(remaining)
        size = rounding.size
        if np.ndim(size) == 0 and size == 0.0:
            return value
        if np.shape(size) != np.shape(value):  # a number, or a form that broadcasts
            size = np.broadcast_to(size, np.shape(value))
        moved = draws(random, np.shape(value))
        if rounding.twins is not None:
            shared = draws(random, (int(np.max(rounding.twins)) + 1,))
            shared[0] = 0.0
            moved = moved + shared[rounding.twins]
        return value + moved * (size + floor)

    return inject


def draws(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniformly distributed numbers of mean 0 and variance 1, as float32, in 256 steps none of which is 0.

    With signs alone two errors of one magnitude would cancel every other time, and a value seem exact by chance.
    """
    odd = np.frombuffer(random.bytes(int(np.prod(shape))), np.uint8).astype(np.float32) * 2 - 255
    return (odd / np.float32(math.sqrt((256**2 - 1) / 3))).reshape(shape)


def shaken(flat: Mapping[str, Any], precision: Precision, random: np.random.Generator) -> dict[str, Any]:
    """Every parameter moved at random by the standard deviation of one rounding to storage.

    Tensors of whole numbers stay, so that a case made of them can be exact.
    """
    r = local.rounding(precision.storage)
    return {
        name: array if local.whole(array) else array * (1.0 + r * draws(random, array.shape).astype(np.float64))
        for name, array in flat.items()
    }
