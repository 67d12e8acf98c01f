"""The forward kernels of the scan of an image on a GPU: one warp walks one direction, with its
[state, channel] tile in registers.

    h_t = 2^(delta_t A2) h_{t-1} + delta_t x_t B_t
    y_t = sum_n C_t h_t + D x_t

A2 = A log2(e), a table (k, n, d), so that one exp2 instruction is the whole decay.

A lane holds one channel and all its states: no shuffle. A direction is a signed stride over the one
image, so no turned copy exists. What a loop loads is copied ahead into shared memory (STAGES): left
to itself, the assembler moves every load of a group of steps down to its use, and the group waits
for memory five to seven times. Bytes an element of x and direction, in float32: x 4 (from the cache
after the first direction), y 4, given delta 4; and 16 n / CHUNK for the states kept for backward.
B, C and the rank of delta come as rows (b, l, k, [B | C | rank]) in float32, padded to powers of
two: bfloat16 rows would cost 3 instructions a state in conversions, unpadded ones single loads.

Three ways to launch ``forward``: WHOLE, a program for each whole direction; or, where that is too
few programs, ENDS (each chunk from a zero state: its last state and the sum of its deltas), then
``carry`` along the chunks, then CHUNKS (each chunk from its entry state). The entry states are what
backward starts from.
"""

import triton
import triton.language as tl

from medmambase_kernels._triton.numerics import load_pair, softplus

K = tl.constexpr(4)  # directions
WHOLE = tl.constexpr(0)
ENDS = tl.constexpr(1)
CHUNKS = tl.constexpr(2)

# Turns of a loop whose loads are under way, this one included. With 2, a copy is begun at the end
# of the turn before and waited for at once; 4 is no better than 3, by the predicted cycles.
STAGES = tl.constexpr(3)


@triton.jit
def route(i_k, height, width):
    """Direction i_k over a row-major image: first position, steps in a line, stride of a step, and
    from a line's end to the next line."""
    down = i_k % 2 == 1
    sign = tl.where(i_k >= 2, -1, 1)
    inner = tl.where(down, height, width)
    step = tl.where(down, width, 1) * sign
    return tl.where(i_k >= 2, height * width - 1, 0), inner, step, tl.where(down, 1, width) * sign - step * (inner - 1)


@triton.jit
def place_at(t, first, inner, step, wrap):
    """Where step t of a route is: its position, and its place in its line."""
    place = t % inner
    return first + t // inner * (wrap + step * (inner - 1)) + place * step, place


@triton.jit
def step_on(p, place, inner, step, wrap):
    """The position and place after p."""
    at_end = place + 1 == inner
    return p + tl.where(at_end, wrap, step), tl.where(at_end, 0, place + 1)


