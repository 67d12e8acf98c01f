"""The selective scan on a CPU: one sequence as a Scan, copied to channels last if needed.

A group of channels that shares B and C is a sequence of its own. Kept for backward: the state
before every 32 steps, 2 bytes an element of u at n = 16 in float32.
"""

import torch
from torch import Tensor

from medmambase_kernels._cpu import scan as scans
from medmambase_kernels._cpu.compiler import empty
from medmambase_kernels._cpu.numerics import LOG2E
from medmambase_kernels._cpu.transpose import transpose
from medmambase_kernels.reference import groups_of


def kept_shape(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *_: Tensor | None) -> tuple[int, ...]:
    """Shape of the states kept for backward, (b g, chunks, n, d / g padded) in one axis. Tensors as
    in ``forward``."""
    groups = groups_of(B, C)
    return (u.shape[0] * groups * scans.chunks_of(u.shape[2]) * A.shape[1] * scans.padded(u.shape[1] // groups),)


def _sequences(t: Tensor, groups: int) -> Tensor:
    """(b, d, l) as (b g, l, d / g padded)."""
    wide = t.float()
    if wide.stride(1) == 1 and groups == 1:  # it was made so
        return scans.fit(wide.transpose(1, 2))
    b, d, l = t.shape
    return transpose(
        wide.contiguous().view(b * groups, d // groups, l), empty(b * groups, l, scans.padded(d // groups))
    )


def _tables(t: Tensor, groups: int) -> Tensor:
    """(..., d, n) as (... g, n, d / g padded)."""
    return scans.fit(t.unflatten(-2, (groups, -1)).transpose(-1, -2).flatten(0, -3))


def _table_back(t: Tensor, like: Tensor, groups: int) -> Tensor:
    """What ``_tables`` made, as it was."""
    size = like.shape[-2] // groups
    return t[..., :size].unflatten(0, (*like.shape[:-2], groups)).transpose(-1, -2).flatten(-3, -2).to(like.dtype)


def _sequences_back(t: Tensor, shape: torch.Size, dtype: torch.dtype, groups: int) -> Tensor:
    """What ``_sequences`` made, as it was: (b, d, l), rounded to ``dtype``."""
    b, d, l = shape
    return transpose(t[..., : d // groups], empty(b * groups, d // groups, l)).view(b, d, l).to(dtype)


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    delta_softplus: bool
) -> scans.Scan:  # fmt: skip  # in the operator's order
    b, d, l = u.shape
    groups = groups_of(B, C)
    n, varying = A.shape[1], [t.float().flatten(0, 1).contiguous() for t in (B, C) if t.dim() == 4]
    rows = empty(b * groups, l, n * len(varying))
    for t, columns in zip(varying, rows.split(n, -1) if varying else (), strict=True):
        transpose(t, columns)
    of_B, of_C = (_tables(t, groups) if t.dim() == 2 else None for t in (B, C))
    of_D, of_bias = (scans.fit((A.new_zeros(d) if t is None else t).view(groups, -1)) for t in (D, delta_bias))
    raw = _sequences(delta, groups).unsqueeze(2)
    order = torch.arange(l, dtype=torch.int32, device="cpu")[None]
    return scans.Scan(
        _sequences(u, groups), raw, rows.unsqueeze(2), None, _tables(A * LOG2E, groups), of_B, of_C, of_D, of_bias,
        delta_softplus, order
    )  # fmt: skip  # as in Scan


def _states(t: Tensor, groups: int) -> Tensor:
    """(b, d, n) as (b g, 1, n, d / g padded)."""
    return _tables(t, groups).unsqueeze(1)


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    initial_state: Tensor | None, delta_softplus: bool, out_dtype: torch.dtype, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip  # in the operator's order
    """y (b, d, l) in out_dtype, the last state (b, d, n), what is kept (empty unless save).
    Arguments as in reference.py."""
    if not u.numel():
        last = A.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.clone()
        return (
            u.new_empty(u.shape, dtype=out_dtype),
            last,
            A.new_empty(kept_shape(u, delta, A, B, C) if save else 0),
        )
    groups = groups_of(B, C)
    initial = None if initial_state is None else _states(initial_state, groups)
    y, entry, last = scans.forward(_scan(u, delta, A, B, C, D, delta_bias, delta_softplus), initial, save)
    return (
        _sequences_back(y, u.shape, out_dtype, groups),
        _table_back(last.squeeze(1), A.expand(len(u), *A.shape), groups),
        entry,
    )


def backward(
    dy: Tensor, dlast: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, delta_softplus: bool, out_dtype: torch.dtype, kept: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip  # in the operator's order
    """Gradients of u, delta, A, B, C, D, delta_bias, initial_state, each None where its argument
    is."""
    if not u.numel():
        zeros = [None if t is None else torch.zeros(t.shape, dtype=t.dtype) for t in (u, delta, A, B, C, D, delta_bias)]
        return (*zeros, None if initial_state is None else dlast.clone())
    groups = groups_of(B, C)
    scan = _scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    g = scans.backward(scan, _sequences(dy, groups), kept, _states(dlast, groups))
    columns = iter(g.rows.squeeze(2).split(A.shape[1], -1))
    dB, dC = (
        _table_back(table, t, groups)
        if t.dim() == 2
        else transpose(next(columns), empty(*t.flatten(0, 1).shape)).view(t.shape).to(t.dtype)
        for t, table in ((B, g.B), (C, g.C))
    )
    dD, dbias = (
        None if t is None else part[:, : len(t) // groups].flatten() for t, part in ((D, g.D), (delta_bias, g.bias))
    )
    dinitial = None if initial_state is None else _table_back(g.state.squeeze(1), initial_state, groups)
    return (
        _sequences_back(g.x, u.shape, u.dtype, groups),
        _sequences_back(g.raw.squeeze(2), delta.shape, delta.dtype, groups),
        _table_back(g.A, A, groups),
        dB,
        dC,
        dD,
        dbias,
        dinitial,
    )
