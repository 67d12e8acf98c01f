"""What stands for each operator of ours in an exported graph: functions of the operator's own
arguments, in PyTorch's operators, around a ``recurrence`` that is given.

Nothing is computed in place: a graph is decomposed as it is written.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels.reference import groups_of, scan_order

Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def decompositions(recurrence: Recurrence) -> dict[Any, Callable[..., tuple[Tensor, ...]]]:
    """Return what ``ExportedProgram.run_decompositions`` takes: each operator with the function
    that stands for it. ``recurrence`` is one of those in ``recurrence.py``."""
    ours = torch.ops.medmambase
    return {
        ours.causal_conv1d.default: _causal_conv1d,
        ours.depthwise_silu.default: _depthwise_silu,
        ours.gated_norm.default: _gated_norm,
        ours.squeeze_excite.default: _squeeze_excite,
        ours.selective_scan.default: partial(_selective_scan, recurrence),
        ours.selective_scan_2d.default: partial(_selective_scan_2d, recurrence),
    }


def _causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor | None, silu: bool, save: bool, backend: str
) -> tuple[Tensor, Tensor]:
    wide, before = x.to(weight.dtype), weight.shape[1] - 1
    framed = F.pad(wide, (before, 0)) if initial_states is None else torch.cat([initial_states, wide], 2)
    v = F.conv1d(framed, weight[:, None], bias, groups=len(weight))
    return (F.silu(v) if silu else v).to(x.dtype), weight.new_zeros(0)


def _depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor, save: bool, backend: str) -> tuple[Tensor, Tensor]:
    planes = x.to(weight.dtype).permute(0, 3, 1, 2)
    v = F.conv2d(planes, weight, bias, padding=1, groups=len(weight))
    return F.silu(v).permute(0, 2, 3, 1).to(x.dtype), weight.new_zeros(0)


def _gated_norm(
    y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float, save: bool, backend: str
) -> tuple[Tensor, Tensor]:
    normed = F.layer_norm(y.to(weight.dtype), weight.shape, weight, bias, eps)
    return (normed * F.silu(z.to(weight.dtype))).to(z.dtype), weight.new_zeros(0)


def _squeeze_excite(
    x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, second: Tensor | None,
    factor: Tensor | None, scale: float, save: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip  # in the operator's order
    whole = x
    if second is not None:
        whole = torch.cat([F.relu(x), second if factor is None else second * factor[:, None, None, None]], -1)
    pooled = whole.mean((1, 2), dtype=squeeze.dtype)
    gate = scale * torch.sigmoid(F.relu(pooled @ squeeze.t()) @ excite.t())
    gated = whole * gate[:, None, None]
    if residual is None:
        return gated.to(x.dtype), squeeze.new_zeros(0)
    shuffled = gated.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return (residual + shuffled).to(residual.dtype), squeeze.new_zeros(0)


def _selective_scan(
    recurrence: Recurrence,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    out_dtype: torch.dtype,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (b, d, l), the last state (b, d, n), and nothing kept; arguments as in ``reference``."""
    work = A.dtype
    batch, channels, length = u.shape
    constant = B.dim() == 2 or C.dim() == 2
    groups = channels if constant else groups_of(B, C)  # a constant B or C differs from channel to channel

    def rows(t: Tensor) -> Tensor:
        return t.permute(2, 0, 1).unflatten(2, (groups, -1)).unsqueeze(3)

    def weights(t: Tensor) -> Tensor:
        """(l, b, g, n)."""
        if t.dim() == 2:
            return t.to(work).expand(length, batch, -1, -1)
        every = t.to(work).permute(3, 0, 1, 2)
        return every.repeat_interleave(channels // t.shape[1], 2) if constant else every

    def states(t: Tensor) -> Tensor:
        """(b, d, n) -> (b, g, n, e)."""
        return t.unflatten(1, (groups, -1)).transpose(2, 3)

    wide = u.to(work)
    delta = delta.to(work)
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = softplus(delta)
    entry = u.new_zeros(batch, channels, A.shape[1], dtype=work) if initial_state is None else initial_state
    last, y = recurrence(
        states(entry), rows(delta), rows(delta * wide), A.unflatten(0, (groups, -1)).transpose(1, 2),
        weights(B).unsqueeze(4), weights(C).unsqueeze(3),
    )  # fmt: skip  # in the order of the recurrence
    y = y.squeeze(3).flatten(2).permute(1, 2, 0)
    if D is not None:
        y = y + wide * D[:, None]
    return y.to(out_dtype), last.transpose(2, 3).flatten(1, 2), A.new_zeros(0)


def _selective_scan_2d(
    recurrence: Recurrence,
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_dtype: torch.dtype,
    log_A: bool,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y (b, h, w, d), and nothing kept; arguments as in ``reference``.

    Positions stand first, and what a direction reads is taken from there by one table of indices.
    """
    work, (batch, height, width, channels) = A.dtype, x.shape
    directions, _, state = A.shape
    positions = height * width
    forth, back = _orders(height, width, x.device), _orders(width, height, x.device, inverse=True)

    wide = x.to(work).permute(1, 2, 0, 3).reshape(positions, batch, channels)
    columns = x_dbl.to(work).permute(1, 2, 3, 0, 4).reshape(positions * directions, batch, x_dbl.shape[4])
    k = torch.arange(directions, device=x.device)
    u = wide[forth]  # (l, k, b, d)
    rank, B, C = columns[forth * directions + k].split([dt_weight.shape[2], state, state], -1)
    flat = rank.permute(1, 0, 2, 3).reshape(directions, positions * batch, dt_weight.shape[2])
    delta = softplus(torch.matmul(flat, dt_weight.transpose(1, 2)) + dt_bias[:, None])
    delta = delta.reshape(directions, positions, batch, channels).permute(1, 0, 2, 3)
    A = -A.exp() if log_A else A
    entry = x.new_zeros(directions, batch, state, channels, dtype=work)
    _, found = recurrence(
        entry, delta.unsqueeze(3), (delta * u).unsqueeze(3), A.transpose(1, 2).unsqueeze(1), B.unsqueeze(4),
        C.unsqueeze(3),
    )  # fmt: skip  # in the order of the recurrence
    found = found.reshape(positions * directions, batch, channels)[back * directions + k]
    y = found.sum(1) + wide * D.sum(0)  # the four skips read the same x
    return y.reshape(height, width, batch, channels).permute(2, 0, 1, 3).to(out_dtype), A.new_zeros(0)


def _orders(height: int, width: int, device: torch.device, inverse: bool = False) -> Tensor:
    """``reference.scan_order`` as (l, k); or, of the map turned on its side, where each position
    stands in each direction's order."""
    order = scan_order(height, width, device)
    if inverse:
        rows, columns = order[0], order[1]
        last = height * width - 1
        order = torch.stack([rows, columns, last - rows, last - columns])
    return order.t()


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to the last digits where x is far below 0, too: ONNX has no log1p, and its
    Softplus keeps there what 1 + exp(x) has kept."""
    u = torch.exp(-x.abs())
    one_more = 1 + u
    lost = u - (one_more - 1)
    return x.clamp(min=0) + (torch.log(one_more) + lost / one_more)
