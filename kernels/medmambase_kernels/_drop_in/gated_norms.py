"""``mamba_ssm.ops.triton.layernorm_gated``: LayerNorm and RMSNorm of groups of channels, before or
behind a gate, in PyTorch's operations.

Facts from https://github.com/state-spaces/mamba/blob/main/mamba_ssm/ops/triton/layernorm_gated.py.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels._drop_in.norms import check_rows
from medmambase_kernels.arguments import check_factory, check_flag, check_number, check_size


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """LayerNorm(x) silu(z), or LayerNorm(x silu(z)) without ``norm_before_gate``: (..., d) -> the
    same, in x's dtype; computed in float32, or in float64 for a float64 x.

    weight, bias (d,); z (..., d), or None for no gate. Each ``group_size`` channels have a mean and
    a variance of their own. is_rms_norm: RMSNorm, without the mean. Raises TypeError for what is no
    tensor; ValueError for another shape, and a group_size that does not divide d.
    """
    check_rows({"x": x, "z": z}, {"weight": weight, "bias": bias})
    if group_size is not None and x.shape[-1] % check_size("group_size", group_size):
        raise ValueError(f"group_size is {group_size}; it must divide the {x.shape[-1]} channels of x")
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    gate = None if z is None else F.silu(z.to(work))
    wide = x.to(work)
    if gate is not None and not norm_before_gate:
        wide = wide * gate
    grouped = wide.unflatten(-1, (-1, group_size or x.shape[-1]))
    if not is_rms_norm:
        grouped = grouped - grouped.mean(-1, keepdim=True)
    y = (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)).flatten(-2) * weight.to(work)
    if bias is not None:
        y = y + bias.to(work)
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """``layernorm_fn`` without the mean."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)


def _check(
    hidden_size: object, eps: object, group_size: object, norm_before_gate: object, device: object, dtype: object
) -> None:
    """Check the arguments of a module."""
    check_size("hidden_size", hidden_size)
    check_number("eps", eps, least=0)
    if group_size is not None:
        check_size("group_size", group_size)
    check_flag("norm_before_gate", norm_before_gate)
    check_factory(device, dtype)


class RMSNorm(nn.Module):
    """``rmsnorm_fn`` as a module: (x, z) -> as x; ``weight`` starts at 1."""

    bias: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(hidden_size, eps, group_size, norm_before_gate, device, dtype)
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set ``weight`` to 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """x, z (..., hidden_size)."""
        return rmsnorm_fn(x, self.weight, None, z, self.eps, self.group_size, self.norm_before_gate)


class LayerNorm(nn.Module):
    """``layernorm_fn`` as a module: (x, z) -> as x; ``weight`` starts at 1, ``bias`` at 0."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(hidden_size, eps, group_size, norm_before_gate, device, dtype)
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set ``weight`` to 1 and ``bias`` to 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """x, z (..., hidden_size)."""
        return layernorm_fn(x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate)
