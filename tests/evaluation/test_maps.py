"""Squeeze-and-excitation seen from outside: right maps, right gates, and a model left as it was."""

import pytest
import torch
from torch import Tensor, nn

from medmambase.config import Block, ModelConfig
from medmambase.evaluation.explanation.maps import recalibration
from medmambase.model.network import MedMambaSE
from medmambase_kernels import SqueezeExcite


class Stages(nn.Module):
    """Two stages with squeeze-and-excitation (the first has two of them), one without; batch norm
    to see whether it is touched."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(8)
        self.early, self.first, self.third = SqueezeExcite(8), SqueezeExcite(8), SqueezeExcite(8, scale=2.0)
        self.stages = nn.ModuleList(
            [nn.Sequential(self.early, self.first), nn.Sequential(nn.Identity()), nn.Sequential(self.third)]
        )
        self.fail = fail
        for module in self.modules():
            if isinstance(module, SqueezeExcite):
                for parameter in module.parameters():
                    nn.init.normal_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.norm(images).permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
        if self.fail:
            raise RuntimeError("planned")
        return x


def batch() -> Tensor:
    return torch.randn(3, 8, 5, 7, generator=torch.Generator().manual_seed(1))


def test_maps_and_gates_are_those_of_the_last_module_of_each_stage() -> None:
    model = Stages().eval()
    found = recalibration(model, batch())
    assert [one.stage for one in found] == [1, 3]
    with torch.no_grad():
        x = model.norm(batch()).permute(0, 2, 3, 1)
        for one, (earlier, last) in zip(found, [(model.early, model.first), (nn.Identity(), model.third)], strict=True):
            x = earlier(x)
            torch.testing.assert_close(one.before, x.abs().mean(-1))
            torch.testing.assert_close(one.gates, last.gate(x))
            torch.testing.assert_close(one.after, (x * last.gate(x)[:, None, None]).abs().mean(-1))
            assert (one.before.shape, one.gates.shape) == ((3, 5, 7), (3, 8))
            x = last(x)


def test_the_model_is_left_as_it_was() -> None:
    model = Stages().train()
    model.stages[2].eval()  # part of it frozen
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    recalibration(model, batch())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_stays_behind_when_the_forward_pass_fails() -> None:
    model = Stages(fail=True).train()
    with pytest.raises(RuntimeError, match="planned"):
        recalibration(model, batch())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_model_runs_in_eval_mode_without_gradient() -> None:
    model = Stages().train()
    seen: list[tuple[bool, bool]] = []
    model.norm.register_forward_hook(
        lambda module, inputs, output: seen.append((module.training, output.requires_grad))
    )
    found = recalibration(model, batch())
    assert seen == [(False, False)]
    assert not any(tensor.requires_grad for one in found for tensor in (one.before, one.after, one.gates))


def test_half_precision_comes_back_as_float32() -> None:
    found = recalibration(Stages().to(torch.bfloat16), batch().to(torch.bfloat16))
    assert {tensor.dtype for one in found for tensor in (one.before, one.after, one.gates)} == {torch.float32}


@pytest.mark.parametrize(
    ("block", "stages"),
    [("medmambase", [1, 2, 3, 4]), ("notebook", [1, 2, 3, 4]), ("medmamba", []), ("medmamba_v0", [])],
)
def test_every_stage_of_a_real_network_is_found(block: Block, stages: list[int]) -> None:
    model = MedMambaSE(ModelConfig(block=block, dims=(8, 16, 32, 64), depths=(1, 1, 2, 1), num_classes=2))
    found = recalibration(model, torch.zeros(2, 3, 33, 40))
    assert [one.stage for one in found] == stages
    for one, side, channels in zip(found, [(9, 10), (5, 5), (3, 3), (2, 2)], (8, 16, 32, 64), strict=bool(stages)):
        assert (one.before.shape, one.gates.shape) == ((2, *side), (2, channels))
        torch.testing.assert_close(one.gates, torch.ones(2, channels))  # a new network leaves every channel as it is
        torch.testing.assert_close(one.after, one.before)


def test_a_network_without_squeeze_and_excitation_gives_an_empty_list() -> None:
    model = nn.Module()
    model.stages = nn.ModuleList([nn.Identity()])
    assert recalibration(model, batch()) == []


def test_a_model_without_stages_is_named() -> None:
    with pytest.raises(TypeError, match="Linear without stages"):
        recalibration(nn.Linear(1, 1), batch())
