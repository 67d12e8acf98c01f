"""The depthwise convolution and SiLU in plain PyTorch operations, on any device.

    v = bias + weight * x    s = sigmoid(v)    y = v s    dy / dv = s (1 + v (1 - s))

Kept for backward: dy / dv, (b, h, w, d) in the working precision. On a CPU an exponential costs as
much as six products, so it is made once.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def kept_shape(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    """Shape of dy / dv, for x (b, h, w, d)."""
    return tuple(x.shape)


def _planes(t: Tensor) -> Tensor:
    """(b, h, w, d) as torch's convolutions want it, (b, d, h, w): a view, whose memory they take as
    channels last."""
    return t.permute(0, 3, 1, 2)


def forward(x: Tensor, weight: Tensor, bias: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """y (b, h, w, d) in x's dtype and, if ``save``, dy / dv."""
    v = F.conv2d(_planes(x.to(weight.dtype)), weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)
    sigmoid = torch.sigmoid(v)
    y = v.mul_(sigmoid)  # not silu, whose bits may be others
    if not save:
        return y.to(x.dtype), v.new_empty(0)
    return y.to(x.dtype), torch.lerp(sigmoid, sigmoid.new_ones(()), y, out=sigmoid)  # s + v s (1 - s)


def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, in its dtype, of weight and of bias."""
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        _planes(dy * kept),
        _planes(x.to(weight.dtype)),
        weight,
        [len(bias)],
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        len(bias),
        [True, True, True],
    )
    return dx.permute(0, 2, 3, 1).to(x.dtype), dweight, dbias
