"""The selective scan on a GPU: one warp walks the sequence with its [state, channel] tile in registers.

    h_l = 2^(delta_l A2) h_{l-1} + delta_l u_l B_l      A2 = A log2(e), so that one exp2 instruction is the whole decay
    y_l = sum_n C_l h_l + D u_l

Kept for backward: the state before every CHUNK steps, 4 n / CHUNK bytes an element of u. Backward takes the chunks from the last to the
first: forwards through the chunk, leaving the state before each group of steps in a scratch strip; then group by group from the end, the
group's states in registers, with the adjoint. Sums over channel blocks and images are stored as parts and added in a fixed order: no
atomics, every run gives the same bits. Bytes an element, float32: 12 forward, 28 backward, and B and C once a channel block.

Last stop before: selective_scan.py, which checks the arguments. Next stop: the caller again.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 32  # steps between two checkpoints; a multiple of every number of steps below
# (states up to, channels a program, steps loaded together): the state tile stays at 16 floats a lane of the one warp
_LAUNCH = ((16, 32, 4), (32, 16, 4), (64, 8, 4))

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))


def launch_config(n: int) -> dict[str, int]:
    """The launch table's row for n states, as keyword arguments of every scan kernel."""
    _, channels, steps = next((row for row in _LAUNCH if n <= row[0]), _LAUNCH[-1])
    return {"N": triton.next_power_of_2(n), "BD": channels, "STEPS": steps, "CHUNK": CHUNK, "num_warps": 1, "enable_fp_fusion": True}


