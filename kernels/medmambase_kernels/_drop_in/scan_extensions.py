"""The compiled scans of mamba_ssm and VMamba by their names: raw forward and backward passes, with
the same arguments and as many results.

A fork's own Python, its autograd Functions and its changed Mamba class, runs on these unchanged.
Facts from https://github.com/state-spaces/mamba/blob/main/csrc/selective_scan/selective_scan.cpp
and https://github.com/MzeroMiko/VMamba/blob/main/kernels/selective_scan/test_selective_scan.py.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels._drop_in.interface import whole_delta
from medmambase_kernels._mamba import raw_scan
from medmambase_kernels.arguments import SEQUENCE, check_shapes, check_tensors


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """``selective_scan_cuda.fwd``: [out, x], and with z a third: out times silu(z).

    x is for ``bwd``; x[:, :, -1, 1::2] is the last state. Arguments as in
    ``medmambase_kernels.selective_scan``, delta in u's shape.
    """
    whole_delta(u, delta)
    check_tensors({"u": u, "z": z}, optional=("z",))
    check_shapes(("u", u, SEQUENCE), ("z", z, SEQUENCE))
    if z is None:
        return list(raw_scan.forward(u, delta, A, B, C, D, delta_bias, delta_softplus, u.dtype))
    work = _work(u)
    y, x = raw_scan.forward(u, delta, A, B, C, D, delta_bias, delta_softplus, work)
    return [y.to(u.dtype), x, (y * F.silu(z.to(work))).to(u.dtype)]  # rounded once


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """``selective_scan_cuda.bwd``: [du, ddelta, dA, dB, dC, dD, ddelta_bias], with z also dz, and
    with ``recompute_out_z`` also out times silu(z).

    out: the first result of ``fwd``; only z needs it. dz: where to write the gradient of z, or
    None.
    """
    whole_delta(u, delta)
    check_tensors({"u": u, "z": z, "dout": dout, "out": out, "dz": dz}, optional=("z", "out", "dz"))
    check_shapes(
        ("u", u, SEQUENCE), ("z", z, SEQUENCE), ("dout", dout, SEQUENCE), ("out", out, SEQUENCE), ("dz", dz, SEQUENCE)
    )
    if z is None:
        return list(raw_scan.backward(dout, u, delta, A, B, C, D, delta_bias, delta_softplus, x))
    if out is None:
        raise ValueError("out is None; with z, bwd needs the first result of fwd")
    work = _work(u)
    gate, wide, d_gated = z.to(work), out.to(work), dout.to(work)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    slope = (d_gated * wide * (sigmoid + silu * (1 - sigmoid))).to(z.dtype)
    dz = slope if dz is None else dz.copy_(slope)
    found = [*raw_scan.backward(d_gated * silu, u, delta, A, B, C, D, delta_bias, delta_softplus, x), dz]
    return [*found, (wide * silu).to(u.dtype)] if recompute_out_z else found


def core_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
) -> list[Tensor]:
    """``selective_scan_cuda_core.fwd``, ``_nrow``'s and ``_ndstate``'s: [out, x], without z.

    One state may come without its axis: A (d,), B and C (b, g, l). ``nrows``, a launch's size,
    changes no result.
    """
    whole_delta(u, delta)
    wide = _with_states(A, B, C)
    return list(raw_scan.forward(u, delta, *wide, D, delta_bias, delta_softplus, u.dtype))


def core_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool = False,
    nrows: int = 1,
) -> list[Tensor | None]:
    """``selective_scan_cuda_core.bwd``, also ``_nrow``'s, ``_ndstate``'s and ``_oflex``'s: [du,
    ddelta, dA, dB, dC, dD, ddelta_bias], those of A, B and C in their shapes."""
    wide = _with_states(A, B, C)
    du, ddelta, dA, dB, dC, *rest = raw_scan.backward(dout, u, delta, *wide, D, delta_bias, delta_softplus, x)
    return [du, ddelta, dA.view(A.shape), dB.view(B.shape), dC.view(C.shape), *rest]


def oflex_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
    out_float: bool = True,
) -> list[Tensor]:
    """``selective_scan_cuda_oflex.fwd``: [out, x], out in float32 whatever u is if ``out_float``;
    delta and its bias may have a row for several channels."""
    out_dtype = _work(u) if out_float else u.dtype
    return list(raw_scan.forward(u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype))


def _with_states(A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A (d, n), B and C (b, g, n, l), of A (d,), B and C (b, g, l) for one state."""
    return (A, B, C) if A.dim() == 2 else (A[:, None], B.unsqueeze(2), C.unsqueeze(2))


def _work(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32
