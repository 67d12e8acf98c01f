"""A training step is a function of tensors: it can be captured as a CUDA graph, and keeps nothing
of the step that it was captured with."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from capture_rules import CaptureError, capturing
from conftest import TRITON
from torch import nn

from kill_test import image_set
from medmambase import MedMambaSE, ModelConfig
from medmambase.config import Preprocessing, TrainConfig
from medmambase.data.augment import keys_of
from medmambase.distributed import ALONE
from medmambase.model.layers import SSConvSSM
from medmambase.model.task import SINGLE_LABEL
from medmambase.training import step as steps
from medmambase.training.checkpoint import Learning
from medmambase.training.optimise import make_optimizer, set_rate
from medmambase.training.step import Step

CONFIG = TrainConfig(batch_size=4, image_size=16, balance="weights")


def step_of(config: TrainConfig, device: str = "meta", block: str = "medmambase") -> Step:
    torch.manual_seed(0)
    model = ModelConfig(
        num_classes=3, in_chans=1, depths=(1, 2), dims=(8, 16), drop_path=0.2, drop_rate=0.1, block=block
    )
    network = MedMambaSE(model, preprocessing=Preprocessing(size=16, channels=1)).to(device).train()
    data = image_set(9, "train")
    weights = SINGLE_LABEL.class_weights(data.labels, 3, config.balance == "weights")
    return Step(
        Learning(network, make_optimizer(network, config), None), network, data, config, torch.float32, weights, ALONE
    )


@pytest.fixture(autouse=True)
def without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch asks whether the fused optimiser and autocast run on a device: on this one neither
    does."""
    monkeypatch.setattr(steps, "logits_of", lambda network, images, dtype: network(images))
    monkeypatch.setattr(import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda *_, **__: None)


def two_steps(step: Step, backend: str, rate: Callable[[int], None] | None = None) -> list[list[tuple[str, str]]]:
    """The operations of two steps that differ in everything that may differ."""
    inputs = step.batch(torch.arange(4), 1, 4.0).to(step.device)
    assert step._targets.is_meta  # moved before a capture, as the moments come into being
    with capturing(backend):
        step.whole(inputs)
    recorded = []
    for number in (1, 2):
        fresh = step.batch(torch.arange(4) + number, number, step.weight_of(torch.arange(4) + number))
        set_rate(step.learning.optimizer, 0.1 / number)
        if rate is not None:
            rate(number)
        for mine, theirs in zip(inputs, fresh, strict=True):
            mine.copy_(theirs)
        with capturing(backend) as mode:
            step.whole(inputs)
        recorded.append(mode.operations)
    return recorded


@pytest.mark.parametrize("backend", ["torch", TRITON])
@pytest.mark.parametrize(
    ("changes", "block"),
    [
        ({}, "medmambase"),
        ({"augmentation": "trivial", "mixup": 0.4, "backbone_lr_factor": 0.1}, "medmambase"),
        pytest.param(
            {"augmentation": "crop_flip", "optimizer": "adam", "laterality": True}, "notebook", marks=pytest.mark.slow
        ),
        pytest.param({"augmentation": "none", "clip_norm": 0.0, "balance": "none"}, "medmamba", marks=pytest.mark.slow),
    ],
)
def test_a_step_can_be_captured_and_keeps_nothing_of_the_step_it_was_captured_with(
    changes: dict[str, object], block: str, backend: str
) -> None:
    step = step_of(replace(CONFIG, **changes), block=block)
    first, second = two_steps(step, backend)
    assert first == second
    names = [name for name, _ in first]
    assert len(names) > 200 and any("_fused_adam" in name and "tensor_lr" in name for name in names)
    assert ("selective_scan_2d" in str(names)) and (backend != "triton" or "carry" in str(names) or "backward" in names)
    assert all(p.grad is None for p in step.network.parameters())


