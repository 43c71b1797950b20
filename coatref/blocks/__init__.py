"""The blocks of the network (Sec. 2 and App. A.1 of the paper), each with its parameter tree beside it."""

from coatref.blocks.convnext import convnext, convnext_tensors
from coatref.blocks.head import head, head_tensors
from coatref.blocks.mbconv import mbconv, mbconv_tensors
from coatref.blocks.stem import stem, stem_tensors
from coatref.blocks.transformer import transformer, transformer_tensors

__all__ = [
    "convnext",
    "convnext_tensors",
    "head",
    "head_tensors",
    "mbconv",
    "mbconv_tensors",
    "stem",
    "stem_tensors",
    "transformer",
    "transformer_tensors",
]
