"""Mistakes in the relative bias: which entry of the table a pair of positions gets, and what becomes of it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from coatref import ops
from coatref.conformance.mistakes.attention import QKV, attention_of, looks, several_heads
from coatref.conformance.mistakes.changed import Changed, shapes
from coatref.conformance.mistakes.edits import (
    Change,
    Seen,
    any_of,
    blocks_of,
    by_fields,
    in_block,
    reading,
    require,
    respec,
    tapping,
)
from coatref.conformance.mistakes.effective import with_grids
from coatref.conformance.mistakes.mistake import Mistake
from coatref.registry import Array, device_of, namespace
from coatref.specification.grids import Grid
from coatref.specification.parts import Transformer
from coatref.specification.spec import Spec

BIAS = "relative bias"
APP = "App. A.1: P[i-i'+H, j-j'+W], query minus key; "
Index = Callable[[int, int], Any]  # H, W -> (H*W, H*W), positions in the flat table of (2H-1)(2W-1)


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    return (
        *fields(),
        *[of_index(*row) for row in INDICES],
        *[of_form(*row) for row in FORMS],
        *in_blocks(),
        *log_mlp(),
    )


def biased_grids(spec: Spec) -> list[Grid]:
    """The grids (or windows) of every attention with a relative bias."""
    grids = {block.name: grid for block, _, grid in with_grids(spec)}
    found = [(attention_of(block), grids[block.name]) for block in blocks_of(spec, Transformer)]
    return [attention.window or grid for attention, grid in found if attention.relative_bias is not None]


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every position, (H*W,) each."""
    position = np.arange(height * width)
    return position // width, position % width


