"""The squeeze-and-excitation gate on a CPU: sums over positions in one pass each.

    p = mean over positions of x    g = scale * sigmoid(excite . relu(squeeze . p))    y = x * g
    dg = sum over positions of dy x

Forward reads x twice and writes y, of a small map in one launch; backward reads x once, dy twice
and writes dx. Kept for backward: p and g, (b, c) each.
Other tensors of (b, c) are left to PyTorch, and so is a width that is no multiple of the
processor's lanes.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels._cpu import compiler
from medmambase_kernels._cpu.capture import Capture
from medmambase_kernels._cpu.compiler import Program, compiled, empty, rows
from medmambase_kernels._cpu.language import Kernel
from medmambase_kernels._cpu.numerics import sigmoid
from medmambase_kernels._torch import squeeze_excite as portable

# Numbers of a map up to which one thread for each image, in one launch, is faster than all threads
# in several operations
_SMALL = 1 << 19
_BAND = 256  # positions of a task, whose sums are added in the order of the tasks


@functools.cache
def _sums(lanes: int, products: bool, relu: bool) -> Program:
    """Sums of x, or of x dy or relu(x) dy, over the bands of each image: (b, bands, c)."""
    kernel = Kernel(
        "sums_of_products" + "_of_relu" * relu if products else "sums",
        ("x", "dy", "out"),
        ("positions", "channels", "bands", "x_stride", "dy_stride"),
        lanes,
    )
    x, dy, out = kernel.pointers("x", "dy", "out")
    positions, channels, bands, x_stride, dy_stride = kernel.sizes(
        "positions", "channels", "bands", "x_stride", "dy_stride"
    )
    with kernel.tasks() as task:
        first = task % bands * _BAND
        start, sums = task // bands * positions, out.at(task * channels)
        with kernel.range(0, channels, kernel.lanes) as c:
            sums.store(c, 0.0)
        with kernel.range(start + first, start + kernel.smaller(first + _BAND, positions)) as row:
            x_row, dy_row = x.at(row * x_stride), dy.at(row * dy_stride)
            with kernel.range(0, channels, kernel.lanes) as c:
                given = kernel.at_least(0.0, x_row.load(c)) if relu else x_row.load(c)
                sums.store(c, given * dy_row.load(c) + sums.load(c) if products else given + sums.load(c))
    return compiled(kernel)


def kept_shape(
    x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, second: Tensor | None, factor: Tensor | None
) -> tuple[int, ...]:
    """Shape of the pooled means and the gates, (2, b, c)."""
    return (2, x.shape[0], squeeze.shape[1])


def _in_vectors(x: Tensor) -> bool:
    return x.numel() > 0 and x.shape[3] % compiler.lanes() == 0


def _over_positions(x: Tensor, dy: Tensor | None, relu: bool = False) -> Tensor:
    """Sum over positions of x, or of x dy, with ``relu`` of relu(x) dy: (b, c) in float32."""
    b, h, w, c = x.shape
    bands = -(-h * w // _BAND)
    x_rows, dy_rows = rows(x), rows(x if dy is None else dy)
    out = empty(b, bands, c)
    _sums(compiler.lanes(), dy is not None, relu).launch(
        b * bands,
        x=x_rows,
        dy=dy_rows,
        out=out,
        positions=h * w,
        channels=c,
        bands=bands,
        x_stride=x_rows.stride(0),
        dy_stride=dy_rows.stride(0),
    )
    return out.sum(1)


@functools.cache
def _gate(lanes: int) -> Program:
    """All of forward for an image: means, gate, product. ``excite`` is (hidden, c)."""
    kernel = Kernel(
        "gate", ("x", "squeeze", "excite", "numbers", "out", "pooled", "gate"),
        ("positions", "channels", "hidden", "x_stride"), lanes
    )  # fmt: skip  # pointers, sizes
    x, squeeze, excite, numbers, out, pooled, gate = kernel.pointers(*kernel.arguments[:7])
    positions, channels, hidden, x_stride = kernel.sizes("positions", "channels", "hidden", "x_stride")
    with kernel.tasks() as image:
        means, factors = pooled.at(image * channels), gate.at(image * channels)
        first, last = image * positions, (image + 1) * positions
        with kernel.range(0, channels, lanes) as c:
            sums = kernel.variable(kernel.constant(0.0))
            with kernel.range(first, last) as row:
                sums.value = sums.value + x.load(row * x_stride + c)
            means.store(c, sums.value * numbers.number(0))
            factors.store(c, 0.0)
        with kernel.range(0, hidden) as j:
            dot = kernel.variable(kernel.constant(0.0))
            with kernel.range(0, channels, lanes) as c:
                dot.value = means.load(c) * squeeze.load(j * channels + c) + dot.value
            unit = kernel.at_least(0.0, kernel.total(dot.value))
            with kernel.range(0, channels, lanes) as c:
                factors.store(c, unit * excite.load(j * channels + c) + factors.load(c))
        with kernel.range(0, channels, lanes) as c:
            factor = numbers.number(1) * sigmoid(kernel, factors.load(c))
            factors.store(c, factor)
            with kernel.range(first, last) as row:
                out.store(row * channels + c, x.load(row * x_stride + c) * factor)
    return compiled(kernel)


def _added(residual: Tensor, gated: Tensor) -> Tensor:
    """residual plus the gated map with its channels shuffled, in residual's dtype."""
    pairs, capture = portable.interleaved(gated), Capture.current()
    if capture is not None and residual.dtype == torch.float32:
        return capture.call(torch.add, tuple(pairs.shape), residual.unflatten(-1, (-1, 2)), pairs).flatten(-2)
    return (residual.unflatten(-1, (-1, 2)) + pairs).flatten(-2).to(residual.dtype)


