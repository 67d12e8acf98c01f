"""Partial sums of a Triton kernel are added in a fixed order, into tensors of their own."""

import pytest
import torch
from conftest import engine_device, relative_error

pytest.importorskip("triton")


@pytest.mark.parametrize(("parts", "size", "cut"), [(1, 2, 1), (64, 33, 32), (65, 32, 31), (131, 70, 33)])
def test_all_parts_are_added_on_both_sides_of_the_cut(parts: int, size: int, cut: int) -> None:
    from medmambase_kernels._triton.partial_sums import added

    part = torch.randn(parts, size, generator=torch.Generator().manual_seed(0)).to(engine_device("triton"))
    left, right = added(part, cut)
    expected = part.double().sum(0)
    assert relative_error(left, expected[:cut]) <= 1e-6 and relative_error(right, expected[cut:]) <= 1e-6
    assert left.is_contiguous() and right.is_contiguous()
    assert left.untyped_storage().data_ptr() != right.untyped_storage().data_ptr()
