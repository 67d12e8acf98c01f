"""The selective scan on a GPU: one sequence as a Scan, copied to channels last if needed.

A group of channels that shares B and C is a range of channels with rows of its own. Kept for
backward: nothing for up to 64 steps, else the state before every 32, 2 bytes an element of u at n =
16. y is written, and its gradient read, with channels last.
"""

import torch
from torch import Tensor

from medmambase_kernels._triton import launch_table
from medmambase_kernels._triton import scan as scans
from medmambase_kernels.reference import groups_of


def kept_shape(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *_: Tensor | None) -> tuple[int, ...]:
    """Shape of the states kept for backward, (b, 1, chunks, n padded, d); empty for one chunk,
    which the inputs suffice for. Tensors as in ``forward``."""
    chunks = launch_table.chunks_of(u.shape[2])
    return (u.shape[0], 1, chunks, launch_table.power_of_two(A.shape[1]), u.shape[1]) if chunks > 1 else (0,)


def _sequence(t: Tensor) -> Tensor:
    """(b, d, l) as (b, l, d), contiguous: a copy unless it was laid out so."""
    return t.transpose(1, 2).contiguous()


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    delta_softplus: bool
) -> scans.Scan:  # fmt: skip  # in the operator's order
    b, d, l = u.shape
    groups = groups_of(B, C)
    varying = [t.permute(0, 3, 1, 2) for t in (B, C) if t.dim() == 4]
    rows = scans.rows_of(varying) if varying else A.new_empty(b, l, groups, 0)
    constant_B, constant_C = (scans.table(t) if t.dim() == 2 else None for t in (B, C))
    row_D, row_bias = (A.new_zeros(1, d) if t is None else t.contiguous().view(1, d) for t in (D, delta_bias))
    raw = _sequence(delta).unsqueeze(2)
    return scans.Scan(
        _sequence(u),
        raw,
        rows,
        None,
        scans.table(A)[None],
        constant_B,
        constant_C,
        row_D,
        row_bias,
        delta_softplus,
        1,
        l,
        groups,
    )


def _states(t: Tensor, n: int) -> Tensor:
    """(b, n padded, d) to (b, d, n), contiguous."""
    return t[:, :n].transpose(1, 2).contiguous()


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    initial_state: Tensor | None, delta_softplus: bool, out_dtype: torch.dtype, save: bool,
    config: launch_table.ForwardLaunch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip  # in the operator's order
    """y (b, d, l) in out_dtype, the last state (b, d, n), what is kept (empty unless save).
    Arguments as in reference.py."""
    shape = kept_shape(u, delta, A, B, C) if save else (0,)
    if not u.numel():
        last = (
            A.new_zeros(u.shape[0], *A.shape)
            if initial_state is None
            else initial_state.clone(memory_format=torch.contiguous_format)
        )
        return torch.empty(u.shape, dtype=out_dtype, device=u.device), last, A.new_empty(shape)
    (b, d, l), n = u.shape, A.shape[1]
    scan = _scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    config = config or launch_table.forward(b, 1, d, l, n, 0, scans.processors(u), scan.groups)
    initial = None if initial_state is None else scans.table(initial_state)
    y, entry, last = scans.forward(scan, config, initial, shape != (0,), out_dtype)
    return y[0].transpose(1, 2).contiguous(), _states(last, n), entry if shape != (0,) else A.new_empty(0)


def backward(
    dy: Tensor, dlast: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, delta_softplus: bool, out_dtype: torch.dtype, kept: Tensor,
    config: launch_table.BackwardLaunch | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip  # in the operator's order
    """Gradients of u, delta, A, B, C, D, delta_bias, initial_state, contiguous, each None where its
    argument is."""
    if not u.numel():
        given = (u, delta, A, B, C, D, delta_bias)
        zeros = [None if t is None else torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in given]
        return (*zeros, None if initial_state is None else dlast.clone(memory_format=torch.contiguous_format))
    (b, d, l), n = u.shape, A.shape[1]
    scan = _scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    config = config or launch_table.backward(
        b, 1, d, l, n, scans.processors(u), scan.groups, constant=B.dim() == 2 or C.dim() == 2
    )
    N = scan.A.shape[1]
    entry = kept if kept.numel() else A.new_zeros(b, N, d) if initial_state is None else scans.table(initial_state)
    draw = torch.empty(b, l, 1, d, dtype=delta.dtype, device=u.device)
    g = scans.backward(scan, config, _sequence(dy), entry, scans.table(dlast), draw)
    varying = [t for t in (B, C) if t.dim() == 4]
    drows = g.rows.view(b, l, scan.groups, N, len(varying)).permute(0, 2, 3, 1, 4)[:, :, :n] if varying else g.rows
    dB, dC = (
        constant[:n].t().contiguous().to(t.dtype) if t.dim() == 2 else drows[..., column].to(t.dtype).contiguous()
        for t, constant, column in ((B, g.B, 0), (C, g.C, len(varying) - 1))
    )
    return (
        g.x[0].transpose(1, 2).contiguous(), g.raw[:, :, 0].transpose(1, 2).contiguous(), g.A[0, :n].t().contiguous(),
        dB, dC, None if D is None else g.D[0], None if delta_bias is None else g.bias[0],
        None if initial_state is None else _states(g.state, n),
    )  # fmt: skip  # in the operator's order
