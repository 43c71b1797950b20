"""The error model against arbitrary precision and against chance: magnitudes cover rounding, tests err as seldom as they say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest
from scipy import optimize, special

from coatref import ops
from coatref.attention import linear_attention
from coatref.conformance.error_model import local, probes, verdict
from coatref.conformance.honest_runs import PRECISIONS, false_alarms
from coatref.conformance.precision import Precision, as_stored, rounded, roundoff
from coatref.ops.activation import sigmoid
from coatref.primitives import DEFINITION

FLOAT64, FLOAT32 = Precision("float64", "float64"), Precision("float32", "float32")
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}
ORDERS = ("forward", "backward", "drawn", "pairs")
DRAWS = 12
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "error-model.md"


# Naive forms, one operation after the other, on arrays of any type: narrow ones, or objects of mpmath.


@dataclass(frozen=True)
class Arithmetic:
    """Numbers of one type and the functions on them; "exact" numbers have 60 digits."""

    dtype: str

    def cast(self, array: Any) -> Any:
        if self.dtype == "exact":
            return np.frompyfunc(mpmath.mpf, 1, 1)(np.asarray(array, np.float64))
        return np.asarray(array).astype(TYPES[self.dtype])

    def function(self, name: str, x: Any) -> Any:
        if self.dtype == "exact":
            return np.frompyfunc(getattr(mpmath, name), 1, 1)(x)
        wide = x.astype(np.float32) if x.dtype.itemsize == 2 else x  # no library has functions in half types
        own: dict[str, Callable[[Any], Any]] = {"erf": special.erf}
        return own.get(name, getattr(np, name, None))(wide).astype(x.dtype)  # type: ignore[misc]

    def number(self, value: float) -> Any:
        return mpmath.mpf(value) if self.dtype == "exact" else TYPES[self.dtype](value)


def add_up(terms: list[Any], order: str, random: np.random.Generator) -> Any:
    """A sum of arrays in their own type."""
    if order == "pairs":
        while len(terms) > 1:
            rest = terms[len(terms) - len(terms) % 2 :]
            terms = [a + b for a, b in zip(terms[:-1:2], terms[1::2], strict=False)] + rest
        return terms[0]
    chosen = {"forward": range(len(terms)), "backward": reversed(range(len(terms)))}.get(order)
    total = None
    for index in random.permutation(len(terms)) if chosen is None else chosen:
        total = terms[index] if total is None else total + terms[index]
    return total


Naive = Callable[..., Any]  # (arithmetic, sum, *arguments in that arithmetic) -> value
Sum = Callable[[list[Any]], Any]


def naive_dense(a: Arithmetic, add: Sum, x: Any, w: Any, b: Any = None) -> Any:
    y = add([x[..., k, None] * w[k] for k in range(w.shape[0])])
    return y if b is None else y + b


def bias_first(a: Arithmetic, add: Sum, x: Any, w: Any, b: Any) -> Any:
    total = b + 0 * x[..., :1]
    for k in range(w.shape[0]):
        total = total + x[..., k, None] * w[k]
    return total


def naive_conv(a: Arithmetic, add: Sum, x: Any, w: Any, b: Any) -> Any:
    views = windows(x, 3)
    terms = [views[t][..., c, None] * w[t // 3, t % 3, c] for t in range(9) for c in range(w.shape[2])]
    return add(terms) + b


def naive_depthwise(a: Arithmetic, add: Sum, x: Any, w: Any, b: Any) -> Any:
    views = windows(x, 3)
    return add([views[t] * w[t // 3, t % 3] for t in range(9)]) + b


def windows(x: Any, size: int) -> list[Any]:
    """Views of a 3x3 window with zeros around, of any type of numbers."""
    n, height, width, channels = x.shape
    padded = np.zeros((n, height + 2, width + 2, channels), x.dtype)
    padded[:, 1:-1, 1:-1] = x
    return [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]


def naive_avg_pool(a: Arithmetic, add: Sum, x: Any) -> Any:
    return add([x[:, i::2, j::2] for i in range(2) for j in range(2)]) / a.number(4)


def naive_global(a: Arithmetic, add: Sum, x: Any) -> Any:
    height, width = x.shape[1:3]
    return add([x[:, i, j] for i in range(height) for j in range(width)]) / a.number(height * width)


def naive_batch_norm(a: Arithmetic, add: Sum, x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
    return (x - mean) / a.function("sqrt", var + a.number(1e-3)) * gamma + beta


def folded_batch_norm(a: Arithmetic, add: Sum, x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
    scale = gamma / a.function("sqrt", var + a.number(1e-3))
    return x * scale + (beta - mean * scale)


def naive_layer_norm(a: Arithmetic, add: Sum, x: Any, gamma: Any, beta: Any) -> Any:
    count, channels = a.number(x.shape[-1]), range(x.shape[-1])
    centred = x - (add([x[..., c] for c in channels]) / count)[..., None]
    variance = add([centred[..., c] * centred[..., c] for c in channels]) / count
    return centred / a.function("sqrt", variance + a.number(1e-3))[..., None] * gamma + beta


def quick_layer_norm(a: Arithmetic, add: Sum, x: Any, gamma: Any, beta: Any) -> Any:
    """With E[x^2] - m^2, as Flax has it."""
    count, channels = a.number(x.shape[-1]), range(x.shape[-1])
    mean = add([x[..., c] for c in channels]) / count
    variance = add([x[..., c] * x[..., c] for c in channels]) / count - mean * mean
    return (x - mean[..., None]) / a.function("sqrt", variance + a.number(1e-3))[..., None] * gamma + beta


def naive_sigmoid(a: Arithmetic, add: Sum, x: Any) -> Any:
    return a.number(1) / (a.number(1) + a.function("exp", -x))


def naive_activation(kind: str) -> Naive:
    def run(a: Arithmetic, add: Sum, x: Any) -> Any:
        one, half = a.number(1), a.number(0.5)
        if kind == "gelu":
            return half * x * (one + a.function("erf", x * a.number(math.sqrt(0.5))))
        if kind == "gelu_tanh":
            inner = a.number(math.sqrt(2 / math.pi)) * (x + a.number(0.044715) * (x * x * x))
            return half * x * (one + a.function("tanh", inner))
        if kind == "silu":
            return x * naive_sigmoid(a, add, x)
        if kind == "relu":
            return np.where(x > 0, x, 0 * x)
        if kind == "mish":
            log1p = np.where(x > 0, x, 0 * x) + a.function("log1p", a.function("exp", -np.abs(x)))
            return x * a.function("tanh", log1p)
        return a.function("tanh", x)

    return run


def naive_softmax(a: Arithmetic, add: Sum, x: Any) -> Any:
    e = a.function("exp", x - np.max(x, axis=-1, keepdims=True))
    return e / add([e[..., k] for k in range(x.shape[-1])])[..., None]


def naive_linear_attention(a: Arithmetic, add: Sum, q: Any, k: Any, v: Any) -> Any:
    def phi(t: Any) -> Any:
        return np.where(t > 0, t + a.number(1), a.function("exp", np.where(t < 0, t, 0 * t)))

    q, k = phi(q), phi(k)
    pairs = add([q[..., :, None, d] * k[..., None, :, d] for d in range(q.shape[-1])])  # (N, heads, Q, K)
    total = add([pairs[..., j] for j in range(k.shape[2])])[..., None]
    return add([pairs[..., j, None] * v[..., None, j, :] for j in range(k.shape[2])]) / total


@dataclass(frozen=True)
class Example:
    """One primitive: shapes and mean of its drawn arguments, the definition, its naive forms, options of both."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    definition: Callable[..., Any]
    forms: tuple[Naive, ...]
    options: tuple[tuple[str, Any], ...] = ()
    mean: float = 0.3
    lowest: float = 0.02  # of err / b: how loose a magnitude may be
    bias: float = 1.0  # what the last argument is multiplied by


