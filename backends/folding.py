"""Folding: from the parameters of a spec to those of an equal network with fewer steps.

Three identities, each exact in real numbers, with s and t a scale and a shift for each channel:

    after   (x w + b) s + t  =  x (w s) + (b s + t)        a norm behind a linear layer
    before  (x s + t) w + b  =  x (s w) + (t w + b)        a norm in front of one
    scale   (c q) . k        =  q' . k, q' = x (c w) + c b  the scale of the attention logits

"before" holds across whatever commutes with an affine map of the channels: a stride, and a mean whose weights add up to 1.
It does not across zero padding (the border would get the shift too), a max pool (a negative scale turns it into a minimum)
or an activation; there the norm stays, as `{"scale", "shift"}` where it is a BatchNorm.

The prepared tree has the names of the parameter tree, but that q, k and v are one layer "qkv", "relative_bias" is the
gathered "bias", and what is folded is absent:

    s0      conv1 {w, b}, norm1 (a LayerNorm only), conv2, ...
    MBConv  shortcut, pre_norm, expand, expand_norm, depthwise, depthwise_norm, se {reduce, expand}, shrink, shrink_norm
    ConvNeXt  shortcut, depthwise, norm, ffn {expand, shrink}
    Transformer  shortcut, attn_norm, attn {qkv, bias, o}, ffn_norm, ffn {expand, shrink}
    head    norm, hidden, classifier
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from coatref.backends.fused import Fused, fused_for
from coatref.blocks.self_attention import gathered_bias, scale_factor
from coatref.params import Params, first_array
from coatref.prepared import Prepared
from coatref.primitives import DEFINITION
from coatref.registry import Array, Library, library_of, sealed
from coatref.specification.grids import grids
from coatref.specification.parts import Attention, ConvNeXt, ConvStem, MBConv, Norm, Pool, Transformer
from coatref.specification.spec import Block, Spec
from coatref.tap import no_tap
from coatref.tree import Branch, map_named

Tree = Mapping[str, Any]
Folded = dict[str, Any]
Affine = tuple[Array, Array]  # scale and shift, (C,) each


def fold(params: Params) -> Prepared:
    """See `coatref.prepare`.

    The folding is computed in the widest type that the library has at hand and rounded once, to the type of the parameters.
    """
    spec, first = params.spec, first_array(params)
    library = library_of(first)
    xp, kind, wide = library.namespace(), first.dtype, widest(library, first)
    fused = fused_for(first)

    def widened(p: Tree) -> Any:
        return map_named(lambda name, array: xp.astype(array, wide, copy=False), p)

    def finished(folded: Folded) -> Any:
        return laid_out(map_named(lambda name, array: xp.astype(array, kind), folded), fused)

    grid = grids(spec, *spec.image_size)
    tree: dict[str, Any] = {"s0": finished(stem(widened(params["s0"]), spec))}
    for block in spec.blocks():  # one at a time, so that little of the network is there in the wide type
        stage, _, index = block.name.partition(".")
        folded = folded_block(widened(params[stage][int(index)]), block, grid[block.name])
        tree[stage] = (*tree.get(stage, ()), finished(folded))
    return Prepared(tree | {"head": finished(head(widened(params["head"]), spec))}, spec)


def widest(library: Library, like: Array) -> Any:
    """The type to fold in: float64 where the library has it on the device, else float32 or, if that is all, the array's."""
    xp = library.namespace()
    for name in ("float64", "float32"):
        if name in library.dtypes and library.refuse_dtype(name) is None and has(library, name, like):
            return getattr(xp, name)
    return like.dtype


def has(library: Library, dtype: str, like: Array) -> bool:
    """Whether the device of an array has a type; some accelerators, and devices of array-api-strict, lack float64."""
    xp = library.namespace()
    try:
        xp.zeros((1,), dtype=getattr(xp, dtype), device=library.device(like))
    except Exception:  # noqa: BLE001 - each library has its own error for it
        return False
    return True


def laid_out(node: Any, fused: Fused) -> Any:
    """The tree with every layer as the library likes it; a layer is what holds a "w"."""
    if isinstance(node, Mapping) and "w" in node:
        return Branch({name: sealed(array) for name, array in fused.lay_out(node).items()})
    if isinstance(node, Mapping):
        return Branch({name: laid_out(child, fused) for name, child in node.items()})
    return sealed(node)


# --- the identities ---