def _joined(x: Tensor, second: Tensor, factor: Tensor | None) -> Tensor:
    """Both halves of the channels side by side, each finished, in float32."""
    b, h, w, c = x.shape
    whole = empty(b, h, w, 2 * c)
    left, right = whole.chunk(2, -1)
    torch.clamp_min(x.float(), 0.0, out=left)
    torch.mul(second, 1.0 if factor is None else factor.float()[:, None, None, None], out=right)
    return whole


def forward(
    x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, second: Tensor | None, factor: Tensor | None,
    scale: float, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip  # in the operator's order
    """y (b, h, w, c) and, if ``save``, the pooled means and the gate in float32."""
    if not _in_vectors(x):
        return portable.forward(x, squeeze, excite, residual, second, factor, scale, save)
    x = x if second is None else _joined(x, second, factor)
    (b, h, w, c), hidden = x.shape, len(squeeze)
    if h * w * c <= _SMALL:
        x_rows, out, kept = rows(x), empty(*x.shape), empty(2, b, c)
        numbers = torch.tensor([1 / (h * w), scale], dtype=torch.float32, device="cpu")
        _gate(compiler.lanes()).launch(
            b, x=x_rows, squeeze=squeeze.float().contiguous(), excite=excite.float().t().contiguous(), numbers=numbers,
            out=out, pooled=kept[0], gate=kept[1], positions=h * w, channels=c, hidden=hidden,
            x_stride=x_rows.stride(0),
        )  # fmt: skip  # as in the kernel
        y = out.to(x.dtype) if residual is None else _added(residual, out)
        return y, kept if save else kept.new_empty(0)
    pooled = _over_positions(x, None) / (h * w)
    gate = scale * torch.sigmoid(F.relu(pooled @ squeeze.t()) @ excite.t())
    kept = torch.stack((pooled, gate)) if save else pooled.new_empty(0)
    gated = x * gate[:, None, None]
    return gated.to(x.dtype) if residual is None else _added(residual, gated), kept


def backward(
    dy: Tensor, x: Tensor, squeeze: Tensor, excite: Tensor, residual: Tensor | None, second: Tensor | None,
    factor: Tensor | None, scale: float, kept: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip  # in the operator's order
    """Gradients of x, squeeze, excite and second."""
    dy = dy if residual is None else portable.deinterleaved(dy)
    if not _in_vectors(x):
        dgate = (dy.float() * portable.joined(x, second, factor)).sum((1, 2))
    elif second is None:
        dgate = _over_positions(x, dy)
    else:
        left, right = dy.chunk(2, -1)
        of_second = _over_positions(second, right)
        of_second = of_second if factor is None else of_second * factor[:, None]
        dgate = torch.cat([_over_positions(x, left, relu=True), of_second], 1)
    return portable.back_from_gate(dgate, dy, x, squeeze, excite, second, factor, scale, kept)
