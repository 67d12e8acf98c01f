"""What stands between the two projections of a Mamba block, as mamba_ssm's functions have it.

The products stand in upstream's order (delta is the weight times the transposed projection), since
networks are compared to the last digits. Facts from
https://github.com/state-spaces/mamba/blob/main/mamba_ssm/ops/selective_scan_interface.py and
https://github.com/hustvl/Vim/blob/main/mamba-1p1p1/mamba_ssm/ops/selective_scan_interface.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels._mamba.causal_conv1d import causal_conv1d
from medmambase_kernels.arguments import check_shapes, check_tensors
from medmambase_kernels.selective_scan import selective_scan


def _columns(x_dbl: Tensor, bias: Tensor | None, length: int) -> Tensor:
    """Columns of the projection (b l, n) as B or C, (b, n, l)."""
    t = x_dbl if bias is None else x_dbl + bias.to(x_dbl.dtype)
    return t.unflatten(0, (-1, length)).transpose(1, 2)


def _rms_norm(t: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the second of three axes, if there is a weight."""
    if weight is None:
        return t
    wide = t.transpose(1, 2).float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()
    return scaled.to(t.dtype).transpose(1, 2)


def _projected(
    x: Tensor,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    state: int,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """delta (b, d, l), and B and C where they were not given."""
    (b, _, l), rank = x.shape, delta_proj_weight.shape[1]
    x_dbl = F.linear(x.transpose(1, 2).flatten(0, 1), x_proj_weight)  # (b l, r + n + n)
    delta = (delta_proj_weight.to(x_dbl.dtype) @ x_dbl[:, :rank].t()).unflatten(1, (b, l)).transpose(0, 1)
    if B is None:
        B = _columns(x_dbl[:, rank : rank + state], B_proj_bias, l)
    if C is None:
        C = _columns(x_dbl[:, x_dbl.shape[1] - state :], C_proj_bias, l)
    return delta, B, C


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = causal_conv1d(x, weight.squeeze(1), bias, activation="silu")
    assert isinstance(y, Tensor)  # no final states were asked for
    return y


def _scan(*arguments: Tensor | bool | None) -> Tensor:
    y = selective_scan(*arguments)  # type: ignore[arg-type]  # in the operator's order
    assert isinstance(y, Tensor)  # no last state was asked for
    return y


def _check(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    others: Mapping[str, Tensor | None],
) -> None:
    """What the scan and the convolution, which check what they are given, do not see; ``others``:
    of the projections behind."""
    first = {"xz": xz, "conv1d_weight": conv1d_weight, "conv1d_bias": conv1d_bias, "x_proj_weight": x_proj_weight}
    given = first | {"delta_proj_weight": delta_proj_weight, "A": A, **others}
    check_tensors(given, optional=("conv1d_bias", *others))
    sizes = check_shapes(
        ("A", A, ("channels", "state")),
        ("conv1d_weight", conv1d_weight, ("channels", 1, "taps")),
        ("conv1d_bias", conv1d_bias, ("channels",)),
        ("x_proj_weight", x_proj_weight, ("rank + 2 state", "channels")),
        ("delta_proj_weight", delta_proj_weight, ("channels", "rank")),
        ("B_proj_bias", others.get("B_proj_bias"), ("state",)),
        ("C_proj_bias", others.get("C_proj_bias"), ("state",)),
        ("b_rms_weight", others.get("b_rms_weight"), ("state",)),
        ("c_rms_weight", others.get("c_rms_weight"), ("state",)),
        ("dt_rms_weight", others.get("dt_rms_weight"), ("channels",)),
        ("out_proj_weight", others.get("out_proj_weight"), ("width", "channels")),
        ("out_proj_bias", others.get("out_proj_bias"), ("width",)),
    )
    if xz.dim() != 3 or xz.shape[1] != 2 * sizes["channels"]:
        raise ValueError(
            f"xz has shape {tuple(xz.shape)}; it must be (batch, 2 channels, length), with A {tuple(A.shape)}, "
            f"(channels, state)"
        )
    columns = sizes["rank"] + sizes["state"] * sum(others.get(name) is None for name in ("B", "C"))
    if len(x_proj_weight) < columns:
        raise ValueError(
            f"x_proj_weight has shape {tuple(x_proj_weight.shape)}; it must have at least {columns} rows: rank "
            f"{sizes['rank']}, and {sizes['state']} for each of B and C that is not given"
        )


def _real(A: Tensor) -> None:
    if A.is_complex():
        raise NotImplementedError(
            "A is complex, which no kernel here computes with; give the real A that Mamba has by default"
        )


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """What stands between the two projections of a Mamba block: xz (b, 2d, l) -> (b, d, l).

    conv1d_weight (d, 1, w), x_proj_weight (r + 2n, d), delta_proj_weight (d, r), A (d, n); B and C
    are projected from x where they are None. ``checkpoint_lvl`` changes no result.
    """
    _real(A)
    others = {"B": B, "C": C, "B_proj_bias": B_proj_bias, "C_proj_bias": C_proj_bias, "b_rms_weight": b_rms_weight}
    others |= {"c_rms_weight": c_rms_weight, "dt_rms_weight": dt_rms_weight}
    _check(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, others)
    x, z = xz.chunk(2, 1)
    x = _convolved(x, conv1d_weight, conv1d_bias)
    delta, B, C = _projected(x, x_proj_weight, delta_proj_weight, A.shape[1], B, C, B_proj_bias, C_proj_bias)
    B, C, delta = (
        _rms_norm(t, weight, b_c_dt_rms_eps)
        for t, weight in ((B, b_rms_weight), (C, c_rms_weight), (delta, dt_rms_weight))
    )
    return _scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """A Mamba block behind its first projection: xz (b, 2d, l) -> (b, l, width of out_proj);
    out_proj_weight (width, d). The others as in ``mamba_inner_fn_no_out_proj``."""
    _real(A)
    out_proj = {"out_proj_weight": out_proj_weight, "out_proj_bias": out_proj_bias, "B": B, "C": C}
    _check(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, out_proj)
    y = mamba_inner_fn_no_out_proj(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, D, delta_bias, B_proj_bias,
        C_proj_bias, delta_softplus, checkpoint_lvl, b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps,
    )  # fmt: skip  # in the function's order
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """``mamba_inner_fn`` whose scan runs both ways, from the end with A_b; everything else is
    shared (Vim's v1)."""
    _real(A)
    _real(A_b)
    others = {"B": B, "C": C, "B_proj_bias": B_proj_bias, "C_proj_bias": C_proj_bias}
    others |= {"out_proj_weight": out_proj_weight, "out_proj_bias": out_proj_bias}
    _check(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, others)
    check_shapes(("A", A, ("channels", "state")), ("A_b", A_b, ("channels", "state")))
    x, z = xz.chunk(2, 1)
    x = _convolved(x, conv1d_weight, conv1d_bias)
    delta, B, C = _projected(x, x_proj_weight, delta_proj_weight, A.shape[1], B, C, B_proj_bias, C_proj_bias)
    y = _scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    late = [t if t.dim() == 2 else t.flip(-1) for t in (B, C)]
    back = _scan(x.flip(-1), delta.flip(-1), A_b, *late, D, z.flip(-1), delta_bias, delta_softplus)
    return F.linear((y + back.flip(-1)).transpose(1, 2), out_proj_weight, out_proj_bias)
