"""The network over prepared parameters: what `coatref.model` and `coatref.blocks` say, in the steps of `Fused`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coatref.attention import merge_windows, split_windows
from coatref.backends.fused import Fused, Step, fused_for
from coatref.prepared import Prepared
from coatref.registry import Array, library_of
from coatref.specification.parts import ConvNeXt, Head, MBConv, Norm, PatchStem, Pool, Stem, Transformer
from coatref.specification.spec import Block
from coatref.tap import Tap, no_tap

Tree = Mapping[str, Any]


def forward(prepared: Prepared, x: Array, *, fused: Fused | None = None, threads: int | None = None) -> Array:
    """The network's output, as `coatref.forward`, on inputs that are known to be right.

    Args:
        prepared: from `coatref.prepare`.
        x: (N, H, W, C).
        fused: the steps to compute with; None: those of x's library.
        threads: for libraries that coatref divides the work of (NumPy); see `coatref.forward`.
    """
    library = library_of(x)

    def compute(part: Array, pool: Any = None) -> Array:
        return run(prepared, part, fused if fused is not None else fused_for(part, pool), no_tap)

    return compute(x) if library.divide is None else library.divide(compute, x, threads)


def run(prepared: Prepared, x: Array, fused: Fused, tap: Tap) -> Array:
    """The computation itself; the tap sees "s0", every block, every stage and "logits".

    An array that a tap has seen may be overwritten afterwards.
    """
    spec = prepared.spec
    x = tap("s0", stem(prepared["s0"], x, spec.stem, fused))  # (N, H, W, C) -> (N, H/2, W/2, C)
    blocks = list(spec.blocks())
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        stage, _, index = block.name.partition(".")
        x = tap(block.name, apply(prepared[stage][int(index)], x, block, fused))
        if following is None or not following.name.startswith(f"{stage}."):
            x = tap(stage, x)
    logits = tap("logits", head(prepared["head"], x, spec.head, fused))  # (N, classes)
    return logits if spec.head.output == "logits" else tap("probabilities", fused.softmax(logits))


def apply(p: Tree, x: Array, block: Block, fused: Fused) -> Array:
    """One block. Shapes: (N, H, W, C) -> (N, H', W', D)."""
    if isinstance(block.run, MBConv):
        return mbconv(p, x, block, block.run, fused)
    if isinstance(block.run, ConvNeXt):
        return convnext(p, x, block, block.run, fused)
    return transformer(p, x, block, block.run, fused)


def layer(p: Tree) -> tuple[Array, Array | None]:
    """Weight and bias of a layer."""
    return p["w"], p.get("b")


def norm(p: Tree, name: str, x: Array, spec: Norm, fused: Fused, act: str | None = None) -> Array:
    """What is left of a norm, and the activation behind it: nothing of a folded BatchNorm, of a LayerNorm its division."""
    left = p.get(name, {})
    if spec.kind == "layer":
        x = fused.layer_norm(x, left.get("gamma"), left.get("beta"), epsilon=spec.epsilon)
    elif left:
        return fused.affine(x, left["scale"], left["shift"], act=act)
    return x if act is None else fused.activation(x, act)


def pooled(x: Array, spec: Pool, fused: Fused) -> Array:
    """A pool of stride 2. Shapes: (N, H, W, C) -> (N, H', W', C)."""
    if spec.kind == "max":
        return fused.max_pool(x, size=spec.size, stride=2, padding=spec.padding)
    return fused.avg_pool(x, size=spec.size, stride=2, padding=spec.padding, padded_zeros=spec.padded_zeros)


def shortcut(p: Tree, x: Array, block: Block, fused: Fused) -> Array:
    """Proj(Pool(x)). Shapes: (N, H, W, C) -> (N, H', W', D)."""
    if block.stride == 2:
        x = pooled(x, block.run.shortcut_pool, fused)
    return fused.dense(x, *layer(p["shortcut"])) if block.projected else x


def stem(p: Tree, x: Array, spec: Stem, fused: Fused) -> Array:
    """S0. Shapes: (N, H, W, C) -> (N, H', W', D)."""
    if isinstance(spec, PatchStem):
        return fused.conv2d(x, *layer(p["conv1"]), stride=spec.patch, padding="valid", act=None)
    for number in range(1, len(spec.widths) + 1):
        normed = number < len(spec.widths) or spec.after_last == "norm_and_activation"
        act = spec.activation if normed else None
        folded = normed and spec.norm.kind == "batch"  # the activation goes with the convolution then
        stride = 2 if number == 1 else 1
        x = fused.conv2d(
            x, *layer(p[f"conv{number}"]), stride=stride, padding=spec.padding, act=act if folded else None
        )  # (N, H, W, C) -> (N, H', W', D)
        if normed and not folded:
            x = norm(p, f"norm{number}", x, spec.norm, fused, act)
    return x


def mbconv(p: Tree, x: Array, block: Block, spec: MBConv, fused: Fused) -> Array:
    """MBConv. Shapes: (N, H, W, C) -> (N, H', W', D)."""
    y = norm(
        p, "pre_norm", x, spec.pre_norm, fused, spec.pre_norm_activation if spec.residual_from == "input" else None
    )
    residual = shortcut(p, x if spec.residual_from == "input" else y, block, fused)  # (N, H', W', D)
    if spec.residual_from == "normalised" and spec.pre_norm_activation is not None:
        y = fused.activation(y, spec.pre_norm_activation)
    if spec.main_pool is not None and block.stride == 2:
        y = pooled(y, spec.main_pool, fused)  # (N, H, W, C) -> (N, H', W', C)
    if block.stride == 2 and spec.stride_at == "expand":
        y = y[:, ::2, ::2, :]  # (N, H, W, C) -> (N, H', W', C)
    if fused.mbconv is not None and spec.inner_norm.kind == "batch" and "shrink_norm" not in p:
        return whole_mbconv(p, y, residual, block, spec, fused.mbconv)
    inner_act = spec.activation if spec.inner_norm.kind == "batch" else None
    y = fused.dense(y, *layer(p["expand"]), act=inner_act)  # C -> expanded
    if spec.inner_norm.kind == "layer":
        y = norm(p, "expand_norm", y, spec.inner_norm, fused, spec.activation)

    se = spec.squeeze_excite
    early = se is not None and se.place == "before_norm"
    stride = block.stride if spec.stride_at == "depthwise" else 1
    act = None if early else inner_act
    y = fused.depthwise(y, *layer(p["depthwise"]), stride=stride, padding=spec.padding, act=act)
    if se is not None and early and spec.inner_norm.kind == "batch":
        left = p["depthwise_norm"]
        y = excited(p, y, left["scale"], left["shift"], se.activation, spec.activation, fused)
    elif se is not None and early:
        y = excited(p, y, None, None, se.activation, None, fused)
        y = norm(p, "depthwise_norm", y, spec.inner_norm, fused, spec.activation)
    elif spec.inner_norm.kind == "layer":
        y = norm(p, "depthwise_norm", y, spec.inner_norm, fused, spec.activation)
    if se is not None and not early:
        y = excited(p, y, None, None, se.activation, None, fused)

    if spec.shrink_norm is None or spec.shrink_norm.kind == "batch":
        return fused.dense(y, *layer(p["shrink"]), residual=residual)  # expanded -> D
    y = fused.dense(y, *layer(p["shrink"]))
    return fused.add(norm(p, "shrink_norm", y, spec.shrink_norm, fused), residual)


def whole_mbconv(p: Tree, x: Array, residual: Array, block: Block, spec: MBConv, form: Step) -> Array:
    """The branch of MBConv in one go. Shapes: (N, H, W, C) -> (N, H', W', D)."""
    se = spec.squeeze_excite
    return form(
        p,
        x,
        act=spec.activation,
        stride=block.stride if spec.stride_at == "depthwise" else 1,
        padding=spec.padding,
        gate_act=se.activation if se is not None else None,
        early_gate=se is not None and se.place == "before_norm",
        residual=residual,
    )


def excited(
    p: Tree, x: Array, scale: Array | None, shift: Array | None, gate_act: str, act: str | None, fused: Fused
) -> Array:
    """Squeeze-excite, and what is fused with it. Shapes: (N, H, W, C) -> (N, H, W, C)."""
    se = p["se"]
    return fused.squeeze_excite(x, se["reduce"], se["expand"], scale, shift, gate_act=gate_act, act=act)


def convnext(p: Tree, x: Array, block: Block, spec: ConvNeXt, fused: Fused) -> Array:
    """ConvNeXt. Shapes: (N, H, W, C) -> (N, H', W', D)."""
    residual, y, stride = shortcut(p, x, block, fused), x, block.stride
    if spec.main_pool is not None and block.stride == 2:
        y, stride = pooled(y, spec.main_pool, fused), 1
    times = spec.width // block.input_width
    if times > 1:
        y = library_of(y).namespace().repeat(y, times, axis=-1)  # (N, H, W, C) -> (N, H, W, D)
    y = fused.depthwise(y, *layer(p["depthwise"]), stride=stride, padding=spec.padding, act=None)
    return feed_forward(p["ffn"], y, spec.activation, plain(p, "norm", spec.norm), residual, fused)


def feed_forward(p: Tree, x: Array, act: str, epsilon: float | None, residual: Array, fused: Fused) -> Array:
    """residual + shrink(act(expand(LN(x)))), LN as in `Fused`. Shapes: (N, H, W, C) -> (N, H, W, D)."""
    if fused.feed_forward is not None:
        return fused.feed_forward(p, x, act=act, epsilon=epsilon, residual=residual)
    x = x if epsilon is None else fused.layer_norm(x, None, None, epsilon=epsilon)
    y = fused.dense(x, *layer(p["expand"]), act=act)  # C -> expanded
    return fused.dense(y, *layer(p["shrink"]), residual=residual)  # expanded -> D


def transformer(p: Tree, x: Array, block: Block, spec: Transformer, fused: Fused) -> Array:
    """Transformer block. Shapes: (N, H, W, C) -> (N, H', W', D)."""
    strided, late = block.stride == 2, spec.norm_pool_order == "norm_then_pool"
    y = pooled(x, spec.main_pool, fused) if strided and not late else x
    epsilon = plain(p, "attn_norm", spec.attention_norm)
    normalised = x
    if epsilon is None or (strided and late):
        y = normalised = norm(p, "attn_norm", y, spec.attention_norm, fused)
        epsilon = None
    if strided and late:
        y = pooled(normalised, spec.main_pool, fused)  # (N, H, W, C) -> (N, H', W', C)
    residual = shortcut(p, x if spec.residual_from == "input" else normalised, block, fused)  # (N, H', W', D)
    x = self_attention(p["attn"], y, block, spec, epsilon, residual, fused)
    y, epsilon = x, plain(p, "ffn_norm", spec.ffn_norm)
    if epsilon is None:
        y = norm(p, "ffn_norm", x, spec.ffn_norm, fused)
    return feed_forward(p["ffn"], y, spec.ffn.activation, epsilon, x if spec.residual_from == "input" else y, fused)


def plain(p: Tree, name: str, spec: Norm) -> float | None:
    """The epsilon of a LayerNorm whose affine part is folded away; None for anything else."""
    return spec.epsilon if spec.kind == "layer" and name not in p else None


def self_attention(
    p: Tree, x: Array, block: Block, run: Transformer, epsilon: float | None, residual: Array, fused: Fused
) -> Array:
    """residual + o(attention(LN(x))), LN as in `Fused`. Shapes: (N, H, W, C) -> (N, H, W, D)."""
    spec, (height, width) = run.attention, x.shape[1:3]
    heads = spec.head_count(block.input_width, run.width)
    add = spec.relative_bias.add if spec.relative_bias is not None else "pre_softmax"
    if fused.self_attention is not None and spec.form == "global":
        return fused.self_attention(p, x, heads=heads, add=add, epsilon=epsilon, residual=residual)
    x = x if epsilon is None else fused.layer_norm(x, None, None, epsilon=epsilon)
    if spec.window is not None:
        x = split_windows(x, spec.window)  # (N, H, W, C) -> (N * windows, h, w, C)
    qkv = fused.dense(x, *layer(p["qkv"]))  # C -> 3 * heads * D
    if spec.form == "linear":
        y = fused.linear_attention(qkv, heads=heads)
    else:
        y = fused.attention(qkv, p.get("bias"), heads=heads, add=add)  # (N, H, W, heads * D)
    if spec.window is None:
        return fused.dense(y, *layer(p["o"]), residual=residual)  # heads * D -> D
    return merge_windows(fused.dense(y, *layer(p["o"])), height, width) + residual


def head(p: Tree, x: Array, spec: Head, fused: Fused) -> Array:
    """Pool and classifier. Shapes: (N, H, W, C) -> (N, classes)."""
    if spec.norm is not None and spec.order == "norm_then_pool":
        x = norm(p, "norm", x, spec.norm, fused)
    x = fused.global_avg_pool(x)  # (N, H, W, C) -> (N, C)
    if spec.norm is not None and spec.order == "pool_then_norm":
        x = norm(p, "norm", x, spec.norm, fused)
    if spec.hidden is not None:
        x = fused.dense(x, *layer(p["hidden"]), act=spec.hidden.activation)  # (N, C) -> (N, hidden)
    return fused.dense(x, *layer(p["classifier"]))  # (N, hidden) -> (N, classes)
