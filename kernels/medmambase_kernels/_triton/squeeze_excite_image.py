"""The gate of a small map on a GPU: one program takes an image from the mean to the product, so
that what are three launches of a large map is one, and its backward two instead of three.

A tile holds all channels, in the order of y: no sum has to go through memory. The weights are read
once an image, the map twice, the second time from the cache.
"""

import triton
import triton.language as tl

from medmambase_kernels._triton.numerics import load, sigmoid
from medmambase_kernels._triton.squeeze_excite_tiles import (
    back_to_pooled,
    factor_of,
    given,
    logits,
    source,
    tile_back,
)

# Numbers of an image, its channels padded, up to which a program takes it alone: half a megabyte to
# move, about as long as the two launches take that it saves.
_MOST = 1 << 15
_NUMBERS = 8192  # a step: 32 a thread


def is_small(length: int, c: int) -> bool:
    """Whether a program takes an image of so many positions and channels alone."""
    return length * triton.next_power_of_2(c) <= _MOST


def tile(c: int) -> dict[str, int]:
    """Positions and (padded) channels a step of a program, and its warps."""
    C = triton.next_power_of_2(c)
    return {"BL": max(1, _NUMBERS // C), "C": C, "num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def whole(
    x_ptr, second_ptr, factor_ptr, squeeze_ptr, excite_ptr, residual_ptr, pooled_ptr, gate_ptr, y_ptr,
    l, c, hidden, per_l, scale, x_b, x_l, x_c, second_b, second_l, second_c, residual_b, residual_l, residual_c,
    PAIRS: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BL: tl.constexpr, C: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; switches and tile sizes
    """y = x gate of one image; or, in PAIRS, residual plus that, shuffled. Also pooled and gate."""
    i_b = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, C).to(tl.int64)
    channel, in_c = source(place, c, PAIRS), place < c
    x, second, factor = x_ptr + i_b * x_b, second_ptr + i_b * second_b, factor_of(factor_ptr, i_b, place)
    sums = tl.zeros([BL, C], tl.float32)
    for first in range(0, l, BL):
        position = first + tl.arange(0, BL).to(tl.int64)
        live = (position < l)[:, None] & in_c[None, :]
        sums += given(x, second, x_l, x_c, second_l, second_c, position, place, live, PAIRS, RELU)
    pooled = tl.sum(sums, 0) * per_l * factor
    gate = scale * sigmoid(logits(pooled, squeeze_ptr, excite_ptr, channel, in_c, hidden, c, ROWS))
    tl.store(pooled_ptr + i_b * c + channel, pooled, mask=in_c)
    tl.store(gate_ptr + i_b * c + channel, gate, mask=in_c)
    gate *= factor
    for first in range(0, l, BL):
        position = first + tl.arange(0, BL).to(tl.int64)
        live = (position < l)[:, None] & in_c[None, :]
        y = given(x, second, x_l, x_c, second_l, second_c, position, place, live, PAIRS, RELU) * gate[None, :]
        if PAIRS:
            at = residual_ptr + i_b * residual_b + position[:, None] * residual_l
            y += load(at + place[None, :] * residual_c, live)
        tl.store(y_ptr + (i_b * l + position[:, None]) * c + place[None, :], y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def whole_back(
    dy_ptr, x_ptr, second_ptr, factor_ptr, squeeze_ptr, excite_ptr, pooled_ptr, gate_ptr,
    dx_ptr, dsecond_ptr, dlogit_ptr, unit_ptr, dunit_ptr, l, c, hidden, per_l, per_scale,
    dy_b, dy_l, dy_c, x_b, x_l, x_c, second_b, second_l, second_c, dx_l,
    PAIRS: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BL: tl.constexpr, C: tl.constexpr,
):  # fmt: skip  # tensors; results; sizes and strides; switches and tile sizes
    """dx of one image, in PAIRS as halves in their order, each with rows dx_l apart; and what the
    gradients of the weights are made of: those of the logits and hidden units, and these units."""
    i_b = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, C).to(tl.int64)
    channel, in_c = source(place, c, PAIRS), place < c
    x, second, factor = x_ptr + i_b * x_b, second_ptr + i_b * second_b, factor_of(factor_ptr, i_b, place)
    dy = dy_ptr + i_b * dy_b
    sums = tl.zeros([BL, C], tl.float32)
    for first in range(0, l, BL):
        position = first + tl.arange(0, BL).to(tl.int64)
        live = (position < l)[:, None] & in_c[None, :]
        values = given(x, second, x_l, x_c, second_l, second_c, position, place, live, PAIRS, RELU)
        sums += values * load(dy + position[:, None] * dy_l + place[None, :] * dy_c, live)
    pooled, gate = load(pooled_ptr + i_b * c + channel, in_c), load(gate_ptr + i_b * c + channel, in_c)
    dlogit = tl.sum(sums, 0) * factor * gate * (1.0 - gate * per_scale)
    tl.store(dlogit_ptr + i_b * c + channel, dlogit, mask=in_c)
    plus = per_l * back_to_pooled(
        dlogit, pooled, squeeze_ptr, excite_ptr, unit_ptr + i_b * hidden, dunit_ptr + i_b * hidden, channel, in_c,
        hidden, c, ROWS,
    )  # fmt: skip  # line by line the function's parameters
    dx, dsecond = dx_ptr + i_b * l * dx_l, dsecond_ptr + i_b * l * dx_l
    for first in range(0, l, BL):
        position = first + tl.arange(0, BL).to(tl.int64)
        live = (position < l)[:, None] & in_c[None, :]
        tile_back(
            dy, x, dx, dsecond, dy_l, dy_c, x_l, x_c, dx_l, position, place, live, gate, plus, factor, PAIRS, RELU
        )
