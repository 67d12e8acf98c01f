"""Lay out what the scan of an image reads, and what it wrote, each in one kernel.

The scan reads a step at a time, as rows (b, l, k, [B | C | rank of delta]) in float32, each part
padded with zeros to a power of two; A and the weights of delta it reads a channel a lane, as tables
(k, n padded, d). ``pack`` makes both, from tensors of any strides, and x in float32, channels last,
unless it is so; where the rank of delta is too large to be multiplied inside the scan, also what
goes into the softplus. ``unpack`` turns the gradients of rows and of that into the one of x_dbl,
and leaves parts of that of the weights;
``totals`` adds parts in a fixed order, and lays them out as the arguments are. The products are
made here in float32, so that no matmul setting (TF32, autocast) reaches them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton import launch_table
from medmambase_kernels._triton.numerics import LN2, LOG2E, load
from medmambase_kernels._triton.partial_sums import total
from medmambase_kernels._triton.scan_forward import K

_ROWS, _PARTS, _CHANNELS = 64, 64, 32  # a step of a program takes so many rows or parts, and channels
_PRODUCT = 64  # channels of a program that multiplies; half as many positions
_SUMS = 1024  # numbers of dx that a program adds
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _part(source, row, live, column, count, target, x_c, WIDTH: tl.constexpr, N: tl.constexpr):
    """Copy columns from ``column`` on, ``count`` of them, to the N columns at target."""
    within = tl.arange(0, N)
    given = source + row[:, None] + (column + within).to(tl.int64)[None, :] * x_c
    values = load(given, live[:, None] & (within < count)[None, :])
    tl.store(target[:, None] + within[None, :], values, mask=live[:, None] & (within >= 0)[None, :])


@triton.jit
def _row_of(position, i_k, height, width, x_b, x_h, x_w, x_k):
    """Where x_dbl (b, h, w, k, columns) has the columns of so many positions, counted through."""
    i_b, place = position // (height * width), position % (height * width)
    return i_b * x_b + place // width * x_h + place % width * x_w + i_k * x_k


@triton.jit
def _product(
    x_dbl, W, raw, i, x_b, x_h, x_w, x_k, x_c, W_k, W_d, W_r, positions, height, width, d, r, wide, BP: tl.constexpr
):  # fmt: skip  # tensors; which tile; strides; sizes; tile size
    """raw = rank . W: the i-th tile of half as many positions as channels, BP."""
    i_k, channel = i // wide % K, i % wide * BP + tl.arange(0, BP)
    position = i // (wide * K) * (BP // 2) + tl.arange(0, BP // 2)
    row, live, in_d = _row_of(position, i_k, height, width, x_b, x_h, x_w, x_k), position < positions, channel < d
    product = tl.zeros([BP // 2, BP], tl.float32)
    for low in range(0, r):
        column = tl.full([], low, tl.int64)
        rank = load(x_dbl + row + column * x_c, live)
        product += rank[:, None] * load(W + i_k * W_k + column * W_r + channel * W_d, in_d)[None, :]
    out = raw + (position[:, None] * K + i_k) * d + channel[None, :]
    tl.store(out, product, mask=live[:, None] & in_d[None, :])


@triton.jit
def _widened(
    x, out, i, x_b, x_h, x_w, x_c, positions, height, width, d, wide, BP: tl.constexpr
):  # fmt: skip  # tensors; which tile; strides; sizes; tile size
    """out = x in float32: the i-th tile of half as many positions as channels, BP."""
    position, channel = i // wide * (BP // 2) + tl.arange(0, BP // 2), i % wide * BP + tl.arange(0, BP)
    row, live = _row_of(position, 0, height, width, x_b, x_h, x_w, 0), position < positions
    within = live[:, None] & (channel < d)[None, :]
    values = load(x + row[:, None] + channel[None, :] * x_c, within)
    tl.store(out + position[:, None] * d + channel[None, :], values, mask=within)


@triton.jit
def _turn(source, from_n, from_d, n, target, channel, d, factor, EXP: tl.constexpr, N: tl.constexpr):
    """Copy (d, n) of any strides, with EXP its exponential, times a factor, to a table (N, d) in
    float32, zeros from n on.

    Each side is read or written along its own contiguous axis: the compiler turns the tile in
    shared memory.
    """
    state = tl.arange(0, N).to(tl.int64)[:, None]
    live = (channel < d)[None, :] & (state >= 0)
    tile = load(source + state * from_n + channel[None, :] * from_d, live & (state < n))
    if EXP:
        tile = tl.where(state < n, tl.exp2(tile * LOG2E), 0.0)
    tl.store(target + state * d + channel[None, :], tile * factor, mask=live)


@triton.jit
def pack(
    x_dbl_ptr, A_ptr, W_ptr, x_ptr, rows_ptr, A2_ptr, W_table_ptr, raw_ptr, wide_x_ptr,
    x_b, x_h, x_w, x_k, x_c, A_k, A_d, A_n, W_k, W_d, W_r, map_b, map_h, map_w, map_c,
    positions, height, width, d, n, r, blocks, of_rows, of_tables, of_raw, wide,
    LOG_A: tl.constexpr, N: tl.constexpr, RANK: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip  # tensors; strides; sizes; a switch and tile sizes
    """rows (b, h, w, k, [N | N | RANK]) from x_dbl (b, h, w, k, [r | n | n]); tables A2 (k, N, d)
    from A (k, d, n), with LOG_A from -exp A, times log2(e), and (k, RANK, d) from W (k, d, r); and,
    unless they are None, raw (b, h, w, k, d), the product of rank and W, and wide_x (b, h, w, d), x
    in float32. The first of_rows programs make rows, the next of_tables tables, the next of_raw
    raw, the others wide_x. Strides are named after tensor and axis, those of x after the map."""
    i = tl.program_id(0)
    if i < of_rows:
        WIDTH: tl.constexpr = 2 * N + RANK
        at = i.to(tl.int64) * BR + tl.arange(0, BR)
        row, live = _row_of(at // K, at % K, height, width, x_b, x_h, x_w, x_k), at // K < positions
        out = rows_ptr + at * WIDTH
        _part(x_dbl_ptr, row, live, r, n, out, x_c, WIDTH, N)
        _part(x_dbl_ptr, row, live, r + n, n, out + N, x_c, WIDTH, N)
        _part(x_dbl_ptr, row, live, 0, r, out + 2 * N, x_c, WIDTH, RANK)
    elif i < of_rows + of_tables:
        i_k = ((i - of_rows) // blocks).to(tl.int64)
        channel = ((i - of_rows) % blocks).to(tl.int64) * BD + tl.arange(0, BD)
        _turn(A_ptr + i_k * A_k, A_n, A_d, n, A2_ptr + i_k * N * d, channel, d, -LOG2E if LOG_A else LOG2E, LOG_A, N)
        _turn(W_ptr + i_k * W_k, W_r, W_d, r, W_table_ptr + i_k * RANK * d, channel, d, 1.0, False, RANK)
    elif i < of_rows + of_tables + of_raw:
        if raw_ptr is not None:
            _product(
                x_dbl_ptr, W_ptr, raw_ptr, (i - of_rows - of_tables).to(tl.int64), x_b, x_h, x_w, x_k, x_c,
                W_k, W_d, W_r, positions, height, width, d, r, wide, BP,
            )  # fmt: skip  # line by line the function's parameters
    elif wide_x_ptr is not None:
        _widened(
            x_ptr, wide_x_ptr, (i - of_rows - of_tables - of_raw).to(tl.int64), map_b, map_h, map_w, map_c,
            positions, height, width, d, wide, BP,
        )  # fmt: skip  # line by line the function's parameters


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
def totals(
    of_A_ptr, of_W_ptr, A2_ptr, of_x_ptr, dA_ptr, dW_ptr, dD_ptr, dbias_ptr, dx_ptr, parts_A, parts_W, d, n, r, blocks,
    numbers,
    LOG_A: tl.constexpr, N: tl.constexpr, RANK: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip  # tensors; sizes; a switch and tile sizes
    """dA (k, d, n), dD and dbias (k, d) from parts (parts_A, k, N + 2, d), and dW (k, d, r) from
    parts (parts_W, k, RANK, d). With LOG_A, dA is that of the logarithm: times A.
    And dx (numbers,), the sum over k of (k, numbers)."""
    i = tl.program_id(0)
    ROWS: tl.constexpr = N + 2
    row, channel = i // blocks, (i % blocks).to(tl.int64) * BD + tl.arange(0, BD)
    if row < K * ROWS:
        sums = total(of_A_ptr + row.to(tl.int64) * d, parts_A, K * ROWS * d, channel, channel < d, BP, BD)
        i_k, state = row // ROWS, row % ROWS
        place, in_d = i_k.to(tl.int64) * d + channel, channel < d
        of_A = sums
        if LOG_A:
            A2 = load(A2_ptr + (i_k * N + state).to(tl.int64) * d + channel, in_d & (state < n))
            of_A *= A2 * LN2
        tl.store(dA_ptr + place * n + state, of_A, mask=in_d & (state < n))
        tl.store(dD_ptr + place, sums, mask=in_d & (state == N))
        tl.store(dbias_ptr + place, sums, mask=in_d & (state == N + 1))
    elif row < K * (ROWS + RANK):
        row -= K * ROWS
        sums = total(of_W_ptr + row.to(tl.int64) * d, parts_W, K * RANK * d, channel, channel < d, BP, BD)
        i_k, low = row // RANK, row % RANK
        place = i_k.to(tl.int64) * d + channel
        tl.store(dW_ptr + place * r + low, sums, mask=(channel < d) & (low < r))
    else:
        at = (i - K * (ROWS + RANK) * blocks).to(tl.int64) * BX + tl.arange(0, BX)
        dx = load(of_x_ptr + at, at < numbers)
        for i_k in tl.static_range(1, K):
            dx += load(of_x_ptr + tl.full([], i_k, tl.int64) * numbers + at, at < numbers)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=at < numbers)


def _tile(positions: int) -> int:
    """Positions that a program of ``unpack`` takes, each of which leaves its part of the weights'
    gradient: few, where there would be too few programs."""
    return 16 if positions <= 8192 else 64


def packed(
    x: Tensor, x_dbl: Tensor, A: Tensor, W: Tensor, log_A: bool, multiply: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """x (b, l, d) in float32, contiguous: itself if it is so; rows (b, l, k, 2 n padded + r
    padded), and the tables A log2(e) (k, n padded, d) and W (k, r padded, d), from x_dbl (b, h, w,
    k, r + 2n), A (k, d, n), or its logarithm, and W (k, d, r); with ``multiply`` also rank . W (b,
    l, k, d), else None."""
    (b, h, w, k, _), (_, d, n), r = x_dbl.shape, A.shape, W.shape[2]
    N, RANK = launch_table.power_of_two(n), launch_table.power_of_two(r)
    rows = A.new_empty(b, h * w, k, 2 * N + RANK)
    A2, W_table = A.new_empty(k, N, d), A.new_empty(k, RANK, d)
    raw = A.new_empty(b, h * w, k, d) if multiply else None
    wide_x = None if x.dtype == torch.float32 and x.is_contiguous() else A.new_empty(b, h, w, d)
    blocks, wide, of_rows = triton.cdiv(d, _CHANNELS), triton.cdiv(d, _PRODUCT), triton.cdiv(b * h * w * k, _ROWS)
    tiles = triton.cdiv(b * h * w, _PRODUCT // 2) * wide
    of_raw, of_x = tiles * k if multiply else 0, 0 if wide_x is None else tiles
    pack[(of_rows + k * blocks + of_raw + of_x,)](
        x_dbl, A, W, x if of_x else None, rows, A2, W_table, raw, wide_x,
        *x_dbl.stride(), *A.stride(), *W.stride(), *(x.stride() if of_x else (0, 0, 0, 0)),
        b * h * w, h, w, d, n, r, blocks, of_rows, k * blocks, of_raw, wide,
        LOG_A=log_A, N=N, RANK=RANK, BR=_ROWS, BD=_CHANNELS, BP=_PRODUCT, **_OPTIONS,
    )  # fmt: skip  # line by line the kernel's parameters
    return (x if wide_x is None else wide_x).flatten(1, 2), rows, A2, W_table, raw


def unpacked(
    dx_parts: Tensor, drows: Tensor, draw: Tensor, parts: Tensor, rows: Tensor, A2: Tensor, W_table: Tensor,
    x: Tensor, x_dbl: Tensor, n: int, r: int, log_A: bool,
) -> tuple[Tensor, ...]:  # fmt: skip  # gradients; what the scan read
    """Gradients of x and x_dbl, in their dtypes, dt_weight (k, d, r), dt_bias (k, d), A (k, d, n),
    or its logarithm, and D (k, d): from dx_parts (k, b, l, d), drows (blocks, b, l, k, n padded,
    2), draw (b, l, k, d) and parts (parts, k, n padded + 2, d) of those of A, D and dt_bias."""
    (b, l, k, d), (blocks, *_, N, _), RANK = draw.shape, drows.shape, W_table.shape[1]
    tiles, wide = triton.cdiv(b * l, _tile(b * l)), triton.cdiv(d, _CHANNELS)
    dx_dbl, of_W = torch.empty(x_dbl.shape, dtype=x_dbl.dtype, device=x_dbl.device), draw.new_empty(tiles, k, RANK, d)
    unpack[(tiles * k,)](
        drows, draw, rows, W_table, dx_dbl, of_W, b * l, d, n, r, blocks,
        N=N, RANK=RANK, BL=_tile(b * l), BD=_CHANNELS, **_OPTIONS,
    )  # fmt: skip  # line by line the kernel's parameters
    dA, dW, dD, dbias = draw.new_empty(k, d, n), draw.new_empty(k, d, r), draw.new_empty(k, d), draw.new_empty(k, d)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    totals[(k * (N + 2 + RANK) * wide + triton.cdiv(dx.numel(), _SUMS),)](
        parts, of_W, A2, dx_parts, dA, dW, dD, dbias, dx, len(parts), tiles, d, n, r, wide, dx.numel(),
        LOG_A=log_A, N=N, RANK=RANK, BP=_PARTS, BD=_CHANNELS, BX=_SUMS, **_OPTIONS,
    )  # fmt: skip  # line by line the kernel's parameters
    return dx, dx_dbl, dW, dbias, dA, dD
