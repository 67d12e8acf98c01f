"""A checkpoint belongs to the settings that its training began with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from kill_test import image_set
from medmambase import MedMambaSE, ModelConfig
from medmambase.config import CAME_LATER, ConfigError, Preprocessing, TrainConfig
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.manifest.folders import DataError, Sample
from medmambase.training import checkpoint
from medmambase.training.checkpoint import CheckpointError, Learning, State
from medmambase.training.optimise import make_optimizer

EPOCH = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": None, "val_accuracy": None}
EPOCH |= {"val_balanced_accuracy": None, "val_auc": None, "seconds": 1.0}
IMAGES = {"train": image_set(4, "train", 8)}


def learning(steps: int = 1) -> Learning:
    """A network after so many steps."""
    torch.manual_seed(0)
    model = ModelConfig(num_classes=3, in_chans=1, depths=(1,), dims=(8,), state=2)
    network = MedMambaSE(model, preprocessing=Preprocessing(size=8, channels=1))
    made = Learning(network, make_optimizer(network, TrainConfig()), None)
    for _ in range(steps):
        network(torch.randn(2, 1, 8, 8)).sum().backward()
        made.optimizer.step()
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("last")
    checkpoint.save(folder, learning(), State(step=1, sums=(1.0, 2.0, 4.0)), {}, IMAGES)
    return (folder / "state.safetensors").read_bytes()


def damaged(saved: bytes, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> bytes:
    """The same file with another state or other tensors, and without a checksum, as those of
    before."""
    words, tensors = checkpoint._words(saved), load(saved)
    del words["checksum"]
    change(words["state"], tensors)
    return save(tensors, {"training": json.dumps(words)})


def test_removed_images_are_named_and_not_those_that_other_splits_have_moved(tmp_path: Path) -> None:
    def of(**splits: str) -> ImageSet:
        images = image_set(len(splits), "train", 8)
        samples = [Sample(Path(name), 0, split, f"a/{name}") for name, split in splits.items()]
        return replace(images, samples=tuple(samples))

    rows = "".join(
        f"a/{name},0,,{split}\n" for name, split in zip("pqrs", ("train", "train", "val", "test"), strict=True)
    )
    (tmp_path / "splits.csv").write_text(f"path,label,patient,split\n{rows}", "utf-8")
    for changed, told in (
        (
            of(p="test", r="train", s="val"),
            r"start: 1 gone \(a/q\), so that images which have not changed are in other",
        ),
        (of(p="train", q="train", r="val", s="test", t="train"), r"start: 1 new \(a/t\); restore what changed"),
        (of(p="val", q="train", r="train", t="test"), r"start: 1 new \(a/t\), 1 gone \(a/s\), so that"),
    ):
        with pytest.raises(DataError, match=told):
            checkpoint.refuse_other_names(tmp_path, changed)
    # The same images, others to test on alone, and a run that has lost its list, are none of this.
    for there in (of(q="train", p="train", s="val", r="test"), of(p="train", q="train", r="val", t="test")):
        checkpoint.refuse_other_names(tmp_path, there)
    checkpoint.refuse_other_names(tmp_path / "nowhere", of(t="train"))
    named = of(**{"b\udcfc": "train"})  # which files have with escapes
    (tmp_path / "splits.csv").write_text("path,label,patient,split\na/b\\udcfc,0,,train\n", "utf-8")
    checkpoint.refuse_other_names(tmp_path, named)


def without(tensors: dict[str, Tensor], end: str) -> object:
    return tensors.pop(next(name for name in tensors if name.startswith("optimizer.") and name.endswith(end)))


def replaced(tensors: dict[str, Tensor], end: str, change: Callable[[Tensor], Tensor]) -> None:
    name = next(name for name in tensors if name.endswith(end))
    tensors[name] = change(tensors[name])


def one_is_nan(t: Tensor) -> Tensor:
    return t.flatten().index_fill(0, torch.tensor([0]), float("nan")).view_as(t)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, tensors: state.update(epoch="1"), "state.epoch is '1'; it must be a whole number"),
        (lambda state, tensors: state.update(epoch=3), "epoch 3, step 1 does not follow 0 epochs"),
        (lambda state, tensors: state.update(step=-1), "state.step is -1; it must be at least 0"),
        (lambda state, tensors: state.update(sums=[1.0, 2.0, 0.0]), "epoch 1, step 1 does not follow"),
        (lambda state, tensors: state.update(sums=[1.0, 2.0]), r"state.sums\[2\] is missing"),
        (
            lambda state, tensors: state.update(epoch=2, epochs=[EPOCH | {"val_auc": "0.5"}]),
            r"state.epochs\[0\].val_auc is '0.5'; it must be a number",
        ),
        (lambda state, tensors: without(tensors, "exp_avg"), "the optimiser's state of some parameter is not whole"),
        (lambda state, tensors: without(tensors, "step"), "the optimiser's state of some parameter is not whole"),
        (lambda state, tensors: replaced(tensors, ".exp_avg_sq", lambda t: t[:1]), r"exp_avg_sq is torch.float32 \(1"),
        (lambda state, tensors: replaced(tensors, ".exp_avg", lambda t: t.long()), "exp_avg is torch.int64"),
        (lambda state, tensors: replaced(tensors, ".step", lambda t: t.half()), "step is torch.float16"),
        (lambda state, tensors: replaced(tensors, ".exp_avg", lambda t: t / 0), "exp_avg holds NaN or infinity"),
        (lambda state, tensors: replaced(tensors, ".exp_avg", one_is_nan), "exp_avg holds NaN or infinity"),
    ],
)
def test_a_state_that_no_training_leaves_is_named_before_the_training_goes_on(
    change: Callable[[dict[str, Any], dict[str, Tensor]], object], message: str, saved: bytes, tmp_path: Path
) -> None:
    (tmp_path / "state.safetensors").write_bytes(damaged(saved, change))
    with pytest.raises(CheckpointError, match=rf"state\.safetensors: .*{message}"):
        checkpoint.load(tmp_path, learning(0), {}, IMAGES)


def test_a_state_whose_numbers_have_changed_since_is_refused(saved: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(saved[:-2] + bytes([saved[-2] ^ 1, saved[-1]]))
    with pytest.raises(
        CheckpointError, match=r"state\.safetensors: .*its checksum does not fit .*; delete it to train"
    ):
        checkpoint.load(tmp_path, learning(0), {}, IMAGES)


def test_a_whole_state_is_loaded(saved: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(
        damaged(saved, lambda state, tensors: state.update(epoch=2, epochs=[EPOCH]))
    )
    there, before = learning(2), learning().tensors()
    state = checkpoint.load(tmp_path, there, {}, IMAGES)
    assert state is not None and (state.epoch, state.step, state.epochs[0].lr) == (2, 1, 0.1)
    assert before.keys() == there.tensors().keys()
    for name, t in there.tensors().items():
        assert torch.equal(before[name], t), name


def test_a_checkpoint_names_what_came_later_only_where_it_asks_for_something(tmp_path: Path) -> None:
    """So one of before is resumed, but not with mixtures."""
    network = learning(0).network
    plain = checkpoint.describe(TrainConfig(), network, torch.float32, 1)
    assert (
        not {*CAME_LATER} & {*plain}
        and plain["block"] is None
        and TrainConfig().to_dict().items() >= CAME_LATER.items()
    )
    mixed = checkpoint.describe(TrainConfig(mixup=0.2, backbone_lr_factor=0.1), network, torch.float32, 1)
    assert mixed == plain | {"mixup": 0.2, "backbone_lr_factor": 0.1}
    with pytest.raises(ConfigError, match=r"mixup was not set and is 0\.2"):
        checkpoint._same_settings(tmp_path / "x", plain, mixed)


def test_settings_are_compared_by_value_so_that_a_whole_number_is_the_same_as_before(tmp_path: Path) -> None:
    checkpoint._same_settings(tmp_path / "x", {"warmup": 0, "depths": [1, 2]}, {"warmup": 0.0, "depths": [1, 2]})
    checkpoint._same_settings(tmp_path / "x", {}, {"model.se_hidden": None})  # a setting that did not exist yet
    for then, now, message in (
        ({"warmup": 0}, {"warmup": 0.5}, "warmup was 0 and is 0.5"),
        ({"block": "medmamba"}, {"block": None}, 'block was "medmamba" and is null'),
        ({}, {"lr": 1.0}, "lr was not set and is 1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            checkpoint._same_settings(tmp_path / "x", then, now)
