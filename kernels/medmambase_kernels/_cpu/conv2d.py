"""Convolve with frozen weights of 1 x 1 and 3 x 3 on a CPU, for the few positions of one image:
output channels are lanes.

    out = relu(bias + sum over taps and input channels of weight * x) + add      relu and add where
    asked for; zeros lie around the map

A task is a block of output channels at a band of positions. A few positions times a few vectors of
output channels are summed in registers: every weight loaded meets every position, every number of x
every vector. Weights are laid out once, in the order in which they are read, so that they come from
memory as one stream. x, add and out may be halves of maps, read and written in their places.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels._cpu import compiler
from medmambase_kernels._cpu.capture import Capture
from medmambase_kernels._cpu.compiler import Program, compiled, empty, rows
from medmambase_kernels._cpu.language import Kernel

_AHEAD = 32  # input channels whose weights are on their way from main memory
_BAND = 48  # positions of a task
# (vectors of output channels, positions) whose sums fill the registers, of which AVX-512 has 32 and
# others 16, with room for weights and a number.
_TILES = {16: ((3, 8), (4, 6), (2, 12), (1, 16)), 8: ((3, 4), (2, 6), (1, 8)), 4: ((3, 4), (2, 6), (1, 8))}


def lanes() -> int:
    """Float32 lanes of the vectors that weights are laid out for."""
    return compiler.lanes()


@dataclass(frozen=True)
class Packed:
    """Weights as the kernel reads them: (blocks, taps, inputs, vectors * lanes), zeros in what is
    more than ``outputs``; bias (blocks * vectors * lanes)."""

    weight: Tensor
    bias: Tensor
    outputs: int
    vectors: int
    positions: int


def pack(weight: Tensor, bias: Tensor | None) -> Packed:
    """Lay out the weight (outputs, inputs, 3, 3) or (outputs, inputs, 1, 1) of a convolution and
    its bias (outputs)."""
    outputs, inputs, height, width = weight.shape
    count = -(-outputs // lanes())
    vectors, positions = min(
        _TILES[lanes()], key=lambda tile: -(-count // tile[0]) * tile[0]
    )  # the least that is zeros; of equals the first
    blocks = -(-count // vectors)
    wide = torch.zeros(blocks * vectors * lanes(), inputs, height * width, dtype=torch.float32, device="cpu")
    wide[:outputs] = weight.detach().flatten(2)
    shift = torch.zeros(len(wide), dtype=torch.float32, device="cpu")
    if bias is not None:
        shift[:outputs] = bias.detach()
    laid_out = wide.unflatten(0, (blocks, -1)).permute(0, 3, 2, 1)
    return Packed(empty(*laid_out.shape).copy_(laid_out), shift, outputs, vectors, positions)


@functools.cache
def _convolve(lanes: int, vectors: int, positions: int, around: bool, relu: bool, adds: bool) -> Program:
    kernel = Kernel(
        "convolve", ("x", "weight", "bias", "add", "out"),
        ("height", "width", "inputs", "bands", "count", "x_stride", "add_stride", "out_stride"), lanes,
    )  # fmt: skip  # pointers, sizes
    x, weight, bias, add, out = kernel.pointers("x", "weight", "bias", "add", "out")
    height, width, inputs, bands, count, x_stride, add_stride, out_stride = kernel.sizes(*kernel.arguments[5:])
    tile, taps = range(vectors), [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)] if around else [(0, 0)]
    nothing = kernel.rest()  # a position outside the map
    with kernel.range(0, inputs if around else 0, lanes) as i:
        nothing.store(i, 0.0)
    with kernel.tasks() as task:
        channel, first = task // bands * (vectors * lanes), task % bands * _BAND
        with kernel.range(first, kernel.smaller(first + _BAND, count), positions) as start:
            places = [
                kernel.smaller(start + p, count - 1) for p in range(positions)
            ]  # what lies beyond the last is the last once more
            sums = [[kernel.variable(bias.load(channel + v * lanes)) for v in tile] for _ in places]
            for tap, (down, right) in enumerate(taps):
                sources = [x.at((place + (width * down + right)) * x_stride) for place in places]
                for p, place in enumerate(places if around else []):
                    i, j = place // width % height + down, place % width + right
                    inside = kernel.both(kernel.both(i > -1, i < height), kernel.both(j > -1, j < width))
                    sources[p] = kernel.choose(inside, sources[p], nothing)
                of_tap = weight.at((channel * len(taps) + tap * (vectors * lanes)) * inputs)
                with kernel.range(0, inputs) as i:
                    for v in tile:
                        of_tap.fetch((i + _AHEAD) * (vectors * lanes) + v * lanes)
                    weights = [of_tap.load(i * (vectors * lanes) + v * lanes) for v in tile]
                    for source, row in zip(sources, sums, strict=True):
                        number = source.number(i)
                        for v in tile:
                            row[v].value = weights[v] * number + row[v].value
            for place, row in zip(places, sums, strict=True):
                for v in tile:
                    value = kernel.at_least(0.0, row[v].value) if relu else row[v].value
                    here = channel + v * lanes
                    out.store(place * out_stride + here, add.load(place * add_stride + here) + value if adds else value)
    return compiled(kernel)


def convolve(x: Tensor, packed: Packed, relu: bool, add: Tensor | None, out: Tensor | None) -> Tensor:
    """x (b, h, w, inputs), float32 -> (b, h, w, outputs): into ``out``, which overlaps neither x
    nor add, or into new memory.

    The result, or ``add``, may be a view of wider rows. Where the outputs do not fill the vectors,
    new rows are a little wider.
    """
    b, h, w, inputs = x.shape
    full, around = len(packed.bias), packed.weight.shape[1] > 1
    odd = full > packed.outputs
    if odd and Capture.current() is not None and (add is not None or out is not None):
        raise ValueError(
            f"add or out has {packed.outputs} channels; while a Capture is open they must fill vectors of "
            f"{compiler.lanes()} channels: give a multiple of it"
        )
    wide = empty(b, h, w, full) if odd or out is None else out
    plus = F.pad(add, (0, full - packed.outputs)) if odd and add is not None else add
    x_rows, out_rows, add_rows = rows(x), wide.flatten(0, 2), None if plus is None else rows(plus)
    bands = -(-b * h * w // _BAND)
    _convolve(compiler.lanes(), packed.vectors, packed.positions, around, relu, plus is not None).launch(
        len(packed.weight) * bands, inputs + compiler.lanes() if around else 0, x=x_rows, weight=packed.weight,
        bias=packed.bias, add=add_rows, out=out_rows, height=h, width=w, inputs=inputs, bands=bands, count=b * h * w,
        x_stride=x_rows.stride(0), add_stride=0 if add_rows is None else add_rows.stride(0),
        out_stride=out_rows.stride(0),
    )  # fmt: skip  # as in the kernel
    result = wide[..., : packed.outputs]
    return result if out is None or wide is out else out.copy_(result)
