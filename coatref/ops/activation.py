"""Activations and softmax, elementwise but for the last."""

from __future__ import annotations

import math

from coatref.errors import InputError
from coatref.registry import Array, library_of, namespace
from coatref.special import erf as standard_erf


def gelu(x: Array) -> Array:
    """Exact GELU: x Phi(x) = x/2 (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel 2016).

    erf is the array library's own; libraries without one get `coatref.special.erf`. The error is a few units in the last
    place of |x|: in the far left tail, where 1 + erf cancels, that is more than of the value itself.
    """
    library = library_of(x)
    scaled = x * math.sqrt(0.5)
    erf = library.erf(scaled) if library.erf is not None else standard_erf(scaled, library.namespace())
    return 0.5 * x * (1.0 + erf)


def gelu_tanh(x: Array) -> Array:
    """The tanh form of GELU: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016).

    Differs from `gelu` by up to 4.7e-4; google-research/maxvit uses it.
    """
    xp = namespace(x)
    return 0.5 * x * (1.0 + xp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), computed as exp(min(x, 0)) / (1 + exp(-|x|)).

    No exponential overflows, small values keep their relative accuracy, and automatic differentiation finds the right
    slope everywhere, also at 0.
    """
    xp = namespace(x)
    return xp.exp(xp.minimum(x, xp.zeros_like(x))) / (1.0 + xp.exp(-xp.abs(x)))


def silu(x: Array) -> Array:
    """SiLU or swish: x sigmoid(x)."""
    return x * sigmoid(x)


def relu(x: Array) -> Array:
    """ReLU: max(x, 0)."""
    xp = namespace(x)
    return xp.maximum(x, xp.zeros_like(x))


def mish(x: Array) -> Array:
    """Mish: x tanh(log(1 + exp(x))) (Misra 2019); log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|))."""
    xp = namespace(x)
    return x * xp.tanh(relu(x) + xp.log1p(xp.exp(-xp.abs(x))))


def tanh(x: Array) -> Array:
    """Hyperbolic tangent."""
    return namespace(x).tanh(x)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu, "relu": relu, "mish": mish, "tanh": tanh}


def activation(x: Array, kind: str) -> Array:
    """The activation of that name: one of gelu, gelu_tanh, silu, relu, mish, tanh.

    Raises:
        InputError: there is none of that name.
    """
    if kind not in ACTIVATIONS:
        raise InputError(f"There is no activation {kind!r}; known are {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[kind](x)


def softmax(x: Array) -> Array:
    """Softmax over the last axis: exp(x_k - m) / sum_l exp(x_l - m), m the largest x."""
    xp = namespace(x)
    exponentials = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)
