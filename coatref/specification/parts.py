"""The parts of a spec: every convention on which CoAtNets differ, as closed choices in the field's terms.

A default is the reading of the paper that `docs/reading.md` argues for, so a part written without arguments is the
paper's. Each comment gives the choices and, where they came from somewhere, who uses them.
"""

from __future__ import annotations

from typing import Literal

from coatref.errors import SpecError
from coatref.specification.fields import record

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "mish", "tanh"]
Padding = Literal["same", "symmetric"]  # TensorFlow's SAME (the extra row at the end) | (k-1)//2 on each side
Rounding = Literal["floor", "nearest", "make_divisible"]


def check_positive(what: str, value: float) -> None:
    """Refuse a factor that is not above 0."""
    if not value > 0:
        raise SpecError(f"{what} must be above 0, got {value!r}.")


@record
class Norm:
    """A normalisation over channels: BatchNorm with its running statistics, or LayerNorm at each position."""

    kind: Literal["batch", "layer"]
    epsilon: float  # added to the variance; the paper states none

    def check(self) -> None:
        """Refuse an epsilon that could divide by zero."""
        check_positive("Norm.epsilon", self.epsilon)


BATCH_NORM = Norm(kind="batch", epsilon=1e-3)  # google-research/maxvit
LAYER_NORM = Norm(kind="layer", epsilon=1e-5)  # google-research/maxvit


@record
class Pool:
    """A pooling of stride 2."""

    kind: Literal["max", "avg"] = "max"
    size: int = 2
    padding: Literal["same", "symmetric", "valid"] = "same"
    padded_zeros: Literal["excluded", "counted"] = "excluded"  # from the mean of an average pool


@record
class SqueezeExcite:
    """Channel attention: scale each channel by sigmoid(W2 act(W1 mean(x)))."""

    ratio: float = 0.25
    of: Literal["input", "output", "expanded"] = "output"  # hidden width = ratio x this width of the block
    rounding: Rounding = "floor"
    divisor: int = 8  # of make_divisible
    activation: Activation = "silu"
    bias: bool = True
    place: Literal["after_activation", "before_norm"] = "after_activation"  # of the depthwise convolution

    def check(self) -> None:
        """Refuse a hidden width of nothing."""
        check_positive("SqueezeExcite.ratio", self.ratio)


@record
class LayerScale:
    """A trained factor on a residual branch, `initial` at the start of training."""

    initial: float
    per: Literal["channel", "branch"] = "channel"


@record
class RelativeBias:
    """The static term w_{i-j} of Eq. (3), from a table (App. A.1) or from an MLP of log-spaced offsets (timm)."""

    kind: Literal["table", "log_mlp"] = "table"
    hidden: int | None = None  # width of the log_mlp's hidden layer
    sharing: Literal["per_head", "across_heads"] = "per_head"
    orientation: Literal["query_minus_key", "key_minus_query", "transposed"] = "query_minus_key"
    add: Literal["pre_softmax", "post_softmax"] = "pre_softmax"  # the two forms of Eq. (3)
    resize: Literal["half_pixel", "align_corners"] = "half_pixel"  # sampling grid of the bilinear table resize

    def check(self) -> None:
        """Refuse an MLP without a width and a table with one."""
        if (self.kind == "log_mlp") != (self.hidden is not None):
            raise SpecError("RelativeBias.hidden must be given with kind 'log_mlp', and only with it.")
        if self.kind == "log_mlp" and self.orientation == "transposed":
            raise SpecError("RelativeBias.orientation 'transposed' speaks of a table; a log_mlp has none.")


