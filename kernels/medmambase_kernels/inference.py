"""Layers for prediction, whose weights no longer change: laid out once for the processor at hand.

They are not operators, and have no gradients: where our vector code does not run, or autocast or a
compiler is at work, they are PyTorch's own. ``space_to_depth`` has no weights and has gradients.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels import backend as engines
from medmambase_kernels._cpu.capture import Capture
from medmambase_kernels.arguments import check_flag, check_input, check_shapes, check_tensor, check_tensors


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


def _cudnn(x: Tensor) -> bool:
    """Whether cuDNN adds a bias and takes a ReLU of x within the convolution."""
    return (
        x.is_cuda
        and torch.version.cuda is not None
        and torch.backends.cudnn.is_available()
        and torch.backends.cudnn.enabled
        and x.dtype != torch.float64
        and not torch.compiler.is_compiling()
    )


def space_to_depth(x: Tensor) -> Tensor:
    """Put the four positions of each square of 2 x 2 side by side: (b, h, w, c) -> (b, h // 2,
    w // 2, 4 c), the (row, column) (0, 0), (1, 0), (0, 1), (1, 1).

    A last odd row or column is left out. Any dtype and device, with gradients; while a
    ``Capture`` is open, float32 on a CPU is a step of it, without. Raises TypeError or ValueError
    for another x.
    """
    if check_tensor("x", x).dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, height, width, channels)")
    if not torch.compiler.is_compiling() and Capture.current() is not None and _ours(x, x):
        engine = engines.engine("space_to_depth", "cpu")
        if engine.fits(x):
            y: Tensor = engine.space_to_depth(x)
            return y
    h, w = x.shape[1] // 2, x.shape[2] // 2
    squares = x[:, : 2 * h, : 2 * w].unflatten(2, (w, 2)).unflatten(1, (h, 2))
    return squares.permute(0, 1, 3, 4, 2, 5).flatten(3)


class FrozenLayerNorm(nn.Module):
    """Normalise the channels of (b, h, w, c) as ``norm`` does, without gradients. Its weights must
    not change after the first call.

    Raises TypeError for a norm that is no nn.LayerNorm; ValueError for one that has no weight and
    bias or more than one axis, and for an x of other channels or another dtype.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        given: object = norm
        if not isinstance(given, nn.LayerNorm):
            raise TypeError(f"norm is {given!r}; it must be a torch.nn.LayerNorm")
        if {"weight", "bias"} - dict(norm.named_parameters()).keys() or norm.weight.dim() != 1:
            raise ValueError(f"norm is {norm}; it must be over one axis, the channels, and have a weight and a bias")
        self.weight, self.bias = (
            nn.Parameter(t.detach().clone(), requires_grad=False) for t in (norm.weight, norm.bias)
        )
        self.eps = norm.eps

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, c) -> the same shape."""
        if check_tensor("x", x).dim() == 0 or x.shape[-1] != len(self.weight):
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, height, width, {len(self.weight)})")
        check_input("x", x, self.weight)
        if _ours(x, self.weight):
            engine = engines.engine("layer_norm", "cpu")
            if engine.fits(x):
                y: Tensor = engine.norm(x, self.weight, self.bias, self.eps)
                return y
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class FrozenConv2d(nn.Module):
    """Convolve with zeros around the map, bias + weight * x, then ReLU with ``relu``: (b, h, w,
    inputs) -> (b, h, w, outputs), channels last.

    Args:
        weight: (outputs, inputs, 1, 1) or (outputs, inputs, 3, 3), copied. bias: (outputs,), or
        None.

    The result may be a view of wider rows. No gradient goes through it, neither to x. Weights must
    not change after the first call.
    Raises TypeError for what is no tensor, ValueError for weights of another size.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> None:
        super().__init__()
        check_tensors({"weight": weight, "bias": bias}, optional=("bias",))
        if weight.dim() != 4 or weight.shape[2:] not in ((1, 1), (3, 3)):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}; it must be (outputs, inputs, 1, 1) or (outputs, inputs, 3, 3)"
            )
        check_shapes(("weight", weight, ("outputs", "inputs", *weight.shape[2:])), ("bias", bias, ("outputs",)))
        self.relu = check_flag("relu", relu)
        self.weight = nn.Parameter(weight.detach().clone(memory_format=torch.channels_last), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self._packed: tuple[int, Any] = 0, None  # the lanes it was laid out for

    @torch.no_grad()
    def forward(
        self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None, *, rectified: bool = True
    ) -> Tensor:
        """x (b, h, w, inputs) -> (b, h, w, outputs), plus ``add`` of that shape, in ``out`` if one
        is given: no part of x or add. Without ``rectified``, the ReLU is left out.

        Raises ValueError for another number of inputs, and for an x, add or out of another shape or
        dtype.
        """
        if check_tensor("x", x).dim() != 4 or x.shape[3] != self.weight.shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, height, width, {self.weight.shape[1]})")
        check_input("x", x, self.weight)
        for name, t in (("add", add), ("out", out)):
            if t is not None:
                wanted = (*x.shape[:3], len(self.weight))
                if check_tensor(name, t).shape != wanted:
                    raise ValueError(f"{name} has shape {tuple(t.shape)}; it must be {wanted}, as the result")
                check_input(name, t, self.weight)
        relu = self.relu and rectified
        if _ours(x, self.weight):
            engine = engines.engine("conv2d", "cpu")
            if self._packed[0] != engine.lanes():
                self._packed = engine.lanes(), engine.pack(self.weight, self.bias)
            y: Tensor = engine.convolve(x, self._packed[1], relu, add, out)
            return y
        if self.weight.shape[2] == 1:
            # As a matrix, whose product takes the bias in one launch of a GPU.
            y = F.linear(x.flatten(0, 2), self.weight.flatten(1), self.bias).view(*x.shape[:3], len(self.weight))
            y = y.relu() if relu else y
        else:
            y = self._convolved(x.permute(0, 3, 1, 2), relu).permute(0, 2, 3, 1)
        y = y if add is None else y + add
        return y if out is None else out.copy_(y)

    def _convolved(self, x: Tensor, relu: bool) -> Tensor:
        """x (b, inputs, h, w) -> (b, outputs, h, w), by 3 x 3 weights."""
        if not relu or self.bias is None or not _cudnn(x):
            y = F.conv2d(x, self.weight, self.bias, padding=1)
            return y.relu() if relu else y
        # The joint operation knows nothing of autocast.
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        x, weight, bias = x.to(dtype), self.weight.to(dtype), self.bias.to(dtype)
        return torch.cudnn_convolution_relu(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)
