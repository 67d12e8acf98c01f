"""SS2D's core on a GPU: four scans over one image, with their delta projections, in one kernel.

    delta_p = softplus(dt_weight_k rank_p + dt_bias_k)      p: the positions in direction k's order
    h_p = exp(delta_p A_k) h_before + delta_p x_p B_p;  y_p = sum over k of sum_n C_p h_p + D_k x_p

A direction is a signed stride over the one image: no turned copy of x and no delta reaches memory. One warp walks one direction of one
block of channels, as in selective_scan_triton.py, which also tells how backward works; kept for it: 16 n / CHUNK bytes an element of x.
The directions' results are stored apart, in float32, and added in a fixed order. Bytes an element of x, float32, over all directions:
52 forward, 84 backward (x and dy come from the cache after the first direction), and x_dbl once a channel block.

Last stop before: selective_scan_2d.py, which checks the arguments. Next stop: the caller again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels import selective_scan_triton as scan
from medmambase_kernels.selective_scan_triton import LOG2E, load, softplus, step_back


def checkpoint_shape(x: Tensor, A: Tensor) -> tuple[int, ...]:
    """Shape of the states kept for backward, (b, k, chunks, n, d), for x (b, h, w, d) and A (k, d, n)."""
    b, h, w, d = x.shape
    return (b, A.shape[0], (h * w + scan.CHUNK - 1) // scan.CHUNK, A.shape[2], d)


@triton.jit
def _route(i_k, height, width):
    """Direction i_k over a row-major image: its first position, the steps in a line, the strides of a step and of a line."""
    down = i_k % 2 == 1
    sign = tl.where(i_k >= 2, -1, 1)
    start = tl.where(i_k >= 2, height * width - 1, 0).to(tl.int64)
    return start, tl.where(down, height, width), tl.where(down, width, 1) * sign, tl.where(down, 1, width) * sign


@triton.jit
def _next(p, place, inner, step, line):
    """The position after p, which is the place-th of its line; and its place."""
    at_end = place + 1 == inner
    return p + tl.where(at_end, line - step * place, step), tl.where(at_end, 0, place + 1)


@triton.jit
def _load_delta(rank, W, bias, live):
    """delta [BD] and softplus's slope from a position's rank values [R]; 0 and 0 where not live: such a step changes nothing."""
    delta, slope = softplus(tl.sum(rank[:, None] * W, 0) + bias)
    return tl.where(live, delta, 0.0), tl.where(live, slope, 0.0)


# Why A's alignment is hidden: see selective_scan_triton.py.
@triton.jit(do_not_specialize_on_alignment=["A_ptr"])
def _forward(
    x_ptr, x_dbl_ptr, W_ptr, bias_ptr, A_ptr, D_ptr, y_ptr, checkpoint_ptr,
    batch, height, width, d, n, r, blocks, x_b, x_l, x_d,
    SAVE: tl.constexpr, R: tl.constexpr, N: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; a switch and tile sizes
    i = tl.program_id(0).to(tl.int64)
    i_b, i_k = i // (4 * blocks), i // blocks % 4
    channel = i % blocks * BD + tl.arange(0, BD)
    state, low = tl.arange(0, N), tl.arange(0, R)
    in_d, in_n, in_r = channel < d, state < n, low < r
    l = height * width
    columns = r + 2 * n
    tile = state[:, None] * d + channel[None, :]  # [N, BD] of an (n, d) table
    in_tile = in_n[:, None] & in_d[None, :]
    x_row = x_ptr + i_b * x_b + channel * x_d
    dbl_row = x_dbl_ptr + (i_b * l * 4 + i_k) * columns
    y_row = y_ptr + (i_k * batch + i_b) * l * d + channel

    W = tl.load(W_ptr + (i_k * r + low[:, None]) * d + channel[None, :], mask=in_r[:, None] & in_d[None, :], other=0.0)
    bias = tl.load(bias_ptr + i_k * d + channel, mask=in_d, other=0.0)
    A2 = tl.load(A_ptr + i_k * n * d + tile, mask=in_tile, other=0.0) * LOG2E
    D = tl.load(D_ptr + i_k * d + channel, mask=in_d, other=0.0)
    h = tl.zeros([N, BD], tl.float32)
    start, inner, step, line = _route(i_k, height, width)
    chunks = (l + CHUNK - 1) // CHUNK
    for i_c in range(0, chunks):
        if SAVE:
            tl.store(checkpoint_ptr + ((i_b * 4 + i_k) * chunks + i_c) * n * d + tile, h, mask=in_tile)
        for first in range(i_c * CHUNK, tl.minimum(i_c * CHUNK + CHUNK, l), STEPS):
            place = first % inner
            p = start + first // inner * line + place * step
            ps, xs, deltas, Bs, Cs = (), (), (), (), ()
            for s in tl.static_range(STEPS):  # every load of the group before its first store: loads may not move over stores
                inside = first + s < l
                row = dbl_row + p * (4 * columns)
                delta, _ = _load_delta(load(row + low, in_r & inside), W, bias, in_d & inside)
                ps += (p,)
                xs += (load(x_row + p * x_l, in_d & inside),)
                deltas += (delta,)
                Bs += (load(row + r + state, in_n & inside)[:, None],)
                Cs += (load(row + r + n + state, in_n & inside)[:, None],)
                p, place = _next(p, place, inner, step, line)
            for s in tl.static_range(STEPS):
                h = tl.exp2(deltas[s][None, :] * A2) * h + (deltas[s] * xs[s])[None, :] * Bs[s]
                y = tl.sum(h * Cs[s], 0) + D * xs[s]
                tl.store(y_row + ps[s] * d, y, mask=in_d & (first + s < l))


@triton.jit
def _backward(
    dy_ptr, x_ptr, x_dbl_ptr, W_ptr, bias_ptr, A_ptr, D_ptr, checkpoint_ptr, scratch_ptr,
    dx_ptr, dx_dbl_ptr, dW_ptr, dbias_ptr, dA_ptr, dD_ptr,
    batch, height, width, d, n, r, blocks, dy_b, dy_l, dy_d, x_b, x_l, x_d,
    R: tl.constexpr, N: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip  # tensors; results; sizes and strides; tile sizes
    i = tl.program_id(0).to(tl.int64)
    i_b, i_k = i // (4 * blocks), i // blocks % 4
    lane = tl.arange(0, BD)
    channel = i % blocks * BD + lane
    state, low = tl.arange(0, N), tl.arange(0, R)
    in_d, in_n, in_r = channel < d, state < n, low < r
    l = height * width
    columns = r + 2 * n
    tile = state[:, None] * d + channel[None, :]
    in_tile = in_n[:, None] & in_d[None, :]
    W_tile = low[:, None] * d + channel[None, :]
    in_W = in_r[:, None] & in_d[None, :]
    x_row = x_ptr + i_b * x_b + channel * x_d
    dy_row = dy_ptr + i_b * dy_b + channel * dy_d
    dbl_row = x_dbl_ptr + (i_b * l * 4 + i_k) * columns
    dx_row = dx_ptr + (i_k * batch + i_b) * l * d + channel
    ddbl_row = dx_dbl_ptr + ((i % blocks * batch + i_b) * l * 4 + i_k) * columns
    strip = scratch_ptr + i * (CHUNK // STEPS * N * BD) + state[:, None] * BD + lane[None, :]  # [CHUNK / STEPS, N, BD]

    W = tl.load(W_ptr + i_k * r * d + W_tile, mask=in_W, other=0.0)
    bias = tl.load(bias_ptr + i_k * d + channel, mask=in_d, other=0.0)
    A2 = tl.load(A_ptr + i_k * n * d + tile, mask=in_tile, other=0.0) * LOG2E
    D = tl.load(D_ptr + i_k * d + channel, mask=in_d, other=0.0)
    g, dA, dW = tl.zeros([N, BD], tl.float32), tl.zeros([N, BD], tl.float32), tl.zeros([R, BD], tl.float32)
    dD, dbias = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    start, inner, step, line = _route(i_k, height, width)
    chunks = (l + CHUNK - 1) // CHUNK
    for back in range(0, chunks):
        i_c = chunks - 1 - back
        groups = (tl.minimum(CHUNK, l - i_c * CHUNK) + STEPS - 1) // STEPS
        h = tl.load(checkpoint_ptr + ((i_b * 4 + i_k) * chunks + i_c) * n * d + tile, mask=in_tile, other=0.0)
        for group in range(0, groups):
            tl.store(strip + group * (N * BD), h)
            first = i_c * CHUNK + group * STEPS
            place = first % inner
            p = start + first // inner * line + place * step
            for s in tl.static_range(STEPS):
                inside = first + s < l
                row = dbl_row + p * (4 * columns)
                delta, _ = _load_delta(load(row + low, in_r & inside), W, bias, in_d & inside)
                drive = delta * load(x_row + p * x_l, in_d & inside)
                h = tl.exp2(delta[None, :] * A2) * h + drive[None, :] * load(row + r + state, in_n & inside)[:, None]
                p, place = _next(p, place, inner, step, line)
        tl.debug_barrier()  # a lane may read the strip in another layout than it wrote it

        for back_group in range(0, groups):
            group = groups - 1 - back_group
            first = i_c * CHUNK + group * STEPS
            place = first % inner
            p = start + first // inner * line + place * step
            ps, xs, dys, ranks, deltas, slopes, Bs, Cs = (), (), (), (), (), (), (), ()
            for s in tl.static_range(STEPS):
                inside = first + s < l
                row = dbl_row + p * (4 * columns)
                rank = load(row + low, in_r & inside)
                delta, slope = _load_delta(rank, W, bias, in_d & inside)
                ps += (p,)
                xs += (load(x_row + p * x_l, in_d & inside),)
                dys += (load(dy_row + p * dy_l, in_d & inside),)
                ranks += (rank,)
                deltas += (delta,)
                slopes += (slope,)
                Bs += (load(row + r + state, in_n & inside)[:, None],)
                Cs += (load(row + r + n + state, in_n & inside)[:, None],)
                p, place = _next(p, place, inner, step, line)
            h = tl.load(strip + group * (N * BD))
            states, decays = (h,), ()
            for s in tl.static_range(STEPS):
                decays += (tl.exp2(deltas[s][None, :] * A2),)
                h = decays[s] * h + (deltas[s] * xs[s])[None, :] * Bs[s]
                states += (h,)
            for s in tl.static_range(STEPS - 1, -1, -1):
                inside = first + s < l
                g, dx, ddelta, dA_p, dB_p, dC_p = step_back(g, states[s + 1], states[s], decays[s], xs[s], deltas[s], Bs[s], Cs[s], dys[s], A2)
                ddelta = ddelta * slopes[s]
                dA += dA_p
                dW += ranks[s][:, None] * ddelta[None, :]
                dbias += ddelta
                dD += dys[s] * xs[s]
                row = ddbl_row + ps[s] * (4 * columns)
                tl.store(dx_row + ps[s] * d, dx + D * dys[s], mask=in_d & inside)
                tl.store(row + low, tl.sum(W * ddelta[None, :], 1), mask=in_r & inside)
                tl.store(row + r + state, tl.sum(dB_p, 1), mask=in_n & inside)
                tl.store(row + r + n + state, tl.sum(dC_p, 1), mask=in_n & inside)
        tl.debug_barrier()  # the next chunk writes the strip again

    tl.store(dA_ptr + (i_b * 4 + i_k) * n * d + tile, dA, mask=in_tile)
    tl.store(dW_ptr + (i_b * 4 + i_k) * r * d + W_tile, dW, mask=in_W)
    tl.store(dbias_ptr + (i_b * 4 + i_k) * d + channel, dbias, mask=in_d)
    tl.store(dD_ptr + (i_b * 4 + i_k) * d + channel, dD, mask=in_d)


def _positions(t: Tensor) -> Tensor:
    """(b, h, w, d) as (b, l, d): a view wherever rows follow each other at one stride, a copy elsewhere."""
    return t.flatten(1, 2)


def _launch(x: Tensor, dt_weight: Tensor, A: Tensor) -> tuple[int, tuple[int, ...], dict[str, int]]:
    """Programs, the kernels' sizes (batch, height, width, d, n, r, blocks), and their tile sizes."""
    config = scan.launch_config(A.shape[2]) | {"R": triton.next_power_of_2(dt_weight.shape[2])}
    blocks = triton.cdiv(x.shape[3], config["BD"])
    return x.shape[0] * 4 * blocks, (*x.shape, A.shape[2], dt_weight.shape[2], blocks), config


