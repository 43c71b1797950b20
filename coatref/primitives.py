"""The seam for fast forms: which function serves which primitive, chosen once per call of `forward`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from coatref import attention, ops
from coatref.errors import InputError
from coatref.registry import Array, library_of

Form = Callable[..., Array]


@dataclass(frozen=True)
class Primitives:
    """One function for each primitive of the network; the defaults are the definition.

    Another form takes the same arguments and gives the same values to within its rounding.
    """

    conv2d: Form = ops.conv2d
    depthwise_conv2d: Form = ops.depthwise_conv2d
    max_pool: Form = ops.max_pool
    avg_pool: Form = ops.avg_pool
    global_avg_pool: Form = ops.global_avg_pool
    batch_norm: Form = ops.batch_norm
    layer_norm: Form = ops.layer_norm
    activation: Form = ops.activation
    softmax: Form = ops.softmax
    squeeze_excite: Form = ops.squeeze_excite
    dense: Form = ops.dense
    gather_bias: Form = attention.gather_bias
    relative_attention: Form = attention.relative_attention
    linear_attention: Form = attention.linear_attention


DEFINITION = Primitives()

Backend = Literal["definition"] | Primitives | None


def primitives_for(x: Array, backend: Backend = None, pool: Any = None) -> Primitives:
    """The functions that compute on x.

    Args:
        x: an array of the library in question.
        backend: None for the fast forms that x's library has, and the definition for the rest; "definition" for the
            definition alone; or a `Primitives` of one's own.
        pool: what the library's `divide` passes on, if it does.

    Raises:
        InputError: `backend` is none of these.
    """
    if isinstance(backend, Primitives):
        return backend
    if backend == "definition":
        return DEFINITION
    if backend is not None:
        raise InputError(f"backend must be None, 'definition' or a coatref.primitives.Primitives, got {backend!r}.")
    library = library_of(x)
    own = library.primitives if pool is None or library.bound is None else library.bound(pool)
    return dataclasses.replace(DEFINITION, **own)