@triton.jit
def _advance(
    h, total, p, place, begin, end, x_row, delta_row, row, y_row, entry, A2, W, D, bias, in_d, inner, step, wrap, d,
    N: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, MODE: tl.constexpr, KEEPS: tl.constexpr,
    ADDS: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip  # what changes; where from and to; what stays; switches and tile sizes
    """The steps from begin to end, a multiple of STEPS: the state, the sum of deltas, the position
    and its place in its line afterwards. KEEPS stores the state that enters each chunk; ADDS adds
    to the y that is there, which no turn of the same loop has written."""
    state, low = tl.arange(0, N), tl.arange(0, RANK if RANK > 0 else 1)
    for at in tl.range(begin, end, STEPS, num_stages=STAGES):
        if KEEPS:  # noqa: SIM102  # the first is the compiler's, the second the kernel's
            if at % CHUNK == 0:
                kept = entry + tl.full([], at // CHUNK, p.dtype) * (N * d)
                tl.store(kept, h, mask=in_d[None, :] & (state >= 0)[:, None])
        ps, xs, raws, Bs, Cs, before = (), (), (), (), (), ()
        for _ in tl.static_range(STEPS):  # every load of a group before its first store: loads may not move over stores
            ps += (p,)
            xs += (tl.load(x_row + p * d),)
            if RANK > 0:
                rank = tl.load(row + p * (K * WIDTH) + 2 * N + low)
                raws += (tl.sum(rank[:, None] * W, 0) + bias,)
            else:
                raws += (tl.load(delta_row + p * d * K) + bias,)
            B, C = load_pair(row + p * (K * WIDTH), N)
            Bs += (B,)
            Cs += (C,)
            if MODE != ENDS and ADDS:
                before += (tl.load(y_row + p * d),)
            p, place = step_on(p, place, inner, step, wrap)
        for s in tl.static_range(STEPS):
            delta, _ = softplus(raws[s])
            h = tl.exp2(delta[None, :] * A2) * h + (delta * xs[s])[None, :] * Bs[s]
            if MODE == ENDS:
                total += delta
            else:
                y = tl.sum(h * Cs[s], 0) + D * xs[s]
                if ADDS:
                    y += before[s]
                tl.store(y_row + ps[s] * d, y, mask=in_d)
    return h, total, p, place


# ``zero`` is always 0 and keeps the compiler from seeing that tiles are aligned: it would load 4
# channels a lane, spread a channel's states over lanes, and sum them by shuffles. Loads are not
# masked, since a mask costs an instruction for each value: channels past the end read the last one
# instead, and are masked where they are stored. That max_contiguous is untrue of those channels
# does no harm, since no load takes two channels at once; without it, or with it in a function of
# its own, Tritons before 3.7 spread the states all the same. Steps past the last whole group are
# taken one by one.
@triton.jit(do_not_specialize=["zero", "start"])
def forward(
    x_ptr, delta_ptr, rows_ptr, W_ptr, A2_ptr, D_ptr, bias_ptr, y_ptr, entry_ptr, total_ptr,
    batch, height, width, d, blocks, zero, start,
    N: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, SAVE: tl.constexpr, MODE: tl.constexpr,
    PAIR: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; switches; tile sizes
    i = tl.program_id(0).to(tl.int64) + start
    PARTS: tl.constexpr = K // PAIR
    within = (i % blocks).to(tl.int32) * BD + tl.arange(0, BD)
    in_d = within < d
    i_part, i_b, i_c = i // blocks % PARTS, i // (blocks * PARTS) % batch, i // (blocks * PARTS * batch)
    channel = tl.max_contiguous(tl.minimum(within, d - 1), BD)
    state = tl.arange(0, N)
    tile = state[:, None] * d + channel[None, :] + zero  # [N, BD] of an (n, d) table
    in_tile = in_d[None, :] & (state >= 0)[:, None]
    l = height * width
    chunks = (l + CHUNK - 1) // CHUNK
    x_row, y_row = x_ptr + i_b * l * d + channel, y_ptr + (i_part * batch + i_b) * l * d + channel
    for i_pair in tl.static_range(PAIR):  # a direction, then its reverse, whose result is added in place
        i_k = i_part + 2 * i_pair
        row = rows_ptr + (i_b * l * K + i_k) * WIDTH
        delta_row = delta_ptr + (i_b * l * K + i_k) * d + channel
        entry = entry_ptr + (i_b * K + i_k) * chunks * N * d + tile
        A2 = tl.load(A2_ptr + i_k * N * d + tile)
        D, bias = tl.load(D_ptr + i_k * d + channel), tl.load(bias_ptr + i_k * d + channel)
        W = A2  # where there is none, it is not used
        if RANK > 0:
            W = tl.load(W_ptr + (i_k * RANK + tl.arange(0, RANK)[:, None]) * d + channel[None, :] + zero)
        h, total = tl.zeros([N, BD], tl.float32), tl.zeros([BD], tl.float32)
        begin = i_c.to(tl.int32) * CHUNK  # in WHOLE, i_c is 0
        end = l if MODE == WHOLE else tl.minimum(begin + CHUNK, l)
        if MODE == CHUNKS:
            h = tl.load(entry + i_c * N * d)
        first, inner, step, wrap = route(i_k, height, width)
        first, inner, step, wrap = first.to(INDEX), inner.to(INDEX), step.to(INDEX), wrap.to(INDEX)
        p, place = place_at(begin, first, inner, step, wrap)
        whole = end if EVEN else begin + (end - begin) // STEPS * STEPS
        h, total, p, place = _advance(
            h, total, p, place, begin, whole, x_row, delta_row, row, y_row, entry, A2, W, D, bias, in_d, inner, step,
            wrap, d, N, WIDTH, RANK, MODE, MODE == WHOLE and SAVE, i_pair > 0, STEPS, CHUNK,
        )  # fmt: skip  # line by line the function's parameters
        if not EVEN:
            h, total, p, place = _advance(
                h, total, p, place, whole, end, x_row, delta_row, row, y_row, entry, A2, W, D, bias, in_d, inner, step,
                wrap, d, N, WIDTH, RANK, MODE, MODE == WHOLE and SAVE, i_pair > 0, 1, CHUNK,
            )  # fmt: skip  # line by line the function's parameters
        if MODE == ENDS:
            tl.store(entry + i_c * N * d, h, mask=in_tile)
            tl.store(total_ptr + ((i_b * K + i_k) * chunks + i_c) * d + channel, total, mask=in_d)
        if i_pair + 1 < PAIR:
            tl.debug_barrier()  # the second sweep's copies ahead have no order with the stores of the first


@triton.jit(do_not_specialize=["zero"])
def carry(
    entry_ptr, total_ptr, A2_ptr, d, blocks, chunks, zero, N: tl.constexpr, REVERSE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip  # tensors; sizes; switches and tile sizes
    """From what each chunk makes of a zero state to what enters each chunk, in place; in REVERSE
    from the last chunk to the first, for the adjoint."""
    i = tl.program_id(0).to(tl.int64)
    i_k, i_b = i // blocks % K, i // (blocks * K)
    within = (i % blocks).to(tl.int32) * BD + tl.arange(0, BD)
    in_d = within < d
    channel = tl.max_contiguous(tl.minimum(within, d - 1), BD)
    state = tl.arange(0, N)
    tile = state[:, None] * d + channel[None, :] + zero
    in_tile = in_d[None, :] & (state >= 0)[:, None]
    A2 = tl.load(A2_ptr + i_k * N * d + tile)
    entry = entry_ptr + (i_b * K + i_k) * chunks * N * d + tile
    total = total_ptr + (i_b * K + i_k) * chunks * d + channel
    h = tl.zeros([N, BD], tl.float32)
    for n_th in tl.range(0, chunks, num_stages=STAGES):  # of chunks that no turn has stored yet
        chunk = tl.full([], chunks - 1 - n_th if REVERSE else n_th, tl.int64)
        made = tl.load(entry + chunk * N * d)
        after = tl.exp2(tl.load(total + chunk * d)[None, :] * A2) * h + made
        # Only now: the copy of what the chunk made may be under way until it is used.
        tl.store(entry + chunk * N * d, h, mask=in_tile)
        h = after