def _channels_last(t: Tensor) -> Tensor:
    return t.transpose(1, 2).contiguous()


def forward(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, out_dtype: torch.dtype, save: bool) -> tuple[Tensor, Tensor]:
    """y (b, h, w, d) in out_dtype, and the checkpoints (empty unless save). Arguments as in reference.selective_scan_2d."""
    checkpoints = A.new_empty(checkpoint_shape(x, A) if save else 0)
    y = A.new_empty(4, *x.shape)
    if x.numel():
        programs, sizes, config = _launch(x, dt_weight, A)
        positions = _positions(x)
        _forward[(programs,)](
            positions, x_dbl.contiguous(), _channels_last(dt_weight), dt_bias.contiguous(), _channels_last(A), D.contiguous(), y, checkpoints,
            *sizes, *positions.stride(), SAVE=save, **config,
        )  # fmt: skip  # line by line the kernel's parameters
    return y.sum(0).to(out_dtype), checkpoints


def backward(
    dy: Tensor, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, checkpoints: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, x_dbl, dt_weight, dt_bias, A and D, contiguous, each in its tensor's dtype."""
    programs, sizes, config = _launch(x, dt_weight, A)
    part = A.new_empty if x.numel() else A.new_zeros  # without a kernel the sums are zero
    dx, dx_dbl = part(4, *x.shape), part(sizes[6], *x_dbl.shape)
    dW, dbias, dA, dD = (part(x.shape[0], *_channels_last(t).shape) if t.dim() == 3 else part(x.shape[0], *t.shape) for t in (dt_weight, dt_bias, A, D))
    if x.numel():
        scratch = A.new_empty(programs, scan.CHUNK // config["STEPS"], config["N"], config["BD"])
        at, dy_at = _positions(x), _positions(dy)
        _backward[(programs,)](
            dy_at, at, x_dbl.contiguous(), _channels_last(dt_weight), dt_bias.contiguous(), _channels_last(A), D.contiguous(), checkpoints, scratch,
            dx, dx_dbl, dW, dbias, dA, dD,
            *sizes, *dy_at.stride(), *at.stride(), **config,
        )  # fmt: skip  # line by line the kernel's parameters
    return dx.sum(0).to(x.dtype), dx_dbl.sum(0).to(x_dbl.dtype), _channels_last(dW.sum(0)), dbias.sum(0), _channels_last(dA.sum(0)), dD.sum(0)
