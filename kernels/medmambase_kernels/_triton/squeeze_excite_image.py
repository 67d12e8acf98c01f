"""The gate of a small map on a GPU: one program takes an image from the mean to the product, so
that what are three launches of a large map is one.

A tile holds all channels of a half, in their order, so that weights are read in whole sectors and
no sum has to go through memory; without halves the left one is the whole. The halves are joined in
registers. The weights are read once an image, the map twice, the second time from the cache.
Backward stays in three launches: alone, a program was predicted to take longer than it saves.
"""

import triton
import triton.language as tl

from medmambase_kernels._triton.numerics import load, sigmoid

# Numbers of an image, its channels padded, up to which a program takes it alone: half a megabyte to
# move, about as long as the two launches take that it saves.
_MOST = 1 << 15
_NUMBERS = 8192  # a step: 16 a thread


def is_small(length: int, c: int) -> bool:
    """Whether a program takes an image of so many positions and channels alone."""
    return length * triton.next_power_of_2(c) <= _MOST


def tile(c: int, PAIRS: bool, RELU: bool) -> dict[str, int]:
    """Positions and (padded) channels a step of a program, of one half in PAIRS, and its
    warps."""
    C = triton.next_power_of_2(c // 2 if PAIRS else c)
    return {"BL": max(1, _NUMBERS // (2 * C if PAIRS else C)), "C": C, "num_warps": 16, "enable_fp_fusion": True}


@triton.jit
def _half(x, position, channel, x_l, x_c, live, RELU: tl.constexpr):
    """[positions, channels] of one half."""
    values = load(x + position[:, None] * x_l + channel[None, :] * x_c, live)
    if RELU:
        values = tl.where(values < 0, 0.0, values)  # NaN stays NaN
    return values


@triton.jit
def _weights(squeeze, excite, row, channel, live, width, hidden, c, PAIRS: tl.constexpr):
    """Both weights of these hidden units, [units, channels] of each half: all are read before a
    sum, which the whole program waits for."""
    squeeze += row[:, None] * c + channel[None, :]
    excite += row[:, None] + channel[None, :] * hidden
    of_left, to_left = load(squeeze, live), load(excite, live)
    of_right, to_right = of_left, to_left
    if PAIRS:
        of_right, to_right = load(squeeze + width, live), load(excite + width * hidden, live)
    return of_left, to_left, of_right, to_right


@triton.jit
def whole(
    x_ptr, second_ptr, factor_ptr, squeeze_ptr, excite_ptr, residual_ptr, pooled_ptr, gate_ptr, y_ptr,
    l, c, hidden, per_l, scale, x_b, x_l, x_c, second_b, second_l, second_c, residual_b, residual_l, residual_c,
    PAIRS: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BL: tl.constexpr, C: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; switches and tile sizes
    """y = x gate of one image; or, in PAIRS, residual plus that, shuffled. Also pooled and gate."""
    i_b = tl.program_id(0).to(tl.int64)
    width = c // 2 if PAIRS else c
    channel = tl.arange(0, C).to(tl.int64)
    in_c = channel < width
    x, second = x_ptr + i_b * x_b, second_ptr + i_b * second_b
    factor = 1.0
    if factor_ptr is not None:
        factor = tl.load(factor_ptr + i_b).to(tl.float32)
    sums, sums_2 = tl.zeros([BL, C], tl.float32), tl.zeros([BL, C], tl.float32)
    for first in range(0, l, BL):
        position = first + tl.arange(0, BL).to(tl.int64)
        live = (position < l)[:, None] & in_c[None, :]
        sums += _half(x, position, channel, x_l, x_c, live, RELU)
        if PAIRS:
            sums_2 += _half(second, position, channel, second_l, second_c, live, False)
    pooled, pooled_2 = tl.sum(sums, 0) * per_l, tl.sum(sums_2, 0) * (per_l * factor)
    logit, logit_2 = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for first in range(0, hidden, ROWS):
        row = first + tl.arange(0, ROWS)
        live = (row < hidden)[:, None] & in_c[None, :]
        squeeze, excite, squeeze_2, excite_2 = _weights(
            squeeze_ptr, excite_ptr, row, channel, live, width, hidden, c, PAIRS
        )
        unit = tl.sum(squeeze * pooled[None, :], 1)
        if PAIRS:
            unit += tl.sum(squeeze_2 * pooled_2[None, :], 1)
        unit = tl.where(unit > 0, unit, 0.0)
        logit += tl.sum(excite * unit[:, None], 0)
        if PAIRS:
            logit_2 += tl.sum(excite_2 * unit[:, None], 0)
    gate, gate_2 = scale * sigmoid(logit), scale * sigmoid(logit_2)
    tl.store(pooled_ptr + i_b * c + channel, pooled, mask=in_c)
    tl.store(gate_ptr + i_b * c + channel, gate, mask=in_c)
    if PAIRS:
        tl.store(pooled_ptr + i_b * c + width + channel, pooled_2, mask=in_c)
        tl.store(gate_ptr + i_b * c + width + channel, gate_2, mask=in_c)
    for first in range(0, l, BL):
        position = first + tl.arange(0, BL).to(tl.int64)
        live = (position < l)[:, None] & in_c[None, :]
        y = _half(x, position, channel, x_l, x_c, live, RELU) * gate[None, :]
        if PAIRS:
            right = _half(second, position, channel, second_l, second_c, live, False) * (gate_2 * factor)[None, :]
            place = tl.arange(0, 2 * C).to(tl.int64)
            live = (position < l)[:, None] & (place < c)[None, :]
            residual = residual_ptr + i_b * residual_b + position[:, None] * residual_l + place[None, :] * residual_c
            sum = load(residual, live)
            sum += tl.reshape(tl.join(y, right), [BL, 2 * C])
            out = y_ptr + (i_b * l + position[:, None]) * c + place[None, :]
            tl.store(out, sum.to(y_ptr.dtype.element_ty), mask=live)
        else:
            out = y_ptr + (i_b * l + position[:, None]) * c + channel[None, :]
            tl.store(out, y.to(y_ptr.dtype.element_ty), mask=live)
