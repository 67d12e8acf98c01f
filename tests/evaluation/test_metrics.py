"""Figures of merit: right where defined, None where not, and recomputable from the file to the last
digit."""

import json
import math
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from medmambase.evaluation.medmnist import as_medmnist
from medmambase.evaluation.metrics import Metrics, evaluate, weighted_figures
from medmambase.evaluation.predictions import MetricsError
from medmambase.evaluation.recorded import ONE_CLASS

SCORES = {"sensitivity": sk.recall_score, "ppv": sk.precision_score, "f1": sk.f1_score}


def predictions(count: int, classes: int, seed: int = 0, skill: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    scores = np.exp(rng.normal(size=(count, classes)) + skill * np.eye(classes)[labels])
    return labels, scores / scores.sum(axis=1, keepdims=True)


def names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


def test_every_figure_equals_scikit_learn_on_six_classes() -> None:
    labels, probabilities = predictions(400, 6)
    predicted = probabilities.argmax(axis=1)
    ours = evaluate(labels, probabilities, names(6))
    assert ours.accuracy == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
    assert ours.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert ours.auc == pytest.approx(
        sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"), abs=1e-12
    )
    assert ours.confusion == tuple(map(tuple, sk.confusion_matrix(labels, predicted).tolist()))
    recall = sk.recall_score(labels, predicted, average=None)
    f1 = sk.f1_score(labels, predicted, average=None)
    for index, one in enumerate(ours.per_class):
        assert one.support == (labels == index).sum()
        assert one.sensitivity == pytest.approx(recall[index], abs=1e-12)
        assert one.f1 == pytest.approx(f1[index], abs=1e-12)
        assert one.specificity == pytest.approx(sk.recall_score(labels != index, predicted != index), abs=1e-12)
        assert one.auc == pytest.approx(sk.roc_auc_score(labels == index, probabilities[:, index]), abs=1e-12)
    assert ours.kappa == pytest.approx(sk.cohen_kappa_score(labels, predicted), abs=1e-12)
    assert ours.mcc == pytest.approx(sk.matthews_corrcoef(labels, predicted), abs=1e-12)


def test_the_brier_score_of_two_classes_is_that_of_the_second() -> None:
    labels, probabilities = predictions(100, 2)
    theirs = sk.brier_score_loss(labels, probabilities[:, 1])
    assert evaluate(labels, probabilities, names(2)).brier == pytest.approx(theirs, abs=1e-12)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 30), classes=st.integers(2, 4))
def test_every_figure_equals_scikit_learn_whatever_the_weights(data: st.DataObject, count: int, classes: int) -> None:
    labels = data.draw(hnp.arrays(np.int64, count, elements=st.integers(0, classes - 1)))
    raw = data.draw(hnp.arrays(np.float64, (count, classes), elements=st.sampled_from([0.1, 0.2, 0.5, 0.9])))
    weights = data.draw(hnp.arrays(np.float64, (3, count), elements=st.integers(0, 3).map(float)))
    weights[:, 0] += 1
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    predicted, ours = probabilities.argmax(axis=1), weighted_figures(labels, probabilities, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what scikit-learn finds undefined
        for row, w in enumerate(weights):
            theirs = {
                "accuracy": sk.accuracy_score(labels, predicted, sample_weight=w),
                "mcc": sk.matthews_corrcoef(labels, predicted, sample_weight=w),
                "kappa": sk.cohen_kappa_score(labels, predicted, sample_weight=w, labels=range(classes)),
            }
            if classes == 2:
                theirs["brier"] = sk.brier_score_loss(labels, probabilities[:, 1], sample_weight=w, pos_label=1)
            for index in range(classes):
                own = labels == index
                asked = {"labels": [index], "average": None, "sample_weight": w, "zero_division": np.nan}
                theirs |= {f"{index}/{name}": score(labels, predicted, **asked)[0] for name, score in SCORES.items()}
                asked = {"sample_weight": w, "zero_division": np.nan}
                theirs[f"{index}/specificity"] = sk.recall_score(~own, predicted != index, **asked)
                theirs[f"{index}/npv"] = sk.precision_score(~own, predicted != index, **asked)
                if w[own].sum() and w[~own].sum():
                    kept = w > 0  # its precision-recall curve minds images of no weight
                    theirs[f"{index}/auc"] = sk.roc_auc_score(own, probabilities[:, index], sample_weight=w)
                    theirs[f"{index}/ap"] = sk.average_precision_score(
                        own[kept], probabilities[kept, index], sample_weight=w[kept]
                    )
            for name, figure in theirs.items():
                assert ours[name][row] == pytest.approx(figure, abs=1e-9, nan_ok=True), (name, w)


def test_means_over_classes_leave_out_what_is_undefined() -> None:
    labels, probabilities = predictions(200, 4)
    labels %= 3  # nothing is of the last class
    ours = evaluate(labels, probabilities, names(4))
    for name in ONE_CLASS:
        there = [(getattr(one, name), one.support) for one in ours.per_class if getattr(one, name) is not None]
        assert ours.macro[name] == pytest.approx(np.mean([figure for figure, _ in there]))
        assert ours.weighted[name] == pytest.approx(
            np.average([figure for figure, _ in there], weights=[support for _, support in there])
        )


def test_the_calibration_error_is_that_of_fifteen_bins_and_the_brier_score_a_squared_distance() -> None:
    labels = np.array([0, 1, 0, 2])
    probabilities = np.array([[0.6, 0.2, 0.2], [0.65, 0.3, 0.05], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])
    ours = evaluate(labels, probabilities, names(3))
    # 0.6 ends a bin, so that 0.65 is in the next one, and nobody shares one.
    assert ours.ece == pytest.approx((0.4 + 0.65 + 0.5 + 0) / 4)
    assert ours.brier == pytest.approx((0.24 + (0.65**2 + 0.7**2 + 0.05**2) + (0.8**2 + 0.5**2 + 0.3**2) + 0) / 4)


def test_two_classes_give_the_usual_auc_of_the_second() -> None:
    labels, probabilities = predictions(90, 2)
    # Saturated in float32: the first column ties at 1 where the second still tells images apart, so
    # the two columns' AUCs differ.
    probabilities[:, 1] = 1e-12 * np.random.default_rng(1).random(90) * (1 + labels)
    probabilities[:, 0] = np.float32(1) - probabilities[:, 1].astype(np.float32)
    ours = evaluate(labels, probabilities, names(2))
    assert ours.auc == pytest.approx(sk.roc_auc_score(labels, probabilities[:, 1]), abs=1e-12)
    assert ours.per_class[0].auc == 0.5 != ours.auc


def test_a_hand_counted_example_comes_out() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 2])
    ours = evaluate(labels, np.eye(3)[predicted], names(3))
    assert ours.confusion == ((2, 1, 0), (1, 1, 0), (0, 0, 1))
    assert ours.accuracy == 4 / 6
    assert ours.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    first = ours.per_class[0]
    assert (first.support, first.sensitivity, first.specificity, first.f1) == (3, 2 / 3, 2 / 3, 4 / 6)


