"""The networks of chinhsuanwu/coatnet-pytorch a second time, on torch's operators, with the names of its state dict.

Written from its conventions, and told only sizes: what a spec says of conventions is not looked at, so this is a stand-in
for that code, as a user of it would give it to the judge: `torch:chinhsuanwu_model:factory`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import coatref

Tensor = torch.Tensor
Grid = tuple[int, int]  # height and width that a block works on
Parts = dict[str, nn.Module]

SPEC = "chinhsuanwu/coatnet_0"  # where none is asked for

HEADS, HEAD_SIZE = 8, 32


def factory(spec: coatref.Spec | None = None) -> nn.Module:
    """The network of the sizes of a spec; None: its coatnet_0."""
    spec = coatref.spec(SPEC) if spec is None else spec
    runs: list[Any] = [run for (run,) in spec.stages]
    stem: Any = spec.stem
    return Network(
        spec.image_size,
        spec.channels,
        ("stem", *(run.kind for run in runs)),
        (len(stem.widths), *(run.depth for run in runs)),
        (stem.width, *(run.width for run in runs)),
        spec.head.classes,
        spec.head.bias,
    )


class Network(nn.Module):
    """The whole: s0, then stages of convolution or attention (its models have two and two), and a classifier."""

    def __init__(
        self,
        image_size: tuple[int, int],
        channels: int,
        kinds: Sequence[str],
        depths: Sequence[int],
        widths: Sequence[int],
        classes: int,
        bias: bool,
    ) -> None:
        super().__init__()
        grid, parts = image_size, Parts()
        for stage, (kind, depth, width) in enumerate(zip(kinds, depths, widths, strict=True)):
            grid = (-(-grid[0] // 2), -(-grid[1] // 2))
            for block in range(depth):
                found = PARTS[kind](width if block else channels, width, block == 0, grid)
                parts |= {f"s{stage}.{block}.{name}": each for name, each in found.items()}
            channels = width
        self.kinds, self.depths = tuple(kinds), tuple(depths)
        for name, each in nested(parts).items():
            self.add_module(name, each)
        self.fc = nn.Linear(channels, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, classes)."""
        y: Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return y

    def features(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> what the last stage gives."""
        for stage, (kind, depth) in enumerate(zip(self.kinds, self.depths, strict=True)):
            for block in range(depth):
                x = COMPUTE[kind](self.get_submodule(f"s{stage}.{block}"), x)
        return x


class Bias(nn.Module):
    """A relative-bias table, a row for each offset of a query from a key and a column for each head."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.relative_bias_table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1), HEADS))
        rows, columns = (torch.arange(side) for side in (height, width))
        down = rows[:, None, None, None] - rows[None, None, :, None] + height - 1  # query minus key
        right = columns[None, :, None, None] - columns[None, None, None, :] + width - 1
        self.register_buffer("relative_index", (down * (2 * width - 1) + right).reshape(-1, 1))

    def forward(self) -> Tensor:
        """(heads, H*W, H*W)."""
        index: Any = self.relative_index
        positions = round(index.shape[0] ** 0.5)
        return self.relative_bias_table[index[:, 0]].T.reshape(HEADS, positions, positions)


def nested(parts: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Modules by dotted name as modules in modules."""
    root = nn.ModuleDict()
    for name, part in parts.items():
        *path, last = name.split(".")
        place: Any = root
        for step in path:
            if step not in place._modules:
                place.add_module(step, nn.ModuleDict())
            place = place._modules[step]
        place.add_module(last, part)
    return root


def stem_parts(before: int, width: int, first: bool, grid: Grid) -> Parts:
    """The layers of one convolution of the stem."""
    return {"0": nn.Conv2d(before, width, 3, 2 if first else 1, 1, bias=False), "1": nn.BatchNorm2d(width)}


def convolution_parts(before: int, width: int, first: bool, grid: Grid) -> Parts:
    """The layers of an MBConv block."""
    inner, squeezed = 4 * before, before // 4
    parts: Parts = {
        "conv.norm": nn.BatchNorm2d(before),
        "conv.fn.0": nn.Conv2d(before, inner, 1, 2 if first else 1, bias=False),
        "conv.fn.1": nn.BatchNorm2d(inner),
        "conv.fn.3": nn.Conv2d(inner, inner, 3, 1, 1, groups=inner, bias=False),
        "conv.fn.4": nn.BatchNorm2d(inner),
        "conv.fn.6.fc.0": nn.Linear(inner, squeezed, bias=False),
        "conv.fn.6.fc.2": nn.Linear(squeezed, inner, bias=False),
        "conv.fn.7": nn.Conv2d(inner, width, 1, bias=False),
        "conv.fn.8": nn.BatchNorm2d(width),
    }
    return parts | ({"proj": nn.Conv2d(before, width, 1, bias=False)} if first else {})


def attention_parts(before: int, width: int, first: bool, grid: Grid) -> Parts:
    """The layers of a Transformer block."""
    parts: Parts = {
        "attn.1.norm": nn.LayerNorm(before),
        "attn.1.fn": Bias(*grid),
        "attn.1.fn.to_qkv": nn.Linear(before, 3 * HEADS * HEAD_SIZE, bias=False),
        "attn.1.fn.to_out.0": nn.Linear(HEADS * HEAD_SIZE, width),
        "ff.1.norm": nn.LayerNorm(width),
        "ff.1.fn.net.0": nn.Linear(width, 4 * before),
        "ff.1.fn.net.3": nn.Linear(4 * before, width),
    }
    return parts | ({"proj": nn.Conv2d(before, width, 1, bias=False)} if first else {})


def put(part: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a layer of a part makes of x."""
    y: Tensor = part.get_submodule(name)(x)
    return y


def stem(part: nn.Module, x: Tensor) -> Tensor:
    """One convolution of the stem."""
    return F.gelu(put(part, "1", put(part, "0", x)))


def pooled(x: Tensor) -> Tensor:
    """Largest value of each 3x3 window, every second one."""
    return F.max_pool2d(x, 3, 2, 1)


def residual(part: nn.Module, x: Tensor) -> Tensor:
    """The shortcut: pooled and projected in the first block of a stage."""
    return put(part, "proj", pooled(x)) if "proj" in part._modules else x


def convolution(part: nn.Module, x: Tensor) -> Tensor:
    """An MBConv block."""
    y = put(part, "conv.fn.0", put(part, "conv.norm", x))
    y = F.gelu(put(part, "conv.fn.1", y))
    y = F.gelu(put(part, "conv.fn.4", put(part, "conv.fn.3", y)))
    gate = put(part, "conv.fn.6.fc.2", F.gelu(put(part, "conv.fn.6.fc.0", y.mean(dim=(2, 3)))))
    y = y * torch.sigmoid(gate)[:, :, None, None]
    return residual(part, x) + put(part, "conv.fn.8", put(part, "conv.fn.7", y))


def attention(part: nn.Module, x: Tensor) -> Tensor:
    """A Transformer block."""
    y = pooled(x) if "proj" in part._modules else x
    n, _, height, width = y.shape
    y = put(part, "attn.1.norm", y.flatten(2).transpose(1, 2))  # (N, H*W, C)
    q, k, v = put(part, "attn.1.fn.to_qkv", y).reshape(n, -1, 3, HEADS, HEAD_SIZE).permute(2, 0, 3, 1, 4)
    bias: Tensor = part.get_submodule("attn.1.fn")()
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])  # (N, heads, H*W, 32)
    y = put(part, "attn.1.fn.to_out.0", y.transpose(1, 2).flatten(2))
    x = residual(part, x) + y.transpose(1, 2).reshape(n, -1, height, width)
    y = put(part, "ff.1.norm", x.flatten(2).transpose(1, 2))
    y = put(part, "ff.1.fn.net.3", F.gelu(put(part, "ff.1.fn.net.0", y)))
    return x + y.transpose(1, 2).reshape(x.shape)


PARTS = {"stem": stem_parts, "mbconv": convolution_parts, "transformer": attention_parts}
COMPUTE = {"stem": stem, "mbconv": convolution, "transformer": attention}


def last_pool(x: Tensor, image_height: int) -> Tensor:
    """What its code does between the last stage and the classifier, for images of that height."""
    return F.avg_pool2d(x, image_height // 32, 1).reshape(-1, x.shape[1])
