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
from coatref.attention.relative_bias import log_coordinates
from coatref.conformance.precision import FORMATS, Precision, roundoff, smallest_step

ALIKE = 1e-5  # (var t / mean^2 t) below which terms count as equal: sums of squares are known in float32
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


def summed(precision: Precision, terms: int, squares: Any, total: Any, more: int = 2, start: Any = None) -> Any:
    """A sum of `terms` terms in a random order, from the sum of their squares and the sum itself.

    With `more` operations on terms or sum. Where the terms are equal, to less than a rounding of the sum, so are their
    roundings: K squares = total^2 (1 + var t / mean^2 t), and sqrt(var t) <= 2u |total| makes that at most 1 + (2uK)^2.
    What is added to the sum may be its first term (`start`, a bias): partial sums then go from there to y = start + total,
    and their mean square is (start^2 + start y + y^2)/3 instead of total^2/3.
    """
    r, count = rounding(precision.accumulate), terms + more
    way = np.square(total)
    if start is not None:
        end = start + total
        way = np.maximum(way, np.square(start) + start * end + np.square(end))
    apart = r * np.sqrt(count / 2 * squares + count / 3 * way)
    alike = terms * squares <= np.square(total) * (1 + max((2 * roundoff(precision.accumulate) * terms) ** 2, ALIKE))
    return both(apart, np.where(alike, min(r * terms / 2, 1.0), 0.0) * np.abs(total))


def product(precision: Precision, y: Any, terms: int, squares: Any, bias: Any) -> Any:
    """A sum of products, each rounded too, then stored; a bias added before or after, and stored again."""
    plain = y if bias is None else y - bias
    return both(summed(precision, terms, squares, plain, start=bias), stored(precision, plain), stored(precision, y))


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
    units = max(math.sqrt(size**2 + 2), size**2 / 2)  # of equal terms
    return both(units * rounding(precision.accumulate) * mean, stored(precision, y))


def global_avg_pool(precision: Precision, y: Any, x: Any) -> Magnitude:
    """A sum of H W terms and a division, two more operations as a product with the reciprocal.

    Of an even picture only the edges differ, so the terms that are equal are counted: those as large as the median.
    """
    positions = x.shape[1] * x.shape[2]
    squares = ops.global_avg_pool(square(x)) / positions  # of the terms x/(H W)
    middle = np.median(x, axis=(1, 2), keepdims=True)
    near = np.abs(x - middle) <= 2 * roundoff(precision.accumulate) * positions * np.abs(y)[:, None, None, :]
    alike = np.sum(near & (x != 0), axis=(1, 2))  # (N, H, W, C) -> (N, C)
    together = np.minimum(rounding(precision.accumulate) * alike / 2, 1.0) * np.abs(y)
    return both(summed(precision, positions, squares, y), together, stored(precision, y))


def batch_norm(
    precision: Precision, y: Any, x: Any, gamma: Any, beta: Any, mean: Any, var: Any, *, epsilon: float
) -> Magnitude:
    """8 operations on |x| + |mean|, scaled, and |beta|: so that x s + (beta - mean s) is as good as the textbook form.

    An epsilon below the normal numbers is off by a step, which moves the scale by half of the step over var + epsilon.
    """
    scale = np.abs(gamma) / np.sqrt(var + epsilon)
    scaled = (np.abs(x) + np.abs(mean)) * scale + np.abs(beta)
    lost = 0.5 * np.abs(x - mean) * scale * smallest_step(precision.accumulate) / (var + epsilon)
    return both(math.sqrt(8) * rounding(precision.accumulate) * scaled, lost, stored(precision, y))


