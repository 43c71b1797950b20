"""`coatref.special.erf` against mpmath and SciPy, and the same on every library."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import array_api_compat.torch as torch_xp
import array_api_strict as strict
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special
import torch

from coatref import special
from coatref.errors import DtypeError
from coatref.special import erf

Array = Any

STATED_ULP = 1.0  # the docstring of erf: below 1 ULP
SEAMS = (0.75, 1.25, 4.0, 6.0)  # where one formula hands over to the next
DERIVATION = Path(__file__).parents[1] / "docs" / "derive_erf.py"


def _points(dtype: Any) -> Array:
    """Some ten thousand positive numbers: the seams and their neighbours, every exponent, and most where erf bends.

    The seed is fixed, so that a failure can be repeated.
    """
    info = np.finfo(dtype)
    rng = np.random.default_rng(20)
    edges = np.asarray([*SEAMS, 0.5, 1.0, 2.0, float(np.sqrt(0.5)), info.tiny, 8 * info.tiny], dtype)
    near = [edges]
    for towards in (0.0, np.inf):
        step = edges
        for _ in range(4):
            step = np.nextafter(step, dtype(towards))
            near.append(step)
    lowest, highest = float(np.log2(info.smallest_subnormal)), float(np.log2(info.max))
    spread = np.exp2(np.linspace(lowest, highest - 1e-6, 2500)).astype(dtype)
    wide = np.concatenate([rng.uniform(0.0, 7.0, 4000), rng.uniform(0.4, 1.6, 4000)]).astype(dtype)
    least = info.smallest_subnormal * np.arange(1, 20, dtype=dtype)
    return np.concatenate([*near, spread, wide, least, np.asarray([info.max], dtype)])


def _with_specials(dtype: Any) -> Array:
    x = _points(dtype)
    return np.concatenate([x, -x, np.asarray([0.0, -0.0, np.inf, -np.inf, np.nan], dtype)])


def _float32_error(first: int, last: int, step: int) -> float:
    """Greatest error in ULP at every `step`-th float32 whose bit pattern lies in [first, last)."""
    x = np.arange(first, last, step, dtype=np.uint32).view(np.float32)
    exact = scipy.special.erf(x.astype(np.float64))  # wrong by 3 ULP of float64 at most, which is nothing here
    found = erf(x, np)
    assert found.dtype == np.float32
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(found.astype(np.float64) - exact) / unit))


FINITE32 = int(np.asarray(np.inf, np.float32).view(np.uint32))  # as bit patterns, every finite number from +0 is below


def test_float64_against_mpmath() -> None:
    x = _points(np.float64)
    found = erf(x, np)
    with mpmath.workprec(140):
        for v, r in zip(x.tolist(), found.tolist(), strict=True):
            exact = mpmath.erf(mpmath.mpf(v))
            unit = mpmath.mpf(float(np.spacing(float(exact))))
            assert abs(mpmath.mpf(r) - exact) <= STATED_ULP * unit, f"erf({v!r}) = {r!r}"


def test_float32_against_scipy() -> None:
    step = 257
    block = step << 20  # blocks, so that memory stays small
    assert max(_float32_error(i, min(i + block, FINITE32), step) for i in range(0, FINITE32, block)) <= STATED_ULP
    seams = np.asarray(SEAMS, np.float32).view(np.uint32).tolist()
    assert max(_float32_error(i - 1000, i + 1000, 1) for i in seams) <= STATED_ULP


@pytest.mark.deep
def test_every_float32_against_scipy() -> None:
    block = 1 << 22
    worst = max(_float32_error(i, min(i + block, FINITE32), 1) for i in range(0, FINITE32, block))
    print(f"greatest error over all of float32: {worst:.4f} ULP")
    assert worst <= STATED_ULP


def test_tables_are_what_the_derivation_gives() -> None:
    if not DERIVATION.exists():
        pytest.skip("the derivation is not part of this distribution")
    spec = importlib.util.spec_from_file_location("derive_erf", DERIVATION)
    assert spec is not None and spec.loader is not None
    derivation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(derivation)
    for name in ("float64", "float32"):
        for part, coefficients, error in derivation.tables(name):
            assert error < 0.03
            table = getattr(special, f"_{part}{name[-2:]}")
            assert table == tuple(float(str(c)) for c in coefficients), (name, part)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values_symmetry_and_no_warning(dtype: Any) -> None:
    with warnings.catch_warnings(), np.errstate(over="raise", invalid="raise", divide="raise"):
        warnings.simplefilter("error")
        values = erf(np.asarray([0.0, -0.0, np.inf, -np.inf, np.nan], dtype), np)
        x = _with_specials(dtype)
        x.flags.writeable = False
        before = x.tobytes()
        found = erf(x, np)
        mirrored = erf(-x, np)
    np.testing.assert_array_equal(values, np.asarray([0.0, -0.0, 1.0, -1.0, np.nan], dtype))
    assert np.signbit(values[:4]).tolist() == [False, True, False, True]
    assert found.dtype == dtype and found.shape == x.shape
    assert x.tobytes() == before and not np.shares_memory(found, x)
    assert np.isnan(found[-1]) and not np.any(np.isnan(found[:-1]))
    np.testing.assert_array_equal(mirrored, -found)
    np.testing.assert_array_equal(np.signbit(mirrored[:-1]), ~np.signbit(found[:-1]))
    assert np.all(np.abs(found[:-1]) <= 1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes(dtype: Any) -> None:
    scalar = erf(np.asarray(0.3, dtype), np)
    assert isinstance(scalar, np.ndarray) and scalar.shape == () and scalar.dtype == dtype
    assert erf(np.empty((2, 0, 3), dtype), np).shape == (2, 0, 3)
    x = np.linspace(-5.0, 5.0, 24, dtype=dtype)
    np.testing.assert_array_equal(erf(x.reshape(2, 3, 4)[:, ::-1, ::2], np), erf(x, np).reshape(2, 3, 4)[:, ::-1, ::2])


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.bool_, np.complex64])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(DtypeError, match=r"float32 or float64"):
        erf(np.ones(3, dtype), np)


def _check_like_numpy(found: Array, x: Array, flushed: bool = False) -> None:
    """Within 2 ULP of NumPy's result, and NaN, signs and zeros the same.

    flushed: the library takes subnormal numbers for zero, and they are compared as zeros.
    """
    assert isinstance(found, np.ndarray) and found.dtype == x.dtype and found.shape == x.shape
    expected = erf(x, np)
    if flushed:
        tiny = np.finfo(x.dtype).tiny
        expected = np.where(np.abs(x) < tiny, np.copysign(0.0, x), expected)
        found = np.where(np.abs(x) < tiny, np.copysign(0.0, found), found)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))
    there = ~np.isnan(x)
    np.testing.assert_array_equal(np.signbit(found[there]), np.signbit(x[there]))
    unit = np.spacing(np.abs(expected[there]))
    assert np.all(np.abs(found[there] - expected[there]) <= 2 * unit)
    assert np.all(np.abs(found[there]) <= 1.0)


@pytest.fixture
def strictest() -> Iterator[ModuleType]:
    strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=())
    yield strict
    strict.reset_array_api_strict_flags()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_array_api_strict(strictest: ModuleType, dtype: Any) -> None:
    x = _with_specials(dtype)
    info = strictest.__array_namespace_info__()
    tried = 0
    for device in info.devices():
        if np.dtype(dtype).name not in info.dtypes(device=device):
            continue
        for part in (x, x[:0], x[7:8].reshape(())):
            given = strictest.asarray(part, device=device)
            found = erf(given, strictest)
            assert found.device == device and found.dtype == given.dtype
            on_host = np.asarray(found.to_device(strictest.Device("CPU_DEVICE")))
            np.testing.assert_array_equal(on_host, erf(part, np))
        tried += 1
    assert tried >= (4 if dtype == np.float32 else 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torch(dtype: Any) -> None:
    x = _with_specials(dtype)
    for part in (x, x[:0], x[7:8].reshape(())):
        found = erf(torch.from_numpy(part.copy()), torch_xp)
        assert isinstance(found, torch.Tensor)
        _check_like_numpy(found.numpy(), part)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_jax(dtype: Any, compiled: bool) -> None:
    x = _with_specials(dtype)

    def of(v: Array) -> Array:
        return erf(v, jnp)

    with jax.enable_x64(dtype == np.float64):
        for part in (x, x[:0], x[7:8].reshape(())):
            found = (jax.jit(of) if compiled else of)(jnp.asarray(part))
            _check_like_numpy(np.asarray(found), part, flushed=True)


def test_derivatives_of_the_libraries() -> None:
    x = np.asarray([*SEAMS, 0.5, 1.0, 1.5, 2.0, 0.0, 1e-300, 0.3, 0.8, 30.0, np.inf])
    x = np.concatenate([x, -x])
    exact = 2.0 / np.sqrt(np.pi) * np.exp(-x * x)
    with jax.enable_x64(True):
        by_jax = jax.vmap(jax.grad(lambda v: erf(v, jnp)))(jnp.asarray(x))
    np.testing.assert_allclose(np.asarray(by_jax), exact, rtol=0, atol=2e-15)
    leaf = torch.from_numpy(x).requires_grad_()
    erf(leaf, torch_xp).sum().backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), exact, rtol=0, atol=2e-15)
