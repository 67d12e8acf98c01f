"""The selective scan of a sequence, as a function and as a module that owns its parameters.

Checks, then the custom operator, then the backend that ``backend`` chose; the definition is
``reference.selective_scan``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels import backend as engines
from medmambase_kernels import reference
from medmambase_kernels.arguments import (
    SEQUENCE,
    check_dtype,
    check_factory,
    check_flag,
    check_input,
    check_number,
    check_shapes,
    check_size,
    check_tensors,
)
from medmambase_kernels.custom_op import register


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
    starts: Sequence[int] | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective state-space scan (Gu and Dao, "Mamba", 2023), with the arguments of mamba_ssm's
    ``selective_scan_fn``.

    h_l = exp(delta_l A) h_{l-1} + delta_l u_l B_l and y_l = <C_l, h_l> + D u_l, then y_l *
    silu(z_l) if z is given.

    Args:
        u, z: (b, d, l), channels before length; l may be 0, and is below 2^31.
        delta: (b, d, l); or (b, q, l), where d / q neighbouring channels share a row.
        A: (d, n), real, n at least 1, and at most 64 on backend "triton". Negative, as a rule: the
        state then decays; where delta A is positive it grows, and overflows over a long sequence.
        B, C: (d, n) constant, (b, n, l), or (b, g, n, l): channel i belongs to group i // (d / g).
        D: (d,). delta_bias: a number for each row of delta, added to it before the softplus.
        delta_softplus: apply softplus to delta.
        return_last_state: return (y, last state) instead of y; both carry gradients.
        initial_state: (b, d, n), the state before the first step; zeros if not given.
        starts: for rows of several sequences, one behind the other: the steps, ascending, at which
        one begins and the state is zero again, in all rows alike; 0 may be left out. Sequences are
        scanned beside each other, and take the memory of as many as long as the longest.
        out_dtype: dtype of y, one of those below; u's if None.
        backend: "triton", "cpu", "torch" or "reference"; chosen automatically if None.

    Tensors are float32, bfloat16, float16 or float64, each its own: u alone decides the dtype of
    the arithmetic, float64 for a float64 u, else float32. A gradient has the dtype of its argument.

    Returns:
        y (b, d, l), rounded once; the last state is (b, d, n) in the dtype of the arithmetic, with
        starts (b, sequences, d, n).

    Raises:
        TypeError: an argument that is no tensor, starts that are one, or a flag that is neither
        True nor False. ValueError: a shape, dtype
        or device that does not fit, starts that do not ascend from 0 to l - 1, or an initial state
        beside them. BackendError: the backend asked for cannot run.
    """
    check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state)
    delta_softplus = check_flag("delta_softplus", delta_softplus)
    return_last_state = check_flag("return_last_state", return_last_state)
    if starts is not None:
        if initial_state is not None:
            raise ValueError("initial_state was given beside starts, where every sequence begins from zero; omit one")
        bounds = _bounds(starts, u.shape[-1])
        if delta_bias is not None and not delta_softplus:  # alone, before a sequence, it could let a decay overflow
            delta = delta.to(torch.promote_types(u.dtype, torch.float32)) + delta_bias[:, None]
            delta_bias = None
        u, delta, B, C = (_apart(t, bounds) if t.dim() > 2 else t for t in (u, delta, B, C))
        z = None if z is None else _apart(z, bounds)
        result = selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, out_dtype=out_dtype, backend=backend
        )
        y, last = result if isinstance(result, tuple) else (result, None)
        y = _together(y, bounds)
        return y if last is None else (y, last.unflatten(0, (len(bounds), -1)).transpose(0, 1))
    out_dtype = u.dtype if out_dtype is None else out_dtype
    check_dtype("out_dtype", out_dtype)
    choice = engines.choose("selective_scan", u.device, u.dtype, backend)
    work = torch.float64 if u.dtype == torch.float64 else torch.float32
    if choice.name == "reference":
        B, C = (t[:, None] if t.dim() == 3 else t for t in (B, C))
        y, last = reference.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
        last = last.to(work)
    else:
        given = prepared(u, delta, A, B, C, D, delta_bias, initial_state)
        in_dtype = out_dtype if z is None else work  # gate first, round once
        y, last = _scan(*given, delta_softplus, in_dtype, choice.name)
        if z is not None:
            y = y * F.silu(z.to(work))
    y = y.to(out_dtype)
    return (y, last) if return_last_state else y


