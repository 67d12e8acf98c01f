"""The forward kernels of the scan of sequences on a GPU: one warp walks a sequence, or a chunk of
one, with its [state, channel] tile in registers.

    h_t = 2^(delta_t A2) h_{t-1} + delta_t u_t B_t
    y_t = sum_n C_t h_t + D u_t

A2 = A log2(e), so that one exp2 instruction is the whole decay.

A lane holds one channel (or two) and all its states: no sum crosses lanes. u and delta are read,
and y is written, as tiles [channel, STEPS] along l, straight from (b, d, l); no copy of them is
made. B and C come as rows and A as a table, which ``pack`` made.
The loop over the steps is pipelined: with the number of stages given, what a turn loads is copied
to shared memory STAGES - 1 turns ahead, asynchronously. Without it the assembler moves every load
of a group of steps to where it is used, and the group waits for memory five to seven times. Two
stages are no use: the copy is then issued at the end of the turn before.
Bytes an element of u, float32: u 4, delta 4, y 4, the rows of B and C from the cache, and 4 n /
CHUNK for the states kept for backward.

Three ways to launch ``forward``: WHOLE, a program for each whole sequence; or, where that is too
few programs, ENDS (each chunk from a zero state: its last state and the sum of its deltas), then
``carry`` along the chunks, then CHUNKS (each chunk from its entry state). The entry states are what
backward starts from.
"""

import triton
import triton.language as tl

from medmambase_kernels._triton.sequence_tiles import load_row_pairs, load_rows, load_steps, step_delta, store_steps

WHOLE = tl.constexpr(0)
ENDS = tl.constexpr(1)
CHUNKS = tl.constexpr(2)


