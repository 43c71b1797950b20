"""Parameters that have the attention's scale and the BatchNorms folded into them, with the spec that they belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from coatref.blocks.self_attention import scale_factor
from coatref.params import Params, from_flat
from coatref.registry import Array
from coatref.specification.parts import ConvStem, MBConv, Run, Transformer
from coatref.specification.spec import Spec


def fold_attention(params: Params) -> Params:
    """Parameters of the same network whose attention scale is 1 and in the query's weights (and the bias's) already."""
    flat = params.flatten()
    changes: dict[str, Array] = {}
    for block in params.spec.blocks():
        if not isinstance(block.run, Transformer):
            continue
        attention, name = block.run.attention, f"{block.name}.attn"
        scale = scale_factor(attention, flat[f"{name}.q.w"].shape[1] // attention.head_size)
        scaled = [f"{name}.q.w", f"{name}.q.b"]
        bias = attention.relative_bias
        if bias is not None and attention.scale_site == "logits_and_bias" and bias.add == "pre_softmax":
            scaled += [f"{name}.relative_bias.{leaf}" for leaf in ("table", "out.w", "out.b")]
        changes |= {path: flat[path] * flat[path].dtype.type(scale) for path in scaled if path in flat}

    def unscaled(run: Run) -> Run:
        if not isinstance(run, Transformer):
            return run
        return dataclasses.replace(run, attention=dataclasses.replace(run.attention, scale="1"))

    return from_flat(with_runs(params.spec, unscaled), flat | changes)


def fold_norms(params: Params) -> Params:
    """Parameters of the same network whose BatchNorms after a convolution or dense layer do nothing.

    Their scale is in the layer's kernel and their shift in its bias. A norm that squeeze-excite keeps from the layer
    stays as it is.
    """
    spec, flat = params.spec, params.flatten()
    changes: dict[str, Array] = {}
    for layer, norm, epsilon in foldable(spec):
        gamma, beta, mean, var = (flat[f"{norm}.{leaf}"] for leaf in ("gamma", "beta", "mean", "var"))
        root = np.sqrt(var + epsilon)
        scale = gamma / root
        before = flat.get(f"{layer}.b", np.zeros_like(mean))
        changes[f"{layer}.w"] = flat[f"{layer}.w"] * scale  # the output channels are the kernel's last axis
        changes[f"{layer}.b"] = (before - mean) * scale + beta
        nothing = np.zeros_like(mean)
        changes |= {f"{norm}.gamma": root, f"{norm}.beta": nothing, f"{norm}.mean": nothing}  # root / root is 1
    return from_flat(with_biases(spec), flat | changes)


def foldable(spec: Spec) -> list[tuple[str, str, float]]:
    """Layer, norm and epsilon of every BatchNorm that directly follows a layer."""
    found = []
    stem = spec.stem
    if isinstance(stem, ConvStem) and stem.norm.kind == "batch":
        last = len(stem.widths) if stem.after_last == "norm_and_activation" else len(stem.widths) - 1
        found += [(f"s0.conv{number}", f"s0.norm{number}", stem.norm.epsilon) for number in range(1, last + 1)]
    for block in spec.blocks():
        run, name = block.run, block.name
        if not isinstance(run, MBConv):
            continue
        if run.inner_norm.kind == "batch":
            found.append((f"{name}.expand", f"{name}.expand_norm", run.inner_norm.epsilon))
            if run.squeeze_excite is None or run.squeeze_excite.place != "before_norm":
                found.append((f"{name}.depthwise", f"{name}.depthwise_norm", run.inner_norm.epsilon))
        if run.shrink_norm is not None and run.shrink_norm.kind == "batch":
            found.append((f"{name}.shrink", f"{name}.shrink_norm", run.shrink_norm.epsilon))
    return found


def with_biases(spec: Spec) -> Spec:
    """The spec with a bias in every layer that a norm can be folded into."""
    stem = spec.stem
    names = {layer for layer, _, _ in foldable(spec)}
    if isinstance(stem, ConvStem):
        numbered = enumerate(stem.bias, start=1)
        stem = dataclasses.replace(stem, bias=tuple(bias or f"s0.conv{number}" in names for number, bias in numbered))

    def biased(run: Run) -> Run:
        if not isinstance(run, MBConv):
            return run
        batch = run.inner_norm.kind == "batch"
        apart = run.squeeze_excite is not None and run.squeeze_excite.place == "before_norm"
        return dataclasses.replace(
            run,
            expand_bias=run.expand_bias or batch,
            depthwise_bias=run.depthwise_bias or (batch and not apart),
            shrink_bias=run.shrink_bias or (run.shrink_norm is not None and run.shrink_norm.kind == "batch"),
        )

    return with_runs(spec.replace(stem=stem), biased)


def with_runs(spec: Spec, change: Callable[[Run], Run]) -> Spec:
    """The spec with every run changed."""
    return spec.replace(stages=tuple(tuple(change(run) for run in stage) for stage in spec.stages))
