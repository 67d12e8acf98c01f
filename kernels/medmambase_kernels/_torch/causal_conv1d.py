"""The causal convolution and SiLU in plain PyTorch operations, on any device.

    v = bias + weight * x    s = sigmoid(v)    y = v s    dy / dv = s (1 + v (1 - s))

Kept for backward where there is SiLU: dy / dv, (b, d, l) in the working precision.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def kept_shape(x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor | None) -> tuple[int, ...]:
    """Shape of dy / dv, for x (b, d, l)."""
    return tuple(x.shape)


def _framed(x: Tensor, weight: Tensor, initial_states: Tensor | None) -> Tensor:
    """What stands before x, and x: (b, d, w - 1 + l) in the working precision."""
    x, before = x.to(weight.dtype), weight.shape[1] - 1
    return F.pad(x, (before, 0)) if initial_states is None else torch.cat([initial_states, x], 2)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor | None, silu: bool, save: bool
) -> tuple[Tensor, Tensor]:
    """y (b, d, l) in x's dtype and, if ``save``, dy / dv. Arguments as in reference.py."""
    if not x.numel():
        return torch.empty_like(x), weight.new_empty(x.shape if save else 0)
    v = F.conv1d(_framed(x, weight, initial_states), weight[:, None], bias, groups=len(weight))
    if not silu:
        return v.to(x.dtype), torch.ones_like(v) if save else v.new_empty(0)
    sigmoid = torch.sigmoid(v)
    y = v.mul_(sigmoid)  # not silu, whose bits may be others
    if not save:
        return y.to(x.dtype), v.new_empty(0)
    return y.to(x.dtype), torch.lerp(sigmoid, sigmoid.new_ones(()), y, out=sigmoid)  # s + v s (1 - s)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_states: Tensor | None,
    silu: bool,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, in its dtype, weight, bias and initial_states, None where that is None."""
    before = weight.shape[1] - 1
    if not x.numel():
        dinitial = None if initial_states is None else torch.zeros_like(initial_states)
        return torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(bias), dinitial
    dframed, dweight, dbias = torch.ops.aten.convolution_backward(
        dy * kept,
        _framed(x, weight, initial_states),
        weight[:, None],
        [len(bias)],
        [1],
        [0],
        [1],
        False,
        [0],
        len(bias),
        [True, True, True],
    )
    dinitial = (
        None if initial_states is None else dframed[..., :before].clone()
    )  # results of one operator may not share memory
    return dframed[..., before:].to(x.dtype), dweight[:, 0], dbias, dinitial
