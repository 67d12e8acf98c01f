"""What val tells: a temperature that makes confidence true, and operating points that the test
images had no say in."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from medmambase.config import ConfigError
from medmambase.evaluation.calibration import (
    Calibration,
    apply_operating_point,
    fit,
    point_at,
    reliability,
    with_temperature,
)
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.metrics import evaluate
from medmambase.evaluation.predictions import MetricsError, Predictions
from medmambase.evaluation.report.results import on_test


def drawn(count: int, temperature: float, seed: int, classes: int = 3) -> Predictions:
    """Labels that truly follow the probabilities, which are then made sharper by
    ``temperature``."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, classes))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((count, 1)) < p.cumsum(axis=1)).argmax(axis=1)
    sharp = np.exp(logits * temperature)
    return Predictions(
        tuple(map(str, range(count))), labels, sharp / sharp.sum(axis=1, keepdims=True), tuple("abcdef"[:classes])
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_undoes_what_made_a_network_too_sure(temperature: float) -> None:
    found = fit(drawn(4000, temperature, 0))
    assert found is not None and found.temperature == pytest.approx(temperature, rel=0.08)
    test = drawn(4000, temperature, 1)
    after = with_temperature(test, found.temperature)
    assert np.array_equal(after.predicted, test.predicted)
    errors = [evaluate(one.labels, one.probabilities, one.classes).ece for one in (test, after)]
    assert errors[1] < 0.03 and (temperature == 1 or errors[1] < errors[0] / 2)


@pytest.mark.parametrize("right", [True, False])
def test_probabilities_of_nought_and_one_have_a_temperature(right: bool) -> None:
    labels = np.arange(12) % 3
    found = fit(
        Predictions(tuple(map(str, labels)), labels, np.eye(3)[labels if right else (labels + 1) % 3], ("a", "b", "c"))
    )
    assert found is not None and 0.04 < found.temperature < 21
    assert math.isfinite(with_temperature(drawn(9, 1.0, 0), found.temperature).probabilities.sum())


def test_without_validation_images_nothing_is_told() -> None:
    assert fit(drawn(0, 1.0, 0)) is None
    one = fit(drawn(1, 1.0, 0, classes=2))
    assert one is not None and one.points == ()  # one class alone has no line between it and the others


def test_operating_points_are_those_of_the_roc_curve_of_val() -> None:
    val = drawn(500, 1.5, 0, classes=2)
    found = fit(val)
    assert found is not None
    false, true, thresholds = roc_curve(val.labels, val.probabilities[:, 1])
    youden, ruled_out = found.points
    best = int((true - false).argmax())
    assert (youden.sensitivity, 1 - youden.specificity) == pytest.approx((true[best], false[best]))
    assert ruled_out.sensitivity >= 0.95 and ruled_out.threshold == pytest.approx(
        max(thresholds[true >= 0.95]), abs=0.02
    )
    positive, called = apply_operating_point(val, youden)
    assert (called & positive).sum() / positive.sum() == pytest.approx(youden.sensitivity)


@pytest.mark.parametrize("least", [0.5, 0.9, 0.95, 1.0])
def test_a_threshold_that_is_asked_for_is_the_best_that_keeps_what_was_asked(least: float) -> None:
    val = drawn(500, 1.5, 0)
    truth, scores = val.labels == 1, val.probabilities[:, 1]
    kept = point_at(val, f"b:sensitivity={least}")
    assert kept.name == "b" and kept.sensitivity == pytest.approx((scores[truth] >= kept.threshold).mean())
    assert kept.specificity == pytest.approx((scores[~truth] < kept.threshold).mean())
    above = scores[scores > kept.threshold].min()  # the next threshold would keep too little
    assert kept.sensitivity >= least > (scores[truth] >= above).mean()
    if least < 1:
        spared = point_at(val, f"b:specificity={least}")
        below = scores[scores < spared.threshold].max()
        assert spared.specificity >= least > (scores[~truth] < below).mean()
    warm = with_temperature(val, 2.0)
    assert point_at(warm, f"b:sensitivity={least}").threshold in warm.probabilities[:, 1]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("x:sensitivity=0.9", "wanted CLASS:sensitivity=0.95 or CLASS:specificity=0.95, with a class of a, b, c"),
        ("b:recall=0.9", "wanted CLASS"),
        ("b:sensitivity=95", "a number above 0 and at most 1"),
        ("b:sensitivity=nan", "a number above 0 and at most 1"),
        ("sensitivity", "wanted CLASS"),
        ("b:specificity=1", "no threshold reaches this on the validation images; the highest specificity"),
    ],
)
def test_a_threshold_that_cannot_be_is_one_line(wish: str, said: str) -> None:
    val = drawn(60, 1.0, 0)
    best = int(np.argmax(val.probabilities[:, 1]))
    labels = val.labels.copy()
    labels[best] = 0  # the surest image of b is none
    with pytest.raises(ConfigError, match=re.escape(said)):
        point_at(replace(val, labels=labels), wish)