def checkpoint_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Shape of the states kept for backward, (b, chunks, n, d), for u (b, d, l) and A (d, n)."""
    return (u.shape[0], (u.shape[2] + CHUNK - 1) // CHUNK, A.shape[1], u.shape[1])


@triton.jit
def softplus(v):
    """log(1 + e^v) and its slope sigmoid(v), both to a few float32 roundings in relative terms; NaN stays NaN."""
    # e^-|v| = 2^k e^rest, k whole: |v| log2(e) rounded once would cost 5e-6 at v = -80. ln 2 in two parts, the first of 10 bits.
    size = tl.where(tl.abs(v) > 104.0, 104.0, tl.abs(v))  # e^-104 is 0; infinity must not become inf - inf
    k = tl.floor(0.5 - size * LOG2E)
    rest = -size - k * 0.693359375 + k * 2.12194440054690583e-4
    e = tl.exp2(k) * tl.exp2(rest * LOG2E)
    p = 0.005231835879385471  # log(1 + e) / e on [0, 1] to 3e-8
    p = p * e - 0.029501616954803467
    p = p * e + 0.07821965962648392
    p = p * e - 0.13662666082382202
    p = p * e + 0.191057026386261
    p = p * e - 0.24842891097068787
    p = p * e + 0.33319082856178284
    p = p * e - 0.4999949336051941
    p = p * e + 0.9999999403953552
    value = tl.where(v > 0, v, 0.0) + p * e  # above 20 the second term is under half a rounding: v itself
    return value, tl.where(v > 0, 1.0, e) / (1.0 + e)


@triton.jit
def load(ptr, live):
    """The values in float32 whatever is stored, 0 where not live."""
    return tl.load(ptr, mask=live, other=0.0).to(tl.float32)


@triton.jit
def step_back(g, state, before, decay, u, delta, B, C, dy, A2):
    """One step of the adjoint g [N, BD]: g one step earlier; du, ddelta [BD]; the terms of dA, dB, dC [N, BD]. D is not in it.

    state and before are h_l and h_{l-1}; B and C are [N, 1] or [N, BD].
    """
    g += C * dy[None, :]
    dC = state * dy[None, :]
    dB = g * (delta * u)[None, :]
    ddrive = tl.sum(g * B, 0)
    g = g * decay
    through = g * before
    ddelta = tl.sum(through * A2, 0) * LN2 + ddrive * u
    return g, ddrive * delta, ddelta, through * delta[None, :], dB, dC


@triton.jit
def _load_delta(ptr, live, bias, SOFTPLUS: tl.constexpr):
    """delta [BD] after bias and softplus, and its slope; 0 and 0 where not live: such a step leaves state and gradients alone."""
    v = load(ptr, live) + bias
    slope = tl.zeros_like(v) + 1.0
    if SOFTPLUS:
        v, slope = softplus(v)
    return tl.where(live, v, 0.0), tl.where(live, slope, 0.0)


@triton.jit
def _load_states(ptr, row, t, l, n, state, tile, in_tile, VARY: tl.constexpr):
    """B or C at step t: [N, 1] from (row, l, n) where it varies over the sequence, else [N, BD] from its (n, d) table."""
    return load(ptr + (row * l + t) * n + state, (state < n) & (t < l))[:, None] if VARY else load(ptr + tile, in_tile)


# A's alignment is hidden from the compiler: vector loads of A would spread a channel's states over lanes, and the sum over states
# would need shuffles. (Backward wants that spread: there the sums over channels cost more.)
@triton.jit(do_not_specialize_on_alignment=["A_ptr"])
def _forward(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, initial_ptr, y_ptr, last_ptr, checkpoint_ptr,
    d, n, l, segment, segments, blocks, groups_B, groups_C, u_b, u_d, u_l, delta_b, delta_d, delta_l,
    SOFTPLUS: tl.constexpr, VARY_B: tl.constexpr, VARY_C: tl.constexpr, SAVE: tl.constexpr,
    N: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; switches; tile sizes
    i = tl.program_id(0).to(tl.int64)
    i_b, i_s = i // (segments * blocks), i // blocks % segments
    within = i % blocks * BD + tl.arange(0, BD)
    channel, in_d = i_s * segment + within, within < segment
    state = tl.arange(0, N)
    tile = state[:, None] * d + channel[None, :]  # [N, BD] of an (n, d) table
    in_tile = (state < n)[:, None] & in_d[None, :]
    row_B, row_C = i_b * groups_B + i_s * groups_B // segments, i_b * groups_C + i_s * groups_C // segments
    u_row, delta_row = u_ptr + i_b * u_b + channel * u_d, delta_ptr + i_b * delta_b + channel * delta_d
    y_row = y_ptr + (i_b * d + channel) * l

    A2 = tl.load(A_ptr + tile, mask=in_tile, other=0.0) * LOG2E
    D = tl.load(D_ptr + channel, mask=in_d, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=in_d, other=0.0)
    h = tl.load(initial_ptr + i_b * n * d + tile, mask=in_tile, other=0.0)
    chunks = (l + CHUNK - 1) // CHUNK
    for i_c in range(0, chunks):
        if SAVE:
            tl.store(checkpoint_ptr + (i_b * chunks + i_c) * n * d + tile, h, mask=in_tile)
        for first in range(i_c * CHUNK, tl.minimum(i_c * CHUNK + CHUNK, l), STEPS):
            us, deltas, Bs, Cs = (), (), (), ()
            for s in tl.static_range(STEPS):  # every load of the group before its first store: loads may not move over stores
                t = tl.full([], first + s, tl.int64)  # t times a stride may pass 2^31
                live = in_d & (t < l)
                delta, _ = _load_delta(delta_row + t * delta_l, live, bias, SOFTPLUS)
                us += (load(u_row + t * u_l, live),)
                deltas += (delta,)
                Bs += (_load_states(B_ptr, row_B, t, l, n, state, tile, in_tile, VARY_B),)
                Cs += (_load_states(C_ptr, row_C, t, l, n, state, tile, in_tile, VARY_C),)
            for s in tl.static_range(STEPS):
                h = tl.exp2(deltas[s][None, :] * A2) * h + (deltas[s] * us[s])[None, :] * Bs[s]
                y = tl.sum(h * Cs[s], 0) + D * us[s]
                tl.store(y_row + first + s, y.to(y_ptr.dtype.element_ty), mask=in_d & (first + s < l))
    tl.store(last_ptr + i_b * n * d + tile, h, mask=in_tile)


@triton.jit
def _backward(
    dy_ptr, dlast_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, checkpoint_ptr, scratch_ptr,
    du_ptr, ddelta_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dbias_ptr, dinitial_ptr,
    d, n, l, segment, segments, blocks, groups_B, groups_C, dy_b, dy_d, dy_l, u_b, u_d, u_l, delta_b, delta_d, delta_l,
    SOFTPLUS: tl.constexpr, VARY_B: tl.constexpr, VARY_C: tl.constexpr,
    N: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip  # tensors; results; sizes and strides; switches; tile sizes
    i = tl.program_id(0).to(tl.int64)
    i_b, i_s = i // (segments * blocks), i // blocks % segments
    lane = tl.arange(0, BD)
    within = i % blocks * BD + lane
    channel, in_d = i_s * segment + within, within < segment
    state = tl.arange(0, N)
    tile = state[:, None] * d + channel[None, :]
    in_tile = (state < n)[:, None] & in_d[None, :]
    row_B, row_C = i_b * groups_B + i_s * groups_B // segments, i_b * groups_C + i_s * groups_C // segments
    u_row, delta_row = u_ptr + i_b * u_b + channel * u_d, delta_ptr + i_b * delta_b + channel * delta_d
    dy_row = dy_ptr + i_b * dy_b + channel * dy_d
    out_row = (i_b * d + channel) * l
    strip = scratch_ptr + i * (CHUNK // STEPS * N * BD) + state[:, None] * BD + lane[None, :]  # [CHUNK / STEPS, N, BD]

    A2 = tl.load(A_ptr + tile, mask=in_tile, other=0.0) * LOG2E
    D = tl.load(D_ptr + channel, mask=in_d, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=in_d, other=0.0)
    g = tl.load(dlast_ptr + i_b * n * d + tile, mask=in_tile, other=0.0)
    dA, dB, dC = tl.zeros([N, BD], tl.float32), tl.zeros([N, BD], tl.float32), tl.zeros([N, BD], tl.float32)
    dD, dbias = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    chunks = (l + CHUNK - 1) // CHUNK
    for back in range(0, chunks):
        i_c = chunks - 1 - back
        start = i_c * CHUNK
        groups = (tl.minimum(CHUNK, l - start) + STEPS - 1) // STEPS
        h = tl.load(checkpoint_ptr + (i_b * chunks + i_c) * n * d + tile, mask=in_tile, other=0.0)
        for group in range(0, groups):
            tl.store(strip + group * (N * BD), h)
            for s in tl.static_range(STEPS):
                t = tl.full([], start + group * STEPS + s, tl.int64)
                live = in_d & (t < l)
                delta, _ = _load_delta(delta_row + t * delta_l, live, bias, SOFTPLUS)
                B = _load_states(B_ptr, row_B, t, l, n, state, tile, in_tile, VARY_B)
                drive = delta * load(u_row + t * u_l, live)
                h = tl.exp2(delta[None, :] * A2) * h + drive[None, :] * B
        tl.debug_barrier()  # a lane may read the strip in another layout than it wrote it

        for back_group in range(0, groups):
            group = groups - 1 - back_group
            first = start + group * STEPS
            us, deltas, slopes, Bs, Cs, dys = (), (), (), (), (), ()
            for s in tl.static_range(STEPS):
                t = tl.full([], first + s, tl.int64)
                live = in_d & (t < l)
                delta, slope = _load_delta(delta_row + t * delta_l, live, bias, SOFTPLUS)
                us += (load(u_row + t * u_l, live),)
                dys += (load(dy_row + t * dy_l, live),)
                deltas += (delta,)
                slopes += (slope,)
                Bs += (_load_states(B_ptr, row_B, t, l, n, state, tile, in_tile, VARY_B),)
                Cs += (_load_states(C_ptr, row_C, t, l, n, state, tile, in_tile, VARY_C),)
            h = tl.load(strip + group * (N * BD))
            states, decays = (h,), ()
            for s in tl.static_range(STEPS):
                decays += (tl.exp2(deltas[s][None, :] * A2),)
                h = decays[s] * h + (deltas[s] * us[s])[None, :] * Bs[s]
                states += (h,)
            for s in tl.static_range(STEPS - 1, -1, -1):
                t = tl.full([], first + s, tl.int64)
                live = in_d & (t < l)
                g, du, ddelta, dA_t, dB_t, dC_t = step_back(g, states[s + 1], states[s], decays[s], us[s], deltas[s], Bs[s], Cs[s], dys[s], A2)
                ddelta = ddelta * slopes[s]
                dA += dA_t
                dbias += ddelta
                dD += dys[s] * us[s]
                tl.store(du_ptr + out_row + t, (du + D * dys[s]).to(du_ptr.dtype.element_ty), mask=live)
                tl.store(ddelta_ptr + out_row + t, ddelta.to(ddelta_ptr.dtype.element_ty), mask=live)
                if VARY_B:
                    tl.store(dB_ptr + (i * l + t) * n + state, tl.sum(dB_t, 1), mask=(state < n) & (t < l))
                else:
                    dB += dB_t
                if VARY_C:
                    tl.store(dC_ptr + (i * l + t) * n + state, tl.sum(dC_t, 1), mask=(state < n) & (t < l))
                else:
                    dC += dC_t
        tl.debug_barrier()  # the next chunk writes the strip again

    tl.store(dA_ptr + i_b * n * d + tile, dA, mask=in_tile)
    if not VARY_B:
        tl.store(dB_ptr + i_b * n * d + tile, dB, mask=in_tile)
    if not VARY_C:
        tl.store(dC_ptr + i_b * n * d + tile, dC, mask=in_tile)
    tl.store(dD_ptr + i_b * d + channel, dD, mask=in_d)
    tl.store(dbias_ptr + i_b * d + channel, dbias, mask=in_d)
    tl.store(dinitial_ptr + i_b * n * d + tile, g, mask=in_tile)


def _rows(t: Tensor) -> Tensor:
    """A, B or C as the kernels read them, float32, channels or states last: (n, d) or (b, g, l, n)."""
    return t.transpose(-2, -1).float().contiguous()


def _swapped(state: Tensor) -> Tensor:
    """A new tensor, (b, d, n) to (b, n, d) or back: in the kernels the channels lie side by side."""
    return state.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _or_zeros(t: Tensor | None, A: Tensor) -> Tensor:
    return A.new_zeros(A.shape[0]) if t is None else t.contiguous()


def _sizes(u: Tensor, A: Tensor, B: Tensor, C: Tensor, BD: int) -> tuple[int, ...]:
    """(d, n, l, channels a segment, segments, blocks a segment, groups of B, of C): no block reaches over a border of groups."""
    groups_B, groups_C = (1 if t.dim() == 2 else t.shape[1] for t in (B, C))
    segments = math.lcm(groups_B, groups_C)
    segment = u.shape[1] // segments
    return (u.shape[1], A.shape[1], u.shape[2], segment, segments, triton.cdiv(segment, BD), groups_B, groups_C)


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
    initial_state: Tensor | None, out_dtype: torch.dtype, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip  # in the operator's order
    """y (b, d, l) in out_dtype, the last state (b, d, n), the checkpoints (empty unless save). Arguments as in reference.py."""
    y = torch.empty(u.shape, dtype=out_dtype, device=u.device)
    state = A.new_zeros(u.shape[0], A.shape[1], u.shape[1]) if initial_state is None else _swapped(initial_state)
    checkpoints = A.new_empty(checkpoint_shape(u, A) if save else 0)
    if u.numel():
        config = launch_config(A.shape[1])
        sizes = _sizes(u, A, B, C, config["BD"])
        _forward[(u.shape[0] * sizes[4] * sizes[5],)](
            u, delta, _rows(A), _rows(B), _rows(C), _or_zeros(D, A), _or_zeros(delta_bias, A), state, y, state, checkpoints,
            *sizes, *u.stride(), *delta.stride(),
            SOFTPLUS=delta_softplus, VARY_B=B.dim() == 4, VARY_C=C.dim() == 4, SAVE=save, **config,
        )  # fmt: skip  # line by line the kernel's parameters
    return y, _swapped(state), checkpoints


def backward(
    dy: Tensor, dlast: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    delta_softplus: bool, initial_state: Tensor | None, checkpoints: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip  # in the operator's order
    """Gradients of u, delta, A, B, C, D, delta_bias, initial_state, contiguous, each None where its argument is."""
    batch, d, length = u.shape
    n = A.shape[1]
    config = launch_config(n)
    sizes = _sizes(u, A, B, C, config["BD"])
    _, _, _, _, segments, blocks, groups_B, groups_C = sizes
    part = A.new_empty if u.numel() else A.new_zeros  # without a kernel the sums are zero
    du, ddelta = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (u, delta))
    dA, dD, dbias = part(batch, n, d), part(batch, d), part(batch, d)
    dB, dC = (part(batch, n, d) if t.dim() == 2 else part(batch, segments, blocks, length, n) for t in (B, C))
    dstate = _swapped(dlast)
    if u.numel():
        programs = batch * segments * blocks
        scratch = A.new_empty(programs, CHUNK // config["STEPS"], config["N"], config["BD"])
        _backward[(programs,)](
            dy, dstate, u, delta, _rows(A), _rows(B), _rows(C), _or_zeros(D, A), _or_zeros(delta_bias, A), checkpoints, scratch,
            du, ddelta, dA, dB, dC, dD, dbias, dstate,
            *sizes, *dy.stride(), *u.stride(), *delta.stride(),
            SOFTPLUS=delta_softplus, VARY_B=B.dim() == 4, VARY_C=C.dim() == 4, **config,
        )  # fmt: skip  # line by line the kernel's parameters
    return (
        du, ddelta, dA.sum(0).t().contiguous(), _sum_parts(dB, B, groups_B), _sum_parts(dC, C, groups_C),
        None if D is None else dD.sum(0), None if delta_bias is None else dbias.sum(0), None if initial_state is None else _swapped(dstate),
    )  # fmt: skip  # in the operator's order


def _sum_parts(parts: Tensor, like: Tensor, groups: int) -> Tensor:
    """The gradient of B or C from its parts: (b, n, d), or (b, segments, blocks, l, n) where it varies."""
    if like.dim() == 2:
        return parts.sum(0).t().to(like.dtype).contiguous()
    batch, segments, blocks, length, n = parts.shape
    return parts.reshape(batch, groups, segments // groups * blocks, length, n).sum(2).transpose(2, 3).to(like.dtype).contiguous()
