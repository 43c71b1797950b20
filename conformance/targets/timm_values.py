"""Which part of a timm model holds which value of a trace, as tables.

timm's norms with an activation in them (its BatchNormAct2d) give the value behind both, so the one between them is not
seen; attention is fused from q, k, v to the heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from coatref.conformance.targets.modules import Hook, is_vector
from coatref.specification.parts import ConvNeXt, MBConv, Transformer
from coatref.specification.spec import Block, Spec


class Row(NamedTuple):
    """A value, the part of the model that has it, and in which blocks it is."""

    value: str
    module: str
    when: Callable[[Block], bool] = lambda block: True
    at: Literal["output", "input"] = "output"
    part: int | None = None


def strided(block: Block) -> bool:
    """Whether the block halves its grid."""
    return block.stride == 2


def pooled(block: Block) -> bool:
    """Whether a pool stands in the main branch of a convolution block."""
    return strided(block) and isinstance(block.run, (MBConv, ConvNeXt)) and block.run.main_pool is not None


def activated(block: Block) -> bool:
    """Whether an activation follows the pre-norm of an MBConv block."""
    return isinstance(block.run, MBConv) and block.run.pre_norm_activation is not None


def early(block: Block) -> bool:
    """Whether squeeze-excite stands before the norm of an MBConv block."""
    se = block.run.squeeze_excite if isinstance(block.run, MBConv) else None
    return se is not None and se.place == "before_norm"


def late(block: Block) -> bool:
    """Whether squeeze-excite stands behind the activation of an MBConv block."""
    se = block.run.squeeze_excite if isinstance(block.run, MBConv) else None
    return se is not None and se.place == "after_activation"


def scaled(block: Block) -> bool:
    """Whether the block has layer scales."""
    return block.run.layer_scale is not None


STEM = (
    Row("s0.conv1", "stem.conv1"),
    Row("s0.act1", "stem.norm1"),
    Row("s0.conv2", "stem.conv2"),
    Row("s0", "stem"),
)

MBCONV = (
    Row("pre_act", "pre_norm", activated),
    Row("pre_norm", "pre_norm", lambda block: not activated(block)),
    Row("shortcut", "shortcut"),
    Row("pool", "down", pooled),
    Row("expand", "conv1_1x1"),
    Row("expand_act", "norm1"),
    Row("depthwise", "conv2_kxk"),
    Row("se", "se_early", early),
    Row("depthwise_act", "norm2"),
    Row("se", "se", late),
    Row("shrink", "conv3_1x1"),
)

CONVNEXT = (
    Row("shortcut", "shortcut"),
    Row("pool", "down", pooled),
    Row("depthwise", "conv_dw"),
    Row("norm", "norm"),
    Row("ffn.expand", "mlp.fc1"),
    Row("ffn.act", "mlp.act"),
    Row("ffn.shrink", "mlp.fc2"),
    Row("layer_scale", "ls", scaled),
)

TRANSFORMER = (
    Row("attn_norm", "norm1.norm", strided),
    Row("attn_norm", "norm1", lambda block: not strided(block)),
    Row("attn_pool", "norm1.down", strided),
    Row("shortcut", "shortcut"),
    Row("attn.q", "attn.qkv", part=0),
    Row("attn.k", "attn.qkv", part=1),
    Row("attn.v", "attn.qkv", part=2),
    Row("attn.heads", "attn.proj", at="input"),
    Row("attn.o", "attn.proj"),
    Row("attn_scale", "ls1", scaled),
    Row("attn_sum", "norm2", at="input"),
    Row("ffn_norm", "norm2"),
    Row("ffn.expand", "mlp.fc1"),
    Row("ffn.act", "mlp.act"),
    Row("ffn.shrink", "mlp.fc2"),
    Row("ffn_scale", "ls2", scaled),
)

HEADS = {  # by the order of norm and pool
    "norm_then_pool": (
        Row("head.norm", "norm"),
        Row("head.pool", "head.global_pool"),
    ),
    "pool_then_norm": (
        Row("head.pool", "head.global_pool"),
        Row("head.norm", "head.norm"),
        Row("head.hidden", "head.pre_logits.fc"),
        Row("head.hidden_act", "head.pre_logits.act"),
    ),
}


def hooks(spec: Spec) -> Iterator[Hook]:
    """Every value that a timm model of a spec shows, in order of computation."""
    for row in STEM:
        yield Hook(row.value, row.module)
    blocks = list(spec.blocks())
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        stage, _, index = block.name.partition(".")
        path = f"stages.{int(stage[1:]) - 1}"
        table = (
            MBCONV if isinstance(block.run, MBConv) else CONVNEXT if isinstance(block.run, ConvNeXt) else TRANSFORMER
        )
        size = block.run.attention.head_size if isinstance(block.run, Transformer) else 0
        for row in table:
            if row.when(block):
                module = f"{path}.blocks.{index}.{row.module}"
                yield Hook(f"{block.name}.{row.value}", module, row.at, part=row.part, head_size=size)
        yield Hook(block.name, f"{path}.blocks.{index}")
        if following is None or not following.name.startswith(f"{stage}."):
            yield Hook(stage, path)
    for row in HEADS[spec.head.order]:
        yield Hook(row.value, row.module, vector=is_vector(row.value, spec))
