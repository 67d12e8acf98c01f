"""The sizes at which kernels begin another block, the places in memory that tensors may have, and
the numbers that operators may be given: what ``kernels/test_boundaries.py`` walks, besides the
small samples of ``operators.py``.

A new block size is a line of BOUNDARIES, or, where it decides no result, of NO_BOUNDARIES: a test
finds it in the source and asks for one. A further Triton file is a line of WALKED.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
import torch
from operators import (
    OPERATORS,
    Sample,
    constants,
    convolution,
    gate,
    groups_and_all,
    halves_gate,
    image,
    norm,
    one_group,
    sequence,
)
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from medmambase.model.batch_norm import BatchNorm
from medmambase_kernels import gated_norm, squeeze_excite, use_backend
from medmambase_kernels._cpu import compiler, conv2d
from medmambase_kernels.inference import FrozenConv2d, FrozenLayerNorm


def frozen_norm(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str) -> Tensor:
    """A layer for prediction alone, without gradients; its definition is torch's own in float64."""
    if backend == "reference":
        return F.layer_norm(x.double(), weight.shape, weight.double(), bias.double()).detach()
    layer = nn.LayerNorm(len(weight))
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    with use_backend(backend):
        return FrozenLayerNorm(layer)(x)


def frozen_convolution(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str) -> Tensor:
    """The same of a convolution: x (b, h, w, inputs)."""
    if backend == "reference":
        planes = F.conv2d(x.double().movedim(3, 1), weight.double(), bias.double(), padding=weight.shape[2] // 2)
        return planes.movedim(1, 3).detach()
    with use_backend(backend):
        return FrozenConv2d(weight, bias)(x)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str) -> Tensor:
    """A BatchNorm in training and its ReLU, no operator but with gradients: x (b, h, w, c)."""
    planes = x.movedim(3, 1)
    if backend == "reference":
        return F.batch_norm(planes.double(), None, None, weight.double(), bias.double(), True).relu().movedim(1, 3)
    weights = {"weight": weight, "bias": bias}
    with use_backend(backend):
        y: Tensor = functional_call(BatchNorm(len(weight)), weights, (planes,), {"rectified": True})
    return y.movedim(1, 3)


def normed_product(
    left: Tensor, right: Tensor, z: Tensor, parts: Tensor, weight: Tensor, bias: Tensor, W: Tensor, *, backend: str
) -> Tensor:
    """What small maps have in prediction alone: the right half normalised and multiplied beside the
    left one scaled and shifted, and the same of a sum of parts with a gate; in one tensor."""
    x = torch.cat([left, right], -1)
    if backend == "reference":
        norms = (F.layer_norm(t.double(), weight.shape, weight.double(), bias.double()) for t in (right, parts.sum(0)))
        plain, normed = norms
        scaled = left.double() * weight + bias
        return torch.cat([scaled, plain @ W.double().t(), normed * F.silu(z.double()) @ W.double().t()], -1).detach()
    kernels = import_module(f"medmambase_kernels._{backend}.normed_product")
    x, z, parts, W = (t.detach() for t in (x, z, parts.contiguous(), W))
    norm = weight.detach(), bias.detach(), 1e-5
    scaled, plain = kernels.halves(x, norm, W, *norm[:2], torch.float32)
    return torch.cat([scaled, plain, kernels.gated(parts, z, norm, W, torch.float32)], -1)


def batch(count: int, c: int = 3) -> list[Tensor]:
    return [torch.randn(1, count, 1, c), torch.randn(c), torch.randn(c)]


def products(count: int, d: int = 5, n: int = 3) -> list[Tensor]:
    maps = [torch.randn(1, count, 1, d) for _ in range(3)]
    return [*maps, torch.randn(3, 1, count, 1, d), torch.randn(d), torch.randn(d), torch.randn(n, d)]


def row_norm(count: int) -> list[Tensor]:
    return [torch.randn(1, count, 1, 16), torch.randn(16), torch.randn(16)]


def dense(count: int, outputs: int, side: int = 1) -> list[Tensor]:
    return [torch.randn(1, count, 1, 5), torch.randn(outputs, 5, side, side), torch.randn(outputs)]


LAYERS = {
    "frozen norm": Sample("", frozen_norm, lambda b, l: row_norm(l)),
    "frozen convolution": Sample("", frozen_convolution, lambda b, l: dense(l, 16)),
    "batch norm": Sample("", batch_norm, lambda b, l: batch(l), 4.0),
    "normed product": Sample("", normed_product, lambda b, l: products(l)),
}