def layer_norm_example(forms: tuple[Naive, ...], mean: float, lowest: float) -> Example:
    return Example("layer_norm", ((5, 40), (40,), (40,)), ops.layer_norm, forms, (("epsilon", 1e-3),), mean, lowest)


EXAMPLES = (
    Example("dense", ((6, 24), (24, 5), (5,)), ops.dense, (naive_dense, bias_first)),
    Example("dense", ((6, 96), (96, 5)), ops.dense, (naive_dense,), mean=2.0),
    Example("dense", ((6, 24), (24, 5), (5,)), ops.dense, (naive_dense, bias_first), mean=0.0, bias=30.0),
    Example("conv2d", ((1, 4, 5, 3), (3, 3, 3, 6), (6,)), ops.conv2d, (naive_conv,)),
    Example("depthwise_conv2d", ((1, 4, 5, 7), (3, 3, 7), (7,)), ops.depthwise_conv2d, (naive_depthwise,)),
    Example("avg_pool", ((1, 4, 6, 7),), ops.avg_pool, (naive_avg_pool,)),
    Example("global_avg_pool", ((1, 5, 7, 6),), ops.global_avg_pool, (naive_global,), mean=1.0),
    Example(
        "batch_norm",
        ((3, 4, 5, 7), (7,), (7,), (7,), (7,)),
        ops.batch_norm,
        (naive_batch_norm, folded_batch_norm),
        (("epsilon", 1e-3),),
    ),
    layer_norm_example((naive_layer_norm, quick_layer_norm), 0.3, 0.02),
    layer_norm_example((naive_layer_norm,), 3.0, 0.005),  # E[x^2] - m^2 is allowed for here
    *(
        Example("activation", ((9, 11),), DEFINITION.activation, (naive_activation(kind),), (("kind", kind),))
        for kind in ("gelu", "gelu_tanh", "silu", "relu", "mish", "tanh")
    ),
    Example("sigmoid", ((9, 11),), sigmoid, (naive_sigmoid,)),
    Example("softmax", ((4, 6, 9),), ops.softmax, (naive_softmax,)),
    Example(
        "linear_attention",
        ((1, 2, 4, 5), (1, 2, 6, 5), (1, 2, 6, 5)),
        linear_attention,
        (naive_linear_attention,),
        lowest=0.01,
    ),
)


