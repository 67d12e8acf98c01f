"""Compute a network with the original MedMamba's operators: what its speed is measured beside.

The weights are ours, and so are the results up to rounding. The operators come as arguments:
``medmambase_kernels.bench`` has them, a loop in eager PyTorch or mamba_ssm's kernel.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase.model.layers import SS2D, SSConvSSM, channel_shuffle
from medmambase.model.network import MedMambaSE
from medmambase_kernels import SqueezeExcite

# (x, x_proj, dt_weight, dt_bias, A, D) -> y, and (x, squeeze, excite) -> y
Scan2D = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Gate = Callable[[Tensor, Tensor, Tensor], Tensor]


class OriginalSS2D(nn.Module):
    """The weights of an SS2D, computed with as the original MedMamba does."""

    def __init__(self, ours: SS2D, scan_2d: Scan2D) -> None:
        super().__init__()
        self.ours, self.scan_2d = ours, scan_2d

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, channels) -> the same shape."""
        ours = self.ours
        x, z = ours.in_proj(x).chunk(2, -1)
        x = F.silu(ours.conv(x.permute(0, 3, 1, 2).contiguous())).permute(0, 2, 3, 1)
        y = self.scan_2d(x, ours.x_proj, ours.dt_weight, ours.dt_bias, -ours.A_log.float().exp(), ours.D)
        gated: Tensor = ours.out_proj(ours.norm(y) * F.silu(z))
        return gated


class OriginalGate(nn.Module):
    """The weights of a squeeze-and-excitation gate, computed with as the usual module does."""

    def __init__(self, ours: SqueezeExcite, gate: Gate) -> None:
        super().__init__()
        self.ours, self.gate = ours, gate

    def forward(
        self, x: Tensor, residual: Tensor | None = None, second: Tensor | None = None, factor: Tensor | None = None
    ) -> Tensor:
        """x, residual (b, h, w, channels) -> the same shape; see ``SqueezeExcite``."""
        if second is not None:
            scaled = second if factor is None else second * factor.to(second.dtype)[:, None, None, None]
            x = torch.cat([F.relu(x), scaled], -1)
        gated = self.ours.scale * self.gate(x, self.ours.squeeze, self.ours.excite)
        return gated if residual is None else residual + channel_shuffle(gated)


def with_original_operators(network: MedMambaSE, scan_2d: Scan2D, gate: Gate) -> MedMambaSE:
    """Copy ``network`` into one that computes the same with the original's operators.

    Args:
        scan_2d: the scan of x (b, h, w, d) in four directions, with the projections before it:
            (x, x_proj, dt_weight, dt_bias, A, D) -> (b, h, w, d).
        gate: (x, squeeze, excite) -> x times the sigmoid gate, (b, h, w, c).
    """
    copied = deepcopy(network)
    for block in copied.modules():
        if isinstance(block, SSConvSSM):
            block.ssm_branch = OriginalSS2D(block.ssm_branch, scan_2d)  # type: ignore[assignment]  # it stands in for one
            block.se = None if block.se is None else OriginalGate(block.se, gate)  # type: ignore[assignment]  # likewise
    return copied
