"""The training loop: its steps by hand, which epoch is kept, and what happens when numbers end."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medmambase import MedMambaSE, ModelConfig
from medmambase.config import RECIPES, ConfigError, TrainConfig
from medmambase.data.decode import ImageSet
from medmambase.data.folders import Sample
from medmambase.evaluation.metrics import evaluate
from medmambase.model.network import last_map
from medmambase.training import loop


def image_set(count: int, size: int = 32) -> ImageSet:
    """Noise whose brightness is its class, so that it can be learned."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 100, (count, 1, size, size), generator=torch.Generator().manual_seed(1))
    samples = tuple(Sample(Path(f"{i}.png"), int(label), "train", f"{i}.png") for i, label in enumerate(labels))
    return ImageSet((noise + 70 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, samples)


def small_network() -> MedMambaSE:
    torch.manual_seed(0)
    return MedMambaSE(ModelConfig(num_classes=3, in_chans=1, depths=(1, 1), dims=(16, 32), drop_path=0.0))


PLAIN = TrainConfig(
    optimizer="adam",
    schedule="constant",
    lr=1e-3,
    weight_decay=0,
    warmup=0,
    patience=0,
    clip_norm=0,
    label_smoothing=0,
    augmentation="none",
    epochs=3,
    batch_size=4,
)


def test_three_epochs_are_the_steps_that_a_person_would_write_down(tmp_path: Path) -> None:
    network, by_hand, data = small_network(), small_network(), image_set(12)
    loop.train(network, data, data, PLAIN, tmp_path, torch.float32, lambda items, total, text: items, lambda epoch: None)
    optimizer = torch.optim.Adam(by_hand.train().parameters(), lr=1e-3, fused=True)
    for epoch in (1, 2, 3):
        for rows in torch.randperm(12, generator=loop._generator(0, epoch)).split(4):
            optimizer.zero_grad()
            images = (data.images[rows].float() / 255 - 0.5) / 0.5
            torch.nn.functional.cross_entropy(by_hand(images), data.labels[rows]).backward()
            optimizer.step()
    for (name, trained), expected in zip(network.state_dict().items(), by_hand.state_dict().values(), strict=True):
        assert torch.allclose(trained, expected, atol=1e-5), name


def test_what_can_be_learned_is_learned(tmp_path: Path) -> None:
    data = image_set(48)
    config = replace(PLAIN, optimizer="adamw", lr=3e-3, epochs=8, batch_size=8)
    outcome = loop.train(small_network(), data, data, config, tmp_path, torch.float32, lambda items, total, text: items, lambda epoch: None)
    assert outcome.best_score == 1.0
    assert outcome.epochs[-1].train_loss < 0.2 * outcome.epochs[0].train_loss


def test_patience_ends_a_training_that_no_longer_improves(tmp_path: Path) -> None:
    data = image_set(12)
    config = replace(PLAIN, lr=1e-12, epochs=20, patience=2)
    outcome = loop.train(small_network(), data, data, config, tmp_path, torch.float32, lambda items, total, text: items, lambda epoch: None)
    assert len(outcome.epochs) - outcome.best_epoch == 2
    assert len(outcome.epochs) < 20


def test_the_learning_rate_warms_up_and_follows_a_half_cosine() -> None:
    config = replace(TrainConfig(), lr=1.0, warmup=2.0, epochs=12)
    rates = [loop._learning_rate(config, moment) for moment in (0.0, 1.0, 2.0, 7.0, 12.0)]
    assert rates == [pytest.approx(0.01), pytest.approx(0.5), pytest.approx(1.0), pytest.approx(0.505), pytest.approx(0.01)]
    assert loop._learning_rate(RECIPES["readme"], 19.5) == 1e-3
    assert loop._learning_rate(replace(config, epochs=5), 1.0) == 1.0  # at most a fifth of the training is warm-up


def test_states_norms_and_biases_do_not_decay() -> None:
    network = MedMambaSE(ModelConfig(dims=(16, 32), depths=(1, 1)))
    decayed, free = (group["params"] for group in loop._optimizer(network, TrainConfig()).param_groups)
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in free} == {"bias", "weight", "A_log", "D", "dt_bias"}
    assert all(p.dim() < 2 for p in free if names[id(p)].endswith((".weight", ".bias")))
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed} == {"weight", "x_proj", "dt_weight", "squeeze", "excite"}
    assert len(decayed) + len(free) == len(names)


def test_an_undefined_figure_is_replaced_by_the_next_that_is_defined() -> None:
    metrics = evaluate(np.array([1, 1]), np.array([[0.2, 0.8], [0.9, 0.1]]), ["a", "b"])
    assert metrics.auc is None
    assert loop._score(metrics, TrainConfig()) == ("balanced_accuracy", 0.5)


def follow(config: TrainConfig, data: ImageSet, validation: ImageSet, run: Path, network: MedMambaSE | None = None) -> loop.Outcome:
    return loop.train(network or small_network(), data, validation, config, run, torch.float32, lambda items, total, text: items, lambda epoch: None)


