"""LayerNorm times silu(z) in plain PyTorch operations, on any device.

    n = weight (y - mean) rstd + bias    s = sigmoid(z)    out = n z s
    d out / dn = z s    d out / dz = n s (1 + z (1 - s))

Kept for backward, besides mean and rstd: the two derivatives, (b, h, w, d) each in the working
precision. On a CPU an exponential costs as much as six products, so it is made once.
"""

import math

import torch
from torch import Tensor


def kept_shape(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    """Shape of the two derivatives, mean and rstd, in one axis."""
    rows = y.shape[0] * y.shape[1] * y.shape[2]
    return (2 * rows * (y.shape[3] + 1),)


def _parts(kept: Tensor, y: Tensor) -> list[Tensor]:
    """What is kept: the two derivatives (b, h, w, d), mean and rstd (b, h, w, 1)."""
    shapes = [y.shape] * 2 + [(*y.shape[:3], 1)] * 2
    return [part.view(shape) for part, shape in zip(kept.split([math.prod(s) for s in shapes]), shapes, strict=True)]


def forward(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float, save: bool) -> tuple[Tensor, Tensor]:
    """The gated norm (b, h, w, d) in z's dtype and, if ``save``, the two derivatives, mean and
    rstd."""
    out, mean, rstd = torch.native_layer_norm(y.to(weight.dtype), list(weight.shape), weight, bias, eps)
    wide = z.to(weight.dtype)
    kept = weight.new_empty(kept_shape(y, z, weight, bias) if save else (0,))
    if save:
        gate, turn, *statistics = _parts(kept, y)
        for place, value in zip(statistics, (mean, rstd), strict=True):
            place.copy_(value)
        # Each step in the memory of the one before: fresh memory costs more than the arithmetic.
        torch.sigmoid(wide, out=turn)
        torch.mul(wide, turn, out=gate)
        turn.lerp_(turn.new_ones(()), gate).mul_(out)  # n (s + z s (1 - s))
    else:
        gate = torch.sigmoid(wide).mul_(wide)  # the same bits as above, which silu's are not
    return out.mul_(gate).to(z.dtype), kept


def backward(
    dout: Tensor,
    y: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of y and z, in their dtypes, and of weight and bias."""
    gate, turn, mean, rstd = _parts(kept, y)
    dout = dout.to(weight.dtype)
    dy, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dout * gate, y.to(weight.dtype), list(weight.shape), mean, rstd, weight, bias, [True, True, True]
    )
    return dy.to(y.dtype), (dout * turn).to(z.dtype), dweight, dbias
