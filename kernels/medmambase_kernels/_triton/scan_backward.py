"""The backward kernels of the scan of an image on a GPU.

    g_t = C_t dy_t + a_{t+1} g_{t+1}    dB_t = g_t delta_t x_t    dC_t = h_t dy_t
    d(delta_t A) = g_t a_t h_{t-1}

g_t is the adjoint of h_t. Nothing was kept but the inputs and the state that entered each chunk.

A program takes its chunks from the last to the first. First it rebuilds a chunk as forward does, a
channel a lane, and leaves the state before each group of STEPS steps in a scratch strip that stays
in the cache. Then, group by group from the end, it holds the group's states in registers and sweeps
back; there a lane holds 4 states of 4 channels, since the sums over states (for x and delta) and
over channels (for B and C) cost least so. Sums over channel blocks, chunks and images are stored as
parts and added in a fixed order: no atomics, every run gives the same bits.

Where whole directions are too few programs (CHUNKED), ``adjoint_ends`` and, in reverse, ``carry``
of scan_forward.py give each chunk the adjoint that enters it.
A fixed number of programs shares the items out in a fixed order, so that the strips fit into the
cache.
"""

import triton
import triton.language as tl

from medmambase_kernels._triton.channel_sums import sums_side_by_side
from medmambase_kernels._triton.numerics import LN2, softplus
from medmambase_kernels._triton.scan_forward import STAGES, K, place_at, route, step_on


@triton.jit
def step_back(p, place, inner, step, wrap):
    """The position and place before p."""
    at_start = place == 0
    return p - tl.where(at_start, wrap, step), tl.where(at_start, inner, place) - 1


