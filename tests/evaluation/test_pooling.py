"""What the folds have predicted, put together: every image once, and figures that can be checked by
hand."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from medmambase.evaluation.calibration import fit, with_temperature
from medmambase.evaluation.pooling import Division, of_fold, over_folds, pooled
from medmambase.evaluation.predictions import MetricsError, Predictions, write_predictions

CLASSES = ("cyst", "solid")


def predictions_of(fold: int, count: int = 12) -> Predictions:
    rng = np.random.default_rng(fold)
    solid = rng.random(count).clip(0.02, 0.98)
    labels = (rng.random(count) < solid).astype(np.int64)
    names = tuple(f"{image:02} {fold}.png" for image in range(count))
    patients = tuple(f"p{fold}{image // 2}" for image in range(count))
    return Predictions(names, labels, np.stack([1 - solid, solid], 1), CLASSES, patients)


def run_of(folder: Path, fold: int, temperature: float) -> Predictions:
    found = predictions_of(fold)
    calibration = fit(found)
    assert calibration is not None
    write_predictions(folder / f"fold-{fold}" / "test" / "predictions.csv", found)
    (folder / f"fold-{fold}" / "calibration.json").write_text(
        json.dumps(calibration.to_dict() | {"temperature": temperature}), encoding="utf-8"
    )
    return found


def parts(folds: list[Predictions]) -> Division:
    return Division((), "", {name: number for number, one in enumerate(folds) for name in one.names})


def test_each_fold_has_its_own_temperature_and_figures_without_leaked_images(tmp_path: Path) -> None:
    raw = run_of(tmp_path, 0, 2.5)
    leaked = replace(raw, leaked=np.arange(12) < 3)
    write_predictions(tmp_path / "fold-0" / "test" / "predictions.csv", leaked)
    found, told = of_fold(tmp_path / "fold-0")
    warmer = raw.probabilities ** (1 / 2.5)
    warmer /= warmer.sum(axis=1, keepdims=True)
    assert np.abs(found.probabilities - warmer).max() < 1e-12 and found.names == raw.names
    assert (told.name, told.images, told.patients, told.temperature) == ("fold-0", 9, 5, 2.5)
    called = warmer.argmax(axis=1)
    assert told.figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(raw.labels[3:], called[3:]))
    assert told.figures["auc"] == pytest.approx(roc_auc_score(raw.labels[3:], warmer[3:, 1]))
    brier = np.mean((warmer[3:, 1] - raw.labels[3:]) ** 2)
    assert told.figures["brier"] == pytest.approx(brier)


def test_all_folds_together_have_every_image_once_in_the_order_of_the_names() -> None:
    folds = [predictions_of(0), with_temperature(predictions_of(1), 3.0)]
    found = pooled(folds, parts(folds))
    assert list(found.names) == sorted(name for one in folds for name in one.names)
    for one in folds:
        rows = [found.names.index(name) for name in one.names]
        assert np.array_equal(found.probabilities[rows], one.probabilities)
        assert np.array_equal(found.labels[rows], one.labels)
        assert tuple(found.patients[row] for row in rows) == one.patients
    assert len(set(found.clusters.tolist())) == 12


def test_folds_that_do_not_belong_together_are_named() -> None:
    folds = [predictions_of(0), predictions_of(1)]
    with pytest.raises(
        MetricsError, match=r"fold 1 was tested on 00 0\.png, .*the images have changed .*its predictions\.csv"
    ):
        pooled([folds[0], folds[0]], parts(folds))
    with pytest.raises(MetricsError, match="fold 1 knows the classes solid, cyst, and fold 0 cyst, solid"):
        pooled([folds[0], replace(folds[1], classes=CLASSES[::-1])], parts(folds))


def test_an_image_that_all_folds_are_tested_on_has_the_mean_of_their_probabilities() -> None:
    first = predictions_of(0)
    other = replace(first.rows(range(11, -1, -1)), probabilities=first.probabilities.copy(), leaked=np.arange(12) < 1)
    divided = Division((), "", {"learned from": 1, **dict.fromkeys(first.names)})
    found = pooled([first, other], divided)
    with pytest.raises(MetricsError, match="fold 1 was tested on learned from, which is not"):
        pooled([first, replace(other, names=("learned from", *other.names[1:]))], divided)
    assert found.names == first.names and found.patients == first.patients
    assert np.array_equal(found.labels, first.labels)
    assert np.allclose(found.probabilities, (first.probabilities + first.probabilities[::-1]) / 2)
    assert found.leaked.tolist() == [False] * 11 + [True]


def test_mean_and_standard_deviation_are_those_of_the_folds_that_have_the_figure(tmp_path: Path) -> None:
    for fold in (0, 1, 2):
        run_of(tmp_path, fold, 1.0)
    told = [of_fold(tmp_path / f"fold-{fold}")[1] for fold in (0, 1, 2)]
    told[2] = replace(told[2], figures=told[2].figures | {"auc": None})
    found = over_folds(told, together=False)
    for name, some in (("accuracy", told), ("auc", told[:2])):
        values = [one.figures[name] for one in some]
        assert found["mean"][name] == pytest.approx(np.mean(values))
        assert found["spread"][name] == pytest.approx(stdev(values))
    assert over_folds(told[:1], together=True)["spread"]["accuracy"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