def test_a_class_without_images_is_undefined_and_left_out_of_the_means() -> None:
    labels, probabilities = predictions(60, 3)
    labels = labels % 2
    ours = evaluate(labels, probabilities, names(3))
    missing = ours.per_class[2]
    assert (missing.support, missing.sensitivity, missing.auc) == (0, None, None)
    assert missing.specificity == (probabilities.argmax(axis=1) != 2).mean()
    assert ours.balanced_accuracy == pytest.approx(np.mean([one.sensitivity for one in ours.per_class[:2]]))
    assert ours.auc == pytest.approx(np.mean([one.auc for one in ours.per_class[:2]]))


def test_one_image_has_an_accuracy_but_no_auc() -> None:
    ours = evaluate(np.array([1]), np.array([[0.2, 0.5, 0.3]]), names(3))
    assert (ours.accuracy, ours.balanced_accuracy, ours.auc) == (1.0, 1.0, None)
    assert ours.per_class[1].specificity is None
    assert ours.per_class[0].f1 is None
    assert ours.per_class[1].f1 == 1.0


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_an_empty_set_has_no_figures_at_all(classes: int) -> None:
    ours = evaluate(np.array([]), np.zeros((0, classes)), names(classes))
    assert (ours.accuracy, ours.balanced_accuracy, ours.auc) == (None, None, None)
    assert all(
        (one.support, one.sensitivity, one.specificity, one.f1, one.auc) == (0, None, None, None, None)
        for one in ours.per_class
    )


def test_a_perfect_predictor_scores_one_everywhere() -> None:
    labels = np.arange(12) % 4
    ours = evaluate(labels, np.eye(4)[labels], names(4))
    assert (ours.accuracy, ours.balanced_accuracy, ours.auc) == (1.0, 1.0, 1.0)
    assert all((one.sensitivity, one.specificity, one.f1, one.auc) == (1.0, 1.0, 1.0, 1.0) for one in ours.per_class)


def test_a_constant_predictor_guesses_and_ties_go_to_the_first_class() -> None:
    labels = np.array([0, 1, 2, 2])
    ours = evaluate(labels, np.full((4, 3), 1 / 3), names(3))
    assert (ours.accuracy, ours.auc) == (1 / 4, 0.5)
    assert ours.balanced_accuracy == pytest.approx(1 / 3)
    assert [row[0] for row in ours.confusion] == [1, 1, 2]


def test_small_integer_labels_do_not_overflow() -> None:
    labels = (np.arange(100) % 20).astype(np.uint8)
    assert evaluate(labels, np.eye(20)[labels], names(20)).accuracy == 1.0


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(0, 12), classes=st.integers(1, 4))
def test_figures_are_in_range_or_none_and_survive_json(data: st.DataObject, count: int, classes: int) -> None:
    labels = data.draw(hnp.arrays(np.int64, count, elements=st.integers(0, classes - 1)))
    raw = data.draw(hnp.arrays(np.float64, (count, classes), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))) + 1e-9
    ours = evaluate(labels, raw / raw.sum(axis=1, keepdims=True), names(classes))
    text = json.dumps(ours.to_dict(), allow_nan=False)
    assert Metrics.from_dict(json.loads(text)) == ours
    assert sum(map(sum, ours.confusion)) == count


