"""BatchNorm in training and the ReLU after it on a GPU, where a map is small: a program holds a few
channels of the whole batch in registers, so that each direction is one launch and reads its tensors
once.

    mean, var over the rows    x^ = (x - mean) rstd    v = weight x^ + bias    y = v, or relu(v)
    dv = dy where y > 0    dbias = sum of dv    dweight = sum of dv x^
    dx = weight rstd (dv - dbias / rows - x^ dweight / rows)

It is no operator: medmambase's model/batch_norm.py has the same in PyTorch's operations, for large
maps, other devices and other dtypes. Kept for backward: mean and rstd. No atomics. Bytes an
element, float32: 8 forward, 12 backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton.layout import as_rows
from medmambase_kernels._triton.numerics import load

_MOST_ROWS = 2048  # that a program holds
_CHANNELS = 8  # of a program: a sector of memory in float32


def is_small(x: Tensor) -> bool:
    """Whether a program can hold all rows of x (b, c, h, w), of which there are two or more."""
    return 1 < x.shape[0] * x.shape[2] * x.shape[3] <= _MOST_ROWS


def _tile(rows: int) -> dict[str, int]:
    """Rows (padded) and channels of a program, and its warps: up to 32 numbers a thread."""
    R = triton.next_power_of_2(rows)
    return {"R": R, "BC": _CHANNELS, "num_warps": max(1, min(16, R * _CHANNELS // 1024)), "enable_fp_fusion": True}


@triton.jit
def _norm(
    x_ptr, weight_ptr, bias_ptr, running_mean_ptr, running_var_ptr, y_ptr, kept_ptr,
    rows, c, x_l, momentum, eps, unbiased, RELU: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors; sizes and numbers; a switch and tile sizes
    """y (rows, c), kept (2, c), mean and rstd; and the running statistics move towards those of
    the batch."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    row = tl.arange(0, R).to(tl.int64)
    in_c = channel < c
    live = (row < rows)[:, None] & in_c[None, :]
    x = load(x_ptr + row[:, None] * x_l + channel[None, :], live)
    past_mean, past_var = load(running_mean_ptr + channel, in_c), load(running_var_ptr + channel, in_c)
    mean = tl.sum(x, 0) / rows
    centred = tl.where(live, x - mean[None, :], 0.0)
    var = tl.sum(centred * centred, 0) / rows
    rstd = tl.rsqrt(var + eps)
    y = centred * (rstd * load(weight_ptr + channel, in_c))[None, :] + load(bias_ptr + channel, in_c)[None, :]
    if RELU:
        y = tl.where(y < 0, 0.0, y)  # NaN stays NaN
    tl.store(y_ptr + row[:, None] * c + channel[None, :], y.to(y_ptr.dtype.element_ty), mask=live)
    tl.store(kept_ptr + channel, mean, mask=in_c)
    tl.store(kept_ptr + c + channel, rstd, mask=in_c)
    tl.store(running_mean_ptr + channel, past_mean + momentum * (mean - past_mean), mask=in_c)
    tl.store(running_var_ptr + channel, past_var + momentum * (var * unbiased - past_var), mask=in_c)


@triton.jit
def _norm_back(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, kept_ptr, dx_ptr, dweight_ptr, dbias_ptr, rows, c, dy_l, x_l,
    RELU: tl.constexpr, R: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip  # tensors; results; sizes and strides; a switch and tile sizes
    """dx (rows, c), dweight and dbias (c,)."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    row = tl.arange(0, R).to(tl.int64)
    in_c = channel < c
    live = (row < rows)[:, None] & in_c[None, :]
    x = load(x_ptr + row[:, None] * x_l + channel[None, :], live)
    dv = load(dy_ptr + row[:, None] * dy_l + channel[None, :], live)
    mean, rstd = load(kept_ptr + channel, in_c), load(kept_ptr + c + channel, in_c)
    weight, bias = load(weight_ptr + channel, in_c), load(bias_ptr + channel, in_c)
    centred = x - mean[None, :]  # beyond the last row not 0, but dv is
    if RELU:  # by the same roundings as forward
        dv = tl.where(centred * (rstd * weight)[None, :] + bias[None, :] <= 0, 0.0, dv)
    normed = centred * rstd[None, :]
    dbias, dweight = tl.sum(dv, 0), tl.sum(dv * normed, 0)
    dx = (dv - (dbias / rows)[None, :] - normed * (dweight / rows)[None, :]) * (weight * rstd)[None, :]
    tl.store(dx_ptr + row[:, None] * c + channel[None, :], dx.to(dx_ptr.dtype.element_ty), mask=live)
    tl.store(dweight_ptr + channel, dweight, mask=in_c)
    tl.store(dbias_ptr + channel, dbias, mask=in_c)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip  # in F.batch_norm's order
    """y (b, c, h, w) in x's dtype, channels last, and mean and rstd (2, c). The running statistics
    are updated in place. x float32, bfloat16 or float16, the others float32 and contiguous."""
    b, c, h, w = x.shape
    y, kept = torch.empty((b, h, w, c), dtype=x.dtype, device=x.device), weight.new_empty(2, c)
    xs, tile = as_rows(x.permute(0, 2, 3, 1)), _tile(b * h * w)
    _norm[(triton.cdiv(c, _CHANNELS),)](
        xs, weight, bias, running_mean, running_var, y, kept, *xs.shape, xs.stride(0), momentum, eps,
        len(xs) / (len(xs) - 1), RELU=relu, **tile,
    )  # fmt: skip  # line by line the kernel's parameters
    return y.permute(0, 3, 1, 2), kept


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, kept: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, in its dtype and channels last, weight and bias."""
    b, c, h, w = x.shape
    dx = torch.empty((b, h, w, c), dtype=x.dtype, device=x.device)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    dys, xs = (as_rows(t.permute(0, 2, 3, 1)) for t in (dy, x))
    _norm_back[(triton.cdiv(c, _CHANNELS),)](
        dys, xs, weight, bias, kept, dx, dweight, dbias, *xs.shape, dys.stride(0), xs.stride(0), RELU=relu,
        **_tile(len(xs)),
    )  # fmt: skip  # line by line the kernel's parameters
    return dx.permute(0, 3, 1, 2), dweight, dbias
