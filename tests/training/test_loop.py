"""The training loop: its steps by hand, which epoch is kept, and what happens when numbers end."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medmambase import MedMambaSE, ModelConfig
from medmambase.config import ConfigError, TrainConfig
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.manifest.folders import Sample
from medmambase.data.reading.images import Facts
from medmambase.evaluation.metrics import evaluate
from medmambase.model.network import last_map
from medmambase.training import history, loop
from medmambase.training.batches import batches_per_epoch, check_batches, seed_of
from medmambase.training.history import Epoch, kept, outcome


def image_set(count: int, size: int = 32) -> ImageSet:
    """Noise whose brightness is its class, so that it can be learned."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 100, (count, 1, size, size), generator=torch.Generator().manual_seed(1))
    samples = tuple(Sample(Path(f"{i}.png"), int(label), "train", f"{i}.png") for i, label in enumerate(labels))
    facts = tuple(Facts(str(i), size, size, "L", 1) for i in range(count))
    return ImageSet((noise + 70 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, samples, facts)


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
    ema=0,
    select_after=0,
    augmentation="none",
    epochs=3,
    batch_size=4,
)


def test_three_epochs_are_the_steps_that_a_person_would_write_down(tmp_path: Path) -> None:
    network, by_hand, data = small_network(), small_network(), image_set(12)
    loop.train(
        network, data, data, PLAIN, tmp_path, torch.float32, lambda items, total, text: items, lambda epoch: None
    )
    optimizer = torch.optim.Adam(by_hand.train().parameters(), lr=1e-3, fused=True)
    for epoch in (1, 2, 3):
        for rows in torch.randperm(12, generator=torch.Generator().manual_seed(seed_of(0, epoch))).split(4):
            optimizer.zero_grad()
            images = (data.images[rows].float() / 255 - 0.5) / 0.5
            torch.nn.functional.cross_entropy(by_hand(images), data.labels[rows]).backward()
            optimizer.step()
    for (name, trained), expected in zip(network.state_dict().items(), by_hand.state_dict().values(), strict=True):
        assert torch.allclose(trained, expected, atol=1e-5), name


def test_what_can_be_learned_is_learned(tmp_path: Path) -> None:
    data = image_set(48)
    config = replace(PLAIN, optimizer="adamw", lr=3e-3, epochs=8, batch_size=8)
    outcome = loop.train(
        small_network(),
        data,
        data,
        config,
        tmp_path,
        torch.float32,
        lambda items, total, text: items,
        lambda epoch: None,
    )
    assert outcome.best_score == 1.0
    assert outcome.epochs[-1].train_loss < 0.2 * outcome.epochs[0].train_loss


def test_patience_ends_a_training_that_no_longer_improves(tmp_path: Path) -> None:
    data = image_set(12)
    config = replace(PLAIN, lr=1e-12, epochs=20, patience=2)
    outcome = loop.train(
        small_network(),
        data,
        data,
        config,
        tmp_path,
        torch.float32,
        lambda items, total, text: items,
        lambda epoch: None,
    )
    assert len(outcome.epochs) - outcome.best_epoch == 2
    assert len(outcome.epochs) < 20


def epoch(number: int, auc: float | None, balanced: float | None = 0.5, loss: float = 1.0) -> Epoch:
    return Epoch(number, 1e-3, 1.0, 0.5, loss, 0.5, balanced, auc, 1.0)


def test_an_undefined_figure_is_replaced_by_the_next_that_is_defined() -> None:
    found = outcome([epoch(1, None, 0.4), epoch(2, None, 0.6)], PLAIN)
    assert (found.best_epoch, found.best_score, found.selected_by) == (2, 0.6, "balanced_accuracy")
    found = outcome([replace(epoch(number, None, None), val_accuracy=None) for number in (1, 2)], PLAIN)
    assert (found.best_epoch, found.best_score, found.selected_by) == (2, None, None)
    assert outcome([], PLAIN).best_epoch == 0


def test_no_early_epoch_is_chosen_however_good_it_looks_and_patience_waits_for_the_choice() -> None:
    config = replace(PLAIN, epochs=10, select_after=0.5, patience=2)
    epochs = [
        epoch(number, auc) for number, auc in enumerate((0.99, 0.9, 0.1, 0.2, 0.95, 0.5, 0.6, 0.55, 0.4), start=1)
    ]
    best = [outcome(epochs[:count], config).best_epoch for count in range(1, 10)]
    assert best == [1, 2, 3, 4, 5, 6, 7, 7, 7]  # of those that may not be chosen yet, the last stands for the best
    assert [history.is_over(epochs[:count], config) for count in range(1, 10)] == [False] * 8 + [True]
    assert outcome(epochs, replace(config, select_after=0)).best_epoch == 1
    chosen = outcome(epochs[:9], config)
    assert kept(chosen, config) == f"best epoch: {chosen.best_epoch}, of the epochs from 6 on"
    assert kept(chosen, replace(config, select_after=0)) == f"best epoch: {chosen.best_epoch}"


def follow(
    config: TrainConfig, data: ImageSet, validation: ImageSet, run: Path, network: MedMambaSE | None = None
) -> history.Outcome:
    return loop.train(
        network or small_network(),
        data,
        validation,
        config,
        run,
        torch.float32,
        lambda items, total, text: items,
        lambda epoch: None,
    )


