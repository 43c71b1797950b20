"""The network: stem, stages, head (Sec. 2.2, Fig. 4 and Table 3 of the paper)."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from coatref.blocks import convnext, head, mbconv, stem, transformer
from coatref.errors import DtypeError, InputError, LibraryError, ShapeError, SizeError
from coatref.params import Params
from coatref.prepared import Prepared
from coatref.primitives import DEFINITION, Backend, Primitives, primitives_for
from coatref.registry import Array, Library, library_of
from coatref.specification.grids import grids
from coatref.specification.parts import ConvNeXt, MBConv, Transformer
from coatref.specification.spec import Block
from coatref.tap import Tap, inside, no_tap, recorder
from coatref.tree import flatten, leaves

NETWORK = "coatref.backends.network"


def forward(params: Params | Prepared, x: Array, *, backend: Backend = None, threads: int | None = None) -> Array:
    """The network's output for a batch of images.

    Args:
        params: from `coatref.init`, `load` or `convert`, or `coatref.prepare` of these; arrays of the library, dtype and
            device of x.
        x: (N, H, W, C), images as `coatref.preprocess` gives them, channels last; any array-API library.
        backend: None uses the fast forms that x's library has, "definition" the definition alone; see
            `coatref.primitives.primitives_for`. Prepared parameters run on the fast forms only.
        threads: of NumPy's fast forms, with BLAS kept in step while they run; None: the environment variable
            COATREF_NUM_THREADS, or as many as the process may use. Other libraries have a setting of their own.

    Returns:
        (N, classes), the logits (or probabilities, where the spec's head says so), in the library, dtype and on the
        device of x.

    Raises:
        ShapeError, SizeError: x is no batch of images of the spec's channels, or of a size the tables are not made for
            (use `params.resize`) or that has no meaning under the spec.
        DtypeError: x is not real floating, or the parameters have another dtype.
        LibraryError: x and the parameters are of different libraries or on different devices.
        InputError: params is neither kind of parameters, or `backend` or `threads` cannot be used with it.
    """
    check_input(params, x)
    library = library_of(x)
    if threads is not None:
        check_threads(threads, library, backend)
    if isinstance(params, Prepared):
        if backend is not None:
            raise InputError(
                f"Prepared parameters run on the fast forms of their library, and backend={backend!r:.80} was asked for; "
                "give forward the parameters that they were prepared from."
            )
        return fast_network().forward(params, x, threads=threads)
    if backend is not None or library.divide is None:
        return run(params, x, primitives_for(x, backend), no_tap)
    return library.divide(lambda part, pool: run(params, part, primitives_for(part, None, pool), no_tap), x, threads)


def fast_network() -> Any:
    """`coatref.backends.network`, found by name: no import leads from here to the fast forms."""
    found = sys.modules.get(NETWORK)  # first, as torch.compile traces a look-up and no import by name
    return found if found is not None else importlib.import_module(NETWORK)


def check_threads(threads: Any, library: Library, backend: Backend) -> None:
    """Refuse a number of threads that is none, or that nobody would heed."""
    if type(threads) is not int or threads < 1:
        raise InputError(f"forward takes a whole number of threads from 1, got {threads!r:.80}.")
    if library.divide is None or backend is not None:
        heeds = "the fast forms of NumPy" if library.divide is not None else f"NumPy, and x is a {library.name} array"
        raise InputError(
            f"threads={threads} was asked for, which is a setting of {heeds}; elsewhere use the library's own "
            "(torch.set_num_threads, OPENBLAS_NUM_THREADS, ...)."
        )


def trace(params: Params, x: Array) -> dict[str, Array]:
    """Every intermediate value of the definition, by a stable dotted name, in order of computation.

    Names are those of the code and the parameter tree: "s0.conv1", "s1.0.expand", "s3.2.attn.logits". A block's own name
    ("s1.0") holds its output and a stage's ("s1") that of its last block. The last name is "logits", followed by
    "probabilities" where the spec's head gives those.

    Args, shapes and errors are those of `forward`.
    """
    if isinstance(params, Prepared):
        raise InputError("trace follows the definition; give it the parameters that these were prepared from.")
    check_input(params, x)
    values: dict[str, Array] = {}
    run(params, x, DEFINITION, recorder(values))
    return values


def run(params: Params, x: Array, ops: Primitives, tap: Tap) -> Array:
    """The computation itself, on inputs that are known to be right."""
    spec = params.spec
    x = tap("s0", stem(params["s0"], x, spec.stem, ops=ops, tap=inside(tap, "s0")))  # (N, H, W, 3) -> (N, H/2, W/2, C)
    blocks = list(spec.blocks())
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        stage, _, index = block.name.partition(".")
        x = tap(block.name, apply(params[stage][int(index)], x, block, ops, inside(tap, block.name)))
        if following is None or not following.name.startswith(f"{stage}."):
            x = tap(stage, x)
    logits = tap("logits", head(params["head"], x, spec.head, ops=ops, tap=inside(tap, "head")))  # (N, classes)
    return logits if spec.head.output == "logits" else tap("probabilities", ops.softmax(logits))


def apply(p: dict[str, Array], x: Array, block: Block, ops: Primitives, tap: Tap) -> Array:
    """One block. Shapes: (N, H, W, C) -> (N, H', W', D)."""
    if isinstance(block.run, MBConv):
        return mbconv(p, x, block, ops=ops, tap=tap)
    if isinstance(block.run, ConvNeXt):
        return convnext(p, x, block, ops=ops, tap=tap)
    return transformer(p, x, block, ops=ops, tap=tap)


def check_input(params: Params | Prepared, x: Array) -> None:
    """Refuse what `forward` cannot compute on; only looks at shapes and types, so it works inside `jit`."""
    if not isinstance(params, (Params, Prepared)):
        raise InputError(
            f"forward takes coatref Params first, got {type(params).__name__}; make them with coatref.init, load or convert."
        )
    spec, library = params.spec, library_of(x)
    parts = ["s0", *(f"s{number}" for number in range(1, len(spec.stages) + 1)), "head"]
    if list(params) != parts:
        raise InputError(
            f"The parameters of spec {spec.name!r} must have the parts {', '.join(parts)}, found {', '.join(params)}; "
            "make them with coatref.init, load or convert."
        )
    if x.ndim != 4 or x.shape[3] != spec.channels:
        raise ShapeError(
            f"forward takes images of shape (N, H, W, {spec.channels}), channels last, got {tuple(x.shape)}; "
            "a (N, C, H, W) batch goes in as permute_dims(x, (0, 2, 3, 1)), one image as x[None, ...]."
        )
    if x.shape[0] == 0:
        raise ShapeError(f"forward takes at least one image, got an empty batch {tuple(x.shape)}.")
    if not library.namespace().isdtype(x.dtype, "real floating"):
        raise DtypeError(
            f"forward takes real floating images, got {x.dtype}; preprocess them (coatref.preprocess) or cast them."
        )
    check_params_match(params, x)
    check_size(params, x.shape[1], x.shape[2])


def check_params_match(params: Params | Prepared, x: Array) -> None:
    """Refuse parameters of another library, dtype or device than x."""
    library = library_of(x)
    device = library.device(x)
    if all(matches(array, x, library, device) for array in leaves(params)):
        return
    for name, array in flatten(params):
        other = library_of(array)
        if other is not library and other.name != library.name:
            raise LibraryError(
                f"x is a {library.name} array and parameter {name} a {other.name} array; "
                f"move the parameters with params.to(xp={library.name!r})."
            )
        if array.dtype != x.dtype:
            raise DtypeError(
                f"x is {x.dtype} and parameter {name} is {array.dtype}; coatref casts nothing by itself: "
                "use params.to(dtype=...) or cast x."
            )
        if None not in (device, place := library.device(array)) and place != device:
            raise LibraryError(
                f"x is on device {device} and parameter {name} on {place}; move the parameters with params.to(device=...)."
            )


def matches(array: Array, x: Array, library: Library, device: Any) -> bool:
    """Whether an array belongs together with x, which is of that library and on that device (None: unknown)."""
    if type(array) is not type(x) and library_of(array).name != library.name:
        return False
    return bool(array.dtype == x.dtype) and (device is None or library.device(array) in (None, device))


def check_size(params: Params | Prepared, height: int, width: int) -> None:
    """Refuse an image size that has no meaning, or that the relative-bias tables are not made for."""
    spec = params.spec
    if (height, width) == spec.image_size:
        return
    grid, made_for = grids(spec, height, width), grids(spec, *spec.image_size)
    for block in spec.blocks():
        if not isinstance(block.run, Transformer):
            continue
        attention = block.run.attention
        bias = attention.relative_bias  # a log_mlp gives a table for any grid, until it is prepared
        tables = bias is not None and (bias.kind == "table" or isinstance(params, Prepared))
        if tables and attention.form == "global" and grid[block.name] != made_for[block.name]:
            raise SizeError(
                f"The image is {height}x{width} and the relative-bias tables are made for "
                f"{spec.image_size[0]}x{spec.image_size[1]}: block {block.name} has a grid of {grid[block.name]} and a "
                f"table for {made_for[block.name]}; interpolate them with params.resize({height}, {width})"
                f"{' and prepare the result' if isinstance(params, Prepared) else ''}."
            )
