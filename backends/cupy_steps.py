"""The fast forms on CuPy: which kernel computes what, over how many threads, with which numbers.

The kernels are in `cupy_kernels.cu`, products of matrices are cuBLAS's. What a form does to a device goes through a
`Device`: memory, launches, products. CuPy's is in `coatref.backends.cupy`; the tests have one that runs the kernels on
the CPU, and so test all that stands here, and every index of every kernel, where there is no GPU.

What it buys, against one CuPy operation after the other: a chain of elementwise operations reads and writes memory once
(a bias, an activation and a residual are one launch behind their product), squeeze-excite takes three launches, attention
three (five with several images), a depthwise convolution one. At batch 1 launches are what costs, at batch 64 memory.
Float32 products are exact to float32 (no TF32); float16 is computed in float32 between one load and one store.

No form waits for the device. A forward pass cannot be captured in a CUDA graph all the same, since CuPy 14 refuses calls
of cuBLAS while a stream is being captured.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from coatref.attention.relative_attention import ScaleSite, check_shapes
from coatref.backends.fused import Fused, Layer, from_primitives
from coatref.errors import ShapeError
from coatref.ops.window import WindowPadding
from coatref.primitives import DEFINITION, Form, Primitives
from coatref.registry import Array
from coatref.specification.grids import output_length, padding_amounts
from coatref.tap import Tap, no_tap

CODES = {None: 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "relu": 4, "mish": 5, "tanh": 6}  # Activation in the kernels
POOLS = {"max": 0, "excluded": 1, "counted": 2}  # Pool in the kernels
PADDINGS = ("same", "symmetric", "valid")

BYTES = 16  # of the widest access of one thread
COLUMNS = 4  # outputs of one thread of a convolution, as in the kernels
WARP, STRIPES = 32, 8
THREADS = 256  # of a block, where nothing else asks for another number
GATE_THREADS = 1024  # one block computes the gates of an image, so it is as large as a block can be
SHARED_BYTES = 48 * 1024  # shared memory that a block gets without asking
MOST_BLOCKS = 65535  # along the second and third axis of a grid
BUSY_BLOCKS = 256  # enough to fill a large GPU; sums are cut into as many parts where the images are few
DIRECT = 64  # numbers in a convolution's window up to which it is computed directly, without a matrix of patches
PATCH_BYTES = 32 * 2**20  # of that matrix at one time: it is read again while the second-level cache still has it
LOGIT_BYTES = 256 * 2**20  # of attention logits at one time
SIZES = ((3, 1), (3, 2), (7, 1))  # window and stride of depthwise convolutions that have a kernel of their own


@dataclass(frozen=True)
class Device:
    """What the forms ask of a device. Addresses are plain numbers.

    Attributes:
        empty: (shape, like) -> a new array of that shape, of the type of `like`.
        scratch: (bytes, like) -> a new array of as many bytes, on the device of `like`.
        contiguous: the array itself, or a copy of it whose numbers lie in order.
        address: of an array's first number.
        launch: (kernel, bits, grid, block, arguments, shared): start a kernel of `kernel_names`, compiled for numbers of
            so many bits.
        product: start C = alpha A B as cuBLAS has it; see `Product`.
    """

    empty: Callable[[tuple[int, ...], Array], Array]
    scratch: Callable[[int, Array], Array]
    contiguous: Callable[[Array], Array]
    address: Callable[[Array], int]
    launch: Callable[[str, int, tuple[int, ...], tuple[int, ...], tuple[int | float, ...], int], None]
    product: Callable[[Product], None]


class Product(NamedTuple):
    """C = alpha op(A) B for `batch` matrices in columns, as cuBLAS's gemmStridedBatchedEx takes them.

    op(A) is (m, k), B (k, n), C (m, n); op transposes if `transposed`. Column j of a matrix begins at j * ld, matrix i at
    i * stride, counted in numbers. An array in rows is the transpose of one in columns, so y = x w is y^T = w^T x^T: A is
    w and B is x, both as they lie in memory.
    """

    bits: int
    transposed: bool
    m: int
    n: int
    k: int
    alpha: float
    a: int
    lda: int
    stride_a: int
    b: int
    ldb: int
    stride_b: int
    c: int
    ldc: int
    stride_c: int
    batch: int


def wide(bits: int) -> int:
    """Numbers in one wide access."""
    return BYTES * 8 // bits


def tile(bits: int) -> int:
    """Channels of one thread of the convolutions: more would take too many registers."""
    return min(4, wide(bits))


def kernel_names(bits: int) -> tuple[str, ...]:
    """Every kernel there is for numbers of so many bits, as C++ writes it."""
    elementwise = ("chain", "gated", "batch_norm", "layer_norm", "pool", "patches", "partial_sums", "regroup")
    names = [f"{name}<{v}>" for name in elementwise for v in (1, wide(bits))]
    names += [f"convolution<{v}>" for v in (1, tile(bits))]
    names += [f"depthwise<{v}, 0, 0>" for v in (1, tile(bits))]
    names += [f"depthwise<{tile(bits)}, {size}, {stride}>" for size, stride in SIZES]
    return (*names, "softmax", "means", "gates")


def bits_of(x: Array) -> int:
    """Size of a number; the forms serve float16, float32 and float64 only."""
    return 8 * int(x.dtype.itemsize)


def blocks(count: int, each: int) -> int:
    """Blocks that it takes."""
    return -(-count // each)


@dataclass(frozen=True)
class Steps:
    """The computations themselves, of arguments that are known to be right. Shapes are those of `Fused`."""

    device: Device

    # --- parts ---

    def address(self, array: Array | None) -> int:
        """Where the numbers of a contiguous array begin; 0 for none."""
        return 0 if array is None else self.device.address(array)

    def vector(self, most: int, length: int, *addresses: int) -> int:
        """How many of `length` neighbouring numbers a thread takes at once: `most` where that divides, else 1.

        Addresses are in bytes, of every array that is read or written so; a slice of an array may begin anywhere.
        """
        if length % most:
            return 1
        return 1 if any(address % BYTES for address in addresses) else most

    def chain(
        self,
        out: Array,
        x: Array,
        *,
        scale: Array | None = None,
        shift: Array | None = None,
        residual: Array | None = None,
        act: str | None = None,
    ) -> Array:
        """out = act(x scale + shift) + residual; out may be x. All contiguous, of the same channels."""
        bits, count = bits_of(x), math.prod(x.shape)
        channels = x.shape[-1] if scale is not None or shift is not None else count
        pointers = tuple(map(self.address, (out, x, scale, shift, residual)))
        v = self.vector(wide(bits), channels, *pointers)
        self.device.launch(
            f"chain<{v}>",
            bits,
            (blocks(count, v * THREADS),),
            (THREADS,),
            (*pointers, count, channels, CODES[act]),
            0,
        )
        return out

    def matrix_product(self, out: int, x: int, w: Array, rows: int) -> None:
        """y = x w for x (rows, C) and y (rows, D) at these addresses, w (C, D)."""
        c, d = w.shape
        self.device.product(Product(bits_of(w), False, d, rows, c, 1.0, self.address(w), d, 0, x, c, 0, out, d, 0, 1))

    def window(
        self, x: Array, size: tuple[int, int], stride: int, padding: WindowPadding
    ) -> tuple[tuple[int, int], tuple[int, ...]]:
        """H' and W', and the numbers that a kernel takes as its window."""
        (_, height, width, channels), (kh, kw) = x.shape, size
        rows, columns = output_length(height, kh, stride, padding), output_length(width, kw, stride, padding)
        top, left = padding_amounts(height, kh, stride, padding)[0], padding_amounts(width, kw, stride, padding)[0]
        return (rows, columns), (height, width, channels, rows, columns, kh, kw, stride, top, left)

    # --- steps ---

    def conv2d(
        self, x: Array, w: Array, b: Array | None, *, stride: int, padding: WindowPadding, act: str | None
    ) -> Array:
        """act(conv(x) + b): directly where the window is small, else a product with a matrix of patches."""
        x, w = self.device.contiguous(x), self.device.contiguous(w)
        kh, kw, c, d = w.shape
        (rows, columns), window = self.window(x, (kh, kw), stride, padding)
        y = self.device.empty((x.shape[0], rows, columns, d), x)
        bits, positions, length = bits_of(x), x.shape[0] * rows * columns, kh * kw * c
        source, to = self.address(x), self.address(y)
        if length <= DIRECT:
            weights, shift = self.address(w), self.address(b)
            v = self.vector(tile(bits), d, weights, shift)
            self.device.launch(
                f"convolution<{v}>",
                bits,
                (blocks(blocks(positions, COLUMNS) * (d // v), THREADS),),
                (THREADS,),
                (to, source, weights, shift, positions, d, *window, CODES[act]),
                0,
            )
            return y
        item = bits // 8
        at_once = min(positions, max(1, PATCH_BYTES // (length * item)))
        patches = self.device.empty((at_once, length), x)
        v = self.vector(wide(bits), c, source)
        flat = w.reshape(length, d)
        for start in range(0, positions, at_once):
            some = min(at_once, positions - start)
            self.device.launch(
                f"patches<{v}>",
                bits,
                (blocks(some * length, v * THREADS),),
                (THREADS,),
                (self.address(patches), source, some * length, start, *window),
                0,
            )
            self.matrix_product(to + start * d * item, self.address(patches), flat, some)
        return y if b is None and act is None else self.chain(y, y, shift=b, act=act)

    def dense(
        self, x: Array, w: Array, b: Array | None, *, act: str | None = None, residual: Array | None = None
    ) -> Array:
        """act(x w + b) + residual: a product, and what follows it in place."""
        x, w = self.device.contiguous(x), self.device.contiguous(w)
        y = self.device.empty((*x.shape[:-1], w.shape[1]), x)
        self.matrix_product(self.address(y), self.address(x), w, math.prod(x.shape[:-1]))
        if b is None and act is None and residual is None:
            return y
        return self.chain(y, y, shift=b, act=act, residual=residual)

    def depthwise(
        self, x: Array, w: Array, b: Array | None, *, stride: int, padding: WindowPadding, act: str | None
    ) -> Array:
        """act(depthwise conv(x) + b) in one kernel."""
        x, w = self.device.contiguous(x), self.device.contiguous(w)
        (kh, kw, c), n = w.shape, x.shape[0]
        (rows, columns), window = self.window(x, (kh, kw), stride, padding)
        y, bits = self.device.empty((n, rows, columns, c), x), bits_of(x)
        pointers = tuple(map(self.address, (y, x, w, b)))
        v = self.vector(tile(bits), c, *pointers)
        known = v > 1 and kh == kw and (kh, stride) in SIZES
        self.device.launch(
            f"depthwise<{v}, {kh if known else 0}, {stride if known else 0}>",
            bits,
            (blocks(blocks(columns, COLUMNS) * (c // v), 128), min(rows, MOST_BLOCKS), min(n, MOST_BLOCKS)),
            (128,),
            (*pointers, n, *window, CODES[act]),
            0,
        )
        return y

    def affine(self, x: Array, scale: Array, shift: Array, *, act: str | None) -> Array:
        """act(x scale + shift)."""
        x = self.device.contiguous(x)
        return self.chain(self.device.empty(x.shape, x), x, scale=scale, shift=shift, act=act)

    def activation(self, x: Array, kind: str) -> Array:
        """One elementwise kernel."""
        x = self.device.contiguous(x)
        return self.chain(self.device.empty(x.shape, x), x, act=kind)

    def add(self, x: Array, y: Array) -> Array:
        """x + y in x, which is given up."""
        x = self.device.contiguous(x)
        return self.chain(x, x, residual=self.device.contiguous(y))

    def batch_norm(self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Array:
        """The definition's formula in one kernel; (C,) statistics."""
        x = self.device.contiguous(x)
        y, bits, count, channels = self.device.empty(x.shape, x), bits_of(x), math.prod(x.shape), x.shape[-1]
        pointers = tuple(map(self.address, (y, x, gamma, beta, mean, var)))
        v = self.vector(wide(bits), channels, *pointers)
        grid = (blocks(count, v * THREADS),)
        self.device.launch(f"batch_norm<{v}>", bits, grid, (THREADS,), (*pointers, count, channels, float(epsilon)), 0)
        return y

    def layer_norm(self, x: Array, gamma: Array | None, beta: Array | None, *, epsilon: float) -> Array:
        """One kernel, a warp for each position."""
        x = self.device.contiguous(x)
        y, bits, channels = self.device.empty(x.shape, x), bits_of(x), x.shape[-1]
        rows = math.prod(x.shape[:-1])
        pointers = tuple(map(self.address, (y, x, gamma, beta)))
        v = self.vector(wide(bits), channels, *pointers)
        self.device.launch(
            f"layer_norm<{v}>",
            bits,
            (blocks(rows, STRIPES),),
            (WARP, STRIPES),
            (*pointers, rows, channels, float(epsilon)),
            0,
        )
        return y

    def weights(
        self,
        out: int,
        logits: int,
        bits: int,
        *,
        rows: int,
        keys: int,
        stride: int,
        queries: int = 1,
        heads: int = 1,
        bias: Array | None = None,
        mask: int = 0,
        mask_images: int = 1,
        factor: float = 1.0,
        late: bool = False,
    ) -> None:
        """Softmax of rows at an address, with the bias and mask of attention; see the kernel."""
        bias_heads = 1 if bias is None else bias.shape[0]
        numbers = (rows, keys, stride, queries, heads, bias_heads, mask_images, float(factor), int(late))
        self.device.launch(
            "softmax",
            bits,
            (blocks(rows, STRIPES),),
            (WARP, STRIPES),
            (out, logits, self.address(bias), mask, *numbers),
            0,
        )

    def softmax(self, x: Array) -> Array:
        """Over the last axis, a warp for each row."""
        x = self.device.contiguous(x)
        y, keys = self.device.empty(x.shape, x), x.shape[-1]
        self.weights(self.address(y), self.address(x), bits_of(x), rows=math.prod(x.shape[:-1]), keys=keys, stride=keys)
        return y

    def pool(self, x: Array, *, size: int, stride: int, padding: WindowPadding, kind: str) -> Array:
        """The largest number ("max") or the mean ("excluded", "counted") of each window."""
        x = self.device.contiguous(x)
        (rows, columns), window = self.window(x, (size, size), stride, padding)
        y, bits = self.device.empty((x.shape[0], rows, columns, x.shape[3]), x), bits_of(x)
        count, pointers = math.prod(y.shape), (self.address(y), self.address(x))
        v = self.vector(wide(bits), x.shape[3], *pointers)
        grid = (blocks(count, v * THREADS),)
        self.device.launch(f"pool<{v}>", bits, grid, (THREADS,), (*pointers, count, *window, POOLS[kind]), 0)
        return y

    def sums(self, x: Array) -> tuple[Array, int]:
        """Sums of contiguous x (N, H, W, C) over parts of its positions: (N, parts, C), and how many parts."""
        n, height, width, channels = x.shape
        positions, bits, source = height * width, bits_of(x), self.address(x)
        v = self.vector(wide(bits), channels, source)
        across = blocks(channels, WARP * v)
        parts = max(1, min(BUSY_BLOCKS // (across * n), positions // (8 * STRIPES)))
        sums = self.device.scratch(n * parts * channels * accumulator(bits), x)
        self.device.launch(
            f"partial_sums<{v}>",
            bits,
            (across, parts, min(n, MOST_BLOCKS)),
            (WARP, STRIPES),
            (self.address(sums), source, n, positions, channels, parts),
            0,
        )
        return sums, parts

    def global_avg_pool(self, x: Array) -> Array:
        """The mean over all positions, in two kernels: one block could not fill the device."""
        x = self.device.contiguous(x)
        n, height, width, channels = x.shape
        sums, parts = self.sums(x)
        y = self.device.empty((n, channels), x)
        grid = (blocks(n * channels, THREADS),)
        arguments = (self.address(y), self.address(sums), n, height * width, channels, parts)
        self.device.launch("means", bits_of(x), grid, (THREADS,), arguments, 0)
        return y

    def squeeze_excite(
        self,
        out: Array,
        x: Array,
        reduce: Layer,
        expand: Layer,
        scale: Array | None,
        shift: Array | None,
        *,
        gate_act: str,
        act: str | None,
    ) -> Array:
        """out = act(gate(x) x scale + shift) in three kernels: sums, gates, and all that is elementwise; out may be x."""
        n, height, width, channels = x.shape
        hidden, bits = reduce["w"].shape[1], bits_of(x)
        sums, parts = self.sums(x)
        gate = self.device.scratch(n * channels * accumulator(bits), x)
        layers = (reduce["w"], reduce.get("b"), expand["w"], expand.get("b"))
        pointers = tuple(map(self.address, (gate, sums, *layers, scale)))
        self.device.launch(
            "gates",
            bits,
            (n,),
            (GATE_THREADS,),
            (*pointers, height * width, channels, hidden, parts, CODES[gate_act]),
            gate_bytes(bits, channels, hidden),
        )
        count, pointers = math.prod(x.shape), tuple(map(self.address, (out, x, gate, shift)))
        v = self.vector(wide(bits), channels, *pointers)
        self.device.launch(
            f"gated<{v}>",
            bits,
            (blocks(count, v * THREADS),),
            (THREADS,),
            (*pointers, count, count // n, channels, CODES[act]),
            0,
        )
        return out

    def regroup(self, out: int, x: int, bits: int, sizes: tuple[int, int, int, int, int]) -> None:
        """(N, P, groups, heads, D) at an address -> (groups, N, heads, P, D) at another."""
        v, count = self.vector(wide(bits), sizes[4], out, x), math.prod(sizes)
        grid = (blocks(count, v * THREADS),)
        self.device.launch(f"regroup<{v}>", bits, grid, (THREADS,), (out, x, count, *sizes), 0)

    def attend(
        self,
        heads: Heads,
        bias: Array | None,
        *,
        late: bool,
        scale: float = 1.0,
        factor: float = 1.0,
        mask: int = 0,
        mask_images: int = 1,
    ) -> None:
        """y = softmax(scale q k^T + factor bias) v of every image and head, or with the bias added late.

        So many images at one time that the logits stay small. Their rows begin at multiples of 16 bytes, as tensor cores
        like them.
        """
        bits, item, per_image = heads.bits, heads.bits // 8, heads.pairs // heads.images
        stride = blocks(heads.keys, wide(bits)) * wide(bits)
        square = heads.queries * stride
        at_once = per_image * min(heads.images, max(1, LOGIT_BYTES // (per_image * square * item)))
        logits = self.device.empty((at_once * square,), heads.like)
        place = self.address(logits)
        for start in range(0, heads.pairs, at_once):
            some = min(at_once, heads.pairs - start)
            q, k, v, y = (m._replace(address=m.address + start * m.stride * item) for m in heads[-4:])
            sizes = heads.keys, heads.queries, heads.size
            self.device.product(Product(bits, True, *sizes, scale, *k, *q, place, stride, square, some))  # (q k^T)^T
            self.weights(
                place,
                place,
                bits,
                rows=some * heads.queries,
                keys=heads.keys,
                stride=stride,
                queries=heads.queries,
                heads=per_image,
                bias=bias,
                mask=mask + (start // per_image * heads.keys if mask_images > 1 else 0),
                mask_images=mask_images,
                factor=factor,
                late=late,
            )
            sizes = heads.size, heads.queries, heads.keys
            self.device.product(Product(bits, False, *sizes, 1.0, *v, place, stride, square, *y, some))  # (weights v)^T

    def attention(self, qkv: Array, bias: Array | None, *, heads: int, add: str) -> Array:
        """Self-attention of qkv (N, H, W, 3*heads*D): of one image on qkv as it lies, of several with heads set apart."""
        n, height, width, triple = qkv.shape
        inner, positions, bits = triple // 3, height * width, bits_of(qkv)
        size, late = inner // heads, add == "post_softmax"
        y = self.device.empty((n, height, width, inner), qkv)
        source, to, item = self.address(qkv), self.address(y), bits // 8
        if n == 1:
            parts = [Matrices(source + part * inner * item, triple, size) for part in range(3)]
            parts.append(Matrices(to, inner, size))
            self.attend(Heads(bits, qkv, 1, heads, positions, positions, size, *parts), bias, late=late)
            return y
        apart = self.device.empty((4, n, heads, positions, size), qkv)  # q, k, v and y, each (N, heads, P, D)
        first, each = self.address(apart), math.prod(y.shape) * item
        parts = [Matrices(first + part * each, size, positions * size) for part in range(4)]
        self.regroup(first, source, bits, (n, positions, 3, heads, size))
        self.attend(Heads(bits, qkv, n, n * heads, positions, positions, size, *parts), bias, late=late)
        self.regroup(to, first + 3 * each, bits, (n, heads, 1, positions, size))
        return y

    def relative_attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        bias: Array | None,
        *,
        scale: float,
        factor: float,
        add: str,
        key_mask: Array | None,
    ) -> Array:
        """As the primitive, with the scale in the first product, and `factor` what the bias is scaled by; all contiguous."""
        (n, heads, queries, size), keys, y = q.shape, k.shape[2], self.device.empty(q.shape, q)
        parts = [Matrices(self.address(each), size, each.shape[2] * size) for each in (q, k, v, y)]
        attended = Heads(bits_of(q), q, n, n * heads, queries, keys, size, *parts)
        mask_images = 1 if key_mask is None or key_mask.ndim == 1 else n
        self.attend(
            attended,
            bias,
            scale=float(scale),
            factor=float(factor),
            late=add == "post_softmax",
            mask=self.address(key_mask),
            mask_images=mask_images,
        )
        return y


class Matrices(NamedTuple):
    """Where matrices of D columns lie: the first at `address`, its rows `ld` numbers apart, the matrices `stride`."""

    address: int
    ld: int
    stride: int


class Heads(NamedTuple):
    """Attention of `pairs` of an image and a head, those of one image together: q, y (queries, size), k, v (keys, size)."""

    bits: int
    like: Array
    images: int
    pairs: int
    queries: int
    keys: int
    size: int
    q: Matrices
    k: Matrices
    v: Matrices
    y: Matrices


def accumulator(bits: int) -> int:
    """Bytes of a number in which sums are kept."""
    return max(4, bits // 8)


def gate_bytes(bits: int, channels: int, hidden: int) -> int:
    """Shared memory of the kernel `gates`."""
    return (2 * channels + hidden + GATE_THREADS) * accumulator(bits)


# --- what is served ---


def in_order(device: Device, array: Array | None) -> Any:
    """The array with its numbers in order, or None."""
    return None if array is None else device.contiguous(array)


def in_order_all(device: Device, layer: Layer) -> dict[str, Any]:
    """The arrays of a layer with their numbers in order."""
    return {name: device.contiguous(array) for name, array in layer.items()}


def same_kind(x: Array, *others: Array | None) -> bool:
    """Whether these are arrays of one class, type and device, and of a type that the kernels compute in."""
    return str(x.dtype) in ("float16", "float32", "float64") and all(
        other is None or (type(other) is type(x) and other.dtype == x.dtype and other.device == x.device)
        for other in others
    )


def filled(*arrays: Array) -> bool:
    """Whether none is empty."""
    return all(math.prod(each.shape) for each in arrays)


def is_activation(kind: Any) -> bool:
    """Whether the kernels have it."""
    return isinstance(kind, str) and kind in CODES


def is_vector(b: Array | None, length: int) -> bool:
    """Whether it is a bias of that length, or none."""
    return b is None or tuple(b.shape) == (length,)


def fits(x: Array, size: tuple[int, int], stride: int, padding: Any) -> bool:
    """Whether a window fits into a grid."""
    if x.ndim != 4 or padding not in PADDINGS or not filled(x) or stride < 1 or min(size) < 1:
        return False
    return all(
        output_length(length, kernel, stride, padding) > 0 for length, kernel in zip(x.shape[1:3], size, strict=True)
    )


def is_layer(x: Array, layer: Mapping[str, Array | None]) -> bool:
    """Whether a dense layer takes what x ends with."""
    w, b = layer["w"], layer.get("b")
    return (
        w is not None
        and w.ndim == 2
        and w.shape[0] == x.shape[-1]
        and filled(w)
        and is_vector(b, w.shape[1])
        and same_kind(x, w, b)
    )


def excites(x: Array, reduce: Layer, expand: Layer) -> bool:
    """Whether these layers give gates for the channels of x, and are small enough for one block."""
    if not is_layer(x, reduce):
        return False
    hidden = reduce["w"].shape[1]
    if tuple(expand["w"].shape) != (hidden, x.shape[3]) or not is_vector(expand.get("b"), x.shape[3]):
        return False
    return same_kind(x, expand["w"], expand.get("b")) and gate_bytes(bits_of(x), x.shape[3], hidden) <= SHARED_BYTES


def attends(q: Array, k: Array, v: Array, bias: Array | None, key_mask: Array | None) -> bool:
    """Whether the shapes belong together, and nothing is empty."""
    try:
        check_shapes(q, k, v, bias, key_mask)
    except ShapeError:
        return False
    masked = key_mask is None or (type(key_mask) is type(q) and str(key_mask.dtype) == "bool")
    return masked and same_kind(q, k, v, bias) and filled(q, k)


# --- the seam ---


def primitives(steps: Steps) -> dict[str, Form]:
    """The forms of the primitives.

    Each serves what the kernels are made for, and hands the rest to the definition: empty arrays, types in a mixture,
    statistics of other shapes, and whatever the definition refuses, with the definition's own error.
    """
    contiguous = functools.partial(in_order, steps.device)

    def conv2d(
        x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: WindowPadding = "same"
    ) -> Array:
        served = w.ndim == 4 and same_kind(x, w, b) and filled(w) and is_vector(b, w.shape[3])
        if not (served and fits(x, w.shape[:2], stride, padding) and x.shape[3] == w.shape[2]):
            return DEFINITION.conv2d(x, w, b, stride=stride, padding=padding)
        return steps.conv2d(x, w, contiguous(b), stride=stride, padding=padding, act=None)

    def depthwise_conv2d(
        x: Array, w: Array, b: Array | None = None, *, stride: int = 1, padding: WindowPadding = "same"
    ) -> Array:
        served = w.ndim == 3 and same_kind(x, w, b) and filled(w) and is_vector(b, w.shape[2])
        if not (served and fits(x, w.shape[:2], stride, padding) and x.shape[3] == w.shape[2]):
            return DEFINITION.depthwise_conv2d(x, w, b, stride=stride, padding=padding)
        return steps.depthwise(x, w, contiguous(b), stride=stride, padding=padding, act=None)

    def max_pool(x: Array, *, size: int = 2, stride: int = 2, padding: WindowPadding = "same") -> Array:
        if not (same_kind(x) and fits(x, (size, size), stride, padding)):
            return DEFINITION.max_pool(x, size=size, stride=stride, padding=padding)
        return steps.pool(x, size=size, stride=stride, padding=padding, kind="max")

    def avg_pool(
        x: Array,
        *,
        size: int = 2,
        stride: int = 2,
        padding: WindowPadding = "same",
        padded_zeros: Literal["excluded", "counted"] = "excluded",
    ) -> Array:
        served = same_kind(x) and padded_zeros in ("excluded", "counted")
        if not (served and fits(x, (size, size), stride, padding)):
            return DEFINITION.avg_pool(x, size=size, stride=stride, padding=padding, padded_zeros=padded_zeros)
        return steps.pool(x, size=size, stride=stride, padding=padding, kind=padded_zeros)

    def global_avg_pool(x: Array) -> Array:
        served = same_kind(x) and x.ndim == 4 and filled(x)
        return steps.global_avg_pool(x) if served else DEFINITION.global_avg_pool(x)

    def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Array:
        statistics = (gamma, beta, mean, var)
        served = same_kind(x, *statistics) and x.ndim > 0 and filled(x)
        if not (served and all(is_vector(each, x.shape[-1]) for each in statistics)):
            return DEFINITION.batch_norm(x, *statistics, epsilon=epsilon)
        return steps.batch_norm(x, *map(contiguous, statistics), epsilon=epsilon)

    def layer_norm(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
        served = same_kind(x, gamma, beta) and x.ndim > 0 and filled(x)
        if not (served and is_vector(gamma, x.shape[-1]) and is_vector(beta, x.shape[-1])):
            return DEFINITION.layer_norm(x, gamma, beta, epsilon=epsilon)
        return steps.layer_norm(x, contiguous(gamma), contiguous(beta), epsilon=epsilon)

    def activation(x: Array, kind: str) -> Array:
        served = same_kind(x) and filled(x) and is_activation(kind)
        return steps.activation(x, kind) if served else DEFINITION.activation(x, kind)

    def softmax(x: Array) -> Array:
        served = same_kind(x) and x.ndim > 0 and filled(x)
        return steps.softmax(x) if served else DEFINITION.softmax(x)

    def squeeze_excite(x: Array, reduce: Layer, expand: Layer, *, activation: str) -> Array:
        served = same_kind(x) and x.ndim == 4 and filled(x) and is_activation(activation)
        if not (served and excites(x, reduce, expand)):
            return DEFINITION.squeeze_excite(x, reduce, expand, activation=activation)
        x, (reduce, expand) = contiguous(x), (in_order_all(steps.device, layer) for layer in (reduce, expand))
        out = steps.device.empty(x.shape, x)
        return steps.squeeze_excite(out, x, reduce, expand, None, None, gate_act=activation, act=None)

    def dense(x: Array, w: Array, b: Array | None = None) -> Array:
        if not (same_kind(x) and x.ndim > 0 and filled(x) and is_layer(x, {"w": w, "b": b})):
            return DEFINITION.dense(x, w, b)
        return steps.dense(x, w, contiguous(b))

    def relative_attention(
        q: Array,
        k: Array,
        v: Array,
        bias: Array | None = None,
        *,
        scale: float = 1.0,
        scale_site: ScaleSite = "query",
        add: Literal["pre_softmax", "post_softmax"] = "pre_softmax",
        key_mask: Array | None = None,
        tap: Tap = no_tap,
    ) -> Array:
        served = tap is no_tap and attends(q, k, v, bias, key_mask) and scale >= 0  # a tap wants to see all the logits
        if not (served and scale_site in get_args(ScaleSite) and add in ("pre_softmax", "post_softmax")):
            return DEFINITION.relative_attention(
                q, k, v, bias, scale=scale, scale_site=scale_site, add=add, key_mask=key_mask, tap=tap
            )
        q, k, v, bias, key_mask = map(contiguous, (q, k, v, bias, key_mask))
        factor = scale if scale_site == "logits_and_bias" else 1.0
        return steps.relative_attention(q, k, v, bias, scale=scale, factor=factor, add=add, key_mask=key_mask)

    return {
        "conv2d": conv2d,
        "depthwise_conv2d": depthwise_conv2d,
        "max_pool": max_pool,
        "avg_pool": avg_pool,
        "global_avg_pool": global_avg_pool,
        "batch_norm": batch_norm,
        "layer_norm": layer_norm,
        "activation": activation,
        "softmax": softmax,
        "squeeze_excite": squeeze_excite,
        "dense": dense,
        "relative_attention": relative_attention,
    }


def fused(steps: Steps) -> Fused:
    """The steps of a prepared network, whose types and shapes `coatref.forward` and `coatref.prepare` have settled."""
    contiguous = functools.partial(in_order, steps.device)
    plain = from_primitives(Primitives(**primitives(steps)))

    def conv2d(x: Array, w: Array, b: Array | None, *, stride: int, padding: Any, act: str | None) -> Array:
        return steps.conv2d(x, w, contiguous(b), stride=stride, padding=padding, act=act)

    def dense(x: Array, w: Array, b: Array | None, *, act: str | None = None, residual: Array | None = None) -> Array:
        return steps.dense(x, w, contiguous(b), act=act, residual=contiguous(residual))

    def depthwise(x: Array, w: Array, b: Array | None, *, stride: int, padding: Any, act: str | None) -> Array:
        return steps.depthwise(x, w, contiguous(b), stride=stride, padding=padding, act=act)

    def affine(x: Array, scale: Array, shift: Array, *, act: str | None) -> Array:
        return steps.affine(x, contiguous(scale), contiguous(shift), act=act)

    def layer_norm(x: Array, gamma: Array | None, beta: Array | None, *, epsilon: float) -> Array:
        if gamma is None or beta is None:
            gamma = beta = None
        return steps.layer_norm(x, contiguous(gamma), contiguous(beta), epsilon=epsilon)

    def squeeze_excite(
        x: Array,
        reduce: Layer,
        expand: Layer,
        scale: Array | None,
        shift: Array | None,
        *,
        gate_act: str,
        act: str | None,
    ) -> Array:
        if gate_bytes(bits_of(x), x.shape[3], reduce["w"].shape[1]) > SHARED_BYTES:
            return plain.squeeze_excite(x, reduce, expand, scale, shift, gate_act=gate_act, act=act)
        x, (reduce, expand) = contiguous(x), (in_order_all(steps.device, layer) for layer in (reduce, expand))
        return steps.squeeze_excite(
            x, x, reduce, expand, contiguous(scale), contiguous(shift), gate_act=gate_act, act=act
        )

    def attention(qkv: Array, bias: Array | None, *, heads: int, add: str) -> Array:
        return steps.attention(contiguous(qkv), contiguous(bias), heads=heads, add=add)

    def max_pool(x: Array, *, size: int, stride: int, padding: Any) -> Array:
        return steps.pool(x, size=size, stride=stride, padding=padding, kind="max")

    def avg_pool(x: Array, *, size: int, stride: int, padding: Any, padded_zeros: str) -> Array:
        return steps.pool(x, size=size, stride=stride, padding=padding, kind=padded_zeros)

    return dataclasses.replace(
        plain,
        conv2d=conv2d,
        dense=dense,
        depthwise=depthwise,
        affine=affine,
        layer_norm=layer_norm,
        squeeze_excite=squeeze_excite,
        attention=attention,
        activation=steps.activation,
        add=steps.add,
        max_pool=max_pool,
        avg_pool=avg_pool,
        global_avg_pool=steps.global_avg_pool,
        softmax=steps.softmax,
        lay_out=functools.partial(in_order_all, steps.device),
    )
