"""The definitions: each operator once, as a plain loop in float64. Every backend must equal these.

Differentiable by autograd, twice if need be; slow on purpose.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def groups_of(B: Tensor, C: Tensor) -> int:
    """Groups of channels that share B and C, which are (d, n) or (b, g, n, l)."""
    return next((t.shape[1] for t in (B, C) if t.dim() == 4), 1)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """h_l = exp(delta_l A) h_{l-1} + delta_l u_l B_l;  y_l = (<C_l, h_l> + D u_l) silu(z_l).

    u, z (b, d, l); A (d, n); B, C (d, n) or (b, g, n, l) with channel i in group i // (d / g); D
    (d,); delta (b, q, l), delta_bias (q,) with channel i in row i // (d / q); initial_state (b, d,
    n). Returns y (b, d, l) and the last state (b, d, n), both float64.
    """
    u, delta, A, B, C = (t.double() for t in (u, delta, A, B, C))
    batch, channels, length = u.shape
    if delta_bias is not None:
        delta = delta + delta_bias.double()[:, None]
    if delta.shape[1] != channels:
        delta = delta.repeat_interleave(channels // delta.shape[1], 1)
    if delta_softplus:
        delta = F.softplus(delta)  # beta 1, threshold 20
    h = u.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state.double()
    outputs = []
    for step in range(length):
        B_l, C_l = (_at_step(t, step, channels) for t in (B, C))
        h = torch.exp(delta[:, :, step, None] * A) * h + (delta * u)[:, :, step, None] * B_l
        outputs.append((C_l * h).sum(-1))
    y = torch.stack(outputs, -1) if outputs else u.clone()  # an empty sequence
    if D is not None:
        y = y + D.double()[:, None] * u
    return (y if z is None else y * F.silu(z.double())), h


def _at_step(t: Tensor, step: int, channels: int) -> Tensor:
    """B or C at one step, one row of states a channel: (d, n) or (b, d, n)."""
    return t if t.dim() == 2 else t[..., step].repeat_interleave(channels // t.shape[1], 1)


def scan_order(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Row-major positions in each direction's order, (k, h * w): 0 by rows, 1 by columns, 2 and 3
    those reversed."""
    rows = torch.arange(height * width, device=device)
    columns = rows.view(height, width).t().reshape(-1)
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)])


def selective_scan_2d(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, log_A: bool
) -> Tensor:
    """SS2D's core: four selective scans over one image, each in its own order, put back in place
    and added.

    x (b, h, w, d); x_dbl (b, h, w, k, r + 2n), per position and direction the columns [delta rank |
    B | C]; dt_weight (k, d, r), dt_bias (k, d), A (k, d, n), D (k, d); k = 4. delta =
    softplus(dt_weight . rank + dt_bias). With ``log_A``, A is -exp of the argument.
    Returns y (b, h, w, d) in float64.
    """
    A = -A.double().exp() if log_A else A
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[2], A.shape[2]
    positions = x.double().reshape(batch, height * width, channels)
    projected = x_dbl.double().reshape(batch, height * width, len(A), rank + 2 * state)
    y = torch.zeros_like(positions)
    for k, order in enumerate(scan_order(height, width, x.device)):
        low_rank, B, C = projected[:, order, k].split([rank, state, state], -1)  # each (b, l, .)
        delta = low_rank @ dt_weight[k].double().t()
        in_order, _ = selective_scan(
            positions[:, order].transpose(1, 2), delta.transpose(1, 2), A[k], B.transpose(1, 2)[:, None],
            C.transpose(1, 2)[:, None], D[k], None, dt_bias[k], True, None,
        )  # fmt: skip  # one argument list, in the operator's order
        y = y + torch.zeros_like(y).index_copy(1, order, in_order.transpose(1, 2))
    return y.reshape(x.shape)


def squeeze_excite(
    x: Tensor,
    squeeze: Tensor,
    excite: Tensor,
    residual: Tensor | None,
    second: Tensor | None,
    factor: Tensor | None,
    scale: float,
) -> Tensor:
    """x * scale * sigmoid(excite . relu(squeeze . mean over positions of x)); with ``residual``,
    that plus the product with the two halves of its channels interleaved.

    x, residual (b, h, w, c); squeeze (hidden, c); excite (c, hidden). With ``second``, the halves
    of the channels come apart, (b, h, w, c / 2) each: relu(x), and ``second`` times the ``factor``
    (b,) of its image, or 1. Returns (b, h, w, c) in float64.
    """
    x = x.double()
    if second is not None:
        scaled = second.double() if factor is None else second.double() * factor.double()[:, None, None, None]
        x = torch.cat([F.relu(x), scaled], -1)
    hidden = F.relu(x.mean((1, 2)) @ squeeze.double().t())
    gate = scale * torch.sigmoid(hidden @ excite.double().t())
    gated = x * gate[:, None, None, :]
    return gated if residual is None else residual.double() + gated.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def gated_norm(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(weight * (y - mean) / sqrt(variance + eps) + bias) * silu(z), mean and variance of each
    position over its channels.

    y, z (b, h, w, d); weight, bias (d,). Returns (b, h, w, d) in float64.
    """
    y = y.double()
    centred = y - y.mean(-1, keepdim=True)
    deviation = torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (weight.double() * centred / deviation + bias.double()) * F.silu(z.double())


def depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu(bias + the 3x3 neighbourhood of each position, channel by channel, weighted); zeros lie
    around the map.

    x (b, h, w, d); weight (d, 1, 3, 3), as nn.Conv2d holds it, rows before columns; bias (d,).
    Returns (b, h, w, d) in float64.
    """
    height, width = x.shape[1:3]
    framed = F.pad(x.double(), (0, 0, 1, 1, 1, 1))
    v = torch.zeros_like(x, dtype=torch.float64) + bias.double()
    for row in range(3):
        for column in range(3):
            v = v + weight.double()[:, 0, row, column] * framed[:, row : row + height, column : column + width]
    return F.silu(v)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor | None, silu: bool) -> Tensor:
    """act(bias + sum over taps i of weight_i x_{l - w + 1 + i}), channel by channel; act is SiLU or
    nothing.

    x (b, d, l); weight (d, w); bias (d,); initial_states (b, d, w - 1), what stands before x: zeros
    if None. Returns (b, d, l) in float64.
    """
    taps, length = weight.shape[1], x.shape[2]
    x = x.double()
    before = x.new_zeros(*x.shape[:2], taps - 1) if initial_states is None else initial_states.double()
    framed = torch.cat([before, x], 2)
    v = torch.zeros_like(x) + bias.double()[:, None]
    for tap in range(taps):
        v = v + weight.double()[:, tap, None] * framed[..., tap : tap + length]
    return F.silu(v) if silu else v
