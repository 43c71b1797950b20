"""Convolutions."""

from __future__ import annotations

from coatref.errors import ShapeError
from coatref.ops.dense import dense
from coatref.ops.window import WindowPadding, shifted
from coatref.registry import Array, namespace


def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: WindowPadding = "same") -> Array:
    """Convolution (in the sense of neural networks: the kernel is not flipped), zeros outside the grid.

    y[n, i, j, d] = b[d] + sum_{k, l, c} x_padded[n, s*i + k, s*j + l, c] w[k, l, c, d]

    Args:
        x: (N, H, W, C).
        w: (kh, kw, C, D).
        b: (D,) or None.
        stride: s, on both axes.
        padding: "same" (TensorFlow's SAME), "symmetric" ((k-1)//2 on each side) or "valid".

    Returns:
        (N, H', W', D), the dtype of x.

    Raises:
        ShapeError: the channels do not match, or the window does not fit.
    """
    kh, kw, channels, width = w.shape
    if x.shape[-1] != channels:
        raise ShapeError(f"conv2d: x has {x.shape[-1]} channels {x.shape} and w takes {channels} {w.shape}.")
    xp = namespace(x)
    patches = xp.concat(shifted(x, (kh, kw), stride, padding, 0.0), axis=-1)  # (N, H', W', kh*kw*C)
    return dense(patches, xp.reshape(w, (kh * kw * channels, width)), b)  # (N, H', W', D)


def depthwise_conv2d(
    x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: WindowPadding = "same"
) -> Array:
    """Depthwise convolution, Eq. (1): each channel with a kernel of its own, zeros outside the grid.

    y[n, i, j, c] = b[c] + sum_{k, l} x_padded[n, s*i + k, s*j + l, c] w[k, l, c]

    Args:
        x: (N, H, W, C).
        w: (kh, kw, C).
        b: (C,) or None.
        stride: s, on both axes.
        padding: as in `conv2d`.

    Returns:
        (N, H', W', C), the dtype of x.

    Raises:
        ShapeError: the channels do not match, or the window does not fit.
    """
    kh, kw, channels = w.shape
    if x.shape[-1] != channels:
        raise ShapeError(f"depthwise_conv2d: x has {x.shape[-1]} channels {x.shape} and w has {channels} {w.shape}.")
    views = shifted(x, (kh, kw), stride, padding, 0.0)  # kh*kw times (N, H', W', C)
    y = views[0] * w[0, 0, :]
    for index in range(1, kh * kw):
        y = y + views[index] * w[index // kw, index % kw, :]
    return y if b is None else y + b