def identified(example: Example) -> str:
    return "-".join((example.name, *(str(value) for key, value in example.options if key == "kind"), str(example.mean)))


def arguments(example: Example, random: np.random.Generator, dtype: str) -> list[Any]:
    values = [random.normal(example.mean, 1.0, shape) for shape in example.shapes]
    if example.name == "batch_norm":
        values[4] = np.abs(values[4]) + 0.1
    values[-1] = values[-1] * example.bias
    return [rounded(value, dtype) for value in values]


def magnitude(example: Example, precision: Precision, y: Any, given: list[Any]) -> Any:
    if example.name == "sigmoid":
        return local.sigmoid(precision, y, *given)
    return local.LOCAL[example.name](precision, y, *given, **dict(example.options))


@pytest.mark.parametrize("example", EXAMPLES, ids=identified)
def test_the_definition_in_float64_is_as_good_as_its_magnitude_says(example: Example) -> None:
    random = np.random.default_rng(1)
    given = arguments(example, random, "float64")
    y = example.definition(*given, **dict(example.options))
    exact = Arithmetic("exact")
    with mpmath.workdps(60):
        true = example.forms[0](exact, lambda terms: add_up(terms, "forward", random), *map(exact.cast, given))
        error = (exact.cast(y) - true).astype(np.float64)
    b = np.broadcast_to(magnitude(example, FLOAT64, y, given), y.shape)
    assert np.all(error[b == 0] == 0)
    if np.any(b > 0):
        assert np.sqrt(np.mean((error[b > 0] / b[b > 0]) ** 2)) <= 1
        assert np.max(np.abs(error[b > 0] / b[b > 0])) <= 5


@pytest.mark.parametrize("precision", PRECISIONS[1:], ids=str)
@pytest.mark.parametrize("example", EXAMPLES, ids=identified)
def test_rounding_is_within_its_magnitude(example: Example, precision: Precision) -> None:
    if example.name == "layer_norm" and example.mean > 1 and precision.accumulate != "float32":
        pytest.skip("needs squares that a half type holds: E[x^2] - m^2 loses all digits")
    largest = 0.0
    for form in example.forms:
        for order in ORDERS:
            ratio = ratio_of(example, form, order, precision)
            assert ratio <= 1, (form.__name__, order, ratio)
            largest = max(largest, ratio)
    assert largest >= example.lowest or example.options == (("kind", "relu"),)


