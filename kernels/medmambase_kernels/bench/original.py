"""The operators' work as the original MedMamba does it: what our times are compared with.

The original copies the half of a projection before the convolution; for the scan it stacks the
image with its transpose, appends both reversed, projects each of the four copies, scans in float32,
turns the results back and adds them; then it applies LayerNorm and the gate one by one. Its scan is
mamba_ssm's kernel, or where there is none a loop in Python; here the loop reads slices unbound
once, since indexing step by step, as mamba_ssm's own loop does, makes its backward quadratic in the
length.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Scan = Callable[..., Tensor]


def four_directions(x: Tensor) -> Tensor:
    """Put x (b, d, h, w) in the order of each direction: (b, 4, d, l)."""
    two = torch.stack([x.flatten(2), x.transpose(2, 3).contiguous().flatten(2)], 1)
    return torch.cat([two, two.flip(-1)], 1)


def original_scan_2d(
    scan: Scan, x: Tensor, x_proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """Project and scan x (b, h, w, d) in four directions; x_proj (k, r + 2n, d), the others as in
    ``selective_scan_2d``. Returns y (b, h, w, d), float32."""
    b, h, w, d = x.shape
    n, r = A.shape[2], dt_weight.shape[2]
    routes = four_directions(x.permute(0, 3, 1, 2))
    low, B, C = torch.einsum("bkdl,kcd->bkcl", routes, x_proj.to(x.dtype)).split([r, n, n], 2)
    delta = torch.einsum("bkrl,kdr->bkdl", low, dt_weight.to(x.dtype)).contiguous()
    u, delta, B, C = (t.float() for t in (routes.flatten(1, 2), delta.flatten(1, 2), B.contiguous(), C.contiguous()))
    y = scan(u, delta, A.flatten(0, 1), B, C, D.flatten(), None, dt_bias.flatten(), True).view(b, 4, d, h * w)
    back = y[:, 2:].flip(-1)
    by_columns = [t.unflatten(-1, (w, h)).transpose(2, 3).contiguous().flatten(2) for t in (y[:, 1], back[:, 1])]
    return (y[:, 0] + back[:, 0] + by_columns[0] + by_columns[1]).transpose(1, 2).contiguous().view(b, h, w, d)


def original_gate(x: Tensor, squeeze: Tensor, excite: Tensor) -> Tensor:
    """Gate x (b, h, w, c) as the usual module over channels-first maps does; squeeze (hidden, c),
    excite (c, hidden)."""
    maps = x.permute(0, 3, 1, 2)
    pooled = F.adaptive_avg_pool2d(maps, 1).flatten(1)
    gate = torch.sigmoid(F.linear(F.relu(F.linear(pooled, squeeze.to(x.dtype))), excite.to(x.dtype)))
    return (maps * gate[:, :, None, None]).permute(0, 2, 3, 1)


def original_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply nn.Conv2d and SiLU to a channels-first copy of x (b, h, w, d); weight (d, 1, 3, 3)."""
    maps = x.permute(0, 3, 1, 2).contiguous()
    convolved = F.conv2d(maps, weight.to(x.dtype), bias.to(x.dtype), padding=1, groups=len(weight))
    return F.silu(convolved).permute(0, 2, 3, 1)


def original_causal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply nn.Conv1d, padded on both sides and cut off, and SiLU, as Mamba does without
    causal_conv1d: x (b, d, l), weight (d, w)."""
    taps = weight[:, None].to(x.dtype)
    convolved = F.conv1d(x, taps, bias.to(x.dtype), padding=weight.shape[1] - 1, groups=len(weight))
    return F.silu(convolved[..., : x.shape[2]])


def original_norm(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply LayerNorm to y (b, h, w, d), cast it to z's dtype and multiply by SiLU(z)."""
    return F.layer_norm(y, weight.shape, weight, bias).to(z.dtype) * F.silu(z)


def loop_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: None,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """Compute ``selective_scan`` as a loop over the length in PyTorch; u, delta (b, d, l); B, C (b,
    g, n, l); every state is kept for backward."""
    assert delta_softplus  # as MedMamba calls it, and without z
    groups = u.shape[1] // B.shape[1]
    wide, delta = u.float(), F.softplus(delta.float() + delta_bias[:, None])
    B, C = (t.float().repeat_interleave(groups, 1) for t in (B, C))
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    driven = torch.einsum("bdl,bdnl->bdln", delta * wide, B)
    h, outputs = torch.zeros_like(decay[:, :, 0]), []
    for a, b, c in zip(decay.unbind(2), driven.unbind(2), C.unbind(3), strict=True):
        h = a * h + b
        outputs.append((h * c).sum(-1))
    return (torch.stack(outputs, 2) + D[:, None] * wide).to(u.dtype)


def mamba_scan(device: torch.device) -> tuple[Scan | None, str]:
    """Find mamba_ssm's kernel, None where there is none, and say one clause about it. Its package
    installs without the kernel unless asked for it."""
    if device.type != "cuda":
        return None, "runs on an NVIDIA GPU only"
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except (ImportError, OSError) as error:
        return None, f"cannot be imported ({str(error).splitlines()[0]})"
    if getattr(module, "selective_scan_cuda", None) is None:
        return None, "is installed without its CUDA kernel"
    scan: Scan = module.selective_scan_fn
    return scan, "is importable"
