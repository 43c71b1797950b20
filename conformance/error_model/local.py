"""How much one primitive's own rounding may change each element of its result.

`LOCAL[name](precision, y, *args, **kwargs)` gives for each element of y = name(*args, **kwargs) a magnitude b: the standard
deviation of the rounding errors made inside the primitive. By the standard model fl(a op b) = (a op b)(1 + d), |d| <= u
(Higham, Accuracy and Stability of Numerical Algorithms, ch. 3), with d taken as random, independent and at most as spread
as the uniform distribution on [-u, u], whose standard deviation is u/sqrt(3) =: r (Higham & Mary, SISC 41(5), 2019):

- c operations in a row on values of one size: sqrt(c) r of that size;
- a sum of K terms t in the type of accumulation: every partial sum is rounded. In a random order the partial sum of i terms
  has the mean square (i/K) sum t^2 + (i/K)^2 (sum t)^2, so all of them give r sqrt(K/2 sum t^2 + K/3 (sum t)^2);
- an elementary function is off by what its library publishes, `FUNCTION_ULP`; in half types by one rounding, since no
  library evaluates functions in them;
- the result is rounded to the type of storage, and so is what a library without fused kernels stores on the way.

Where all terms of a sum are whole numbers and every partial sum fits into the significand, nothing is rounded at all and b
is 0: then the only right answer is the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from coatref import ops
from coatref.attention import linear_attention as definition_of_linear_attention
from coatref.conformance.precision import FORMATS, Precision, roundoff

Magnitude = Any  # an array, or a number where all elements have the same

# The largest error that a library publishes for an elementary function, in units in the last place (2u of the result):
# NumPy tests its float32 loops to 4; JAX's page "Numerical accuracy" has tanh 7.0 (float64, CPU), erf 7.0 (float32, CPU),
# exp 2.0 and log1p 3.0. torch (SLEEF) and SciPy are better.
FUNCTION_ULP = {"exp": 4.0, "log1p": 4.0, "tanh": 7.0, "erf": 7.0}


def function_units(precision: Precision, name: str) -> float:
    """The error of an elementary function in roundings of the type of accumulation."""
    return 1.0 if precision.accumulate in ("float16", "bfloat16") else 2 * FUNCTION_ULP[name]


def activation_units(precision: Precision, kind: str) -> float:
    """Roundings of |x| in the usual form of an activation: those on the way, enlarged by what follows, together."""
    exp, log1p, tanh, erf = (function_units(precision, name) for name in ("exp", "log1p", "tanh", "erf"))
    parts = {
        "gelu": (erf / 2, 1, 1, 1, 1),  # half of erf's; its argument, twice; 1 + erf; products
        "gelu_tanh": (
            tanh / 2,
            3.2,
            1,
            1,
        ),  # half of tanh's; its argument's 7, which move tanh by 3.2; 1 + tanh; product
        "silu": (exp, 1, 1, 1, 1),  # 1 + e, division (2), product
        "relu": (0,),  # it only selects
        "mish": (exp, log1p, tanh, 1, 1),  # none of them enlarged; sum, product
        "tanh": (tanh,),
    }
    return math.sqrt(sum(part**2 for part in parts[kind]))


def rounding(dtype: str) -> float:
    """r = u/sqrt(3), the standard deviation of one relative rounding error."""
    return roundoff(dtype) / math.sqrt(3)


def whole(*arrays: Any) -> bool:
    """Whether all numbers of all arrays are whole numbers."""
    for array in arrays:
        if array is None:
            continue
        start = np.ravel(array)[:64]
        if not np.array_equal(start, np.rint(start)) or not np.array_equal(array, np.rint(array)):
            return False
    return True


def exact(precision: Precision, absolute: Any, y: Any) -> bool:
    """Whether sums of whole numbers are computed without any rounding: what they add up to in absolute value fits."""
    return (
        float(np.max(absolute, initial=0.0)) <= 2.0 ** FORMATS[precision.accumulate][0]
        and float(np.max(np.abs(y), initial=0.0)) <= 2.0 ** FORMATS[precision.storage][0]
    )


def size(array: Any) -> Any:
    """|array| in float32, which is precise enough for a bound; None stays None."""
    return None if array is None else np.abs(array).astype(np.float32)


def square(array: Any) -> Any:
    """array^2 in float32."""
    return np.square(np.asarray(array, np.float32))


def both(*magnitudes: Any) -> Any:
    """Independent errors together: the root of the sum of squares."""
    total = np.square(magnitudes[0])
    for each in magnitudes[1:]:
        total = total + np.square(each)
    return np.sqrt(total)


def stored(precision: Precision, y: Any) -> Any:
    """Rounding a result to storage."""
    return rounding(precision.storage) * np.abs(y)


def summed(precision: Precision, terms: int, squares: Any, total: Any) -> Any:
    """A sum of `terms` terms in a random order, from the sum of their squares and the sum itself."""
    return rounding(precision.accumulate) * np.sqrt(terms / 2 * squares + terms / 3 * np.square(total))


def product(precision: Precision, y: Any, terms: int, squares: Any, bias: Any) -> Any:
    """A sum of products, each rounded too, then stored; then a bias added, and stored again."""
    plain = y if bias is None else y - bias
    return both(summed(precision, terms + 2, squares, plain), stored(precision, plain), stored(precision, y))


def dense(precision: Precision, y: Any, x: Any, w: Any, b: Any = None) -> Magnitude:
    """A sum of C products and a bias."""
    if whole(x, w, b) and exact(precision, ops.dense(size(x), size(w), size(b)), y):
        return 0.0
    return product(precision, y, w.shape[0], ops.dense(square(x), square(w)), b)


def conv2d(precision: Precision, y: Any, x: Any, w: Any, b: Any = None, **options: Any) -> Magnitude:
    """A sum of kh kw C products and a bias; never exact, since Winograd's algorithms divide."""
    return product(precision, y, math.prod(w.shape[:3]), ops.conv2d(square(x), square(w), **options), b)


