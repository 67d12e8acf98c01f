"""LayerNorm times silu(z) on a GPU: a row of channels in registers, so that each direction is one
pass over memory.

    x = (y - mean) rstd    n = weight x + bias    s = sigmoid(z)    out = n z s
    dn = dout z s    dz = dout n s (1 + z (1 - s))    dx = dn weight
    dy = rstd (dx - mean of dx - x mean of (dx x))
    dweight = sum of dn x    dbias = sum of dn    over all rows

Kept for backward: mean and rstd, 8 bytes a row. A program of backward takes a strip of rows and
leaves one partial sum for each of the two weights, a row of ``part``; these are added in their
order: no atomics, every run gives the same bits. Bytes an element, float32: 12 forward, 20
backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton import partial_sums
from medmambase_kernels._triton.layout import as_rows
from medmambase_kernels._triton.numerics import load, sigmoid

_STRIPS = 512  # of rows, at most: some programs for every multiprocessor, and few partial sums
# A lane of ``_norm_back``, at most: as many as 16 warps have. Left to itself, the assembler of
# Triton 3.3 stops at 64 for compute capabilities 8.6 and 8.9, and spills.
_REGISTERS = 128


def kept_shape(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    """Shape of mean and rstd, (2, b, h, w)."""
    return (2, *y.shape[:3])


def _tile(d: int) -> dict[str, int]:
    """Rows and (padded) channels a step of a program, 8 elements a thread where a row is short, and
    its warps."""
    D = triton.next_power_of_2(d)
    return {"ROWS": max(1, 1024 // D), "D": D, "num_warps": max(4, min(16, D // 256)), "enable_fp_fusion": True}


@triton.jit
def _norm(
    y_ptr,
    z_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    kept_ptr,
    rows,
    d,
    eps,
    y_l,
    z_l,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    """out = layer_norm(y) silu(z), and kept (2, rows), mean and rstd of each row."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, D)
    in_d = channel < d
    live = (row < rows)[:, None] & in_d[None, :]
    y = load(y_ptr + row[:, None] * y_l + channel[None, :], live)
    z = load(z_ptr + row[:, None] * z_l + channel[None, :], live)
    mean = tl.sum(y, 1) / d
    centred = tl.where(in_d[None, :], y - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / d + eps)
    n = load(weight_ptr + channel, in_d)[None, :] * (centred * rstd[:, None]) + load(bias_ptr + channel, in_d)[None, :]
    tl.store(
        out_ptr + row[:, None] * d + channel[None, :], (n * z * sigmoid(z)).to(out_ptr.dtype.element_ty), mask=live
    )
    tl.store(kept_ptr + row, mean, mask=row < rows)
    tl.store(kept_ptr + rows + row, rstd, mask=row < rows)


@triton.jit
def _norm_back(
    dout_ptr, y_ptr, z_ptr, weight_ptr, bias_ptr, kept_ptr, dy_ptr, dz_ptr, part_ptr, rows, d, steps, dout_l,
    y_l, z_l, ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip  # tensors; results; sizes and strides; tile sizes
    """dy and dz of a strip of rows, and its sums for weight and bias: part (strips, 2, d)."""
    i = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, D)
    in_d = channel < d
    weight, bias = load(weight_ptr + channel, in_d)[None, :], load(bias_ptr + channel, in_d)[None, :]
    dweight, dbias = tl.zeros([ROWS, D], tl.float32), tl.zeros([ROWS, D], tl.float32)
    for step in range(0, steps):
        row = (i * steps + step) * ROWS + tl.arange(0, ROWS)
        live = (row < rows)[:, None] & in_d[None, :]
        dout = load(dout_ptr + row[:, None] * dout_l + channel[None, :], live)
        y = load(y_ptr + row[:, None] * y_l + channel[None, :], live)
        z = load(z_ptr + row[:, None] * z_l + channel[None, :], live)
        mean, rstd = load(kept_ptr + row, row < rows)[:, None], load(kept_ptr + rows + row, row < rows)[:, None]
        x = (y - mean) * rstd  # beyond the last channel not 0, but dout is
        s = sigmoid(z)
        gate = z * s
        dn = dout * gate
        dx = dn * weight
        dy = rstd * (dx - tl.sum(dx, 1)[:, None] / d - x * (tl.sum(dx * x, 1)[:, None] / d))
        dz = dout * (weight * x + bias) * (s + gate * (1.0 - s))
        dweight += dn * x
        dbias += dn
        tl.store(dy_ptr + row[:, None] * d + channel[None, :], dy.to(dy_ptr.dtype.element_ty), mask=live)
        tl.store(dz_ptr + row[:, None] * d + channel[None, :], dz.to(dz_ptr.dtype.element_ty), mask=live)
    tl.store(part_ptr + i * 2 * d + channel, tl.sum(dweight, 0), mask=in_d)
    tl.store(part_ptr + (i * 2 + 1) * d + channel, tl.sum(dbias, 0), mask=in_d)


def forward(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float, save: bool) -> tuple[Tensor, Tensor]:
    """The gated norm (b, h, w, d) in z's dtype and, if ``save``, mean and rstd. Arguments as in
    reference.gated_norm."""
    out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    kept = weight.new_empty(kept_shape(y, z, weight, bias))
    if y.numel():
        ys, zs, tile = as_rows(y), as_rows(z), _tile(y.shape[3])
        _norm[(triton.cdiv(len(ys), tile["ROWS"]),)](
            ys,
            zs,
            weight.contiguous(),
            bias.contiguous(),
            out,
            kept,
            *ys.shape,
            eps,
            ys.stride(0),
            zs.stride(0),
            **tile,
        )
    return out, kept if save else weight.new_empty(0)


def backward(
    dout: Tensor,
    y: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of y and z (in their dtypes), weight and bias, contiguous."""
    dy, dz = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (y, z))
    if not y.numel():
        return dy, dz, torch.zeros_like(weight), torch.zeros_like(bias)
    douts, ys, zs, tile = as_rows(dout), as_rows(y), as_rows(z), _tile(y.shape[3])
    tiles = triton.cdiv(len(ys), tile["ROWS"])
    steps = triton.cdiv(tiles, _STRIPS)
    strips = triton.cdiv(tiles, steps)
    part = weight.new_empty(strips, 2, y.shape[3])
    _norm_back[(strips,)](
        douts, ys, zs, weight.contiguous(), bias.contiguous(), kept, dy, dz, part, *ys.shape, steps,
        douts.stride(0), ys.stride(0), zs.stride(0), maxnreg=_REGISTERS, **tile,
    )  # fmt: skip  # line by line the kernel's parameters
    return dy, dz, *partial_sums.added(part.flatten(1), y.shape[3])
