"""``mamba_ssm.ops.triton.layer_norm``, also called ``layernorm``: LayerNorm and RMSNorm with the
sum before them, in PyTorch's operations.

Facts from https://github.com/state-spaces/mamba/blob/main/mamba_ssm/ops/triton/layer_norm.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels.arguments import check_factory, check_number, check_shapes, check_size, check_tensors

Result = Tensor | tuple[Tensor | None, ...]


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
    """LayerNorm over the last axis of dropout(x rowscale) + dropout(x1) + residual, in x's dtype;
    the sum is made in float32, or float64 for a float64 x.

    Args:
        x, x1, residual: (..., d). weight, bias, weight1, bias1: (d,). rowscale: (...).
        dropout_p: what share of x, and of x1, is set to zero; the rest is divided by 1 - dropout_p.
        prenorm: return the sum too, in the residual's dtype; without a residual in float32 if
        ``residual_in_fp32``, else in x's.
        is_rms_norm: RMSNorm, without the mean. return_dropout_mask: return also what was kept, True
        where it was, of x and of x1; None where nothing was drawn.

    Returns:
        y, then, as asked for, the norm with weight1 and bias1, the sum, and two masks; one alone is
        no tuple.

    Raises TypeError for what is no tensor; ValueError for another shape, and for rowscale beside
    x1.
    """
    weights = {"weight": weight, "bias": bias, "weight1": weight1, "bias1": bias1}
    check_rows({"x": x, "residual": residual, "x1": x1}, weights)
    if rowscale is not None and rowscale.shape != x.shape[:-1]:
        wanted = tuple(x.shape[:-1])
        raise ValueError(f"rowscale has shape {tuple(rowscale.shape)}; it must be {wanted}, as x without its last axis")
    if rowscale is not None and x1 is not None:
        raise ValueError("rowscale was given beside x1; it is for x alone, so scale x before and leave it out")
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x.to(work)
    if rowscale is not None:
        total = total * rowscale.to(work).unsqueeze(-1)
    total, kept = _dropped(total, dropout_p)
    kept1 = None
    if x1 is not None:
        other, kept1 = _dropped(x1.to(work), dropout_p)
        total = total + other
    if residual is not None:
        total = total + residual.to(work)
    results: list[Tensor | None] = [_norm(total, weight, bias, eps, is_rms_norm).to(x.dtype)]
    if weight1 is not None:
        results.append(_norm(total, weight1, bias1, eps, is_rms_norm).to(x.dtype))
    if prenorm:
        without = torch.float32 if residual_in_fp32 else x.dtype
        results.append(total.to(without if residual is None else residual.dtype))
    if return_dropout_mask:
        results += [kept, kept1]
    first = results[0]
    return tuple(results) if len(results) > 1 or first is None else first


def check_rows(rows: Mapping[str, Tensor | None], weights: Mapping[str, Tensor | None]) -> None:
    """Check that all rows (..., d) have the first one's shape, and all weights its last axis."""
    (first, x), (weight, _) = next(iter(rows.items())), next(iter(weights.items()))
    check_tensors({**rows, **weights}, optional={*rows, *weights} - {first, weight})
    assert x is not None  # the first one is not optional
    for name, t in rows.items():
        if t is not None and (t.dim() == 0 or t.shape != x.shape):
            raise ValueError(f"{name} has shape {tuple(t.shape)}; it must be {tuple(x.shape)}, as {first}")
    check_shapes(*((name, t, (x.shape[-1],)) for name, t in weights.items()))


def _dropped(x: Tensor, p: float) -> tuple[Tensor, Tensor | None]:
    if p == 0:
        return x, None
    kept = torch.rand_like(x) >= p
    return x.masked_fill(~kept, 0) / (1 - p), kept


def _norm(total: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    scale, shift = weight.to(total.dtype), None if bias is None else bias.to(total.dtype)
    if not rms:
        return F.layer_norm(total, weight.shape, scale, shift, eps)
    y = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * scale
    return y if shift is None else y + shift


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


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Result:
    """``layer_norm_fn`` and a linear map behind it; with ``prenorm`` the sum too."""
    found = layer_norm_fn(
        x, norm_weight, norm_bias, residual, eps=eps, prenorm=True, residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )  # fmt: skip  # tensors, options
    y, total = found
    assert y is not None  # which is None for masks alone
    out = F.linear(y, linear_weight.to(y.dtype), None if linear_bias is None else linear_bias.to(y.dtype))
    return (out, total) if prenorm else out


class RMSNorm(nn.Module):
    """RMSNorm over the last axis, (..., hidden_size) -> the same; ``weight`` starts at 1."""

    bias: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("hidden_size", hidden_size)
        check_number("eps", eps, least=0)
        check_number("dropout_p", dropout_p or 0.0, least=0)
        if dropout_p and dropout_p > 1:
            raise ValueError(f"dropout_p is {dropout_p}; it must be between 0 and 1")
        check_factory(device, dtype)
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p else None
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set ``weight`` to 1."""
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Result:
        """As in ``rms_norm_fn``."""
        dropout_p = self.drop.p if self.drop is not None and self.training else 0.0
        return rms_norm_fn(
            x, self.weight, None, residual, eps=self.eps, dropout_p=dropout_p, prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )  # fmt: skip  # tensors, options
