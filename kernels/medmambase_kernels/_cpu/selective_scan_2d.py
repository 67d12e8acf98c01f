"""The scan of an image on a CPU: its four directions as one Scan, whose positions are read in four
orders.

x_dbl is read as it stands, delta is projected inside. Kept for backward: the state before every 32
steps, 2 bytes an element of x and direction at n = 16 in float32.
"""

import functools

import torch
from torch import Tensor

from medmambase_kernels._cpu import scan as scans
from medmambase_kernels._cpu.numerics import LOG2E
from medmambase_kernels.reference import scan_order


@functools.lru_cache(maxsize=64)
def _orders(height: int, width: int) -> Tensor:
    """(4, l) int32, the position at each step of each direction."""
    with torch.inference_mode(False):  # it is kept: made in inference, it could not be used in training
        return scan_order(height, width, torch.device("cpu")).to(torch.int32).contiguous()


def kept_shape(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> tuple[int, ...]:
    """Shape of the states kept for backward, (b, k, chunks, n, d padded) in one axis. Tensors as in
    ``forward``."""
    return (x.shape[0] * A.shape[0] * scans.chunks_of(x.shape[1] * x.shape[2]) * A.shape[2] * scans.padded(x.shape[3]),)


def _scan(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> scans.Scan:
    rows = x_dbl.float().flatten(1, 2)
    l, columns = rows.shape[1], rows.shape[3]
    if rows.stride() != (
        l * rows.stride(1),
        rows.stride(1),
        columns,
        1,
    ):  # else rows that may have something between them
        rows = rows.contiguous()
    W, A2 = scans.fit(dt_weight.transpose(1, 2)), scans.fit(A.transpose(1, 2) * LOG2E)
    return scans.Scan(
        scans.fit(x.flatten(1, 2)),
        None,
        rows,
        W,
        A2,
        None,
        None,
        scans.fit(D),
        scans.fit(dt_bias),
        True,
        _orders(*x.shape[1:3]),
    )


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
    """y (b, h, w, d) in out_dtype, and what is kept (empty unless save). Arguments as in
    reference.selective_scan_2d."""
    if not x.numel():
        return x.new_empty(x.shape, dtype=out_dtype), A.new_empty(
            kept_shape(x, x_dbl, dt_weight, dt_bias, A, D) if save else 0
        )
    A = -A.exp() if log_A else A
    y, entry, _ = scans.forward(_scan(x, x_dbl, dt_weight, dt_bias, A, D), None, save)
    return y[..., : x.shape[3]].to(out_dtype).reshape(x.shape), entry


def backward(
    dy: Tensor, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    out_dtype: torch.dtype, log_A: bool, kept: Tensor
) -> tuple[Tensor, ...]:  # fmt: skip  # in the operator's order
    """Gradients of x, x_dbl, dt_weight, dt_bias, A and D, each in its tensor's dtype."""
    if not x.numel():
        return tuple(torch.zeros(t.shape, dtype=t.dtype) for t in (x, x_dbl, dt_weight, dt_bias, A, D))
    d, A = x.shape[3], -A.exp() if log_A else A
    g = scans.backward(_scan(x, x_dbl, dt_weight, dt_bias, A, D), scans.fit(dy.flatten(1, 2)), kept, None)
    dx, dx_dbl = g.x[..., :d].to(x.dtype).reshape(x.shape), g.rows.to(x_dbl.dtype).view(x_dbl.shape)
    dA = g.A[..., :d].transpose(1, 2)
    return dx, dx_dbl, g.W[..., :d].transpose(1, 2), g.bias[:, :d], dA * A if log_A else dA, g.D[:, :d]
