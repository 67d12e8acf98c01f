"""Squeeze and excite on a GPU: a mean over positions, two small products, one multiplication.

    pooled = mean over positions of x    hidden = relu(squeeze pooled)
    gate = scale sigmoid(excite hidden)    y = x gate

Kept for backward: pooled and gate, (b, c) each. hidden is computed again. The two products stay
inside a kernel, so that no matmul setting (TF32, autocast) reaches them. Bytes an element, float32:
12 forward, 16 backward.
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
    BL: tl.constexpr,
    BC: tl.constexpr,
):
    """weight times the sum over positions of x, or of x dy: (b, c)."""
    i = tl.program_id(0).to(tl.int64)
    i_b = i // blocks
    channel = i % blocks * BC + tl.arange(0, BC)
    in_c = channel < c
    total = tl.zeros([BL, BC], tl.float32)
    for first in range(0, l, BL):
        position = first + tl.arange(0, BL).to(tl.int64)
        live = (position < l)[:, None] & in_c[None, :]
        values = load(x_ptr + i_b * x_b + position[:, None] * x_l + channel[None, :] * x_c, live)
        if PRODUCT:
            values *= load(dy_ptr + i_b * dy_b + position[:, None] * dy_l + channel[None, :] * dy_c, live)
        total += values
    tl.store(sum_ptr + i_b * c + channel, tl.sum(total, 0) * weight, mask=in_c)


@triton.jit
def _gate(pooled_ptr, squeeze_ptr, excite_ptr, gate_ptr, hidden, c, scale, ROWS: tl.constexpr, C: tl.constexpr):
    """scale sigmoid(excite relu(squeeze pooled)) of one image. excite is (hidden, c) here."""
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
        logit += tl.sum(tl.load(excite_ptr + tile, mask=live, other=0.0) * unit[:, None], 0)
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
        dunit = tl.sum(tl.load(excite_ptr + tile, mask=live, other=0.0) * dlogit[None, :], 1)
        dunit = tl.where(unit > 0, dunit, 0.0)
        dpooled += tl.sum(squeeze * dunit[:, None], 0)
        tl.store(unit_ptr + i_b * hidden + row, tl.where(unit > 0, unit, 0.0), mask=row < hidden)
        tl.store(dunit_ptr + i_b * hidden + row, dunit, mask=row < hidden)
    tl.store(dpooled_ptr + i_b * c + channel, dpooled, mask=in_c)


@triton.jit
def _scale(
    x_ptr, gate_ptr, shift_ptr, y_ptr, l, c, blocks, strips, weight, x_b, x_l, x_c,
    SHIFT: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; a switch and tile sizes
    """y = x gate, plus weight times shift (b, c)."""
    i = tl.program_id(0).to(tl.int64)
    i_b = i // (strips * blocks)
    channel = i % blocks * BC + tl.arange(0, BC)
    position = i // blocks % strips * BL + tl.arange(0, BL)
    in_c = channel < c
    live = (position < l)[:, None] & in_c[None, :]
    y = load(x_ptr + i_b * x_b + position[:, None] * x_l + channel[None, :] * x_c, live)
    y *= tl.load(gate_ptr + i_b * c + channel, mask=in_c, other=0.0)[None, :]
    if SHIFT:
        y += weight * tl.load(shift_ptr + i_b * c + channel, mask=in_c, other=0.0)[None, :]
    tl.store(y_ptr + (i_b * l + position[:, None]) * c + channel[None, :], y.to(y_ptr.dtype.element_ty), mask=live)


def kept_shape(x: Tensor, squeeze: Tensor, excite: Tensor) -> tuple[int, ...]:
    """Shape of the pooled means and the gates, (2, b, c)."""
    return (2, x.shape[0], x.shape[3])


def _sum_positions(x: Tensor, dy: Tensor | None, weight: float, total: Tensor) -> None:
    """Fill total (b, c) float32 with weight times the sum over positions of x (b, l, c), or of x
    dy."""
    batch, length, c = x.shape
    other = x if dy is None else dy
    blocks = triton.cdiv(c, _TILE["BC"])
    _pool[(batch * blocks,)](
        x, other, total, length, c, blocks, weight, *x.stride(), *other.stride(), PRODUCT=dy is not None, **_TILE
    )


def _times_gate(x: Tensor, gate: Tensor, shift: Tensor | None, weight: float) -> Tensor:
    """x (b, l, c) times gate (b, c), plus weight times shift (b, c); contiguous, in x's dtype."""
    batch, length, c = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    blocks, strips = triton.cdiv(c, _TILE["BC"]), triton.cdiv(length, _TILE["BL"])
    _scale[(batch * strips * blocks,)](
        x,
        gate,
        gate if shift is None else shift,
        y,
        length,
        c,
        blocks,
        strips,
        weight,
        *x.stride(),
        SHIFT=shift is not None,
        **_TILE,
    )
    return y


def _row_config(c: int) -> dict[str, int]:
    return {"ROWS": _ROWS, "C": triton.next_power_of_2(c), "num_warps": 4, "enable_fp_fusion": True}


def forward(x: Tensor, squeeze: Tensor, excite: Tensor, scale: float, save: bool) -> tuple[Tensor, Tensor]:
    """y (b, h, w, c) in x's dtype and, if ``save``, pooled and gate in float32. Arguments as in
    reference.squeeze_excite."""
    if not x.numel():
        kept = squeeze.new_zeros(kept_shape(x, squeeze, excite) if save else 0)
        return torch.empty(x.shape, dtype=x.dtype, device=x.device), kept
    positions = x.flatten(1, 2)
    batch, length, c = positions.shape
    kept = squeeze.new_empty(kept_shape(x, squeeze, excite))
    pooled, gate = kept
    _sum_positions(positions, None, 1 / length, pooled)
    _gate[(batch,)](
        pooled, squeeze.contiguous(), excite.t().contiguous(), gate, squeeze.shape[0], c, scale, **_row_config(c)
    )
    return _times_gate(positions, gate, None, 0.0).view(x.shape), kept if save else kept.new_empty(0)


def backward(
    dy: Tensor, x: Tensor, squeeze: Tensor, excite: Tensor, scale: float, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (in its dtype), squeeze and excite, contiguous."""
    if not x.numel():
        return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.zeros_like(squeeze), torch.zeros_like(excite)
    positions, dy_positions = x.flatten(1, 2), dy.flatten(1, 2)
    batch, length, c = positions.shape
    pooled, gate = kept
    dgate, dpooled, dlogit = (torch.empty_like(pooled) for _ in range(3))
    _sum_positions(positions, dy_positions, 1.0, dgate)
    unit, dunit = (pooled.new_empty(batch, squeeze.shape[0]) for _ in range(2))
    _gate_back[(batch,)](
        dgate, pooled, squeeze.contiguous(), excite.t().contiguous(), gate, dpooled, dlogit, unit, dunit,
        squeeze.shape[0], c, 1 / scale if scale else 0.0, **_row_config(c),
    )  # fmt: skip  # line by line the kernel's parameters
    dsqueeze = (dunit[:, :, None] * pooled[:, None, :]).sum(0)
    dexcite = (dlogit[:, :, None] * unit[:, None, :]).sum(0)
    return _times_gate(dy_positions, gate, dpooled, 1 / length).view(x.shape), dsqueeze, dexcite