def folded_after(layer: Tree, affine: Affine | None) -> Folded:
    """A linear layer followed by an affine map of its output channels, which are the last axis of w."""
    if affine is None:
        return dict(layer)
    scale, shift = affine
    return {"w": layer["w"] * scale, "b": layer["b"] * scale + shift if "b" in layer else shift}


def folded_before(affine: Affine | None, layer: Tree) -> Folded:
    """A dense layer (C, D) that comes after an affine map of its input channels."""
    if affine is None:
        return dict(layer)
    (scale, shift), w = affine, layer["w"]
    shifted = (shift[None, :] @ w)[0, :]  # (1, C) @ (C, D) -> (D,)
    return {"w": scale[:, None] * w, "b": layer["b"] + shifted if "b" in layer else shifted}


def batch_affine(p: Tree, spec: Norm) -> Affine:
    """BatchNorm with running statistics as one scale and shift."""
    xp = library_of(p["var"]).namespace()
    scale = p["gamma"] / xp.sqrt(p["var"] + spec.epsilon)
    return scale, p["beta"] - p["mean"] * scale


def affine_of(p: Tree, spec: Norm) -> Affine:
    """The affine part of a norm: all of a BatchNorm, and what follows the standardisation of a LayerNorm."""
    return batch_affine(p, spec) if spec.kind == "batch" else (p["gamma"], p["beta"])


def kept(p: Tree, spec: Norm) -> Folded:
    """A norm that stays: {"scale", "shift"} of a BatchNorm, {"gamma", "beta"} of a LayerNorm."""
    if spec.kind == "layer":
        return dict(p)
    scale, shift = batch_affine(p, spec)
    return {"scale": scale, "shift": shift}


def gamma_affine(p: Tree, name: str, width: int) -> Affine | None:
    """A layer scale as an affine map; None where there is none."""
    if name not in p:
        return None
    xp = library_of(p[name]["gamma"]).namespace()
    gamma = xp.broadcast_to(p[name]["gamma"], (width,))
    return gamma, xp.zeros_like(gamma)


def means_keep_affine_maps(pool: Pool) -> bool:
    """Whether an affine map of the channels commutes with a pool: its weights must add up to 1 everywhere."""
    return pool.kind == "avg" and (pool.padded_zeros == "excluded" or pool.padding == "valid")


# --- the parts of the network ---


def stem(p: Tree, spec: Spec) -> Folded:
    """S0: every BatchNorm goes into the convolution before it."""
    if not isinstance(spec.stem, ConvStem):
        return dict(p)
    folded: Folded = {}
    for number in range(1, len(spec.stem.widths) + 1):
        conv, norm = f"conv{number}", f"norm{number}"
        folded |= linear_then_norm(p, conv, norm, spec.stem.norm)
    return folded


def linear_then_norm(p: Tree, linear: str, norm: str, spec: Norm | None) -> Folded:
    """A linear layer with the BatchNorm behind it folded in; a LayerNorm stays."""
    if spec is None or norm not in p:
        return {linear: dict(p[linear])}
    if spec.kind == "layer":
        return {linear: dict(p[linear]), norm: dict(p[norm])}
    return {linear: folded_after(p[linear], batch_affine(p[norm], spec))}


def folded_block(p: Tree, block: Block, grid: tuple[int, int]) -> Folded:
    """One block whose output has `grid`."""
    folded = {"shortcut": dict(p["shortcut"])} if block.projected else {}
    if isinstance(block.run, MBConv):
        return folded | mbconv(p, block, block.run)
    if isinstance(block.run, ConvNeXt):
        return folded | convnext(p, block.run)
    return folded | transformer(p, block, block.run, grid)


def mbconv(p: Tree, block: Block, spec: MBConv) -> Folded:
    """MBConv. With squeeze-excite between the depthwise convolution and its norm, the norm stays and is fused with it."""
    folded: Folded = {}
    pooled = spec.main_pool if block.stride == 2 else None
    free = spec.pre_norm_activation is None and spec.residual_from == "input"
    if free and (pooled is None or means_keep_affine_maps(pooled)):
        expand = folded_before(affine_of(p["pre_norm"], spec.pre_norm), p["expand"])
    else:
        folded["pre_norm"], expand = kept(p["pre_norm"], spec.pre_norm), dict(p["expand"])
    folded |= linear_then_norm(
        {"expand": expand, "expand_norm": p["expand_norm"]}, "expand", "expand_norm", spec.inner_norm
    )
    se = spec.squeeze_excite
    if se is not None and se.place == "before_norm":
        folded["depthwise"] = dict(p["depthwise"])
        folded["depthwise_norm"] = kept(p["depthwise_norm"], spec.inner_norm)
    else:
        folded |= linear_then_norm(p, "depthwise", "depthwise_norm", spec.inner_norm)
    if se is not None:
        folded["se"] = p["se"]
    gamma = gamma_affine(p, "layer_scale", spec.width)
    shrunk = linear_then_norm(p, "shrink", "shrink_norm", spec.shrink_norm)
    if "shrink_norm" in shrunk and gamma is not None:
        norm = shrunk["shrink_norm"]
        shrunk["shrink_norm"] = {"gamma": norm["gamma"] * gamma[0], "beta": norm["beta"] * gamma[0]}
    else:
        shrunk["shrink"] = folded_after(shrunk["shrink"], gamma)
    return folded | shrunk