def ratio_of(example: Example, form: Naive, order: str, precision: Precision) -> float:
    """The root mean square of actual rounding errors, in units of their magnitudes."""
    a, squares = Arithmetic(precision.accumulate), []
    for draw in range(DRAWS):
        random = np.random.default_rng([draw, 5])
        given = arguments(example, random, precision.storage)
        y = example.definition(*given, **dict(example.options))
        found = form(a, lambda terms, r=random: add_up(terms, order, r), *map(a.cast, given))
        error = as_stored(np.asarray(found).astype(np.float64), precision.storage).astype(np.float64) - y
        b = np.broadcast_to(magnitude(example, precision, y, given), y.shape)
        assert np.all(error[b == 0] == 0)
        squares += list(((error / np.where(b > 0, b, 1.0))[b > 0]) ** 2)
    return math.sqrt(float(np.mean(squares))) if squares else 0.0


@pytest.mark.parametrize("edge", (1.0, 1.3), ids=("even", "edges"))
@pytest.mark.parametrize("precision", (PRECISIONS[1], *PRECISIONS[4:]), ids=str)
def test_sums_of_equal_terms_are_rounded_alike(precision: Precision, edge: float) -> None:
    # 700 equal terms lose up to a hundred times what as many different ones do, in whatever order.
    a, ratios, apart = Arithmetic(precision.accumulate), [], []
    for draw in range(40):
        random = np.random.default_rng([draw, 8])
        x = np.ones((1, 25, 28, 9)) * random.normal(3.0, 1.0, (1, 1, 1, 9))
        x[:, 0] *= edge
        x = rounded(x, precision.storage)
        y = ops.global_avg_pool(x)
        found = naive_global(a, lambda terms: add_up(terms, "forward", np.random.default_rng(0)), a.cast(x))
        error = found.astype(np.float64) - y
        ratios += list(np.ravel(error / local.global_avg_pool(precision, y, x)))
        apart += list(np.ravel(error / (math.sqrt(700 / 3) * local.rounding(precision.accumulate) * y)))
    assert math.sqrt(float(np.mean(np.square(ratios)))) <= 1
    assert math.sqrt(float(np.mean(np.square(apart)))) > 5  # so the term is needed


def test_attention_and_squeeze_excite_are_within_the_spread_of_their_probes() -> None:
    random = np.random.default_rng(2)
    for precision in (FLOAT32, Precision("float16", "float32"), Precision("bfloat16", "float32")):

        def drawn(*shape: int, dtype: str = precision.storage) -> Any:
            return rounded(random.normal(0.3, 1.0, shape), dtype)

        q, k, v, bias = drawn(1, 2, 6, 8), drawn(1, 2, 6, 8), drawn(1, 2, 6, 8), drawn(2, 6, 6)
        attend = {"relative_attention": ((q, k, v, bias), {"scale": 8**-0.5})}
        layers = {"w": drawn(7, 3), "b": drawn(3)}, {"w": drawn(3, 7), "b": drawn(7)}
        gate = {"squeeze_excite": ((drawn(1, 5, 4, 7), *layers), {"activation": "silu"})}
        for name, (args, options) in (attend | gate).items():
            assert naive_error(name, args, options, precision) <= 1, (name, precision)


def naive_error(name: str, args: tuple[Any, ...], options: dict[str, Any], precision: Precision) -> float:
    """Root mean square of the errors of a form that stores everything it can, in units of the probes' deviation."""
    y, deviations = probed(lambda forms: getattr(forms, name)(*args, **options), precision, 40)
    a = Arithmetic(precision.accumulate)

    def add(terms: list[Any]) -> Any:
        return add_up(terms, "forward", np.random.default_rng(0))

    def keep(value: Any) -> Any:
        return a.cast(rounded(value.astype(np.float64), precision.storage))

    if name == "relative_attention":
        q, k, v, bias = map(a.cast, args)
        scaled = keep(q * a.number(options["scale"]))
        logits = keep(add([scaled[..., :, None, d] * k[..., None, :, d] for d in range(q.shape[-1])]))
        weights = keep(naive_softmax(a, add, keep(logits + bias)))
        found = keep(add([weights[..., j, None] * v[..., None, j, :] for j in range(k.shape[2])]))
    else:
        x, reduce, expand = a.cast(args[0]), *({key: a.cast(w) for key, w in part.items()} for part in args[1:])
        hidden = keep(naive_dense(a, add, keep(naive_global(a, add, x)), **reduce))
        hidden = keep(naive_activation("silu")(a, add, hidden))
        gate = keep(naive_sigmoid(a, add, keep(naive_dense(a, add, hidden, **expand))))
        found = keep(x * gate[:, None, None, :])
    assert np.array_equal(y, getattr(DEFINITION, name)(*args, **options))
    return float(np.sqrt(np.mean((found.astype(np.float64) - y) ** 2) / np.mean(np.square(deviations))))


