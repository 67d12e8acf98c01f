"""A convolution before a BatchNorm in training leaves its bias out, and nothing shows it; a small
map on a GPU is one kernel each way, and equals PyTorch's."""

from copy import deepcopy

import pytest
import torch
from conftest import HAS_TRITON, TOLERANCE, engine_device, relative_error
from torch import Tensor, nn

from medmambase import MedMambaSE, ModelConfig
from medmambase.model.batch_norm import BatchNorm, NormedConv2d, count_batch
from medmambase.model.layers import ConvBranch
from medmambase_kernels import use_backend

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


def a_batch(dtype: torch.dtype, b: int, side: int, c: int) -> tuple[Tensor, Tensor]:
    """Half of a map and the gradient of what a norm makes of it, channels last."""
    maps = torch.randn(2, b, side, side + 1, 2 * c).mul(2).add(3).to(dtype).permute(0, 1, 4, 2, 3)
    return maps[0, :, c:], maps[1, :, ::2]


def normed(norm: BatchNorm, x: Tensor, dy: Tensor, rectified: bool) -> list[Tensor]:
    """What it makes of a batch, all gradients, and the running statistics."""
    x = x.detach().requires_grad_()
    y = norm(x, rectified=rectified)
    y.backward(dy)
    return [y, *(t.grad for t in (x, norm.weight, norm.bias)), norm.running_mean, norm.running_var]


def a_norm(c: int) -> BatchNorm:
    norm = BatchNorm(c, momentum=0.3)
    for t in (norm.weight.data, norm.bias.data, norm.running_mean):
        nn.init.normal_(t)
    return norm.train()


needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


@needs_triton
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("b", "side", "c"), [(2, 1, 1), (3, 5, 11), (2, 4, 8)])
def test_the_kernels_of_a_small_map_equal_pytorch_in_float64(
    b: int, side: int, c: int, dtype: torch.dtype, rectified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medmambase_kernels._triton import batch_norm

    calls = []
    for step in ("forward", "backward"):
        plain = getattr(batch_norm, step)
        monkeypatch.setattr(batch_norm, step, lambda *given, plain=plain: (calls.append(plain), plain(*given))[1])
    norm, (x, dy) = a_norm(c), a_batch(dtype, b, side, c)
    exact, device = deepcopy(norm).double(), engine_device("triton")
    with use_backend("triton"):
        found = normed(norm.to(device), x.to(device), dy.to(device), rectified)
    assert len(calls) == 2 and found[0].dtype == found[1].dtype == dtype
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(found, normed(exact, x.double(), dy.double(), rectified), strict=True):
        assert relative_error(one, other) <= 4 * TOLERANCE[dtype if one.dtype == dtype else torch.float32]


@needs_triton
def test_large_maps_one_position_and_what_is_not_in_training_are_left_to_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from medmambase_kernels._triton import batch_norm

    x, _ = a_batch(torch.float32, 3, 5, 4)
    monkeypatch.setattr(batch_norm, "forward", lambda *_: pytest.fail("a kernel was launched"))
    with use_backend("triton"):
        a_norm(4).eval()(x)
        with pytest.raises(ValueError, match="more than 1 value"):
            a_norm(4)(x[:1, :, :1, :1])
        monkeypatch.setattr(batch_norm, "_MOST_ROWS", 3 * 5 * 6 - 1)
        a_norm(4)(x)


@needs_triton
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_branch_of_convolutions_learns_the_same_by_kernels_and_by_pytorch(norm_first: bool) -> None:
    x, dy = torch.randn(2, 2, 3, 3, 8, device=engine_device("triton"))
    results = []
    branch = ConvBranch(8, norm_first).train().to(x.device)
    for backend, made in (("triton", branch), ("torch", deepcopy(branch))):
        given = x.clone().requires_grad_()
        with use_backend(backend):
            y = made(given)
        y.backward(dy)
        results.append([y, given.grad, *(p.grad for p in made.parameters()), *made.buffers()])
    assert sum("_OneKernel" in name for name in history(results[0][0])) == (3 if norm_first else 2)
    assert not any("_OneKernel" in name for name in history(results[1][0]))
    for one, other in zip(*results, strict=True):
        assert relative_error(one, other) < 1e-4 or other.abs().max() < 1e-5  # biases before a norm learn nothing


def history(y: Tensor) -> list[str]:
    """What made y, by name, along its first inputs."""
    node, names = y.grad_fn, []
    while node is not None:
        names.append(node.name())
        node = next((before for before, _ in node.next_functions if before is not None), None)
    return names


@needs_triton
def test_numbers_that_are_none_stay_so() -> None:
    x, _ = a_batch(torch.float32, 3, 5, 4)
    x = x.clone()
    x[1, 2, 3, 3] = float("nan")
    with use_backend("triton"):
        y = a_norm(4)(x, rectified=True)
    assert y.isnan().all((0, 2, 3)).tolist() == y.isnan().any((0, 2, 3)).tolist() == [False, False, True, False]
