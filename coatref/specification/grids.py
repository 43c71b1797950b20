"""Which grid of positions every part of a network works on, and which image sizes have a meaning at all."""

from __future__ import annotations

from typing import Literal

from coatref.errors import InputError, SizeError
from coatref.specification.parts import ConvNeXt, ConvStem, MBConv, Transformer
from coatref.specification.spec import Block, Spec

Grid = tuple[int, int]  # height, width


def padding_amounts(
    length: int, kernel: int, stride: int, padding: Literal["same", "symmetric", "valid"]
) -> tuple[int, int]:
    """Rows added before and after an axis of `length`.

    "same" is TensorFlow's: the output has ceil(length / stride) rows and an odd row of padding goes to the end.
    "symmetric" is the usual torch setting, (kernel - 1) // 2 on each side. "valid" adds nothing.
    """
    if padding == "same":
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        return total // 2, total - total // 2
    if padding not in ("symmetric", "valid"):
        raise InputError(f"There is no padding {padding!r:.80}; known are same, symmetric and valid.")
    each = (kernel - 1) // 2 if padding == "symmetric" else 0
    return each, each


def output_length(length: int, kernel: int, stride: int, padding: Literal["same", "symmetric", "valid"]) -> int:
    """Rows that a sliding window gives on an axis of `length`; 0 where it does not fit."""
    before, after = padding_amounts(length, kernel, stride, padding)
    return max((before + length + after - kernel) // stride + 1, 0)


def grids(spec: Spec, height: int, width: int) -> dict[str, Grid]:
    """Dotted name of the stem and every block -> its output grid, for an image of height x width pixels.

    Raises:
        SizeError: the main branch and the shortcut of some block disagree, nothing is left of the image, or windows do
            not tile a grid; the message names sizes nearby that work.
    """
    try:
        return _grids(spec, height, width)
    except SizeError as error:
        works = nearby_sizes(spec, height, width)
        advice = " and ".join(f"{h}x{w}" for h, w in works) or "none nearby"
        raise SizeError(
            f"Spec {spec.name!r} has no meaning for an image of {height}x{width} (height x width) pixels: {error}; "
            f"sizes that work: {advice}."
        ) from None


def nearby_sizes(spec: Spec, height: int, width: int, effort: int = 20_000) -> list[Grid]:
    """The nearest meaningful sizes below and above; both sides move together by the same number of pixels or alone.

    It looks as many pixels far, up to 256, as costs about `effort` looks at a block, so that a spec with a thousand
    blocks and no meaningful size at all is refused in a fraction of a second.
    """
    found, reach = [], max(8, min(256, effort // (6 * sum(run.depth for stage in spec.stages for run in stage))))
    for sign in (-1, 1):
        candidates = (
            (height + sign * dh, width + sign * dw) for d in range(1, reach) for dh, dw in ((d, d), (d, 0), (0, d))
        )
        # each axis is judged alone except for windows, so rounding each to its own nearest finds what joint steps miss
        rounded = ((_next(spec, height, sign, reach), _next(spec, width, sign, reach)),)
        for size in (*rounded, *candidates):
            if min(size) >= 1 and _works(spec, *size):
                found.append(size)
                break
    return found


def _next(spec: Spec, length: int, sign: int, reach: int) -> int:
    """The nearest length from `length` on in direction `sign` that works as a square."""
    lengths = (length + sign * step for step in range(reach))
    return next((n for n in lengths if n >= 1 and _works(spec, n, n)), length)


def _works(spec: Spec, height: int, width: int) -> bool:
    try:
        _grids(spec, height, width)
    except SizeError:
        return False
    return True


def _grids(spec: Spec, height: int, width: int) -> dict[str, Grid]:
    grid = stem_grid(spec.stem, (height, width))
    if min(grid) < 1:
        raise SizeError("the stem leaves nothing of it")
    result = {"s0": grid}
    for block in spec.blocks():
        grid = block_grid(block, grid)
        result[block.name] = grid
    return result


def stem_grid(stem: object, grid: Grid) -> Grid:
    """Output grid of the stem."""
    if isinstance(stem, ConvStem):
        for index in range(len(stem.widths)):
            grid = _slide(grid, stem.kernel, 2 if index == 0 else 1, stem.padding)
        return grid
    patch = stem.patch  # type: ignore[attr-defined]
    if grid[0] % patch or grid[1] % patch:
        raise SizeError(f"it is not a whole number of {patch}x{patch} patches")
    return grid[0] // patch, grid[1] // patch


def block_grid(block: Block, grid: Grid) -> Grid:
    """Output grid of a block whose input has `grid`.

    Raises:
        SizeError: its two branches end on different grids, or its windows do not tile the grid.
    """
    run = block.run
    if block.stride == 2:
        pool = run.shortcut_pool
        shortcut, main = _slide(grid, pool.size, 2, pool.padding), _main_grid(block, grid)
    else:
        shortcut, main = grid, _main_grid(block, grid)
    if min(main) < 1 or min(shortcut) < 1:
        raise SizeError(f"nothing is left of the {grid[0]}x{grid[1]} grid that reaches block {block.name}")
    if main != shortcut:
        raise SizeError(
            f"block {block.name} turns a {grid[0]}x{grid[1]} grid into {main[0]}x{main[1]} on its main branch and "
            f"{shortcut[0]}x{shortcut[1]} on its shortcut"
        )
    if isinstance(run, Transformer) and run.attention.window is not None:
        window = run.attention.window
        if main[0] % window[0] or main[1] % window[1]:
            raise SizeError(
                f"windows of {window[0]}x{window[1]} do not tile the {main[0]}x{main[1]} grid of block {block.name}"
            )
    return main


def _main_grid(block: Block, grid: Grid) -> Grid:
    """Output grid of a block's main branch."""
    run, stride = block.run, block.stride
    if isinstance(run, Transformer):
        return _slide(grid, run.main_pool.size, 2, run.main_pool.padding) if stride == 2 else grid
    if stride == 2 and run.main_pool is not None:
        grid, stride = _slide(grid, run.main_pool.size, 2, run.main_pool.padding), 1
    if isinstance(run, MBConv) and run.stride_at == "expand":
        grid, stride = _slide(grid, 1, stride, run.padding), 1
    assert isinstance(run, (MBConv, ConvNeXt))  # the union is closed; this narrows it for the type checker
    return _slide(grid, run.kernel, stride, run.padding)


def _slide(grid: Grid, kernel: int, stride: int, padding: Literal["same", "symmetric", "valid"]) -> Grid:
    return output_length(grid[0], kernel, stride, padding), output_length(grid[1], kernel, stride, padding)
