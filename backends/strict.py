"""array-api-strict: the standard and nothing else; it shows that the definition uses nothing else."""

from __future__ import annotations

import functools
from typing import Any

from coatref.registry import Library


@functools.cache
def namespace() -> Any:
    """`array_api_strict`."""
    import array_api_strict

    return array_api_strict


def to_numpy(x: Any) -> Any:
    """A NumPy array, through the standard's own exchange."""
    import numpy

    return numpy.from_dlpack(x.to_device(namespace().Device("CPU_DEVICE")))


def devices() -> tuple[str, ...]:
    """The devices it pretends to have."""
    return tuple(str(each) for each in namespace().__array_namespace_info__().devices())


LIBRARY = Library(
    name="array_api_strict",
    install="array-api-strict",
    namespace=namespace,
    to_numpy=to_numpy,
    device=lambda x: x.device,
    devices=devices,
)
