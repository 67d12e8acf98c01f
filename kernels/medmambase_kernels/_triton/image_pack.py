"""Lay out what the scan of an image reads, and what it wrote, each in one kernel.

The scan reads a step at a time, as rows (b, l, k, [B | C | rank of delta]) in float32, each part
padded with zeros to a power of two; A and the weights of delta it reads a channel a lane, as tables
(k, n padded, d). ``pack`` makes both, from tensors of any strides. ``unpack`` turns the gradients
of rows and of what goes into the softplus into that of x_dbl, and leaves parts of that of the
weights; ``totals`` adds parts in a fixed order, and lays them out as the arguments are. The
products are made here in float32, so that no matmul setting (TF32, autocast) reaches them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton import launch_table
from medmambase_kernels._triton.numerics import LOG2E, load
from medmambase_kernels._triton.scan_forward import K

_ROWS, _PARTS, _CHANNELS = 64, 64, 32  # a step of a program takes so many rows or parts, and channels
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _part(source, row, live, column, count, target, x_c, WIDTH: tl.constexpr, N: tl.constexpr):
    """Copy columns from ``column`` on, ``count`` of them, to the N columns at target."""
    within = tl.arange(0, N)
    given = source + row[:, None] + (column + within).to(tl.int64)[None, :] * x_c
    values = load(given, live[:, None] & (within < count)[None, :])
    tl.store(target[:, None] + within[None, :], values, mask=live[:, None] & (within >= 0)[None, :])


@triton.jit
def _turn(source, from_n, from_d, n, target, channel, d, factor, N: tl.constexpr):
    """Copy (d, n) of any strides, times a factor, to a table (N, d) in float32, zeros from n on.

    Each side is read or written along its own contiguous axis: the compiler turns the tile in
    shared memory.
    """
    state = tl.arange(0, N).to(tl.int64)[:, None]
    live = (channel < d)[None, :] & (state >= 0)
    tile = load(source + state * from_n + channel[None, :] * from_d, live & (state < n))
    tl.store(target + state * d + channel[None, :], tile * factor, mask=live)


@triton.jit
def pack(
    x_dbl_ptr, A_ptr, W_ptr, rows_ptr, A2_ptr, W_table_ptr,
    x_b, x_h, x_w, x_k, x_c, A_k, A_d, A_n, W_k, W_d, W_r, positions, height, width, d, n, r, blocks, of_rows,
    N: tl.constexpr, RANK: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip  # tensors; strides; sizes; tile sizes
    """rows (b, h, w, k, [N | N | RANK]) from x_dbl (b, h, w, k, [r | n | n]); tables A2 (k, N, d)
    from A (k, d, n), times log2(e), and (k, RANK, d) from W (k, d, r). The first of_rows programs
    make rows, the others tables. Strides are named after tensor and axis."""
    i = tl.program_id(0)
    if i < of_rows:
        WIDTH: tl.constexpr = 2 * N + RANK
        at = i.to(tl.int64) * BR + tl.arange(0, BR)
        position = at // K
        i_b, place = position // (height * width), position % (height * width)
        row = i_b * x_b + place // width * x_h + place % width * x_w + at % K * x_k
        live = position < positions
        out = rows_ptr + at * WIDTH
        _part(x_dbl_ptr, row, live, r, n, out, x_c, WIDTH, N)
        _part(x_dbl_ptr, row, live, r + n, n, out + N, x_c, WIDTH, N)
        _part(x_dbl_ptr, row, live, 0, r, out + 2 * N, x_c, WIDTH, RANK)
    else:
        i_k = ((i - of_rows) // blocks).to(tl.int64)
        channel = ((i - of_rows) % blocks).to(tl.int64) * BD + tl.arange(0, BD)
        _turn(A_ptr + i_k * A_k, A_n, A_d, n, A2_ptr + i_k * N * d, channel, d, LOG2E, N)
        _turn(W_ptr + i_k * W_k, W_r, W_d, r, W_table_ptr + i_k * RANK * d, channel, d, 1.0, RANK)


@triton.jit
def unpack(
    drows_ptr, draw_ptr, rows_ptr, W_ptr, dx_dbl_ptr, dW_ptr, positions, d, n, r, blocks,
    N: tl.constexpr, RANK: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip  # tensors; sizes; tile sizes
    """dx_dbl (positions, k, [r | n | n]) from drows (blocks, positions, k, N, [dB, dC]), the blocks
    added in their order, and from draw (positions, k, d) through W (k, RANK, d); and parts of W's
    gradient (tiles of BL positions, k, RANK, d)."""
    i = tl.program_id(0).to(tl.int64)
    i_k, i_tile = i % K, i // K
    position = i_tile * BL + tl.arange(0, BL)
    at, in_l = (position * K + i_k)[:, None], (position < positions)[:, None]
    both, low, columns = tl.arange(0, 2 * N), tl.arange(0, RANK)[None, :], tl.arange(0, RANK)[:, None]
    sums = tl.zeros([BL, 2 * N], tl.float32)
    for block in range(0, blocks):
        drow = drows_ptr + tl.full([], block, tl.int64) * positions * (K * 2 * N)
        sums += load(drow + at * (2 * N) + both[None, :], in_l)
    dB, dC = tl.split(tl.reshape(sums, [BL, N, 2]))
    drank = tl.zeros([BL, RANK], tl.float32)
    for first in range(0, d, BD):
        channel = (first + tl.arange(0, BD))[None, :]
        in_d = channel < d
        draw = load(draw_ptr + at * d + channel, in_l & in_d)
        W_row, part = W_ptr + i_k * RANK * d + channel, dW_ptr + (i_tile * K + i_k) * RANK * d + channel
        if RANK < 16:  # tl.dot takes no such tiles in Triton 3.3
            for column in tl.static_range(RANK):
                W = load(W_row + column * d, in_d)
                drank += tl.where(low == column, tl.sum(draw * W, 1)[:, None], 0.0)
                rank = load(rows_ptr + at * (2 * N + RANK) + 2 * N + column, in_l)
                tl.store(part + column * d, tl.sum(draw * rank, 0)[None, :], mask=in_d)
        else:
            W = load(W_row + columns * d, in_d & (columns >= 0))
            drank += tl.dot(draw, tl.trans(W), input_precision="ieee")
            rank = load(rows_ptr + at * (2 * N + RANK) + 2 * N + low, in_l & (low >= 0))
            dW = tl.dot(tl.trans(rank), draw, input_precision="ieee")
            tl.store(part + columns * d, dW, mask=in_d & (columns >= 0))
    out, state = dx_dbl_ptr + at * (r + 2 * n), tl.arange(0, N)[None, :]
    tl.store(out + low, drank.to(dx_dbl_ptr.dtype.element_ty), mask=in_l & (low < r))
    tl.store(out + r + state, dB.to(dx_dbl_ptr.dtype.element_ty), mask=in_l & (state < n))
    tl.store(out + (r + n) + state, dC.to(dx_dbl_ptr.dtype.element_ty), mask=in_l & (state < n))


@triton.jit
def _total(source, parts, size, channel, d, BP: tl.constexpr, BD: tl.constexpr):
    """The sum over ``parts`` rows of d channels, ``size`` elements apart, in a fixed order."""
    sums = tl.zeros([BP, BD], tl.float32)
    for first in range(0, parts, BP):
        part = first + tl.arange(0, BP).to(tl.int64)
        sums += load(source + part[:, None] * size + channel[None, :], (part < parts)[:, None] & (channel < d)[None, :])
    return tl.sum(sums, 0)


@triton.jit
def totals(
    of_A_ptr, of_W_ptr, dA_ptr, dW_ptr, dD_ptr, dbias_ptr, parts_A, parts_W, d, n, r, blocks,
    N: tl.constexpr, RANK: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip  # tensors; sizes; tile sizes
    """dA (k, d, n), dD and dbias (k, d) from parts (parts_A, k, N + 2, d), and dW (k, d, r) from
    parts (parts_W, k, RANK, d)."""
    i = tl.program_id(0)
    ROWS: tl.constexpr = N + 2
    row, channel = i // blocks, (i % blocks).to(tl.int64) * BD + tl.arange(0, BD)
    if row < K * ROWS:
        total = _total(of_A_ptr + row.to(tl.int64) * d, parts_A, K * ROWS * d, channel, d, BP, BD)
        i_k, state = row // ROWS, row % ROWS
        place, in_d = i_k.to(tl.int64) * d + channel, channel < d
        tl.store(dA_ptr + place * n + state, total, mask=in_d & (state < n))
        tl.store(dD_ptr + place, total, mask=in_d & (state == N))
        tl.store(dbias_ptr + place, total, mask=in_d & (state == N + 1))
    else:
        row -= K * ROWS
        total = _total(of_W_ptr + row.to(tl.int64) * d, parts_W, K * RANK * d, channel, d, BP, BD)
        i_k, low = row // RANK, row % RANK
        place = i_k.to(tl.int64) * d + channel
        tl.store(dW_ptr + place * r + low, total, mask=(channel < d) & (low < r))


def _tile(positions: int) -> int:
    """Positions that a program of ``unpack`` takes, each of which leaves its part of the weights'
    gradient: few, where there would be too few programs."""
    return 16 if positions <= 8192 else 64


def packed(x_dbl: Tensor, A: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rows (b, l, k, 2 n padded + r padded), and the tables A log2(e) (k, n padded, d) and W (k, r
    padded, d), from x_dbl (b, h, w, k, r + 2n), A (k, d, n) and W (k, d, r)."""
    (b, h, w, k, _), (_, d, n), r = x_dbl.shape, A.shape, W.shape[2]
    N, RANK = launch_table.power_of_two(n), launch_table.power_of_two(r)
    rows = A.new_empty(b, h * w, k, 2 * N + RANK)
    A2, W_table = A.new_empty(k, N, d), A.new_empty(k, RANK, d)
    blocks, of_rows = triton.cdiv(d, _CHANNELS), triton.cdiv(b * h * w * k, _ROWS)
    pack[(of_rows + k * blocks,)](
        x_dbl, A, W, rows, A2, W_table, *x_dbl.stride(), *A.stride(), *W.stride(), b * h * w, h, w, d, n, r,
        blocks, of_rows, N=N, RANK=RANK, BR=_ROWS, BD=_CHANNELS, **_OPTIONS,
    )  # fmt: skip  # line by line the kernel's parameters
    return rows, A2, W_table


