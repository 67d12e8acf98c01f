"""The causal convolution and SiLU on a GPU: shifted reads of one sequence, all but one from the
cache.

    v_l = bias + sum over taps i of weight_i x_{l - w + 1 + i}    s = sigmoid(v)    y = v s
    dv = dy s (1 + v (1 - s))    dx_l = sum over i of weight_i dv_{l + w - 1 - i}
    dweight_i = sum over l of dv_l x_{l - w + 1 + i}    dbias = sum of dv

Sequences are read where they lie, whatever their strides. Nothing is kept for backward: it computes
v again, writes dv in float32 and reads it back with the taps turned round. A program of ``_slope``
takes a strip of a sequence and leaves one partial sum for each tap and the bias; these are added in
their order: no atomics, every run gives the same bits. Bytes an element, float32: 8 forward, 20
backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton.numerics import load, sigmoid

_TILE = {"BD": 16, "BL": 32, "num_warps": 4, "enable_fp_fusion": True}  # channels and steps: 4 elements a thread
_PROGRAMS = 1024  # of ``_slope``, where images and channels are not more: some for every multiprocessor


def kept_shape(x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor | None) -> tuple[int, ...]:
    """Nothing is kept."""
    return (0,)


@triton.jit
def _seen(x, initial, i_b, channel, step, in_d, channels, length, x_b, x_d, x_l, BEFORE: tl.constexpr):
    """x at the steps of a tile: [BD, BL]. Before the first stand the initial states, if any; else,
    and past the last, 0."""
    inside = (step >= 0) & (step < length)
    place = i_b * x_b + channel[:, None] * x_d + step.to(tl.int64)[None, :] * x_l
    value = load(x + place, in_d[:, None] & inside[None, :])
    if initial is not None:
        earlier = (step < 0) & (step >= -BEFORE)
        place = (i_b * channels + channel[:, None]) * BEFORE + (step + BEFORE)[None, :]
        value += load(initial + place, in_d[:, None] & earlier[None, :])
    return value


@triton.jit
def _convolve(
    x_ptr,
    initial_ptr,
    taps_ptr,
    bias_ptr,
    y_ptr,
    channels,
    length,
    places,
    x_b,
    x_d,
    x_l,
    tiles,
    blocks,
    TAPS: tl.constexpr,
    SILU: tl.constexpr,
    TURNED: tl.constexpr,
    BD: tl.constexpr,
    BL: tl.constexpr,
):
    """y = act(bias + taps * x), taps (d, TAPS). TURNED: y = taps turned round * x, which takes dv
    to dx; the places of y then begin so far before x as it has more of them."""
    i = tl.program_id(0)
    i_b = (i // (tiles * blocks)).to(tl.int64)
    channel = (i // tiles % blocks * BD + tl.arange(0, BD)).to(tl.int64)
    place = i % tiles * BL + tl.arange(0, BL)
    in_d = channel < channels
    step = place + (length - places)
    v = tl.zeros([BD, BL], tl.float32)
    for tap in tl.static_range(TAPS):
        weight = load(taps_ptr + channel * TAPS + tap, in_d)
        there = step + (TAPS - 1 - tap if TURNED else tap - TAPS + 1)
        v += weight[:, None] * _seen(
            x_ptr, initial_ptr, i_b, channel, there, in_d, channels, length, x_b, x_d, x_l, TAPS - 1
        )
    if not TURNED:
        v += load(bias_ptr + channel, in_d)[:, None]
        if SILU:
            v *= sigmoid(v)
    tl.store(
        y_ptr + (i_b * channels + channel[:, None]) * places + place[None, :],
        v.to(y_ptr.dtype.element_ty),
        mask=in_d[:, None] & (place < places)[None, :],
    )


@triton.jit
def _slope(
    dy_ptr,
    x_ptr,
    initial_ptr,
    taps_ptr,
    bias_ptr,
    dv_ptr,
    part_ptr,
    channels,
    length,
    dy_b,
    dy_d,
    dy_l,
    x_b,
    x_d,
    x_l,
    blocks,
    strips,
    steps,
    TAPS: tl.constexpr,
    SILU: tl.constexpr,
    BD: tl.constexpr,
    BL: tl.constexpr,
):
    """dv of a strip of tiles, ``strips`` to a sequence, and its sums for the taps and the bias:
    part (b strips, TAPS + 1, d)."""
    i = tl.program_id(0)
    i_part = i // blocks
    i_b = (i_part // strips).to(tl.int64)
    channel = (i % blocks * BD + tl.arange(0, BD)).to(tl.int64)
    in_d = channel < channels
    bias = load(bias_ptr + channel, in_d)[:, None]
    weights, sums = (), (tl.zeros([BD, BL], tl.float32),)
    for tap in tl.static_range(TAPS):
        weights += (load(taps_ptr + channel * TAPS + tap, in_d)[:, None],)
        sums += (tl.zeros([BD, BL], tl.float32),)
    for turn in range(0, steps):
        step = (i_part % strips * steps + turn) * BL + tl.arange(0, BL)
        live = in_d[:, None] & (step < length)[None, :]
        v, xs = bias + tl.zeros([BD, BL], tl.float32), ()
        for tap in tl.static_range(TAPS):
            there = step + (tap - TAPS + 1)
            seen = _seen(x_ptr, initial_ptr, i_b, channel, there, in_d, channels, length, x_b, x_d, x_l, TAPS - 1)
            xs += (tl.where(live, seen, 0.0),)
            v += weights[tap] * xs[tap]
        dv = load(dy_ptr + i_b * dy_b + channel[:, None] * dy_d + step.to(tl.int64)[None, :] * dy_l, live)
        if SILU:
            s = sigmoid(v)
            dv *= s + v * s * (1.0 - s)
        tl.store(dv_ptr + (i_b * channels + channel[:, None]) * length + step[None, :], dv, mask=live)
        grown = ()
        for tap in tl.static_range(TAPS):
            grown += (sums[tap] + dv * xs[tap],)
        sums = grown + (sums[TAPS] + dv,)  # noqa: RUF005  # Triton knows no unpacking
    part = part_ptr + i_part.to(tl.int64) * (TAPS + 1) * channels + channel
    for tap in tl.static_range(TAPS + 1):
        tl.store(part + tap * channels, tl.sum(sums[tap], 1), mask=in_d)


def _run(x: Tensor, initial: Tensor | None, taps: Tensor, bias: Tensor, silu: bool, turned: bool, y: Tensor) -> Tensor:
    """y (b, d, places), filled."""
    b, d, l = x.shape
    tiles, blocks = triton.cdiv(y.shape[2], _TILE["BL"]), triton.cdiv(d, _TILE["BD"])
    _convolve[(b * tiles * blocks,)](
        x, initial, taps, bias, y, d, l, y.shape[2], *x.stride(), tiles, blocks,
        TAPS=taps.shape[1], SILU=silu, TURNED=turned, **_TILE,
    )  # fmt: skip  # the kernel's parameters, its switches
    return y


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor | None, silu: bool, save: bool
) -> tuple[Tensor, Tensor]:
    """y (b, d, l) in x's dtype, and an empty tensor. Arguments as in reference.py."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        initial = None if initial_states is None or weight.shape[1] == 1 else initial_states.contiguous()
        _run(x, initial, weight.contiguous(), bias.contiguous(), silu, False, y)
    return y, weight.new_empty(0)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_states: Tensor | None,
    silu: bool,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, in its dtype, weight, bias and initial_states, None where that is None."""
    (b, d, l), taps = x.shape, weight.shape[1]
    if not x.numel():
        zeros = [t if t is None else t.new_zeros(t.shape) for t in (x, weight, bias, initial_states)]
        return zeros[0], zeros[1], zeros[2], zeros[3]  # type: ignore[return-value]  # None where an argument is
    before = 0 if initial_states is None else taps - 1
    initial = initial_states.contiguous() if initial_states is not None and before else None
    table, row, blocks = weight.contiguous(), bias.contiguous(), triton.cdiv(d, _TILE["BD"])
    tiles = triton.cdiv(l, _TILE["BL"])
    steps = triton.cdiv(tiles, max(1, _PROGRAMS // (b * blocks)))
    strips = triton.cdiv(tiles, steps)
    dv, part = weight.new_empty(x.shape), weight.new_empty(b * strips, taps + 1, d)
    _slope[(b * strips * blocks,)](
        dy, x, initial, table, row, dv, part, d, l, *dy.stride(), *x.stride(), blocks, strips, steps,
        TAPS=taps, SILU=silu, **_TILE,
    )  # fmt: skip  # the kernel's parameters, its switches
    dframed = torch.empty((b, d, before + l), dtype=weight.dtype if before else x.dtype, device=x.device)
    _run(dv, None, table, row, False, True, dframed)
    # Two sums: results of one operator may not share memory.
    dweight, dbias = part[:, :taps].sum(0).t(), part[:, taps].sum(0)
    dinitial = None if initial_states is None else dframed[..., :before].to(weight.dtype, copy=True)
    return dframed[..., before:].to(x.dtype), dweight, dbias, dinitial
