"""The scan without autograd, delta with rows that channels share, and results in another dtype."""

import pytest
import torch
from conftest import TOLERANCE, TRITON, engine_device, relative_error
from torch import Tensor

from medmambase_kernels import backend, selective_scan, use_backend
from medmambase_kernels._mamba import raw_scan


def arguments(dtype: torch.dtype = torch.float32, rows: int = 4, l: int = 21, constant: bool = False) -> list[Tensor]:
    """u, delta, A, B, C, D and delta_bias of 4 channels in 2 groups."""
    b, d, n = 2, 4, 3
    B, C = (torch.randn(d, n) if constant else torch.randn(b, 2, n, l, dtype=dtype) for _ in range(2))
    u, delta = torch.randn(b, d, l).to(dtype), torch.randn(b, rows, l).to(dtype)
    return [u, delta, -torch.rand(d, n), B, C, torch.randn(d), torch.randn(rows)]


def by_autograd(tensors: list[Tensor], dy: Tensor, engine: str) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    y, last = selective_scan(*leaves[:6], None, leaves[6], True, True, out_dtype=dy.dtype, backend=engine)
    return [y.detach(), last.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("engine", ["cpu", "torch", "reference"])
@pytest.mark.parametrize(
    ("dtype", "rows", "constant"),
    [(torch.float32, 4, False), (torch.float32, 2, True), (torch.bfloat16, 1, False)],
)
def test_the_pair_equals_autograd_through_the_definition(
    engine: str, dtype: torch.dtype, rows: int, constant: bool
) -> None:
    tensors = arguments(dtype, rows, constant=constant)
    dy = torch.randn(21, 2, 4).permute(1, 2, 0)  # not contiguous
    expected = by_autograd(tensors, dy, "reference")
    with use_backend(engine):
        y, x = raw_scan.forward(*tensors, True, torch.float32)
        for states in (x, x.contiguous().clone(), None):
            found = [y, x[:, :, -1, 1::2], *raw_scan.backward(dy, *tensors, True, states)]
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == other.dtype
                assert relative_error(one, other) <= TOLERANCE[one.dtype]


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TRITON])
def test_on_a_gpu_the_pair_equals_autograd_too(engine: str) -> None:
    u, delta, A, B, C, D, bias = (t.to(engine_device(engine)) for t in arguments(l=66))
    tensors = [u[:1, :1], delta[:1, :1], A[:1, :1], B[:1, :1, :1], C[:1, :1, :1], D[:1], bias[:1]]
    dy = torch.randn(1, 1, 66).to(u.device)
    with use_backend(engine):
        y, x = raw_scan.forward(*tensors, True, torch.float32)
        found = [y, x[:, :, -1, 1::2], *raw_scan.backward(dy, *tensors, True, x)]
    assert x.shape[2] > 1  # the state before each chunk is kept
    for one, other in zip(found, by_autograd(tensors, dy, "reference"), strict=True):
        assert relative_error(one, other) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_backward_scans_nothing_again_and_tracks_nothing(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [t.requires_grad_() for t in arguments(l=70)]
    with use_backend(engine):
        y, x = raw_scan.forward(*tensors, True, torch.float32)
        monkeypatch.setattr(backend.engine("selective_scan", engine), "forward", None)
        gradients = raw_scan.backward(torch.ones_like(y), *tensors, True, x)
    assert not any(t.requires_grad for t in (y, x, *gradients))


@pytest.mark.parametrize("engine", ["cpu", "torch", "reference"])
def test_delta_may_have_a_row_for_several_channels(engine: str) -> None:
    u, delta, A, B, C, D, bias = arguments(rows=2)
    whole = selective_scan(u, delta.repeat_interleave(2, 1), A, B, C, D, None, bias.repeat_interleave(2), True)
    shared = selective_scan(u, delta, A, B, C, D, None, bias, True, backend=engine)
    assert relative_error(shared, whole) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@pytest.mark.parametrize("gated", [False, True])
def test_a_result_in_float32_of_16_bit_inputs_is_not_rounded_to_them(engine: str, gated: bool) -> None:
    u, delta, A, B, C, D, bias = arguments(torch.float16)
    z = torch.randn_like(u) if gated else None
    found, expected = (
        selective_scan(u, delta, A, B, C, D, z, bias, True, out_dtype=torch.float32, backend=name)
        for name in (engine, "reference")
    )
    assert found.dtype == torch.float32
    assert relative_error(found, expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("delta", (2, 3, 21), r"delta has shape \(2, 3, 21\); it must be \(batch, channels, length\)"),
        ("delta", (2, 0, 21), r"delta has shape \(2, 0, 21\)"),
        ("delta", (2, 2, 20), r"delta has shape \(2, 2, 20\); it must be \(batch, rows, length\)"),
        ("delta_bias", (4,), r"delta_bias has shape \(4,\); it must be \(rows,\) with rows 2"),
    ],
)
def test_rows_of_delta_that_channels_cannot_share_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    given = dict(zip(names, arguments(rows=2), strict=True)) | {name: torch.rand(shape)}
    with pytest.raises(ValueError, match=message):
        selective_scan(**given)