def test_an_image_is_augmented_anew_in_each_epoch_and_the_loss_is_a_mean() -> None:
    step, rows = step_of(CONFIG), torch.tensor([2, 7, 9 + 2])  # the last is the first once more
    batch, later = step.batch(rows, 1, 8.0), step.batch(rows, 2, 8.0)
    assert torch.equal(batch.keys, keys_of(CONFIG.seed, 1, rows)) and not (batch.keys == later.keys).any()
    assert torch.equal(batch.images, step.training.images[[2, 7, 2]])
    assert torch.equal(batch.labels, step.training.labels[[2, 7, 2]])
    assert batch.factor == 1 / 8 and batch.factor.dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_of_a_batch_and_its_gradient_are_torchs_cross_entropy(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = step_of(replace(CONFIG, label_smoothing=smoothing), "cpu")
    step = replace(plain, weights=torch.tensor([0.5, 2.0, 0.0]))
    batch = step.batch(torch.arange(6), 1, 8.0)
    assert set(batch.labels.tolist()) == {0, 1, 2}
    logits = (3 * torch.randn(6, 3)).requires_grad_()
    monkeypatch.setattr(steps, "logits_of", lambda network, images, dtype: logits)
    found = step.gradients(batch)
    loss = nn.functional.cross_entropy(logits, batch.labels, step.weights, label_smoothing=smoothing, reduction="sum")
    (expected,) = torch.autograd.grad(loss / 8, logits)
    hits = (logits.argmax(1) == batch.labels).sum()
    torch.testing.assert_close(found, torch.stack([loss.detach(), hits.float()]))
    torch.testing.assert_close(logits.grad, expected)


def test_soft_labels_are_learned_as_torchs_cross_entropy_learns_them(monkeypatch: pytest.MonkeyPatch) -> None:
    soft = torch.rand(9, 3).softmax(1)
    plain = step_of(replace(CONFIG, label_smoothing=0.3), "cpu")
    step = replace(plain, weights=torch.tensor([0.5, 2.0, 1.0]), soft=soft)
    rows = torch.tensor([3, 1, 8, 3 + 9])  # the last is the first once more
    batch = step.batch(rows, 1, 8.0)
    assert torch.equal(batch.soft, soft[[3, 1, 8, 3]])
    logits = (3 * torch.randn(4, 3)).requires_grad_()
    monkeypatch.setattr(steps, "logits_of", lambda network, images, dtype: logits)
    found = step.gradients(batch)
    loss = nn.functional.cross_entropy(logits, batch.soft, step.weights, reduction="sum")
    (expected,) = torch.autograd.grad(loss / 8, logits)
    torch.testing.assert_close(found[0], loss.detach())
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("soft", [False, True])
def test_mixtures_are_learned_as_the_loss_of_both_their_labels(soft: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the share that each image has in its mixture, with weights and smoothing, and so are hits
    counted."""
    config = replace(CONFIG, mixup=0.4, label_smoothing=0.3, augmentation="none")
    table = torch.rand(9, 3).softmax(1) if soft else None
    step = replace(step_of(config, "cpu"), weights=torch.tensor([0.5, 2.0, 1.0]), soft=table)
    rows, before = torch.tensor([3, 1, 8, 4, 5]), torch.tensor([4, 0, 1, 2, 3])
    batch = step.batch(rows, 1, 8.0)
    (share,) = batch.share.tolist()
    assert (
        0 < share < 1 and len({share, *(step.batch(r, e, 8.0).share.item() for r, e in ((rows, 2), (before, 1)))}) == 3
    )
    seen: list[torch.Tensor] = []
    logits = (3 * torch.randn(5, 3)).requires_grad_()

    def network_of(network: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        seen.append(images)
        return logits

    def loss(order: torch.Tensor) -> torch.Tensor:
        learned, smoothing = (batch.labels, 0.3) if table is None else (batch.soft, 0.0)
        return nn.functional.cross_entropy(
            logits, learned[order], step.weights, label_smoothing=smoothing, reduction="sum"
        )

    monkeypatch.setattr(steps, "logits_of", network_of)
    found, own = step.gradients(batch), torch.arange(5)
    plain = steps.normalise(batch.images, step.network.preprocessing)
    torch.testing.assert_close(seen[0], share * plain + (1 - share) * plain[before])
    whole = share * loss(own) + (1 - share) * loss(before)
    (expected,) = torch.autograd.grad(whole / 8, logits)
    right, wrong = ((logits.argmax(1) == batch.labels[order]).sum().item() for order in (own, before))
    torch.testing.assert_close(found, torch.stack([whole.detach(), torch.tensor(share * right + (1 - share) * wrong)]))
    torch.testing.assert_close(logits.grad, expected)
    assert step_of(CONFIG).batch(rows, 1, 8.0).share.numel() == 0


def item(step: Step, patch: pytest.MonkeyPatch) -> None:
    norm = nn.utils.get_total_norm
    patch.setattr(nn.utils, "get_total_norm", lambda gradients: norm(gradients) * (norm(gradients).item() > 0))


def boolean_index(step: Step, patch: pytest.MonkeyPatch) -> None:
    plain = steps.normalise
    patch.setattr(steps, "normalise", lambda t, how: plain(t[t.amax((1, 2, 3)) > 0], how))


def weights_on_the_host(step: Step, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(step.__dict__, "_targets", step.weights.diag())


def copy_of_the_weights(step: Step, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Step, "_targets", property(lambda self: self.weights.diag().to(self.device)))


def recomputed(step: Step, patch: pytest.MonkeyPatch) -> None:
    step.network.recompute = True


def number_from_the_host(step: Step, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SSConvSSM, "forward", lambda self, x, factor, counted: x + torch.tensor(1.0).to(x.device))


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (item, "_local_scalar_dense waits"),
        (boolean_index, "waits for the GPU"),
        (weights_on_the_host, "a tensor on {'cpu'}"),
        (copy_of_the_weights, "a tensor on {'cpu'}"),
        (recomputed, "reads or writes the generator's state"),
        (number_from_the_host, "a tensor on {'cpu'}"),
    ],
)
def test_what_a_capture_refuses_is_found(
    plant: Callable[[Step, pytest.MonkeyPatch], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = step_of(CONFIG)
    inputs = step.batch(torch.arange(4), 1, 4.0).to(step.device)
    assert step._targets.is_meta
    plant(step, monkeypatch)
    with pytest.raises(CaptureError, match=said), capturing("torch"):
        step.whole(inputs)


def test_a_learning_rate_that_is_a_python_number_is_found() -> None:
    step = step_of(CONFIG)

    def planted(number: int) -> None:
        for group in step.learning.optimizer.param_groups:
            group["lr"] = 0.1 / number

    first, second = two_steps(step, "torch", planted)
    different = [name for (name, one), (_, other) in zip(first, second, strict=True) if one != other]
    assert len(different) == 2 and all("_fused_adamw_" in name for name in different)  # two groups


def test_a_number_of_the_epoch_in_the_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    step, plain = step_of(CONFIG), steps.normalise
    epochs = iter((1, 1, 2))
    monkeypatch.setattr(steps, "normalise", lambda t, how: plain(t, how) * next(epochs))
    first, second = two_steps(step, "torch")
    assert first != second
