"""LayerNorm times silu(z) on a CPU: one row of channels at a time, while it is in the first-level
cache.

    m = (y - mean) rstd    n = weight m + bias    s = sigmoid(z)    out = n z s
    dn = dout z s    dz = dout n (s + z s (1 - s))
    dy = rstd (weight dn - mean(weight dn) - m mean(weight dn m))

Forward reads y and z and writes out; backward reads dout, y and z and writes dy and dz. Kept for
backward: mean and rstd. A width that is no multiple of the processor's lanes goes through plain
PyTorch operations.
"""

import functools

import torch
from torch import Tensor

from medmambase_kernels._cpu import compiler
from medmambase_kernels._cpu.compiler import Program, compiled, empty, rows
from medmambase_kernels._cpu.language import Kernel
from medmambase_kernels._cpu.numerics import sigmoid
from medmambase_kernels._cpu.values import Value
from medmambase_kernels._torch import gated_norm as portable

_BAND = 128  # rows of a task, whose sums of the weights' gradients are added in the order of the tasks


def kept_shape(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    """Shape of mean and rstd, (2, b, h, w)."""
    return portable.kept_shape(y, z, weight, bias) if y.shape[3] % compiler.lanes() else (2, *y.shape[:3])


def _band(kernel: Kernel, task: Value) -> tuple[Value, Value]:
    """First row of a task, and the row after its last."""
    (count,) = kernel.sizes("rows")
    return task * _BAND, kernel.smaller(task * _BAND + _BAND, count)


@functools.cache
def _forward(lanes: int) -> Program:
    kernel = Kernel(
        "gated_norm",
        ("y", "z", "weight", "bias", "numbers", "out", "mean", "rstd"),
        ("rows", "channels", "y_stride", "z_stride"),
        lanes,
    )
    y, z, weight, bias, numbers, out, mean, rstd = kernel.pointers(
        "y", "z", "weight", "bias", "numbers", "out", "mean", "rstd"
    )
    channels, y_stride, z_stride = kernel.sizes("channels", "y_stride", "z_stride")
    with kernel.tasks() as task, kernel.range(*_band(kernel, task)) as row:
        y_row, z_row, out_row = y.at(row * y_stride), z.at(row * z_stride), out.at(row * channels)
        total, squares = kernel.variable(kernel.constant(0.0)), kernel.variable(kernel.constant(0.0))
        with kernel.range(0, channels, kernel.lanes) as c:
            total.value = total.value + y_row.load(c)
        centre = kernel.total(total.value) * numbers.number(1)
        with kernel.range(0, channels, kernel.lanes) as c:
            distance = y_row.load(c) - centre
            squares.value = distance * distance + squares.value
        scale = 1.0 / kernel.root(kernel.total(squares.value) * numbers.number(1) + numbers.number(0))
        mean.store_number(row, centre)
        rstd.store_number(row, scale)
        with kernel.range(0, channels, kernel.lanes) as c:
            gate = z_row.load(c)
            out_row.store(
                c, ((y_row.load(c) - centre) * scale * weight.load(c) + bias.load(c)) * (gate * sigmoid(kernel, gate))
            )
    return compiled(kernel)


@functools.cache
def _backward(lanes: int) -> Program:
    kernel = Kernel(
        "gated_norm_backward", ("dout", "y", "z", "weight", "bias", "numbers", "mean", "rstd", "dy", "dz", "dweight",
        "dbias"), ("rows", "channels", "dout_stride", "y_stride", "z_stride"), lanes,
    )  # fmt: skip  # pointers, sizes
    dout, y, z, weight, bias, numbers, mean, rstd = kernel.pointers(
        "dout", "y", "z", "weight", "bias", "numbers", "mean", "rstd"
    )
    dy, dz, dweight, dbias = kernel.pointers("dy", "dz", "dweight", "dbias")
    channels, dout_stride, y_stride, z_stride = kernel.sizes("channels", "dout_stride", "y_stride", "z_stride")
    of_row = kernel.rest()
    with kernel.tasks() as task:
        of_weight, of_bias = dweight.at(task * channels), dbias.at(task * channels)
        with kernel.range(0, channels, kernel.lanes) as c:
            of_weight.store(c, 0.0)
            of_bias.store(c, 0.0)
        with kernel.range(*_band(kernel, task)) as row:
            dout_row, y_row, z_row, dz_row, dy_row = (
                t.at(row * stride)
                for t, stride in ((dout, dout_stride), (y, y_stride), (z, z_stride), (dz, channels), (dy, channels))
            )
            centre, scale = mean.number(row), rstd.number(row)
            plain, weighted = kernel.variable(kernel.constant(0.0)), kernel.variable(kernel.constant(0.0))
            with kernel.range(0, channels, kernel.lanes) as c:
                given, gate = dout_row.load(c), z_row.load(c)
                s = sigmoid(kernel, gate)
                normal = (y_row.load(c) - centre) * scale
                passed = given * (gate * s)
                dz_row.store(c, given * (normal * weight.load(c) + bias.load(c)) * (s + gate * s * (1.0 - s)))
                of_weight.store(c, passed * normal + of_weight.load(c))
                of_bias.store(c, passed + of_bias.load(c))
                passed = passed * weight.load(c)
                of_row.store(c, passed)
                plain.value = plain.value + passed
                weighted.value = passed * normal + weighted.value
            drift, turn = (
                kernel.total(plain.value) * numbers.number(1),
                kernel.total(weighted.value) * numbers.number(1),
            )
            with kernel.range(0, channels, kernel.lanes) as c:
                normal = (y_row.load(c) - centre) * scale
                dy_row.store(c, (of_row.load(c) - drift - normal * turn) * scale)
    return compiled(kernel)


def _numbers(eps: float, d: int) -> Tensor:
    return torch.tensor([eps, 1 / d], dtype=torch.float32, device="cpu")


def forward(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float, save: bool) -> tuple[Tensor, Tensor]:
    """The gated norm (b, h, w, d) in z's dtype and, if ``save``, mean and rstd."""
    d = y.shape[-1]
    if d % compiler.lanes():
        return portable.forward(y, z, weight, bias, eps, save)
    y_rows, z_rows = rows(y), rows(z)
    out, kept = empty(*y_rows.shape), empty(2, *y.shape[:3])
    _forward(compiler.lanes()).launch(
        -(-len(y_rows) // _BAND), y=y_rows, z=z_rows, weight=weight.contiguous(), bias=bias.contiguous(),
        numbers=_numbers(eps, d), out=out, mean=kept[0], rstd=kept[1], rows=len(y_rows), channels=d,
        y_stride=y_rows.stride(0), z_stride=z_rows.stride(0),
    )  # fmt: skip  # pointers, sizes
    return out.view(y.shape).to(z.dtype), kept if save else weight.new_empty(0)


def backward(
    dout: Tensor,
    y: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of y and z, in their dtypes, and of weight and bias."""
    d = y.shape[-1]
    if d % compiler.lanes():
        return portable.backward(dout, y, z, weight, bias, eps, kept)
    dout_rows, y_rows, z_rows = rows(dout), rows(y), rows(z)
    tasks = -(-len(y_rows) // _BAND)
    dy, dz, dweight, dbias = empty(*y_rows.shape), empty(*y_rows.shape), empty(tasks, d), empty(tasks, d)
    _backward(compiler.lanes()).launch(
        tasks, d, dout=dout_rows, y=y_rows, z=z_rows, weight=weight.contiguous(), bias=bias.contiguous(),
        numbers=_numbers(eps, d), mean=kept[0], rstd=kept[1], dy=dy, dz=dz, dweight=dweight, dbias=dbias,
        rows=len(y_rows), channels=d, dout_stride=dout_rows.stride(0), y_stride=y_rows.stride(0),
        z_stride=z_rows.stride(0),
    )  # fmt: skip  # pointers, sizes
    return dy.view(y.shape).to(y.dtype), dz.view(y.shape).to(z.dtype), dweight.sum(0), dbias.sum(0)
