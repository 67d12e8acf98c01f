"""The backward kernels of the scan of sequences on a GPU.

    g_t = C_t dy_t + a_{t+1} g_{t+1}    dB_t = g_t delta_t u_t    dC_t = h_t dy_t
    d(delta_t A) = g_t a_t h_{t-1}

g_t is the adjoint of h_t. Nothing was kept but the inputs and the state that entered each chunk.

A program takes its chunks from the last to the first. First it rebuilds a chunk as forward does, a
channel a lane, and leaves the state before each group of STEPS steps in a scratch strip that stays
in the cache. Then, group by group from the end, it holds the group's states in registers and sweeps
back; there a lane holds 4 states of 4 channels, since the sums over states (for u and delta) and
over channels (for B and C) cost least so. u, delta and dy are read, their gradients written, along
l, and the loops are pipelined, as in sequence_forward.py. Sums over channel blocks, chunks and
sequences are stored as parts, which ``unpack`` and ``totals`` add in a fixed order: no atomics,
every run gives the same bits.

Where whole sequences are too few programs (CHUNKED), ``adjoint_ends`` and, in reverse, ``carry``
give each chunk the adjoint that enters it.
A fixed number of programs shares the items out in a fixed order, so that the strips fit into the
cache.
"""

import triton
import triton.language as tl

from medmambase_kernels._triton.channel_sums import sums_side_by_side
from medmambase_kernels._triton.numerics import LN2
from medmambase_kernels._triton.sequence_tiles import load_rows, load_steps, step_delta, store_steps


