"""LayerNorm over the channels, times the SiLU of a gate: what follows the scan in SS2D.

Checks, then the custom operator, then the backend that ``backend`` chose.

Bytes moved for an element of the map, by the five operations in its place (layer_norm, a cast,
silu, a product; and what autograd makes of them) and by this one on a GPU:

                     float32            bfloat16 z, float32 y
                 forward  backward        forward  backward
    in its place      28        56             24        44
    fused             12        20              8        14

The definition is ``reference.gated_norm``.
"""

import torch
from torch import Tensor

from medmambase_kernels import backend as engines
from medmambase_kernels import reference
from medmambase_kernels.arguments import MAP, check_number, check_shapes, check_tensors
from medmambase_kernels.custom_op import register


def gated_norm(
    y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, backend: str | None = None
) -> Tensor:
    """layer_norm(y over the channels) * silu(z).

    Args:
        y: (b, h, w, d), float32 or of z's dtype: a sum of scans leaves float32 only after the norm,
        in float16 it can overflow.
        z: (b, h, w, d), channels last as y; read in place if it is half of a projection
        (b, h, w, 2d).
        weight, bias: (d,), of the norm. eps: added to the variance, at least 0.
        backend: "triton", "cpu", "torch" or "reference"; chosen automatically if None.

    Tensors are float32, bfloat16, float16 or float64: z decides the dtype of the result and of the
    arithmetic, float64 for a float64 z, else float32. A gradient has the dtype of its argument.

    Returns:
        (b, h, w, d), contiguous, in z's dtype, rounded once.

    Raises:
        TypeError: an argument that is no tensor, or an eps that is no number. ValueError: a shape,
        dtype or device that does not fit, or an eps below 0. BackendError: the backend asked for
        cannot run.
    """
    _check(y, z, weight, bias)
    check_number("eps", eps, least=0)
    choice = engines.choose("gated_norm", z.device, z.dtype, backend)
    work = torch.float64 if z.dtype == torch.float64 else torch.float32
    weight, bias = weight.to(work), bias.to(work)
    if choice.name == "reference":
        return reference.gated_norm(y, z, weight, bias, eps).to(z.dtype)
    (out,) = _norm(y, z, weight, bias, eps, choice.name)
    return out


def _check(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> None:
    check_tensors({"y": y, "z": z, "weight": weight, "bias": bias})
    sizes = check_shapes(("y", y, MAP), ("z", z, MAP), ("weight", weight, ("channels",)), ("bias", bias, ("channels",)))
    if sizes["channels"] == 0:
        raise ValueError(f"y has shape {tuple(y.shape)}; it must have at least one channel")
    if y.dtype not in (torch.float32, z.dtype):
        raise ValueError(f"y has dtype {y.dtype}; with z in {z.dtype} it must be that or torch.float32")


def _outputs(y, z, weight, bias, eps):  # type: ignore[no-untyped-def]  # the schema types it
    return ((z.shape, z.dtype),)


_norm = register(
    "gated_norm", "Tensor y, Tensor z, Tensor weight, Tensor bias", "float eps", _outputs, kept_like="weight"
)
