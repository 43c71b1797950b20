"""`coatref.conformance.parametrize`: a judgement as tests of a pytest run, one for each kind of check.

The module has another name than the function, which it would hide in the package once imported.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from coatref.conformance.per_check import CHECKS, STALE, id_of, judged_once, kind_result, verdict_line
from coatref.errors import CoatrefError, InputError
from coatref.registry import missing

ARGUMENTS = ("case_result", "conformance_case")  # what the test may call its argument

Test = Callable[..., Any]


def parametrize(
    target: Any,
    *,
    spec: Any = None,
    weights: Any = None,
    dtype: str = "float32",
    accumulate: str | None = None,
    level: str = "default",
    seed: int = 0,
    expected_failed: Mapping[str, str] | None = None,
) -> Callable[[Test], Test]:
    """Turn a test function into one test for each kind of check of `coatref.check`.

        @coatref.conformance.parametrize("timm:coatnet_0_rw_224", level="quick")
        def test_coatnet(case_result):
            pass  # what fails, has failed before; more can be asked of case_result.report

    The target is judged once in a pytest run, when the first of the tests runs. A test whose kind of check finds
    something fails with the report on it, before the function is called; one whose kind has no case is skipped. The
    function is called with a `coatref.conformance.per_check.KindResult`: `report`, and the `cases` of the kind.

    Args:
        target, spec, weights, dtype, accumulate, level, seed: as in `coatref.check`.
        expected_failed: what is known to fail -> the reason: the name of a case, of a mistake that is found (as reports
            print it), or of a kind of check. Failures that it explains become xfail. With it comes one more test,
            "expected-failures", which fails for every entry that no longer does.

    Returns:
        A decorator for a function with an argument `case_result` or `conformance_case`; it may have fixtures too.

    Raises:
        InputError: `expected_failed` is no mapping of texts to texts, or the function lacks the argument.
        MissingDependencyError: pytest is not installed.
    """
    try:
        import pytest
    except ImportError as error:
        raise missing("pytest", "test", "coatref.conformance.parametrize") from error

    expected = expected_failures(expected_failed)
    given = {"spec": spec, "weights": weights, "dtype": dtype, "accumulate": accumulate, "level": level, "seed": seed}
    kinds = [*CHECKS, *([STALE] if expected else [])]

    def decorate(test: Test) -> Test:
        signature = inspect.signature(test)
        argument = next((name for name in ARGUMENTS if name in signature.parameters), None)
        if argument is None:
            raise InputError(
                f"The test {test.__name__} needs an argument {' or '.join(ARGUMENTS)} for coatref.conformance.parametrize."
            )
        own_request = "request" in signature.parameters
        key = pytest.StashKey[Any]()

        @functools.wraps(test)
        def judged(*args: Any, **kwargs: Any) -> Any:
            request = kwargs["request"] if own_request else kwargs.pop("request")
            kwargs[argument] = finish(request, key, kwargs[argument])
            return test(*args, **kwargs)

        def finish(request: Any, key: Any, check: str) -> Any:
            from coatref import check as judge

            try:
                report = judged_once(request.config.stash, key, lambda: judge(target, **given))
            except (CoatrefError, OSError) as error:
                pytest.fail(f"{target!s:.200} could not be judged: {error}", pytrace=False)
            request.node.user_properties.append(("coatref", verdict_line(report)))
            found = kind_result(report, check, expected)
            if found.status == "fail":
                pytest.fail(found.message, pytrace=False)
            if found.status == "expected":
                pytest.xfail(found.message)
            if found.status == "skip":
                pytest.skip(found.message)
            return found

        if not own_request:  # through which the run is reached that the report belongs to
            request_parameter = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)
            judged.__signature__ = with_parameter(signature, request_parameter)  # type: ignore[attr-defined]
        mark = pytest.mark.parametrize(argument, [pytest.param(kind, id=id_of(kind)) for kind in kinds])
        tests: Test = mark(judged)
        return tests

    return decorate


def with_parameter(signature: inspect.Signature, added: inspect.Parameter) -> inspect.Signature:
    """A signature with one more keyword-only parameter.

    >>> def test(case_result, **rest): ...
    >>> str(with_parameter(inspect.signature(test), inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)))
    '(case_result, *, request, **rest)'
    """
    parameters = list(signature.parameters.values())
    open_end = [one for one in parameters if one.kind is inspect.Parameter.VAR_KEYWORD]
    others = [one for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]
    return signature.replace(parameters=[*others, added, *open_end])


def expected_failures(given: Mapping[str, str] | None) -> dict[str, str]:
    """The expected failures as a dictionary of their own.

    Raises:
        InputError: it is no mapping of texts to texts; a set of names, say, lacks the reasons.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for entry in given.items() for text in entry):
        raise InputError(f"expected_failed must map names to reasons, as texts, got {given!r:.200}.")
    return dict(given)