def scripted(monkeypatch: pytest.MonkeyPatch, figures: Iterable[tuple[float, float, float]]) -> None:
    """Validation that says, epoch by epoch, (AUC, balanced accuracy, loss)."""
    script = iter(figures)

    def says(validation, probabilities, classes):
        auc, balanced, loss = next(script)
        metrics = evaluate(validation.labels, probabilities, classes)
        return replace(metrics, auc=auc, balanced_accuracy=balanced), loss

    monkeypatch.setattr(loop, "_figures", says)


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(0.8, 0.5, 1.0), (0.9, 0.4, 2.0), (0.8, 0.9, 0.1)], 2),  # the figure itself comes first
        ([(1.0, 0.5, 1.0), (1.0, 0.7, 2.0), (1.0, 0.6, 0.1)], 2),  # then balanced accuracy
        (
            [(1.0, 0.7, 1.0), (1.0, 0.7, 0.9), (1.0, 0.7, 0.9)],
            2,
        ),  # then the loss, and a whole tie keeps the earlier one
    ],
)
def test_a_tie_in_the_selecting_figure_goes_on_to_the_next(
    figures, best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, figures)
    outcome = follow(PLAIN, image_set(6), image_set(6), tmp_path)
    assert (outcome.best_epoch, outcome.best_score, outcome.selected_by) == (best, figures[best - 1][0], "auc")


def test_patience_counts_from_the_last_improvement_of_any_of_the_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(
        monkeypatch,
        [(1.0, 0.5, 1.0), (1.0, 0.6, 1.0), (1.0, 0.6, 0.5), (1.0, 0.6, 0.5), (1.0, 0.6, 0.6), (1.0, 1.0, 0.0)],
    )
    outcome = follow(replace(PLAIN, epochs=6, patience=2), image_set(6), image_set(6), tmp_path)
    assert (outcome.best_epoch, len(outcome.epochs)) == (3, 5)


@pytest.mark.parametrize("validated", [True, False])
def test_a_network_spoiled_by_the_last_step_of_an_epoch_is_not_kept(
    validated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, network = image_set(8), small_network()
    step, calls = torch.optim.Adam.step, []

    def spoils(self, *args):
        step(self, *args)
        calls.append(1)
        if len(calls) == spoiled_at:
            network.head.weight.data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.Adam, "step", spoils)
    spoiled_at = 4  # two steps an epoch: at the end of the second
    with pytest.raises(
        loop.TrainingError,
        match=r"non-finite after epoch 2 .*the last good network is in .*last; try a smaller --lr$",
    ):
        follow(PLAIN, data, data if validated else data.split("val"), tmp_path, network)
    for name in ("best", "last"):
        assert all(
            torch.isfinite(t).all()
            for t in load_file(tmp_path / name / "model.safetensors").values()
            if t.is_floating_point()
        )
    assert len((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 2
    calls.clear()
    spoiled_at, network, empty = 2, small_network(), tmp_path / "first"
    empty.mkdir()
    with pytest.raises(loop.TrainingError, match="no epoch was finished, so no network was saved"):
        follow(PLAIN, data, data if validated else data.split("val"), empty, network)
    assert not list(empty.iterdir())


def test_a_running_statistic_that_overflowed_is_found_though_the_outputs_are_numbers(tmp_path: Path) -> None:
    network, data = small_network(), image_set(8)
    network.stages[0].blocks[0].conv_branch[0].running_var.fill_(float("inf"))
    with pytest.raises(
        loop.TrainingError, match=r"stages\.0\.blocks\.0\.conv_branch\.0\.running_var is non-finite after epoch 1"
    ):
        follow(PLAIN, data, data, tmp_path, network)


def test_float32_is_not_advised_to_those_who_use_it() -> None:
    assert "float32" not in str(loop._diverged("x", 1.0, torch.float32, Path("run"), ()))
    assert "or --precision float32" in str(loop._diverged("x", 1.0, torch.bfloat16, Path("run"), ()))


def test_no_batch_has_one_image_unless_one_was_asked_for() -> None:
    for images in range(2, 70):
        for batch_size in range(2, 40):
            sizes = [len(rows) for rows in torch.arange(images).tensor_split(batches_per_epoch(images, batch_size))]
            assert min(sizes) >= 2 and max(sizes) <= batch_size + (batch_size == 2) and max(sizes) - min(sizes) <= 1, (
                images,
                batch_size,
                sizes,
            )
    assert [batches_per_epoch(5, 1), batches_per_epoch(1, 8), batches_per_epoch(48, 16)] == [5, 1, 3]


def test_five_images_in_batches_of_two_train_where_maps_are_one_pixel(tmp_path: Path) -> None:
    data = image_set(5, size=8)
    assert last_map(small_network().config, 8) == 1
    assert len(follow(replace(PLAIN, batch_size=2, epochs=1), data, data, tmp_path).epochs) == 1
    with pytest.raises(
        ConfigError,
        match=r"batch_size is 1, and images of 8 px .*; use --batch-size 2 or more, or a larger --image-size",
    ):
        follow(replace(PLAIN, batch_size=1), data, data, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"there is 1 training image, .*; add training images"):
        follow(PLAIN, image_set(1, size=8), data, tmp_path / "c")


def test_mixup_of_batches_of_one_is_refused_and_of_two_is_not(tmp_path: Path) -> None:
    model, config = small_network().config, replace(PLAIN, batch_size=1, mixup=0.2)
    with pytest.raises(ConfigError, match=r"--mixup is 0.2, .* only 1; use a larger --batch-size, or leave"):
        follow(config, image_set(3, size=16), image_set(3, size=16), tmp_path)
    with pytest.raises(ConfigError, match="some batch has only 1 in each of 2 processes"):
        check_batches(5, 16, 2, model, ranks=2, mixup=0.2)
    for images, size, ranks, mixup in ((5, 2, 1, 0.2), (8, 2, 2, 0.2), (5, 2, 2, 0.0), (3, 1, 1, 0.0)):
        check_batches(images, 16, size, model, ranks, mixup)


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
