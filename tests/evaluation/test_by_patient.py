"""Figures counted in patients, against a computation by hand."""

import csv
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from interval_coverage import Population, of_rows
from medmambase.evaluation import calibration
from medmambase.evaluation.by_patient import evaluate_both, of_patients
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.metrics import Metrics, evaluate
from medmambase.evaluation.predictions import Predictions, read_predictions
from medmambase.evaluation.report import results
from medmambase.run_folder import BY_PATIENT, PREDICTIONS, TEST

PATIENTS = Population(classes=3, images=5, alike=0.6)
WARM = calibration.Calibration(1.7, ())


def by_hand(table: Path, temperature: float, leaked: bool = True) -> dict[str, float]:
    """Compute figures of patients from predictions.csv with loops: accuracy, sensitivities, AUC,
    average precision, Brier score."""
    images = defaultdict(list)
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if leaked or row["leaked"] == "no"]
    classes = [name.removeprefix("prob_") for name in rows[0] if name.startswith("prob_")]
    for row in rows:
        raw = [float(row[f"prob_{name}"]) ** (1 / temperature) for name in classes]
        images[row["patient"]].append((row["label"], [one / math.fsum(raw) for one in raw]))
    patients = [
        (own[0][0], [math.fsum(column) / len(own) for column in zip(*(p for _, p in own), strict=True)])
        for own in images.values()
        if len({label for label, _ in own}) == 1
    ]
    right = [classes[probabilities.index(max(probabilities))] == label for label, probabilities in patients]
    found = {"accuracy": sum(right) / len(right), "patients": float(len(patients))}
    for place, name in enumerate(classes):
        ours = [probabilities[place] for label, probabilities in patients if label == name]
        theirs = [probabilities[place] for label, probabilities in patients if label != name]
        wins = [(one > other) + (one == other) / 2 for one in ours for other in theirs]
        found[f"{place}/auc"] = math.fsum(wins) / len(wins)
        of_class = [ok for (label, _), ok in zip(patients, right, strict=True) if label == name]
        found[f"{place}/sensitivity"] = sum(of_class) / len(of_class)
        reached = [(sum(x >= one for x in ours), sum(x >= one for x in theirs)) for one in ours]
        found[f"{place}/ap"] = math.fsum(true / (true + false) for true, false in reached) / len(ours)
    squares = [
        math.fsum((one - (name == label)) ** 2 for one, name in zip(p, classes, strict=True)) for label, p in patients
    ]
    return found | {"brier": math.fsum(squares) / len(squares)}


def drawn(seed: int = 3) -> Predictions:
    """40 patients, one of them with images of two classes, and leaked images of several."""
    predictions = PATIENTS.draw(40, seed)
    owner = max(predictions.patients, key=predictions.patients.count)
    labels, leaked = predictions.labels.copy(), np.zeros(len(predictions.labels), dtype=bool)
    labels[predictions.patients.index(owner)] = (labels[predictions.patients.index(owner)] + 1) % 3
    leaked[::7] = True
    leaked[[row for row, one in enumerate(predictions.patients) if one == owner]] = False
    return replace(predictions, labels=labels, leaked=leaked)


