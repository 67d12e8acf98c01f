"""Lay tensors out as the kernels around the scan read them."""

from torch import Tensor


def as_rows(t: Tensor) -> Tensor:
    """(b, h, w, d) as (positions, d) with neighbouring channels: a view wherever there is one."""
    return (t if t.stride(3) == 1 else t.contiguous()).flatten(0, 2)
