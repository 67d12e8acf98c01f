"""What follows the scan in SS2D: LayerNorm over the channels, times silu of the gate z. Checks,
then the custom operator, then the engine.

Bytes moved for an element of the map, by the five operations in its place (layer_norm, a cast,
silu, a product; and what autograd makes of them) and by this one on a GPU:

                     float32            bfloat16 z, float32 y
                 forward  backward        forward  backward
    in its place      28        56             24        44
    fused             12        20              8        14

Next stop: ``gated_norm_triton`` or ``gated_norm_cpu``; the definition is ``reference.gated_norm``.
"""

import torch
from torch import Tensor

from medmambase_kernels import backend as engines
from medmambase_kernels import reference
from medmambase_kernels.custom_op import (
    check_tensors,
    contiguous,
    contiguous_fake,
    differentiable,
    operator,
    worth_saving,
)


def gated_norm(
    y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, backend: str | None = None
) -> Tensor:
    """layer_norm(y over the channels) * silu(z).

    Args:
        y: (b, h, w, d), float32 or of z's dtype: a sum of scans leaves float32 only after the norm,
        in float16 it can overflow.
        z: (b, h, w, d), float32, bfloat16, float16 or float64; read in place if it is half of a
        projection (b, h, w, 2d). weight, bias: (d,), of the norm. eps: added to the variance.
        backend: "triton", "cpu", "torch" or "reference"; chosen automatically if None.

    Returns:
        (b, h, w, d), contiguous, in z's dtype; arithmetic is float32 (float64 for float64), rounded
        once.

    Raises:
        ValueError: a shape, dtype or device that does not fit. BackendError: the engine asked for
        cannot run.
    """
    _check(y, z, weight, bias)
    choice = engines.choose("gated_norm", z.device, z.dtype, backend)
    work = torch.float64 if z.dtype == torch.float64 else torch.float32
    weight, bias = weight.to(work), bias.to(work)
    if choice.name == "reference":
        return reference.gated_norm(y, z, weight, bias, eps).to(z.dtype)
    out, _, _, _ = _norm(y, z, weight, bias, eps, worth_saving(y, z, weight, bias), choice.name)
    assert isinstance(out, Tensor)
    return out


def _check(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> None:
    if y.dim() != 4 or y.shape[3] == 0:
        raise ValueError(
            f"y has shape {tuple(y.shape)}; it must be (batch, height, width, channels) with at least one channel"
        )
    for name, t, shape in (("z", z, tuple(y.shape)), ("weight", weight, (y.shape[3],)), ("bias", bias, (y.shape[3],))):
        if t.shape != shape:
            raise ValueError(f"{name} has shape {tuple(t.shape)}; with y {tuple(y.shape)} it must be {shape}")
    check_tensors(y, {"z": z, "weight": weight, "bias": bias})
    if y.dtype not in (torch.float32, z.dtype):
        raise ValueError(f"y has dtype {y.dtype}; with z in {z.dtype} it must be that or torch.float32")


@operator(
    "gated_norm",
    "(Tensor y, Tensor z, Tensor weight, Tensor bias, float eps, bool save, str engine) -> (Tensor, Tensor, Tensor, "
    "Tensor)",
)
def _forward(y, z, weight, bias, eps, save, engine):  # type: ignore[no-untyped-def]  # the schema types it
    return contiguous(engines.run("gated_norm", engine, "forward", y, z, weight, bias, eps, save))


@_forward.register_fake
def _(y, z, weight, bias, eps, save, engine):  # type: ignore[no-untyped-def]  # the schema types it
    mean = weight.new_empty((*y.shape[:3], 1))
    return (
        z.new_empty(z.shape),
        mean,
        torch.empty_like(mean),
        weight.new_empty(engines.engine("gated_norm", engine).kept_shape(y) if save else (0,)),
    )


@operator(
    "gated_norm_backward",
    "(Tensor dout, Tensor y, Tensor z, Tensor weight, Tensor bias, float eps, Tensor mean, Tensor rstd, Tensor kept, "
    "str engine) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(dout, y, z, weight, bias, eps, mean, rstd, kept, engine):  # type: ignore[no-untyped-def]  # the schema types it
    return contiguous(engines.run("gated_norm", engine, "backward", dout, y, z, weight, bias, eps, mean, rstd, kept))


@_backward.register_fake
def _(dout, y, z, weight, bias, eps, mean, rstd, kept, engine):  # type: ignore[no-untyped-def]  # the schema types it
    return contiguous_fake(y, z, weight, bias)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]  # the schema types it
    *tensors, ctx.eps, _, ctx.engine = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx, dout, *_):  # type: ignore[no-untyped-def]  # the schema types it
    if dout is None:  # torch asks this way whether a gradient may be missing
        return (None,) * 7
    y, z, weight, bias, mean, rstd, kept = ctx.saved_tensors
    return *_norm_backward(dout, y, z, weight, bias, ctx.eps, mean, rstd, kept, ctx.engine), None, None, None


_norm, _norm_backward = differentiable("GatedNorm", _forward, _backward, _gradients, _setup)
