"""The public names: pinned, documented, and nothing missing."""

from __future__ import annotations

import inspect
import pkgutil
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import coatref

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

NAMES = [
    "CoatrefError",
    "DtypeError",
    "FileFormatError",
    "InputError",
    "LibraryError",
    "MissingDependencyError",
    "Params",
    "Prepared",
    "Preprocessing",
    "ShapeError",
    "SizeError",
    "Spec",
    "SpecError",
    "UnknownSpecError",
    "WeightsError",
    "check",
    "convert",
    "export",
    "export_onnx",
    "forward",
    "init",
    "load",
    "prepare",
    "preprocess",
    "preprocess_images",
    "save",
    "spec",
    "specs",
    "trace",
]


def test_public_names_are_these() -> None:
    assert sorted(coatref.__all__) == NAMES
    assert all(hasattr(coatref, name) for name in NAMES)


def modules() -> list[str]:
    """Every module of coatref that can be imported without a command line being run."""
    found = [module.name for module in pkgutil.walk_packages(coatref.__path__, "coatref.")]
    return [name for name in found if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_everything_public_has_a_docstring(name: str) -> None:
    module = import_module(name)
    assert module.__doc__, name
    for attribute, value in vars(module).items():
        mine = getattr(value, "__module__", None) == name and (inspect.isfunction(value) or inspect.isclass(value))
        if mine and not attribute.startswith("_"):
            assert value.__doc__ and len(value.__doc__) > 10, f"{name}.{attribute}"


def test_errors_derive_from_coatref_error_and_from_a_builtin_one() -> None:
    for name in NAMES:
        value = getattr(coatref, name)
        if name.endswith("Error") and name != "CoatrefError":
            assert issubclass(value, coatref.CoatrefError)
            assert issubclass(value, (ValueError, TypeError, KeyError, ImportError)), name


@pytest.mark.skipif(not PYPROJECT.is_file(), reason="needs the checkout: pyproject.toml is not beside the tests")
def test_version_is_the_packages() -> None:
    assert coatref.__version__ == tomllib.loads(PYPROJECT.read_text())["project"]["version"]
