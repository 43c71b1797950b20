"""The network: stem, stages, head (Sec. 2.2, Fig. 4 and Table 3 of the paper)."""

from __future__ import annotations

from coatref.blocks import convnext, head, mbconv, stem, transformer
from coatref.errors import DtypeError, InputError, LibraryError, ShapeError, SizeError
from coatref.params import Params
from coatref.primitives import DEFINITION, Backend, Primitives, primitives_for
from coatref.registry import Array, library_of
from coatref.specification.grids import grids
from coatref.specification.parts import ConvNeXt, MBConv, Transformer
from coatref.specification.spec import Block
from coatref.tap import Tap, inside, no_tap, recorder
from coatref.tree import flatten


def forward(params: Params, x: Array, *, backend: Backend = None) -> Array:
    """The network's output for a batch of images.

    Args:
        params: from `coatref.init`, `load` or `convert`; arrays of the library, dtype and device of x.
        x: (N, H, W, C), images as `coatref.preprocess` gives them, channels last; any array-API library.
        backend: None uses the fast forms that x's library has, "definition" the definition alone; see
            `coatref.primitives.primitives_for`.

    Returns:
        (N, classes), the logits (or probabilities, where the spec's head says so), in the library, dtype and on the
        device of x.

    Raises:
        ShapeError, SizeError: x is no batch of images of the spec's channels, or of a size the tables are not made for
            (use `params.resize`) or that has no meaning under the spec.
        DtypeError: x is not real floating, or the parameters have another dtype.
        LibraryError: x and the parameters are of different libraries or on different devices.
    """
    check_input(params, x)
    return run(params, x, primitives_for(x, backend), no_tap)


def trace(params: Params, x: Array) -> dict[str, Array]:
    """Every intermediate value of the definition, by a stable dotted name, in order of computation.

    Names are those of the code and the parameter tree: "s0.conv1", "s1.0.expand", "s3.2.attn.logits". A block's own name
    ("s1.0") holds its output and a stage's ("s1") that of its last block. The last name is "logits", followed by
    "probabilities" where the spec's head gives those.

    Args, shapes and errors are those of `forward`.
    """
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


def check_input(params: Params, x: Array) -> None:
    """Refuse what `forward` cannot compute on; only looks at shapes and types, so it works inside `jit`."""
    if not isinstance(params, Params):
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


def check_params_match(params: Params, x: Array) -> None:
    """Refuse parameters of another library, dtype or device than x."""
    library = library_of(x)
    device = library.device(x)
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


def check_size(params: Params, height: int, width: int) -> None:
    """Refuse an image size that has no meaning, or that the relative-bias tables are not made for."""
    spec = params.spec
    if (height, width) == spec.image_size:
        return
    grid, made_for = grids(spec, height, width), grids(spec, *spec.image_size)
    for block in spec.blocks():
        if not isinstance(block.run, Transformer):
            continue
        attention = block.run.attention
        tables = attention.relative_bias is not None and attention.relative_bias.kind == "table"
        if tables and attention.form == "global" and grid[block.name] != made_for[block.name]:
            raise SizeError(
                f"The image is {height}x{width} and the relative-bias tables are made for "
                f"{spec.image_size[0]}x{spec.image_size[1]}: block {block.name} has a grid of {grid[block.name]} and a "
                f"table for {made_for[block.name]}; interpolate them with params.resize({height}, {width})."
            )