# Why ``zero`` and UNIT: see sequence_forward.py.
@triton.jit(do_not_specialize=["length", "batch", "blocks", "zero", "start"])
def adjoint_ends(
    dy_ptr, delta_ptr, rows_ptr, tables_ptr, bias_ptr, adjoint_ptr, total_ptr,
    length, dy_b, dy_d, delta_b, delta_d, batch, d, segment, blocks, zero, start,
    GROUPS: tl.constexpr, N: tl.constexpr, VARY_B: tl.constexpr, VARY_C: tl.constexpr, SOFTPLUS: tl.constexpr,
    EVEN: tl.constexpr, INDEX: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; switches; tile sizes
    """What each chunk makes of a zero adjoint, leaving it at its beginning (b, chunks, N, d), and
    the sum of its deltas (b, chunks, d): ``carry`` in reverse goes on from these."""
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
    tile = state[:, None].to(INDEX) * d + channel[None, :] + zero
    A2 = tl.load(tables_ptr + tile)
    C = A2  # where it varies, it is not used
    if not VARY_C:
        C = tl.load(tables_ptr + tl.full([], (2 - VARY_B) * N, tl.int64) * d + tile)
    bias = tl.zeros([BD], tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel)
    lane = channel.to(tl.int64)[:, None]
    dy_at = dy_ptr + i_b * dy_b * UNIT + lane * (dy_d * UNIT) + step[None, :]
    delta_at = delta_ptr + i_b * delta_b * UNIT + lane * (delta_d * UNIT) + step[None, :]
    row = rows_ptr + (i_b * l * GROUPS + i_g) * ((VARY_B + VARY_C) * N) + VARY_B * N
    g, total = tl.zeros([N, BD], tl.float32), tl.zeros([BD], tl.float32)
    begin, end = i_c * CHUNK, tl.minimum(i_c * CHUNK + CHUNK, l)
    groups = (end - begin + STEPS - 1) // STEPS
    for back in tl.range(0, groups, num_stages=STAGES):
        t = begin + (groups - 1 - back) * STEPS
        dys = load_steps(dy_at, t, l, EVEN, STEPS, False)
        raws = load_steps(delta_at, t, l, EVEN, STEPS, False)
        Cs = load_rows(row, t, l, C, VARY_C, ROW, N, INDEX, EVEN, STEPS)
        for s in tl.static_range(STEPS - 1, -1, -1):
            delta, _ = step_delta(raws[s] + bias, t + s, l, SOFTPLUS, EVEN)
            g = (g + Cs[s] * dys[s][None, :]) * tl.exp2(delta[None, :] * A2)
            total += delta
    part = i_b * chunks + i_c
    tl.store(adjoint_ptr + part * N * d + tile, g, mask=in_d[None, :] & (state >= 0)[:, None])
    tl.store(total_ptr + part * d + channel, total, mask=in_d)


# The sweep wants aligned tables, the rebuilding does not.
@triton.jit(do_not_specialize=["items", "length", "batch", "blocks", "zero", "start"])
def backward(
    dy_ptr, u_ptr, delta_ptr, rows_ptr, tables_ptr, D_ptr, bias_ptr, entry_ptr, adjoint_ptr, strip_ptr,
    du_ptr, ddelta_ptr, drows_ptr, parts_ptr, dinitial_ptr,
    items, length, dy_b, dy_d, u_b, u_d, delta_b, delta_d, batch, d, n, segment, blocks, zero, start,
    GROUPS: tl.constexpr, N: tl.constexpr, VARY_B: tl.constexpr, VARY_C: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHUNKED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr,
    CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip  # tensors; results; sizes and strides; switches; tile sizes
    """dy, u, delta of strides (b, d, 1), entry (b, chunks, N, d), None where sequences are one
    chunk from zero, adjoint (b, N, d), or (b, chunks, N, d) if CHUNKED, to du, ddelta (b, d, l),
    drows (blocks, b, l, g, N, those of dB and dC that vary), parts as ``totals`` reads them, for
    each sequence or each of its chunks, and dinitial (b, d, n), unless that is None."""
    UNIT: tl.constexpr = STEPS if EVEN else 1
    VARIES: tl.constexpr = VARY_B + VARY_C
    ROW: tl.constexpr = GROUPS * VARIES * N
    ROWS: tl.constexpr = (3 - VARIES) * N + 2
    l = length * UNIT
    chunks = (l + CHUNK - 1) // CHUNK
    lane, state, two, step = tl.arange(0, BD), tl.arange(0, N), tl.arange(0, 2), tl.arange(0, STEPS)
    in_n = state >= 0
    strip = strip_ptr + tl.program_id(0).to(tl.int64) * (CHUNK // STEPS * N * BD) + state[:, None] * BD + lane[None, :]
    for item in range(start + tl.program_id(0), items, tl.num_programs(0)):
        i = tl.full([], item, INDEX)
        i_block, i_g = (i % blocks).to(tl.int32), (i // blocks % GROUPS).to(tl.int32)
        i_b, i_c = (i // blocks // GROUPS % batch).to(tl.int64), (i // blocks // GROUPS // batch).to(tl.int32)
        within = i_block * BD + lane
        in_d = within < segment
        in_tile = in_d[None, :] & in_n[:, None]
        channel = i_g * segment + tl.max_contiguous(tl.minimum(within, segment - 1), BD)
        tile = state[:, None].to(INDEX) * d + (i_g * segment + within)[None, :]
        tile_of_lanes = state[:, None].to(INDEX) * d + channel[None, :] + zero
        each = channel.to(tl.int64)[:, None]
        dy_at = dy_ptr + i_b * dy_b * UNIT + each * (dy_d * UNIT) + step[None, :]
        u_at = u_ptr + i_b * u_b * UNIT + each * (u_d * UNIT) + step[None, :]
        delta_at = delta_ptr + i_b * delta_b * UNIT + each * (delta_d * UNIT) + step[None, :]
        out = (i_b * d + each) * l + step[None, :]
        row = rows_ptr + (i_b * l * GROUPS + i_g) * (VARIES * N)
        drow = drows_ptr + ((i_block * batch + i_b) * l * GROUPS + i_g) * (VARIES * N)
        table = tl.full([], N, tl.int64) * d
        A2 = tl.load(tables_ptr + tile, mask=in_tile, other=0.0)
        B, C = A2, A2  # where they vary, these are not used
        if not VARY_B:
            B = tl.load(tables_ptr + table + tile, mask=in_tile, other=0.0)
        if not VARY_C:
            C = tl.load(tables_ptr + (2 - VARY_B) * table + tile, mask=in_tile, other=0.0)
        D, bias = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
        if D_ptr is not None:
            D = tl.load(D_ptr + channel)
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + channel)
        i_adjoint = i_b * chunks + i_c if CHUNKED else i_b
        g = tl.load(adjoint_ptr + i_adjoint * N * d + tile, mask=in_tile, other=0.0)
        dA, dB, dC = tl.zeros([N, BD], tl.float32), tl.zeros([N, BD], tl.float32), tl.zeros([N, BD], tl.float32)
        dD, dbias = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
        last_chunk, count = chunks - 1, chunks
        if CHUNKED:
            last_chunk, count = i_c, 1
        for back in range(0, count):
            chunk = last_chunk - back
            begin = chunk * CHUNK
            groups = (tl.minimum(CHUNK, l - begin) + STEPS - 1) // STEPS
            h = tl.zeros([N, BD], tl.float32)
            if entry_ptr is not None:
                h = tl.load(entry_ptr + (i_b * chunks + chunk) * N * d + tile_of_lanes)
            A2_of_lanes = tl.load(tables_ptr + tile_of_lanes)  # anew for each chunk: the sweep has no registers for it
            B_of_lanes = A2_of_lanes
            if not VARY_B:
                B_of_lanes = tl.load(tables_ptr + table + tile_of_lanes)
            for group in tl.range(0, groups, num_stages=STAGES):
                t = begin + group * STEPS
                tl.store(strip + group * (N * BD) + zero, h)
                xs = load_steps(u_at, t, l, EVEN, STEPS, False)
                raws = load_steps(delta_at, t, l, EVEN, STEPS, False)
                Bs = load_rows(row, t, l, B_of_lanes, VARY_B, ROW, N, INDEX, EVEN, STEPS)
                for s in tl.static_range(STEPS):
                    delta, _ = step_delta(raws[s] + bias, t + s, l, SOFTPLUS, EVEN)
                    h = tl.exp2(delta[None, :] * A2_of_lanes) * h + (delta * xs[s])[None, :] * Bs[s]
            tl.debug_barrier()  # a lane reads the strip in another layout than it wrote it
            for group_back in tl.range(0, groups, num_stages=STAGES):
                group = groups - 1 - group_back
                t = begin + group * STEPS
                xs = load_steps(u_at, t, l, EVEN, STEPS, True)
                raws = load_steps(delta_at, t, l, EVEN, STEPS, True)
                dys = load_steps(dy_at, t, l, EVEN, STEPS, True)
                h = tl.load(strip + group * (N * BD))
                Bs = load_rows(row, t, l, B, VARY_B, ROW, N, INDEX, EVEN, STEPS)
                Cs = load_rows(row + VARY_B * N, t, l, C, VARY_C, ROW, N, INDEX, EVEN, STEPS)
                deltas, slopes, states, decays = (), (), (h,), ()
                for s in tl.static_range(STEPS):
                    delta, slope = step_delta(raws[s] + bias, t + s, l, SOFTPLUS, EVEN)
                    deltas += (delta,)
                    slopes += (slope,)
                    decays += (tl.exp2(delta[None, :] * A2),)
                    h = decays[s] * h + (delta * xs[s])[None, :] * Bs[s]
                    states += (h,)
                dus, ddeltas = (), ()
                for s in tl.static_range(STEPS - 1, -1, -1):
                    delta, x = deltas[s], xs[s]
                    dy = tl.where(in_d, dys[s], 0.0)  # channels past the end must not reach dB and dC
                    g += Cs[s] * dy[None, :]
                    dC_s = states[s + 1] * dy[None, :]
                    dB_s = g * (delta * x)[None, :]
                    ddrive = tl.sum(g * Bs[s], 0)
                    g = g * decays[s]
                    through = g * states[s]
                    dA += through * delta[None, :]
                    ddelta = (tl.sum(through * A2, 0) * LN2 + ddrive * x) * slopes[s]
                    dbias += ddelta
                    dD += dy * x
                    dus = (ddrive * delta + D * dy,) + dus  # noqa: RUF005  # Triton knows no unpacking
                    ddeltas = (ddelta,) + ddeltas  # noqa: RUF005  # nor here
                    at = drow + tl.full([], t + s, INDEX) * ROW
                    live = in_n
                    if not EVEN:
                        live = in_n & (tl.full([N], t + s, tl.int32) < l)
                    if VARY_B and VARY_C:  # side by side, so that a step's row is one store
                        both = sums_side_by_side(dB_s, dC_s, N, BD)
                        tl.store(at + state[:, None] * 2 + two[None, :], both, mask=live[:, None] & (two >= 0)[None, :])
                    elif VARY_B:
                        tl.store(at + state, tl.sum(dB_s, 1), mask=live)
                    elif VARY_C:
                        tl.store(at + state, tl.sum(dC_s, 1), mask=live)
                    if not VARY_B:
                        dB += dB_s
                    if not VARY_C:
                        dC += dC_s
                store_steps(du_ptr + out, t, l, in_d, dus, EVEN, STEPS)
                store_steps(ddelta_ptr + out, t, l, in_d, ddeltas, EVEN, STEPS)
            tl.debug_barrier()  # the next chunk writes the strip again
        part = parts_ptr + (i_c * batch + i_b) * ROWS * d
        tl.store(part + tile, dA, mask=in_tile)
        if not VARY_B:
            tl.store(part + table + tile, dB, mask=in_tile)
        if not VARY_C:
            tl.store(part + (2 - VARY_B) * table + tile, dC, mask=in_tile)
        tl.store(part + (3 - VARIES) * table + channel, dD, mask=in_d)
        tl.store(part + (3 - VARIES) * table + d + channel, dbias, mask=in_d)
        if dinitial_ptr is not None:
            tl.store(
                dinitial_ptr + (i_b * d + channel)[None, :] * n + state[:, None],
                g, mask=in_d[None, :] & (state < n)[:, None],
            )  # fmt: skip  # where; what
