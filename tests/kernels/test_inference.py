"""Layers whose weights no longer change, and space to depth: equal to PyTorch's own at any size of
vectors, in half a map and in a captured step."""

import pytest
import torch
from conftest import relative_error
from torch import Tensor
from torch.nn import functional as F

import medmambase_kernels
from medmambase_kernels import Capture, FrozenConv2d, FrozenLayerNorm, space_to_depth, use_backend
from medmambase_kernels._cpu import compiler as machine_cpu

LANES = [4, 8, *([16] if machine_cpu.lanes() == 16 else [])]


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("inputs", "outputs", "b", "h", "w"),
    [(5, 48, 1, 1, 1), (48, 140, 2, 7, 9), (33, 64, 1, 4, 13), (16, 1, 3, 2, 3), (64, 176, 1, 8, 8)],
)
def test_a_frozen_convolution_is_the_convolution(
    lanes: int, size: int, inputs: int, outputs: int, b: int, h: int, w: int, monkeypatch
) -> None:
    monkeypatch.setattr(machine_cpu, "lanes", lambda: lanes)
    x = torch.randn(b, h, w, 2 * inputs)[..., inputs:]  # half of a map
    weight, bias, add = (
        torch.randn(outputs, inputs, size, size),
        torch.randn(outputs),
        torch.randn(b, h, w, 3 * outputs)[..., :outputs],
    )
    exact = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), bias.double(), padding=size // 2).permute(
        0, 2, 3, 1
    )
    assert relative_error(FrozenConv2d(weight, bias)(x), exact) < 3e-6
    assert relative_error(FrozenConv2d(weight)(x), exact - bias) < 3e-6
    whole = torch.full((b, h, w, 3 * outputs), 7.0)
    into = whole[..., outputs : 2 * outputs]
    FrozenConv2d(weight, bias, relu=True)(x, add, into)
    assert relative_error(into, exact.relu() + add) < 3e-6
    assert (whole[..., :outputs] == 7).all()
    assert (whole[..., 2 * outputs :] == 7).all()
    with use_backend("torch"):
        assert relative_error(FrozenConv2d(weight, bias, relu=True)(x, add), exact.relu() + add) < 3e-6


@pytest.mark.parametrize("lanes", LANES)
def test_a_frozen_norm_is_the_norm(lanes: int, monkeypatch) -> None:
    monkeypatch.setattr(machine_cpu, "lanes", lambda: lanes)
    for c in (48, 52, 64):
        norm = torch.nn.LayerNorm(c)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        x = torch.randn(2, 9, 11, 2 * c)[..., :c] + 3
        assert relative_error(FrozenLayerNorm(norm)(x), norm.double()(x.double())) < 1e-6


def test_what_is_wrongly_shaped_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"weight has shape \(4, 4, 5, 5\)"):
        FrozenConv2d(torch.randn(4, 4, 5, 5))
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 2, 5\); it must be \(batch, height, width, 4\)"):
        FrozenConv2d(torch.randn(4, 4, 1, 1))(torch.randn(1, 2, 2, 5))


def squares(x: Tensor) -> Tensor:
    """Space to depth, position by position."""
    h, w = x.shape[1] // 2, x.shape[2] // 2
    places = [(i, j) for i in range(h) for j in range(w)]
    found = [
        torch.cat([x[:, 2 * i + down, 2 * j + right] for right in (0, 1) for down in (0, 1)], -1) for i, j in places
    ]
    return torch.stack(found, 1).view(len(x), h, w, 4 * x.shape[3])


@pytest.mark.parametrize(("h", "w", "c"), [(2, 2, 16), (5, 7, 32), (4, 6, 20)])
def test_space_to_depth_puts_squares_side_by_side_and_has_a_gradient(h: int, w: int, c: int) -> None:
    x = torch.randn(2, h, w, 2 * c)[..., c:].requires_grad_()
    y, expected = space_to_depth(x), squares(x)
    assert torch.equal(y, expected)
    dy = torch.randn_like(y)
    gradients = [torch.autograd.grad(each, x, dy)[0] for each in (y, expected)]
    assert torch.equal(*gradients)
    assert space_to_depth(x[:, :1]).shape == (2, 0, w // 2, 4 * c)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("h", "w", "c"), [(2, 2, 16), (5, 7, 32), (4, 6, 48)])
def test_space_to_depth_is_replayed_with_what_was_captured(lanes: int, h: int, w: int, c: int, monkeypatch) -> None:
    monkeypatch.setattr(machine_cpu, "lanes", lambda: lanes)
    whole = torch.randn(2, h, w, 2 * c)
    x = whole[..., c:]
    with Capture() as capture:
        y = space_to_depth(x)
    assert torch.equal(y, squares(x))
    whole.copy_(torch.randn_like(whole))
    assert not torch.equal(y, squares(x))
    capture.replay()
    assert torch.equal(y, squares(x))


def test_the_former_names_are_the_same_objects() -> None:
    for former, now in (
        ("Recording", Capture),
        ("FrozenConvolution", FrozenConv2d),
        ("FrozenNorm", FrozenLayerNorm),
        ("corners", space_to_depth),
    ):
        assert getattr(medmambase_kernels, former) is now
