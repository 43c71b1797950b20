"""Every error that coatref raises on purpose.

All derive from `CoatrefError`, and each also from the built-in class that a caller would expect there, so
``except ValueError`` and ``except coatref.CoatrefError`` both work. A message is one sentence that says what was asked,
what was found, where, and how to fix it.
"""

from __future__ import annotations


class CoatrefError(Exception):
    """Base class of every error raised on purpose by coatref."""


class SpecError(CoatrefError, ValueError):
    """A spec has an unknown field, a value outside its closed choices, or a combination that means nothing."""


class UnknownSpecError(CoatrefError, KeyError):
    """No named spec has the name that was asked for."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class ShapeError(CoatrefError, ValueError):
    """An array has the wrong number of axes or the wrong length along one."""


class SizeError(ShapeError):
    """An image or grid has a height or width for which the spec has no meaning."""


class DtypeError(CoatrefError, TypeError):
    """An array has a data type that the operation does not take, or two arrays have different ones."""


class LibraryError(CoatrefError, TypeError):
    """Arrays of different libraries or devices are mixed, or the library is not known."""


class WeightsError(CoatrefError, ValueError):
    """A set of named tensors does not fit the spec: missing, surplus, misshapen or non-finite tensors."""


class FileFormatError(CoatrefError, ValueError):
    """A file is not what it claims to be: truncated, corrupt, oversized or of an unknown format."""


class InputError(CoatrefError, ValueError):
    """An argument other than an array, a spec or a file has a value that cannot be used."""


class MissingDependencyError(CoatrefError, ImportError):
    """An optional package is needed and not installed; the message names the `pip install` that brings it."""
