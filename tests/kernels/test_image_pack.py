"""What is laid out around the GPU scan of an image: rows and tables before it, gradients after it,
by the Triton kernels against plain PyTorch in float64."""

import pytest
import torch
from conftest import TOLERANCE, engine_device, relative_error
from torch import Tensor

pytest.importorskip("triton")
SHAPES = [  # b, h, w, d, n, r
    (2, 3, 5, 7, 3, 5),
    (1, 9, 8, 40, 16, 6),
    (3, 1, 6, 33, 1, 1),
    (1, 1, 1, 64, 5, 12),
]


def made(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).to(engine_device("triton"), dtype)


def padded(t: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(t, (0, size - t.shape[-1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize(("b", "h", "w", "d", "n", "r"), SHAPES)
def test_rows_and_tables_are_the_arguments_padded_with_zeros(
    b: int, h: int, w: int, d: int, n: int, r: int, strided: bool, dtype: torch.dtype
) -> None:
    from medmambase_kernels._triton import image_pack
    from medmambase_kernels._triton.launch_table import power_of_two

    x_dbl, A, W = made(b, h, w, 4, r + 2 * n, dtype=dtype), made(4, d, n), made(4, d, r)
    x = made(b, h, w, d, dtype=dtype, seed=1)
    if strided:  # every axis where another one was
        x = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
        x_dbl = x_dbl.permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0)
        A, W = (t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for t in (A, W))
    positions, rows, A2, W_table, raw = image_pack.packed(x, x_dbl, A, W, strided, True)
    assert positions.is_contiguous() and torch.equal(positions, x.float().flatten(1, 2))
    copied = dtype != torch.float32 or not x.is_contiguous()
    assert (positions.data_ptr() != x.data_ptr()) == copied
    low, B, C = x_dbl.float().flatten(1, 2).split([r, n, n], -1)
    N, RANK = power_of_two(n), power_of_two(r)
    assert torch.equal(rows, torch.cat([padded(B, N), padded(C, N), padded(low, RANK)], -1))
    assert torch.equal(W_table, padded(W, RANK).transpose(1, 2))
    log2e = torch.tensor(1.0).exp().log2().item()
    A = -A.double().exp() if strided else A
    assert relative_error(A2, padded(A, N).transpose(1, 2) * log2e) <= 1e-6
    assert not A2[:, n:].any()
    assert raw is not None and raw.is_contiguous()
    product = torch.einsum("blkr,kdr->blkd", low.double(), W.double())
    assert relative_error(raw, product) <= TOLERANCE[torch.float32]
    assert image_pack.packed(x, x_dbl, A, W, strided, False)[-1] is None


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.bfloat16, torch.float16))],
)
@pytest.mark.parametrize("tile", [16, 64])
@pytest.mark.parametrize(("blocks", "log_A"), [(1, False), (3, True)])
@pytest.mark.parametrize(("b", "h", "w", "d", "n", "r"), SHAPES)
def test_the_gradients_of_projection_and_weights_equal_the_definition(
    monkeypatch: pytest.MonkeyPatch, b: int, h: int, w: int, d: int, n: int, r: int, blocks: int, log_A: bool,
    tile: int, dtype: torch.dtype,
) -> None:  # fmt: skip  # sizes, then switches
    from medmambase_kernels._triton import image_pack
    from medmambase_kernels._triton.launch_table import power_of_two

    monkeypatch.setattr(image_pack, "_tile", lambda positions: tile)
    l, N = h * w, power_of_two(n)
    x_dbl, A, W = made(b, h, w, 4, r + 2 * n, dtype=dtype), made(4, d, n), made(4, d, r)
    x = made(b, h, w, d, dtype=dtype)
    _, rows, A2, table, _ = image_pack.packed(x, x_dbl, A, W, log_A, False)
    drows, draw, parts = made(blocks, b, l, 4, N, 2, seed=1), made(b, l, 4, d, seed=2), made(70, 4, N + 2, d, seed=3)
    dx_parts = made(4, b, l, d, seed=4)
    dx, dx_dbl, dW, dbias, dA, dD = image_pack.unpacked(
        dx_parts, drows, draw, parts, rows, A2, table, x, x_dbl, n, r, log_A
    )
    assert dx.dtype == dtype and dx.is_contiguous() and dx.shape == x.shape
    assert relative_error(dx, dx_parts.double().sum(0).view(x.shape)) <= TOLERANCE[dtype]
    assert dx_dbl.dtype == dtype and dx_dbl.is_contiguous()
    dBC, low = drows.double().sum(0)[..., :n, :], x_dbl[..., :r].double().flatten(1, 2)
    drank = torch.einsum("blkd,kdr->blkr", draw.double(), W.double())
    expected = torch.cat([drank, dBC[..., 0], dBC[..., 1]], -1).view(x_dbl.shape)
    assert relative_error(dx_dbl, expected) <= TOLERANCE[dtype]
    assert relative_error(dW, torch.einsum("blkd,blkr->kdr", draw.double(), low)) <= TOLERANCE[torch.float32]
    total = parts.double().sum(0)
    factor = -A.double().exp() if log_A else 1.0
    assert relative_error(dA, total[:, :n].transpose(1, 2) * factor) <= TOLERANCE[torch.float32]
    assert relative_error(dD, total[:, N]) <= TOLERANCE[torch.float32]
    assert relative_error(dbias, total[:, N + 1]) <= TOLERANCE[torch.float32]
