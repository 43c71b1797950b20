"""How far two correct computations of the same thing may lie apart: derived bounds, none of them tuned.

For one primitive. The error is measured in units:

    units(y) = max |y - reference| / (u * scale),    u = 2^-24 for float32, 2^-53 for float64

with `scale` an array of the size of the terms that are rounded on the way to each element of y, computed in float64 from
the same inputs. `BOUNDS` states for each primitive what it may be, as a formula of its sizes, to first order in u, by the
standard model fl(a op b) = (a op b)(1 + d), |d| <= u (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3). Each
holds for every order of summation, with and without fused multiply-add, with a division done as a multiplication by the
reciprocal, and for elementary functions as good as `FUNCTION_ULP`. Two float64 results may differ by twice the bound; a
float32 result is judged against float64, whose own error does not count there.

For a whole network no such formula says anything: `sensitivity` measures instead how much the output moves when every
input, parameter and primitive is off by one unit, and `NETWORK_UNITS` such moves are allowed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import coatref
from coatref import ops
from coatref.primitives import DEFINITION, Form, Primitives
from coatref.tree import map_named

Array = Any
Dense = Mapping[str, Array]
Bound = tuple[float, Array]  # allowed units, and the scale that they are units of

ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53}

# The largest error that a library here publishes for an elementary function, in units in the last place (2u of the
# result): NumPy tests its float32 loops to 4; JAX's page "Numerical accuracy" has tanh 7.0 (float64, CPU), erf 7.0
# (float32, CPU), exp 2.0 and log1p 3.0. torch (SLEEF) and SciPy are better.
FUNCTION_ULP = {"exp": 4, "log1p": 4, "tanh": 7, "erf": 7}
EXP, LOG1P, TANH, ERF = (2 * ulp for ulp in FUNCTION_ULP.values())  # the same in units of u

# Moves of the output allowed between two libraries, where one move is what one unit everywhere makes of it. It is not 1:
# - a sum of K terms rounds K times, which adds up to about sqrt(K) units, 13 in the networks drawn here (K < 160);
# - an elementary function may be off by 14 units;
# - the trials are few and the output may be two numbers, so all of them may be lucky: one of 8 trials is above a quarter
#   of the spread with a probability of 1 - 0.2^8, but in a network that amplifies rounding the spread has a long tail.
# All of them would have to meet in the place that the output depends on most; 99 of 100 networks stay below 1.5 moves.
# What it excludes: in float64, anything in float32 on the way (5e8 units) and any constant or function with fewer than 14
# of its 16 digits right; in any type, another epsilon, padding, order of axes, formula or parameter.
NETWORK_UNITS = 16
PERTURBATIONS = 8


def units(found: Array, reference: Array, scale: Array, dtype: str) -> float:
    """The error of `found` in units; infinite where shapes differ, or NaN or infinity stands on one side only.

    Below the smallest normal number of the type anything is as good as zero: libraries may flush it.
    """
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    if found.shape != reference.shape or not np.array_equal(np.isfinite(found), np.isfinite(reference)):
        return math.inf
    if not np.array_equal(found[~np.isfinite(found)], reference[~np.isfinite(reference)], equal_nan=True):
        return math.inf
    there = np.isfinite(found)
    one = np.maximum(ROUNDOFF[dtype] * np.broadcast_to(scale, found.shape), np.finfo(dtype).tiny)[there]
    return float(np.max(np.abs(found[there] - reference[there]) / one, initial=0.0))


# --- one primitive: the table ---


def dense(x: Array, w: Array, b: Array | None = None) -> Bound:
    """C + 1: C products summed in any order are off by C units of sum |x||w|, and the bias adds one."""
    return w.shape[0] + 1, ops.dense(*magnitudes(x, w, b))


def conv2d(x: Array, w: Array, b: Array | None = None, **options: Any) -> Bound:
    """kh kw C + 1, as `dense`."""
    return math.prod(w.shape[:3]) + 1, ops.conv2d(*magnitudes(x, w, b), **options)


def depthwise_conv2d(x: Array, w: Array, b: Array | None = None, **options: Any) -> Bound:
    """kh kw + 1, as `dense`."""
    return math.prod(w.shape[:2]) + 1, ops.depthwise_conv2d(*magnitudes(x, w, b), **options)


def max_pool(x: Array, **options: Any) -> Bound:
    """0: it only selects."""
    return 0, 1.0


def avg_pool(x: Array, *, size: int, **options: Any) -> Bound:
    """size^2 + 1: size^2 - 1 additions, and a division (2, as a reciprocal and a product)."""
    return size**2 + 1, ops.avg_pool(np.abs(x), size=size, **options)


def global_avg_pool(x: Array) -> Bound:
    """H W + 1: H W - 1 additions, and a division (2)."""
    return x.shape[1] * x.shape[2] + 1, ops.global_avg_pool(np.abs(x))


def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Bound:
    """8: x - mean 1, epsilon and its sum 2/2 under the root, root and division 2 (4 as a reciprocal root), product 1, sum 1.

    |mean| stands in the scale, so that x s + (beta - mean s) is as good.
    """
    return 8, (np.abs(x) + np.abs(mean)) * np.abs(gamma) / np.sqrt(var + epsilon) + np.abs(beta)


def layer_norm(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Bound:
    """C + 10, with A the mean |x|, s the root and z = (x - m)/s, in units of |gamma| (A/s (1 + |z|) + |z|) + |beta|.

    The mean is off by C + 1 units of A; that moves z by A/s directly and by A/s |z| through s. z itself is off by C/2 + 9:
    its centring 1 and that in the variance 1, the variance's sum (C + 2)/2, epsilon and its sum 1, root and division 4,
    gamma 1.
    """
    size = np.mean(np.abs(x), axis=-1, keepdims=True)
    root = np.sqrt(np.var(x, axis=-1, keepdims=True) + epsilon)
    z = np.abs(x - np.mean(x, axis=-1, keepdims=True)) / root
    return x.shape[-1] + 10, np.abs(gamma) * (size / root * (1 + z) + z) + np.abs(beta)


ACTIVATION_UNITS: dict[str, tuple[float, str]] = {  # of |x|
    "gelu": (
        ERF / 2 + 4,
        "half of erf's; its argument 2 units, which move x erf(x) by 1; 1 + erf 2/2; product 1, constant 1",
    ),
    "gelu_tanh": (
        TANH / 2 + 7,
        "half of tanh's; its argument 7 units, which move tanh by 3.2; 1 + tanh 2/2; product 1",
    ),
    "silu": (EXP + 4, "exp's, 1 + e 1, division 2, product 1"),
    "relu": (0, "it only selects"),
    "mish": (EXP + LOG1P + TANH + 2, "exp's, log1p's and tanh's, none of them enlarged; sum 1, product 1"),
    "tanh": (TANH, "tanh's"),
}


def activation(x: Array, kind: str) -> Bound:
    """`ACTIVATION_UNITS` of |x|: in the left tail, where the value is smaller, other forms cancel."""
    return ACTIVATION_UNITS[kind][0], np.abs(x)


def softmax(x: Array) -> Bound:
    """K + 1 + 2 exp's: with r = |x_k - max|, e_k is off by r (the difference) and exp's; the sum is that, averaged, and K - 1.

    Scale: p_k (1 + r_k + sum_l p_l r_l).
    """
    spread = np.max(x, axis=-1, keepdims=True) - x
    p = ops.softmax(x)
    return x.shape[-1] + 1 + 2 * EXP, p * (1 + spread + np.sum(p * spread, axis=-1, keepdims=True))


def squeeze_excite(x: Array, reduce: Dense, expand: Dense, *, activation: str) -> Bound:
    """The largest of n + C + 2 (means, then a dense layer), the activation's, hidden + 1 and the gate's exp + 4.

    Scale: |x| (1 + |W2| (slope (|W1| mean|x| + |b1|) + |h|) + |W2||act(h)| + |b2|), the slope of no activation above 1.2
    and of the sigmoid below 1.
    """
    positions, channels, hidden = x.shape[1] * x.shape[2], x.shape[3], reduce["w"].shape[1]
    means = ops.global_avg_pool(x)
    h = ops.dense(means, **reduce)
    off = 1.2 * (ops.dense(*magnitudes(ops.global_avg_pool(np.abs(x)), *reduce.values()))) + np.abs(h)
    weight = np.abs(expand["w"])
    gate = 1 + off @ weight + ops.dense(*magnitudes(ops.activation(h, activation), *expand.values()))
    most = max(positions + channels + 2, ACTIVATION_UNITS[activation][0], hidden + 1, EXP + 4)
    return most, np.abs(x) * gate[:, None, None, :]


def gather_bias(table: Array, height: int, width: int) -> Bound:
    """0: it only selects."""
    return 0, 1.0


def relative_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    *,
    scale: float,
    scale_site: str,
    add: str,
    key_mask: Array | None = None,
) -> Bound:
    """The larger of D + 7 and 2 K + 2 + 2 exp's.

    A logit is off by D + 7 units of L = scale |q||k| + |bias|: the product D, two scales and their constants 4, the bias
    1, a scale after it 2. A weight p, as in `softmax` with L beside r, is off by that and by K + 1 + 2 exp's; the product
    with v (and a bias added after the softmax) adds K + 1.

    Scale: sum_j (p (1 + R_j + sum_l p_l R_l) + |bias|) |v|, R = L + r; |bias| only where it is added after the softmax.
    """
    early = add == "pre_softmax"
    keys = np.swapaxes(k, 2, 3)
    logits, size = scale * (q @ keys), scale * (np.abs(q) @ np.abs(keys))
    if bias is not None and early:
        factor = scale if scale_site == "logits_and_bias" else 1.0
        logits, size = logits + factor * bias, size + factor * np.abs(bias)
    if key_mask is not None:
        shown = np.broadcast_to(key_mask.reshape(-1, 1, 1, k.shape[2]), logits.shape)
        logits, size = np.where(shown, logits, -1e30), np.where(shown, size, 0.0)
    p = ops.softmax(logits)
    off = np.where(p > 0, size + np.max(logits, axis=-1, keepdims=True) - logits, 0.0)
    weights = p * (1 + off + np.sum(p * off, axis=-1, keepdims=True))
    if bias is not None and not early:
        weights = weights + np.abs(bias)
    return max(q.shape[3] + 7, 2 * k.shape[2] + 2 + 2 * EXP), weights @ np.abs(v)


def linear_attention(q: Array, k: Array, v: Array) -> Bound:
    """2 (2 exp's + K + D) + 2: in numerator and denominator the two feature maps and sums of K and of D; the division 2.

    Scale: the same with |v|; all else is positive.
    """
    length, size = k.shape[2:]
    return 2 * (2 * EXP + length + size) + 2, DEFINITION.linear_attention(q, k, np.abs(v))


def magnitudes(*arrays: Array | None) -> list[Any]:
    """The absolute values of what is there."""
    return [None if array is None else np.abs(array) for array in arrays]


BOUNDS: dict[str, Callable[..., Bound]] = {  # of every primitive of the network: allowed units and their scale
    "conv2d": conv2d,
    "depthwise_conv2d": depthwise_conv2d,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "global_avg_pool": global_avg_pool,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "activation": activation,
    "softmax": softmax,
    "squeeze_excite": squeeze_excite,
    "dense": dense,
    "gather_bias": gather_bias,
    "relative_attention": relative_attention,
    "linear_attention": linear_attention,
}


# --- a whole network ---


def sensitivity(params: coatref.Params, x: Array, dtype: str) -> float:
    """How far the output of a float64 NumPy network moves, at most, when everything is off by one unit of `dtype`.

    Every number of the images, the parameters and the results of the primitives is multiplied by 1 + u or 1 - u, at
    random; the largest move of any output in `PERTURBATIONS` trials, and not less than one rounding of the output.
    """
    reference = coatref.forward(params, x, backend="definition")
    moves = [ROUNDOFF[dtype] * float(np.max(np.abs(reference)))]
    for trial in range(PERTURBATIONS):
        random = np.random.default_rng(trial)

        def shaking(form: Form, random: np.random.Generator = random) -> Form:
            return lambda *args, **kwargs: shaken(form(*args, **kwargs), dtype, random)

        forms = {field.name: shaking(getattr(DEFINITION, field.name)) for field in dataclasses.fields(Primitives)}
        output = coatref.forward(
            shaken_params(params, dtype, random), shaken(x, dtype, random), backend=Primitives(**forms)
        )
        moves.append(float(np.max(np.abs(output - reference))))
    return max(moves)


def shaken(array: Array, dtype: str, random: np.random.Generator) -> Array:
    """Every number one unit up or down."""
    return array * (1.0 + ROUNDOFF[dtype] * random.choice((-1.0, 1.0), array.shape))


def shaken_params(params: coatref.Params, dtype: str, random: np.random.Generator) -> coatref.Params:
    """The same of all parameters."""
    return coatref.Params(map_named(lambda name, array: shaken(array, dtype, random), params), params.spec)