# ``zero`` is always 0 and keeps the compiler from seeing that tables are aligned: it would load 4
# channels a lane, spread a channel's states over lanes, and sum them by shuffles. Loads are not
# masked, since a mask costs an instruction for each value: channels past the end read the last one
# instead, and are masked where they are stored. That max_contiguous is untrue of those channels
# does no harm, since no load takes two channels at once. Lengths and strides count UNIT elements,
# so that the compiler sees that they are multiples of it.
@triton.jit(do_not_specialize=["length", "batch", "blocks", "zero", "start"])
def forward(
    u_ptr, delta_ptr, rows_ptr, tables_ptr, D_ptr, bias_ptr, initial_ptr, y_ptr, last_ptr, entry_ptr, total_ptr,
    length, u_b, u_d, delta_b, delta_d, batch, d, n, segment, blocks, zero, start,
    GROUPS: tl.constexpr, N: tl.constexpr, VARY_B: tl.constexpr, VARY_C: tl.constexpr, SOFTPLUS: tl.constexpr,
    SAVE: tl.constexpr, MODE: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr, BD: tl.constexpr,
    STEPS: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; switches; tile sizes
    """u, delta of strides (u_b, u_d, 1), rows (b, l, g, [B | C]), tables (1 to 3, N, d) to y (b, d,
    l), last (b, d, n). initial (b, N, d), entry (b, chunks, N, d), total (b, chunks, d). D, bias
    and initial may be None: then they are 0."""
    UNIT: tl.constexpr = STEPS if EVEN else 1
    ROW: tl.constexpr = GROUPS * (VARY_B + VARY_C) * N
    l = length * UNIT
    chunks = (l + CHUNK - 1) // CHUNK
    i = tl.program_id(0).to(INDEX) + start
    within = (i % blocks).to(tl.int32) * BD + tl.arange(0, BD)
    in_d = within < segment
    i_g = (i // blocks % GROUPS).to(tl.int32)
    i_b = (i // blocks // GROUPS % batch).to(tl.int64)
    i_c = (i // blocks // GROUPS // batch).to(tl.int32)
    channel = i_g * segment + tl.max_contiguous(tl.minimum(within, segment - 1), BD)
    state, step = tl.arange(0, N), tl.arange(0, STEPS)
    tile = state[:, None].to(INDEX) * d + channel[None, :] + zero  # [N, BD] of a table
    in_tile = in_d[None, :] & (state >= 0)[:, None]
    A2 = tl.load(tables_ptr + tile)
    B, C = A2, A2  # where they vary, these are not used
    if not VARY_B:
        B = tl.load(tables_ptr + tl.full([], N, tl.int64) * d + tile)
    if not VARY_C:
        C = tl.load(tables_ptr + tl.full([], (2 - VARY_B) * N, tl.int64) * d + tile)
    D, bias = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    if D_ptr is not None:
        D = tl.load(D_ptr + channel)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel)
    lane = channel.to(tl.int64)[:, None]
    u_at = u_ptr + i_b * u_b * UNIT + lane * (u_d * UNIT) + step[None, :]
    delta_at = delta_ptr + i_b * delta_b * UNIT + lane * (delta_d * UNIT) + step[None, :]
    y_at = y_ptr + (i_b * d + lane) * l + step[None, :]
    row = rows_ptr + (i_b * l * GROUPS + i_g) * ((VARY_B + VARY_C) * N)
    entry = entry_ptr + i_b * chunks * N * d + tile
    h, total = tl.zeros([N, BD], tl.float32), tl.zeros([BD], tl.float32)
    begin, end = i_c * CHUNK, tl.minimum(i_c * CHUNK + CHUNK, l)
    if MODE == WHOLE:  # i_c is 0
        end = l
        if initial_ptr is not None:
            h = tl.load(initial_ptr + i_b * N * d + tile)
    if MODE == CHUNKS:
        h = tl.load(entry + tl.full([], i_c, INDEX) * (N * d))
    for t in tl.range(begin, end, STEPS, num_stages=STAGES):
        if MODE == WHOLE and SAVE:  # noqa: SIM102  # the first is the compiler's, the second the kernel's
            if t % CHUNK == 0:
                tl.store(entry + tl.full([], t // CHUNK, INDEX) * (N * d), h, mask=in_tile)
        xs = load_steps(u_at, t, l, EVEN, STEPS, MODE != ENDS)
        raws = load_steps(delta_at, t, l, EVEN, STEPS, MODE != ENDS)
        if VARY_B and VARY_C:
            Bs, Cs = load_row_pairs(row, t, l, ROW, N, INDEX, EVEN, STEPS)
        else:
            Bs = load_rows(row, t, l, B, VARY_B, ROW, N, INDEX, EVEN, STEPS)
            Cs = load_rows(row + VARY_B * N, t, l, C, VARY_C, ROW, N, INDEX, EVEN, STEPS)
        ys = ()
        for s in tl.static_range(STEPS):
            delta, _ = step_delta(raws[s] + bias, t + s, l, SOFTPLUS, EVEN)
            h = tl.exp2(delta[None, :] * A2) * h + (delta * xs[s])[None, :] * Bs[s]
            if MODE == ENDS:
                total += delta
            else:
                ys += (tl.sum(h * Cs[s], 0) + D * xs[s],)
        if MODE != ENDS:
            store_steps(y_at, t, l, in_d, ys, EVEN, STEPS)
    if MODE == ENDS:
        tl.store(entry + tl.full([], i_c, INDEX) * (N * d), h, mask=in_tile)
        tl.store(total_ptr + (i_b * chunks + i_c) * d + channel, total, mask=in_d)
    if MODE == WHOLE:
        last = last_ptr + (i_b * d + channel)[None, :] * n + state[:, None]
        tl.store(last, h, mask=in_d[None, :] & (state < n)[:, None])


# The loads do not depend on the recurrence, and a turn's are of a chunk that no turn before has
# stored: so the pipeline may load ahead of the stores. A turn stores after it has used what it
# loaded, since an asynchronous copy that is still under way has no order with a store.
@triton.jit(do_not_specialize=["blocks", "chunks", "zero"])
def carry(
    entry_ptr, total_ptr, tables_ptr, initial_ptr, last_ptr, d, n, blocks, chunks, zero,
    N: tl.constexpr, REVERSE: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip  # tensors; sizes; switches and tile sizes
    """From what each chunk makes of a zero state to what enters each chunk, in place; in REVERSE
    from the last chunk to the first, for the adjoint. What leaves the last one is stored in last
    (b, d, n), unless that is None."""
    i = tl.program_id(0)
    i_b = (i // blocks).to(tl.int64)
    within = i % blocks * BD + tl.arange(0, BD)
    in_d = within < d
    channel = tl.max_contiguous(tl.minimum(within, d - 1), BD)
    state = tl.arange(0, N)
    tile = state[:, None].to(tl.int64) * d + channel[None, :] + zero
    in_tile = in_d[None, :] & (state >= 0)[:, None]
    A2 = tl.load(tables_ptr + tile)
    entry, total = entry_ptr + i_b * chunks * N * d + tile, total_ptr + i_b * chunks * d + channel
    h = tl.zeros([N, BD], tl.float32)
    if initial_ptr is not None:
        h = tl.load(initial_ptr + i_b * N * d + tile)
    for n_th in tl.range(0, chunks, num_stages=STAGES):
        chunk = tl.full([], chunks - 1 - n_th if REVERSE else n_th, tl.int64)
        made = tl.load(entry + chunk * N * d)
        decay = tl.exp2(tl.load(total + chunk * d)[None, :] * A2)
        entering = h
        h = decay * h + made
        tl.store(entry + chunk * N * d, entering, mask=in_tile)
    if last_ptr is not None:
        last = last_ptr + (i_b * d + channel)[None, :] * n + state[:, None]
        tl.store(last, h, mask=in_d[None, :] & (state < n)[:, None])
