"""The scan of an image on a GPU: its four directions as one Scan.

    raw_p = dt_weight_k rank_p    delta_p = softplus(raw_p + dt_bias_k)
    y_p = sum over k of scan(delta, x, B, C)_p + D_k x_p

p runs over the positions in direction k's order.

The directions' results are stored apart in float32, or a direction and its reverse added in place,
and summed in a fixed order. A small rank of delta is multiplied inside the scan; a larger one
before it, as backward always does. Half precision is widened before the scan and rounded after it.
Kept for backward: nothing for up to 64 positions, else the state before every 32, 2 bytes an
element of x and direction at n = 16.
"""

from dataclasses import replace

import torch
from torch import Tensor

from medmambase_kernels._triton import image_pack, launch_table
from medmambase_kernels._triton import scan as scans

_WIDEST = 64  # columns of a row of B, C and the rank of delta, up to which ``parts`` takes it


def kept_shape(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> tuple[int, ...]:
    """Shape of the states kept for backward, (b, k, chunks, n padded, d); empty for one chunk,
    which starts from zero. Tensors as in ``forward``."""
    chunks = launch_table.chunks_of(x.shape[1] * x.shape[2])
    return (x.shape[0], A.shape[0], chunks, launch_table.power_of_two(A.shape[2]), x.shape[3]) if chunks > 1 else (0,)


def _positions(t: Tensor) -> Tensor:
    """(b, h, w, d) as (b, l, d), contiguous, in float32: a copy unless it was so."""
    return t.to(torch.float32, memory_format=torch.contiguous_format).contiguous().flatten(1, 2)


def _scan(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, log_A: bool, rank_inside: bool
) -> scans.Scan:
    positions, rows, A2, W, raw = image_pack.packed(x, x_dbl, A, dt_weight, log_A, not rank_inside)
    return scans.Scan(positions, raw, rows, W, A2, D.contiguous(), dt_bias.contiguous(), *x.shape[1:3])


def forward(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, out_dtype: torch.dtype,
    log_A: bool, save: bool, config: launch_table.ForwardLaunch | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip  # in the operator's order
    """y (b, h, w, d) in out_dtype, and what is kept (empty unless save). Arguments as in
    reference.selective_scan_2d."""
    shape = kept_shape(x, x_dbl, dt_weight, dt_bias, A, D) if save else (0,)
    if not x.numel():
        return x.new_empty(x.shape, dtype=out_dtype), A.new_empty(shape)
    b, h, w, d = x.shape
    config = config or launch_table.forward(b, 4, d, h * w, A.shape[2], dt_weight.shape[2], scans.processors(x))
    scan = _scan(x, x_dbl, dt_weight, dt_bias, A, D, log_A, config.rank_inside)
    parts, entry = scans.forward(scan, config, shape != (0,))
    return parts.sum(0).to(out_dtype).view(x.shape), entry if shape != (0,) else A.new_empty(0)


def takes_rows(columns: Tensor) -> bool:
    """Whether ``parts`` takes what columns (k * width, d) make: of more, its tables would not fit
    into registers."""
    return columns.shape[0] <= scans.K * _WIDEST


def parts(x: Tensor, rows: Tensor, W: Tensor, A2: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
    """The scan of a small map x (b, h, w, d), float32, as parts (p, b, h, w, d), to be added: from
    rows (b, h, w, k * width), W and A2 that are laid out as ``image_pack.packed`` would. Delta is
    projected inside, which is less than the launch of a kernel before it. Without gradients."""
    (b, h, w, d), n, r = x.shape, A2.shape[1], W.shape[1]
    config = replace(launch_table.forward(b, 4, d, h * w, n, r, scans.processors(x)), registers=255)  # for W too
    scan = scans.Scan(_positions(x), None, rows.view(b, h * w, 4, -1), W, A2, D, dt_bias, h, w)
    return scans.forward(scan, config, False)[0].view(-1, *x.shape)


def backward(
    dy: Tensor, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    out_dtype: torch.dtype, log_A: bool, kept: Tensor,
    config: launch_table.BackwardLaunch | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip  # in the operator's order
    """Gradients of x, x_dbl, dt_weight, dt_bias, A and D, contiguous, each in its tensor's
    dtype."""
    if not x.numel():
        return tuple(torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (x, x_dbl, dt_weight, dt_bias, A, D))
    (b, h, w, d), n, r = x.shape, A.shape[2], dt_weight.shape[2]
    config = config or launch_table.backward(b, 4, d, h * w, n, scans.processors(x))
    scan = _scan(x, x_dbl, dt_weight, dt_bias, A, D, log_A, rank_inside=False)
    g = scans.backward(scan, config, _positions(dy), kept if kept.numel() else None)
    read = (scan.rows, scan.A2, scan.W)
    return image_pack.unpacked(g.x, g.rows, g.raw, g.parts, *read, x, x_dbl, n, r, log_A)