def convnext(p: Tree, spec: ConvNeXt) -> Folded:
    """ConvNeXt: its norm stands between two linear layers; a BatchNorm goes into the first, a LayerNorm's affine part on."""
    folded: Folded = {"depthwise": dict(p["depthwise"])}
    expand = dict(p["ffn"]["expand"])
    if spec.norm.kind == "batch":
        folded["depthwise"] = folded_after(p["depthwise"], batch_affine(p["norm"], spec.norm))
    else:
        expand = folded_before(affine_of(p["norm"], spec.norm), expand)
    shrink = folded_after(p["ffn"]["shrink"], gamma_affine(p, "layer_scale", spec.width))
    return folded | {"ffn": {"expand": expand, "shrink": shrink}}


def transformer(p: Tree, block: Block, spec: Transformer, grid: tuple[int, int]) -> Folded:
    """Transformer block: norms into the layers behind them, the logits' scale into q, layer scales into o and shrink."""
    folded: Folded = {}
    qkv = {name: dict(p["attn"][name]) for name in ("q", "k", "v")}
    pooled = spec.main_pool if block.stride == 2 and spec.norm_pool_order == "norm_then_pool" else None
    free = spec.residual_from == "input"
    if free and (pooled is None or means_keep_affine_maps(pooled)):
        affine = affine_of(p["attn_norm"], spec.attention_norm)
        qkv = {name: folded_before(affine, layer) for name, layer in qkv.items()}
    else:
        folded["attn_norm"] = kept(p["attn_norm"], spec.attention_norm)
    folded["attn"] = attention(p["attn"], qkv, spec.attention, spec.attention.window or grid)
    gamma = gamma_affine(p, "attn_scale", spec.width)
    folded["attn"]["o"] = folded_after(p["attn"]["o"], gamma)
    expand = dict(p["ffn"]["expand"])
    if free:
        expand = folded_before(affine_of(p["ffn_norm"], spec.ffn_norm), expand)
    else:
        folded["ffn_norm"] = kept(p["ffn_norm"], spec.ffn_norm)
    shrink = folded_after(p["ffn"]["shrink"], gamma_affine(p, "ffn_scale", spec.width))
    return folded | {"ffn": {"expand": expand, "shrink": shrink}}


def attention(p: Tree, qkv: Folded, spec: Attention, grid: tuple[int, int]) -> Folded:
    """One layer (C, 3*heads*D) with q first, then k, then v, the scale of the logits in q; and the gathered bias."""
    xp = library_of(p["q"]["w"]).namespace()
    heads = p["q"]["w"].shape[1] // spec.head_size
    scale = scale_factor(spec, heads) if spec.form != "linear" else 1.0
    if not math.isclose(scale, 1.0):
        qkv["q"] = {name: array * scale for name, array in qkv["q"].items()}
    layers = [qkv[name] for name in ("q", "k", "v")]
    folded: Folded = {"qkv": {"w": xp.concat([layer["w"] for layer in layers], axis=1)}}
    if "b" in layers[0]:
        folded["qkv"]["b"] = xp.concat([layer["b"] for layer in layers])
    bias = gathered_bias(p, spec.relative_bias, grid, DEFINITION, no_tap)
    if bias is not None:
        early = spec.relative_bias is not None and spec.relative_bias.add == "pre_softmax"
        folded["bias"] = bias * scale if early and spec.scale_site == "logits_and_bias" else bias
    return folded


def head(p: Tree, spec: Spec) -> Folded:
    """The norm, before or after the mean over positions, goes into the dense layer that follows."""
    folded = {name: dict(p[name]) for name in ("hidden", "classifier") if name in p}
    if spec.head.norm is not None:
        first = "hidden" if "hidden" in folded else "classifier"
        folded[first] = folded_before(affine_of(p["norm"], spec.head.norm), folded[first])
    return folded
