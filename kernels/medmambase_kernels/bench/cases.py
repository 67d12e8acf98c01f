"""What medmambase-bench measures: one table of the operators, and their inputs at the stages of
``tiny``.

An operator is one entry of OPERATORS: sample inputs, the call, the same work as the original
MedMamba does it, and the least work that any program has to do.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels._mamba.causal_conv1d import causal_conv1d
from medmambase_kernels.bench import original as originals
from medmambase_kernels.bench.floors import Work, causal_work, convolution_work, gate_work, norm_work, scan_work
from medmambase_kernels.bench.original import Scan
from medmambase_kernels.depthwise_silu import depthwise_silu
from medmambase_kernels.gated_norm import gated_norm
from medmambase_kernels.selective_scan import selective_scan
from medmambase_kernels.selective_scan_2d import selective_scan_2d
from medmambase_kernels.squeeze_excite import squeeze_excite

SIZES = (128, 224)
CHANNELS = (96, 192, 384, 768)
STATE, DIRECTIONS = 16, 4
TAPS = 4  # of a causal convolution, as in Mamba

Draw = Callable[..., Tensor]  # normal numbers of a shape, float32, on the device
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """An operator over a map (b, h, w, d); ``selective_scan`` runs over the map's four directions
    as four groups of d channels, as MedMamba calls it, and ``causal_conv1d`` over the map's
    rows, one after the other.

    ``rank`` (columns that delta is projected from) and ``hidden`` (width of the gate) follow from
    the channels unless given.
    """

    operator: str
    batch: int
    height: int
    width: int
    channels: int
    dtype: torch.dtype
    stage: int = 0  # 1 to 4; 0 outside the stages of tiny
    state: int = STATE
    rank: int = 0
    hidden: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", self.rank or -(-self.channels // 32))
        object.__setattr__(self, "hidden", self.hidden or max(1, self.channels // 16))

    @property
    def elements(self) -> int:
        """Numbers in the map."""
        return self.batch * self.height * self.width * self.channels

    @property
    def rows(self) -> int:
        """Steps times channels that a scan takes, over all images and directions; 0 for operators
        that do not scan."""
        return DIRECTIONS * self.elements if OPERATORS[self.operator].scans else 0


@dataclass(frozen=True)
class Computation:
    """A differentiable function and the tensors it is called with, by name; all of them want
    gradients."""

    function: Callable[..., Tensor]
    named: Tensors

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The tensors, in order."""
        return tuple(self.named.values())

    def forward(self) -> Tensor:
        """Return the result, as in prediction."""
        with torch.no_grad():
            return self.function(*self.arguments)

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        """Return the result and the gradient of every argument, for the gradient dy of the
        result."""
        y = self.function(*self.arguments)
        return (y.detach(), *torch.autograd.grad(y, self.arguments, dy))


@dataclass(frozen=True)
class Operator:
    """How an operator is sampled, called, compared and counted.

    draw: makes tensors as a new network has them. call: the operator, of what ``prepare`` makes of
    those; ``backend`` by keyword. original: the same work as the original does it, of the scan and
    the drawn tensors; ``whole``: that work by our operator, where it is more than ``call``.
    channels_first: the original's map lies so in memory. work: the least that any program has to
    do, for bytes moved and with or without backward. result: the argument that the result is like.
    """

    draw: Callable[[Case, Draw], Tensors]
    call: Callable[..., Tensor]
    original: Callable[..., Tensor]
    work: Callable[[Case, float, bool], Work]
    result: str
    prepare: Callable[[Case, Tensors], Tensors] | None = None
    whole: Callable[..., Tensor] | None = None
    scans: bool = False
    channels_first: bool = False


def _scan_parameters(case: Case, draw: Draw) -> Tensors:
    k, d, n, r = DIRECTIONS, case.channels, case.state, case.rank
    made = {"x": draw(case.batch, case.height, case.width, d).to(case.dtype)}
    made |= {"x_proj": draw(k, r + 2 * n, d) / math.sqrt(d), "dt_weight": draw(k, d, r) / math.sqrt(r)}
    made["dt_bias"] = torch.sigmoid(draw(k, d)) * 4.65 - 6.9  # steps from 0.001 to 0.1
    A = -torch.arange(1.0, n + 1, device=made["x"].device).expand(k, d, n).clone()
    return made | {"A": A, "D": torch.ones_like(made["dt_bias"])}


