"""From whatever holds a tensor to a NumPy array."""

from __future__ import annotations

from typing import Any

import numpy as np

from coatref.errors import WeightsError
from coatref.registry import library_of
from coatref.weights.files.stored import Stored


def on_host(name: str, array: Any) -> np.ndarray:
    """A tensor of a file, or an array of any library, as a NumPy array of a floating type (float32 for bfloat16).

    Raises:
        WeightsError: it is not floating, or of no known library, or has no values (a traced array, a "meta" tensor).
        FileFormatError: see `Stored.read`.
    """
    if isinstance(array, Stored):
        host = array.read()
    else:
        try:
            host = np.asarray(library_of(array).to_numpy(array))
        except Exception as error:  # noqa: BLE001 - each library has its own ways to say that an array cannot be had
            raise WeightsError(
                f"Tensor {name} cannot be read ({type(error).__name__}: {str(error)[:200]}); "
                "weights are dense arrays with values, of a library with the Python array API."
            ) from None
    if host.dtype.name == "bfloat16":  # that of JAX, which NumPy takes as an extension
        host = host.astype(np.float32)
    if host.dtype not in (np.float16, np.float32, np.float64):
        raise WeightsError(f"Tensor {name} is {host.dtype}; weights are float16, bfloat16, float32 or float64.")
    return host