def unpacked(
    drows: Tensor, draw: Tensor, parts: Tensor, rows: Tensor, W_table: Tensor, x_dbl: Tensor, n: int, r: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x_dbl, in its dtype, dt_weight (k, d, r), dt_bias (k, d), A (k, d, n) and D (k,
    d), from drows (blocks, b, l, k, n padded, 2), draw (b, l, k, d) and parts (parts, k, n padded +
    2, d) of those of A, D and dt_bias."""
    (b, l, k, d), (blocks, *_, N, _), RANK = draw.shape, drows.shape, W_table.shape[1]
    tiles, wide = triton.cdiv(b * l, _tile(b * l)), triton.cdiv(d, _CHANNELS)
    dx_dbl, of_W = torch.empty(x_dbl.shape, dtype=x_dbl.dtype, device=x_dbl.device), draw.new_empty(tiles, k, RANK, d)
    unpack[(tiles * k,)](
        drows, draw, rows, W_table, dx_dbl, of_W, b * l, d, n, r, blocks,
        N=N, RANK=RANK, BL=_tile(b * l), BD=_CHANNELS, **_OPTIONS,
    )  # fmt: skip  # line by line the kernel's parameters
    dA, dW, dD, dbias = draw.new_empty(k, d, n), draw.new_empty(k, d, r), draw.new_empty(k, d), draw.new_empty(k, d)
    totals[(k * (N + 2 + RANK) * wide,)](
        parts, of_W, dA, dW, dD, dbias, len(parts), tiles, d, n, r, wide,
        N=N, RANK=RANK, BP=_PARTS, BD=_CHANNELS, **_OPTIONS,
    )  # fmt: skip  # line by line the kernel's parameters
    return dx_dbl, dW, dbias, dA, dD
