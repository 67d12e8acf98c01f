"""The depthwise convolution and SiLU on a GPU: nine shifted reads of one map, eight of them from
the cache.

    v_p = bias + sum over taps t of weight_t x_{p + t}    s = sigmoid(v)    y = v s
    dv = dy s (1 + v (1 - s))    dx_p = sum over t of weight_t dv_{p - t}
    dweight_t = sum over p of dv_p x_{p + t}    dbias = sum of dv

Nothing is kept for backward. It computes v again, writes dv in float32 and reads it back through
the turned stencil: a single pass would have to make dv three times over, and is bound by
instructions where this is bound by memory. A program of ``_slope`` takes a strip of positions and
leaves one partial sum for each tap and the bias, a row of ``part``; these are added in their order:
no atomics, every run gives the same bits. Bytes an element, float32: 8 forward, 20 backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton import partial_sums
from medmambase_kernels._triton.layout import as_rows
from medmambase_kernels._triton.numerics import load, sigmoid
from medmambase_kernels._triton.partial_sums import split_total

# positions and channels a step of a program: 8 elements a thread, or 4 where it also holds ten sums
# of each; there the assembler of Triton 3.9, left to itself, stops at 64 registers for compute
# capabilities 8.6 and 8.9, and spills
_STENCIL = {"BL": 32, "BD": 32, "num_warps": 4, "enable_fp_fusion": True}
_SLOPE = {"BL": 16, "BD": 32, "num_warps": 4, "maxnreg": 80, "enable_fp_fusion": True}
_PROGRAMS = 1024  # of ``_slope``, at most: some for every multiprocessor, and few partial sums


def kept_shape(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    """Nothing is kept."""
    return (0,)


@triton.jit
def _places(i_tile, tiles, batch, h, w, BL: tl.constexpr):
    """Positions, rows and columns of a tile, ``tiles`` to an image; row -2, which has no
    neighbours, past an image's end and past the last image."""
    i_b = i_tile // tiles
    place = i_tile % tiles * BL + tl.arange(0, BL)
    row = place // w
    return i_b.to(tl.int64) * (h * w) + place, tl.where((row < h) & (i_b < batch), row, -2), place - row * w


@triton.jit
def _neighbour(at, row, column, in_d, h, w, stride, TAP: tl.constexpr):
    """The values that tap TAP of 0 to 8 reads around the places ``at``: [BL, BD], 0 beyond the
    edge."""
    down: tl.constexpr = TAP // 3 - 1
    right: tl.constexpr = TAP % 3 - 1
    inside = (row + down >= 0) & (row + down < h) & (column + right >= 0) & (column + right < w)
    return load(at + (tl.full([], w, tl.int64) * down + right) * stride, inside[:, None] & in_d[None, :])