def test_a_class_without_validation_images_has_no_threshold() -> None:
    with pytest.raises(ConfigError, match="none of the validation images are b"):
        point_at(replace(drawn(9, 1.0, 0), labels=np.zeros(9, dtype=np.int64)), "b:sensitivity=0.9")


def test_the_test_images_have_no_say_in_the_threshold_and_all_of_it_in_the_figures() -> None:
    found, test = fit(drawn(300, 1.5, 0, classes=2)), drawn(200, 1.5, 1, classes=2)
    assert found is not None
    told = on_test(test, evaluate_with_intervals(test), found)
    for point, written in zip(found.points, told["points"], strict=True):
        positive, called = test.labels == 1, test.probabilities[:, 1] >= point.threshold
        assert written["threshold"] == point.threshold
        assert written["test"]["sensitivity"]["figure"] == (positive & called).sum() / positive.sum()
        assert written["test"]["specificity"]["figure"] == (~positive & ~called).sum() / (~positive).sum()
        assert 0 < written["test"]["sensitivity"]["low"] < written["test"]["sensitivity"]["high"] <= 1


def test_the_bins_of_reliability_add_up_to_the_calibration_error() -> None:
    p = drawn(700, 2.0, 3)
    bins = reliability(p)
    assert sum(b.images for b in bins) == 700
    assert sum(b.images * abs(b.confidence - b.accuracy) for b in bins) / 700 == pytest.approx(
        evaluate(p.labels, p.probabilities, p.classes).ece
    )


def test_it_survives_the_way_through_a_file_and_another_shape_is_refused() -> None:
    found = fit(drawn(300, 1.5, 0))
    assert found is not None and Calibration.from_dict(found.to_dict()) == found
    point = found.to_dict()["points"][0]
    for wrong, message in (
        ({}, "calibration.temperature is missing"),
        ({"temperature": "warm", "points": []}, "calibration.temperature is 'warm'; it must be a number"),
        ({"temperature": 0, "points": []}, "calibration.temperature is 0; it must be above 0"),
        ({"temperature": math.nan, "points": []}, "calibration.temperature is nan; it must be a finite number"),
        ({"temperature": 1, "points": [{"name": "a"}]}, "calibration.points[0].rule is missing"),
        ({"temperature": 1, "points": [point | {"of": 1}]}, "calibration.points[0].of is not known here; leave it out"),
        ({"temperature": 1, "points": 3}, "calibration.points is 3; it must be a list"),
    ):
        with pytest.raises(MetricsError, match=f"^{re.escape(message)}$"):
            Calibration.from_dict(wrong)
    with pytest.raises(MetricsError, match="there is no class 'a'"):
        apply_operating_point(Predictions(("x",), np.array([0]), np.array([[1.0]]), ("z",)), found.points[0])


def test_the_figures_of_an_operating_point_are_those_of_val_called_by_it() -> None:
    scores = np.array([0.2, 0.5, 0.5, 0.5, 0.8, 0.9])  # ties on both sides of the threshold
    labels, names = np.array([0, 0, 0, 1, 1, 1]), tuple("abcdef")
    validation = Predictions(names, labels, np.stack([1 - scores, scores], axis=1), ("well", "ill"))
    found = fit(validation)
    assert found is not None and len(found.points) == 2
    for point in found.points:
        truth, called = apply_operating_point(validation, point)
        assert point.sensitivity == pytest.approx(called[truth].mean())
        assert point.specificity == pytest.approx((~called[~truth]).mean())
