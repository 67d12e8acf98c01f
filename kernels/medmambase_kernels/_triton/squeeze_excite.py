"""Squeeze and excite on a GPU: a mean over positions, two small products, one multiplication.

    pooled = mean over positions of x    hidden = relu(squeeze pooled)
    gate = scale sigmoid(excite hidden)    y = x gate
    with a residual: y = residual + x gate, whose channels are shuffled
    with second: x = [relu(x) | factor second], whose halves come apart and are joined here

Kept for backward: pooled and gate, (b, c) each. hidden is computed again. The two products stay
inside a kernel, so that no matmul setting (TF32, autocast) reaches them. The forward pass of a
small map is one launch: ``squeeze_excite_image.py``. Neighbouring lanes have neighbouring channels
of y, which come from two runs of x, c / 2 apart: whole sectors both. Bytes an element, float32: 12
forward, 16 backward; 4 more with a residual.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton import squeeze_excite_image as image
from medmambase_kernels._triton.numerics import load, sigmoid

# positions and channels a step of a program; four warps
_TILE = {"BL": 64, "BC": 32, "num_warps": 4, "enable_fp_fusion": True}
_ROWS = 8  # hidden units a step of the gate kernels


@triton.jit
def _source(place, c, PAIRS: tl.constexpr):
    """The channel that becomes channel ``place`` of y."""
    return place // 2 + place % 2 * (c // 2) if PAIRS else place


@triton.jit
def _given(x, second, x_l, x_c, second_l, second_c, position, place, live, PAIRS: tl.constexpr, RELU: tl.constexpr):
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
def _factor(factors, i_b, place):
    """By what each place is multiplied: a factor of the image where second is, else 1."""
    factor = tl.full(place.shape, 1.0, tl.float32)
    if factors is not None:
        factor = tl.where(place % 2 == 1, tl.load(factors + i_b).to(tl.float32), 1.0)
    return factor


@triton.jit
def _pool(
    x_ptr, second_ptr, factor_ptr, dy_ptr, sum_ptr, l, c, blocks, weight,
    x_b, x_l, x_c, second_b, second_l, second_c, dy_b, dy_l, dy_c,
    PRODUCT: tl.constexpr, PAIRS: tl.constexpr, RELU: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; switches and tile sizes
    """weight times the sum over positions of x, or of x dy: (b, c)."""
    i = tl.program_id(0).to(tl.int64)
    i_b = i // blocks
    place = i % blocks * BC + tl.arange(0, BC)
    in_c = place < c
    total = tl.zeros([BL, BC], tl.float32)
    for first in range(0, l, BL):
        position = first + tl.arange(0, BL).to(tl.int64)
        live = (position < l)[:, None] & in_c[None, :]
        values = _given(
            x_ptr + i_b * x_b, second_ptr + i_b * second_b, x_l, x_c, second_l, second_c, position, place, live,
            PAIRS, RELU,
        )  # fmt: skip  # line by line the function's parameters
        if PRODUCT:
            values *= load(dy_ptr + i_b * dy_b + position[:, None] * dy_l + place[None, :] * dy_c, live)
        total += values
    sums = tl.sum(total, 0) * weight * _factor(factor_ptr, i_b, place)
    tl.store(sum_ptr + i_b * c + _source(place, c, PAIRS), sums, mask=in_c)


@triton.jit
def _gate(pooled_ptr, squeeze_ptr, excite_ptr, gate_ptr, hidden, c, scale, ROWS: tl.constexpr, C: tl.constexpr):
    """scale sigmoid(excite relu(squeeze pooled)) of one image."""
    i_b = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, C)
    in_c = channel < c
    pooled = tl.load(pooled_ptr + i_b * c + channel, mask=in_c, other=0.0)
    logit = tl.zeros([C], tl.float32)
    for first in range(0, hidden, ROWS):
        row = first + tl.arange(0, ROWS)
        tile = row[:, None] * c + channel[None, :]
        live = (row < hidden)[:, None] & in_c[None, :]
        unit = tl.sum(tl.load(squeeze_ptr + tile, mask=live, other=0.0) * pooled[None, :], 1)
        unit = tl.where(unit > 0, unit, 0.0)
        logit += tl.sum(
            tl.load(excite_ptr + row[:, None] + channel[None, :] * hidden, mask=live, other=0.0) * unit[:, None], 0
        )
    tl.store(gate_ptr + i_b * c + channel, scale * sigmoid(logit), mask=in_c)


@triton.jit
def _gate_back(
    dgate_ptr, pooled_ptr, squeeze_ptr, excite_ptr, gate_ptr, dpooled_ptr, dlogit_ptr, unit_ptr, dunit_ptr,
    hidden, c, per_scale, ROWS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip  # tensors and results; sizes
    """From dgate (b, c): the gradients of pooled, of the logits (b, c) and of the hidden units (b,
    hidden); and those units."""
    i_b = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, C)
    in_c = channel < c
    pooled = tl.load(pooled_ptr + i_b * c + channel, mask=in_c, other=0.0)
    gate = tl.load(gate_ptr + i_b * c + channel, mask=in_c, other=0.0)
    dlogit = tl.load(dgate_ptr + i_b * c + channel, mask=in_c, other=0.0) * gate * (1.0 - gate * per_scale)
    tl.store(dlogit_ptr + i_b * c + channel, dlogit, mask=in_c)
    dpooled = tl.zeros([C], tl.float32)
    for first in range(0, hidden, ROWS):
        row = first + tl.arange(0, ROWS)
        tile = row[:, None] * c + channel[None, :]
        live = (row < hidden)[:, None] & in_c[None, :]
        squeeze = tl.load(squeeze_ptr + tile, mask=live, other=0.0)
        unit = tl.sum(squeeze * pooled[None, :], 1)
        dunit = tl.sum(
            tl.load(excite_ptr + row[:, None] + channel[None, :] * hidden, mask=live, other=0.0) * dlogit[None, :], 1
        )
        dunit = tl.where(unit > 0, dunit, 0.0)
        dpooled += tl.sum(squeeze * dunit[:, None], 0)
        tl.store(unit_ptr + i_b * hidden + row, tl.where(unit > 0, unit, 0.0), mask=row < hidden)
        tl.store(dunit_ptr + i_b * hidden + row, dunit, mask=row < hidden)
    tl.store(dpooled_ptr + i_b * c + channel, dpooled, mask=in_c)


@triton.jit
def _weights(
    pooled_at, dlogit_at, unit_at, dunit_at, dsqueeze_at, dexcite_at, i, batch, hidden, c, blocks,
    ROWS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors; results; which tile; sizes; tile sizes
    """dsqueeze (hidden, c) and dexcite (c, hidden): sums over the images of products."""
    row = i // blocks * ROWS + tl.arange(0, ROWS)
    channel = i % blocks * BC + tl.arange(0, BC)
    in_row, in_c = row < hidden, channel < c
    dsqueeze, dexcite = tl.zeros([ROWS, BC], tl.float32), tl.zeros([ROWS, BC], tl.float32)
    for i_b in range(0, batch):
        pooled = tl.load(pooled_at + i_b * c + channel, mask=in_c, other=0.0)
        dlogit = tl.load(dlogit_at + i_b * c + channel, mask=in_c, other=0.0)
        unit = tl.load(unit_at + i_b * hidden + row, mask=in_row, other=0.0)
        dunit = tl.load(dunit_at + i_b * hidden + row, mask=in_row, other=0.0)
        dsqueeze += dunit[:, None] * pooled[None, :]
        dexcite += unit[:, None] * dlogit[None, :]
    live = in_row[:, None] & in_c[None, :]
    tl.store(dsqueeze_at + row[:, None] * c + channel[None, :], dsqueeze, mask=live)
    tl.store(dexcite_at + row[:, None] + channel[None, :] * hidden, dexcite, mask=live)


@triton.jit
def _scale(
    x_ptr, second_ptr, factor_ptr, gate_ptr, residual_ptr, y_ptr, l, c, blocks, strips,
    x_b, x_l, x_c, second_b, second_l, second_c, residual_b, residual_l, residual_c,
    PAIRS: tl.constexpr, RELU: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; switches and tile sizes
    """y = x gate; or, in PAIRS, residual plus that, shuffled."""
    i = tl.program_id(0).to(tl.int64)
    i_b = i // (strips * blocks)
    place = i % blocks * BC + tl.arange(0, BC)
    position = i // blocks % strips * BL + tl.arange(0, BL)
    in_c = place < c
    live = (position < l)[:, None] & in_c[None, :]
    y = _given(
        x_ptr + i_b * x_b, second_ptr + i_b * second_b, x_l, x_c, second_l, second_c, position, place, live, PAIRS, RELU
    )
    gate = tl.load(gate_ptr + i_b * c + _source(place, c, PAIRS), mask=in_c, other=0.0)
    y *= (gate * _factor(factor_ptr, i_b, place))[None, :]
    if PAIRS:
        y += load(residual_ptr + i_b * residual_b + position[:, None] * residual_l + place[None, :] * residual_c, live)
    tl.store(y_ptr + (i_b * l + position[:, None]) * c + place[None, :], y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def _scale_back(
    dy_ptr, x_ptr, factor_ptr, gate_ptr, dpooled_ptr, dx_ptr, dsecond_ptr,
    pooled_ptr, dlogit_ptr, unit_ptr, dunit_ptr, dsqueeze_ptr, dexcite_ptr,
    l, c, blocks, strips, per_l, dy_b, dy_l, dy_c, x_b, x_l, x_c, dx_l, batch, hidden, of_weights,
    PAIRS: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors of dx, those of weights; sizes and strides; switches and tile sizes
    """dx = dy gate + dpooled / l, in PAIRS as halves in their order, each with rows dx_l apart. The
    first of_weights programs compute dsqueeze and dexcite instead: see ``_weights``."""
    i = tl.program_id(0).to(tl.int64)
    if i < of_weights:
        _weights(
            pooled_ptr, dlogit_ptr, unit_ptr, dunit_ptr, dsqueeze_ptr, dexcite_ptr, i, batch, hidden, c, blocks,
            ROWS, BC,
        )  # fmt: skip  # line by line the function's parameters
    else:
        i -= of_weights
        i_b = i // (strips * blocks)
        place = i % blocks * BC + tl.arange(0, BC)
        position = i // blocks % strips * BL + tl.arange(0, BL)
        channel, in_c = _source(place, c, PAIRS), place < c
        live = (position < l)[:, None] & in_c[None, :]
        dx = load(dy_ptr + i_b * dy_b + position[:, None] * dy_l + place[None, :] * dy_c, live)
        dx *= tl.load(gate_ptr + i_b * c + channel, mask=in_c, other=0.0)[None, :]
        dx += per_l * tl.load(dpooled_ptr + i_b * c + channel, mask=in_c, other=0.0)[None, :]
        dx *= _factor(factor_ptr, i_b, place)[None, :]
        row = (i_b * l + position[:, None]) * dx_l
        if PAIRS:
            odd, pair = (place % 2 == 1)[None, :], place[None, :] // 2
            if RELU:
                x = load(x_ptr + i_b * x_b + position[:, None] * x_l + pair * x_c, live & (odd == 0))
                dx = tl.where((x <= 0) & (odd == 0), 0.0, dx)
            tl.store(dx_ptr + row + pair, dx.to(dx_ptr.dtype.element_ty), mask=live & (odd == 0))
            tl.store(dsecond_ptr + row + pair, dx.to(dsecond_ptr.dtype.element_ty), mask=live & odd)
        else:
            tl.store(dx_ptr + row + place[None, :], dx.to(dx_ptr.dtype.element_ty), mask=live)


def kept_shape(
    x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, second: Tensor | None, factor: Tensor | None
) -> tuple[int, ...]:
    """Shape of the pooled means and the gates, (2, b, c)."""
    return (2, x.shape[0], squeeze.shape[1])


def _halves(x: Tensor, residual: Tensor | None, second: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the kernels read as x and second, (b, l, channels): without ``residual`` x alone."""
    if second is None:
        pair = (x, x) if residual is None else x.chunk(2, -1)
        return pair[0].flatten(1, 2), pair[1].flatten(1, 2)
    return x.flatten(1, 2), second.flatten(1, 2)