@triton.jit
def _tile(
    x, taps, bias, y, i, batch, h, w, d, tiles, blocks, x_l, taps_d, taps_t,
    TURNED: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip  # tensors; which tile; sizes and strides; a switch and tile sizes
    """y = silu(bias + taps * x), taps (d, 9); TURNED: y = taps turned by half a turn * x, which
    takes dv to dx."""
    position, row, column = _places(i // blocks, tiles, batch, h, w, BL)
    channel = i % blocks * BD + tl.arange(0, BD)
    in_d = channel < d
    at = x + position[:, None] * x_l + channel[None, :]
    v = tl.zeros([BL, BD], tl.float32)
    for tap in tl.static_range(9):
        weight = load(taps + channel * taps_d + (8 - tap if TURNED else tap) * taps_t, in_d)
        v += weight[None, :] * _neighbour(at, row, column, in_d, h, w, x_l, tap)
    if not TURNED:
        v += load(bias + channel, in_d)[None, :]
        v *= sigmoid(v)
    out = y + position[:, None] * d + channel[None, :]
    tl.store(out, v.to(y.dtype.element_ty), mask=(row >= 0)[:, None] & in_d[None, :])


@triton.jit
def _stencil(
    x_ptr, taps_ptr, bias_ptr, y_ptr, batch, h, w, d, tiles, blocks, x_l, taps_d, taps_t,
    BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; tile sizes
    """y = silu(bias + taps * x), taps (d, 9)."""
    i = tl.program_id(0)
    _tile(x_ptr, taps_ptr, bias_ptr, y_ptr, i, batch, h, w, d, tiles, blocks, x_l, taps_d, taps_t, False, BL, BD)


@triton.jit
def _stencil_back(
    dv_ptr, taps_ptr, dx_ptr, part_ptr, dweight_ptr, dbias_ptr, batch, h, w, d, tiles, blocks, of_sums, parts,
    taps_d, taps_t, BL: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors; results; sizes and strides; tile sizes
    """dx from dv. The first of_sums programs add the parts of dweight and dbias instead."""
    i = tl.program_id(0)
    if i < of_sums:
        split_total(part_ptr, dweight_ptr, dbias_ptr, i, parts, 10 * d, 9 * d, BP, BC)
    else:
        i -= of_sums
        _tile(dv_ptr, taps_ptr, taps_ptr, dx_ptr, i, batch, h, w, d, tiles, blocks, d, taps_d, taps_t, True, BL, BD)


@triton.jit
def _slope(
    dy_ptr,
    x_ptr,
    taps_ptr,
    bias_ptr,
    dv_ptr,
    part_ptr,
    batch,
    h,
    w,
    d,
    tiles,
    blocks,
    steps,
    dy_l,
    x_l,
    taps_d,
    taps_t,
    BL: tl.constexpr,
    BD: tl.constexpr,
):
    """dv of a strip of tiles, and its sums for the nine taps and the bias: part (strips, 10 d), as
    weight and bias lie in memory."""
    i = tl.program_id(0)
    i_strip = i // blocks
    channel = i % blocks * BD + tl.arange(0, BD)
    in_d = channel < d
    bias = load(bias_ptr + channel, in_d)[None, :]
    weights, sums = (), (tl.zeros([BL, BD], tl.float32),)
    for tap in tl.static_range(9):
        weights += (load(taps_ptr + channel * taps_d + tap * taps_t, in_d)[None, :],)
        sums += (tl.zeros([BL, BD], tl.float32),)
    for step in range(0, steps):
        position, row, column = _places(i_strip * steps + step, tiles, batch, h, w, BL)
        live = (row >= 0)[:, None] & in_d[None, :]
        at = x_ptr + position[:, None] * x_l + channel[None, :]
        v, xs = bias + tl.zeros([BL, BD], tl.float32), ()
        for tap in tl.static_range(9):
            xs += (_neighbour(at, row, column, in_d, h, w, x_l, tap),)
            v += weights[tap] * xs[tap]
        s = sigmoid(v)
        dv = load(dy_ptr + position[:, None] * dy_l + channel[None, :], live) * (s + v * s * (1.0 - s))
        tl.store(dv_ptr + position[:, None] * d + channel[None, :], dv, mask=live)
        grown = ()
        for tap in tl.static_range(9):
            grown += (sums[tap] + dv * xs[tap],)
        sums = grown + (sums[9] + dv,)  # noqa: RUF005  # Triton knows no unpacking
    part = part_ptr + i_strip.to(tl.int64) * 10 * d
    for tap in tl.static_range(9):
        tl.store(part + channel * 9 + tap, tl.sum(sums[tap], 0), mask=in_d)
    tl.store(part + 9 * d + channel, tl.sum(sums[9], 0), mask=in_d)


def _tiles(x: Tensor) -> tuple[int, int]:
    """Tiles of an image, and blocks of channels, that ``_tile`` makes of x (b, h, w, d)."""
    return triton.cdiv(x.shape[1] * x.shape[2], _STENCIL["BL"]), triton.cdiv(x.shape[3], _STENCIL["BD"])


def _strips(tiles: int, blocks: int) -> tuple[int, int]:
    """How many strips, and how many tiles in each, for so many tiles and blocks of channels."""
    steps = triton.cdiv(tiles, max(1, _PROGRAMS // blocks))
    return triton.cdiv(tiles, steps), steps


def forward(x: Tensor, weight: Tensor, bias: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """y (b, h, w, d) in x's dtype, and an empty tensor. Arguments as in
    reference.depthwise_silu."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        (tiles, blocks), xs, taps = _tiles(x), as_rows(x), weight.flatten(1)
        _stencil[(len(x) * tiles * blocks,)](
            xs, taps, bias.contiguous(), y, *x.shape, tiles, blocks, xs.stride(0), *taps.stride(), **_STENCIL
        )
    return y, weight.new_empty(0)


def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (in its dtype), weight and bias, contiguous."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return dx, torch.zeros_like(weight), torch.zeros_like(bias)
    (b, h, w, d), dys, xs, taps = x.shape, as_rows(dy), as_rows(x), weight.flatten(1)
    tiles, blocks = triton.cdiv(h * w, _SLOPE["BL"]), triton.cdiv(d, _SLOPE["BD"])
    strips, steps = _strips(b * tiles, blocks)
    dv, part = weight.new_empty(x.shape), weight.new_empty(strips, 10 * d)
    _slope[(strips * blocks,)](
        dys,
        xs,
        taps,
        bias.contiguous(),
        dv,
        part,
        b,
        h,
        w,
        d,
        tiles,
        blocks,
        steps,
        dys.stride(0),
        xs.stride(0),
        *taps.stride(),
        **_SLOPE,
    )
    dweight, dbias = weight.new_empty(9 * d), weight.new_empty(d)
    tiles, blocks = _tiles(x)
    of_sums = triton.cdiv(10 * d, partial_sums.TILE["BC"])
    _stencil_back[(of_sums + b * tiles * blocks,)](
        dv, taps, dx, part, dweight, dbias, b, h, w, d, tiles, blocks, of_sums, strips, *taps.stride(),
        **_STENCIL, **partial_sums.TILE,
    )  # fmt: skip  # line by line the kernel's parameters
    return dx, dweight.view(weight.shape), dbias
