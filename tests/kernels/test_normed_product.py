"""Small maps, normalised and multiplied in one launch: equal to PyTorch in float64."""

import pytest
import torch
from conftest import TOLERANCE, engine_device, relative_error
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")
DEVICE = engine_device("triton")


def a_norm(d: int) -> tuple[Tensor, Tensor, float]:
    return torch.randn(d, device=DEVICE), torch.randn(d, device=DEVICE), 1e-3


def normalised(x: Tensor, norm: tuple[Tensor, Tensor, float]) -> Tensor:
    weight, bias, eps = norm
    return F.layer_norm(x.double(), weight.shape, weight.double(), bias.double(), eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("b", "h", "w", "d", "n"), [(1, 1, 1, 1, 1), (2, 3, 7, 24, 96), (1, 4, 4, 130, 33)])
def test_the_halves_of_a_map_are_scaled_and_normalised_and_multiplied(
    b: int, h: int, w: int, d: int, n: int, dtype: torch.dtype
) -> None:
    from medmambase_kernels._triton import normed_product

    x = (torch.randn(b, h, w, 2 * d + 3) * 3 + 1).to(DEVICE)[..., 3:]  # rows of another width than they are long
    norm, W = a_norm(d), torch.randn(n, d, device=DEVICE)
    scale, shift = torch.randn(2, d, device=DEVICE)
    left, right = normed_product.halves(x, norm, W, scale, shift, dtype)
    assert left.dtype == right.dtype == dtype
    assert relative_error(left, x[..., :d].double() * scale + shift) <= TOLERANCE[dtype]
    assert relative_error(right, normalised(x[..., d:], norm) @ W.double().t()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_sum_of_parts_is_normalised_gated_and_multiplied(parts: int, dtype: torch.dtype) -> None:
    from medmambase_kernels._triton import normed_product

    b, h, w, d, n = 2, 3, 3, 140, 40
    y, z = torch.randn(parts, b, h, w, d, device=DEVICE), torch.randn(b, h, w, 2 * d, device=DEVICE).to(dtype)[..., d:]
    norm, W = a_norm(d), torch.randn(n, d, device=DEVICE)
    found = normed_product.gated(y, z, norm, W, dtype)
    wanted = (normalised(y.double().sum(0), norm) * F.silu(z.double())) @ W.double().t()
    assert found.dtype == dtype and relative_error(found, wanted) <= 2 * TOLERANCE[dtype]


def test_a_row_with_a_number_that_is_none_spoils_itself_alone() -> None:
    from medmambase_kernels._triton import normed_product

    y, z = torch.randn(1, 1, 1, 20, 5, device=DEVICE), torch.randn(1, 1, 20, 5, device=DEVICE)
    y[..., 7, 2] = float("nan")
    found = normed_product.gated(y, z, a_norm(5), torch.randn(3, 5, device=DEVICE), torch.float32)
    assert found.isnan().all(-1).nonzero()[:, 2].tolist() == [7] and int(found.isnan().sum()) == 3


def test_small_is_what_the_product_and_the_width_of_a_row_say() -> None:
    from medmambase_kernels._triton import normed_product

    weight = torch.empty(1 << 10, 1 << 10, device="meta")
    assert normed_product.is_small(32, weight) and not normed_product.is_small(33, weight)
    assert not normed_product.is_small(0, weight) and not normed_product.is_small(1, weight.view(512, 2048))