def probed(compute: Callable[[Any], Any], precision: Precision, count: int) -> tuple[Any, list[Any]]:
    """A value of the definition's forms, and the deviations of probes."""
    recorded = probes.Recorded()
    y = compute(probes.injected(probes.record(precision, recorded), precision))
    found = []
    for number in range(count):
        moved = probes.replay(recorded.magnitudes, np.random.default_rng(number), precision)
        found.append(compute(probes.injected(moved, precision)) - y)
    return y, found


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_whole_numbers_leave_nothing_to_round(precision: Precision) -> None:
    random = np.random.default_rng(3)
    x, w, b = (random.integers(-2, 3, shape).astype(np.float64) for shape in ((4, 9), (9, 5), (5,)))
    y = ops.dense(x, w, b)
    assert local.dense(precision, y, x, w, b) == 0
    a = Arithmetic(precision.accumulate)
    for order in ORDERS:
        found = naive_dense(a, lambda terms, o=order: add_up(terms, o, random), *map(a.cast, (x, w, b)))  # type: ignore[misc]
        assert np.array_equal(np.asarray(found).astype(np.float64), y)
    image, kernel = (
        random.integers(-2, 3, (1, 4, 5, 3)).astype(np.float64),
        random.integers(-2, 3, (3, 3, 3)).astype(np.float64),
    )
    assert local.depthwise_conv2d(precision, ops.depthwise_conv2d(image, kernel), image, kernel) == 0
    assert np.all(local.dense(precision, y + 0.5, x, w, b + 0.5) > 0)
    large = 2.0 ** (50 if precision.accumulate == "float64" else 22)
    assert np.all(local.dense(precision, large * ops.dense(x * 100, w), x * 100, large * w) > 0)  # sums that do not fit


def test_beyond_the_largest_number_is_no_magnitude() -> None:
    half = Precision("float16", "float16")
    x, one = np.linspace(-900.0, 900.0, 12)[None], np.ones(12)
    recorded = probes.Recorded()
    probes.injected(probes.record(half, recorded), half).layer_norm(x, one, one, epsilon=1e-5)
    assert recorded.overflow  # its squares are not among the numbers of float16
    recorded = probes.Recorded()
    probes.injected(probes.record(half, recorded), half).layer_norm(x / 10, one, one, epsilon=1e-5)
    assert not recorded.overflow


# Probes


def test_deviations_have_the_predicted_variance() -> None:
    random, precision = np.random.default_rng(4), Precision("float16", "float32")
    x, first, second = (random.normal(size=shape) for shape in ((6, 10), (10, 14), (14, 5)))
    hidden = ops.dense(x, first)
    y = ops.dense(hidden, second)
    b1, b2 = local.dense(precision, hidden, x, first), local.dense(precision, y, hidden, second)
    expected = b2**2 + b1**2 @ second**2
    count = 1500
    found, deviations = probed(lambda forms: forms.dense(forms.dense(x, first), second), precision, count)
    assert np.array_equal(found, y)
    ratio = np.mean(np.square(deviations), axis=0) / expected
    assert np.max(np.abs(ratio - 1)) < 5 * math.sqrt(2 / count)
    assert abs(np.mean(ratio) - 1) < 5 * math.sqrt(2 / count / 6)  # elements of one row share errors


def test_equal_elements_share_an_error() -> None:
    random, precision = np.random.default_rng(5), FLOAT32
    x, w, count = np.broadcast_to(random.normal(size=(1, 1, 1, 9)), (1, 12, 11, 9)), random.normal(size=(9, 6)), 1500
    b = local.dense(precision, ops.dense(x, w), x, w)[0, 0, 0]
    _, deviations = probed(lambda forms: ops.global_avg_pool(forms.dense(x, w)), precision, count)
    ratio = np.mean(np.square(deviations), axis=(0, 1)) / (b**2 * (1 + 1 / 132))  # shared, and averaged
    assert np.max(np.abs(ratio - 1)) < 5 * math.sqrt(2 / count)
    y = random.normal(size=(7, 8))
    assert probes.twins(y, 1.0) is None
    y[:, 3] = 0.7
    groups = probes.twins(y, 1.0)
    assert np.all(groups[:, 3] == groups[0, 3]) and groups[0, 3] > 0 and np.sum(groups > 0) == 7
    assert probes.twins(y, 0.0) is None


