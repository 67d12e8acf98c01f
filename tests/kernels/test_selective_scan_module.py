"""The module around the scan: devices, dtypes, gradients, and torch.jit.trace of the operators."""

import importlib

import pytest
import torch
from conftest import TOLERANCE, relative_error
from torch import Tensor

import medmambase_kernels
from medmambase_kernels import SelectiveScan, selective_scan, use_backend


def test_the_module_maps_sequences_and_learns_on_every_parameter() -> None:
    module = SelectiveScan(12, state=4, bidirectional=True)
    x = torch.randn(2, 7, 12, requires_grad=True)
    y = module(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (*module.parameters(), x))
    with use_backend("reference"):
        assert relative_error(module(x), y) < TOLERANCE[torch.float32]
    with pytest.raises(ValueError, match="wants"):
        module(torch.randn(2, 12, 7))


def test_the_module_takes_the_state_by_place_and_says_what_it_is() -> None:
    assert repr(SelectiveScan(32, 4)).splitlines()[0] == "SelectiveScan("
    assert SelectiveScan(32, 4).extra_repr() == "32, state=4, rank=2"
    assert (
        SelectiveScan(32, rank=3, bidirectional=True, backend="cpu").extra_repr()
        == "32, state=16, rank=3, bidirectional=True, backend='cpu'"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_module_is_made_on_a_device_and_in_a_dtype(dtype: torch.dtype) -> None:
    far = SelectiveScan(12, 4, device="meta", dtype=dtype)
    assert {(p.device.type, p.dtype) for p in far.parameters()} == {("meta", dtype)}
    module = SelectiveScan(12, 4, dtype=dtype)
    assert (
        relative_error(-module.A_log.double().exp(), -torch.arange(1.0, 5).expand(12, 4)) < 4 * torch.finfo(dtype).eps
    )
    x = torch.randn(2, 7, 12, dtype=dtype)
    y = module(x)
    y.float().square().sum().backward()
    assert y.dtype == dtype
    assert all(p.grad is not None and p.grad.dtype == dtype for p in module.parameters())


def test_a_module_in_16_bits_decays_as_its_rounded_parameters_say() -> None:
    module = SelectiveScan(2, 16, dtype=torch.bfloat16)
    seen: list[Tensor] = []

    def scan(u, delta, A, *rest, **named):
        seen.append(A)
        return selective_scan(u, delta, A, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("medmambase_kernels.selective_scan"), "selective_scan", scan)
        module(torch.randn(1, 3, 2, dtype=torch.bfloat16))
    assert relative_error(seen[0], -module.A_log.double().exp()) < 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit is on its way out
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the checks compare sizes
@pytest.mark.parametrize("name", ["SelectiveScan", "selective_scan_2d", "gated_norm", "depthwise_silu"])
def test_a_trace_with_gradients_passes_torchs_own_check_and_can_be_trained(name: str) -> None:
    image = torch.randn(1, 3, 4, 5)
    weights = {
        "selective_scan_2d": (torch.randn(1, 3, 4, 4, 5), torch.randn(4, 5, 1), torch.randn(4, 5), -torch.rand(4, 5, 2),
                              torch.randn(4, 5)),
        "gated_norm": (torch.randn(1, 3, 4, 5), torch.randn(5), torch.randn(5)),
        "depthwise_silu": (torch.randn(5, 1, 3, 3), torch.randn(5)),
    }  # fmt: skip  # a table

    class Applied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(map(torch.nn.Parameter, weights[name]))

        def forward(self, x: Tensor) -> Tensor:
            return getattr(medmambase_kernels, name)(x, *self.weights)

    module = SelectiveScan(5, 2) if name == "SelectiveScan" else Applied()
    x = image[0] if name == "SelectiveScan" else image
    traced = torch.jit.trace(module, (x,))  # raises TracingCheckError where two recordings differ
    other = torch.randn_like(x)
    gradients = []
    for call in (traced, module):
        y = call(other)
        gradients.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
    for one, expected in zip(*gradients, strict=True):
        assert relative_error(one, expected) <= 1e-6