def _bounds(starts: object, length: int) -> list[tuple[int, int]]:
    """Where each sequence begins and ends."""
    if not isinstance(starts, Sequence) or isinstance(starts, str):
        kind = type(starts).__name__
        raise TypeError(f"starts is of type {kind}; give a list of whole numbers, of a tensor its tolist()")
    steps = list(starts) if starts and starts[0] == 0 else [0, *starts]
    bounds = list(pairwise([*steps, length]))
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
    if not whole or (len(bounds) > 1 and any(begin >= end for begin, end in bounds)):
        raise ValueError(f"starts is {tuple(starts)}; it must be whole numbers that ascend, from 0 to {length - 1}")
    return bounds


def _apart(t: Tensor, bounds: Sequence[tuple[int, int]]) -> Tensor:
    """The sequences of t (b, ..., l) beside each other, (sequences b, ..., longest), zeros before
    each: there u is zero, so that the state stays zero to the last bit."""
    longest = max(end - begin for begin, end in bounds)
    return torch.cat([F.pad(t[..., begin:end], (longest - (end - begin), 0)) for begin, end in bounds])


def _together(y: Tensor, bounds: Sequence[tuple[int, int]]) -> Tensor:
    """The sequences behind each other again."""
    longest = y.shape[-1]
    rows = y.unflatten(0, (len(bounds), -1)) if len(y) else y.unsqueeze(0).expand(len(bounds), *y.shape)
    return torch.cat([row[..., longest - (end - begin) :] for row, (begin, end) in zip(rows, bounds, strict=True)], -1)


