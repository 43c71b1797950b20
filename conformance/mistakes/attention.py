"""Mistakes in attention: projections, heads, scale and softmax."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from coatref import ops
from coatref.conformance.mistakes.changed import Changed, Flat, shapes
from coatref.conformance.mistakes.edits import (
    Change,
    Seen,
    any_of,
    blocks_of,
    by_fields,
    chain,
    in_block,
    reading,
    require,
    respec,
    square_transposed,
    tapping,
)
from coatref.conformance.mistakes.effective import with_grids
from coatref.conformance.mistakes.mistake import Mistake
from coatref.registry import Array, namespace
from coatref.specification.parts import Attention, Transformer
from coatref.specification.spec import Block, Spec

QKV = r"s\d+\.\d+\.attn\."
SCALE = "Eq. (2) has no scale; all know 1/sqrt(d) from Vaswani et al. 2017; "


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    return (*scales(), *heads(), *projections(), *weights())


def attention_of(block: Block) -> Attention:
    """The attention of a Transformer block, for the type checker."""
    assert isinstance(block.run, Transformer)
    return block.run.attention


def head_counts(spec: Spec) -> dict[str, tuple[int, int]]:
    """Name of every Transformer block -> its number of heads and their size."""
    return {
        block.name: (attention.head_count(block.input_width, block.run.width), attention.head_size)
        for block in blocks_of(spec, Transformer)
        for attention in (attention_of(block),)
    }


def looks(spec: Spec) -> bool:
    """Whether some attention chooses among several positions by a softmax."""
    grids = {block.name: grid for block, _, grid in with_grids(spec)}
    found = [(attention_of(block), grids[block.name]) for block in blocks_of(spec, Transformer)]
    return any(each.form != "linear" and max(each.window or grid) > 1 for each, grid in found)


def scales() -> tuple[Mistake, ...]:
    """The factor of the logits."""

    def field(name: str, clause: str, source: str, **changes: str) -> Mistake:
        paths = {f"Attention.{path}": value for path, value in changes.items()}
        return by_fields(name, "attention logits", clause, SCALE + source, paths)

    def last(changed: Changed) -> Changed:
        blocks = blocks_of(changed.spec, Transformer)
        require(changed, bool(blocks), "Transformer block")
        return respec(changed, lambda spec: in_block(spec, blocks[-1].name, {"Attention.scale": "1"}))

    return (
        field("scale-missing", "does not scale the attention logits", "nqt228 has none", scale="1"),
        field(
            "scale-inverted",
            "scales the attention logits by sqrt(d), not by 1/sqrt(d)",
            "lucid 1.18 to 2.14 does so",
            scale="sqrt(d)",
        ),
        field(
            "scale-by-width",
            "scales the attention logits by 1/sqrt(heads*d), not by 1/sqrt(d)",
            "torchvision's MaxViT does so, and keeps it for its weights",
            scale="1/sqrt(heads*d)",
        ),
        field(
            "scale-by-head-size",
            "scales the attention logits by 1/sqrt(d), not as the spec says",
            "the usual scale",
            scale="1/sqrt(d)",
        ),
        field(
            "scale-after-bias",
            "scales the attention logits after the bias is added, and with them the bias",
            "hosein does so",
            scale_site="logits_and_bias",
        ),
        Mistake(
            "scale-twice",
            "attention logits",
            "scales the attention logits twice",
            SCALE + "a common slip: scaled q handed to a fused attention that scales too",
            rescaled(lambda scale, q: scale * scale),
        ),
        Mistake(
            "scale-root",
            "attention logits",
            "scales the attention logits by d^(-1/4), not by d^(-1/2)",
            SCALE + "hw666 multiplies q and k by d^(-1/4) each; done to one of them only it is this",
            rescaled(lambda scale, q: math.sqrt(scale)),
        ),
        Mistake(
            "scale-linear",
            "attention logits",
            "scales the attention logits by 1/d, not by 1/sqrt(d)",
            SCALE + "a common slip: the root forgotten, or muP",
            rescaled(lambda scale, q: 1.0 / q.shape[3]),
        ),
        Mistake(
            "scale-by-input-head-size",
            "attention logits",
            "scales the attention logits by the input width divided by the heads, not by the head size",
            SCALE + "shilu10 takes inp // heads",
            input_scaled,
        ),
        Mistake(
            "last-scale-missing",
            "attention logits",
            "does not scale the attention logits of its last Transformer block",
            SCALE + "a common slip in one block",
            last,
        ),
        Mistake(
            "linear-attention-relu",
            "attention values",
            "maps q and k by ReLU, not by elu + 1, in linear attention",
            "Sec. 2.1 (C); Katharopoulos et al. 2020 have elu + 1, others ReLU",
            relu_features,
        ),
    )


def rescaled(factor: Callable[[float, Array], float]) -> Change:
    """Attention with another scale: a function of the right one and of q."""

    def change(changed: Changed) -> Changed:
        require(changed, looks(changed.spec), "softmax over several positions")
        right = [attention_of(block).scale for block in blocks_of(changed.spec, Transformer)]
        require(changed, any(each != "1" for each in right), "scale in its attention")
        original = changed.forms.relative_attention

        def attend(q: Array, *args: Any, scale: float, **kwargs: Any) -> Array:
            return original(q, *args, scale=factor(scale, q), **kwargs)

        return changed.but(forms=dataclasses.replace(changed.forms, relative_attention=attend))

    return change


def input_scaled(changed: Changed) -> Changed:
    """q multiplied by sqrt(d / (input width / heads)), which leaves that in the scale."""
    factors = {}
    for block in blocks_of(changed.spec, Transformer):
        count, size = head_counts(changed.spec)[block.name]
        if attention_of(block).form != "linear" and block.input_width != count * size:
            factors[block.name] = math.sqrt(size * count / block.input_width)
    require(changed, bool(factors), "attention whose input width is not heads times head size")
    pattern = "|".join(rf"{re.escape(name)}\.attn\.q\.[wb]" for name in factors)
    return reading(changed, pattern, lambda name, array: array * factors[name.partition(".attn.")[0]])


def relu_features(changed: Changed) -> Changed:
    """Linear attention with another feature map: relu(q) is elu(q') + 1 of a suitable q'."""
    linear = [b for b in blocks_of(changed.spec, Transformer) if attention_of(b).form == "linear"]
    require(changed, bool(linear), "linear attention")

    def attend(q: Array, k: Array, v: Array) -> Array:
        xp = namespace(q)
        q, k = ops.activation(q, "relu"), ops.activation(k, "relu") + 1e-6  # sums stay above 0
        sums = ops.matmul(xp.permute_dims(k, (0, 1, 3, 2)), v)  # (N, heads, D, K) @ (N, heads, K, D)
        total = xp.sum(q * xp.sum(k, axis=2, keepdims=True), axis=-1, keepdims=True)  # (N, heads, Q, 1)
        return ops.matmul(q, sums) / (total + 1e-6)

    return changed.but(forms=dataclasses.replace(changed.forms, linear_attention=attend))


def interleaved(array: Array, axis: int, count: int) -> Array:
    """An axis of heads*D read as D*heads: channel h*D + d of the result is channel d*heads + h."""
    xp = namespace(array)
    shape = tuple(array.shape)
    split = xp.reshape(array, (*shape[:axis], shape[axis] // count, count, *shape[axis + 1 :]))
    order = [*range(axis), axis + 1, axis, *range(axis + 2, len(shape) + 1)]
    return xp.reshape(xp.permute_dims(split, tuple(order)), shape)


def several_heads(changed: Changed) -> dict[str, int]:
    """Blocks with more than one head, and how many they have."""
    counts = {name: count for name, (count, _) in head_counts(changed.spec).items() if count > 1}
    require(changed, bool(counts), "attention of several heads")
    return counts


def order_of(parts: str, axis_of: Callable[[str], int]) -> Change:
    """Heads split or merged in the order of their channels, not of themselves."""

    def change(changed: Changed) -> Changed:
        counts = several_heads(changed)

        def edit(name: str, array: Array) -> Array:
            count = counts.get(name.partition(".attn.")[0])
            return array if count is None else interleaved(array, axis_of(name), count)

        return reading(changed, QKV + parts, edit)

    return change


def heads() -> tuple[Mistake, ...]:
    """How channels make heads, and how many there are."""
    order = "a common slip: reshape to (D, heads) in place of (heads, D)"
    counts = (
        "Sec. 2.2: head size 32; google takes output / 32, kecam and timm's own input / 32, chinhsuanwu always 8 heads"
    )
    fused = "timm's CoAtNets store heads first, its MaxViT ports and kecam q, k, v first"

    def fixed(count: int) -> Mistake:
        changes = {"Attention.heads_from": "fixed", "Attention.heads": count}
        return by_fields(
            f"heads-fixed-{count}", "attention logits", f"has {count} heads in every block, not width / head size", counts,
            changes,
        )  # fmt: skip

    sized = [
        by_fields(
            f"head-size-{size}",
            "attention logits",
            f"makes heads of {size} channels, not of the spec's head size",
            "Sec. 2.2: 32; Table 8: 64; Table 12: 128; timm's coatnet_5 leaves 32 where the paper has 64",
            {"Attention.head_size": size},
        )
        for size in (16, 32, 64)
    ]
    from_width = [
        by_fields(
            f"heads-from-{base}",
            "attention logits",
            f"counts heads by the {base} width of a block, not by the other",
            counts,
            {"Attention.heads_from": base, "Attention.heads": None},
        )
        for base in ("input", "output")
    ]
    return (
        Mistake(
            "heads-split-interleaved",
            "attention logits",
            "splits q, k and v so that channel d*heads + h belongs to head h, not channel h*D + d",
            order,
            order_of(r"[qkv]\.[wb]", lambda name: 1 if name.endswith("w") else 0),
        ),
        Mistake(
            "heads-merged-interleaved",
            "attention output",
            "merges heads so that channel d of head h is number d*heads + h, not h*D + d",
            order,
            order_of(r"o\.w", lambda name: 0),
        ),
        Mistake(
            "heads-merged-untransposed",
            "attention output",
            "merges heads without moving them behind the positions, so that heads and positions are mixed",
            "a common slip: the transpose before the last reshape forgotten",
            untransposed,
        ),
        Mistake(
            "qkv-heads-first-read-as-qkv-first",
            "attention logits",
            "reads fused q, k, v that are stored head by head as all q, all k, all v",
            fused,
            fused_read(True),
        ),
        Mistake(
            "qkv-qkv-first-read-as-heads-first",
            "attention logits",
            "reads fused q, k, v that are stored as all q, all k, all v head by head",
            fused,
            fused_read(False),
        ),
        fixed(8),
        *sized,
        *from_width,
    )


def untransposed(changed: Changed) -> Changed:
    """(N, heads, H*W, D) reshaped to (N, H, W, heads*D) as it lies in memory."""
    counts = several_heads(changed)
    grids = {block.name: grid for block, _, grid in with_grids(changed.spec)}
    require(changed, any(max(grids[name]) > 1 for name in counts), "several positions under several heads")

    def edit(name: str, value: Array, seen: Seen) -> Array:
        xp = namespace(value)
        n, height, width, channels = value.shape
        count = counts[name.removesuffix(".attn.heads")]
        split = xp.reshape(value, (n, height * width, count, channels // count))
        return xp.reshape(xp.permute_dims(split, (0, 2, 1, 3)), tuple(value.shape))

    return tapping(changed, any_of([f"{name}.attn.heads" for name in counts]), edit)


def fused_read(heads_first: bool) -> Change:
    """One fused kernel, stored in one order and read in the other."""

    def change(changed: Changed) -> Changed:
        counts = several_heads(changed)
        names = set(shapes(changed.spec))

        def mixed(flat: Flat) -> Flat:
            new = dict(flat)
            for block, count in counts.items():
                for last in ("w", "b"):
                    parts = [f"{block}.attn.{part}.{last}" for part in "qkv"]
                    if parts[0] in names:
                        new |= dict(zip(parts, reread([flat[part] for part in parts], count, heads_first), strict=True))
            return new

        return changed.but(read=chain(changed.read, mixed))

    return change


def reread(parts: list[Array], count: int, heads_first: bool) -> list[Array]:
    """q, k and v, each (..., heads*D), fused in one order and split in the other."""
    xp = namespace(parts[0])
    lead, size = tuple(parts[0].shape[:-1]), parts[0].shape[-1] // count
    stacked = xp.stack([xp.reshape(part, (*lead, count, size)) for part in parts], axis=len(lead))  # (..., 3, heads, D)
    axes = len(lead)
    swap = (*range(axes), axes + 1, axes, axes + 2)
    if heads_first:  # stored (..., heads, 3, D), read (..., 3, heads, D)
        read = xp.reshape(xp.permute_dims(stacked, swap), (*lead, 3, count, size))
    else:  # stored (..., 3, heads, D), read (..., heads, 3, D)
        read = xp.permute_dims(xp.reshape(stacked, (*lead, count, 3, size)), swap)
    flat = xp.reshape(read, (*lead, 3 * count * size))
    return [flat[..., i * count * size : (i + 1) * count * size] for i in range(3)]


def projections() -> tuple[Mistake, ...]:
    """q, k, v and o."""

    def renamed(name: str, clause: str, sources: dict[str, str], primitive: str = "attention logits") -> Mistake:
        return Mistake(name, primitive, clause, "a common slip in conversion of weights", taken_from(sources))

    return (
        renamed("q-k-swapped", "swaps queries and keys", {"q": "k", "k": "q"}),
        renamed("k-v-swapped", "swaps keys and values", {"k": "v", "v": "k"}),
        renamed("qkv-rotated", "takes q for k, k for v and v for q", {"q": "v", "k": "q", "v": "k"}),
        renamed("k-as-v", "takes the keys for the values", {"v": "k"}, "attention values"),
        renamed("q-as-k", "takes the queries for the keys", {"k": "q"}),
        by_fields(
            "qkv-bias-missing",
            "attention logits",
            "does not add the biases of q, k and v",
            "kecam and chinhsuanwu have none, google and timm do",
            {"Attention.qkv_bias": False},
        ),
        by_fields(
            "output-bias-missing",
            "attention output",
            "does not add the bias of attention's output projection",
            "kecam has none, the others do",
            {"Attention.output_bias": False},
        ),
        Mistake(
            "output-projection-skipped",
            "attention output",
            "has no output projection where it would keep the width",
            "chinhsuanwu leaves it out for a single head of that width",
            without_output,
        ),
        square_transposed("qkv-kernel-transposed", "attention logits", QKV + r"[qkv]\.w", "q, k and v"),
        square_transposed("output-kernel-transposed", "attention output", QKV + r"o\.w", "attention's output"),
        Mistake(
            "v-bias-missing",
            "attention values",
            "does not add the bias of the values",
            "a common slip; BEiT has no bias of the keys",
            lambda changed: reading(changed, QKV + r"v\.b", lambda name, b: b * 0.0),
        ),
    )


def taken_from(sources: dict[str, str]) -> Change:
    """Each projection of a kind with the parameters of another."""

    def change(changed: Changed) -> Changed:
        names = {name: re.fullmatch(QKV + r"([qkv])\.[wb]", name) for name in shapes(changed.spec)}
        other = {
            name: re.sub(r"\.attn\.[qkv]\.", f".attn.{sources[found[1]]}.", name)
            for name, found in names.items()
            if found is not None and found[1] in sources
        }
        require(changed, bool(other), "attention")
        return changed.but(read=chain(changed.read, lambda flat: {n: flat[other.get(n, n)] for n in flat}))

    return change


def without_output(changed: Changed) -> Changed:
    """Square output projections replaced by the identity."""
    square = [n for n, s in shapes(changed.spec).items() if re.fullmatch(QKV + r"o\.w", n) and s[0] == s[1]]
    require(changed, bool(square), "square output projection")
    names = [*square, *(name[:-1] + "b" for name in square)]

    def edit(name: str, array: Array) -> Array:
        xp = namespace(array)
        return array * 0.0 + (xp.eye(array.shape[0], dtype=array.dtype) if name.endswith("w") else 0.0)

    return reading(changed, any_of(names), edit)


Weigh = Callable[[Array, Array], Array]  # (logits, weights), both (N, heads, Q, K) -> weights


def over(axis: int) -> Weigh:
    """Softmax over another axis."""

    def weigh(logits: Array, weights: Array) -> Array:
        xp = namespace(logits)
        e = xp.exp(logits - xp.max(logits, axis=axis, keepdims=True))
        return e / xp.sum(e, axis=axis, keepdims=True)

    return weigh


def plus_one(logits: Array, weights: Array) -> Array:
    """exp(x) / (1 + sum of exp(x))."""
    xp = namespace(logits)
    e = xp.exp(logits)
    return e / (1.0 + xp.sum(e, axis=-1, keepdims=True))


def masked(logits: Array, weights: Array) -> Array:
    """A causal mask: no query sees a key behind it."""
    xp = namespace(logits)
    e = xp.tril(xp.exp(logits - xp.max(logits, axis=-1, keepdims=True)))
    return e / (xp.sum(e, axis=-1, keepdims=True) + 1e-300)


def in_steps(logits: Array, weights: Array) -> Array:
    """Weights in steps of 1/256."""
    return namespace(weights).round(weights * 256.0) / 256.0


# name, new weights, clause, source
WEIGHTS: tuple[tuple[str, Weigh, str, str], ...] = (
    ("softmax-over-queries", over(2), "takes the softmax over queries, not over keys", "Eq. (2); a common slip"),
    ("softmax-over-heads", over(1), "takes the softmax over heads, not over keys", "nesbit: softmax without an axis"),
    (
        "softmax-over-batch",
        over(0),
        "takes the softmax over images, not over keys",
        "a common slip: softmax over axis 0",
    ),
    (
        "softmax-missing",
        lambda logits, weights: logits,
        "has no softmax in attention",
        "Eq. (2); a common slip",
    ),
    (
        "softmax-base-2",
        lambda logits, weights: ops.softmax(logits * math.log(2.0)),
        "takes powers of 2, not of e, in the softmax of attention",
        "a common slip: exp2 of fused kernels without their factor log2(e)",
    ),
    (
        "softmax-plus-one",
        plus_one,
        "adds 1 to the sum in the softmax of attention",
        "a variant that is not the paper's",
    ),
    (
        "softmax-causal",
        masked,
        "hides later positions from each query",
        "a common slip: is_causal of a fused attention",
    ),
    ("weights-in-8-bits", in_steps, "rounds the attention weights to 8 bits", "a common slip in quantisation"),
    (
        "weights-transposed",
        lambda logits, weights: namespace(weights).permute_dims(weights, (0, 1, 3, 2)),
        "sums the values with the weights transposed, over queries and not over keys",
        "Eq. (2); a common slip",
    ),
)


def weights() -> tuple[Mistake, ...]:
    """From the logits to the weights, and from there to the values."""

    def weighing(name: str, weigh: Weigh, clause: str, source: str) -> Mistake:
        primitive = "attention values" if name.startswith("weights-t") else "softmax"

        def change(changed: Changed) -> Changed:
            require(changed, looks(changed.spec) or name.endswith(("heads", "batch", "missing", "one")), "softmax")
            all_of = [attention_of(block) for block in blocks_of(changed.spec, Transformer)]
            soft = all(a.form != "linear" for a in all_of)
            before = all(a.relative_bias is None or a.relative_bias.add == "pre_softmax" for a in all_of)
            require(changed, bool(all_of) and soft and before, "softmax behind the bias")

            def edit(at: str, value: Array, seen: Seen) -> Array:
                return weigh(seen["previous"], value)

            return tapping(changed, QKV + "weights", edit)

        return Mistake(name, primitive, clause, source, change)

    return tuple(weighing(*row) for row in WEIGHTS)