@record
class Attention:
    """Multi-head self-attention over a grid."""

    form: Literal["global", "windowed", "linear"] = "global"  # the paper's choice; (B) and (C) of its Sec. 2.1
    window: tuple[int, int] | None = None  # height and width of the windows of "windowed"
    heads_from: Literal["output", "input", "fixed"] = "output"  # heads = this width / head_size, or `heads`
    head_size: int = 32
    heads: int | None = None  # only with heads_from "fixed"
    scale: Literal["1/sqrt(d)", "1/sqrt(heads*d)", "1", "sqrt(d)"] = "1/sqrt(d)"  # d is head_size
    scale_site: Literal["query", "key", "query_and_key", "logits", "logits_and_bias"] = "query"
    relative_bias: RelativeBias | None = RelativeBias()
    qkv_bias: bool = True
    output_bias: bool = True
    fused_qkv: Literal["separate", "heads_first", "qkv_first"] = "separate"  # only how a checkpoint stores q, k, v

    def check(self) -> None:
        """Refuse windows without a size, fixed heads without a number, and biases that linear attention cannot hold."""
        if (self.form == "windowed") != (self.window is not None):
            raise SpecError("Attention.window must be given with form 'windowed', and only with it.")
        if (self.heads_from == "fixed") != (self.heads is not None):
            raise SpecError("Attention.heads must be given with heads_from 'fixed', and only with it.")
        if self.form == "linear" and self.relative_bias is not None:
            raise SpecError("Attention.relative_bias must be None with form 'linear', which never forms the logits.")
        if self.form == "linear" and self.scale != "1":
            raise SpecError("Attention.scale must be '1' with form 'linear', whose feature map is applied to q and k.")

    def head_count(self, input_width: int, output_width: int) -> int:
        """Number of heads in a block that goes from `input_width` to `output_width`."""
        if self.heads is not None:
            return self.heads
        width = output_width if self.heads_from == "output" else input_width
        if width % self.head_size:
            raise SpecError(
                f"Attention.head_size {self.head_size} does not divide the {self.heads_from} width {width}; "
                "choose widths that are multiples of it."
            )
        return width // self.head_size


@record
class FeedForward:
    """Two dense layers with an activation between them."""

    expansion: float = 4.0
    expansion_from: Literal["output", "input"] = "output"
    activation: Activation = "gelu_tanh"
    bias: bool = True

    def check(self) -> None:
        """Refuse a hidden width of nothing."""
        check_positive("FeedForward.expansion", self.expansion)


@record
class MBConv:
    """A run of `depth` inverted-bottleneck blocks of `width` channels; the first one has the stride.

    x <- Shortcut(x) + Shrink(SE(act(Norm(Depthwise(act(Norm(Expand(Norm(x)))))))), Eq. (5) of the paper.
    """

    kind: Literal["mbconv"] = "mbconv"
    depth: int
    width: int
    stride: Literal[1, 2] = 2
    kernel: int = 3
    padding: Padding = "same"
    expansion: float = 4.0
    expansion_from: Literal["output", "input"] = "output"
    expansion_rounding: Rounding = "nearest"
    expansion_divisor: int = 8  # of make_divisible
    stride_at: Literal["expand", "depthwise", "pool"] = "expand"  # Eq. (5) | Table 9 | a pool before the expansion
    main_pool: Pool | None = None  # of stride_at "pool"
    shortcut_pool: Pool = Pool()
    projection: Literal["when_width_changes", "always"] = "when_width_changes"  # of the down-sampling shortcut
    residual_from: Literal["input", "normalised"] = "input"  # what the shortcut of a block carries
    pre_norm: Norm = BATCH_NORM
    pre_norm_activation: Activation | None = None
    inner_norm: Norm = BATCH_NORM  # after expand and after depthwise
    activation: Activation = "gelu_tanh"
    squeeze_excite: SqueezeExcite | None = SqueezeExcite()
    shrink_norm: Norm | None = None  # after the last 1x1 convolution (chinhsuanwu)
    expand_bias: bool = False
    depthwise_bias: bool = False
    shrink_bias: bool = True
    projection_bias: bool = True
    layer_scale: LayerScale | None = None

    def check(self) -> None:
        """Refuse a pool that is never used, a missing one, and a hidden width of nothing."""
        check_main_pool(self)
        check_positive(f"{type(self).__name__}.expansion", self.expansion)


@record
class Transformer:
    """A run of `depth` Transformer blocks of `width` channels; the first one has the stride.

    x <- Shortcut(x) + Attention(Pool(Norm(x))), Eq. (4); then x <- x + FFN(Norm(x)).
    """

    kind: Literal["transformer"] = "transformer"
    depth: int
    width: int
    stride: Literal[1, 2] = 2
    main_pool: Pool = Pool()
    shortcut_pool: Pool = Pool()
    norm_pool_order: Literal["norm_then_pool", "pool_then_norm"] = "norm_then_pool"
    projection: Literal["when_width_changes", "always"] = "when_width_changes"  # of the down-sampling shortcut
    projection_bias: bool = True
    residual_from: Literal["input", "normalised"] = "input"  # what both shortcuts of a block carry
    attention_norm: Norm = LAYER_NORM
    attention: Attention = Attention()
    ffn_norm: Norm = LAYER_NORM
    ffn: FeedForward = FeedForward()
    layer_scale: LayerScale | None = None  # on both branches

    def check(self) -> None:
        """Refuse a shortcut that would pool what the main branch has pooled already."""
        if self.residual_from == "normalised" and self.norm_pool_order == "pool_then_norm" and self.stride == 2:
            raise SpecError(
                "Transformer.residual_from 'normalised' needs norm_pool_order 'norm_then_pool' in a run with a stride, "
                "else its shortcut would pool twice."
            )


