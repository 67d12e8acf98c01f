"""Figures counted in patients where an image may have several classes: against loops and
scikit-learn on the table, in comparisons, and beside what is predicted for patients."""

import csv
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from medmambase.commands import compare, evaluate
from medmambase.evaluation import calibration, comparison, judged
from medmambase.evaluation.by_patient import evaluate_both, of_patients
from medmambase.evaluation.calibration import Calibration
from medmambase.evaluation.multilabel import MultiLabelMetrics
from medmambase.evaluation.predictions import MetricsError, Predictions, read_predictions, write_predictions
from medmambase.evaluation.report import results
from medmambase.inference.patients import by_patient
from medmambase.inference.predictor import Prediction
from medmambase.run_folder import BY_PATIENT, METRICS, PREDICTIONS, TEST

CLASSES = ("a", "b", "c d")
LEARNED = Calibration(1.7, (), thresholds={"a": 0.5, "b": 0.35, "c d": 0.62})


def drawn(seed: int = 0, patients: int = 50, sharp: float = 1.2) -> Predictions:
    """Patients of one to four images with the same labels, but for the third, one of whose images
    has others; every ninth image is leaked, and five are of nobody known."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    owner = np.concatenate([owner, np.full(3, 2)])
    labels = (rng.random((patients, 3)) < (0.5, 0.3, 0.2)).astype(np.int64)[owner]
    labels[-1, 0] = 1 - labels[-1, 0]
    logits = 2 * sharp * (labels - 0.5) + rng.normal(size=(patients, 3))[owner] + rng.normal(size=labels.shape)
    probabilities, count = 1 / (1 + np.exp(-logits)), len(owner)
    names = tuple(f"{row:03}.png" for row in rng.permutation(count))
    given = tuple("" if 5 <= row < 10 else f"p{one}" for row, one in enumerate(owner))
    leaked = (np.arange(count) % 9 == 0) & (owner != 2)
    return LEARNED.called(Predictions(names, labels, probabilities, CLASSES, given, leaked))


def by_hand(table: Path, leaked: bool) -> tuple[dict[str, float], int, int]:
    """Compute figures of patients from predictions.csv, how many patients there are, and how many
    are left out."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if leaked or row["leaked"] == "no"]
    images: dict[str, list[tuple[list[int], list[float]]]] = defaultdict(list)
    for row in rows:
        p = [float(row[f"prob_{name}"]) for name in CLASSES]
        warm = [1 / (1 + ((1 - one) / one) ** (1 / LEARNED.temperature)) for one in p]
        images[row["patient"] or row["path"]].append(([int(row[f"true_{name}"]) for name in CLASSES], warm))
    alike = {name: own for name, own in images.items() if all(truth == own[0][0] for truth, _ in own)}
    y = np.array([own[0][0] for own in alike.values()])
    scores = np.array([[sum(p[i] for _, p in own) / len(own) for i in range(3)] for own in alike.values()])
    limits = [1 / (1 + ((1 - one) / one) ** (1 / LEARNED.temperature)) for one in LEARNED.thresholds.values()]
    called = (scores >= limits).astype(int)
    found = {
        "auc": sk.roc_auc_score(y, scores, average="macro"),
        "ap": sk.average_precision_score(y, scores, average="macro"),
        "f1": sk.f1_score(y, called, average="macro"),
        "subset_accuracy": sk.accuracy_score(y, called),
        "hamming_loss": sk.hamming_loss(y, called),
        "brier": np.mean([sk.brier_score_loss(y[:, i], scores[:, i]) for i in range(3)]),
        "balanced_accuracy": np.mean([sk.balanced_accuracy_score(y[:, i], called[:, i]) for i in range(3)]),
        "weighted/f1": sk.f1_score(y, called, average="weighted"),
        "macro/npv": np.mean([sk.precision_score(1 - y[:, i], 1 - called[:, i]) for i in range(3)]),
    }
    bins = np.digitize(scores, np.linspace(0, 1, 16)[1:-1], right=True)
    gaps = [abs((scores[bins == one] - y[bins == one]).sum()) for one in range(15)]
    found["ece"] = sum(gaps) / scores.size
    for i in range(3):
        found |= {
            f"{i}/sensitivity": sk.recall_score(y[:, i], called[:, i]),
            f"{i}/specificity": sk.recall_score(1 - y[:, i], 1 - called[:, i]),
            f"{i}/ppv": sk.precision_score(y[:, i], called[:, i]),
            f"{i}/f1": sk.f1_score(y[:, i], called[:, i]),
            f"{i}/auc": sk.roc_auc_score(y[:, i], scores[:, i]),
            f"{i}/ap": sk.average_precision_score(y[:, i], scores[:, i]),
        }
    return found, len(alike), len(images) - len(alike)


