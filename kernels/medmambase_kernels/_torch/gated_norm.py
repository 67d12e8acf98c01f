"""LayerNorm times silu(z) in plain PyTorch operations, on any device: the portable engine.

    n = weight (y - mean) rstd + bias    s = sigmoid(z)    out = n z s    d out / dn = z s    d out
    / dz = n s (1 + z (1 - s))

Kept for backward, besides mean and rstd: the two derivatives, (2, b, h, w, d) in the working
precision. On a CPU an exponential costs as much as six products, so it is made once. Where nothing
was kept, backward runs forward once more.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def kept_shape(y: Tensor) -> tuple[int, ...]:
    """Shape of the two derivatives, for y (b, h, w, d)."""
    return (2, *y.shape)


def forward(
    y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gated norm (b, h, w, d) in z's dtype; mean and rstd (b, h, w, 1); and, if ``save``, the
    two derivatives."""
    out, mean, rstd = torch.native_layer_norm(y.to(weight.dtype), list(weight.shape), weight, bias, eps)
    wide = z.to(weight.dtype)
    kept = weight.new_empty(kept_shape(y) if save else (0,))
    if save:
        gate, turn = kept  # each step in the memory of the one before: fresh memory costs more than the arithmetic
        torch.sigmoid(wide, out=turn)
        torch.mul(wide, turn, out=gate)
        turn.lerp_(turn.new_ones(()), gate).mul_(out)  # n (s + z s (1 - s))
    else:
        gate = F.silu(wide)
    return out.mul_(gate).to(z.dtype), mean, rstd, kept


def backward(
    dout: Tensor,
    y: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    mean: Tensor,
    rstd: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of y and z, in their dtypes, and of weight and bias."""
    if not kept.numel():
        _, mean, rstd, kept = forward(y, z, weight, bias, eps, True)
    dout = dout.to(weight.dtype)
    dy, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dout * kept[0], y.to(weight.dtype), list(weight.shape), mean, rstd, weight, bias, [True, True, True]
    )
    return dy.to(y.dtype), (dout * kept[1]).to(z.dtype), dweight, dbias
