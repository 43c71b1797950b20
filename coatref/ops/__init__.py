"""The elementary functions of the network, each a pure function of arrays.

Letters of the shape comments, here and everywhere in coatref:

    N  images of the batch            H W  height and width of a grid of positions
    C  channels that come in          D    channels that go out; in attention, channels of one head
    kh kw  kernel height and width    s    stride
    heads  attention heads            Q K  number of query and key positions (both H*W in self-attention)
    H' W'  the grid after a stride

Arrays are channels last: (N, H, W, C). Kernels are (kh, kw, C, D), depthwise ones (kh, kw, C), dense ones (C, D).
"""

from coatref.ops.activation import activation, gelu, gelu_tanh, mish, relu, sigmoid, silu, softmax
from coatref.ops.convolution import conv2d, depthwise_conv2d
from coatref.ops.dense import dense, matmul
from coatref.ops.normalisation import batch_norm, layer_norm
from coatref.ops.pooling import avg_pool, global_avg_pool, max_pool
from coatref.ops.squeeze_excite import squeeze_excite

__all__ = [
    "activation",
    "avg_pool",
    "batch_norm",
    "conv2d",
    "dense",
    "depthwise_conv2d",
    "gelu",
    "gelu_tanh",
    "global_avg_pool",
    "layer_norm",
    "matmul",
    "max_pool",
    "mish",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "squeeze_excite",
]