def layer_norm(precision: Precision, y: Any, x: Any, gamma: Any, beta: Any, *, epsilon: float) -> Magnitude:
    """|gamma| (M/s + |z| (1/2 sqrt(C/3) (1 + m^2/s^2) + 3)) + |beta| in roundings, z = (x - m)/s.

    The mean m is a sum of C terms, in error by M = sqrt(mean x^2 / 2 + C m^2 / 3), which moves every z alike. The variance
    is a sum of C squares, whose relative error counts by half; as E[x^2] - m^2, Flax's default, its terms are larger by
    1 + m^2/s^2. Nine operations more: centring, epsilon, root, division, gamma. Where all x are nearly equal, M and
    sqrt(C/3) are those of a sum of equal terms. Squares and an epsilon below the normal numbers are off by a step, all in
    one direction, and so is the variance. Squares beyond the largest number cannot be formed: the magnitude is infinite.
    """
    channels = x.shape[-1]
    mean = np.mean(x, axis=-1, keepdims=True)
    root = np.sqrt(np.var(x, axis=-1, keepdims=True) + epsilon)
    off = summed(precision, channels, np.mean(np.square(x), axis=-1, keepdims=True) / channels, mean, more=0)
    off = off / rounding(precision.accumulate)
    z = np.abs(x - mean) / root
    ratio = np.divide(
        off, np.abs(mean), out=np.zeros_like(root), where=mean != 0
    )  # sqrt(C/3) or more where x are alike
    units = np.where(np.abs(mean) > 10 * root, np.maximum(ratio, math.sqrt(channels / 3)), math.sqrt(channels / 3))
    spread = z * (0.5 * units * (1 + np.square(mean / root)) + 3)
    lost = 0.5 * z * smallest_step(precision.accumulate) / np.square(root) / rounding(precision.accumulate)
    scaled = np.abs(gamma) * both(off / root, spread, lost) + np.abs(beta)
    if np.max(np.abs(x - mean), initial=0.0) > math.sqrt(FORMATS[precision.accumulate][2]):
        return math.inf
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
        summed(precision, q.shape[3], squares, plain, more=4, start=bias),
        r * np.sqrt(2 * squares),
        r * math.sqrt(2) * plain,
        r * added,
    )


def weighted_values(precision: Precision, y: Any, weights: Any, v: Any) -> Magnitude:
    """A sum of K products, stored; normalising after the product instead of before rounds as much."""
    sums = summed(precision, v.shape[2], square(weights) @ square(v), y)
    return both(sums, math.sqrt(2) * stored(precision, y))


def linear_attention(precision: Precision, y: Any, q: Any, k: Any, v: Any) -> Magnitude:
    """In numerator and denominator the two feature maps, sums of K and of D terms; a division."""
    length, width = k.shape[2:]
    units = math.sqrt(2 * (2 * function_units(precision, "exp") ** 2 + length + width) + 2)
    positive = definition_of_linear_attention(q, k, np.abs(v))
    return both(units * rounding(precision.accumulate) * positive, 4 * rounding(precision.storage) * positive)


def log_mlp(precision: Precision, hidden: Any, out: Any, positions: int) -> float:
    """The largest magnitude in a relative-bias table that a small MLP computes from logarithms of offsets.

    The logarithms are off by log1p's error and may be stored; the two layers round as dense layers do, and what the first
    is off by passes the second.

    Args:
        precision: as declared.
        hidden, out: the dense layers {"w", "b"}, float64.
        positions: of the grid, whose sides are taken to differ by no more than a factor of 2.
    """
    side = math.ceil(math.sqrt(2 * positions))
    c = log_coordinates(side, side, np, np.dtype("float64"))  # (2*side-1, 2*side-1, 2)
    h = ops.dense(c, **hidden)
    y = ops.dense(np.maximum(h, 0.0), **out)
    units = function_units(precision, "log1p") * rounding(precision.accumulate) + rounding(precision.storage)
    first = both(units * np.sqrt(ops.dense(square(c), square(hidden["w"]))), dense(precision, h, c, **hidden))
    passed = np.sqrt(ops.dense(square(first), square(out["w"])))
    return float(np.max(both(passed, dense(precision, y, np.maximum(h, 0.0), **out))))


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