@triton.jit
def _rebuild(
    h, p, place, slot, slots, strip, x_row, delta_row, row, A2, bias, inner, step, wrap, d,
    N: tl.constexpr, WIDTH: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip  # what changes; where from and to; what stays; switches and tile sizes
    """Forward again by groups of STEPS steps, each group's first state into its slot of the strip:
    the state, position and place afterwards."""
    state = tl.arange(0, N)
    for group in tl.range(slot, slots, num_stages=STAGES):
        tl.store(strip + group * (N * BD), h)
        xs, raws, Bs = (), (), ()
        for _ in tl.static_range(STEPS):
            xs += (tl.load(x_row + p * d),)
            raws += (tl.load(delta_row + p * d * K) + bias,)
            Bs += (tl.load(row + p * (K * WIDTH) + state)[:, None],)
            p, place = step_on(p, place, inner, step, wrap)
        for s in tl.static_range(STEPS):
            delta, _ = softplus(raws[s])
            h = tl.exp2(delta[None, :] * A2) * h + (delta * xs[s])[None, :] * Bs[s]
    return h, p, place


@triton.jit
def _sweep(
    g, dA, dD, dbias, p, place, slot, slots, strip, x_row, delta_row, dy_row, row, dx_row, drow,
    A2, D, bias, in_d, inner, step, wrap, d,
    N: tl.constexpr, WIDTH: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip  # what changes; where from and to; what stays; switches and tile sizes
    """The groups of the strip's slots, from the last to the first: everything that changes,
    afterwards. p is the position before which to begin."""
    state, two = tl.arange(0, N), tl.arange(0, 2)
    for back in range(slot, slots):
        group = slots - 1 - (back - slot)
        ps = ()
        for _ in tl.static_range(STEPS):
            ps = (p,) + ps  # noqa: RUF005  # Triton knows no unpacking
            p, place = step_back(p, place, inner, step, wrap)
        xs, deltas, slopes, dys, Bs, Cs = (), (), (), (), (), ()
        for s in tl.static_range(STEPS):  # every load before the first store
            xs += (tl.load(x_row + ps[s] * d),)
            delta, slope = softplus(tl.load(delta_row + ps[s] * d * K) + bias)
            deltas += (delta,)
            slopes += (slope,)
            # Channels past the end must not reach dB and dC.
            dys += (tl.where(in_d, tl.load(dy_row + ps[s] * d), 0.0),)
            Bs += (tl.load(row + ps[s] * (K * WIDTH) + state)[:, None],)
            Cs += (tl.load(row + ps[s] * (K * WIDTH) + N + state)[:, None],)
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
            # Before what follows, which then has the registers; side by side: a step's row is one
            # store.
            both = sums_side_by_side(dB_s, dC_s, N, BD)
            ddrive = tl.sum(g * Bs[s], 0)
            g = g * decays[s]
            through = g * states[s]
            dA += through * delta[None, :]
            ddelta = (tl.sum(through * A2, 0) * LN2 + ddrive * x) * slopes[s]
            dbias += ddelta
            dD += dy * x
            tl.store(dx_row + ps[s] * d, ddrive * delta + D * dy, mask=in_d)
            tl.store(delta_row + ps[s] * d * K, ddelta, mask=in_d)
            tl.store(drow + ps[s] * (K * 2 * N) + state[:, None] * 2 + two[None, :], both)
    return g, dA, dD, dbias, p, place


# Why ``zero``, and whole groups first: see scan_forward.py. Here the sweep wants aligned tiles, the
# rebuilding does not.
@triton.jit(do_not_specialize=["zero", "start"])
def backward(
    dy_ptr, x_ptr, delta_ptr, rows_ptr, A2_ptr, D_ptr, bias_ptr, entry_ptr, adjoint_ptr, strip_ptr,
    dx_ptr, drows_ptr, parts_ptr, items, batch, height, width, d, blocks, zero, start,
    N: tl.constexpr, WIDTH: tl.constexpr, ENTRY: tl.constexpr, CHUNKED: tl.constexpr, EVEN: tl.constexpr,
    INDEX: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip  # tensors; results; sizes and strides; switches; tile sizes
    """The gradient of what goes into the softplus takes its place in delta_ptr: no load, ahead or
    not, is of a place that has its gradient already."""
    lane, state = tl.arange(0, BD), tl.arange(0, N)
    l = height * width
    chunks = (l + CHUNK - 1) // CHUNK
    SLOTS: tl.constexpr = CHUNK // STEPS + STEPS - 1
    strip = strip_ptr + tl.program_id(0).to(tl.int64) * (SLOTS * N * BD) + state[:, None] * BD + lane[None, :]
    for item in range(start + tl.program_id(0), items, tl.num_programs(0)):
        i = tl.full([], item, tl.int64)
        i_block, i_k = i % blocks, i // blocks % K
        i_b, i_c = i // (blocks * K) % batch, i // (blocks * K * batch)
        within = i_block * BD + lane
        in_d = within < d
        in_tile = in_d[None, :] & (state >= 0)[:, None]
        channel = tl.max_contiguous(tl.minimum(within, d - 1), BD)
        tile = state[:, None] * d + within[None, :]
        tile_of_lanes = state[:, None] * d + channel[None, :] + zero
        x_row, dy_row = x_ptr + i_b * l * d + channel, dy_ptr + i_b * l * d + channel
        dx_row = dx_ptr + (i_k * batch + i_b) * l * d + channel
        delta_row = delta_ptr + (i_b * l * K + i_k) * d + channel
        row = rows_ptr + (i_b * l * K + i_k) * WIDTH
        drow = drows_ptr + ((i_block * batch + i_b) * l * K + i_k) * (2 * N)
        entry = entry_ptr + (i_b * K + i_k) * chunks * N * d

        A2 = tl.load(A2_ptr + i_k * N * d + tile, mask=in_tile, other=0.0)
        D, bias = tl.load(D_ptr + i_k * d + channel), tl.load(bias_ptr + i_k * d + channel)
        g = tl.zeros([N, BD], tl.float32)
        last_chunk, count = chunks - 1, chunks
        if CHUNKED:
            adjoint = adjoint_ptr + ((i_b * K + i_k) * chunks + i_c) * N * d
            g = tl.load(adjoint + tile, mask=in_tile, other=0.0)
            last_chunk, count = i_c.to(tl.int32), 1
        dA, dD, dbias = tl.zeros([N, BD], tl.float32), tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
        first, inner, step, wrap = route(i_k, height, width)
        first, inner, step, wrap = first.to(INDEX), inner.to(INDEX), step.to(INDEX), wrap.to(INDEX)
        p_back, place_back = place_at(tl.minimum(last_chunk * CHUNK + CHUNK, l) - 1, first, inner, step, wrap)
        for back in range(0, count):
            chunk = last_chunk - back
            steps = tl.minimum(CHUNK, l - chunk * CHUNK)
            groups = steps // STEPS
            slots = groups + steps - groups * STEPS  # the steps past the last whole group have one each
            h = tl.zeros([N, BD], tl.float32)
            if ENTRY:
                h = tl.load(entry + tl.full([], chunk, tl.int64) * (N * d) + tile_of_lanes)
            A2_of_lanes = tl.load(A2_ptr + i_k * N * d + tile_of_lanes)  # anew: the sweep has no registers for it
            p, place = place_at(chunk * CHUNK, first, inner, step, wrap)
            h, p, place = _rebuild(
                h, p, place, 0, groups, strip + zero, x_row, delta_row, row, A2_of_lanes, bias, inner, step, wrap, d,
                N, WIDTH, BD, STEPS,
            )  # fmt: skip  # line by line the function's parameters
            if not EVEN:
                h, p, place = _rebuild(
                    h, p, place, groups, slots, strip + zero, x_row, delta_row, row, A2_of_lanes, bias, inner, step,
                    wrap, d, N, WIDTH, BD, 1,
                )  # fmt: skip  # line by line the function's parameters
            tl.debug_barrier()  # a lane reads the strip in another layout than it wrote it
            if not EVEN:
                g, dA, dD, dbias, p_back, place_back = _sweep(
                    g, dA, dD, dbias, p_back, place_back, groups, slots, strip, x_row, delta_row, dy_row, row, dx_row,
                    drow, A2, D, bias, in_d, inner, step, wrap, d, N, WIDTH, BD, 1,
                )  # fmt: skip  # line by line the function's parameters
            g, dA, dD, dbias, p_back, place_back = _sweep(
                g, dA, dD, dbias, p_back, place_back, 0, groups, strip, x_row, delta_row, dy_row, row, dx_row,
                drow, A2, D, bias, in_d, inner, step, wrap, d, N, WIDTH, BD, STEPS,
            )  # fmt: skip  # line by line the function's parameters
            tl.debug_barrier()  # the next chunk writes the strip again

        part = parts_ptr + ((i_c * batch + i_b) * K + i_k) * (N + 2) * d
        tl.store(part + tile, dA, mask=in_tile)
        tl.store(part + N * d + channel, dD, mask=in_d)
        tl.store(part + (N + 1) * d + channel, dbias, mask=in_d)


@triton.jit
def _recede(
    g, total, p, place, groups, delta_row, dy_row, row, A2, bias, inner, step, wrap, d,
    N: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip  # what changes; how far; what stays; switches and tile sizes
    """The adjoint over so many groups of STEPS steps back, with nothing but itself: it, the sum of
    deltas, position and place afterwards."""
    state = tl.arange(0, N)
    for _group in tl.range(0, groups, num_stages=STAGES):
        raws, dys, Cs = (), (), ()
        for _ in tl.static_range(STEPS):
            raws += (tl.load(delta_row + p * d * K) + bias,)
            dys += (tl.load(dy_row + p * d),)
            Cs += (tl.load(row + p * (K * WIDTH) + N + state)[:, None],)
            p, place = step_back(p, place, inner, step, wrap)
        for s in tl.static_range(STEPS):
            delta, _ = softplus(raws[s])
            g = (g + Cs[s] * dys[s][None, :]) * tl.exp2(delta[None, :] * A2)
            total += delta
    return g, total, p, place


@triton.jit(do_not_specialize=["zero", "start"])
def adjoint_ends(
    dy_ptr, delta_ptr, rows_ptr, A2_ptr, bias_ptr, adjoint_ptr, total_ptr,
    batch, height, width, d, blocks, zero, start,
    N: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr, BD: tl.constexpr,
    STEPS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; switches; tile sizes
    """What each chunk makes of a zero adjoint, leaving it at its beginning, and the sum of its
    deltas: ``carry`` in reverse goes on from these."""
    i = tl.program_id(0).to(tl.int64) + start
    within = i % blocks * BD + tl.arange(0, BD)
    in_d = within < d
    i_k, i_b, i_c = i // blocks % K, i // (blocks * K) % batch, i // (blocks * K * batch)
    channel = tl.max_contiguous(tl.minimum(within, d - 1), BD)
    state = tl.arange(0, N)
    tile = state[:, None] * d + channel[None, :] + zero
    l = height * width
    chunks = (l + CHUNK - 1) // CHUNK
    dy_row = dy_ptr + i_b * l * d + channel
    delta_row = delta_ptr + (i_b * l * K + i_k) * d + channel
    row = rows_ptr + (i_b * l * K + i_k) * WIDTH
    A2 = tl.load(A2_ptr + i_k * N * d + tile)
    bias = tl.load(bias_ptr + i_k * d + channel)
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
            g, total, p, place, steps - groups * STEPS, delta_row, dy_row, row, A2, bias, inner, step, wrap, d,
            N, WIDTH, 1,
        )  # fmt: skip  # line by line the function's parameters
    g, total, p, place = _recede(
        g, total, p, place, groups, delta_row, dy_row, row, A2, bias, inner, step, wrap, d, N, WIDTH, STEPS
    )
    at = (i_b * K + i_k) * chunks + i_c
    tl.store(adjoint_ptr + at * N * d + tile, g, mask=in_d[None, :] & (state >= 0)[:, None])
    tl.store(total_ptr + at * d + channel, total, mask=in_d)