def scripted(monkeypatch: pytest.MonkeyPatch, figures: Iterable[tuple[float, float, float]]) -> None:
    """Validation that says, epoch by epoch, (AUC, balanced accuracy, loss)."""
    script = iter(figures)

    def says(labels, probabilities, classes):
        auc, balanced, loss = next(script)
        return replace(evaluate(labels, probabilities, classes), auc=auc, balanced_accuracy=balanced), loss

    monkeypatch.setattr(loop, "_figures", says)


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(0.8, 0.5, 1.0), (0.9, 0.4, 2.0), (0.8, 0.9, 0.1)], 2),  # the figure itself comes first
        ([(1.0, 0.5, 1.0), (1.0, 0.7, 2.0), (1.0, 0.6, 0.1)], 2),  # then balanced accuracy
        ([(1.0, 0.7, 1.0), (1.0, 0.7, 0.9), (1.0, 0.7, 0.9)], 2),  # then the loss, and a whole tie keeps the earlier one
    ],
)
def test_a_tie_in_the_selecting_figure_goes_on_to_the_next(figures, best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, figures)
    outcome = follow(PLAIN, image_set(6), image_set(6), tmp_path)
    assert (outcome.best_epoch, outcome.best_score, outcome.selected_by) == (best, figures[best - 1][0], "auc")


def test_patience_counts_from_the_last_improvement_of_any_of_the_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [(1.0, 0.5, 1.0), (1.0, 0.6, 1.0), (1.0, 0.6, 0.5), (1.0, 0.6, 0.5), (1.0, 0.6, 0.6), (1.0, 1.0, 0.0)])
    outcome = follow(replace(PLAIN, epochs=6, patience=2), image_set(6), image_set(6), tmp_path)
    assert (outcome.best_epoch, len(outcome.epochs)) == (3, 5)


@pytest.mark.parametrize("validated", [True, False])
def test_a_network_spoiled_by_the_last_step_of_an_epoch_is_not_kept(validated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, network = image_set(8), small_network()
    step, calls = torch.optim.Adam.step, []

    def spoils(self, *args):
        step(self, *args)
        calls.append(1)
        if len(calls) == spoiled_at:
            network.head.weight.data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.Adam, "step", spoils)
    spoiled_at = 4  # two steps an epoch: at the end of the second
    with pytest.raises(loop.TrainingError, match=r"no numbers after epoch 2 .*the last good network lies in .*last; try a smaller --lr$"):
        follow(PLAIN, data, data if validated else data.split("val"), tmp_path, network)
    for name in ("best", "last"):
        assert all(torch.isfinite(t).all() for t in load_file(tmp_path / name / "model.safetensors").values() if t.is_floating_point())
    assert len((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 2
    calls.clear()
    spoiled_at, network, empty = 2, small_network(), tmp_path / "first"
    empty.mkdir()
    with pytest.raises(loop.TrainingError, match="no epoch was finished, so no network was kept"):
        follow(PLAIN, data, data if validated else data.split("val"), empty, network)
    assert not list(empty.iterdir())


def test_a_running_statistic_that_overflowed_is_found_though_the_outputs_are_numbers(tmp_path: Path) -> None:
    network, data = small_network(), image_set(8)
    network.stages[0].blocks[0].conv_branch[0].running_var.fill_(float("inf"))
    with pytest.raises(loop.TrainingError, match=r"stages\.0\.blocks\.0\.conv_branch\.0\.running_var is no longer finite after epoch 1"):
        follow(PLAIN, data, data, tmp_path, network)


def test_float32_is_not_advised_to_those_who_use_it() -> None:
    assert "float32" not in str(loop._diverged("x", 1.0, torch.float32, None))
    assert "or --precision float32" in str(loop._diverged("x", 1.0, torch.bfloat16, None))


def test_no_batch_has_one_image_unless_one_was_asked_for() -> None:
    for images in range(2, 70):
        for batch_size in range(2, 40):
            sizes = [len(rows) for rows in torch.arange(images).tensor_split(loop.batches_per_epoch(images, batch_size))]
            assert min(sizes) >= 2 and max(sizes) <= batch_size + (batch_size == 2) and max(sizes) - min(sizes) <= 1, (images, batch_size, sizes)
    assert [loop.batches_per_epoch(5, 1), loop.batches_per_epoch(1, 8), loop.batches_per_epoch(48, 16)] == [5, 1, 3]


def test_five_images_in_batches_of_two_train_where_maps_are_one_pixel(tmp_path: Path) -> None:
    data = image_set(5, size=8)
    assert last_map(small_network().config, 8) == 1
    assert len(follow(replace(PLAIN, batch_size=2, epochs=1), data, data, tmp_path).epochs) == 1
    with pytest.raises(ConfigError, match=r"batch_size is 1, and images of 8 px .*; use --batch-size 2 or more, or a larger --image-size"):
        follow(replace(PLAIN, batch_size=1), data, data, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"there is 1 training image, .*; add training images"):
        follow(PLAIN, image_set(1, size=8), data, tmp_path / "c")


def test_batches_of_one_are_allowed_where_maps_are_larger(tmp_path: Path) -> None:
    data = image_set(3, size=16)
    assert len(follow(replace(PLAIN, batch_size=1, epochs=1), data, data, tmp_path).epochs) == 1


@pytest.mark.parametrize("odd", ["pad", "crop"])
@pytest.mark.parametrize("size", [16, 31, 32, 33, 100])
def test_the_last_map_is_as_large_as_it_is_said_to_be(odd: str, size: int) -> None:
    network = MedMambaSE(ModelConfig(num_classes=3, in_chans=1, depths=(1, 1, 1), dims=(4, 8, 16), odd=odd)).eval()
    with torch.inference_mode():
        side = last_map(network.config, size)
        assert network.forward_features(torch.zeros(1, 1, size, size)).shape[1:3] == (side, side)
