"""A depthwise 3x3 convolution and SiLU: what precedes the scan in SS2D.

Checks, then the custom operator, then the backend that ``backend`` chose.

Bytes moved for an element of the map, by the operations in its place (a copy of the half of the
projection, convolution, silu; and what autograd makes of them) and by this one on a GPU:

                     float32             bfloat16
                 forward  backward   forward  backward
    in its place      24        40        12        22
    fused              8        20         4        14

The definition is ``reference.depthwise_silu``.
"""

import torch
from torch import Tensor

from medmambase_kernels import backend as engines
from medmambase_kernels import reference
from medmambase_kernels.arguments import MAP, check_shapes, check_tensors
from medmambase_kernels.custom_op import register


def depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """silu(bias + weight * x), a convolution of each channel with its own 3x3 weights; zeros lie
    around the map.

    Args:
        x: (b, h, w, d), channels last; read in place if it is half of a projection (b, h, w, 2d).
        weight: (d, 1, 3, 3) and bias: (d,), as nn.Conv2d(d, d, 3, padding=1, groups=d) holds them.
        backend: "triton", "cpu", "torch" or "reference"; chosen automatically if None.

    Tensors are float32, bfloat16, float16 or float64, each its own: x alone decides the dtype of
    the result and of the arithmetic, float64 for a float64 x, else float32. A gradient has the
    dtype of its argument.

    Returns:
        (b, h, w, d), contiguous, in x's dtype, rounded once.

    Raises:
        TypeError: an argument that is no tensor. ValueError: a shape, dtype or device that does not
        fit. BackendError: the backend asked for cannot run.
    """
    _check(x, weight, bias)
    choice = engines.choose("depthwise_silu", x.device, x.dtype, backend)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = weight.to(work), bias.to(work)
    if choice.name == "reference":
        return reference.depthwise_silu(x, weight, bias).to(x.dtype)
    (y,) = _convolve(x, weight, bias, choice.name)
    return y


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    check_tensors({"x": x, "weight": weight, "bias": bias})
    check_shapes(("x", x, MAP), ("weight", weight, ("channels", 1, 3, 3)), ("bias", bias, ("channels",)))
    if x.shape[1] * x.shape[2] * x.shape[3] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must have at least one position and channel")


def _outputs(x, weight, bias):  # type: ignore[no-untyped-def]  # the schema types it
    return ((x.shape, x.dtype),)


_convolve = register("depthwise_silu", "Tensor x, Tensor weight, Tensor bias", "", _outputs, kept_like="weight")
