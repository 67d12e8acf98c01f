"""LayerNorm over channels on a CPU, for prediction: a row of channels at a time, while it is in
the first-level cache.
"""

import functools

import torch
from torch import Tensor

from medmambase_kernels._cpu import compiler
from medmambase_kernels._cpu.compiler import Program, compiled, empty, rows
from medmambase_kernels._cpu.language import Kernel

_BAND = 64  # rows of a task


@functools.cache
def _norm(lanes: int) -> Program:
    kernel = Kernel("norm", ("x", "weight", "bias", "numbers", "out"), ("rows", "channels", "x_stride"), lanes)
    x, weight, bias, numbers, out = kernel.pointers("x", "weight", "bias", "numbers", "out")
    count, channels, x_stride = kernel.sizes("rows", "channels", "x_stride")
    with kernel.tasks() as task, kernel.range(task * _BAND, kernel.smaller(task * _BAND + _BAND, count)) as row:
        x_row, out_row = x.at(row * x_stride), out.at(row * channels)
        total, squares = kernel.variable(kernel.constant(0.0)), kernel.variable(kernel.constant(0.0))
        with kernel.range(0, channels, lanes) as c:
            total.value = total.value + x_row.load(c)
        centre = kernel.total(total.value) * numbers.number(1)
        with kernel.range(0, channels, lanes) as c:
            distance = x_row.load(c) - centre
            squares.value = distance * distance + squares.value
        scale = 1.0 / kernel.root(kernel.total(squares.value) * numbers.number(1) + numbers.number(0))
        with kernel.range(0, channels, lanes) as c:
            out_row.store(c, (x_row.load(c) - centre) * scale * weight.load(c) + bias.load(c))
    return compiled(kernel)


def fits(x: Tensor) -> bool:
    """Whether the channels fill the processor's vectors."""
    return x.shape[-1] % compiler.lanes() == 0


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (b, h, w, c), float32, c a multiple of the processor's lanes -> the same shape."""
    c = x.shape[-1]
    x_rows, out, numbers = rows(x), empty(*x.shape), torch.tensor([eps, 1 / c], dtype=torch.float32, device="cpu")
    _norm(compiler.lanes()).launch(
        -(-len(x_rows) // _BAND),
        x=x_rows,
        weight=weight,
        bias=bias,
        numbers=numbers,
        out=out,
        rows=len(x_rows),
        channels=c,
        x_stride=x_rows.stride(0),
    )
    return out
