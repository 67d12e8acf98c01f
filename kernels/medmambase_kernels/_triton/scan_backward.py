"""The backward kernels of both scans on a GPU.

    g_t = C_t dy_t + a_{t+1} g_{t+1}    dB_t = g_t delta_t x_t    dC_t = h_t dy_t
    d(delta_t A) = g_t a_t h_{t-1}

g_t is the adjoint of h_t. Nothing was kept but the inputs and the state that entered each chunk.

A program takes its chunks from the last to the first. First it rebuilds a chunk as forward does, a
channel a lane, and leaves the state before each group of STEPS steps in a scratch strip that stays
in the cache. Then, group by group from the end, it holds the group's states in registers and sweeps
back; there a lane holds 4 states of 4 channels, since the sums over states (for x and delta) and
over channels (for B and C) cost least so. Sums over channel blocks, chunks and images are stored as
parts and added in a fixed order: no atomics, every run gives the same bits.

Where whole sequences are too few programs (CHUNKED), ``adjoint_ends`` and, in reverse, ``carry`` of
scan_forward.py give each chunk the adjoint that enters it.
A fixed number of programs shares the items out in a fixed order, so that the strips fit into the
cache.
"""

import triton
import triton.language as tl

from medmambase_kernels._triton.numerics import LN2, LOG2E
from medmambase_kernels._triton.scan_forward import STAGES, place_at, route, step_delta, step_on


@triton.jit
def step_back(p, place, inner, step, wrap, K: tl.constexpr):
    """The position and place before p."""
    if K == 1:
        return p - step, place
    at_start = place == 0
    return p - tl.where(at_start, wrap, step), tl.where(at_start, inner, place) - 1


