"""The depthwise convolution and SiLU on a CPU: the 3 x 3 neighbourhood slides through registers, a
row of the map at a time.

    v = bias + weight * x    s = sigmoid(v)    y = v s
    dv = dy s (1 + v (1 - s))
    dx = weight turned by 180 degrees * dv
    dweight_ij = sum of dv times x moved by (i, j)

Forward reads x and writes y. Backward makes v anew, reads x and dy and writes dv, then reads both
and writes dx. Nothing is kept for it. A width that is no multiple of the processor's lanes goes
through plain PyTorch operations.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from medmambase_kernels._cpu import compiler
from medmambase_kernels._cpu.compiler import Program, compiled, empty, rows
from medmambase_kernels._cpu.language import Kernel
from medmambase_kernels._cpu.numerics import sigmoid
from medmambase_kernels._cpu.values import Pointer, Value
from medmambase_kernels._torch import depthwise_silu as portable

# rows of a map that a task of backward takes: its sums of the weights' gradients are added in the
# order of the tasks
_BAND = 8


def kept_shape(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    """Nothing."""
    return portable.kept_shape(x, weight, bias) if x.shape[3] % compiler.lanes() else (0,)


class _Window:
    """Three rows of a map (b, h, w, d), and the 3 x 3 positions around one of them; zeros lie
    around the map."""

    def __init__(self, kernel: Kernel, t: Pointer, stride: Value, image: Value, i: Value, c: Value) -> None:
        self.kernel, self.stride = kernel, stride
        self.height, self.width = kernel.sizes("height", "width")
        self.inside, self.rows = [], []
        for near in (i - 1, i, i + 1):
            last = kernel.smaller(near, self.height - 1)
            first = kernel.where(last < 0, kernel.constant_index(0), last)
            self.inside.append(near)
            self.rows.append(t.at((image * self.height + first) * self.width * stride + c))
        zero = kernel.constant(0.0)
        self.columns = [[kernel.variable(zero) for _ in range(3)] for _ in range(2)]
        for variable, value in zip(self.columns[1], self._column(kernel.constant_index(0)), strict=True):
            variable.value = value

    def _column(self, j: Value) -> list[Value]:
        """Column j of the three rows; zeros beyond the last."""
        place = self.kernel.smaller(j, self.width - 1) * self.stride
        zero = self.kernel.constant(0.0)
        loaded = (self.kernel.where(j < self.width, row.load(place), zero) for row in self.rows)
        return [
            self.kernel.where(i < 0, zero, self.kernel.where(i < self.height, value, zero))
            for i, value in zip(self.inside, loaded, strict=True)
        ]

    @contextmanager
    def around(self, j: Value) -> Iterator[list[Value]]:
        """The 9 positions around column j, row by row; columns must be visited from 0 on, each
        once."""
        left, middle = ([variable.value for variable in column] for column in self.columns)
        right = self._column(j + 1)
        yield [column[i] for i in range(3) for column in (left, middle, right)]
        for old, new in ((self.columns[0], middle), (self.columns[1], right)):
            for variable, value in zip(old, new, strict=True):
                variable.value = value


def _taps(weight: Pointer, c: Value, channels: Value) -> list[Value]:
    """The 9 weights of some channels, from (9, d)."""
    return [weight.load(tap * channels + c) for tap in range(9)]


def _dot(taps: list[Value], around: list[Value], first: Value | None) -> Value:
    total = first
    for tap, value in zip(taps, around, strict=True):
        total = tap * value if total is None else tap * value + total
    assert total is not None
    return total


@functools.cache
def _pointwise(lanes: int, backward: bool) -> Program:
    """y, or backward dv in its place; a task is a row of a map."""
    pointers = ("x", "weight", "bias", *(("dy",) if backward else ()), "out")
    sizes = ("height", "width", "channels", "x_stride", *(("dy_stride",) if backward else ()))
    kernel = Kernel("depthwise_slope" if backward else "depthwise_silu", pointers, sizes, lanes)
    x, weight, bias, out = kernel.pointers("x", "weight", "bias", "out")
    height, width, channels, stride = kernel.sizes("height", "width", "channels", "x_stride")
    with kernel.tasks() as task, kernel.range(0, channels, kernel.lanes) as c:
        taps, shift = _taps(weight, c, channels), bias.load(c)
        window = _Window(kernel, x, stride, task // height, task % height, c)
        with kernel.range(0, width) as j, window.around(j) as around:
            v = _dot(taps, around, shift)
            s = sigmoid(kernel, v)
            row = task * width + j
            if backward:
                (dy,), (dy_stride,) = kernel.pointers("dy"), kernel.sizes("dy_stride")
                out.store(row * channels + c, dy.load(row * dy_stride + c) * (s + v * s * (1.0 - s)))
            else:
                out.store(row * channels + c, v * s)
    return compiled(kernel)


@functools.cache
def _gradients(lanes: int) -> Program:
    """dx, and for each task, a band of rows of a map, dweight (9, d) and dbias (d)."""
    kernel = Kernel(
        "depthwise_gradients", ("x", "dv", "weight", "dx", "dweight", "dbias"),
        ("height", "width", "channels", "bands", "x_stride"), lanes
    )  # fmt: skip  # pointers, sizes
    x, dv, weight, dx, dweight, dbias = kernel.pointers("x", "dv", "weight", "dx", "dweight", "dbias")
    height, width, channels, bands, stride = kernel.sizes("height", "width", "channels", "bands", "x_stride")
    with kernel.tasks() as task, kernel.range(0, channels, kernel.lanes) as c:
        image, first = task // bands, task % bands * _BAND
        taps = _taps(weight, c, channels)
        sums = [kernel.variable(kernel.constant(0.0)) for _ in range(10)]
        with kernel.range(first, kernel.smaller(first + _BAND, height)) as i:
            of_x, of_dv = _Window(kernel, x, stride, image, i, c), _Window(kernel, dv, channels, image, i, c)
            with kernel.range(0, width) as j, of_x.around(j) as around_x, of_dv.around(j) as around_dv:
                here = around_dv[4]
                dx.store(((image * height + i) * width + j) * channels + c, _dot(taps[::-1], around_dv, None))
                for total, value in zip(sums, around_x, strict=False):
                    total.value = here * value + total.value
                sums[9].value = here + sums[9].value
        for tap in range(9):
            dweight.store((task * 9 + tap) * channels + c, sums[tap].value)
        dbias.store(task * channels + c, sums[9].value)
    return compiled(kernel)


def _table(weight: Tensor) -> Tensor:
    """(d, 1, 3, 3) as (9, d)."""
    return weight.flatten(1).t().contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """y (b, h, w, d) in x's dtype."""
    b, h, w, d = x.shape
    if d % compiler.lanes():
        return portable.forward(x, weight, bias, save)
    x_rows, y = rows(x), empty(*x.shape)
    _pointwise(compiler.lanes(), False).launch(
        b * h,
        x=x_rows,
        weight=_table(weight),
        bias=bias.contiguous(),
        out=y,
        height=h,
        width=w,
        channels=d,
        x_stride=x_rows.stride(0),
    )
    return y.to(x.dtype), weight.new_empty(0)


def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, in its dtype, of weight and of bias."""
    b, h, w, d = x.shape
    if d % compiler.lanes():
        return portable.backward(dy, x, weight, bias, kept)
    x_rows, dy_rows, table, bands = rows(x), rows(dy), _table(weight), -(-h // _BAND)
    dv, dx, dweight, dbias = empty(*x.shape), empty(*x.shape), empty(b * bands, 9, d), empty(b * bands, d)
    sizes = {"height": h, "width": w, "channels": d, "x_stride": x_rows.stride(0)}
    _pointwise(compiler.lanes(), True).launch(
        b * h, x=x_rows, weight=table, bias=bias.contiguous(), dy=dy_rows, out=dv, dy_stride=dy_rows.stride(0), **sizes
    )
    _gradients(compiler.lanes()).launch(
        b * bands, x=x_rows, dv=dv, weight=table, dx=dx, dweight=dweight, dbias=dbias, bands=bands, **sizes
    )
    return dx.to(x.dtype), dweight.sum(0).t().reshape(weight.shape), dbias.sum(0)
