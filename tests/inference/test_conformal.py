"""Thresholds learned on validation images keep their promise on images to come."""

import json
from pathlib import Path

import numpy as np
import pytest

from medmambase.data.manifest.folders import DataError
from medmambase.inference.conformal import COVERAGE, Bound, Sets
from medmambase.model.task import SINGLE_LABEL


def drawn(rng: np.random.Generator, patients: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (patients, each, 3) of a network that is often wrong, and about the images of
    one patient in the same way; and the labels (patients, each)."""
    labels = rng.integers(0, 3, (patients, each))
    liking = rng.normal(0, 2, (patients, 1, 3)) if each > 1 else 0
    logits = 2 * np.eye(3)[labels] + rng.normal(0, 1, (patients, each, 3)) + liking
    return SINGLE_LABEL.apply_temperature(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), 1.0), labels


def coverage(patients: int, each: int, known: bool) -> np.ndarray:
    """The coverage on 200 patients to come, of each of 200 sets of validation images."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        probabilities, labels = drawn(rng, patients + 200, each)
        val, test = probabilities[:patients].reshape(-1, 3), probabilities[patients:].reshape(-1, 3)
        names = [f"p{row // each}" if known else "" for row in range(len(val))]
        sets = Sets.of(val, labels[:patients].reshape(-1), names, 0.7)
        found.append(sets.holds(test)[np.arange(len(test)), labels[patients:].reshape(-1)].mean())
    return np.array(found)


def test_over_200_divisions_sets_hold_the_true_class_as_often_as_was_promised() -> None:
    alone = coverage(100, 1, known=False)
    assert 0.945 < alone.mean() < 0.965 and 0.005 < alone.std() < 0.05
    assert 0.945 < coverage(60, 8, known=True).mean() < 0.975


def test_a_threshold_of_images_is_the_rank_of_the_textbook_and_of_too_few_the_highest() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(100.0))
    assert Bound.of(scores, [""] * 100, 0.95) == Bound(95.0, 0.95, 100, "images")  # the 96th of 100: ceil(101 * 0.95)
    assert Bound.of(scores[:19], [""] * 19, 0.95) == Bound(float(scores[:19].max()), 0.95, 19, "images")
    few = Bound.of(scores[:18], [""] * 18, 0.95)
    assert few == Bound(float(scores[:18].max()), 18 / 19, 18, "images")
    assert few.falls_short(0.95) == "18 validation images can promise 94.7% at most, not 95.0%: that takes 19"
    assert Bound.of(scores[:1], ["a"], 0.95).falls_short(0.95).startswith("1 validation patient can promise 50.0%")
    assert Bound.of(scores[:19], [""] * 19, 0.95).falls_short(0.95) == ""


def test_a_patient_with_many_images_weighs_as_much_as_one_with_few() -> None:
    many, few = np.full(900, 5.0), np.arange(19) / 19  # 900 images of one patient, one each of 19 others
    patients = ["a"] * 900 + [f"p{row}" for row in range(19)]
    found = Bound.of(np.concatenate([many, few]), patients, 0.9)
    assert (found.threshold, found.units, found.counted) == (float(few[18]), 20, "patients")  # 19 / 21 is above 0.9
    assert Bound.of(np.concatenate([many, few]), [""] * 919, 0.9).threshold == 5.0
    unnamed = Bound.of(few, ["a", "a", *[""] * 17], 0.5)
    assert (unnamed.units, unnamed.counted) == (18, "patients")  # images of nobody known stand alone


def test_a_set_is_never_empty_and_holds_whatever_is_as_probable_as_its_threshold() -> None:
    sets = Sets(1.0, COVERAGE, Bound(0.75, 0.95, 100, "images"))
    held = sets.holds(np.array([[0.5, 0.25, 0.25], [0.8, 0.15, 0.05], [0.74, 0.26, 0.0]]))
    assert held.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert Sets(1.0, COVERAGE, Bound(0.1, 0.95, 9, "images")).holds(np.array([[0.4, 0.6]])).tolist() == [[False, True]]
    warm = Sets(4.0, COVERAGE, Bound(0.75, 0.95, 100, "images"))
    assert warm.holds(np.array([[0.8, 0.15, 0.05]])).tolist() == [[True, True, False]]  # 0.46, 0.31 and 0.23


def test_sets_come_back_as_they_were_written_and_damage_is_named(tmp_path: Path) -> None:
    probabilities, labels = drawn(np.random.default_rng(1), 30, 1)
    sets, path = Sets.of(probabilities[:, 0], labels[:, 0], [""] * 30, 1.5), tmp_path / "conformal.json"
    assert Sets.read(path) is None
    path.write_text(json.dumps(sets.to_dict()), encoding="utf-8")
    assert Sets.read(path) == sets
    for damage in ({"temperature": 0.0}, {"bound": {}}, {"wanted": 2.0}, {"more": 1}):
        path.write_text(json.dumps(sets.to_dict() | damage), encoding="utf-8")
        with pytest.raises(DataError, match=r"conformal\.json"):
            Sets.read(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="medmambase-evaluate"):
        Sets.read(path)
