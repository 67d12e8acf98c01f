"""The squeeze-and-excitation gate in plain PyTorch operations, on any device.

    p = mean over positions of x    g = scale * sigmoid(excite . relu(squeeze . p))    y = x * g

Forward reads x twice and writes y; backward reads dy and x twice and writes dx. Kept for backward:
p and g, (b, c) each.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def kept_shape(
    x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, second: Tensor | None, factor: Tensor | None
) -> tuple[int, ...]:
    """Shape of the pooled means and the gates, (2, b, c)."""
    return (2, x.shape[0], squeeze.shape[1])


def interleaved(x: Tensor) -> Tensor:
    """x (..., c) with the two halves of its channels interleaved, as a view in pairs (..., c / 2,
    2)."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2)


def deinterleaved(y: Tensor) -> Tensor:
    """What ``interleaved`` made pairs of: y (..., c) with every other channel first."""
    return y.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def joined(x: Tensor, second: Tensor | None, factor: Tensor | None) -> Tensor:
    """What is gated, (b, h, w, c): x, or both halves side by side, each finished."""
    if second is None:
        return x
    return torch.cat([F.relu(x), second if factor is None else second * factor[:, None, None, None]], -1)


def forward(
    x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, second: Tensor | None, factor: Tensor | None,
    scale: float, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip  # in the operator's order
    """y (b, h, w, c) and, if ``save``, the pooled means and the gate in the working precision."""
    whole = joined(x, second, factor)
    pooled = whole.mean((1, 2), dtype=squeeze.dtype)
    gate = scale * torch.sigmoid(F.relu(pooled @ squeeze.t()) @ excite.t())
    kept = torch.stack((pooled, gate)) if save else pooled.new_empty(0)
    gated = whole * gate[:, None, None]
    if residual is None:
        return gated.to(x.dtype), kept
    return (residual.unflatten(-1, (-1, 2)) + interleaved(gated)).flatten(-2).to(residual.dtype), kept


def backward(
    dy: Tensor, x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, second: Tensor | None,
    factor: Tensor | None, scale: float, kept: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip  # in the operator's order
    """Gradients of x, squeeze, excite and second; that of residual is dy."""
    dy = dy if residual is None else deinterleaved(dy)
    dgate = (dy.to(kept.dtype) * joined(x, second, factor)).sum((1, 2))
    return back_from_gate(dgate, dy, x, squeeze, excite, second, factor, scale, kept)


def back_from_gate(
    dgate: Tensor, dy: Tensor, x: Tensor, squeeze: Tensor, excite: Tensor, second: Tensor | None,
    factor: Tensor | None, scale: float, kept: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip  # in the operator's order
    """``backward``, given the gradient of the gate (b, c) and dy in the order of x's channels."""
    pooled, gate = kept
    hidden = F.relu(pooled @ squeeze.t())
    dlogit = dgate * gate * (1 - gate / scale)
    dhidden = (dlogit @ excite) * (hidden > 0)
    dpooled = (dhidden @ squeeze) / (x.shape[1] * x.shape[2])
    whole = torch.addcmul(dpooled[:, None, None], dy.to(gate.dtype), gate[:, None, None])
    weights = dhidden.t() @ pooled, dlogit.t() @ hidden
    if second is None:
        return whole.to(x.dtype), *weights, None, None, None
    left, right = whole.chunk(2, -1)
    left = torch.where(x <= 0, 0.0, left)  # the slope of relu; that of NaN is 1
    right = right if factor is None else right * factor[:, None, None, None]
    return left.to(x.dtype), *weights, None, right.to(second.dtype), None