@pytest.mark.parametrize(
    ("labels", "probabilities", "classes", "words"),
    [
        ([0, 1], [[1.0, 0.0]], ["a", "b"], "do not fit"),
        ([0], [[1.0, 0.0, 0.0]], ["a", "b"], "do not fit"),
        ([2], [[1.0, 0.0]], ["a", "b"], "from 2 to 2"),
        ([-1], [[1.0, 0.0]], ["a", "b"], "wanted 0 to 1"),
        ([0.0], [[1.0, 0.0]], ["a", "b"], "integers"),
        ([0], [[math.nan, 1.0]], ["a", "b"], "row 1"),
        ([0], [[math.inf, -math.inf]], ["a", "b"], "row 1"),
        ([0, 0], [[1.0, 0.0], [3.0, -2.0]], ["a", "b"], "row 2.*softmax"),
        ([0], [[0.3, 0.3]], ["a", "b"], "sum to 1"),
        ([0], [[0.5, 0.5]], ["a", "a"], "each once"),
        ([], np.zeros((0, 0)), [], "at least one"),
    ],
)
def test_input_that_cannot_be_evaluated_is_named(
    labels: list[float], probabilities: list[list[float]], classes: list[str], words: str
) -> None:
    with pytest.raises(MetricsError, match=words):
        evaluate(np.array(labels), np.array(probabilities), classes)


def test_medmnist_counts_two_classes_by_a_threshold_and_more_by_a_plain_mean() -> None:
    two = np.array([[0.5, 0.5], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    assert as_medmnist(np.array([1, 1, 0, 0]), two) == {"ACC": 0.5, "AUC": 0.5}  # 0.5 is not above 0.5
    labels = np.array([0, 0, 1, 1, 2])
    three = np.random.default_rng(0).dirichlet((1, 1, 1), 5)
    areas = [sk.roc_auc_score(labels == label, three[:, label]) for label in range(3)]
    assert as_medmnist(labels, three) == {
        "ACC": float((three.argmax(1) == labels).mean()),
        "AUC": pytest.approx(sum(areas) / 3),
    }
    assert as_medmnist(labels[:4], three[:4]) == {
        "ACC": None,
        "AUC": None,
    }  # its evaluator knows no class without images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": "high"}, "metrics.accuracy is 'high'; it must be a number"),
        ({"accuracy": True}, "metrics.accuracy is True; it must be a number"),
        ({"auc": math.nan}, "metrics.auc is nan; it must be a finite number"),
        ({"per_class": []}, "the confusion matrix does not fit 0 classes"),
        ({"per_class": [1]}, "metrics.per_class[0] is 1; it must be named values"),
        ({"per_class": [{"name": "a", "support": 1.0}]}, "metrics.per_class[0].support is 1.0; it must be a whole"),
        ({"confusion": [[1, 0]]}, "the confusion matrix does not fit 2 classes"),
        ({"confusion": [[5, 0], [0, 1]]}, "the confusion matrix does not fit 2 classes"),
        ({"confusion": [[1, 0], [0, 1.0]]}, "metrics.confusion[1][1] is 1.0; it must be a whole number"),
        ({"confusion": 3}, "metrics.confusion is 3; it must be a list"),
        ({"surprise": 1}, "metrics.surprise is not known here"),
        ({"mcc": -1.5}, "metrics.mcc is -1.5; it must be at least -1"),
        ({"brier": 2.5}, "metrics.brier is 2.5; it must be at most 2"),
        ({"ece": 1.5}, "metrics.ece is 1.5; it must be at most 1"),
        (
            {"intervals": {"accuracy": {"low": 0.5, "high": 1.5, "method": "x"}}},
            "intervals.accuracy ends at 1.5; wanted a number from 0 to 1",
        ),
        (
            {"intervals": {"mcc": {"low": -1.5, "high": 1, "method": "x"}}},
            "intervals.mcc ends at -1.5; wanted a number from -1 to 1",
        ),
        ({"intervals": {"auc": {"low": 0, "high": math.nan, "method": "x"}}}, "metrics.intervals.auc.high is nan"),
        (
            {"intervals": {"auc": {"low": 0, "high": 1, "method": "x", "of": 1}}},
            "metrics.intervals.auc.of is not known",
        ),
        ({"intervals": {"accuracy": [0, 1]}}, "metrics.intervals.accuracy is [0, 1]; it must be named values"),
        ({"macro": {}}, "macro or weighted has other figures than sensitivity"),
        ({"without_leaked": {}}, "metrics.without_leaked.accuracy is missing"),
    ],
)
def test_metrics_of_another_shape_are_refused(change: dict[str, object], message: str) -> None:
    good = evaluate(np.array([0, 1]), np.eye(2), ["a", "b"]).to_dict()
    assert Metrics.from_dict(good).to_dict() == good
    with pytest.raises(MetricsError, match=f"^{re.escape(message)}"):
        Metrics.from_dict(good | change)
    with pytest.raises(MetricsError):
        Metrics.from_dict(good | {"without_leaked": good | change})