def test_figures_of_patients_equal_those_computed_by_hand_from_the_table(tmp_path: Path) -> None:
    predictions = drawn()
    learned = WARM
    metrics = results.write(tmp_path / TEST, predictions, learned, published=False)
    images = evaluate_with_intervals(predictions)
    plain = replace(metrics, by_patient=None, patients_left_out=None, without_leaked=images.without_leaked)
    assert plain == images  # to the last digit
    for leaked, of in ((True, metrics), (False, metrics.clean)):
        wanted = by_hand(tmp_path / TEST / PREDICTIONS, 1.7, leaked)
        assert of.by_patient is not None
        assert (of.by_patient.images, of.patients_left_out) == (wanted.pop("patients"), 1)
        assert {name: of.by_patient.flat()[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)
    assert metrics.clean is not metrics
    assert Metrics.from_dict(metrics.to_dict()) == metrics
    again = read_predictions(tmp_path / TEST / BY_PATIENT / PREDICTIONS)
    assert metrics.by_patient and evaluate_both(again).confusion == metrics.by_patient.confusion
    assert again.names == again.patients and results.calibration_of(tmp_path / TEST / PREDICTIONS) is None
    calibration_file = tmp_path / "calibration.json"
    results.write_json(calibration_file, learned.to_dict())
    assert results.calibration_of(tmp_path / TEST / PREDICTIONS) == learned
    assert results.calibration_of(tmp_path / "evaluations" / "x" / PREDICTIONS) == learned
    assert results.calibration_of(tmp_path / PREDICTIONS) is None


def test_intervals_of_patients_are_those_of_as_many_rows_that_stand_alone() -> None:
    predictions = drawn()
    found, metrics = of_patients(predictions, WARM), evaluate_both(predictions, WARM)
    assert found and metrics.by_patient
    alone = evaluate_with_intervals(replace(found.predictions, leaked=()))
    ends = {name: (one.low, one.high) for name, one in metrics.by_patient.intervals.items()}
    assert ends == {name: (one.low, one.high) for name, one in alone.intervals.items()}
    methods = {one.method for one in metrics.by_patient.intervals.values()}
    assert not [method for method in methods if "images" in method or method == "Wilson"]
    assert metrics.by_patient.counted == "patients"
    assert ends != {name: (one.low, one.high) for name, one in metrics.intervals.items()}


def test_patients_of_one_image_each_and_images_of_nobody_have_no_figures_of_their_own() -> None:
    one_each = Population(classes=3).draw(20, seed=1)
    for predictions in (one_each, replace(drawn(), patients=()), one_each.rows([])):
        assert of_patients(predictions) is None
        metrics = evaluate_both(predictions)
        assert metrics == evaluate_with_intervals(predictions) and "by_patient" not in metrics.to_dict()


def test_an_image_of_nobody_known_counts_as_a_patient_of_its_own() -> None:
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4]])
    names, patients = ("z", "b", "c", "d"), ("", "z", "z", "")
    predictions = Predictions(names, np.array([0, 1, 1, 0]), probabilities, ("x", "y"), patients)
    found = of_patients(predictions)
    assert found and found.predictions.names == ("z", "d", "z")  # first the patient, last an image
    assert found.known == 1 and found.images.tolist() == [2, 1, 1]
    metrics = evaluate_both(predictions).by_patient
    assert metrics and (metrics.images, metrics.patients, metrics.patient_known) == (3, None, 1)


def test_patients_of_several_classes_are_left_out_and_told_of() -> None:
    names, patients = tuple("abcd"), ("p", "p", "q", "q")
    predictions = Predictions(names, np.array([0, 1, 0, 1]), np.full((4, 2), 0.5), ("x", "y"), patients)
    metrics = evaluate_both(predictions)
    assert metrics.by_patient is None and metrics.patients_left_out == 2
    assert Metrics.from_dict(metrics.to_dict()) == metrics


def test_pseudonyms_change_no_figure_and_no_interval() -> None:
    predictions = drawn()
    numbers = [int(one.split()[1]) for one in predictions.patients]
    hashed = tuple(f"p-{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in numbers)
    other = evaluate_both(replace(predictions, patients=hashed), WARM)
    assert other.by_patient == evaluate_both(predictions, WARM).by_patient


def test_operating_points_of_patients_are_chosen_on_patients_and_counted_in_them() -> None:
    val, test = drawn(8), drawn(9)
    learned = calibration.fit(val)
    assert learned and learned.by_patient and calibration.Calibration.from_dict(learned.to_dict()) == learned
    patients = of_patients(val, learned)
    assert patients
    for point in learned.by_patient:
        column = val.classes.index(point.name)
        scores, own = patients.predictions.probabilities[:, column], patients.predictions.labels == column
        assert point.threshold in scores
        assert point.sensitivity == pytest.approx(np.mean(scores[own] >= point.threshold), abs=1e-12)
        assert point.specificity == pytest.approx(np.mean(scores[~own] < point.threshold), abs=1e-12)
    told = results.on_test(test, evaluate_both(test, learned), learned)
    on = of_patients(test, learned)
    assert on
    for point, one in zip(learned.by_patient, told["by_patient"], strict=True):
        column = test.classes.index(point.name)
        reached = on.predictions.probabilities[:, column] >= point.threshold
        share = np.mean(reached[on.predictions.labels == column])
        assert one["test"]["sensitivity"]["figure"] == pytest.approx(share, abs=1e-12)
    alone = calibration.fit(replace(val, patients=()))
    assert alone and alone == replace(learned, by_patient=()) and "by_patient" not in alone.to_dict()


def test_the_known_figures_of_patients_are_those_of_the_mean_of_their_images() -> None:
    # What tools/stress/interval_coverage.py compares the intervals of patients with.
    whole = of_patients(PATIENTS.draw(300, seed=5))
    assert whole
    rows = of_rows(PATIENTS.draw(300, seed=5), "patients")
    wanted = evaluate(whole.predictions.labels, whole.predictions.probabilities, whole.predictions.classes)
    assert evaluate(rows.labels, rows.probabilities, rows.classes) == wanted and len(rows.names) == 300
