"""``mamba_ssm.ops.triton.layer_norm``, also called ``layernorm``: LayerNorm and RMSNorm with the
sum before them, in PyTorch's operations.

Facts from https://github.com/state-spaces/mamba/blob/main/mamba_ssm/ops/triton/layer_norm.py.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Result = Tensor | tuple[Tensor, Tensor]


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Result:
    """The norm of x + residual over the last axis, in x's dtype; with ``prenorm`` a pair of it and
    the sum, in the residual's dtype, or without one in float32 if ``residual_in_fp32``, else in
    x's.

    Raises NotImplementedError for a second norm (x1, weight1, bias1), rowscale, and a dropout mask.
    """
    second = {"x1": x1, "weight1": weight1, "bias1": bias1, "rowscale": rowscale}
    asked = [name for name, t in second.items() if t is not None] + ["return_dropout_mask"] * return_dropout_mask
    if asked:
        raise NotImplementedError(
            f"layer_norm_fn has no {', '.join(asked)} here; call it without, and add what it does"
        )
    total = F.dropout(x, dropout_p).float()
    if residual is not None:
        total = total + residual.float()
        kept = residual.dtype
    else:
        kept = torch.float32 if residual_in_fp32 else x.dtype
    scale, shift = weight.float(), None if bias is None else bias.float()
    if is_rms_norm:
        y = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * scale
        y = y if shift is None else y + shift
    else:
        y = F.layer_norm(total, weight.shape, scale, shift, eps)
    return (y.to(x.dtype), total.to(kept)) if prenorm else y.to(x.dtype)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Result:
    """``layer_norm_fn`` without the mean."""
    return layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32, True,
        return_dropout_mask,
    )  # fmt: skip  # in the function's order


class RMSNorm(nn.Module):
    """RMSNorm over the last axis, (..., hidden_size) -> the same; ``weight`` starts at 1."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.dropout_p = eps, dropout_p
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Result:
        """As in ``rms_norm_fn``."""
        return rms_norm_fn(
            x, self.weight, None, residual, eps=self.eps, dropout_p=self.dropout_p if self.training else 0.0,
            prenorm=prenorm, residual_in_fp32=residual_in_fp32,
        )  # fmt: skip  # tensors, options