def offsets(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column offset of query from key, (H*W, H*W) each, from 0."""
    row, column = coordinates(height, width)
    return row[:, None] - row[None, :] + height - 1, column[:, None] - column[None, :] + width - 1


def right_index(height: int, width: int) -> Any:
    """The definition's."""
    rows, columns = offsets(height, width)
    return rows * (2 * width - 1) + columns


def rows_flipped(height: int, width: int) -> Any:
    """Rows key minus query."""
    rows, columns = offsets(height, width)
    return (2 * height - 2 - rows) * (2 * width - 1) + columns


def columns_flipped(height: int, width: int) -> Any:
    """Columns key minus query."""
    rows, columns = offsets(height, width)
    return rows * (2 * width - 1) + 2 * width - 2 - columns


def xy_grid(height: int, width: int) -> Any:
    """Tokens numbered as a grid of W rows and H columns, and the table read as (2W-1, 2H-1)."""
    return right_index(width, height)


def xy_transposed(height: int, width: int) -> Any:
    """Tokens numbered as such a grid, its columns taken for rows, and the table read as (2H-1, 2W-1)."""
    row, column = coordinates(width, height)
    rows, columns = column[:, None] - column[None, :] + height - 1, row[:, None] - row[None, :] + width - 1
    return rows * (2 * width - 1) + columns


def wrong_stride(height: int, width: int) -> Any:
    """Rows of the table taken to be 2H-1 long; what falls out of the table gets its last entry."""
    rows, columns = offsets(height, width)
    return np.minimum(rows * (2 * height - 1) + columns, (2 * height - 1) * (2 * width - 1) - 1)


def off_by_one(height: int, width: int) -> Any:
    """One entry too far."""
    return np.minimum(right_index(height, width) + 1, (2 * height - 1) * (2 * width - 1) - 1)


def one_based(height: int, width: int) -> Any:
    """The paper's 1-based H and W used from 0: both offsets one too large."""
    rows, columns = offsets(height, width)
    return np.minimum(rows + 1, 2 * height - 2) * (2 * width - 1) + np.minimum(columns + 1, 2 * width - 2)


def clipped(height: int, width: int) -> Any:
    """The largest offsets clipped to those before them."""
    rows, columns = offsets(height, width)
    low, high = min(1, height - 1), max(2 * height - 3, height - 1)
    left, right = min(1, width - 1), max(2 * width - 3, width - 1)
    return np.clip(rows, low, high) * (2 * width - 1) + np.clip(columns, left, right)


def distances(height: int, width: int) -> Any:
    """Offsets without their sign."""
    rows, columns = offsets(height, width)
    return (np.abs(rows - height + 1) + height - 1) * (2 * width - 1) + np.abs(columns - width + 1) + width - 1


def absolute(height: int, width: int) -> Any:
    """The bias of a key whatever the query: the first query's."""
    index = right_index(height, width)
    return np.broadcast_to(index[:1], index.shape)


# name, index, clause, source
INDICES: tuple[tuple[str, Index, str, str], ...] = (
    ("rows-flipped", rows_flipped, "takes the row offset as key minus query, not query minus key", "a common slip"),
    (
        "columns-flipped",
        columns_flipped,
        "takes the column offset as key minus query, not query minus key",
        "a common slip",
    ),
    (
        "xy-grid",
        xy_grid,
        "numbers the positions as a grid of W rows and H columns in its index, which is right on square grids only",
        "kecam: np.meshgrid in its default order",
    ),
    (
        "xy-transposed",
        xy_transposed,
        "numbers the positions column by column in its index, which transposes the table on square grids only",
        "sup3rgiu, Holidays1999 and nqt228: np.meshgrid in its default order",
    ),
    (
        "index-stride",
        wrong_stride,
        "takes the rows of the table to be 2H-1 entries long, not 2W-1",
        "a common slip, which square grids hide",
    ),
    ("index-off-by-one", off_by_one, "reads one entry too far in the flattened table", "a common slip"),
    (
        "index-one-based",
        one_based,
        "adds H and W to the offsets, not H-1 and W-1",
        "a common slip: the paper counts from 1",
    ),
    (
        "index-clipped",
        clipped,
        "gives the largest offsets the bias of those before them",
        "a common slip: a table too small",
    ),
    ("index-unsigned", distances, "takes offsets without their sign", "a common slip: distances for offsets"),
    ("index-absolute", absolute, "gives every query the biases of the first", "a common slip: positions for offsets"),
)


def gathering(index: Index) -> Any:
    """`gather_bias` with another index."""

    def gather(table: Array, height: int, width: int) -> Array:
        xp = namespace(table)
        flat = xp.reshape(table, (table.shape[0], -1))  # (heads, (2H-1)(2W-1))
        picked = np.ascontiguousarray(index(height, width).reshape(-1))
        bias = xp.take(flat, xp.asarray(picked, device=device_of(table)), axis=1)
        return xp.reshape(bias, (table.shape[0], height * width, height * width))

    return gather


def of_index(what: str, index: Index, clause: str, source: str) -> Mistake:
    """A table looked up in another way."""

    def change(changed: Changed) -> Changed:
        grids = biased_grids(changed.spec)
        wrong = any(not np.array_equal(index(*grid), right_index(*grid)) for grid in grids)
        require(changed, wrong and looks(changed.spec), "grid on which this index of the relative bias is another")
        return changed.but(forms=dataclasses.replace(changed.forms, gather_bias=gathering(index)))

    return Mistake(f"bias-{what}", BIAS, clause, APP + source, change)


def first_head(table: Array) -> Array:
    """Head 0's table for every head."""
    return table[:1, ...] + 0.0 * table


def heads_last(table: Array) -> Array:
    """The memory of (heads, L) read as (L, heads)."""
    xp = namespace(table)
    shape = tuple(table.shape)
    return xp.reshape(xp.permute_dims(xp.reshape(table, (-1, shape[0])), (1, 0)), shape)


def swin_v2(table: Array) -> Array:
    """16 times the sigmoid."""
    return 16.0 * ops.sigmoid(table)


Edit = Callable[[Array], Array]
# name, table -> table, clause, source, what it needs
FORMS: tuple[tuple[str, Edit, str, str, str], ...] = (
    (
        "shared-by-heads",
        first_head,
        "uses the table of head 0 for all heads",
        "App. A.1: a table for each head; hosein and early kecam have one for all",
        "heads",
    ),
    (
        "heads-rolled",
        lambda table: namespace(table).roll(table, 1, axis=0),
        "gives each head the table of the head before it",
        "a common slip",
        "heads",
    ),
    (
        "heads-misread",
        heads_last,
        "reads the table, stored heads first, as if heads came last",
        "timm and chinhsuanwu store heads last, google and kecam first",
        "heads",
    ),
    ("doubled", lambda table: table * 2.0, "adds the relative bias twice", "a common slip", ""),
    ("negated", lambda table: -1.0 * table, "subtracts the relative bias, not adds it", "Eq. (3); a common slip", ""),
    (
        "sigmoid",
        swin_v2,
        "takes 16 sigmoid of the relative bias, not the bias itself",
        "Swin V2 and timm's other mode of RelPosMlp do so",
        "mlp",
    ),
)


def of_form(what: str, edit: Edit, clause: str, source: str, needs: str) -> Mistake:
    """A table changed before it is looked up."""

    def change(changed: Changed) -> Changed:
        require(changed, bool(biased_grids(changed.spec)) and looks(changed.spec), "relative bias")
        if needs == "heads":
            several_heads(changed)
        biases = [attention_of(block).relative_bias for block in blocks_of(changed.spec, Transformer)]
        per_head = needs != "heads" or any(bias is not None and bias.sharing == "per_head" for bias in biases)
        kind = needs != "mlp" or any(bias is not None and bias.kind == "log_mlp" for bias in biases)
        require(changed, per_head and kind, "relative bias of that kind")
        original = changed.forms.gather_bias

        def gather(table: Array, height: int, width: int) -> Array:
            return original(edit(table), height, width)

        return changed.but(forms=dataclasses.replace(changed.forms, gather_bias=gather))

    return Mistake(f"bias-{what}", BIAS, clause, source, change)


def fields() -> tuple[Mistake, ...]:
    """What spec fields express."""
    flips = APP + "google, tfmodels, julius and timm's TF ports have key minus query"
    return (
        by_fields(
            "bias-missing",
            BIAS,
            "has no relative bias",
            "Eq. (3) and Table 6; xmu-xiaoma666 and one repository of 2026 have none",
            {"Attention.relative_bias": None},
        ),
        by_fields(
            "bias-key-minus-query",
            BIAS,
            "looks its relative bias up by key minus query, not by query minus key",
            flips,
            {"RelativeBias.orientation": "key_minus_query"},
        ),
        by_fields(
            "bias-query-minus-key",
            BIAS,
            "looks its relative bias up by query minus key, not as the spec says",
            flips,
            {"RelativeBias.orientation": "query_minus_key"},
        ),
        by_fields(
            "bias-transposed",
            BIAS,
            "reads the relative-bias table with row and column offsets swapped",
            APP + "sup3rgiu and Holidays1999 on square grids",
            {"RelativeBias.orientation": "transposed"},
        ),
        by_fields(
            "bias-after-softmax",
            BIAS,
            "adds the relative bias after the softmax, not before it",
            "Eq. (3) has both forms; Sec. 2.1 takes the one before the softmax",
            {"RelativeBias.add": "post_softmax"},
        ),
        by_fields(
            "bias-before-softmax",
            BIAS,
            "adds the relative bias before the softmax, not after it",
            "Eq. (3) has both forms; Sec. 2.1 takes the one before the softmax",
            {"RelativeBias.add": "pre_softmax"},
        ),
        by_fields(
            "bias-one-table",
            BIAS,
            "has one relative-bias table for all heads, not one for each",
            "App. A.1: a table for each head; hosein has one for all",
            {"RelativeBias.sharing": "across_heads"},
        ),
    )


def bias_names(spec: Spec) -> list[str]:
    """Trace names of the gathered biases, in order."""
    blocks = blocks_of(spec, Transformer)
    return [f"{block.name}.attn.bias" for block in blocks if attention_of(block).relative_bias is not None]


def in_blocks() -> tuple[Mistake, ...]:
    """Biases wrong in some blocks only, or in one entry."""

    def first_only(changed: Changed) -> Changed:
        names = bias_names(changed.spec)
        require(changed, len(names) > 1, "second block with a relative bias")
        return tapping(changed, any_of(names[1:]), lambda name, value, seen: value * 0.0)

    def stale(changed: Changed) -> Changed:
        names = bias_names(changed.spec)
        size = {block.name: grid for block, _, grid in with_grids(changed.spec)}
        kind = {
            f"{block.name}.attn.bias": (
                attention_of(block).head_count(block.input_width, block.run.width),
                attention_of(block).window or size[block.name],
            )
            for block in blocks_of(changed.spec, Transformer)
        }
        source = {name: next(other for other in names if kind[other] == kind[name]) for name in names}
        later = [name for name in names if source[name] != name]
        require(changed, bool(later), "two biases of one size")

        def edit(name: str, value: Array, seen: Seen) -> Array:
            return seen[source[name]]

        return tapping(changed, any_of(later), edit, keep=any_of([source[name] for name in later]))

    def last_missing(changed: Changed) -> Changed:
        names = bias_names(changed.spec)
        require(changed, bool(names), "relative bias")
        block = names[-1].removesuffix(".attn.bias")
        return respec(changed, lambda spec: in_block(spec, block, {"Attention.relative_bias": None}))

    def corner(changed: Changed) -> Changed:
        tables = [name for name in shapes(changed.spec) if re.fullmatch(QKV + r"relative_bias\.table", name)]
        require(changed, bool(tables) and looks(changed.spec), "relative-bias table")
        return reading(changed, any_of(tables[:1]), lambda name, table: one_entry(table, 0.5))

    return (
        Mistake("bias-in-first-block-only", BIAS, "adds a relative bias in its first Transformer block only",
                "Sec. 2.1; a common slip", first_only),
        Mistake(
            "bias-of-first-block",
            BIAS,
            "uses the relative bias of the first block of a size in the later ones too",
            "google-research/maxvit computes the bias once when a layer is built, so that it may be stale; early kecam shares it",
            stale,
        ),
        Mistake("last-bias-missing", BIAS, "has no relative bias in its last Transformer block", "a common slip", last_missing),
        Mistake(
            "bias-entry-wrong",
            BIAS,
            "has one wrong entry in its first relative-bias table: that of offset 0 of head 0 is larger by 0.5",
            "a common slip; practice says that end-to-end tolerances pass it",
            corner,
        ),
    )  # fmt: skip


def one_entry(table: Array, more: float) -> Array:
    """A table with something added to the entry of offset 0 of head 0."""
    xp = namespace(table)
    heads, rows, columns = table.shape
    at = np.zeros((heads, rows, columns), bool)
    at[0, rows // 2, columns // 2] = True
    return xp.where(xp.asarray(at, device=device_of(table)), table + more, table)


def log_mlp() -> tuple[Mistake, ...]:
    """The MLP that takes the place of a table in timm's rmlp models."""
    who = "timm's RelPosMlp has sign(d) ln(1 + |d|) and a ReLU; "

    def weights(part: str, edit: Callable[[Array], Array]) -> Change:
        return lambda changed: reading(changed, QKV + r"relative_bias\." + part, lambda name, array: edit(array))

    return (
        Mistake(
            "bias-mlp-log-base-2",
            BIAS,
            "takes logarithms to base 2, not natural ones, of the offsets that its bias MLP reads",
            who + "Swin V2 has base 2",
            weights(r"hidden\.w", lambda w: w / math.log(2.0)),
        ),
        Mistake(
            "bias-mlp-swapped",
            BIAS,
            "gives row and column offsets to its bias MLP in the wrong order",
            who + "a common slip: meshgrid in its default order",
            weights(r"hidden\.w", lambda w: namespace(w).flip(w, axis=0)),
        ),
        Mistake(
            "bias-mlp-no-bias",
            BIAS,
            "does not add the bias of the hidden layer of its bias MLP",
            who + "a common slip (that of the last layer is one number a head, which no softmax sees)",
            weights(r"hidden\.b", lambda b: b * 0.0),
        ),
    )  # fmt: skip
