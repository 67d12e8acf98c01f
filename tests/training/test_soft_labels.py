"""Training images are learned by what a table says of them: every image found by its name, every
class in its place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kill_test import image_set
from medmambase import MedMambaSE, ModelConfig
from medmambase.config import ConfigError, Preprocessing, TrainConfig
from medmambase.data.decoded.image_set import no_progress
from medmambase.data.manifest.folders import DataError
from medmambase.data.manifest.sources import read_manifest
from medmambase.distributed import ALONE
from medmambase.evaluation.predictions import MetricsError, Predictions, write_predictions
from medmambase.settings import of_crossval, resolve
from medmambase.training import checkpoint
from medmambase.training.run import make_plan
from medmambase.training.soft_labels import soft_labels

CLASSES = ("a", "b", "c")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Probabilities of seven images, of which five are learned from; rows and classes in another
    order than theirs."""
    names = [sample.name for sample in image_set(5, "train").samples]
    names = ["other.png", *names[::-1], "val/0.png"]
    p = np.arange(1.0, 22).reshape(7, 3)
    p /= p.sum(axis=1, keepdims=True)
    path = tmp_path / "soft ü.csv"
    write_predictions(path, Predictions(tuple(names), np.zeros(7, dtype=np.int64), p, ("c", "a", "b")))
    return path


def test_each_image_is_learned_half_by_its_class_and_half_by_the_table(table: Path) -> None:
    images = image_set(5, "train")
    found = soft_labels(table, images, CLASSES)
    assert found.dtype == torch.float32 and found.shape == (5, 3)
    for row, label in enumerate(images.labels.tolist()):
        place = 5 - row  # of the table
        c, a, b = (3.0 * place + np.arange(1, 4)) / (9.0 * place + 6)
        wanted = np.array([a, b, c]) / 2 + np.eye(3)[label] / 2
        assert np.abs(found[row].numpy() - wanted).max() < 1e-6


def test_names_that_are_no_text_are_found_in_a_table(tmp_path: Path) -> None:
    images = image_set(2, "train")
    images = replace(images, samples=tuple(replace(one, name=f"\udcfc{one.name}") for one in images.samples))
    names = tuple(sample.name for sample in images.samples)
    write_predictions(tmp_path / "t.csv", Predictions(names, np.zeros(2, dtype=np.int64), np.eye(3)[:2], CLASSES))
    assert soft_labels(tmp_path / "t.csv", images, CLASSES).shape == (2, 3)


def test_a_table_that_does_not_fit_says_why(table: Path) -> None:
    with pytest.raises(DataError, match=r"soft ü\.csv: has no row for 4 training images, such as train/5\.png"):
        soft_labels(table, image_set(9, "train"), CLASSES)
    with pytest.raises(DataError, match="has the classes c, a, b, and the images a, b, d"):
        soft_labels(table, image_set(5, "train"), ("a", "b", "d"))
    with pytest.raises(MetricsError, match=r"nowhere\.csv"):
        soft_labels(table.with_name("nowhere.csv"), image_set(5, "train"), CLASSES)


def test_a_training_is_not_resumed_with_other_soft_labels() -> None:
    network = MedMambaSE(ModelConfig(dims=(4, 8), depths=(1, 1), in_chans=1), preprocessing=Preprocessing(16, 1))
    soft = torch.rand(5, 6)
    plain, one, other = (
        checkpoint.describe(TrainConfig(), network, torch.float32, 1, given) for given in (None, soft, soft + 1e-6)
    )
    assert one != other and {name for name in one if one[name] != plain.get(name)} == {"soft labels"}
    assert one == checkpoint.describe(TrainConfig(), network, torch.float32, 1, soft.clone())


def test_a_run_says_which_soft_labels_it_has_and_what_may_be_wrong_with_its_results(
    images: Path, table: Path, tmp_path: Path
) -> None:
    def notes(**given: str) -> tuple[str, ...]:
        settings = resolve({"data": str(images), "batch_size": 4, **given})
        plan = make_plan(settings, torch.device("cpu"), ALONE, None, no_progress)
        assert plan.manifest is not None
        return plan.manifest.notes

    *others, last = notes(soft_labels=str(table))
    assert tuple(others) == notes() and f"the probabilities in {table.name}: if a network that gave them" in last
    names = [sample.name for sample in read_manifest(images, seed=0).split("train")]
    rows = "".join(f"{name},{'val' if row % 5 == 0 else 'train'}\n" for row, name in enumerate(names))
    (tmp_path / "untested.csv").write_text(f"path,split\n{rows}", encoding="utf-8")
    *_, last = notes(soft_labels=str(table), splits=str(tmp_path / "untested.csv"))
    assert last == f"training images are learned, without label smoothing, half by the probabilities in {table.name}"
    with pytest.raises(DataError, match="--soft-labels nowhere: there is no such file"):
        notes(soft_labels="nowhere")


def test_where_they_would_say_too_much_they_are_refused() -> None:
    with pytest.raises(ConfigError, match="--soft-labels come from a network that may have learned"):
        of_crossval({"data": "x", "soft_labels": "p.csv"})
    with pytest.raises(ConfigError, match=r"--soft-labels is 'p\.csv', but --demo makes its own images"):
        resolve({"demo": True, "soft_labels": "p.csv"})
    assert resolve({"data": "x", "soft_labels": "/home/ann/p.csv"}).private() == {"soft_labels": "/home/ann/p.csv"}
