"""A convolution before a BatchNorm in training leaves its bias out, and nothing shows it."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from medmambase import MedMambaSE, ModelConfig
from medmambase.model.batch_norm import BatchNorm, NormedConv2d, count_batch

SMALL = ModelConfig(depths=(1,), dims=(8,), state=2, drop_path=0.0, num_classes=3)


def network(dtype: torch.dtype = torch.float64) -> MedMambaSE:
    torch.manual_seed(0)
    made = MedMambaSE(SMALL).to(dtype)
    for module in made.modules():
        if isinstance(module, NormedConv2d):
            nn.init.normal_(module.bias)
    return made.train()


def results(made: MedMambaSE) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Logits, gradients and buffers after two steps that the second backward pass ends."""
    images = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = torch.stack([made(image) for image in images])
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad for n, p in made.named_parameters()}, dict(made.named_buffers())


def test_bias_or_not_logits_gradients_and_running_statistics_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spared = results(network())
    plain = network()
    for module in plain.modules():
        if isinstance(module, NormedConv2d):
            monkeypatch.setattr(module, "forward", lambda x, biased=True, conv=module: nn.Conv2d.forward(conv, x))
    monkeypatch.setattr("medmambase.model.batch_norm.spares_bias", lambda *_: False)
    expected = results(plain)
    torch.testing.assert_close(spared[0], expected[0])
    torch.testing.assert_close(spared[2], expected[2])
    biases = [name for name, module in plain.named_modules() if isinstance(module, NormedConv2d)]
    assert len(biases) == 2
    for name, gradient in expected[1].items():
        if name.removesuffix(".bias") in biases and name.endswith(".bias"):
            assert not spared[1][name].any() and gradient.abs().max() < 1e-12
        else:
            torch.testing.assert_close(spared[1][name], gradient)


@pytest.mark.parametrize("change", [{"training": False}, {"momentum": 1.0}], ids=["evaluating", "without a past"])
def test_where_the_norm_does_not_train_or_has_no_past_the_bias_is_added(
    change: dict[str, bool | float], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = network()
    for module in made.modules():
        if isinstance(module, BatchNorm):
            for name, value in change.items():
                setattr(module, name, value)
    plain, images = deepcopy(made), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = made(images)
    for place in ("layers", "batch_norm"):
        monkeypatch.setattr(f"medmambase.model.{place}.spares_bias", lambda *_: False)
    torch.testing.assert_close(found, plain(images))
    torch.testing.assert_close(dict(made.named_buffers()), dict(plain.named_buffers()))


def test_a_block_by_itself_learns_its_biases() -> None:
    block = network().stages[0].blocks[0]
    before = block.conv_branch[2].running_mean.clone()
    block(torch.randn(2, 4, 4, 8, dtype=torch.float64)).sum().backward()
    conv, norm = block.conv_branch[1], block.conv_branch[2]
    assert conv.bias.grad is not None and conv.bias.grad.any()
    assert norm.running_mean.sub(before).sub(0.1 * conv.bias).abs().max() < 0.1


def test_frozen_biases_get_no_gradient_and_without_gradients_nothing_is_handed_on() -> None:
    made = network()
    for module in made.modules():
        if isinstance(module, NormedConv2d):
            module.bias.requires_grad_(False)
    x = torch.ones(1)
    assert count_batch(made, x) is x
    with torch.no_grad():
        assert count_batch(network(), x) is x
