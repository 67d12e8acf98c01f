"""Rows that are normalised and multiplied by a matrix in one launch, for prediction of small maps,
where the GPU waits for each launch.

    v = the sum of the parts of x    n = weight (v - mean) rstd + bias    out = W (n silu(z))

Without z there is no gate. In the same launch, other rows of the same width may be scaled and
shifted. A program takes a few rows and columns; those that share rows normalise them again, which
is less than a launch. Products are float32, so that no matmul setting (TF32, autocast) reaches
them: where TF32 is allowed, small batches are more exact than large ones. There are no gradients.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton.layout import as_rows
from medmambase_kernels._triton.numerics import load, sigmoid

_TILE = {"BM": 16, "BN": 32, "BK": 128}  # rows, columns, and channels that are multiplied at once
_WIDEST = 1024  # channels of a row that a program holds
Norm = tuple[Tensor, Tensor, float]  # weight and bias (d,), and what is added to the variance
# Products up to which this is predicted to take no longer than the library's kernel and those that
# it saves: of three images of 128 pixels in `tiny`.
_MOST = 1 << 25


def is_small(rows: int, weight: Tensor) -> bool:
    """Whether so many rows are multiplied by weight (n, d) here."""
    return 0 < rows * weight.numel() <= _MOST and weight.shape[1] <= _WIDEST


@triton.jit
def product(
    x_ptr, z_ptr, weight_ptr, bias_ptr, W_ptr, normed_ptr, out_ptr, other_ptr, scale_ptr, shift_ptr, scaled_ptr,
    rows, d, n, eps, x_l, part_l, z_l, other_l, blocks, of_other,
    PARTS: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip  # tensors; sizes and strides; tile sizes
    """out (rows, n) from x (PARTS, rows, d), z (rows, d) or None, and W (n, d); normed (programs,
    BM, D) is a program's own. The first of_other programs make scaled = shift + scale other,
    (rows, d), instead."""
    i = tl.program_id(0)
    channel = tl.arange(0, D)
    in_d = channel < d
    if other_ptr is not None:  # noqa: SIM102  # the first is the compiler's, the second the kernel's
        if i < of_other:
            row = i.to(tl.int64) * BM + tl.arange(0, BM)
            live = (row < rows)[:, None] & in_d[None, :]
            values = load(other_ptr + row[:, None] * other_l + channel[None, :], live)
            values = values * load(scale_ptr + channel, in_d)[None, :] + load(shift_ptr + channel, in_d)[None, :]
            scaled = scaled_ptr + row[:, None] * d + channel[None, :]
            tl.store(scaled, values.to(scaled_ptr.dtype.element_ty), mask=live)
    if i >= of_other:
        i -= of_other
        place = tl.arange(0, BM)
        row = (i // blocks).to(tl.int64) * BM + place
        live = (row < rows)[:, None] & in_d[None, :]
        at = x_ptr + row[:, None] * x_l + channel[None, :]
        x = load(at, live)
        for part in tl.static_range(1, PARTS):
            x += load(at + tl.full([], part, tl.int64) * part_l, live)
        centred = tl.where(live, x - (tl.sum(x, 1) / d)[:, None], 0.0)
        normed = centred * tl.rsqrt(tl.sum(centred * centred, 1) / d + eps)[:, None]
        normed = normed * load(weight_ptr + channel, in_d)[None, :] + load(bias_ptr + channel, in_d)[None, :]
        if z_ptr is not None:
            z = load(z_ptr + row[:, None] * z_l + channel[None, :], live)
            normed *= z * sigmoid(z)
        # Through memory: left to itself, the compiler has each thread make all that it multiplies.
        own = normed_ptr + i.to(tl.int64) * BM * D + place[:, None] * D
        tl.store(own + channel[None, :], normed)
        tl.debug_barrier()
        column = i % blocks * BN + tl.arange(0, BN)
        out = tl.zeros([BM, BN], tl.float32)
        for first in range(0, d, BK):
            inner = first + tl.arange(0, BK)
            W = W_ptr + column[None, :].to(tl.int64) * d + inner[:, None]
            left, right = tl.load(own + inner[None, :]), load(W, (inner < d)[:, None] & (column < n)[None, :])
            out += tl.dot(left, right, input_precision="ieee")
        live = (row < rows)[:, None] & (column < n)[None, :]
        tl.store(out_ptr + row[:, None] * n + column[None, :], out.to(out_ptr.dtype.element_ty), mask=live)


def _launch(
    x: Tensor, z: Tensor | None, norm: Norm, W: Tensor, out: Tensor, parts: int = 1,
    scaling: tuple[Tensor | None, ...] = (None, None, None, None),
) -> None:  # fmt: skip  # as in the kernel
    """x (parts * rows, d), z and other (rows, d), each with neighbouring channels; ``scaling``:
    other, scale, shift and the result."""
    (weight, bias, eps), (n, d), rows, other = norm, W.shape, len(x) // parts, scaling[0]
    blocks, tiles = triton.cdiv(n, _TILE["BN"]), triton.cdiv(rows, _TILE["BM"])
    of_other, D = 0 if other is None else tiles, max(16, triton.next_power_of_2(d))
    normed = x.new_empty(tiles * blocks, _TILE["BM"], D, dtype=torch.float32)
    product[(of_other + tiles * blocks,)](
        x, z, weight, bias, W, normed, out, *scaling, rows, d, n, eps, x.stride(0), rows * x.stride(0),
        0 if z is None else z.stride(0), 0 if other is None else other.stride(0), blocks, of_other,
        PARTS=parts, D=D, BM=_TILE["BM"], BN=_TILE["BN"], BK=min(D, _TILE["BK"]), num_warps=4 if D < _TILE["BK"] else 8,
        enable_fp_fusion=True,
    )  # fmt: skip  # line by line the kernel's parameters


def halves(x: Tensor, norm: Norm, W: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of x (b, h, w, 2d) shift + scale * the left half, (b, h, w, d); and W (n, d) times the right
    half, normalised: (b, h, w, n). Both in dtype."""
    left, right = x.chunk(2, -1)
    scaled = torch.empty(left.shape, dtype=dtype, device=x.device)
    out = torch.empty((*x.shape[:3], len(W)), dtype=dtype, device=x.device)
    _launch(as_rows(right), None, norm, W, out, scaling=(as_rows(left), scale, shift, scaled))
    return scaled, out


def gated(parts: Tensor, z: Tensor, norm: Norm, W: Tensor, dtype: torch.dtype) -> Tensor:
    """W (n, d) times the sum of parts (p, b, h, w, d), contiguous, normalised and gated by
    silu(z), z (b, h, w, d): (b, h, w, n) in dtype."""
    out = torch.empty((*z.shape[:3], len(W)), dtype=dtype, device=z.device)
    _launch(parts.flatten(0, 3), as_rows(z), norm, W, out, len(parts))
    return out
