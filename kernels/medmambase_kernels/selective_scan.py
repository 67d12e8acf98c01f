"""The selective scan: checks, then the custom operator, then the engine that ``backend`` chose; and
the module around it.

Next stop: ``selective_scan_triton`` or ``selective_scan_cpu``; the definition is
``reference.selective_scan``.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels import backend as engines
from medmambase_kernels import reference
from medmambase_kernels.custom_op import check_tensors, register


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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective state-space scan (Gu and Dao, "Mamba", 2023), with the arguments of mamba_ssm's
    ``selective_scan_fn``.

    h_l = exp(delta_l A) h_{l-1} + delta_l u_l B_l and y_l = <C_l, h_l> + D u_l, then y_l *
    silu(z_l) if z is given.

    Args:
        u, delta, z: (b, d, l), float32, bfloat16, float16 or float64.
        A: (d, n), real.
        B, C: (d, n) constant, (b, n, l), or (b, g, n, l): channel i belongs to group i // (d / g).
        D, delta_bias: (d,). The bias is added to delta before the softplus.
        delta_softplus: apply softplus to delta.
        return_last_state: return (y, last state) instead of y; both carry gradients.
        initial_state: (b, d, n), the state before the first step; zeros if not given.
        backend: "triton", "cpu", "torch" or "reference"; chosen automatically if None.

    Returns:
        y (b, d, l) in u's dtype; the last state is (b, d, n) in float32 (float64 for float64), as
        is all arithmetic.

    Raises:
        ValueError: a shape, dtype or device that does not fit. BackendError: the engine asked for
        cannot run.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    choice = engines.choose("selective_scan", u.device, u.dtype, backend)
    work = torch.float64 if u.dtype == torch.float64 else torch.float32
    A = A.to(work)
    D, delta_bias, initial_state = (None if t is None else t.to(work) for t in (D, delta_bias, initial_state))
    B, C = (t[:, None] if t.dim() == 3 else t for t in (B, C))
    if choice.name == "reference":
        y, last = reference.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
        last = last.to(work)
    else:
        out_dtype = u.dtype if z is None else work  # gate first, round once
        y, last = _scan(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus, out_dtype, choice.name)
        if z is not None:
            y = y * F.silu(z.to(work))
    y = y.to(u.dtype)
    return (y, last) if return_last_state else y


class SelectiveScan(nn.Module):
    """A selective scan that owns its parameters: (b, l, channels) -> (b, l, channels), in the dtype
    of its input.

    delta, B and C are projections of the input, delta through a bottleneck of ``rank``; A starts at
    -(1..state) and D at 1, as in Mamba. ``step_range``: the range, log-uniform, of the steps delta
    that a new module starts from. ``bidirectional`` adds a scan from the end, with the same
    parameters.

    Raises ValueError for a size below 1 and for an input whose last axis is not ``channels``.
    """

    def __init__(
        self,
        channels: int,
        *,
        state: int = 16,
        rank: int | None = None,
        step_range: tuple[float, float] = (1e-3, 1e-1),
        bidirectional: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.state = channels, state
        self.rank = max(1, -(-channels // 16)) if rank is None else rank
        for name, value in (("channels", channels), ("state", state), ("rank", self.rank)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.bidirectional, self.backend = bidirectional, backend
        self.x_proj = nn.Linear(channels, self.rank + 2 * state, bias=False)
        self.dt_weight = nn.Parameter(torch.empty(channels, self.rank).uniform_(-1, 1) / math.sqrt(self.rank))
        self.dt_bias = nn.Parameter(initial_dt_bias((channels,), step_range))
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (b, l, channels) -> (b, l, channels)."""
        if x.dim() != 3 or x.shape[-1] != self.channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; SelectiveScan({self.channels}) wants (batch, length, {self.channels})"
            )
        y = self._scan(x)
        return y + self._scan(x.flip(1)).flip(1) if self.bidirectional else y

    def _scan(self, x: Tensor) -> Tensor:
        rank, B, C = self.x_proj(x).split([self.rank, self.state, self.state], -1)
        delta = F.linear(rank, self.dt_weight)
        y = selective_scan(
            x.transpose(1, 2), delta.transpose(1, 2), -self.A_log.exp(), B.transpose(1, 2), C.transpose(1, 2), self.D,
            delta_bias=self.dt_bias, delta_softplus=True, backend=self.backend,
        )  # fmt: skip  # the operator's order, on two lines
        assert isinstance(y, Tensor)  # no last state was asked for
        return y.transpose(1, 2)


def initial_dt_bias(shape: tuple[int, ...], step_range: tuple[float, float] = (1e-3, 1e-1)) -> Tensor:
    """Biases of delta, float32 of ``shape``, for a new scan: their softplus is log-uniform in
    ``step_range`` (Mamba, section 3.6).

    A new network then remembers over lengths from a few steps to a thousand. Raises ValueError
    unless 0 < low <= high.
    """
    if not 0 < step_range[0] <= step_range[1]:
        raise ValueError(f"step_range is {step_range}; it must be (low, high) with 0 < low <= high")
    low, high = (math.log(step) for step in step_range)
    step = torch.empty(shape).uniform_(low, high).exp()
    return step + torch.log(-torch.expm1(-step))  # the inverse of softplus


def _check(
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
    if u.dim() != 3:
        raise ValueError(f"u has shape {tuple(u.shape)}; it must be (batch, channels, length)")
    if A.dim() != 2 or A.shape[0] != u.shape[1]:
        raise ValueError(
            f"A has shape {tuple(A.shape)}; it must be (channels, state) with the {u.shape[1]} channels of u"
        )
    if A.shape[1] == 0:
        raise ValueError(f"A has shape {tuple(A.shape)}; the state must be at least 1")
    if A.is_complex():
        raise ValueError("A is complex; only a real A is supported")
    batch, channels, length = u.shape
    state = A.shape[1]
    wanted = {
        "delta": (delta, (batch, channels, length)),
        "z": (z, (batch, channels, length)),
        "D": (D, (channels,)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, state)),
    }
    for name, (t, shape) in wanted.items():
        if t is not None and tuple(t.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}; with u {tuple(u.shape)} and A {tuple(A.shape)} it must be {shape}"
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
    check_tensors(
        u,
        {
            "delta": delta,
            "A": A,
            "B": B,
            "C": C,
            "D": D,
            "z": z,
            "delta_bias": delta_bias,
            "initial_state": initial_state,
        },
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
