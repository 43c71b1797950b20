"""Relative attention: Eq. (3) and App. A.1 of the paper, and the two options of Sec. 2.1 that it rejected."""

from coatref.attention.linear import linear_attention
from coatref.attention.relative_attention import relative_attention
from coatref.attention.relative_bias import (
    gather_bias,
    log_coordinates,
    log_mlp_bias_table,
    oriented,
    relative_offsets,
)
from coatref.attention.resize import resize_table
from coatref.attention.windows import merge_windows, split_windows

__all__ = [
    "gather_bias",
    "linear_attention",
    "log_coordinates",
    "log_mlp_bias_table",
    "merge_windows",
    "oriented",
    "relative_attention",
    "relative_offsets",
    "resize_table",
    "split_windows",
]