def _project(x: Tensor, x_proj: Tensor) -> Tensor:
    return F.linear(x, x_proj.flatten(0, 1).to(x.dtype)).unflatten(-1, x_proj.shape[:2])


def _projected(case: Case, t: Tensors) -> Tensors:
    return {"x": t["x"], "x_dbl": _project(t["x"], t["x_proj"])} | {
        name: t[name] for name in ("dt_weight", "dt_bias", "A", "D")
    }


def _in_four_groups(case: Case, t: Tensors) -> Tensors:
    u = originals.four_directions(t["x"].permute(0, 3, 1, 2))
    projected = torch.einsum("bkdl,kcd->bkcl", u.float(), t["x_proj"])
    low, B, C = projected.to(case.dtype).split([case.rank, case.state, case.state], 2)
    delta = torch.einsum("bkrl,kdr->bkdl", low.float(), t["dt_weight"]).to(case.dtype)
    flat = {name: t[name].flatten(0, 1) for name in ("A", "D", "dt_bias")}
    return {"u": u.flatten(1, 2), "delta": delta.flatten(1, 2), "A": flat["A"], "B": B, "C": C, "D": flat["D"],
            "delta_bias": flat["dt_bias"]}  # fmt: skip  # in the operator's order


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, *, backend: str | None
) -> Tensor:
    y = selective_scan(u, delta, A, B, C, D, None, bias, True, backend=backend)
    assert isinstance(y, Tensor)  # no last state was asked for
    return y


def _scan_2d_of_map(x: Tensor, x_proj: Tensor, *rest: Tensor, backend: str | None) -> Tensor:
    return selective_scan_2d(x, _project(x, x_proj), *rest, out_dtype=torch.float32, backend=backend)


def _gate_weights(case: Case, draw: Draw) -> Tensors:
    d, hidden = case.channels, case.hidden
    x = draw(case.batch, case.height, case.width, d).to(case.dtype)
    return {"x": x, "squeeze": draw(hidden, d) / math.sqrt(d), "excite": draw(d, hidden) / math.sqrt(hidden)}


def _half_of_projection(case: Case, draw: Draw) -> Tensor:
    return draw(case.batch, case.height, case.width, 2 * case.channels).to(case.dtype)[..., case.channels :]


def _norm_inputs(case: Case, draw: Draw) -> Tensors:
    d = case.channels  # y is float32 whatever z is: a sum of scans leaves it only after the norm
    y, z = draw(case.batch, case.height, case.width, d), _half_of_projection(case, draw)
    return {"y": y, "z": z, "weight": 1 + 0.1 * draw(d), "bias": 0.1 * draw(d)}


def _convolution_inputs(case: Case, draw: Draw) -> Tensors:
    d = case.channels
    return {"x": _half_of_projection(case, draw), "weight": draw(d, 1, 3, 3) / 3, "bias": draw(d) / 3}


def _causal_inputs(case: Case, draw: Draw) -> Tensors:
    d, l = case.channels, case.height * case.width
    return {"x": draw(case.batch, 2 * d, l).to(case.dtype)[:, :d], "weight": draw(d, TAPS) / 2, "bias": draw(d) / 2}


def _causal(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None) -> Tensor:
    y = causal_conv1d(x, weight, bias, activation="silu", backend=backend)
    assert isinstance(y, Tensor)  # no final states were asked for
    return y


def _work_of_scan(case: Case, moved: float, backward: bool) -> Work:
    return scan_work(case.rows, case.state, moved, backward)


