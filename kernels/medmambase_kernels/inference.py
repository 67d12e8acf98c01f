"""Layers whose weights do not change any more, for prediction: laid out once for the processor at
hand.

Not operators, and without gradients: where our vector code does not run, or autocast or a compiler
is at work, they are PyTorch's own.
Next stops: ``convolve_cpu``, ``norm_cpu``, ``corners_cpu``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels import backend as engines


def _ours(x: Tensor, weight: Tensor) -> bool:
    plain = (
        x.dtype == torch.float32 == weight.dtype
        and x.numel() > 0
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
    )
    return (
        plain
        and not torch.is_autocast_enabled(x.device.type)
        and engines.choose(None, x.device, x.dtype, None).name == "cpu"
    )


@torch.no_grad()
def corners(x: Tensor) -> Tensor:
    """The four positions of each square of 2 x 2 side by side: (b, h, w, c) -> (b, h // 2, w // 2,
    4 c), in the order (0, 0), (1, 0), (0, 1), (1, 1).

    A last odd row or column is left out. Without gradients, as all in this file.
    """
    if _ours(x, x):
        engine = engines.engine("space_to_depth", "cpu")
        if engine.fits(x):
            y: Tensor = engine.corners(x)
            return y
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return torch.cat([x[:, row:height:2, column:width:2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)


class FrozenNorm(nn.Module):
    """``norm`` over the channels of (b, h, w, c), without gradients. Its weights must not change
    after the first call."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(t.detach().clone(), requires_grad=False) for t in (norm.weight, norm.bias)
        )
        self.eps = norm.eps

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, c) -> the same shape."""
        if _ours(x, self.weight):
            engine = engines.engine("layer_norm", "cpu")
            if engine.fits(x):
                y: Tensor = engine.norm(x, self.weight, self.bias, self.eps)
                return y
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class FrozenConvolution(nn.Module):
    """bias + weight * x, then ReLU with ``relu``; zeros lie around the map. (b, h, w, inputs) ->
    (b, h, w, outputs), channels last.

    Args:
        weight: (outputs, inputs, 1, 1) or (outputs, inputs, 3, 3), copied. bias: (outputs,), or
        None.

    The result may be a view of wider rows. No gradient goes through it, neither to x. Weights must
    not change after the first call.
    Raises ValueError for weights of another size.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> None:
        super().__init__()
        if weight.dim() != 4 or weight.shape[2:] not in ((1, 1), (3, 3)):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}; it must be (outputs, inputs, 1, 1) or (outputs, inputs, 3, 3)"
            )
        self.relu = relu
        self.weight = nn.Parameter(weight.detach().clone(memory_format=torch.channels_last), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self._packed: tuple[int, Any] = 0, None  # the lanes it was laid out for

    @torch.no_grad()
    def forward(self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """x (b, h, w, inputs) -> (b, h, w, outputs), plus ``add`` of that shape, in ``out`` if one
        is given: no part of x or add.

        Raises ValueError for another number of inputs.
        """
        if x.dim() != 4 or x.shape[3] != self.weight.shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, height, width, {self.weight.shape[1]})")
        if _ours(x, self.weight):
            engine = engines.engine("conv2d", "cpu")
            if self._packed[0] != engine.lanes():
                self._packed = engine.lanes(), engine.pack(self.weight, self.bias)
            y: Tensor = engine.convolve(x, self._packed[1], self.relu, add, out)
            return y
        y = F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, padding=self.weight.shape[2] // 2).permute(
            0, 2, 3, 1
        )
        y = y.relu() if self.relu else y
        y = y if add is None else y + add
        return y if out is None else out.copy_(y)
