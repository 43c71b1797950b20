"""Matrix products."""

from __future__ import annotations

from coatref.errors import ShapeError
from coatref.registry import Array, library_of, namespace


def matmul(a: Array, b: Array) -> Array:
    """Matrix product over the last two axes, at the full precision of the data type.

    y[..., i, j] = sum_k a[..., i, k] b[..., k, j]. Shapes (..., I, K) and (..., K, J) -> (..., I, J).
    """
    library = library_of(a)
    return (library.matmul or library.namespace().matmul)(a, b)


def dense(x: Array, w: Array, b: Array | None = None) -> Array:
    """A linear map of the last axis; on a grid this is a 1x1 convolution.

    y[..., d] = b[d] + sum_c x[..., c] w[c, d]

    Args:
        x: (..., C).
        w: (C, D).
        b: (D,) or None.

    Returns:
        (..., D), the dtype of x.

    Raises:
        ShapeError: the last axis of x is not the first of w.
    """
    xp = namespace(x)
    if x.shape[-1] != w.shape[0]:
        raise ShapeError(f"dense: x has {x.shape[-1]} channels {x.shape} and w takes {w.shape[0]} {w.shape}.")
    rows = 1
    for length in x.shape[:-1]:
        rows *= length
    y = matmul(xp.reshape(x, (rows, w.shape[0])), w)  # one product of two matrices is what BLAS is fast at
    if b is not None:
        y = y + b
    return xp.reshape(y, (*x.shape[:-1], w.shape[1]))  # (..., C) -> (..., D)