def depthwise_conv2d(precision: Precision, y: Any, x: Any, w: Any, b: Any = None, **options: Any) -> Magnitude:
    """A sum of kh kw products and a bias."""
    if whole(x, w, b) and exact(precision, ops.depthwise_conv2d(size(x), size(w), size(b), **options), y):
        return 0.0
    return product(precision, y, math.prod(w.shape[:2]), ops.depthwise_conv2d(square(x), square(w), **options), b)


def selection(precision: Precision, y: Any, *args: Any, **options: Any) -> Magnitude:
    """Nothing is computed, only selected."""
    return 0.0


def avg_pool(precision: Precision, y: Any, x: Any, *, size: int = 2, **options: Any) -> Magnitude:
    """A sum of size^2 terms and a division, two more operations as a product with the reciprocal."""
    mean = ops.avg_pool(np.abs(x), size=size, **options)
    return both(rounding(precision.accumulate) * math.sqrt(size**2 + 2) * mean, stored(precision, y))


def global_avg_pool(precision: Precision, y: Any, x: Any) -> Magnitude:
    """A sum of H W terms and a division, two more operations as a product with the reciprocal."""
    positions = x.shape[1] * x.shape[2]
    squares = ops.global_avg_pool(square(x)) / positions  # of the terms x/(H W)
    return both(summed(precision, positions + 2, squares, y), stored(precision, y))


def batch_norm(
    precision: Precision, y: Any, x: Any, gamma: Any, beta: Any, mean: Any, var: Any, *, epsilon: float
) -> Magnitude:
    """8 operations on |x| + |mean|, scaled, and |beta|: so that x s + (beta - mean s) is as good as the textbook form."""
    scale = np.abs(gamma) / np.sqrt(var + epsilon)
    scaled = (np.abs(x) + np.abs(mean)) * scale + np.abs(beta)
    return both(math.sqrt(8) * rounding(precision.accumulate) * scaled, stored(precision, y))


