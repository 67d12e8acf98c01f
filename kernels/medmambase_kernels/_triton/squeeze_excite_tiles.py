"""What the kernels of the gate do with a tile of a map, and with the channels of an image."""

import triton
import triton.language as tl

from medmambase_kernels._triton.numerics import load


@triton.jit
def source(place, c, PAIRS: tl.constexpr):
    """The channel that becomes channel ``place`` of y."""
    return place // 2 + place % 2 * (c // 2) if PAIRS else place


@triton.jit
def given(x, second, x_l, x_c, second_l, second_c, position, place, live, PAIRS: tl.constexpr, RELU: tl.constexpr):
    """What is gated, but for the factor: [positions, places]. In PAIRS even places come from x, odd
    ones from second; RELU makes x's at least 0."""
    if PAIRS:
        channel, odd = place // 2, (place % 2 == 1)[None, :]
        left = load(x + position[:, None] * x_l + channel[None, :] * x_c, live & (place % 2 == 0)[None, :])
        right = load(second + position[:, None] * second_l + channel[None, :] * second_c, live & odd)
        if RELU:
            left = tl.where(left < 0, 0.0, left)  # NaN stays NaN
        values = tl.where(odd, right, left)
    else:
        values = load(x + position[:, None] * x_l + place[None, :] * x_c, live)
    return values


@triton.jit
def factor_of(factors, i_b, place):
    """By what each place is multiplied: a factor of the image where second is, else 1."""
    factor = tl.full(place.shape, 1.0, tl.float32)
    if factors is not None:
        factor = tl.where(place % 2 == 1, tl.load(factors + i_b).to(tl.float32), 1.0)
    return factor


@triton.jit
def logits(pooled, squeeze, excite, channel, in_c, hidden, c, ROWS: tl.constexpr):
    """excite relu(squeeze pooled), of the channels of one image in any order."""
    found = tl.zeros(pooled.shape, tl.float32)
    for first in range(0, hidden, ROWS):
        row = first + tl.arange(0, ROWS)
        live = (row < hidden)[:, None] & in_c[None, :]
        unit = tl.sum(load(squeeze + row[:, None] * c + channel[None, :], live) * pooled[None, :], 1)
        unit = tl.where(unit > 0, unit, 0.0)
        found += tl.sum(load(excite + row[:, None] + channel[None, :] * hidden, live) * unit[:, None], 0)
    return found


@triton.jit
def back_to_pooled(
    dlogit, pooled, squeeze, excite, unit_at, dunit_at, channel, in_c, hidden, c, ROWS: tl.constexpr
):  # fmt: skip  # of one image; weights; where to; sizes
    """The gradient of pooled from that of the logits; stores the hidden units and their
    gradients."""
    dpooled = tl.zeros(pooled.shape, tl.float32)
    for first in range(0, hidden, ROWS):
        row = first + tl.arange(0, ROWS)
        live = (row < hidden)[:, None] & in_c[None, :]
        weights = load(squeeze + row[:, None] * c + channel[None, :], live)
        unit = tl.sum(weights * pooled[None, :], 1)
        dunit = tl.sum(load(excite + row[:, None] + channel[None, :] * hidden, live) * dlogit[None, :], 1)
        dunit = tl.where(unit > 0, dunit, 0.0)
        dpooled += tl.sum(weights * dunit[:, None], 0)
        tl.store(unit_at + row, tl.where(unit > 0, unit, 0.0), mask=row < hidden)
        tl.store(dunit_at + row, dunit, mask=row < hidden)
    return dpooled


@triton.jit
def tile_back(
    dy, x, dx, dsecond, dy_l, dy_c, x_l, x_c, dx_l, position, place, live, gate, plus, factor, PAIRS: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip  # of one image; strides; which tile; what each channel takes
    """dx = (dy gate + plus) factor, of a tile of one image; in PAIRS as halves in their order."""
    tile = load(dy + position[:, None] * dy_l + place[None, :] * dy_c, live)
    tile *= gate[None, :]
    tile += plus[None, :]
    tile *= factor[None, :]
    row = position[:, None] * dx_l
    if PAIRS:
        odd, pair = (place % 2 == 1)[None, :], place[None, :] // 2
        if RELU:
            taken = load(x + position[:, None] * x_l + pair * x_c, live & (odd == 0))
            tile = tl.where((taken <= 0) & (odd == 0), 0.0, tile)
        tl.store(dx + row + pair, tile.to(dx.dtype.element_ty), mask=live & (odd == 0))
        tl.store(dsecond + row + pair, tile.to(dsecond.dtype.element_ty), mask=live & odd)
    else:
        tl.store(dx + row + place[None, :], tile.to(dx.dtype.element_ty), mask=live)
