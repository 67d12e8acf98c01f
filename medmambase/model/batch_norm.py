"""BatchNorm in training, and what is done for all its layers at once: a launch on a GPU instead of
one for each.
"""

from itertools import pairwise
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase.model.projection import watched
from medmambase_kernels import triton_kernels


class BatchNorm(nn.BatchNorm2d):
    """Normalise each channel over a batch and its positions. Batches are not counted here but by
    ``count_batch``."""

    def forward(self, input: Tensor, rectified: bool = False) -> Tensor:
        """(b, channels, h, w) -> the same shape; ``rectified``: with the ReLU that follows. In
        training, a small map on a GPU where Triton runs is one kernel (``_triton/batch_norm.py``),
        held to what is written here."""
        assert self.momentum is not None  # without it the counter would weigh the batches
        if (kernels := self._kernels_for(input)) is not None:
            own: Tensor = _OneKernel.apply(input, self.weight, self.bias, self, kernels, rectified)  # type: ignore[no-untyped-call]  # torch gives it no types
            return own
        y = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return F.relu(y) if rectified else y

    def _kernels_for(self, x: Tensor) -> ModuleType | None:
        """The kernels that take a batch x; None where PyTorch does."""
        if not self.training or self.running_mean is None or not self.affine or watched():
            return None
        if type(x) is not Tensor or x.dtype == torch.float64 or self.weight.dtype != torch.float32:
            return None
        kernels = triton_kernels("batch_norm", x)
        return kernels if kernels is not None and kernels.is_small(x) else None


class _OneKernel(torch.autograd.Function):
    """A ``BatchNorm`` in training, and its ReLU, by the kernels of a small map."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: BatchNorm, kernels: ModuleType, relu: bool
    ) -> Tensor:
        statistics = (norm.running_mean, norm.running_var, norm.momentum, norm.eps)
        with torch.cuda.device_of(x):  # Triton launches on the current one
            y, kept = kernels.forward(x, weight, bias, *statistics, relu)
        ctx.save_for_backward(x, weight, bias, kept)
        ctx.kernels, ctx.relu = kernels, relu
        return cast(Tensor, y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.kernels.backward(dy, *ctx.saved_tensors, ctx.relu), None, None, None


class NormedConv2d(nn.Conv2d):
    """A convolution with a ``BatchNorm`` after it. In training that takes away the mean of each
    channel, and with it the bias, which then moves the running mean alone."""

    def forward(self, input: Tensor, biased: bool = True) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, h, w). Not ``biased`` is right where ``spares_bias`` is
        true and ``count_batch`` has counted this batch."""
        return self._conv_forward(input, self.weight, self.bias if biased else None)


def spares_bias(convolution: nn.Module, after: nn.Module | None) -> bool:
    """Whether ``count_batch`` does for the running mean of the layer ``after`` what the bias of the
    one before it would."""
    return (
        isinstance(convolution, NormedConv2d)
        and type(after) is BatchNorm
        and after.training
        and after.running_mean is not None
        and after.momentum not in (None, 1.0)
    )


def count_batch(network: nn.Module, x: Tensor) -> Tensor:
    """Count a batch in every BatchNorm of ``network`` that is in training mode, and add to their
    running means the biases that the convolutions before them may leave out. Returns x, any tensor
    that the network is computed from: its backward gives these biases the gradient that they have,
    which is zero."""
    norms = [module for module in network.modules() if type(module) is BatchNorm and module.training]
    if counters := [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]:
        torch._foreach_add_(counters, 1)
    sequences = [module for module in network.modules() if isinstance(module, nn.Sequential)]
    pairs: list[Any] = [pair for sequence in sequences for pair in pairwise(sequence) if spares_bias(*pair)]
    for momentum in {norm.momentum for _, norm in pairs}:
        these = [(conv.bias.detach(), norm) for conv, norm in pairs if norm.momentum == momentum]
        # What is added before the batch is weighted as the past is. By ``data``: a backward pass
        # that is still to come may have kept the means, which in training it does not read.
        means = [norm.running_mean.data for _, norm in these]
        torch._foreach_add_(means, [bias for bias, _ in these], alpha=momentum / (1 - momentum))
    biases = [conv.bias for conv, _ in pairs if conv.bias.requires_grad]
    if not biases or not torch.is_grad_enabled():
        return x
    handed: Tensor = _Without.apply(x, *biases)  # type: ignore[no-untyped-call]  # torch gives it no types
    return handed


class _Without(torch.autograd.Function):
    """Hand x on, and give zeros as the gradient of tensors that change no result: one tensor of
    zeros for all of them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, *tensors: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.tensors = [(t.shape, t.dtype, t.device) for t in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, ...]:
        shapes = [shape for shape, _, _ in ctx.tensors]
        _, dtype, device = ctx.tensors[0]
        zeros = torch.zeros(sum(shape.numel() for shape in shapes), dtype=dtype, device=device)
        parts = zeros.split([shape.numel() for shape in shapes])
        return dx, *(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
