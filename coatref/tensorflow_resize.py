"""Resizing as `tf.image.resize` of TensorFlow 2 does it (read and compared at 2.21), in NumPy.

A pixel is the square between two whole coordinates, so its centre is at a half ("half-pixel centers"). Each axis is
resized by itself: an output pixel is the mean of input pixels under a filter around the place that its centre has among
them. A filter that reaches beyond the image takes the pixels inside alone. Nothing is rounded or clipped, so the bicubic
and Lanczos filters leave 0..255 near sharp edges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

TABLE = 1024  # steps of one pixel in which TensorFlow tabulates the bicubic filter that is not widened


def triangle(distance: Any) -> Any:
    """The bilinear filter, 1 - d within one pixel."""
    return np.maximum(1 - distance, 0)


def cubic(distance: Any) -> Any:
    """The bicubic filter of Keys (1981), a = -1/2: within one pixel, and within two, a cubic polynomial each."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def lanczos(distance: Any) -> Any:
    """The Lanczos filter of radius 3, sinc(d) sinc(d / 3) with sinc(d) = sin(pi d) / (pi d)."""
    return np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0)


FILTERS: dict[str, tuple[Callable[[Any], Any], int]] = {  # and the distance, in pixels, from which each is 0
    "bilinear": (triangle, 1),
    "bicubic": (cubic, 2),
    "lanczos": (lanczos, 3),
}


def tensorflow_resized(pixels: Any, size: tuple[int, int], interpolation: str, antialias: bool, dtype: str) -> Any:
    """An image resized, y[i, j, c] = sum over p, q of a[i, p] b[j, q] x[p, q, c], with the weights of `resized_rows`.

    Args:
        pixels: (H, W, C), uint8; not written to.
        size: height and width of the result.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest".
        antialias: whether the filter is widened by the factor of a reduction; "nearest" has none.
        dtype: "float32" takes TensorFlow's steps, places in the image included; "float64" the same in float64.

    Returns:
        (*size, C) in `dtype`. TensorFlow sums in another order, and always over the height first: here the axis comes
        first that leaves fewer pixels, so that the values between take no more memory than the larger of both images.

    Source: TensorFlow's `scale_and_translate_op.cc`, `sampling_kernels.h`, `resize_bicubic_op.cc`,
        `resize_nearest_neighbor_op.cc`.
    """
    (height, width), (tall, wide) = pixels.shape[:2], size

    def over_height(x: Any) -> Any:
        return resized_rows(x, tall, interpolation, antialias, dtype)

    def over_width(x: Any) -> Any:
        return resized_rows(x.swapaxes(0, 1), wide, interpolation, antialias, dtype).swapaxes(0, 1)

    if tall * width <= height * wide:
        return over_width(over_height(pixels))
    return over_height(over_width(pixels))


def resized_rows(x: Any, count: int, interpolation: str, antialias: bool, dtype: str) -> Any:
    """An array (P, Q, C) resized to (count, Q, C): y[i] = sum over p of a[i, p] x[p].

    With the step s = P / count and the stretch t = max(s, 1), or 1 without antialias, row i is at z = (i + 1/2) s and
    a[i, p] is filter(|p + 1/2 - z| / t), divided by the sum of these over p. "nearest" takes row floor(z).
    """
    rows = x.shape[0]
    many, few = np.asarray(rows, dtype), np.asarray(count, dtype)
    general = interpolation == "lanczos" or (antialias and interpolation != "nearest")  # TensorFlow's kernel for all
    step = 1 / (few / many) if general else many / few  # rounded twice or once, as there
    places = (np.arange(count, dtype=dtype) + np.asarray(0.5, dtype)) * step
    if interpolation == "nearest":
        return x[np.minimum(places.astype(np.int64), rows - 1)].astype(dtype)
    kernel, radius = FILTERS[interpolation]
    stretch = np.maximum(step, 1) if antialias else np.ones_like(step)
    result = np.empty((count, *x.shape[1:]), dtype)
    for i, place in enumerate(places):
        start = max(int(np.ceil(place - radius * stretch - 0.5)), 0)
        stop = min(int(np.floor(place + radius * stretch - 0.5)) + 1, rows)
        distance = np.abs(np.arange(start, stop, dtype=dtype) + np.asarray(0.5, dtype) - place) / stretch
        if interpolation == "bicubic" and not antialias:
            distance = np.rint(distance * TABLE) / TABLE
        weights = kernel(distance)
        weights /= weights.sum()
        result[i] = np.tensordot(weights, x[start:stop].astype(dtype), axes=1)
    return result