def layer_norm(precision: Precision, y: Any, x: Any, gamma: Any, beta: Any, *, epsilon: float) -> Magnitude:
    """|gamma| (M/s + |z| (1/2 sqrt(C/3) (1 + m^2/s^2) + 3)) + |beta| in roundings, z = (x - m)/s.

    The mean m is a sum of C terms, in error by M = sqrt(mean x^2 / 2 + C m^2 / 3), which moves every z alike. The variance
    is a sum of C squares, whose relative error counts by half; as E[x^2] - m^2, Flax's default, its terms are larger by
    1 + m^2/s^2. Nine operations more: centring, epsilon, root, division, gamma.
    """
    channels = x.shape[-1]
    mean = np.mean(x, axis=-1, keepdims=True)
    root = np.sqrt(np.var(x, axis=-1, keepdims=True) + epsilon)
    off = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) / 2 + channels / 3 * np.square(mean))
    z = np.abs(x - mean) / root
    spread = z * (0.5 * math.sqrt(channels / 3) * (1 + np.square(mean / root)) + 3)
    scaled = np.abs(gamma) * both(off / root, spread) + np.abs(beta)
    return both(rounding(precision.accumulate) * scaled, stored(precision, y))


def activation(precision: Precision, y: Any, x: Any, kind: str) -> Magnitude:
    """`activation_units` of |x|: in the left tail, where the value is smaller, the usual forms cancel."""
    inside = activation_units(precision, kind) * rounding(precision.accumulate) * np.abs(x)
    return both(inside, stored(precision, y))


def sigmoid(precision: Precision, y: Any, x: Any) -> Magnitude:
    """exp's error, 1 + e and a division (2), of the result."""
    units = math.sqrt(function_units(precision, "exp") ** 2 + 3)
    return both(units * rounding(precision.accumulate) * y, stored(precision, y))


def softmax(precision: Precision, y: Any, x: Any) -> Magnitude:
    """With d = |x - max|: exp is off by d (the difference) and its own, the sum by these averaged and its K roundings."""
    distance = np.where(y > 0, np.max(x, axis=-1, keepdims=True) - x, 0.0)
    inside = y * (1 + distance + np.sum(y * distance, axis=-1, keepdims=True))
    units = math.sqrt(x.shape[-1] / 3 + 3 + 2 * function_units(precision, "exp") ** 2)
    return both(units * rounding(precision.accumulate) * inside, stored(precision, y))


def logits(precision: Precision, y: Any, q: Any, k: Any, bias: Any, scale: float) -> Magnitude:
    """scale q.k + bias: D products; scaled q and k, the unscaled and scaled product and the sum may each be stored."""
    squares = scale**2 * (square(q) @ square(np.swapaxes(k, 2, 3)))
    plain = y if bias is None else y - bias
    added = np.abs(y) + (0.0 if bias is None else np.abs(bias))
    r = rounding(precision.storage)
    return both(
        summed(precision, q.shape[3] + 4, squares, plain), r * np.sqrt(2 * squares), r * math.sqrt(2) * plain, r * added
    )


def weighted_values(precision: Precision, y: Any, weights: Any, v: Any) -> Magnitude:
    """A sum of K products, stored; normalising after the product instead of before rounds as much."""
    sums = summed(precision, v.shape[2] + 2, square(weights) @ square(v), y)
    return both(sums, math.sqrt(2) * stored(precision, y))


def linear_attention(precision: Precision, y: Any, q: Any, k: Any, v: Any) -> Magnitude:
    """In numerator and denominator the two feature maps, sums of K and of D terms; a division."""
    length, width = k.shape[2:]
    units = math.sqrt(2 * (2 * function_units(precision, "exp") ** 2 + length + width) + 2)
    positive = definition_of_linear_attention(q, k, np.abs(v))
    return both(units * rounding(precision.accumulate) * positive, 4 * rounding(precision.storage) * positive)


LOCAL: Mapping[str, Callable[..., Magnitude]] = {
    "conv2d": conv2d,
    "depthwise_conv2d": depthwise_conv2d,
    "max_pool": selection,
    "avg_pool": avg_pool,
    "global_avg_pool": global_avg_pool,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "activation": activation,
    "sigmoid": sigmoid,
    "softmax": softmax,
    "dense": dense,
    "gather_bias": selection,
    "linear_attention": linear_attention,
}
