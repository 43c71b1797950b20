"""Array libraries and their fast forms, one file each; found lazily through `coatref.registry`.

`describe` tells which form serves which primitive.
"""

from coatref.backends.describe import describe

__all__ = ["describe"]

if __name__ != "coatref.backends":
    raise ImportError(f"this package is coatref.backends, not {__name__}: import it under that name")
