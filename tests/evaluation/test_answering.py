"""What comes of not answering is counted as it is by hand, and the report says it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_run import finished_run

from medmambase.evaluation import calibration
from medmambase.evaluation.calibration import with_temperature
from medmambase.evaluation.predictions import MetricsError, Predictions, write_predictions
from medmambase.evaluation.report import answering, report
from medmambase.inference.conformal import Sets
from medmambase.inference.limits import Limits


@pytest.fixture
def predictions() -> Predictions:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    scores = np.eye(3)[labels] + 1.2 * rng.random((60, 3))
    names, patients = tuple(f"{row}.png" for row in range(60)), tuple(f"p{row // 3}" for row in range(60))
    return Predictions(names, labels, scores / scores.sum(1, keepdims=True), ("a", "b", "c"), patients)


def test_figures_are_those_counted_by_hand(predictions: Predictions) -> None:
    sets = Sets.of(predictions.probabilities, predictions.labels, predictions.patients, 0.5)
    distances = np.linspace(0.5, 1.1, 60)
    found = answering.figures(predictions, Limits((), (sets,)), distances, 0.5)
    right = predictions.predicted == predictions.labels
    assert found["unlike"]["images"] == (distances > 1).sum() and found["unlike"]["promised"] is None
    assert found["unlike"]["share"]["figure"] == pytest.approx((distances > 1).mean())
    assert found["unlike"]["accuracy"]["figure"] == pytest.approx(right[distances > 1].mean())
    assert found["unlike"]["accuracy_of_others"]["figure"] == pytest.approx(right[distances <= 1].mean())
    held = sets.holds(predictions.probabilities)
    assert found["sets"]["coverage"]["figure"] == pytest.approx(held[np.arange(60), predictions.labels].mean())
    assert found["sets"]["size"] == pytest.approx(held.sum(1).mean()) and sum(found["sets"]["sizes"]) == 60
    assert (found["sets"]["units"], found["sets"]["counted"]) == (20, "patients")
    confidence = with_temperature(predictions, 0.5).probabilities.max(1)
    half = np.argsort(-confidence)[:30]
    (point,) = [one for one in found["curve"] if one["images"] == 30]
    assert point["accuracy"]["figure"] == pytest.approx(right[half].mean())
    assert point["accuracy"]["low"] < point["accuracy"]["figure"] and point["confidence"] == confidence[half].min()
    assert found["curve"][0]["share"] == 1 and found["curve"][0]["accuracy"]["figure"] == pytest.approx(right.mean())


def test_leaked_images_do_not_count_and_what_is_not_known_is_none(predictions: Predictions) -> None:
    leaked = replace(predictions, leaked=np.arange(60) < 20)
    found = answering.figures(leaked, Limits(), np.where(np.arange(60) < 20, 2.0, 0.5), 1.0)
    assert found["unlike"]["images"] == 0 and found["unlike"]["accuracy"]["figure"] is None
    assert found["sets"] is None and found["curve"][0]["images"] == 40
    none = answering.figures(predictions.rows([]), Limits(), None, 1.0)
    assert none == {"unlike": None, "sets": None, "curve": None}


def test_distances_come_back_by_name_and_damage_is_named(predictions: Predictions, tmp_path: Path) -> None:
    path, distances = tmp_path / "distances.csv", np.random.default_rng(0).random(60)
    answering.write_distances(path, predictions, distances)
    turned = predictions.rows(np.arange(60)[::-1])
    assert answering.read_distances(path, turned) == pytest.approx(distances[::-1], abs=0)
    assert answering.read_distances(tmp_path / "none.csv", predictions) is None
    for damage in ("path,distance\n0.png,far\n", "path,distance\n0.png,0.5\n", "x\n1\n"):
        path.write_text(damage, encoding="utf-8")
        with pytest.raises(MetricsError, match=r"distances\.csv"):
            answering.read_distances(path, predictions)


def test_the_report_and_the_model_card_say_it(predictions: Predictions, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    write_predictions(run / "val" / "predictions.csv", predictions)
    plain = report.write_report(run).read_text(encoding="utf-8")
    assert "When it should not answer" not in plain
    found = calibration.fit(predictions)
    answering.write_again(run, found)  # of an earlier version: sets, and nothing of what is unlike
    page = report.write_report(run).read_text(encoding="utf-8")
    told = json.loads((run / "test" / "answering.json").read_text(encoding="utf-8"))
    assert told["unlike"] is None and "is not known" in page and "Sets of classes" in page
    assert f"{told['sets']['coverage']['figure']:.3f}" in page and "answered.png" not in page
    tested = answering.read_predictions(run / "test" / "predictions.csv")
    answering.write_distances(run / "test" / "distances.csv", tested, np.linspace(0, 1.2, 30))
    answering.write_again(run, found)
    page, card = report.write_report(run).read_text(encoding="utf-8"), (run / "MODEL_CARD.md").read_text("utf-8")
    for text in (page, card):
        assert "0.167 (" in text and "Unlike the training images" in text  # 5 of 30
    assert "A larger share than that" not in page  # than what: nothing is promised
    assert 'id="word-unlike"' in page and 'id="word-set"' in page
