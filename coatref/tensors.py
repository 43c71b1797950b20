"""What the parameter tree of a spec looks like: names, shapes and roles, without any array.

The functions that say it stand beside the functions that use it, in `coatref.blocks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from coatref.specification.parts import LayerScale, Norm

Role = Literal["kernel", "bias", "gamma", "beta", "mean", "var", "table", "layer_scale"]


class Tensor(NamedTuple):
    """Shape and role of one parameter; `initial` is the value of a layer scale before training."""

    shape: tuple[int, ...]
    role: Role
    initial: float = 0.0

    @property
    def trained(self) -> bool:
        """Whether gradient descent sets it; the running statistics of BatchNorm are not."""
        return self.role not in ("mean", "var")


Tree = Mapping[str, Any]  # of Tensors, or of arrays


def layer(shape: tuple[int, ...], bias: bool) -> dict[str, Tensor]:
    """A convolution or dense layer; the output width is the last axis of its kernel."""
    return {"w": Tensor(shape, "kernel")} | ({"b": Tensor(shape[-1:], "bias")} if bias else {})


def norm(spec: Norm, width: int) -> dict[str, Tensor]:
    """A normalisation of `width` channels."""
    trained = {"gamma": Tensor((width,), "gamma"), "beta": Tensor((width,), "beta")}
    if spec.kind == "layer":
        return trained
    return trained | {"mean": Tensor((width,), "mean"), "var": Tensor((width,), "var")}


def layer_scale(spec: LayerScale, width: int) -> dict[str, Tensor]:
    """A layer scale of `width` channels, or one number for the whole branch."""
    return {"gamma": Tensor((width,) if spec.per == "channel" else (1,), "layer_scale", spec.initial)}