@record
class ConvNeXt:
    """A run of `depth` ConvNeXt blocks of `width` channels, as in timm's coatnext; the first one has the stride.

    x <- Shortcut(x) + scale * FFN(Norm(Depthwise(x))).
    """

    kind: Literal["convnext"] = "convnext"
    depth: int
    width: int
    stride: Literal[1, 2] = 2
    kernel: int = 7
    padding: Padding = "symmetric"
    stride_at: Literal["depthwise", "pool"] = "depthwise"
    main_pool: Pool | None = None  # of stride_at "pool"
    shortcut_pool: Pool = Pool(kind="avg", padding="valid")
    projection: Literal["when_width_changes", "always"] = "when_width_changes"
    projection_bias: bool = True
    norm: Norm = Norm(kind="layer", epsilon=1e-6)
    expansion: float = 4.0
    activation: Activation = "gelu"
    bias: bool = True  # of the depthwise convolution and both dense layers
    layer_scale: LayerScale | None = None

    def check(self) -> None:
        """Refuse a pool that is never used, a missing one, and a hidden width of nothing."""
        check_main_pool(self)
        check_positive(f"{type(self).__name__}.expansion", self.expansion)


@record
class ConvStem:
    """S0: `len(widths)` convolutions, the first of stride 2, with norm and activation between them."""

    kind: Literal["conv"] = "conv"
    widths: tuple[int, ...]
    kernel: int = 3
    padding: Padding = "same"
    norm: Norm = BATCH_NORM
    activation: Activation = "gelu_tanh"
    after_last: Literal["nothing", "norm_and_activation"] = "nothing"
    bias: tuple[bool, ...] = (True, True)

    def check(self) -> None:
        """Refuse a stem without convolutions and biases that do not match them."""
        if not self.widths or len(self.bias) != len(self.widths):
            raise SpecError(
                f"ConvStem.bias must have one entry for each of the {len(self.widths)} convolutions (at least one), "
                f"got {len(self.bias)}."
            )

    @property
    def width(self) -> int:
        """Channels that the stem gives."""
        return self.widths[-1]


@record
class PatchStem:
    """The stem of ViT: non-overlapping patches, each mapped to `width` channels."""

    kind: Literal["patch"] = "patch"
    patch: int
    width: int
    bias: bool = True


@record
class Hidden:
    """The dense layer between the pooled features and the classifier; `width` None keeps the width."""

    width: int | None = None
    activation: Activation = "tanh"


@record
class Head:
    """Global average pool and classifier."""

    classes: int = 1000
    norm: Norm | None = LAYER_NORM
    order: Literal["pool_then_norm", "norm_then_pool"] = "pool_then_norm"
    hidden: Hidden | None = Hidden()
    bias: bool = True
    output: Literal["logits", "probabilities"] = "logits"


Run = MBConv | Transformer | ConvNeXt
Stem = ConvStem | PatchStem


def check_main_pool(run: MBConv | ConvNeXt) -> None:
    """Refuse a run whose `main_pool` and `stride_at` disagree."""
    if (run.stride_at == "pool") != (run.main_pool is not None):
        raise SpecError(f"{type(run).__name__}.main_pool must be given with stride_at 'pool', and only with it.")


def rounded(width: float, rounding: Rounding, divisor: int) -> int:
    """A width made whole, at least 1: down, to the nearest, or by `make_divisible`.

    make_divisible is MobileNet's rule, as in timm and keras_cv_attention_models: the nearest multiple of `divisor`, at
    least `divisor`, and one step up where that would lose more than a tenth.
    """
    if rounding == "floor":
        return max(1, int(width))
    if rounding == "nearest":
        return max(1, int(width + 0.5))
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * width else nearest
