"""What coatref's forms have in common."""

from __future__ import annotations

from typing import Any

import coatref
from coatref import Params


def prepare(params: Params) -> Any:
    """The prepared parameters.

    Raises:
        NotImplementedError: this coatref has none.
    """
    if not hasattr(coatref, "prepare"):
        raise NotImplementedError("this coatref has no coatref.prepare")
    return coatref.prepare(params)