def test_figures_of_patients_are_those_of_scikit_learn_on_the_means(tmp_path: Path) -> None:
    metrics = results.write(tmp_path / TEST, drawn(), LEARNED, published=False)
    table = tmp_path / TEST / PREDICTIONS
    whole = drawn()
    nobody = [sum(not one for one in part.patients) for part in (whole, whole.clean) if part]
    for leaked, of, alone in ((True, metrics, nobody[0]), (False, metrics.clean, nobody[1])):
        wanted, patients, left_out = by_hand(table, leaked)
        assert left_out == 1 and of.patients_left_out == 1 and isinstance(of.by_patient, MultiLabelMetrics)
        assert of.by_patient.images == patients and of.by_patient.patient_known == patients - alone
        assert {name: of.by_patient.flat()[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)
        assert of.by_patient.intervals.keys() == of.by_patient.flat().keys()
        methods = {one.method for one in of.by_patient.intervals.values()}
        assert not [method for method in methods if "images" in method or method == "Wilson"]
    assert metrics.clean is not metrics and judged.from_dict(metrics.to_dict()) == metrics
    assert json.loads((tmp_path / TEST / METRICS).read_text(encoding="utf-8"))["by_patient"]["task"] == "multi-label"
    again = read_predictions(tmp_path / TEST / BY_PATIENT / PREDICTIONS)
    assert metrics.by_patient and judged.evaluate(again).confusion == metrics.by_patient.confusion
    assert {path.name for path in (tmp_path / TEST / BY_PATIENT).glob("*.png")} == {
        "confusion.png",
        "roc.png",
        "pr.png",
    }


def test_a_patient_is_called_what_is_predicted_for_the_patient() -> None:
    predictions = drawn()
    warm = calibration.with_temperature(predictions, LEARNED.temperature)
    limits = predictions.task.apply_temperature(LEARNED.thresholds_of(CLASSES), LEARNED.temperature)
    rows = [
        Prediction(row, None, CLASSES, warm.probabilities[row], None, predictions.patients[row], thresholds=limits)
        for row in range(len(predictions.names))
    ]
    told = by_patient(rows, "mean", lambda one: one.patient, lambda one: predictions.names[one.index])
    found = of_patients(predictions, LEARNED)
    assert found and found.left_out == 1
    words = {one.name: one.label for one in told}
    for row, name in enumerate(found.predictions.names):
        called = [CLASSES[i] for i in np.flatnonzero(found.predictions.predicted[row])]
        assert words[name] == "; ".join(called)


def test_a_table_alone_calls_patients_at_a_threshold_that_explains_the_calls_of_its_images() -> None:
    predictions = drawn()
    found = of_patients(predictions)
    assert found
    for column, threshold in enumerate(LEARNED.thresholds_of(CLASSES)):
        scores, called = found.predictions.probabilities[:, column], found.predictions.predicted[:, column] == 1
        images, of_images = predictions.probabilities[:, column], predictions.is_called(column)
        low, high = images[~of_images].max(), images[of_images].min()
        assert low < threshold <= high
        assert (called == (scores >= (low + high) / 2)).all()
    never = replace(predictions, calls=np.zeros_like(predictions.calls))
    always = replace(predictions, calls=np.ones_like(predictions.calls))
    for one, value in ((never, 0), (always, 1)):
        whole = of_patients(one)
        assert whole and (whole.predictions.predicted == value).all()


def test_operating_points_of_patients_are_learned_beside_thresholds_of_images() -> None:
    learned = calibration.fit(drawn(3))
    assert learned and {point.name for point in learned.by_patient} == {*CLASSES}
    assert learned.thresholds.keys() == {*CLASSES} and Calibration.from_dict(learned.to_dict()) == learned
    told = results.on_test(drawn(4), evaluate_both(drawn(4), learned), learned)
    assert len(told["by_patient"]) == len(learned.by_patient)
    with pytest.raises(MetricsError, match="the thresholds are those of no class; wanted one for each of a, b, c d"):
        evaluate_both(drawn(), Calibration(1.0, ()))


def test_networks_are_compared_over_images_and_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = replace(drawn(), leaked=np.zeros(0, dtype=bool))
    noise = np.random.default_rng(1).random(first.probabilities.shape)
    second = LEARNED.called(replace(first, probabilities=0.6 * first.probabilities + 0.4 * noise))
    order = [2, 0, 1]
    turned = replace(
        second, classes=tuple(CLASSES[i] for i in order), labels=second.labels[:, order],
        probabilities=second.probabilities[:, order], calls=second.calls[:, order],
    )  # fmt: skip  # one argument list
    for name, one in (("a", first), ("b", turned)):
        write_predictions(tmp_path / f"{name}.csv", one)
    words = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "-o", str(tmp_path / "page.html")]
    assert compare.main([*words, "--json", str(tmp_path / "x.json")]) == 0
    said, told = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    for figure, words_of in (("subset_accuracy", "subset accuracy"), ("hamming_loss", "Hamming loss"), ("auc", "AUC")):
        assert words_of in said
        for side, predictions in (("first", first), ("second", second)):
            assert told["figures"][figure][side] == pytest.approx(
                judged.evaluate(predictions).flat()[figure], abs=1e-12
            )
            whole = of_patients(predictions)
            assert whole and told["by_patient"]["figures"][figure][side] == pytest.approx(
                judged.evaluate(whole.predictions).flat()[figure], abs=1e-12
            )
    right = [(one.predicted == one.labels).all(axis=1) for one in (first, second)]
    mcnemar = told["pairs"][0]["mcnemar"]
    assert mcnemar["only_first"] == int((right[0] & ~right[1]).sum()) and [*told["pairs"][0]["delong"]] == [*CLASSES]
    for column, name in enumerate(CLASSES):
        areas = [sk.roc_auc_score(one.labels[:, column], one.probabilities[:, column]) for one in (first, second)]
        assert told["pairs"][0]["delong"][name][0] == pytest.approx(areas[1] - areas[0], abs=1e-12)
    assert "1 left out, whose images have different labels" in said.replace("patient ", "")
    assert "and a lower Hamming loss are better" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_tables_that_answer_other_questions_or_have_other_truths_are_not_compared() -> None:
    first = drawn()
    single = Predictions(
        first.names, np.zeros(len(first.names), np.int64), np.full((len(first.names), 2), 0.5), ("a", "b")
    )
    with pytest.raises(MetricsError, match="in one table an image may have several classes, and in another it has one"):
        comparison.matched([[first], [single]])
    labels = first.labels.copy()
    labels[3] = 1 - labels[3]
    truth, other = (first.in_words(one, 3) for one in (first.labels, labels))
    with pytest.raises(
        MetricsError, match=f"the true class of '{first.names[3]}' is '{truth}' in one table and '{other}'"
    ):
        comparison.same_images([[first], [replace(first, labels=labels)]])


def test_a_table_is_evaluated_in_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_predictions(tmp_path / "x.csv", drawn())
    assert evaluate.main([str(tmp_path / "x.csv")]) == 0
    said = capsys.readouterr().out
    assert "1 patient left out, whose images have different labels), by the mean probability" in said
    assert "images: macro AUC 0." in said
