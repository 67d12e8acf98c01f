"""``mamba_ssm.ops.selective_scan_interface`` and ``selective_scan`` by their names: functions that
autograd follows."""

from torch import Tensor

from medmambase_kernels._mamba.inner import bimamba_inner_fn, mamba_inner_fn
from medmambase_kernels._mamba.inner import mamba_inner_fn_no_out_proj as mamba_inner_fn_no_out_proj  # for others
from medmambase_kernels.arguments import SEQUENCE, check_flag, check_shapes, check_tensors
from medmambase_kernels.selective_scan import selective_scan


def whole_delta(u: Tensor, delta: Tensor) -> None:
    """Check that delta has u's shape, as mamba_ssm wants it: rows that several channels share are a
    thing of ``selective_scan_cuda_oflex`` and of our own ``selective_scan``."""
    check_tensors({"u": u, "delta": delta})
    check_shapes(("u", u, SEQUENCE), ("delta", delta, SEQUENCE))


def _flag(name: str, flag: bool | None) -> bool:
    """A flag that may be None, which is False."""
    return check_flag(name, False if flag is None else flag)


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool | None = False,
    nrows: int = 1,
    backnrows: int = -1,
) -> Tensor | tuple[Tensor, Tensor]:
    """``medmambase_kernels.selective_scan``, with a delta in u's shape; ``nrows`` and
    ``backnrows``, sizes of a launch, change no result."""
    whole_delta(u, delta)
    last = _flag("return_last_state", return_last_state)
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, last)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool | None = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same by the definition: a loop in float64."""
    whole_delta(u, delta)
    given = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, _flag("return_last_state", return_last_state))
    return selective_scan(*given, backend="reference")


class SelectiveScanFn:
    """``selective_scan_fn`` as forks call their autograd Function."""

    apply = staticmethod(selective_scan_fn)


class MambaInnerFn:
    """``mamba_inner_fn`` called so."""

    apply = staticmethod(mamba_inner_fn)


class MambaInnerFnNoOutProj:
    """``mamba_inner_fn_no_out_proj`` called so."""

    apply = staticmethod(mamba_inner_fn_no_out_proj)


class BiMambaInnerFn:
    """``bimamba_inner_fn`` called so."""

    apply = staticmethod(bimamba_inner_fn)


# Upstream's other names: its references, whose results ours are.
mamba_inner_ref = mamba_inner_fn
bimamba_inner_ref = bimamba_inner_fn