OPERATORS = {
    "selective_scan": Operator(
        draw=_scan_parameters,
        prepare=_in_four_groups,
        call=_scan,
        original=lambda scan, u, delta, A, B, C, D, bias: scan(u, delta, A, B, C, D, None, bias, True),
        work=_work_of_scan,
        result="u",
        scans=True,
    ),
    "selective_scan_2d": Operator(
        draw=_scan_parameters,
        prepare=_projected,
        call=lambda *tensors, backend: selective_scan_2d(*tensors, backend=backend),
        whole=_scan_2d_of_map,
        original=originals.original_scan_2d,
        work=_work_of_scan,
        result="x",
        scans=True,
        channels_first=True,
    ),
    "squeeze_excite": Operator(
        draw=_gate_weights,
        call=lambda *tensors, backend: squeeze_excite(*tensors, backend=backend),
        original=lambda scan, *tensors: originals.original_gate(*tensors),
        work=lambda case, moved, backward: gate_work(case.elements, moved, backward),
        result="x",
        channels_first=True,
    ),
    "gated_norm": Operator(
        draw=_norm_inputs,
        call=lambda *tensors, backend: gated_norm(*tensors, backend=backend),
        original=lambda scan, *tensors: originals.original_norm(*tensors),
        work=lambda case, moved, backward: norm_work(case.elements, moved, backward),
        result="z",
    ),
    "depthwise_silu": Operator(
        draw=_convolution_inputs,
        call=lambda *tensors, backend: depthwise_silu(*tensors, backend=backend),
        original=lambda scan, *tensors: originals.original_convolution(*tensors),
        work=lambda case, moved, backward: convolution_work(
            case.batch, case.height, case.width, case.channels, moved, backward
        ),
        result="x",
    ),
    "causal_conv1d": Operator(
        draw=_causal_inputs,
        call=_causal,
        original=lambda scan, *tensors: originals.original_causal(*tensors),
        work=lambda case, moved, backward: causal_work(
            case.batch, case.height * case.width, case.channels, TAPS, moved, backward
        ),
        result="x",
    ),
}


def cases(
    operators: Sequence[str],
    sizes: Sequence[int],
    stages: Sequence[int],
    batches: Sequence[int],
    dtypes: Sequence[torch.dtype],
) -> list[Case]:
    """List every operator at every stage (1 to 4) of ``tiny`` for square images of ``sizes``
    pixels."""
    return [
        Case(operator, batch, size // 2 ** (stage + 1), size // 2 ** (stage + 1), CHANNELS[stage - 1], dtype, stage)
        for operator in operators
        for dtype in dtypes
        for size in sizes
        for stage in stages
        for batch in batches
    ]


def reduced(operator: str, dtype: torch.dtype) -> list[Case]:
    """List the cases on which equality with the definition is shown: no size a power of two, a
    single chunk of steps and several, with a tail."""
    return [Case(operator, 2, 7, 5, 33, dtype), Case(operator, 1, 9, 11, 96, dtype)]


def _drawn(case: Case, device: torch.device) -> Tensors:
    g = torch.Generator().manual_seed(0)
    return OPERATORS[case.operator].draw(case, lambda *shape: torch.randn(shape, generator=g).to(device))


def _leaves(tensors: Tensors) -> Tensors:
    return {name: t.detach().requires_grad_() for name, t in tensors.items()}


def operator(case: Case, device: torch.device, backend: str | None = None) -> Computation:
    """Make the operator itself, on ``backend``."""
    entry, tensors = OPERATORS[case.operator], _drawn(case, device)
    if entry.prepare is not None:
        tensors = {name: t.contiguous() for name, t in entry.prepare(case, tensors).items()}
    return Computation(partial(entry.call, backend=backend), _leaves(tensors))


def from_projection(case: Case, device: torch.device, backend: str | None = None) -> Computation:
    """Make the work that ``original`` does by our operator: with the projection of x to x_dbl where
    the operator follows it."""
    whole = OPERATORS[case.operator].whole
    if whole is None:
        return operator(case, device, backend)
    return Computation(partial(whole, backend=backend), _leaves(_drawn(case, device)))


def original(case: Case, device: torch.device, scan: Scan) -> Computation:
    """Make the work of ``from_projection`` as the original MedMamba does it, around ``scan``; on
    the same numbers."""
    entry, tensors = OPERATORS[case.operator], from_projection(case, device).named
    if entry.channels_first:
        first = next(iter(tensors))
        laid_out = tensors[first].detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        tensors = tensors | {first: laid_out.requires_grad_()}
    return Computation(partial(entry.original, scan), tensors)