def prepared(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The tensors as backends take them: A, D, the bias and the state in the dtype of the
    arithmetic, B and C with an axis of groups, and a row of delta for each channel."""
    work = torch.float64 if u.dtype == torch.float64 else torch.float32
    A = A.to(work)
    D, delta_bias, initial_state = (None if t is None else t.to(work) for t in (D, delta_bias, initial_state))
    B, C = (t[:, None] if t.dim() == 3 else t for t in (B, C))
    if delta.shape[1] != u.shape[1]:
        shared = u.shape[1] // delta.shape[1]
        delta = delta.to(work).repeat_interleave(shared, 1)  # gradients are then added before they are rounded
        delta_bias = None if delta_bias is None else delta_bias.repeat_interleave(shared)
    return u, delta, A, B, C, D, delta_bias, initial_state


class SelectiveScan(nn.Module):
    """A selective scan that owns its parameters: (b, l, channels) -> (b, l, channels), in the dtype
    of its input.

    delta, B and C are projections of the input, delta through a bottleneck of ``rank``; A starts at
    -(1..state) and D at 1, as in Mamba.

    Args:
        channels, state, rank: sizes, at least 1; rank is a sixteenth of the channels if None.
        step_range: the range, log-uniform, of the steps delta that a new module starts from.
        bidirectional: add a scan from the end, with the same parameters.
        backend: as in ``selective_scan``.
        device, dtype: of the parameters, as in torch.nn; float32, bfloat16, float16 or float64.

    Raises TypeError for an argument of another type; ValueError for a size below 1, a dtype that no
    scan computes with, and an input whose last axis is not ``channels``, or whose dtype is not that
    of the parameters (under autocast it may be another); BackendError for a backend that there is
    not.
    """

    def __init__(
        self,
        channels: int,
        state: int = 16,
        *,
        rank: int | None = None,
        step_range: tuple[float, float] = (1e-3, 1e-1),
        bidirectional: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels = check_size("channels", channels)
        self.state = state = check_size("state", state)
        self.rank = max(1, -(-channels // 16)) if rank is None else check_size("rank", rank)
        engines.check_backend(backend)
        dtype = check_factory(device, dtype)
        self.bidirectional, self.backend = check_flag("bidirectional", bidirectional), backend
        self.x_proj = nn.Linear(channels, self.rank + 2 * state, bias=False, device=device, dtype=dtype)
        dt_weight = torch.empty(channels, self.rank, device=device, dtype=dtype).uniform_(-1, 1)
        self.dt_weight = nn.Parameter(dt_weight / math.sqrt(self.rank))
        self.dt_bias = nn.Parameter(initial_dt_bias((channels,), step_range).to(device, dtype))
        wide = torch.promote_types(dtype, torch.float32)
        A_log = torch.arange(1, state + 1, dtype=wide).log().repeat(channels, 1)
        self.A_log = nn.Parameter(A_log.to(device, dtype))
        self.D = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor, starts: Sequence[int] | None = None) -> Tensor:
        """x (b, l, channels) -> (b, l, channels); ``starts`` as in ``selective_scan``."""
        check_tensors({"x": x})
        if x.dim() != 3 or x.shape[-1] != self.channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; SelectiveScan({self.channels}) wants (batch, length, {self.channels})"
            )
        check_input("x", x, self.dt_weight)
        y = self._scan(x, starts)
        if not self.bidirectional:
            return y
        back = None if starts is None else [x.shape[1] - step for step in reversed(starts) if step]
        return y + self._scan(x.flip(1), back).flip(1)

    def _scan(self, x: Tensor, starts: Sequence[int] | None) -> Tensor:
        rank, B, C = self.x_proj(x).split([self.rank, self.state, self.state], -1)
        delta = F.linear(rank, self.dt_weight)
        # In 16 bits exp would round a decay that is applied at every step.
        A = -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()
        y = selective_scan(
            x.transpose(1, 2), delta.transpose(1, 2), A, B.transpose(1, 2), C.transpose(1, 2), self.D,
            delta_bias=self.dt_bias, delta_softplus=True, starts=starts, backend=self.backend,
        )  # fmt: skip  # the operator's order, on two lines
        assert isinstance(y, Tensor)  # no last state was asked for
        return y.transpose(1, 2)

    def extra_repr(self) -> str:
        """The sizes and options, for print."""
        options = {"bidirectional": self.bidirectional, "backend": self.backend}
        given = "".join(f", {name}={value!r}" for name, value in options.items() if value)
        return f"{self.channels}, state={self.state}, rank={self.rank}{given}"


def initial_dt_bias(shape: tuple[int, ...], step_range: tuple[float, float] = (1e-3, 1e-1)) -> Tensor:
    """Biases of delta, float32 of ``shape``, for a new scan: their softplus is log-uniform in
    ``step_range`` (Mamba, section 3.6).

    A new network then remembers over lengths from a few steps to a thousand. Raises TypeError for
    what is no shape or no pair of numbers, ValueError unless 0 < low <= high.
    """
    sizes, steps = _several(shape), _several(step_range)
    whole = [check_size("shape" if len(sizes) == 1 else f"shape[{i}]", size, 0) for i, size in enumerate(sizes)]
    if len(steps) != 2:
        raise TypeError(f"step_range is {step_range!r}; it must be two numbers, (low, high) with 0 < low <= high")
    for i, each in enumerate(steps):
        check_number(f"step_range[{i}]", each, above=0)
    if step_range[0] > step_range[1]:
        raise ValueError(f"step_range is {step_range}; it must be (low, high) with 0 < low <= high")
    low, high = (math.log(each) for each in step_range)
    step = torch.empty(whole).uniform_(low, high).exp()
    return step + torch.log(-torch.expm1(-step))  # the inverse of softplus


def _several(given: object) -> Sequence[object]:
    return given if isinstance(given, tuple | list) else (given,)


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    """Check the arguments of a scan. Raises TypeError or ValueError naming the one to change."""
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    check_tensors(tensors | {"initial_state": initial_state}, optional=("D", "z", "delta_bias", "initial_state"))
    sizes = check_shapes(
        ("u", u, SEQUENCE),
        ("A", A, ("channels", "state")),
        ("D", D, ("channels",)),
        ("z", z, SEQUENCE),
        ("initial_state", initial_state, ("batch", "channels", "state")),
    )
    batch, channels, length, state = (sizes[axis] for axis in (*SEQUENCE, "state"))
    if state == 0:
        raise ValueError(f"A has shape {tuple(A.shape)}; the state must be at least 1")
    rows = delta.shape[1] if delta.dim() == 3 else 0
    shared = 0 < rows < channels and channels % rows == 0
    of_delta = ("batch", "rows", "length") if shared else SEQUENCE
    check_shapes(
        ("u", u, SEQUENCE),
        ("delta", delta, of_delta),
        ("delta_bias", delta_bias, of_delta[1:2]),
        ("A", A, ("channels", "state")),
    )
    for name, t in (("B", B), ("C", C)):
        groups = t.shape[1] if t.dim() == 4 else 1
        shape = (
            (channels, state)
            if t.dim() == 2
            else (batch, state, length)
            if t.dim() == 3
            else (batch, groups, state, length)
        )
        if tuple(t.shape) != shape or groups == 0 or channels % groups:
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}; it must be (channels, state), (batch, state, length) or (batch, "
                f"groups, state, length) with "
                f"batch {batch}, channels {channels} divisible by groups, state {state}, length {length}"
            )
    if B.dim() > 2 and C.dim() > 2 and (B.shape[1] if B.dim() == 4 else 1) != (C.shape[1] if C.dim() == 4 else 1):
        raise ValueError(
            f"B {tuple(B.shape)} and C {tuple(C.shape)} have different numbers of groups; give both the same"
        )


def _outputs(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus, out_dtype):  # type: ignore[no-untyped-def]  # the schema types it
    return (u.shape, out_dtype), ((u.shape[0], *A.shape), A.dtype)


_scan = register(
    "selective_scan",
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, Tensor? initial_state",
    "bool delta_softplus, ScalarType out_dtype",
    _outputs,
    kept_like="A",
    returns=2,
)