def test_two_errors_of_one_size_never_cancel_for_good() -> None:
    numbers = probes.draws(np.random.default_rng(0), (400, 250))
    assert abs(float(np.mean(numbers))) < 0.02 and abs(float(np.var(numbers)) - 1) < 0.01
    assert np.max(np.abs(numbers)) < math.sqrt(3) and not np.any(numbers == 0)
    both = numbers[:200] + numbers[200:]
    assert np.mean(both == 0) < 0.01


def test_parameters_move_by_a_rounding_unless_they_are_whole() -> None:
    random, precision = np.random.default_rng(6), Precision("bfloat16", "float32")
    flat = {"w": random.normal(size=(40, 50)), "whole": random.integers(-3, 4, (5, 6)).astype(np.float64)}
    moved = probes.shaken(flat, precision, random)
    relative = moved["w"] / flat["w"] - 1
    assert np.std(relative) == pytest.approx(roundoff("bfloat16") / math.sqrt(3), rel=0.05)
    assert np.array_equal(moved["whole"], flat["whole"])


# Verdict

SHAPE, PROBES = (9, 23), 12


def trial(random: np.random.Generator, sigma: Any, *, common: float = 0.0, error: Any = None) -> Any:
    """A comparison of Gaussian errors with Gaussian deviations; `common` of them is shared by all elements."""

    def drawn() -> Any:
        own = random.normal(size=SHAPE) * math.sqrt(1 - common**2)
        return sigma * (own + common * random.normal() * np.ones(SHAPE))

    expected = random.normal(size=SHAPE)
    own = drawn() if error is None else error(drawn())
    return verdict.compare("y", expected + own, expected, [drawn() for _ in range(PROBES)], FLOAT64)


@pytest.mark.parametrize("spreading", (0.0, 1.0), ids=("alike", "spread"))
def test_false_alarms_are_as_seldom_as_they_say(monkeypatch: pytest.MonkeyPatch, spreading: float) -> None:
    chance, trials = 0.02, 700
    monkeypatch.setattr(verdict, "CHANCE", chance)
    random = np.random.default_rng(7)
    alarms = {"element_margin": 0, "rms_margin": 0, "bias_margin": 0}
    for _ in range(trials):
        found = trial(random, 1e-3 * np.exp(spreading * random.normal(size=SHAPE)))
        for name in alarms:
            alarms[name] += getattr(found, name) > 1
    allowed = chance * trials + 4 * math.sqrt(chance * trials)
    assert alarms["element_margin"] <= allowed and alarms["rms_margin"] <= allowed, alarms
    assert chance * trials / 4 <= alarms["bias_margin"] <= 2 * allowed, alarms  # two directions are tried


def test_one_common_rounding_raises_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, trials = 0.01, 500
    monkeypatch.setattr(verdict, "CHANCE", chance)
    random = np.random.default_rng(8)
    for common in (0.7, 0.99):
        alarms = sum(trial(random, 1e-3, common=common).verdict == "fail" for _ in range(trials))
        assert alarms <= 4 * chance * trials + 4 * math.sqrt(4 * chance * trials), (common, alarms)


def test_a_small_bias_is_caught_that_no_element_shows() -> None:
    random, sigma = np.random.default_rng(9), 1e-3
    shape = (60, 200)
    expected = random.normal(size=shape)
    deviations = [random.normal(0, sigma, shape) for _ in range(24)]
    honest = random.normal(0, sigma, shape)
    assert verdict.compare("y", expected + honest, expected, deviations, FLOAT64).verdict == "pass"
    found = verdict.compare("y", expected + honest + 0.3 * sigma, expected, deviations, FLOAT64)
    assert found.verdict == "fail" and found.bias_margin is not None and found.bias_margin > 1
    assert found.element_margin is not None and found.element_margin < 1
    scaled = verdict.compare("y", expected * (1 + 0.3 * sigma) + honest, expected, deviations, FLOAT64)
    assert scaled.verdict == "fail" and scaled.bias_margin is not None and scaled.bias_margin > 1
    noisy = verdict.compare("y", expected + 1.5 * honest, expected, deviations, FLOAT64)
    assert noisy.verdict == "fail" and noisy.rms_margin is not None and noisy.rms_margin > 1
    assert noisy.element_margin is not None and noisy.element_margin < 1
    one = honest.copy()
    one[3, 5] += 12 * sigma
    alone = verdict.compare("y", expected + one, expected, deviations, FLOAT64)
    assert alone.verdict == "fail" and alone.worst == (3, 5)


