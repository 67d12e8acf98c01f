"""The scan of an image in four directions, in plain PyTorch operations, on any device.

The directions are the groups of the scan of a sequence: a chunk takes CHUNK positions of each
direction's order from one time-first x, so that the four orders meet as one slab (direction, image,
state, channel) and x is never copied for them.
The delta projection is made a chunk at a time and never written out. Kept for backward: the state
at each chunk's entry.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels._torch.selective_scan import CHUNK, Buffers, batch_slices, over_states, rebuild, reverse
from medmambase_kernels.reference import scan_order


def kept_shape(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> tuple[int, ...]:
    """Shape of the states at the chunks' entries, (chunks, k, b, n, d). Tensors as in
    ``forward``."""
    directions, channels, state = A.shape
    return (-(-x.shape[1] * x.shape[2] // CHUNK), directions, x.shape[0], state, channels)


class _Directions:
    """x and its projection, read a chunk of every direction at a time."""

    def __init__(self, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor) -> None:
        self.x, self.x_dbl = x.flatten(1, 2), x_dbl.flatten(1, 2)
        self.order = scan_order(x.shape[1], x.shape[2], x.device).t().contiguous()  # (l, k)
        self.k = torch.arange(len(A), device=x.device)
        self.columns = [dt_weight.shape[2], A.shape[2], A.shape[2]]
        self.dt_weight, self.dt_bias = dt_weight.transpose(1, 2).contiguous(), dt_bias.unsqueeze(1)
        self.A = A.transpose(1, 2).unsqueeze(1).contiguous()  # (k, 1, n, d)

    @property
    def chunks(self) -> list[Tensor]:
        """Positions (t, k), chunk after chunk."""
        return list(self.order.split(CHUNK)) if len(self.order) else []

    def time_first(self, t: Tensor, images: slice) -> Tensor:
        """(b, l, ...) -> (l, b, ...) in the working precision, one copy for all directions."""
        return t[images].transpose(0, 1).to(self.A.dtype).contiguous()

    def read(self, x: Tensor, x_dbl: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """u, delta (t, k, b, d), the delta rank (t, k, b, r), B and C (t, k, b, n, 1)."""
        rank, B, C = x_dbl[positions, :, self.k].split(self.columns, -1)
        delta = F.softplus(torch.matmul(rank, self.dt_weight).add_(self.dt_bias))
        return x[positions], delta, rank, B.unsqueeze(-1), C.unsqueeze(-1)


def forward(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_dtype: torch.dtype,
    log_A: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """y (b, h, w, d) and, if ``save``, the chunks' entry states; shapes as in ``reference``."""
    A = -A.exp() if log_A else A
    directions = _Directions(x, x_dbl, dt_weight, dt_bias, A)
    y = x.new_empty(x.shape, dtype=out_dtype)
    kept = A.new_empty(kept_shape(x, x_dbl, dt_weight, dt_bias, A, D) if save else (0,))
    for images in batch_slices(len(x), min(CHUNK, len(directions.order)) * A.numel()):
        x_t, x_dbl_t = directions.time_first(directions.x, images), directions.time_first(directions.x_dbl, images)
        y_t = x_t * D.sum(0)  # the four skips read the same x
        buffers = Buffers.like(directions.A, x_t.shape[1], min(CHUNK, len(x_t)), backward=False)
        entry = A.new_zeros(buffers.h.shape[1:])
        for index, positions in enumerate(directions.chunks):
            if save:
                kept[index, :, images] = entry
            u, delta, _, B, C = directions.read(x_t, x_dbl_t, positions)
            a, h = rebuild(delta, delta * u, directions.A, B, entry, buffers)
            entry = h[-1]
            _add_in_place(y_t, positions, over_states(C, h[1:], a))
        y[images] = y_t.transpose(0, 1).view(y[images].shape)
    return y, kept


def backward(
    dy: Tensor,
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_dtype: torch.dtype,
    log_A: bool,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, x_dbl, dt_weight, dt_bias, A and D."""
    A = -A.exp() if log_A else A
    directions = _Directions(x, x_dbl, dt_weight, dt_bias, A)
    dx, dx_dbl = torch.empty_like(x), torch.empty_like(x_dbl)
    d_dt_weight, d_dt_bias, dA, dD = (t.new_zeros(t.shape) for t in (dt_weight, dt_bias, A, D))
    for images in batch_slices(len(x), min(CHUNK, len(directions.order)) * A.numel()):
        x_t, x_dbl_t = directions.time_first(directions.x, images), directions.time_first(directions.x_dbl, images)
        dy_t = directions.time_first(dy.flatten(1, 2), images)
        dx_t, dx_dbl_t = dy_t * D.sum(0), torch.empty_like(x_dbl_t)
        dD += (dy_t * x_t).sum((0, 1))
        buffers = Buffers.like(directions.A, x_t.shape[1], min(CHUNK, len(x_t)), backward=True)
        carry = A.new_zeros(buffers.h.shape[1:])
        for index, positions in reversed(list(enumerate(directions.chunks))):
            u, delta, rank, B, C = directions.read(x_t, x_dbl_t, positions)
            drive = delta * u
            a, h = rebuild(delta, drive, directions.A, B, kept[index, :, images], buffers)
            du, ddelta, dA_c, dB, dC = reverse(
                dy_t[positions], u, delta, drive, directions.A, B, C, a, h, carry, buffers
            )
            ddelta *= -torch.expm1(-delta)  # the sigmoid of what went into the softplus
            d_dt_bias += ddelta.sum((0, 2))
            d_dt_weight += torch.matmul(ddelta.transpose(-1, -2), rank).sum(0)
            dA += dA_c.transpose(1, 2)
            drank = torch.matmul(ddelta, directions.dt_weight.transpose(-1, -2))
            dx_dbl_t[positions, :, directions.k] = torch.cat([drank, dB.squeeze(-1), dC.squeeze(-1)], -1)
            _add_in_place(dx_t, positions, du)
        dx[images] = dx_t.transpose(0, 1).view(dx[images].shape)
        dx_dbl[images] = dx_dbl_t.transpose(0, 1).view(dx_dbl[images].shape)
    return dx, dx_dbl, d_dt_weight, d_dt_bias, dA * A if log_A else dA, dD


def _add_in_place(total: Tensor, positions: Tensor, parts: Tensor) -> None:
    """Add parts (t, k, b, d) to total (l, b, d), a direction after the other: within one no
    position occurs twice, so the order of the additions, and with it every bit of the result, is
    fixed on any device."""
    for k in range(parts.shape[1]):
        total.index_add_(0, positions[:, k], parts[:, k])
