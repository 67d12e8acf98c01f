"""The squeeze-and-excitation gate in plain PyTorch operations, on any device.

    p = mean over positions of x    g = scale * sigmoid(excite . relu(squeeze . p))    y = x * g

Forward reads x twice and writes y; backward reads dy and x twice and writes dx. Kept for backward:
p and g, (b, c) each.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def kept_shape(x: Tensor, squeeze: Tensor, excite: Tensor) -> tuple[int, ...]:
    """Shape of the pooled means and the gates, (2, b, c)."""
    return (2, x.shape[0], x.shape[3])


def forward(x: Tensor, squeeze: Tensor, excite: Tensor, scale: float, save: bool) -> tuple[Tensor, Tensor]:
    """y (b, h, w, c) and, if ``save``, the pooled means and the gate in the working precision."""
    pooled = x.mean((1, 2), dtype=squeeze.dtype)
    gate = scale * torch.sigmoid(F.relu(pooled @ squeeze.t()) @ excite.t())
    kept = torch.stack((pooled, gate)) if save else pooled.new_empty(0)
    return (x * gate[:, None, None]).to(x.dtype), kept


def backward(
    dy: Tensor, x: Tensor, squeeze: Tensor, excite: Tensor, scale: float, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, squeeze and excite."""
    return back_from_gate((dy.to(kept.dtype) * x).sum((1, 2)), dy, x, squeeze, excite, scale, kept)


def back_from_gate(
    dgate: Tensor, dy: Tensor, x: Tensor, squeeze: Tensor, excite: Tensor, scale: float, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``backward``, given the gradient of the gate (b, c)."""
    pooled, gate = kept
    hidden = F.relu(pooled @ squeeze.t())
    dlogit = dgate * gate * (1 - gate / scale)
    dhidden = (dlogit @ excite) * (hidden > 0)
    dpooled = (dhidden @ squeeze) / (x.shape[1] * x.shape[2])
    dx = torch.addcmul(dpooled[:, None, None], dy.to(gate.dtype), gate[:, None, None])
    return dx.to(x.dtype), dhidden.t() @ pooled, dlogit.t() @ hidden
