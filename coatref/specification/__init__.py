"""The spec of a network: parts, whole, named ones, grids and counts."""

from coatref.specification.catalogue import resolve, spec, specs
from coatref.specification.parts import (
    Attention,
    ConvNeXt,
    ConvStem,
    FeedForward,
    Head,
    Hidden,
    LayerScale,
    MBConv,
    Norm,
    PatchStem,
    Pool,
    RelativeBias,
    SqueezeExcite,
    Transformer,
)
from coatref.specification.preprocessing import Preprocessing
from coatref.specification.spec import Block, Spec

__all__ = [
    "Attention",
    "Block",
    "ConvNeXt",
    "ConvStem",
    "FeedForward",
    "Head",
    "Hidden",
    "LayerScale",
    "MBConv",
    "Norm",
    "PatchStem",
    "Pool",
    "Preprocessing",
    "RelativeBias",
    "Spec",
    "SqueezeExcite",
    "Transformer",
    "resolve",
    "spec",
    "specs",
]
