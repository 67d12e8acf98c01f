"""``drop_in.fuse``: an SS2D of VMamba's first kind, written here by its formulas, runs as one scan
with the same results and gradients; anything else is left as it is."""

import copy

import pytest
import torch
from conftest import relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels import drop_in, reference
from medmambase_kernels._drop_in import fusion

D, N, R = 3, 2, 1


class SS2D(nn.Module):
    """The core of the four orders, scanned one after the other."""

    def __init__(self, directions: int = 4) -> None:
        super().__init__()
        k = directions
        self.x_proj_weight = nn.Parameter(torch.randn(k, R + 2 * N, D))
        self.dt_projs_weight = nn.Parameter(torch.randn(k, D, R))
        self.dt_projs_bias = nn.Parameter(torch.randn(k, D))
        self.A_logs = nn.Parameter(torch.rand(k * D, N))
        self.Ds = nn.Parameter(torch.randn(k * D))

    def forward_core(self, x: Tensor) -> tuple[Tensor, ...]:
        h, w = x.shape[2:]
        results = []
        for k, order in enumerate(reference.scan_order(h, w)):
            u = x.flatten(2)[..., order]
            low, B, C = (self.x_proj_weight[k] @ u).split([R, N, N], 1)
            A = -torch.exp(self.A_logs.view(4, D, N)[k])
            y, _ = reference.selective_scan(
                u, self.dt_projs_weight[k] @ low, A, B[:, None], C[:, None], self.Ds.view(4, D)[k], None,
                self.dt_projs_bias[k], True, None,
            )  # fmt: skip  # in the definition's order
            results.append(torch.empty_like(y).index_copy(2, order, y).float())
        return tuple(results)

    def forward(self, x: Tensor) -> Tensor:
        y1, y2, y3, y4 = self.forward_core(x)
        return F.silu(y1 + y2 + y3 + y4).view(x.shape)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_a_fused_module_gives_the_same_results_and_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(SS2D(), nn.Identity(), SS2D())
    x = torch.randn(2, D, 4, 5)
    expected = gradients(model, x)
    found = drop_in.fuse(model, size=3)
    assert [(one.name, one.taken) for one in found] == [("0", True), ("2", True)]
    assert capsys.readouterr().out.splitlines() == list(map(str, found))
    assert all(module.forward_core.func is fusion._core for module in model if isinstance(module, SS2D))
    for one, other in zip(gradients(model, x), expected, strict=True):
        assert relative_error(one, other) <= 1e-5
    assert drop_in.fuse(model, quiet=True) == []  # done already


def test_a_copy_of_a_fused_model_has_its_own_weights() -> None:
    model = SS2D()
    drop_in.fuse(model, size=3, quiet=True)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.Ds.zero_()
    x = torch.randn(1, D, 3, 3)
    assert not torch.allclose(twin(x), model(x))
    assert set(twin.state_dict()) == set(SS2D().state_dict())


class Turned(SS2D):
    """Adds the same directions with another sign."""

    def forward_core(self, x: Tensor) -> tuple[Tensor, ...]:
        y1, y2, y3, y4 = super().forward_core(x)
        return y1, y2, y3, -y4


def test_what_would_differ_or_does_not_fit_is_left_as_it_is() -> None:
    model = nn.ModuleList([Turned(), SS2D(2), nn.Linear(2, 2)])
    (found,) = drop_in.fuse(model, size=3, quiet=True)
    assert (found.name, found.taken) == ("0", False)
    assert "left as it is, since it would differ by" in str(found)
    assert model[0].forward_core.__func__ is Turned.forward_core