@triton.jit
def _rebuild(
    h, p, place, slot, slots, strip, x_row, delta_row, row, A2, B, bias, inner, step, wrap, d,
    K: tl.constexpr, ROW: tl.constexpr, N: tl.constexpr, BD: tl.constexpr, VARY_B: tl.constexpr,
    SOFTPLUS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip  # what changes; where from and to; what stays; switches and tile sizes
    """Forward again by groups of STEPS steps, each group's first state into its slot of the strip:
    the state, position and place afterwards."""
    state = tl.arange(0, N)
    for group in tl.range(slot, slots, num_stages=STAGES):
        tl.store(strip + group * (N * BD), h)
        xs, raws, Bs = (), (), ()
        for _ in tl.static_range(STEPS):
            xs += (tl.load(x_row + p * d).to(tl.float32),)
            raws += (tl.load(delta_row + p * d * K).to(tl.float32) + bias,)
            Bs += (tl.load(row + p * ROW + state)[:, None] if VARY_B else B,)
            p, place = step_on(p, place, inner, step, wrap, K)
        for s in tl.static_range(STEPS):
            delta, _ = step_delta(raws[s], SOFTPLUS)
            h = tl.exp2(delta[None, :] * A2) * h + (delta * xs[s])[None, :] * Bs[s]
    return h, p, place


@triton.jit
def _sweep(
    g, dA, dB, dC, dD, dbias, p, place, slot, slots, strip, x_row, delta_row, dy_row, row, dx_row, ddelta_row, drow,
    A2, B, C, D, bias, in_d, inner, step, wrap, d,
    K: tl.constexpr, ROW: tl.constexpr, DROW: tl.constexpr, N: tl.constexpr, BD: tl.constexpr, VARY_B: tl.constexpr,
    VARY_C: tl.constexpr, SOFTPLUS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip  # what changes; where from and to; what stays; switches and tile sizes
    """The groups of the strip's slots, from the last to the first: everything that changes,
    afterwards. p is the position before which to begin."""
    state, two = tl.arange(0, N), tl.arange(0, 2)
    in_n = state >= 0
    for back in range(slot, slots):
        group = slots - 1 - (back - slot)
        ps = ()
        for _ in tl.static_range(STEPS):
            ps = (p,) + ps  # noqa: RUF005  # Triton knows no unpacking
            p, place = step_back(p, place, inner, step, wrap, K)
        xs, deltas, slopes, dys, Bs, Cs = (), (), (), (), (), ()
        for s in tl.static_range(STEPS):  # every load before the first store
            xs += (tl.load(x_row + ps[s] * d).to(tl.float32),)
            delta, slope = step_delta(tl.load(delta_row + ps[s] * d * K).to(tl.float32) + bias, SOFTPLUS)
            deltas += (delta,)
            slopes += (slope,)
            dys += (
                tl.where(in_d, tl.load(dy_row + ps[s] * d).to(tl.float32), 0.0),
            )  # channels past the end must not reach dB and dC
            Bs += (tl.load(row + ps[s] * ROW + state)[:, None] if VARY_B else B,)
            Cs += (tl.load(row + ps[s] * ROW + VARY_B * N + state)[:, None] if VARY_C else C,)
        h = tl.load(strip + group * (N * BD))
        states, decays = (h,), ()
        for s in tl.static_range(STEPS):
            decays += (tl.exp2(deltas[s][None, :] * A2),)
            h = decays[s] * h + (deltas[s] * xs[s])[None, :] * Bs[s]
            states += (h,)
        for s in tl.static_range(STEPS - 1, -1, -1):
            delta, x, dy = deltas[s], xs[s], dys[s]
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
            tl.store(dx_row + ps[s] * d, (ddrive * delta + D * dy).to(dx_row.dtype.element_ty), mask=in_d)
            tl.store(ddelta_row + ps[s] * d * K, ddelta.to(ddelta_row.dtype.element_ty), mask=in_d)
            if VARY_B and VARY_C:  # side by side, so that a step's row is one store
                tl.store(
                    drow + ps[s] * DROW + state[:, None] * 2 + two[None, :], tl.join(tl.sum(dB_s, 1), tl.sum(dC_s, 1))
                )
            elif VARY_B:
                tl.store(drow + ps[s] * DROW + state, tl.sum(dB_s, 1), mask=in_n)
            elif VARY_C:
                tl.store(drow + ps[s] * DROW + state, tl.sum(dC_s, 1), mask=in_n)
            if not VARY_B:
                dB += dB_s
            if not VARY_C:
                dC += dC_s
    return g, dA, dB, dC, dD, dbias, p, place


# Why ``zero``, and whole groups first: see scan_forward.py. Here the sweep wants aligned tiles, the
# rebuilding does not.
@triton.jit(do_not_specialize=["zero", "start"])
def backward(
    dy_ptr, x_ptr, delta_ptr, rows_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, entry_ptr, adjoint_ptr, strip_ptr,
    dx_ptr, ddelta_ptr, drows_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dbias_ptr, dinitial_ptr,
    items, batch, height, width, d, segment, blocks, zero, start,
    K: tl.constexpr, GROUPS: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, VARY_B: tl.constexpr,
    VARY_C: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr, CHUNKED: tl.constexpr, EVEN: tl.constexpr,
    INDEX: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip  # tensors; results; sizes and strides; switches; tile sizes
    lane, state = tl.arange(0, BD), tl.arange(0, N)
    l = height * width
    chunks = (l + CHUNK - 1) // CHUNK
    ROW: tl.constexpr = K * GROUPS * WIDTH
    VARIES: tl.constexpr = VARY_B + VARY_C
    DROW: tl.constexpr = K * GROUPS * VARIES * N
    SLOTS: tl.constexpr = CHUNK // STEPS + STEPS - 1
    strip = strip_ptr + tl.program_id(0).to(tl.int64) * (SLOTS * N * BD) + state[:, None] * BD + lane[None, :]
    for item in range(start + tl.program_id(0), items, tl.num_programs(0)):
        i = tl.full([], item, tl.int64)
        i_block, i_g, i_k = i % blocks, i // blocks % GROUPS, i // (blocks * GROUPS) % K
        i_b, i_c = i // (blocks * GROUPS * K) % batch, i // (blocks * GROUPS * K * batch)
        within = i_block * BD + lane
        in_d = within < segment
        in_tile = in_d[None, :] & (state >= 0)[:, None]
        channel = i_g * segment + tl.max_contiguous(tl.minimum(within, segment - 1), BD)
        tile = state[:, None] * d + (i_g * segment + within)[None, :]
        tile_of_lanes = state[:, None] * d + channel[None, :] + zero
        x_row, dy_row = x_ptr + i_b * l * d + channel, dy_ptr + i_b * l * d + channel
        dx_row = dx_ptr + (i_k * batch + i_b) * l * d + channel
        delta_row = delta_ptr + (i_b * l * K + i_k) * d + channel
        ddelta_row = ddelta_ptr + (i_b * l * K + i_k) * d + channel
        row = rows_ptr + (i_b * l * (K * GROUPS) + i_k * GROUPS + i_g) * WIDTH
        drow = drows_ptr + ((i_block * batch + i_b) * l * (K * GROUPS) + i_k * GROUPS + i_g) * (VARIES * N)
        entry = entry_ptr + (i_b * K + i_k) * chunks * N * d

        A2 = tl.load(A_ptr + i_k * N * d + tile, mask=in_tile, other=0.0) * LOG2E
        D, bias = tl.load(D_ptr + i_k * d + channel), tl.load(bias_ptr + i_k * d + channel)
        B, C = A2, A2  # where there is none, it is not used
        if not VARY_B:
            B = tl.load(B_ptr + tile, mask=in_tile, other=0.0)
        if not VARY_C:
            C = tl.load(C_ptr + tile, mask=in_tile, other=0.0)
        g = tl.zeros([N, BD], tl.float32)
        if ADJOINT:
            i_adjoint = (i_b * K + i_k) * chunks + i_c if CHUNKED else i_b
            g = tl.load(adjoint_ptr + i_adjoint * N * d + tile, mask=in_tile, other=0.0)
        dA, dB, dC = tl.zeros([N, BD], tl.float32), tl.zeros([N, BD], tl.float32), tl.zeros([N, BD], tl.float32)
        dD, dbias = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
        last_chunk, count = chunks - 1, chunks
        if CHUNKED:
            last_chunk, count = i_c.to(tl.int32), 1
        first, inner, step, wrap = route(i_k, height, width)
        first, inner, step, wrap = first.to(INDEX), inner.to(INDEX), step.to(INDEX), wrap.to(INDEX)
        p_back, place_back = place_at(tl.minimum(last_chunk * CHUNK + CHUNK, l) - 1, first, inner, step, wrap)
        for back in range(0, count):
            chunk = last_chunk - back
            steps = tl.minimum(CHUNK, l - chunk * CHUNK)
            groups = steps // STEPS
            slots = groups + steps - groups * STEPS  # the steps past the last whole group have one each
            h = tl.load(entry + tl.full([], chunk, tl.int64) * (N * d) + tile_of_lanes)
            A2_of_lanes = (
                tl.load(A_ptr + i_k * N * d + tile_of_lanes) * LOG2E
            )  # loaded anew for each chunk: the sweep has no registers for it
            B_of_lanes = A2_of_lanes
            if not VARY_B:
                B_of_lanes = tl.load(B_ptr + tile_of_lanes)
            p, place = place_at(chunk * CHUNK, first, inner, step, wrap)
            h, p, place = _rebuild(
                h, p, place, 0, groups, strip + zero, x_row, delta_row, row, A2_of_lanes, B_of_lanes, bias, inner,
                step, wrap, d, K, ROW, N, BD, VARY_B, SOFTPLUS, STEPS,
            )  # fmt: skip  # line by line the function's parameters
            if not EVEN:
                h, p, place = _rebuild(
                    h, p, place, groups, slots, strip + zero, x_row, delta_row, row, A2_of_lanes, B_of_lanes, bias,
                    inner, step, wrap, d, K, ROW, N, BD, VARY_B, SOFTPLUS, 1,
                )  # fmt: skip  # line by line the function's parameters
            tl.debug_barrier()  # a lane reads the strip in another layout than it wrote it
            if not EVEN:
                g, dA, dB, dC, dD, dbias, p_back, place_back = _sweep(
                    g, dA, dB, dC, dD, dbias, p_back, place_back, groups, slots, strip,
                    x_row, delta_row, dy_row, row, dx_row, ddelta_row, drow, A2, B, C, D, bias, in_d, inner, step,
                    wrap, d, K, ROW, DROW, N, BD, VARY_B, VARY_C, SOFTPLUS, 1,
                )  # fmt: skip  # line by line the function's parameters
            g, dA, dB, dC, dD, dbias, p_back, place_back = _sweep(
                g, dA, dB, dC, dD, dbias, p_back, place_back, 0, groups, strip,
                x_row, delta_row, dy_row, row, dx_row, ddelta_row, drow, A2, B, C, D, bias, in_d, inner, step, wrap, d,
                K, ROW, DROW, N, BD, VARY_B, VARY_C, SOFTPLUS, STEPS,
            )  # fmt: skip  # line by line the function's parameters
            tl.debug_barrier()  # the next chunk writes the strip again

        part = i_c * batch + i_b
        tl.store(dA_ptr + (part * K + i_k) * N * d + tile, dA, mask=in_tile)
        tl.store(dD_ptr + (part * K + i_k) * d + channel, dD, mask=in_d)
        tl.store(dbias_ptr + (part * K + i_k) * d + channel, dbias, mask=in_d)
        if not VARY_B:
            tl.store(dB_ptr + part * N * d + tile, dB, mask=in_tile)
        if not VARY_C:
            tl.store(dC_ptr + part * N * d + tile, dC, mask=in_tile)
        if K == 1 and not CHUNKED:
            tl.store(dinitial_ptr + i_b * N * d + tile, g, mask=in_tile)


@triton.jit
def _recede(
    g, total, p, place, groups, delta_row, dy_row, row, A2, C, bias, inner, step, wrap, d,
    K: tl.constexpr, ROW: tl.constexpr, N: tl.constexpr, VARY_C: tl.constexpr, SOFTPLUS: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip  # what changes; how far; what stays; switches and tile sizes
    """The adjoint over so many groups of STEPS steps back, with nothing but itself: it, the sum of
    deltas, position and place afterwards."""
    state = tl.arange(0, N)
    for _group in tl.range(0, groups, num_stages=STAGES):
        raws, dys, Cs = (), (), ()
        for _ in tl.static_range(STEPS):
            raws += (tl.load(delta_row + p * d * K).to(tl.float32) + bias,)
            dys += (tl.load(dy_row + p * d).to(tl.float32),)
            Cs += (tl.load(row + p * ROW + state)[:, None] if VARY_C else C,)
            p, place = step_back(p, place, inner, step, wrap, K)
        for s in tl.static_range(STEPS):
            delta, _ = step_delta(raws[s], SOFTPLUS)
            g = (g + Cs[s] * dys[s][None, :]) * tl.exp2(delta[None, :] * A2)
            total += delta
    return g, total, p, place


@triton.jit(do_not_specialize=["zero", "start"])
def adjoint_ends(
    dy_ptr, delta_ptr, rows_ptr, A_ptr, C_ptr, bias_ptr, adjoint_ptr, total_ptr,
    batch, height, width, d, segment, blocks, zero, start,
    K: tl.constexpr, GROUPS: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, VARY_B: tl.constexpr,
    VARY_C: tl.constexpr, SOFTPLUS: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr, BD: tl.constexpr,
    STEPS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; switches; tile sizes
    """What each chunk makes of a zero adjoint, leaving it at its beginning, and the sum of its
    deltas: ``carry`` in reverse goes on from these."""
    i = tl.program_id(0).to(tl.int64) + start
    within = i % blocks * BD + tl.arange(0, BD)
    in_d = within < segment
    i_g, i_k = i // blocks % GROUPS, i // (blocks * GROUPS) % K
    i_b, i_c = i // (blocks * GROUPS * K) % batch, i // (blocks * GROUPS * K * batch)
    channel = i_g * segment + tl.max_contiguous(tl.minimum(within, segment - 1), BD)
    state = tl.arange(0, N)
    tile = state[:, None] * d + channel[None, :] + zero
    l = height * width
    chunks = (l + CHUNK - 1) // CHUNK
    ROW: tl.constexpr = K * GROUPS * WIDTH
    dy_row = dy_ptr + i_b * l * d + channel
    delta_row = delta_ptr + (i_b * l * K + i_k) * d + channel
    row = rows_ptr + (i_b * l * (K * GROUPS) + i_k * GROUPS + i_g) * WIDTH + VARY_B * N
    A2 = tl.load(A_ptr + i_k * N * d + tile) * LOG2E
    bias = tl.load(bias_ptr + i_k * d + channel)
    C = tl.load(C_ptr + tile) if not VARY_C else A2  # where there is none, it is not used
    g = tl.zeros([N, BD], tl.float32)
    total = tl.zeros([BD], tl.float32)
    begin = i_c.to(tl.int32) * CHUNK
    steps = tl.minimum(CHUNK, l - begin)
    groups = steps // STEPS
    first, inner, step, wrap = route(i_k, height, width)
    first, inner, step, wrap = first.to(INDEX), inner.to(INDEX), step.to(INDEX), wrap.to(INDEX)
    p, place = place_at(begin + steps - 1, first, inner, step, wrap)
    if not EVEN:
        g, total, p, place = _recede(
            g, total, p, place, steps - groups * STEPS, delta_row, dy_row, row, A2, C, bias, inner, step, wrap, d,
            K, ROW, N, VARY_C, SOFTPLUS, 1,
        )  # fmt: skip  # line by line the function's parameters
    g, total, p, place = _recede(
        g,
        total,
        p,
        place,
        groups,
        delta_row,
        dy_row,
        row,
        A2,
        C,
        bias,
        inner,
        step,
        wrap,
        d,
        K,
        ROW,
        N,
        VARY_C,
        SOFTPLUS,
        STEPS,
    )
    tl.store(
        adjoint_ptr + ((i_b * K + i_k) * chunks + i_c) * N * d + tile, g, mask=in_d[None, :] & (state >= 0)[:, None]
    )
    tl.store(total_ptr + ((i_b * K + i_k) * chunks + i_c) * d + channel, total, mask=in_d)
