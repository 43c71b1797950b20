"""timm for tests: imported as the `timm:` target imports it, or the test skipped."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from coatref.conformance.targets.timm_import import timm

__all__ = ["require_timm", "timm"]


def require_timm() -> ModuleType:
    """The timm module; skips the calling test, naming the package, where timm or one that it needs is absent.

    Only absence skips: an installed package that fails to import is a failure.
    """
    for package in ("torch", "torchvision", "timm"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, which is not installed (pip install {package})", allow_module_level=True)
    return timm()