def test_what_cannot_be_compared_fails() -> None:
    random = np.random.default_rng(10)
    expected = random.normal(size=(4, 5))
    deviations = [random.normal(0, 1e-6, (4, 5)) for _ in range(8)]
    for bad in (math.nan, math.inf):
        found = expected.copy()
        found[1, 2] = bad
        result = verdict.compare("y", found, expected, deviations, FLOAT32)
        assert result.verdict == "fail" and result.worst == (1, 2) and result.margin == math.inf
    result = verdict.compare("y", expected.T, expected, deviations, FLOAT32)
    assert result.verdict == "fail" and "shape" in result.reason
    wide = [1e7 * deviation for deviation in deviations]
    assert verdict.compare("y", expected, expected, wide, FLOAT32).verdict == "cannot judge"
    infinite = np.full((4, 5), math.inf)
    assert verdict.compare("y", infinite, infinite, deviations, FLOAT32).verdict == "cannot judge"


def test_variances_are_moderated_by_smyths_formulas() -> None:
    random, count = np.random.default_rng(11), 8
    prior, typical = 6.0, 0.04
    variances = typical * prior / random.chisquare(prior, 4000)  # scaled inverse chi-squared
    deviations = [random.normal(0, np.sqrt(variances)) for _ in range(count)]
    s2 = np.mean(np.square(deviations), axis=0)
    # Smyth 2004, section 6.2, written out: e_g = log s_g^2 - digamma(d/2) + log(d/2), and so on.
    e = np.log(s2) - special.digamma(count / 2) + np.log(count / 2)
    target = np.mean((e - np.mean(e)) ** 2) - special.polygamma(1, count / 2)
    d0 = 2 * optimize.brentq(lambda x: special.polygamma(1, x) - target, 1e-3, 1e6)
    s0 = math.exp(np.mean(e) + special.digamma(d0 / 2) - math.log(d0 / 2))
    found = verdict.spread(deviations, np.zeros(4000), FLOAT64)
    assert found.freedom == pytest.approx(d0 + count, rel=1e-6)
    assert d0 == pytest.approx(prior, rel=0.2) and s0 == pytest.approx(typical, rel=0.1)
    ratio = found.sigma**2 / ((d0 * s0 + count * s2) / (d0 + count))
    assert np.max(ratio) / np.min(ratio) < 1 + 1e-9 and 1 <= np.min(ratio) < 2  # one factor, for doubt of the probes


# Honest implementations, and the document


def test_no_honest_implementation_fails() -> None:
    runs = false_alarms(3, 3, only_numpy=True)
    assert [run for run in runs if run.verdict == "fail"] == []
    assert len(runs) >= 70 and {run.precision for run in runs} == {str(each) for each in PRECISIONS[:5]}
    assert any(run.traced for run in runs)


@pytest.mark.deep
def test_no_honest_implementation_of_any_library_fails() -> None:
    runs = false_alarms(20, 4, slow=True)
    assert [run for run in runs if run.verdict == "fail"] == []
    assert len(runs) >= 1200


def test_the_document_quotes_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, value in (("CHANCE", verdict.CHANCE), ("DOUBT", verdict.DOUBT), ("ALIKE", local.ALIKE)):
        quoted = re.findall(rf"`{name}` = ([0-9.e-]+[0-9])", text)
        assert quoted and all(float(each) == value for each in quoted), name
    quoted_ulps = dict(re.findall(r"\| `(exp|log1p|tanh|erf)` \| ([0-9.]+) \|", text))
    assert {name: float(value) for name, value in quoted_ulps.items()} == local.FUNCTION_ULP
    for name in (*local.LOCAL, "squeeze_excite", "relative_attention"):
        assert f"`{name}`" in text, name
