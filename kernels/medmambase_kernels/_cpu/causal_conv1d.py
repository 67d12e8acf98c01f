"""The causal convolution and SiLU on a CPU: steps side by side in a vector, a row of a channel at a
time.

    v_l = bias + sum over taps i of weight_i x_{l - w + 1 + i}    s = sigmoid(v)    y = v s
    dv = dy s (1 + v (1 - s))    dx_l = sum over i of weight_i dv_{l + w - 1 - i}
    dweight_i = sum over l of dv_l x_{l - w + 1 + i}    dbias = sum of dv

A thread copies its row into scratch memory behind what stands before it: there every tap is one
unaligned load, and no load leaves the row. Backward makes v anew, and nothing is kept for it; a row
leaves sums of its own for the weights, which are added in their order.
"""

import functools

from torch import Tensor

from medmambase_kernels._cpu import compiler
from medmambase_kernels._cpu.compiler import Program, compiled, empty
from medmambase_kernels._cpu.language import Kernel
from medmambase_kernels._cpu.numerics import sigmoid
from medmambase_kernels._cpu.transpose import transpose
from medmambase_kernels._cpu.values import Pointer, Value

_BAND = 4  # rows of a task


def kept_shape(x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor | None) -> tuple[int, ...]:
    """Nothing."""
    return (0,)


def _copy(kernel: Kernel, source: Pointer, place: Pointer, length: Value, whole: Value) -> None:
    """A row of so many numbers, of which ``whole`` fill vectors."""
    with kernel.range(0, whole, kernel.lanes) as j:
        place.store(j, source.load(j))
    with kernel.range(whole, length) as j:
        place.store_number(j, source.number(j))


def _zeros(kernel: Kernel, place: Pointer, first: Value | int, last: Value) -> None:
    with kernel.range(first, last) as j:
        place.store_number(j, kernel.number(0.0))


def _sum(weights: list[Value], values: list[Value], first: Value | None = None) -> Value:
    total = first
    for weight, value in zip(weights, values, strict=True):
        total = weight * value if total is None else weight * value + total
    assert total is not None
    return total


