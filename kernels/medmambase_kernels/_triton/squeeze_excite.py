"""Squeeze and excite on a GPU: a mean over positions, two small products, one multiplication.

    pooled = mean over positions of x    hidden = relu(squeeze pooled)
    gate = scale sigmoid(excite hidden)    y = x gate
    with a residual: y = residual + x gate, whose channels are shuffled

Kept for backward: pooled and gate, (b, c) each. hidden is computed again. The two products stay
inside a kernel, so that no matmul setting (TF32, autocast) reaches them. Neighbouring lanes have
neighbouring channels of y, which come from two runs of x, c / 2 apart: whole sectors both. Bytes an
element, float32: 12 forward, 16 backward; 4 more with a residual.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton.numerics import load, sigmoid

# positions and channels a step of a program; four warps
_TILE = {"BL": 64, "BC": 32, "num_warps": 4, "enable_fp_fusion": True}
_ROWS = 8  # hidden units a step of the gate kernels


@triton.jit
def _source(place, c, SHUFFLE: tl.constexpr):
    """The channel of x that becomes channel ``place`` of y."""
    return place // 2 + place % 2 * (c // 2) if SHUFFLE else place


@triton.jit
def _pool(
    x_ptr,
    dy_ptr,
    sum_ptr,
    l,
    c,
    blocks,
    weight,
    x_b,
    x_l,
    x_c,
    dy_b,
    dy_l,
    dy_c,
    PRODUCT: tl.constexpr,
    SHUFFLE: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
):
    """weight times the sum over positions of x, or of x dy: (b, c)."""
    i = tl.program_id(0).to(tl.int64)
    i_b = i // blocks
    place = i % blocks * BC + tl.arange(0, BC)
    channel, in_c = _source(place, c, SHUFFLE), place < c
    total = tl.zeros([BL, BC], tl.float32)
    for first in range(0, l, BL):
        position = first + tl.arange(0, BL).to(tl.int64)
        live = (position < l)[:, None] & in_c[None, :]
        values = load(x_ptr + i_b * x_b + position[:, None] * x_l + channel[None, :] * x_c, live)
        if PRODUCT:
            values *= load(dy_ptr + i_b * dy_b + position[:, None] * dy_l + place[None, :] * dy_c, live)
        total += values
    tl.store(sum_ptr + i_b * c + channel, tl.sum(total, 0) * weight, mask=in_c)


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
    pooled_ptr, dlogit_ptr, unit_ptr, dunit_ptr, dsqueeze_ptr, dexcite_ptr, batch, hidden, c, blocks,
    ROWS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors; results; sizes; tile sizes
    """dsqueeze (hidden, c) and dexcite (c, hidden): sums over the images of products."""
    i = tl.program_id(0)
    row = i // blocks * ROWS + tl.arange(0, ROWS)
    channel = i % blocks * BC + tl.arange(0, BC)
    in_row, in_c = row < hidden, channel < c
    dsqueeze, dexcite = tl.zeros([ROWS, BC], tl.float32), tl.zeros([ROWS, BC], tl.float32)
    for i_b in range(0, batch):
        pooled = tl.load(pooled_ptr + i_b * c + channel, mask=in_c, other=0.0)
        dlogit = tl.load(dlogit_ptr + i_b * c + channel, mask=in_c, other=0.0)
        unit = tl.load(unit_ptr + i_b * hidden + row, mask=in_row, other=0.0)
        dunit = tl.load(dunit_ptr + i_b * hidden + row, mask=in_row, other=0.0)
        dsqueeze += dunit[:, None] * pooled[None, :]
        dexcite += unit[:, None] * dlogit[None, :]
    live = in_row[:, None] & in_c[None, :]
    tl.store(dsqueeze_ptr + row[:, None] * c + channel[None, :], dsqueeze, mask=live)
    tl.store(dexcite_ptr + row[:, None] + channel[None, :] * hidden, dexcite, mask=live)


@triton.jit
def _scale(
    x_ptr, gate_ptr, residual_ptr, y_ptr, l, c, blocks, strips, x_b, x_l, x_c, residual_b, residual_l, residual_c,
    RESIDUAL: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; a switch and tile sizes
    """y = x gate; or residual plus that, shuffled."""
    i = tl.program_id(0).to(tl.int64)
    i_b = i // (strips * blocks)
    place = i % blocks * BC + tl.arange(0, BC)
    position = i // blocks % strips * BL + tl.arange(0, BL)
    channel, in_c = _source(place, c, RESIDUAL), place < c
    live = (position < l)[:, None] & in_c[None, :]
    y = load(x_ptr + i_b * x_b + position[:, None] * x_l + channel[None, :] * x_c, live)
    y *= tl.load(gate_ptr + i_b * c + channel, mask=in_c, other=0.0)[None, :]
    if RESIDUAL:
        y += load(residual_ptr + i_b * residual_b + position[:, None] * residual_l + place[None, :] * residual_c, live)
    tl.store(y_ptr + (i_b * l + position[:, None]) * c + place[None, :], y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def _scale_back(
    dy_ptr, gate_ptr, dpooled_ptr, dx_ptr, l, c, blocks, strips, per_l, dy_b, dy_l, dy_c,
    SHUFFLE: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; a switch and tile sizes
    """dx = dy gate + dpooled / l, dy with its channels put back."""
    i = tl.program_id(0).to(tl.int64)
    i_b = i // (strips * blocks)
    place = i % blocks * BC + tl.arange(0, BC)
    position = i // blocks % strips * BL + tl.arange(0, BL)
    channel, in_c = _source(place, c, SHUFFLE), place < c
    live = (position < l)[:, None] & in_c[None, :]
    dx = load(dy_ptr + i_b * dy_b + position[:, None] * dy_l + place[None, :] * dy_c, live)
    dx *= tl.load(gate_ptr + i_b * c + channel, mask=in_c, other=0.0)[None, :]
    dx += per_l * tl.load(dpooled_ptr + i_b * c + channel, mask=in_c, other=0.0)[None, :]
    tl.store(dx_ptr + (i_b * l + position[:, None]) * c + channel[None, :], dx.to(dx_ptr.dtype.element_ty), mask=live)


def kept_shape(x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None) -> tuple[int, ...]:
    """Shape of the pooled means and the gates, (2, b, c)."""
    return (2, x.shape[0], x.shape[3])


def _sum_positions(x: Tensor, dy: Tensor | None, shuffled: bool, weight: float, total: Tensor) -> None:
    """Fill total (b, c) float32 with weight times the sum over positions of x (b, l, c), or of x
    dy."""
    batch, length, c = x.shape
    other = x if dy is None else dy
    blocks = triton.cdiv(c, _TILE["BC"])
    _pool[(batch * blocks,)](
        x, other, total, length, c, blocks, weight, *x.stride(), *other.stride(),
        PRODUCT=dy is not None, SHUFFLE=shuffled, **_TILE,
    )  # fmt: skip  # line by line the kernel's parameters


def _row_config(c: int) -> dict[str, int]:
    return {"ROWS": _ROWS, "C": triton.next_power_of_2(c), "num_warps": 4, "enable_fp_fusion": True}


def forward(
    x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, scale: float, save: bool
) -> tuple[Tensor, Tensor]:
    """y (b, h, w, c) in the dtype of residual or x and, if ``save``, pooled and gate in float32.
    Arguments as in reference.squeeze_excite."""
    y = torch.empty(x.shape, dtype=x.dtype if residual is None else residual.dtype, device=x.device)
    if not x.numel():
        return y, squeeze.new_zeros(kept_shape(x, squeeze, excite, residual) if save else 0)
    xs, rest = x.flatten(1, 2), (x if residual is None else residual).flatten(1, 2)
    batch, length, c = xs.shape
    kept = squeeze.new_empty(kept_shape(x, squeeze, excite, residual))
    pooled, gate = kept
    _sum_positions(xs, None, False, 1 / length, pooled)
    _gate[(batch,)](
        pooled, squeeze.contiguous(), excite.contiguous(), gate, squeeze.shape[0], c, scale, **_row_config(c)
    )
    blocks, strips = triton.cdiv(c, _TILE["BC"]), triton.cdiv(length, _TILE["BL"])
    _scale[(batch * strips * blocks,)](
        xs, gate, rest, y, length, c, blocks, strips, *xs.stride(), *rest.stride(),
        RESIDUAL=residual is not None, **_TILE,
    )  # fmt: skip  # line by line the kernel's parameters
    return y, kept if save else kept.new_empty(0)


def backward(
    dy: Tensor, x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, scale: float, kept: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x (in its dtype), squeeze and excite, contiguous; that of residual is dy."""
    dx, shuffled = torch.empty(x.shape, dtype=x.dtype, device=x.device), residual is not None
    if not x.numel():
        return dx, torch.zeros_like(squeeze), torch.zeros_like(excite), None
    xs, dys = x.flatten(1, 2), dy.flatten(1, 2)
    (batch, length, c), hidden = xs.shape, squeeze.shape[0]
    pooled, gate = kept
    dgate, dpooled, dlogit = (torch.empty_like(pooled) for _ in range(3))
    _sum_positions(xs, dys, shuffled, 1.0, dgate)
    unit, dunit = (pooled.new_empty(batch, hidden) for _ in range(2))
    _gate_back[(batch,)](
        dgate, pooled, squeeze.contiguous(), excite.contiguous(), gate, dpooled, dlogit, unit, dunit,
        hidden, c, 1 / scale if scale else 0.0, **_row_config(c),
    )  # fmt: skip  # line by line the kernel's parameters
    dsqueeze, dexcite = pooled.new_empty(hidden, c), pooled.new_empty(c, hidden)
    blocks, strips = triton.cdiv(c, _TILE["BC"]), triton.cdiv(length, _TILE["BL"])
    _weights[(triton.cdiv(hidden, _ROWS) * blocks,)](
        pooled, dlogit, unit, dunit, dsqueeze, dexcite, batch, hidden, c, blocks,
        ROWS=_ROWS, BC=_TILE["BC"], num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip  # line by line the kernel's parameters
    _scale_back[(batch * strips * blocks,)](
        dys, gate, dpooled, dx, length, c, blocks, strips, 1 / length, *dys.stride(), SHUFFLE=shuffled, **_TILE
    )
    return dx, dsqueeze, dexcite, None