def _sum_positions(
    x: Tensor, second: Tensor, factor: Tensor | None, dy: Tensor | None, weight: float, total: Tensor,
    switches: dict[str, bool],
) -> None:  # fmt: skip  # tensors as the kernel reads them
    """Fill total (b, c) float32 with weight times the sum over positions of what is gated, or of
    its product with dy."""
    (batch, length, _), c, other = x.shape, total.shape[1], x if dy is None else dy
    blocks = triton.cdiv(c, _TILE["BC"])
    _pool[(batch * blocks,)](
        x, second, factor, other, total, length, c, blocks, weight, *x.stride(), *second.stride(), *other.stride(),
        PRODUCT=dy is not None, **switches, **_TILE,
    )  # fmt: skip  # line by line the kernel's parameters


def _row_config(c: int) -> dict[str, int]:
    return {"ROWS": _ROWS, "C": triton.next_power_of_2(c), "num_warps": 4, "enable_fp_fusion": True}


def forward(
    x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, second: Tensor | None, factor: Tensor | None,
    scale: float, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip  # in the operator's order
    """y (b, h, w, c) in the dtype of residual or x and, if ``save``, pooled and gate in float32.
    Arguments as in reference.squeeze_excite."""
    like = x if residual is None else residual
    y = torch.empty(like.shape, dtype=like.dtype, device=x.device)
    shape = kept_shape(x, squeeze, excite, residual, second, factor)
    if not y.numel():
        return y, squeeze.new_zeros(shape if save else 0)
    left, right = _halves(x, residual, second)
    factor = None if factor is None else factor.contiguous()
    rest, switches = like.flatten(1, 2), {"PAIRS": residual is not None, "RELU": second is not None}
    (batch, length, c), hidden = rest.shape, squeeze.shape[0]
    kept, squeeze, excite = squeeze.new_empty(shape), squeeze.contiguous(), excite.contiguous()
    pooled, gate = kept
    if image.is_small(length, c):
        image.whole[(batch,)](
            left, right, factor, squeeze, excite, rest, pooled, gate, y, length, c, hidden, 1 / length, scale,
            *left.stride(), *right.stride(), *rest.stride(), ROWS=_ROWS, **switches, **image.tile(c, **switches),
        )  # fmt: skip  # line by line the kernel's parameters
        return y, kept if save else kept.new_empty(0)
    _sum_positions(left, right, factor, None, 1 / length, pooled, switches)
    _gate[(batch,)](pooled, squeeze, excite, gate, hidden, c, scale, **_row_config(c))
    blocks, strips = triton.cdiv(c, _TILE["BC"]), triton.cdiv(length, _TILE["BL"])
    _scale[(batch * strips * blocks,)](
        left, right, factor, gate, rest, y, length, c, blocks, strips, *left.stride(), *right.stride(), *rest.stride(),
        **switches, **_TILE,
    )  # fmt: skip  # line by line the kernel's parameters
    return y, kept if save else kept.new_empty(0)


def backward(
    dy: Tensor, x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, second: Tensor | None,
    factor: Tensor | None, scale: float, kept: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip  # in the operator's order
    """Gradients of x and second (in their dtypes), squeeze and excite, contiguous; that of residual
    is dy."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dsecond = None if second is None else torch.empty(second.shape, dtype=second.dtype, device=x.device)
    if not x.numel():
        return dx, torch.zeros_like(squeeze), torch.zeros_like(excite), None, dsecond, None
    dys, (left, right) = dy.flatten(1, 2), _halves(x, residual, second)
    factor = None if factor is None else factor.contiguous()
    switches = {"PAIRS": residual is not None, "RELU": second is not None}
    (batch, length, c), hidden = dys.shape, squeeze.shape[0]
    pooled, gate = kept
    dgate, dpooled, dlogit = (torch.empty_like(pooled) for _ in range(3))
    _sum_positions(left, right, factor, dys, 1.0, dgate, switches)
    unit, dunit = (pooled.new_empty(batch, hidden) for _ in range(2))
    _gate_back[(batch,)](
        dgate, pooled, squeeze.contiguous(), excite.contiguous(), gate, dpooled, dlogit, unit, dunit,
        hidden, c, 1 / scale if scale else 0.0, **_row_config(c),
    )  # fmt: skip  # line by line the kernel's parameters
    dsqueeze, dexcite = pooled.new_empty(hidden, c), pooled.new_empty(c, hidden)
    blocks, strips = triton.cdiv(c, _TILE["BC"]), triton.cdiv(length, _TILE["BL"])
    of_weights = triton.cdiv(hidden, _ROWS) * blocks
    dleft, dright = _halves(dx, residual, dsecond)
    # Left to itself, the assembler of Triton 3.6 stops at 40 for compute capability 8.0, and
    # spills.
    registers = 48 if residual is None else None
    _scale_back[(of_weights + batch * strips * blocks,)](
        dys, left, factor, gate, dpooled, dleft, dright, pooled, dlogit, unit, dunit, dsqueeze, dexcite,
        length, c, blocks, strips, 1 / length, *dys.stride(), *left.stride(), dleft.stride(1), batch, hidden,
        of_weights, ROWS=_ROWS, maxnreg=registers, **switches, **_TILE,
    )  # fmt: skip  # line by line the kernel's parameters
    return dx, dsqueeze, dexcite, None, dsecond, None
