"""Linear maps of the channels of maps (b, h, w, c), the fastest way on the device at hand."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SMALL = 20480  # numbers in a map up to which PyTorch convolves a single one without oneDNN


class PointwiseConv2d(nn.Conv2d):
    """A convolution of 1 x 1; on a GPU as a matrix product, which adds the bias in one launch."""

    def forward(self, input: Tensor) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, h, w)."""
        return super().forward(input) if input.device.type == "cpu" else self.as_product(input)

    def as_product(self, input: Tensor) -> Tensor:
        """The same as a product of matrices: positions by channels."""
        x = input.permute(0, 2, 3, 1)
        y = F.linear(x.flatten(0, 2), self.weight.flatten(1), self.bias)
        return y.view(*x.shape[:3], self.out_channels).permute(0, 3, 1, 2)


class Projection(nn.Linear):
    """A linear map of the channels, with its parameters: ``project``."""

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, in_features) -> (b, h, w, out_features)."""
        return project(x, self.weight, self.bias)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map the channels of x (b, h, w, c) by weight (out, c); on a CPU as a convolution of 1 x 1.

    PyTorch gives matrix products to MKL, which leaves half of an AMD processor's vectors idle, and
    convolutions to oneDNN, which does not: twice as fast there, and as fast on Intel's. A single
    small map gains nothing.
    """
    plain = (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    )
    if plain or (len(x) < 2 and x.numel() <= _SMALL) or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def watched() -> bool:
    """Whether PyTorch compiles, traces or transforms what is computed now, and so must see its own
    operations alone."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    )


def project_beside(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``project`` x (b, h, w, c) by weight (out, c), and hand on x for the only other use of it: on
    a GPU backward then adds the gradient of the projection to that of the other use in one launch,
    in place."""
    on_gpu = x.device.type in ("cuda", "meta")  # meta: tensors without numbers, which stand for those of a GPU
    mixed = torch.is_autocast_enabled("cuda") and x.dtype == torch.float32
    if not on_gpu or watched() or mixed or not torch.is_grad_enabled():
        return x, project(x, weight)
    handed, projected = Beside.apply(x, weight.to(x.dtype))  # type: ignore[no-untyped-call]  # torch gives it no types
    return handed, projected


class Beside(torch.autograd.Function):
    """x and its product with weight; backward writes into the gradient of that x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        return x.view_as(x), F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows, dx = dy.flatten(0, -2), dx.contiguous()
        dx.view(-1, dx.shape[-1]).addmm_(rows, weight)
        return dx, rows.t() @ x.flatten(0, -2)
