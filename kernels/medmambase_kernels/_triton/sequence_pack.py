"""Lay out what the scan of sequences reads, and what it wrote, each in one kernel.

The scan of a sequence reads u and delta where they are. B and C it reads a step at a time, as rows
(b, l, g, [B | C]) in float32 padded to a power of two; A, constant B and C and states it reads a
channel a lane, as tables (n padded, d). ``pack`` makes both from tensors of any strides, ``unpack``
and ``totals`` add the parts of gradients in a fixed order and lay them out as the arguments are.
"""

import triton
import triton.language as tl

from medmambase_kernels._triton.numerics import LOG2E, load


@triton.jit
def _turn(
    given, from_n, from_x, made, to_n, to_x, x, size, n, factor, N: tl.constexpr
):  # fmt: skip  # source; target; where
    """Copy a tile [N, x] in float32, zeros from n on. Each side is read or written along its own
    contiguous axis: the compiler turns the tile in shared memory."""
    state = tl.arange(0, N).to(tl.int64)[:, None]
    live = (x < size)[None, :] & (state >= 0)
    tile = load(given + state * from_n + x[None, :] * from_x, live & (state < n))
    tl.store(made + state * to_n + x[None, :] * to_x, tile * factor, mask=live)


@triton.jit
def pack(
    B_ptr, C_ptr, A_ptr, states_ptr, rows_ptr, tables_ptr, turned_ptr,
    B_b, B_g, B_n, B_x, C_b, C_g, C_n, C_x, A_n, A_d, states_b, states_n, states_d,
    l, d, n, blocks, wide, of_rows, of_tables,
    GROUPS: tl.constexpr, N: tl.constexpr, VARY_B: tl.constexpr, VARY_C: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip  # tensors; strides; sizes; switches and tile size
    """rows (b, l, g, [B | C] of N each, those that vary); tables (1 to 3, N, d): A log2(e) and
    those of B and C that do not vary; turned (b, N, d) from states (b, d, n), unless these are
    None.

    The first of_rows programs make rows, the next of_tables make tables, the others turn states.
    Strides are named after tensor and axis; x is l, or d where B or C does not vary.
    """
    i = tl.program_id(0)
    if i < of_rows:
        x = (i % blocks).to(tl.int64) * BX + tl.arange(0, BX)
        i_g, i_b = i // blocks % GROUPS, (i // blocks // GROUPS).to(tl.int64)
        WIDTH: tl.constexpr = (VARY_B + VARY_C) * N
        row = rows_ptr + (i_b * l * GROUPS + i_g) * WIDTH
        if VARY_B:
            _turn(B_ptr + i_b * B_b + i_g * B_g, B_n, B_x, row, 1, GROUPS * WIDTH, x, l, n, 1.0, N)
        if VARY_C:
            _turn(C_ptr + i_b * C_b + i_g * C_g, C_n, C_x, row + VARY_B * N, 1, GROUPS * WIDTH, x, l, n, 1.0, N)
    else:
        j = i - of_rows
        x, which = (j % wide).to(tl.int64) * BX + tl.arange(0, BX), j // wide
        table = tables_ptr + which.to(tl.int64) * N * d
        if which == 0:
            _turn(A_ptr, A_n, A_d, table, d, 1, x, d, n, LOG2E, N)
        if not VARY_B:  # noqa: SIM102  # the first is the compiler's, the second the kernel's
            if which == 1:
                _turn(B_ptr, B_n, B_x, table, d, 1, x, d, n, 1.0, N)
        if not VARY_C:  # noqa: SIM102  # as above
            if which == 2 - VARY_B:
                _turn(C_ptr, C_n, C_x, table, d, 1, x, d, n, 1.0, N)
        if states_ptr is not None:  # noqa: SIM102  # as above
            if j >= of_tables:
                i_b = ((j - of_tables) // wide).to(tl.int64)
                _turn(states_ptr + i_b * states_b, states_n, states_d, turned_ptr + i_b * N * d, d, 1, x, d, n, 1.0, N)


@triton.jit
def unpack(
    drows_ptr, dB_ptr, dC_ptr, l, n, blocks, parts, size,
    GROUPS: tl.constexpr, N: tl.constexpr, VARY_B: tl.constexpr, VARY_C: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip  # tensors; sizes; switches and tile size
    """drows (parts, b, l, g, N, those of dB and dC that vary), ``size`` elements a part, to dB, dC
    (b, g, n, l): the parts added in their order, rounded once."""
    i = tl.program_id(0)
    i_g, i_b = i // blocks % GROUPS, (i // blocks // GROUPS).to(tl.int64)
    t = (i % blocks).to(tl.int64) * BX + tl.arange(0, BX)
    WIDTH: tl.constexpr = (VARY_B + VARY_C) * N
    column = tl.arange(0, WIDTH)[None, :]
    at = drows_ptr + ((i_b * l + t) * GROUPS + i_g)[:, None] * WIDTH + column
    sums = tl.zeros([BX, WIDTH], tl.float32)
    for part in range(0, parts):
        sums += load(at + tl.full([], part, tl.int64) * size, (t < l)[:, None] & (column >= 0))
    state = tl.arange(0, N)
    out = (i_b * GROUPS + i_g) * n * l + state[None, :] * l + t[:, None]
    live = (t < l)[:, None] & (state < n)[None, :]
    if VARY_B and VARY_C:
        dB, dC = tl.split(tl.reshape(sums, [BX, N, 2]))
        tl.store(dB_ptr + out, dB.to(dB_ptr.dtype.element_ty), mask=live)
        tl.store(dC_ptr + out, dC.to(dC_ptr.dtype.element_ty), mask=live)
    elif VARY_B:
        tl.store(dB_ptr + out, sums.to(dB_ptr.dtype.element_ty), mask=live)
    else:
        tl.store(dC_ptr + out, sums.to(dC_ptr.dtype.element_ty), mask=live)


@triton.jit
def totals(
    parts_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dbias_ptr, parts, d, n, blocks,
    N: tl.constexpr, VARY_B: tl.constexpr, VARY_C: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip  # tensors; sizes; switches and tile sizes
    """parts (parts, rows, d), rows being N of dA, N each of dB and dC that do not vary, dD and
    dbias, to dA, dB, dC (d, n), dD, dbias (d,), each where it is wanted: the parts added in a fixed
    order."""
    i = tl.program_id(0)
    row, channel = i // blocks, i % blocks * BD + tl.arange(0, BD)
    ROWS: tl.constexpr = (3 - VARY_B - VARY_C) * N + 2
    sums = tl.zeros([BP, BD], tl.float32)
    for first in range(0, parts, BP):
        part = first + tl.arange(0, BP)
        at = (part.to(tl.int64) * ROWS + row)[:, None] * d + channel[None, :]
        sums += load(parts_ptr + at, (part < parts)[:, None] & (channel < d)[None, :])
    total, in_d = tl.sum(sums, 0), channel < d
    state, place = row % N, channel.to(tl.int64) * n + row % N
    live = in_d & (state < n) & (row < ROWS - 2)
    tl.store(dA_ptr + place, total, mask=live & (row // N == 0))
    if not VARY_B:
        tl.store(dB_ptr + place, total.to(dB_ptr.dtype.element_ty), mask=live & (row // N == 1))
    if not VARY_C:
        tl.store(dC_ptr + place, total.to(dC_ptr.dtype.element_ty), mask=live & (row // N == 2 - VARY_B))
    if dD_ptr is not None:
        tl.store(dD_ptr + channel, total, mask=in_d & (row == ROWS - 2))
    if dbias_ptr is not None:
        tl.store(dbias_ptr + channel, total, mask=in_d & (row == ROWS - 1))


@triton.jit
def lengthwise(
    t_ptr, out_ptr, t_b, t_d, t_l, l, d, blocks, wide, BX: tl.constexpr
):  # fmt: skip  # tensors; strides; sizes; tile size
    """t (b, d, l) of any strides as a contiguous copy, a tile turned in shared memory."""
    i = tl.program_id(0)
    i_b = (i // blocks // wide).to(tl.int64)
    channel = (i // blocks % wide).to(tl.int64) * BX + tl.arange(0, BX)
    t = (i % blocks).to(tl.int64) * BX + tl.arange(0, BX)
    live = (channel < d)[:, None] & (t < l)[None, :]
    tile = tl.load(t_ptr + i_b * t_b + channel[:, None] * t_d + t[None, :] * t_l, mask=live)
    tl.store(out_ptr + (i_b * d + channel)[:, None] * l + t[None, :], tile, mask=live)