@dataclass(frozen=True)
class Boundary:
    """A size at which a kernel begins another block, band, strip, cut or chunk of so many.

    place: of the constant, as "_cpu/gated_norm.py _BAND"; with "[BL]" of an entry. sample: in
    OPERATORS or LAYERS. tensors: makes them for a size, which is counted in the constant's units.
    unit: how many of the constant make 1 of the size. at: takes the constant where it is no number.
    instead: numbers that other constants, or this one, have in the test, where their own would take
    too long or lead another way.
    """

    place: str
    sample: str
    tensors: Callable[[int], list[Tensor]]
    unit: int = 1
    at: Callable[[Any], int] = int
    instead: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.place} {self.sample}".replace(" ", "-")

    @property
    def backend(self) -> str:
        return self.place[1:].partition("/")[0]

    def sizes(self) -> tuple[int, ...]:
        """One below the boundary, at it, one above, and a part-filled one after several."""
        owner, name, key = parts(self.place)
        value = getattr(owner, name)
        size = self.at(value[key] if key else value) // self.unit
        return tuple(n for n in (size - 1, size, size + 1, 2 * size + max(1, size // 3)) if n)


def parts(place: str) -> tuple[Any, str, str]:
    """The module of a constant, its name, and the key of an entry."""
    file, _, name = place.partition(" ")
    name, _, key = name.rstrip("]").partition("[")
    return import_module(f"medmambase_kernels.{file.removesuffix('.py').replace('/', '.')}"), name, key


def of_lanes(lanes: Callable[[], int]) -> int:
    return lanes()


GATE, NORM, CONVOLUTION = "squeeze_excite.py", "gated_norm.py", "depthwise_silu.py"
SMALL, LANES = f"_cpu/{GATE} _SMALL", compiler.lanes()
TILES = conv2d._TILES[LANES]
TRITON_NORM, CHUNK, BUDGET = (
    f"_triton/{NORM} _tile",
    "_torch/selective_scan.py CHUNK",
    "_torch/selective_scan.py BUDGET",
)
CAUSAL = "causal_conv1d.py"
ALONE, BATCHES, PRODUCT = (f"_triton/{name}.py" for name in ("squeeze_excite_image", "batch_norm", "normed_product"))
LONE = f"{ALONE} _MOST"
STENCIL, SLOPE = (f"_triton/{CONVOLUTION} {name}" for name in ("_STENCIL", "_SLOPE"))

BOUNDARIES = (
    # The processor: positions and rows of a task.
    Boundary(f"_cpu/{CAUSAL} _BAND", "causal convolution", lambda n: sequence(1, 5, d=n)),
    Boundary("_cpu/compiler.py lanes", "causal convolution", lambda n: sequence(1, n), at=of_lanes),
    Boundary(f"_cpu/{GATE} _BAND", "gate in lanes", lambda n: gate(2, n, w=1, c=16)),
    Boundary(f"_cpu/{GATE} _BAND", "gate in lanes", lambda n: gate(2, n, w=1, c=16), instead={SMALL: 0}),
    Boundary(SMALL, "gate in lanes", lambda n: gate(1, n, w=1, c=16), unit=16),
    Boundary(f"_cpu/{NORM} _BAND", "norm in lanes", lambda n: norm(1, n, w=1)),
    Boundary(f"_cpu/{CONVOLUTION} _BAND", "convolution in lanes", lambda n: convolution(2, n)),
    Boundary("_cpu/layer_norm.py _BAND", "frozen norm", row_norm),
    Boundary("_cpu/conv2d.py _BAND", "frozen convolution", lambda n: dense(n, 16, side=3)),
    *(
        Boundary(
            "_cpu/conv2d.py _TILES", "frozen convolution", make, at=lambda tiles, i=i, size=size: size(tiles[LANES][i])
        )
        for i, (vectors, _) in enumerate(TILES)
        for size, make in (
            (lambda tile: tile[1], lambda n, v=vectors: dense(n, v * LANES, side=3)),
            (lambda tile: tile[0] * LANES, lambda n: dense(7, n)),
        )
    ),
    # Its scans: images and blocks of channels as tasks, steps of a chunk, states and ranks at once.
    Boundary("_cpu/scan.py _TASKS", "four directions", lambda n: image(n, 2, d=2 * LANES)),
    Boundary("_cpu/scan.py _TASKS", "scan", lambda n: one_group(n, 2, d=2 * LANES)),
    Boundary("_cpu/scan.py _TASKS", "four directions", lambda n: image(1, 2, d=n * LANES)),
    Boundary("_cpu/scan.py _TASKS", "scan", lambda n: one_group(1, 3, d=n * LANES)),
    Boundary("_cpu/scan.py _FORWARD_STATES", "scan", lambda n: one_group(1, 3, n=n)),
    Boundary("_cpu/scan.py _BACKWARD_STATES", "scan", lambda n: one_group(1, 3, n=n)),
    Boundary("_cpu/scan_forward.py CHUNK", "scan with all arguments", lambda n: groups_and_all(1, n)),
    Boundary("_cpu/scan_forward.py CHUNK", "scan with constant B and C", lambda n: constants(1, n)),
    Boundary("_cpu/scan_forward.py CHUNK", "four directions", lambda n: image(1, n, w=1)),
    Boundary("_cpu/scan_backward.py _RANKS", "four directions", lambda n: image(1, 2, r=n)),
    Boundary("_cpu/transpose.py _BAND", "scan", lambda n: one_group(1, n, d=LANES + 3, n=2)),
    # Its vectors, of channels.
    Boundary("_cpu/compiler.py lanes", "gate", lambda n: gate(1, 3, c=n), at=of_lanes),
    Boundary("_cpu/compiler.py lanes", "norm", lambda n: norm(1, 3, d=n), at=of_lanes),
    Boundary("_cpu/compiler.py lanes", "convolution", lambda n: convolution(1, 3, d=n), at=of_lanes),
    Boundary("_cpu/compiler.py lanes", "four directions", lambda n: image(1, 3, d=n), at=of_lanes),
    Boundary("_cpu/compiler.py lanes", "scan", lambda n: one_group(1, 5, d=n), at=of_lanes),
    # PyTorch's operations: steps of a chunk, and images of a slice.
    Boundary(CHUNK, "scan with all arguments", lambda n: groups_and_all(1, n)),
    Boundary(CHUNK, "four directions", lambda n: image(1, n, w=1)),
    Boundary(BUDGET, "scan", lambda n: one_group(n, 2), unit=24, instead={BUDGET: 3 * 24}),
    Boundary(BUDGET, "four directions", lambda n: image(n, 2, w=1), unit=96, instead={BUDGET: 3 * 96}),
    # The GPU: positions, channels and hidden units of a tile, and tiles of a strip.
    Boundary(f"_triton/{GATE} _TILE[BL]", "gate", lambda n: gate(1, n, w=1, c=3), instead={LONE: 0}),
    Boundary(f"_triton/{GATE} _TILE[BC]", "gate", lambda n: gate(1, 2, c=n), instead={LONE: 0}),
    Boundary(f"_triton/{GATE} _ROWS", "gate", lambda n: gate(1, 2, c=3, hidden=n), instead={LONE: 0}),
    Boundary(f"_triton/{GATE} _ROWS", "gate", lambda n: gate(1, 2, c=3, hidden=n)),
    Boundary(LONE, "gate of two halves", lambda n: halves_gate(1, n), unit=16, instead={LONE: 64}),
    Boundary(
        f"{ALONE} _NUMBERS",
        "gate of two halves",
        lambda n: halves_gate(1, n),
        unit=16,
        instead={f"{ALONE} _NUMBERS": 64},
    ),
    Boundary(f"{ALONE} _NUMBERS", "gate", lambda n: gate(1, 2, c=n), instead={f"{ALONE} _NUMBERS": 8}),
    Boundary(f"{BATCHES} _MOST_ROWS", "batch norm", batch, instead={f"{BATCHES} _MOST_ROWS": 16}),
    Boundary(f"{BATCHES} _CHANNELS", "batch norm", lambda n: batch(5, n)),
    Boundary(f"{PRODUCT} _TILE[BM]", "normed product", products),
    Boundary(f"{PRODUCT} _TILE[BN]", "normed product", lambda n: products(2, n=n)),
    Boundary(f"{PRODUCT} _TILE[BK]", "normed product", lambda n: products(2, n)),
    Boundary(
        f"_triton/{NORM} _STRIPS", "norm", lambda n: norm(1, n, w=1, d=600), instead={f"_triton/{NORM} _STRIPS": 3}
    ),
    Boundary(TRITON_NORM, "norm", lambda n: norm(1, n, w=1), at=lambda tile: tile(16)["ROWS"]),
    Boundary(TRITON_NORM, "norm", lambda n: norm(1, 2, d=n), at=lambda tile: tile(16)["D"]),
    Boundary(f"{STENCIL}[BL]", "convolution", lambda n: convolution(1, n, w=1, d=3)),
    Boundary(f"{STENCIL}[BD]", "convolution", lambda n: convolution(1, 2, d=n)),
    Boundary(f"{SLOPE}[BL]", "convolution", lambda n: convolution(1, n, w=1, d=3)),
    Boundary(f"{SLOPE}[BD]", "convolution", lambda n: convolution(1, 2, d=n)),
    Boundary(f"_triton/{CAUSAL} _TILE[BD]", "causal convolution", lambda n: sequence(1, 2, d=n)),
    Boundary(f"_triton/{CAUSAL} _TILE[BL]", "causal convolution", lambda n: sequence(1, n, d=2)),
    Boundary(
        f"_triton/{CAUSAL} _PROGRAMS",
        "causal convolution",
        lambda n: sequence(1, 32 * n, d=2),
        instead={f"_triton/{CAUSAL} _PROGRAMS": 2},
    ),
    Boundary(
        f"_triton/{CONVOLUTION} _PROGRAMS",
        "convolution",
        lambda n: convolution(1, 16 * n, w=1, d=3),
        instead={f"_triton/{CONVOLUTION} _PROGRAMS": 3},
    ),
)
every_boundary = pytest.mark.parametrize("boundary", BOUNDARIES, ids=str)

# The files whose constants must stand above, or here with the reason why they bound nothing. The
# Triton kernels of the two scans are walked by tests of their own, which force each launch.
WALKED = (
    "_cpu/*.py",
    "_torch/*.py",
    f"_triton/{GATE}",
    ALONE,
    BATCHES,
    PRODUCT,
    f"_triton/{NORM}",
    f"_triton/{CONVOLUTION}",
    f"_triton/{CAUSAL}",
)
NO_BOUNDARIES = {
    f"{PRODUCT} _WIDEST": "wider rows are left to others",
    f"{PRODUCT} _MOST": "larger maps are left to others",
    "*[[]num_warps]": "warps share out a block, whatever its size",
    "*[[]maxnreg]": "the assembler keeps in memory what its registers do not hold",
    "*.py _REGISTERS": "the assembler keeps in memory what its registers do not hold",
    "_cpu/compiler.py _*": "where scratch memory begins, pages of the system, and places in a list",
    "_cpu/conv2d.py _AHEAD": "weights are only fetched so far ahead",
    "_cpu/language.py *": "places in a table, and the lanes of one kind of processor",
    "_cpu/numerics.py *": "coefficients of functions",
    "_cpu/values.py *": "types of numbers, and their bytes",
}


def between(t: Tensor, i: int) -> Tensor:
    """The same numbers between others: rows are wider by another number for each tensor, and what
    lies there is no number."""
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 3 + i), float("nan"), dtype=t.dtype, device=t.device)
    return wide[..., 1 : 1 + t.shape[-1]].copy_(t)


def every_other(t: Tensor, i: int) -> Tensor:
    """The same numbers, of every second or later entry of the first axis."""
    wide = torch.full(((2 + i) * t.shape[0], *t.shape[1:]), float("nan"), dtype=t.dtype, device=t.device)
    return wide[:: 2 + i].copy_(t)


def backwards(t: Tensor, i: int) -> Tensor:
    """The same numbers with the first axis innermost in memory."""
    return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))


def alike(t: Tensor, i: int) -> Tensor:
    """The same numbers at every entry of the first axis, as a broadcast leaves them."""
    return t[:1].expand_as(t)


LAYOUTS = (between, every_other, backwards, alike)


@dataclass(frozen=True)
class Scalar:
    """A number that an operator takes: extreme values, and tensors for which they matter."""

    function: Callable[..., Tensor]
    values: tuple[float, ...]
    tensors: Callable[[float], list[Tensor]]


def spread(eps: float) -> list[Tensor]:
    """Rows whose variance is about eps, so that it counts as much as they do."""
    y, *others = norm(1, 5)
    return [y * eps**0.5, *others]


SCALARS = {
    "gated_norm eps": Scalar(
        lambda *t, value, backend: gated_norm(*t, value, backend=backend), (1e-30, 1e-12, 1e-7, 1.0, 1e12), spread
    ),
    "squeeze_excite scale": Scalar(
        lambda *t, value, backend: squeeze_excite(*t, scale=value, backend=backend), (1e-30, 1e-6, 1e6, 1e30),
        lambda value: OPERATORS["gate in lanes"].tensors(2, 3),
    ),
}  # fmt: skip  # a table
