"""Figures of images that may have several classes, against scikit-learn; their intervals, their
thresholds, and the table that they come from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from medmambase.evaluation import calibration, judged, multilabel
from medmambase.evaluation.calibration import Calibration, reliability
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.medmnist import as_medmnist
from medmambase.evaluation.multilabel import OVERALL, MultiLabelMetrics
from medmambase.evaluation.predictions import MetricsError, Predictions, read_predictions, write_predictions
from medmambase.evaluation.recorded import ONE_CLASS
from medmambase.evaluation.report.headline import headline
from medmambase.evaluation.report.summary import summary

CLASSES = ("a", "b", "c d", "e")
THRESHOLDS = (0.5, 0.4, 0.6, 0.3)


def drawn(images: int, seed: int = 0, patients: int = 0, sharp: float = 1.5) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = (rng.random((images, 4)) < (0.5, 0.3, 0.2, 0.1)).astype(np.int64)
    logits = sharp * (truth - 0.5) + rng.normal(size=(images, 4))
    probabilities = 1 / (1 + np.exp(-np.round(logits, 1)))  # some are equal
    names = tuple(f"{number}.png" for number in range(images))
    return Predictions(
        names, truth, probabilities, CLASSES, tuple(f"p{n % patients}" for n in range(images)) if patients else (),
        calls=(probabilities >= THRESHOLDS).astype(np.int64),
    )  # fmt: skip  # one argument list


@pytest.mark.parametrize("seed", range(3))
def test_every_figure_is_that_of_scikit_learn(seed: int) -> None:
    p = drawn(200, seed)
    y, scores = p.labels, p.probabilities
    called = (scores >= THRESHOLDS).astype(np.int64)
    found = judged.evaluate(p)
    assert isinstance(found, MultiLabelMetrics)
    precision, recall, f1, support = sk.precision_recall_fscore_support(y, called, average=None)
    tables = sk.multilabel_confusion_matrix(y, called)
    of_class = {
        "sensitivity": recall,
        "specificity": [sk.recall_score(1 - y[:, i], 1 - called[:, i]) for i in range(4)],
        "ppv": precision,
        "npv": [sk.precision_score(1 - y[:, i], 1 - called[:, i]) for i in range(4)],
        "f1": f1,
        "auc": sk.roc_auc_score(y, scores, average=None),
        "ap": sk.average_precision_score(y, scores, average=None),
    }
    assert tuple(of_class) == ONE_CLASS
    for name, values in of_class.items():
        assert [getattr(one, name) for one in found.per_class] == pytest.approx(list(values), abs=1e-12), name
        assert found.macro[name] == pytest.approx(np.mean(values), abs=1e-12)
        assert found.weighted[name] == pytest.approx(np.average(values, weights=support), abs=1e-12)
    assert [one.support for one in found.per_class] == support.tolist()
    assert np.array(found.confusion).tolist() == tables.tolist()
    wanted = {
        "auc": sk.roc_auc_score(y, scores, average="macro"),
        "ap": sk.average_precision_score(y, scores, average="macro"),
        "f1": sk.f1_score(y, called, average="macro"),
        "balanced_accuracy": np.mean([sk.balanced_accuracy_score(y[:, i], called[:, i]) for i in range(4)]),
        "subset_accuracy": sk.accuracy_score(y, called),
        "hamming_loss": sk.hamming_loss(y, called),
        "brier": np.mean([sk.brier_score_loss(y[:, i], scores[:, i]) for i in range(4)]),
    }
    for name, value in wanted.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-12), name
    flat, truth = scores.ravel(), y.ravel()
    bins = np.digitize(flat, np.linspace(0, 1, 16)[1:-1], right=True)
    assert found.ece == pytest.approx(
        sum(abs(flat[bins == one].sum() - truth[bins == one].sum()) for one in range(15)) / flat.size, abs=1e-12
    )
    assert {*wanted, "ece"} == {*OVERALL} and found.accuracy == found.subset_accuracy
    assert as_medmnist(y, scores) == {
        "ACC": pytest.approx(np.mean([sk.accuracy_score(y[:, i], scores[:, i] > 0.5) for i in range(4)])),
        "AUC": pytest.approx(wanted["auc"]),
    }


def test_whole_weights_count_images_as_often() -> None:
    p, weights = drawn(60), np.random.default_rng(1).integers(0, 3, (2, 60))
    found = multilabel.weighted_figures(p, weights.astype(float))
    for row, own in enumerate(weights):
        again = judged.evaluate(p.rows(np.repeat(np.arange(60), own))).flat()
        assert {name: value[row] for name, value in found.items()} == pytest.approx(again, abs=1e-12)


def test_what_images_do_not_tell_is_undefined_and_left_out_of_means() -> None:
    p = drawn(30)
    truth = p.labels.copy()
    truth[:, 3] = 0
    found = judged.evaluate(replace(p, labels=truth))
    assert found.per_class[3].auc is None and found.per_class[3].sensitivity is None
    assert found.macro["auc"] == pytest.approx(np.mean([one.auc for one in found.per_class[:3] if one.auc]))
    none = evaluate_with_intervals(p.rows([]))
    assert isinstance(none, MultiLabelMetrics) and none.images == 0 and none.subset_accuracy is None
    assert headline(none).sentence.startswith("Nothing can be said") and not none.intervals
    assert as_medmnist(truth, p.probabilities) == {"ACC": None, "AUC": None}


def test_figures_are_kept_as_json_and_damage_is_told() -> None:
    found = evaluate_with_intervals(drawn(50, patients=20))
    values = found.to_dict()
    assert judged.from_dict(values) == found and values["task"] == "multi-label" and values["patients"] == 20
    for damage in ({"images": 49}, {"subset_accuracy": 1.5}, {"confusion": values["confusion"][:3]}, {"task": "other"}):
        with pytest.raises(MetricsError):
            judged.from_dict(values | damage)


def test_every_figure_has_an_interval_that_holds_it_and_patients_make_them_wider() -> None:
    alone, patients = (evaluate_with_intervals(drawn(300, patients=n)) for n in (0, 15))
    for found in (alone, patients):
        flat = found.flat()
        assert flat.keys() == found.intervals.keys()
        assert all(
            one.low <= flat[name] + 1e-12 and flat[name] - 1e-12 <= one.high for name, one in found.intervals.items()
        )
    assert alone.intervals["0/auc"].method == "DeLong" and alone.intervals["subset_accuracy"].method == "Wilson"
    assert patients.intervals["subset_accuracy"].method == "Wilson, of patients"
    assert alone.intervals["auc"] == alone.intervals["macro/auc"]
    assert "images" in alone.intervals["auc"].method and "patients" in patients.intervals["auc"].method


@pytest.mark.slow
def test_intervals_hold_the_truth_nineteen_times_in_twenty() -> None:
    names = ("auc", "ap", "f1", "subset_accuracy", "hamming_loss", "brier", "1/sensitivity", "2/auc")
    truth = judged.evaluate(drawn(200_000, 10**6)).flat()
    held = dict.fromkeys(names, 0)
    for seed in range(30):  # of 120 that were tried once, 110 to 119 held
        found = evaluate_with_intervals(drawn(150, seed)).intervals
        for name in names:
            held[name] += found[name].low <= truth[name] <= found[name].high
    assert all(26 <= count for count in held.values()), held


def test_the_threshold_of_a_class_has_the_highest_f1_score_on_validation_images() -> None:
    val = drawn(150)
    found = calibration.fit(val)
    assert found is not None and [*found.thresholds] == [*CLASSES]
    for column, name in enumerate(CLASSES):
        truth, scores = val.labels[:, column], val.probabilities[:, column]
        best = max(sk.f1_score(truth, scores >= threshold) for threshold in np.unique(scores))
        assert sk.f1_score(truth, scores >= found.thresholds[name]) == pytest.approx(best, abs=1e-12)
    called = found.called(val)
    assert judged.evaluate(called).f1 >= judged.evaluate(val).f1
    assert (called.predicted[:, 0] == (val.probabilities[:, 0] >= found.thresholds["a"])).all()
    assert Calibration.from_dict(found.to_dict()) == found
    with pytest.raises(MetricsError, match="the thresholds are those of a, b, c d, e; wanted one for each of w, x"):
        found.called(replace(val, classes=tuple("wxyz")))
    none = replace(val, labels=np.where([True, True, True, False], val.labels, 0))
    assert calibration.fit(none).thresholds["e"] == 0.5
    assert {point.name for point in found.points} == {*CLASSES}


def test_the_temperature_makes_probabilities_true_and_calls_stay() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(size=(3000, 4)) * 2
    true = 1 / (1 + np.exp(-odds))
    names = tuple(map(str, range(3000)))
    sure = Predictions(names, (rng.random((3000, 4)) < true).astype(int), 1 / (1 + np.exp(-3 * odds)), CLASSES)
    found = calibration.fit(sure)
    assert found is not None and found.temperature == pytest.approx(3, rel=0.05)
    warm = calibration.with_temperature(sure, found.temperature)
    assert warm.probabilities == pytest.approx(true, abs=0.02) and (warm.predicted == sure.predicted).all()
    assert judged.evaluate(warm).ece < 0.02 < 0.1 < judged.evaluate(sure).ece
    bins = reliability(sure)
    assert sum(one.images for one in bins) == 12_000 and bins[-1].confidence > 0.95 > bins[-1].accuracy


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    p = replace(drawn(20, patients=5), leaked=np.arange(20) % 7 == 0)
    write_predictions(tmp_path / "p.csv", p)
    found = read_predictions(tmp_path / "p.csv")
    for name in ("names", "classes", "patients"):
        assert getattr(found, name) == getattr(p, name)
    for name in ("labels", "probabilities", "leaked", "predicted"):
        assert np.array_equal(getattr(found, name), getattr(p, name)), name
    first = (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("path,patient,leaked,true_a,true_b,true_c d,true_e,called_a,") and first.endswith("prob_e")
    assert found.clean is not None and len(found.clean.labels) == 17
    assert found.in_words(np.array([[0, 1, 1, 0]]), 0) == "b; c d"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("true_b", "true_x", "with the same classes each time"),
        ("0.png,p0,no,", "0.png,p0,maybe,", "leaked is 'maybe'"),
        ("1.png,p1,no,0", "1.png,p1,no,2", "line 3 is not a prediction; wanted a path, 0 or 1"),
        ("2.png,p2,no,", "2.png,p2,no,0,", "line 4 is not a prediction"),
    ],
)
def test_a_damaged_table_is_told_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    p = drawn(12, patients=4)
    p = replace(p, labels=np.where(np.arange(12)[:, None] == 1, 0, p.labels))
    write_predictions(tmp_path / "p.csv", p)
    text = (tmp_path / "p.csv").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "p.csv").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(MetricsError, match=message):
        read_predictions(tmp_path / "p.csv")


def test_calls_that_no_threshold_makes_and_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    p = drawn(12)
    calls = p.predicted.copy()
    order = p.probabilities[:, 0].argsort()
    calls[order, 0] = np.arange(12) < 6
    write_predictions(tmp_path / "p.csv", replace(p, calls=calls))
    with pytest.raises(MetricsError, match=r"'a' is called at a probability of .*; no threshold does that"):
        read_predictions(tmp_path / "p.csv")
    with pytest.raises(MetricsError, match="calls"):
        replace(p, calls=calls[:, :3])
    with pytest.raises(MetricsError, match=r"labels run from 0 to 2; wanted 0 to 1"):
        replace(p, labels=p.labels * 2)
    with pytest.raises(MetricsError, match="a sigmoid for each class"):
        replace(p, probabilities=p.probabilities + 1)


def test_the_first_words_are_of_the_macro_auc_beside_guessing() -> None:
    found = evaluate_with_intervals(drawn(200))
    first = headline(found)
    assert [card.figure for card in first.cards] == ["auc", "ap", "f1"]
    assert first.cards[0].guessing == 0.5 and first.sentence.startswith("Better than guessing by")
    common = np.array([one.support for one in found.per_class]) / 200
    assert first.cards[1].guessing == pytest.approx(common.mean())
    assert first.cards[2].guessing == pytest.approx(sk.f1_score(drawn(200).labels, np.ones((200, 4)), average="macro"))
    assert "the macro AUC" in first.sentence
    assert summary(found).startswith("test: macro AUC 0.") and "Hamming loss" in summary(found)
    worse = headline(evaluate_with_intervals(replace(drawn(200), probabilities=1 - drawn(200).probabilities)))
    assert worse.sentence.startswith("Worse than guessing")
