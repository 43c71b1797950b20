"""What tests of readers of files share: refusals, limits, and what can happen to a file."""

from __future__ import annotations

import contextlib
import re
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from coatref.errors import CoatrefError
from coatref.weights.files import open_file

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SECONDS, MEGABYTES = 2.0, 64  # what the worst file may take


def refused(call: Callable[[], Any], error: type[CoatrefError], *parts: str) -> str:
    """The message of the error that a call must raise, with these parts in it.

    A part that is no path is not looked for in paths, whose folders are named after the tests.
    """
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, type(caught.value)
    for part in parts:
        searched = message if part.startswith("/") else re.sub(r"/\S*/", "", message)
        assert part in searched, f"{part!r} is not in: {searched}"
    assert 30 < len(message) < 2000
    assert message.endswith("."), message
    return message


@contextlib.contextmanager
def time_limit(seconds: float, timer: int = signal.ITIMER_VIRTUAL) -> Iterator[None]:
    """Break off what takes longer: by default in time of this process, which other processes do not change."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it took more than {seconds} seconds")

    name = {signal.ITIMER_VIRTUAL: signal.SIGVTALRM, signal.ITIMER_REAL: signal.SIGALRM}[timer]
    before = signal.signal(name, stop)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(name, before)


@contextlib.contextmanager
def memory_limit(megabytes: float) -> Iterator[None]:
    """Fail if more memory than that was allocated within."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Something that can happen to a file: bytes changed, lost, added or moved, mostly in its header."""
    kind = draw(st.sampled_from(["flip", "flip", "lose", "add", "repeat"]))
    place = draw(st.one_of(st.floats(0, 1), st.floats(0, 0.01)))
    length, value = draw(st.integers(1, 40)), draw(st.binary(min_size=1, max_size=8))

    def damaged(content: bytes) -> bytes:
        at = int(place * (len(content) - 1))
        if kind == "flip":
            changed = bytes(a ^ b for a, b in zip(content[at:], value, strict=False))
            return content[:at] + changed + content[at + len(changed) :]
        if kind == "lose":
            return content[:at] + content[at + length :]
        return content[:at] + (value if kind == "add" else content[at : at + length]) + content[at:]

    return damaged


def read_all(path: Path, **options: Any) -> dict[str, np.ndarray]:
    """Every tensor of a file, read."""
    with open_file(path, **options) as (tensors, _):
        arrays = {name: tensor.read() for name, tensor in tensors.items()}
        assert all(array.shape == tensors[name].shape for name, array in arrays.items())
    return arrays


def same_bits(found: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    """Compare arrays by name, type, shape and bits; the byte order of a type is no part of it."""
    assert found.keys() == right.keys()
    for name, array in right.items():
        assert found[name].dtype == array.dtype.newbyteorder("="), name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes(), name


def read_or_refused(path: Path, seconds: float = SECONDS) -> None:
    """Read a damaged file: it is refused by an error of ours, or what is left of it is read, in little time."""
    with time_limit(seconds):
        try:
            read_all(path)
        except CoatrefError as error:
            assert 30 < len(str(error)) < 2000 and str(path.parent) in str(error)


DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")


@st.composite
def arrays(draw: st.DrawFn, orders: str = "<>") -> np.ndarray:
    """An array of any bits, of any type and byte order that files have, of up to four axes, some of no length."""
    order, code = draw(st.sampled_from(orders)), draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    seed = draw(st.integers(0, 2**32 - 1))
    kind = np.dtype(code).newbyteorder(">" if order == ">" else "<")
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    content = np.random.default_rng(seed).bytes(size)
    if code == "?":
        content = bytes(value & 1 for value in content)
    return np.frombuffer(content, kind).reshape(shape)
