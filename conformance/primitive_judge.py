"""The judge of single primitives: one function, or one program, beside the definition's form of it.

Names are the fields of `coatref.primitives.Primitives` and the blocks "mbconv" and "transformer". A candidate takes the
arguments of the definition in the same order, as NumPy arrays in the storage type (bfloat16 as float32 arrays whose
numbers bfloat16 holds exactly), and gives the value in the storage type.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from coatref.conformance.error_model.verdict import scatter
from coatref.conformance.precision import FORMATS, Precision, declared, numpy_type
from coatref.conformance.primitive_amplifiers import amplifier, amplifiers
from coatref.conformance.primitive_cases import AXES, Call, drawn, wiring
from coatref.conformance.primitive_model import expected, judged
from coatref.conformance.primitive_report import Tried, report_of
from coatref.conformance.report.results import CaseResult, Comparison, Report, Verdict
from coatref.errors import InputError, ShapeError
from coatref.registry import library_of, missing

__all__ = ["ALIASES", "amplifier", "check_primitive", "drawn", "show"]

ALIASES = {"relative_bias": "gather_bias"}
EXAMPLES = {"quick": 12, "default": 40, "deep": 400}  # random calls

Candidate = Callable[..., Any]


def primitive_name(name: str) -> str:
    """The name of a primitive or block, aliases resolved.

    Raises:
        InputError: there is none of that name.
    """
    name = ALIASES.get(name, name)
    if name not in AXES:
        raise InputError(f"There is no primitive {name!r:.80}; known are {', '.join((*AXES, *ALIASES))}.")
    return name


def check_primitive(
    name: str,
    function: Candidate,
    *,
    dtype: str = "float32",
    accumulate: str | None = None,
    level: str = "default",
    seed: int = 0,
    only: Mapping[str, Any] | None = None,
    target: str = "",
) -> Report:
    """Judge one function as a form of a primitive.

    Args:
        name: of the primitive or block, such as "relative_attention".
        function: takes the definition's arguments; keyword options as in the definition.
        dtype: storage type: "float32", "float64", "float16" or "bfloat16".
        accumulate: type of sums; None: float32 for half types, else the storage type.
        level: "quick", "default" or "deep": how many random calls.
        seed: of the random calls.
        only: options that the candidate is restricted to, such as {"stride": 1}; calls with others are left out.
        target: how the candidate is called in the report; by default by its module and name.

    Raises:
        InputError: the name, type or level is not known, or `function` cannot be called.
        MissingDependencyError: Hypothesis, which draws the random calls, is not installed.
    """
    started = time.perf_counter()
    name, precision = primitive_name(name), declared(dtype, accumulate)
    if level not in EXAMPLES:
        raise InputError(f"level must be one of {', '.join(EXAMPLES)}, got {level!r:.80}.")
    if not callable(function):
        raise InputError(f"check_primitive takes a function, got {type(function).__name__}.")
    allowed = dict(only or {})
    target = target or f"op:{name}={function_name(function)}"

    def run(call: Call) -> Tried:
        return tried(name, function, call, precision)

    fixed = [call for call in (*wiring(name), *amplifiers(name)) if permitted(call, allowed)]
    fixed = [call for call in fixed if call.options.get("epsilon", 1.0) > smallest_normal(precision.accumulate)]
    done = [run(call) for call in fixed]
    done += random_calls(name, run, allowed, EXAMPLES[level], seed)
    done += laws(name, function, precision, fixed)
    return report_of(name, target, precision, level, seed, done, allowed, time.perf_counter() - started)


def function_name(function: Candidate) -> str:
    """Where a function can be imported from, as "module:name"."""
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__name__)}"


def smallest_normal(dtype: str) -> float:
    """The smallest normal number of a type: an epsilon below it says nothing about a computation in that type."""
    return 2.0 ** FORMATS[dtype][1]


def permitted(call: Call, allowed: Mapping[str, Any]) -> bool:
    """Whether a call has only options that a candidate is restricted to."""
    given = call.plain() | {key: value for key, value in call.options.items() if key not in call.plain()}
    return all(key not in given or given[key] == value for key, value in allowed.items())


# --- one call ---


def tried(name: str, function: Candidate, call: Call, precision: Precision) -> Tried:
    """The candidate's value for one call, judged.

    Raises:
        ShapeError: the call has no meaning for the definition, such as a window that does not fit.
    """
    started = time.perf_counter()
    handed = call.stored(precision.storage)
    exact = handed.widened()
    right = expected(name, exact, precision)
    found, problem = value_of(function, handed, precision)
    if problem:
        return Tried(exact, result_of(name, call, "fail", problem=problem, started=started))
    comparison = judged(found, right, precision)
    drawing = scatter(found, right.y, right.deviations, precision)
    result = result_of(name, call, comparison.verdict, comparison, started=started)
    return Tried(exact, replace(result, scatter=drawing), found)


def result_of(
    name: str, call: Call, verdict: Verdict, comparison: Comparison | None = None, *, problem: str = "", started: float
) -> CaseResult:
    """The result of one call; the image is the batch and the grid, or queries and keys."""
    lead = next((array for array in call.arrays().values() if array.ndim == 4), np.zeros((1, 1, 1)))
    keys = call.args["k"].shape[2] if "k" in call.args else lead.shape[2]
    image = (lead.shape[0], lead.shape[2], keys) if "k" in call.args else lead.shape[:3]
    return CaseResult(
        case=call.name,
        check=call.check,  # type: ignore[arg-type]
        about=call.about,
        spec=name,
        image=(int(image[0]), int(image[1]), int(image[2])),
        verdict=verdict,
        comparisons=(comparison,) if comparison else (),
        problem=problem,
        seconds=time.perf_counter() - started,
    )


def value_of(function: Candidate, call: Call, precision: Precision) -> tuple[Any, str]:
    """What a candidate gives for a call, in float64, and what is wrong with it apart from its numbers."""
    before = {key: array.copy() for key, array in call.arrays().items()}
    try:
        value = function(*call.args.values(), **call.options)
    except Exception as error:  # noqa: BLE001 - whatever a candidate raises is its failure
        return None, f"it raised {type(error).__name__}: {str(error)[:1000]}"
    written = [key for key, array in call.arrays().items() if not np.array_equal(array, before[key], equal_nan=True)]
    if written:
        return None, f"it wrote into its argument {written[0]}"
    try:
        host = np.asarray(library_of(value).to_numpy(value))
    except Exception as error:  # noqa: BLE001 - each library has its own ways to say that it has no values
        return None, f"it gave {type(value).__name__}, which is no array that can be read: {str(error)[:200]}"
    if host.dtype != numpy_type(precision.storage) and host.dtype.name != precision.storage:
        return None, f"it gave {host.dtype}, and {precision.storage} was expected"
    return host.astype(np.float64), ""


# --- many calls ---


def random_calls(
    name: str, run: Callable[[Call], Tried], allowed: Mapping[str, Any], count: int, seed: int
) -> list[Tried]:
    """Calls drawn by Hypothesis: those that pass, and of those that fail the smallest that it finds.

    Raises:
        MissingDependencyError: Hypothesis is not installed.
    """
    try:
        import hypothesis
        from hypothesis import strategies as st
    except ImportError:
        raise missing("hypothesis", "conformance", "Drawing random calls") from None
    axes = {axis: (allowed[axis],) if axis in allowed else choices for axis, choices in AXES[name].items()}
    passed: dict[str, Tried] = {}
    failed: list[Tried] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )
    @hypothesis.given(
        st.fixed_dictionaries({axis: st.sampled_from(choices) for axis, choices in axes.items()}), st.integers(0, 255)
    )
    def search(config: dict[str, Any], numbers: int) -> None:
        try:
            one = run(drawn(name, config, numbers))
        except ShapeError:  # the configuration has no meaning, such as a window that does not fit
            hypothesis.reject()
        if one.result.verdict == "fail":
            failed.append(one)
            raise Failed
        if not failed:
            passed[one.result.case] = one

    try:
        search()
    except (Failed, hypothesis.errors.HypothesisException):  # also where a candidate gives other values each time
        pass
    return [*passed.values(), *sorted(failed, key=lambda one: one.call.size)[:1]]


class Failed(Exception):
    """A random call failed."""


def laws(name: str, function: Candidate, precision: Precision, calls: Iterable[Call]) -> list[Tried]:
    """Batch independence: each image alone gives what it gives within its batch."""
    whole = [call for call in calls if image_arguments(name, call)]
    done = []
    for call in whole[:1]:
        shared = image_arguments(name, call)
        for index in range(next(iter(shared.values())).shape[0]):
            alone = {key: array[index : index + 1] for key, array in shared.items()}
            one = replace(
                call,
                args={**call.args, **alone},
                name=f"law: image {index} alone",
                check="law",
                about="An image gives the same alone as within a batch.",
                recipe="",
            )
            done.append(tried(name, function, one, precision))
    return done


def image_arguments(name: str, call: Call) -> dict[str, Any]:
    """The arguments that have one entry for each image, of a call with more than one."""
    names = ("q", "k", "v") if "q" in call.args else ("x",)
    found = {key: call.args[key] for key in names if key in call.args}
    several = all(array.ndim == 4 and array.shape[0] > 1 for array in found.values())
    masked = getattr(call.options.get("key_mask"), "ndim", 1) > 1
    return found if found and several and not masked else {}


def show(name: str, function: Candidate, call: Call, dtype: str, accumulate: str | None = None) -> None:
    """Print one call, what the candidate gives for it and what the definition gives: for counterexamples.

    Args:
        name: of the primitive or block.
        function: the candidate.
        call: from `drawn` or `amplifier`.
        dtype, accumulate: as in `check_primitive`.
    """
    name, precision = primitive_name(name), declared(dtype, accumulate)
    one = tried(name, function, call, precision)
    for key, array in one.call.arrays().items():
        print(f"{key} = {array!r}")
    for key, value in one.call.plain().items():
        print(f"{key} = {value!r}")
    print(f"expected = {expected(name, one.call, precision, probes=0).y!r}")
    print(f"found = {one.found!r}" if one.found is not None else one.result.problem)
    for comparison in one.result.comparisons:
        print(f"{comparison.verdict}: {comparison.reason or 'within rounding'} (margin {comparison.margin})")
