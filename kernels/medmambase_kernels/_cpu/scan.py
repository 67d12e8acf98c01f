"""Run one scan problem of either operator on the CPU, in two passes: allocate, pick the kernel,
launch.
"""

import functools
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels._cpu import compiler, scan_backward, scan_forward
from medmambase_kernels._cpu.compiler import Program, compiled, empty
from medmambase_kernels._cpu.scan_forward import CHUNK, Form

# Tasks that a pass is cut into where its shape allows, so that threads end together: by smaller
# blocks of channels, and backward by cuts of the channels where images are few. Not by the threads
# there are, on which no result may depend.
_TASKS = 16
_FORWARD_STATES, _BACKWARD_STATES = 8, 4  # at most, in vectors that stay in registers


@dataclass(frozen=True)
class Scan:
    """k routes over x (b, l, d), whose d is a multiple of the processor's lanes. All float32 and
    contiguous; ``rows`` may have gaps between its rows.

    ``rows`` (b, l, k, columns): [rank of delta | B | C], of each only what varies, else tables
    ``B``, ``C`` (p, n, d). ``raw`` (b, l, k, d), what goes into the softplus but for ``bias``;
    None: ``W`` (p, r, d) times the rank. A2 (p, n, d), A log2(e). D, bias (p, d). ``order`` (k, l)
    int32: the position at each step. Sequence and direction i of b k has the weights i % p.
    """

    x: Tensor
    raw: Tensor | None
    rows: Tensor
    W: Tensor | None
    A2: Tensor
    B: Tensor | None
    C: Tensor | None
    D: Tensor
    bias: Tensor
    softplus: bool
    order: Tensor

    def form(self, most: int, initial: bool) -> Form:
        """The kernel for it, with at most so many vectors of states in registers."""
        lanes, n = compiler.lanes(), self.A2.shape[1]
        pairs, odd = divmod(self.x.shape[2] // lanes, 2)
        vectors = 2 if not odd and len(self.x) * pairs >= _TASKS else 1
        at_once = next(count for count in range(most // vectors, 0, -1) if n % count == 0)
        return Form(
            lanes, n, at_once, vectors, self.W is not None, self.softplus, self.B is None, self.C is None, initial
        )

    @property
    def arguments(self) -> dict[str, Tensor | int | None]:
        """What both passes read."""
        return {
            "x": self.x, "raw": self.raw, "rows": self.rows, "W": self.W, "A2": self.A2, "B": self.B, "C": self.C,
            "D": self.D, "bias": self.bias, "order": self.order, "batch": len(self.x), "length": self.x.shape[1],
            "channels": self.x.shape[2], "directions": len(self.order), "periods": len(self.A2),
            "rank": 0 if self.W is None else self.W.shape[1], "row_stride": self.rows.stride(1),
        }  # fmt: skip  # as in the kernels


def fit(t: Tensor) -> Tensor:
    """A tensor (..., d) as the kernels read it: float32, contiguous, d padded with zeros to a
    multiple of the lanes; itself if it is so already."""
    wide = t.float()
    missing = padded(t.shape[-1]) - t.shape[-1]
    return F.pad(wide, (0, missing)) if missing else wide.contiguous()


def padded(channels: int) -> int:
    """Channels up to the next multiple of the processor's lanes."""
    lanes = compiler.lanes()
    return -(-channels // lanes) * lanes


def chunks_of(length: int) -> int:
    """States kept of each sequence."""
    return -(-length // CHUNK)


@functools.cache
def _forward(form: Form, save: bool) -> Program:
    return compiled(scan_forward.forward_kernel(form, save))


def forward(s: Scan, initial: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (b, l, d); the state before each chunk (b, k, chunks, n, d) in one axis, empty unless
    ``save``; the last state (b, k, n, d)."""
    (b, l, d), (_, n, _), k = s.x.shape, s.A2.shape, len(s.order)
    form = s.form(_FORWARD_STATES, initial is not None)
    y = empty(b, l, d)
    entry = empty(b * k * chunks_of(l) * n * d if save else 0)
    last = empty(b, k, n, d)
    _forward(form, save).launch(
        b * (d // (form.vectors * form.lanes)), **s.arguments, initial=initial, y=y, entry=entry, last=last
    )
    return y, entry, last


@dataclass(frozen=True)
class Gradients:
    """Of a Scan's tensors, in their forms; ``state``: of the initial state. What a Scan lacks is
    empty."""

    x: Tensor
    raw: Tensor
    rows: Tensor
    W: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor
    state: Tensor


@functools.cache
def _backward(form: Form) -> Program:
    return compiled(scan_backward.backward_kernel(form))


def backward(s: Scan, dy: Tensor, entry: Tensor, dlast: Tensor | None) -> Gradients:
    """All gradients, given dy (b, l, d), the states that forward kept, and the adjoint of the last
    state (b, k, n, d), None for zero."""
    (b, l, d), (p, n, _), k = s.x.shape, s.A2.shape, len(s.order)
    form = s.form(_BACKWARD_STATES, dlast is not None)
    cuts = max(1, min(_TASKS // max(b, 1), d // (form.vectors * form.lanes)))
    of_rows = empty(cuts, *s.rows.shape)
    of_state = empty(*((b, k, n, d) if dlast is not None else (0,)))
    dx, draw = empty(b, l, d), empty(*((0,) if s.raw is None else s.raw.shape))
    dA, dB, dC = (s.x.new_zeros((b * k, n, d) if used else 0) for used in (True, s.B is not None, s.C is not None))
    dD, dbias, dW = (
        s.x.new_zeros(b * k, d),
        s.x.new_zeros(b * k, d),
        s.x.new_zeros(0 if s.W is None else (b * k, *s.W.shape[1:])),
    )
    _backward(form).launch(
        cuts * b, scan_backward.scratch_floats(form, d, 0 if s.W is None else s.W.shape[1]), **s.arguments, cuts=cuts,
        initial=None, dy=dy, dlast=dlast, entry=entry, dx=dx, draw=draw, drows=of_rows, dW=dW, dA=dA, dB=dB, dC=dC,
        dD=dD, dbias=dbias, dinitial=of_state,
    )  # fmt: skip  # by kind
    of_weights = (t.unflatten(0, (-1, p)).sum(0) if t.numel() else t for t in (dW, dA, dB, dC, dD, dbias))
    dW, dA, dB, dC, dD, dbias = of_weights
    return Gradients(dx, draw, of_rows.sum(0) if cuts > 1 else of_rows[0], dW, dA, dB, dC, dD, dbias, of_state)