@functools.cache
def _kernel(lanes: int, taps: int, silu: bool, backward: bool) -> Program:
    """y; or backward, for dy, dx behind the gradients of what stands before it, and of each row
    dweight and dbias."""
    results = ("dframed", "dweight", "dbias") if backward else ("y",)
    kernel = Kernel(
        "causal_conv1d_back" if backward else "causal_conv1d",
        ("x", "weight", "bias", "initial", *(("dy",) if backward else ()), *results),
        ("rows", "channels", "length", "given"),
        lanes,
    )
    x, weight, bias, initial = kernel.pointers("x", "weight", "bias", "initial")
    rows, channels, length, given = kernel.sizes("rows", "channels", "length", "given")
    before = taps - 1
    whole = length // lanes * lanes
    span = whole + 2 * lanes + 2 * before  # floats of a framed row, and of one with zeros on both sides
    with kernel.tasks() as task, kernel.range(task * _BAND, kernel.smaller(task * _BAND + _BAND, rows)) as row:
        framed = kernel.rest()
        channel = row % channels
        with kernel.range(0, given * before) as j:
            framed.store_number(j, initial.number(row * before + j))
        _zeros(kernel, framed, given * before, kernel.constant_index(before))
        _copy(kernel, x.at(row * length), framed.at(before), length, whole)
        _zeros(kernel, framed, length + before, span)
        of_taps = [weight.number(channel * taps + tap) for tap in range(taps)]

        def slope(j: Value, dy: Value | None) -> Value:
            """y at j and the steps after it; or dv, for dy."""
            v = _sum(
                of_taps, [framed.load(j + tap) for tap in range(taps)], kernel.constant(1.0) * bias.number(channel)
            )
            if not silu:
                return v if dy is None else dy
            s = sigmoid(kernel, v)
            return v * s if dy is None else dy * (s + v * s * (1.0 - s))

        dv = framed.at(span)  # from here on: dv between zeros, or the last steps of y
        if not backward:
            (y,) = kernel.pointers("y")
            out = y.at(row * length)
            with kernel.range(0, whole, lanes) as j:
                out.store(j, slope(j, None))
            with kernel.range(whole, length, lanes) as j:
                dv.store(0, slope(j, None))
            with kernel.range(whole, length) as j:
                out.store_number(j, dv.number(j - whole))
        else:
            dy, dframed, dweight, dbias = kernel.pointers("dy", *results)
            _zeros(kernel, dv, 0, kernel.constant_index(before))
            of_dv = dv.at(before)
            _copy(kernel, dy.at(row * length), of_dv, length, whole)
            with kernel.range(0, length, lanes) as j:
                of_dv.store(j, slope(j, of_dv.load(j)))
            _zeros(kernel, of_dv, length, whole + 2 * lanes + before)
            sums = [kernel.variable(kernel.constant(0.0)) for _ in range(taps + 1)]
            rest = [kernel.variable(kernel.number(0.0)) for _ in range(taps + 1)]
            with kernel.range(0, whole, lanes) as j:
                here = of_dv.load(j)
                for tap in range(taps):
                    sums[tap].value = here * framed.load(j + tap) + sums[tap].value
                sums[taps].value = here + sums[taps].value
            with kernel.range(whole, length) as j:
                number = of_dv.number(j)
                for tap in range(taps):
                    rest[tap].value = number * framed.number(j + tap) + rest[tap].value
                rest[taps].value = number + rest[taps].value
            totals = [kernel.total(a.value) + b.value for a, b in zip(sums, rest, strict=True)]
            for tap in range(taps):
                dweight.store_number(row * taps + tap, totals[tap])
            dbias.store_number(row, totals[taps])
            last = length + before
            out = dframed.at(row * last)
            turned = of_taps[::-1]  # place j of the framed row met tap i at step j - i
            with kernel.range(0, last // lanes * lanes, lanes) as j:
                out.store(j, _sum(turned, [dv.load(j + tap) for tap in range(taps)]))
            with kernel.range(last // lanes * lanes, last) as j:
                out.store_number(j, _sum(turned, [dv.number(j + tap) for tap in range(taps)]))
    return compiled(kernel)


def _rows(t: Tensor) -> Tensor:
    """(b, d, l) as float32 with its steps side by side."""
    wide = t.float()
    if wide.stride(2) == 1 or wide.stride(1) != 1:
        return wide.contiguous()
    b, d, l = t.shape
    return transpose(wide.transpose(1, 2), empty(b, d, l))  # channels lay side by side


def _launch(x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor | None, silu: bool, **more: Tensor) -> None:
    b, d, l = x.shape
    lanes, taps = compiler.lanes(), weight.shape[1]
    span = l // lanes * lanes + 2 * lanes + 2 * (taps - 1)
    _kernel(lanes, taps, silu, "dy" in more).launch(
        -(-b * d // _BAND),
        2 * span + 2 * lanes,
        x=_rows(x),
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        initial=None if initial_states is None else initial_states.contiguous(),
        rows=b * d,
        channels=d,
        length=l,
        given=int(initial_states is not None),
        **more,
    )


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor | None, silu: bool, save: bool
) -> tuple[Tensor, Tensor]:
    """y (b, d, l) in x's dtype, and an empty tensor. Arguments as in reference.py."""
    y = empty(*x.shape)
    if x.numel():
        _launch(x, weight, bias, initial_states, silu, y=y)
    return y.to(x.dtype), weight.new_empty(0)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_states: Tensor | None,
    silu: bool,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, in its dtype, weight, bias and initial_states, None where that is None."""
    (b, d, l), taps = x.shape, weight.shape[1]
    before = taps - 1
    if not x.numel():
        dinitial = None if initial_states is None else initial_states.new_zeros(initial_states.shape)
        return x.new_zeros(x.shape), weight.new_zeros(weight.shape), bias.new_zeros(bias.shape), dinitial
    dframed, dweight, dbias = empty(b, d, before + l), empty(b, d, taps), empty(b, d)
    _launch(x, weight, bias, initial_states, silu, dy=_rows(dy), dframed=dframed, dweight=dweight, dbias=dbias)
    dinitial = (
        None if initial_states is None else dframed[..., :before].clone()
    )  # results of one operator may not share memory
    return dframed[..., before:].to(x.dtype), dweight.sum(0), dbias.sum(0), dinitial
