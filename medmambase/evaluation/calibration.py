"""Learn a temperature and operating points from validation images, to be applied to the test
images."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
import scipy  # which imports its parts when they are first used: they are slow to import
from pydantic import Field, StrictFloat, with_config

from medmambase.config import ConfigError
from medmambase.evaluation.by_patient import of_patients
from medmambase.evaluation.metrics import BINS, confidence_bins
from medmambase.evaluation.multilabel import probability_bins
from medmambase.evaluation.predictions import MetricsError, Predictions
from medmambase.model.task import HALF, Floats
from medmambase.validation import OBJECT, check

SENSITIVITY = 0.95  # that an operating point keeps on val, where anything can be ruled out with it
_WIDEST = math.log(20)  # temperatures from 1/20 to 20; of images that are all right the best would be 0


@dataclass(frozen=True)
class OperatingPoint:
    """Calling a class from ``threshold`` on: the ``rule`` that chose it, and its sensitivity and
    specificity on val."""

    name: str
    rule: str
    threshold: StrictFloat
    sensitivity: StrictFloat
    specificity: StrictFloat


@with_config(OBJECT)
@dataclass(frozen=True)
class Calibration:
    """What was learned on val: the ``temperature`` by which logits are divided, and operating
    points; ``of`` says of which probabilities their thresholds are. ``by_patient``: those of
    patients, of the mean of calibrated probabilities; () where no patient has several images.
    ``thresholds``: from which probability on a class is called, where an image may have several;
    else empty."""

    temperature: Annotated[StrictFloat, Field(gt=0)]
    points: tuple[OperatingPoint, ...]
    of: Literal["uncalibrated probabilities"] = "uncalibrated probabilities"
    by_patient: tuple[OperatingPoint, ...] = ()
    thresholds: dict[str, StrictFloat] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; points of patients and thresholds are left out where there are
        none."""
        values = {"temperature": self.temperature, "points": [asdict(point) for point in self.points], "of": self.of}
        values |= {"by_patient": [asdict(point) for point in self.by_patient]} if self.by_patient else {}
        return values | ({"thresholds": self.thresholds} if self.thresholds else {})

    def called(self, predictions: Predictions) -> Predictions:
        """Return the same predictions, with what is called at the thresholds where an image may
        have several classes. Raises MetricsError where they are of other classes."""
        if not predictions.task.multi_label:
            return predictions
        thresholds = self.thresholds_of(predictions.classes)
        return replace(predictions, calls=predictions.task.called(predictions.probabilities, thresholds))

    def thresholds_of(self, classes: Sequence[str]) -> Floats:
        """Return the threshold of each class, (classes,). Raises MetricsError where they are of
        other classes."""
        if self.thresholds.keys() != {*classes}:
            raise MetricsError(
                f"the thresholds are those of {', '.join(self.thresholds) or 'no class'}; wanted one for each of "
                f"{', '.join(classes)}"
            )
        return np.array([self.thresholds[name] for name in classes])

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises MetricsError for any other shape."""
        return cast(Self, check("calibration", values, cls, MetricsError))


def fit(validation: Predictions) -> Calibration | None:
    """Fit a calibration to validation images, which must not be the test images; None without
    any."""
    if not len(validation.labels):
        return None
    columns = validation.task.told_apart(len(validation.classes))
    names = enumerate(validation.classes) if validation.task.multi_label else ()
    thresholds = {name: _threshold(validation, column) for column, name in names}
    images = tuple(point for column in columns for point in _points(validation, column))
    learned = Calibration(_temperature(validation), images, thresholds=thresholds)
    patients = of_patients(validation, learned)
    if patients is None or not patients.predictions.names:
        return learned
    means = tuple(point for column in columns for point in _points(patients.predictions, column))
    return replace(learned, by_patient=means)


def point_at(validation: Predictions, wish: str) -> OperatingPoint:
    """Return the operating point for a wish such as "malignant:sensitivity=0.95": the highest
    threshold that keeps so much sensitivity on the validation images, or the lowest that keeps so
    much specificity. Its threshold is one of the probabilities of ``validation``.

    Raises ConfigError for what is no such wish, and where no threshold can meet it.
    """
    name, _, rest = wish.rpartition(":")
    figure, _, text = rest.partition("=")
    try:
        least = float(text)
    except ValueError:
        least = -1.0
    if name not in validation.classes or figure not in ("sensitivity", "specificity") or not 0 < least <= 1:
        raise ConfigError(
            f"--at is {wish!r}; wanted CLASS:sensitivity=0.95 or CLASS:specificity=0.95, with a class of "
            f"{', '.join(validation.classes)} and a number above 0 and at most 1"
        )
    column = validation.classes.index(name)
    positive = validation.is_of(column)
    if positive.all() or not positive.any():
        raise ConfigError(
            f"--at is {wish!r}, and {'all' if positive.any() else 'none'} of the validation images are {name}: no "
            f"threshold can be chosen on them"
        )
    thresholds, sensitivity, specificity = _thresholds(validation, column)
    reached = np.flatnonzero((sensitivity if figure == "sensitivity" else specificity) >= least)
    if not len(reached):
        raise ConfigError(
            f"--at is {wish!r}, and no threshold reaches this on the validation images; the highest {figure} that one "
            f"reaches is {specificity.max():.3f}"
        )
    row = int(reached[-1] if figure == "sensitivity" else reached[0])
    rule = f"{figure} of at least {least:g} on val"
    return OperatingPoint(name, rule, float(thresholds[row]), float(sensitivity[row]), float(specificity[row]))


def with_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """Divide the logits of predictions by a temperature: no image is called otherwise, but for ties
    in the last digit, and confidence becomes truer."""
    warmer = predictions.task.apply_temperature(predictions.probabilities, temperature)
    return replace(predictions, probabilities=warmer)


def apply_operating_point(predictions: Predictions, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
    """Apply an operating point: for each image (n,) bool, whether its truth is the point's class,
    and whether it is called that. Raises MetricsError for an unknown class."""
    if point.name not in predictions.classes:
        raise MetricsError(f"there is no class {point.name!r}; wanted one of {', '.join(predictions.classes)}")
    column = predictions.classes.index(point.name)
    return predictions.is_of(column), predictions.probabilities[:, column] >= point.threshold


@dataclass(frozen=True)
class Bin:
    """Images of similar confidence: how many, the network's mean confidence, and how often it was
    right. Where an image may have several classes: probabilities, their mean, and how often the
    class was there."""

    images: int
    confidence: float
    accuracy: float


def reliability(predictions: Predictions) -> list[Bin]:
    """Group predictions by confidence, in the bins of the calibration error that have images, the
    least confident first."""
    probabilities = predictions.probabilities
    if predictions.task.multi_label:
        bins, confidence, right = probability_bins(probabilities), probabilities, predictions.labels
    else:
        bins, confidence = confidence_bins(probabilities), probabilities.max(axis=1)
        right = predictions.predicted == predictions.labels
    return [
        Bin(int(there.sum()), float(confidence[there].mean()), float(right[there].mean()))
        for there in (bins == i for i in range(BINS))
        if there.any()
    ]


def _temperature(validation: Predictions) -> float:
    def loss(log_temperature: float) -> float:
        losses = validation.task.losses(validation.probabilities, validation.labels, math.exp(log_temperature))
        return float(losses.mean())

    return math.exp(
        float(
            scipy.optimize.minimize_scalar(
                loss, bounds=(-_WIDEST, _WIDEST), method="bounded", options={"xatol": 1e-6}
            ).x
        )
    )


def _thresholds(validation: Predictions, column: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every threshold that divides the images, the lowest first, with its sensitivity and
    specificity. Some images must be of the class, and some not."""
    positive, scores = validation.is_of(column), validation.probabilities[:, column]
    thresholds = np.unique(scores)
    sensitivity = 1 - np.searchsorted(np.sort(scores[positive]), thresholds) / positive.sum()
    specificity = np.searchsorted(np.sort(scores[~positive]), thresholds) / (~positive).sum()
    return thresholds, sensitivity, specificity


def _threshold(validation: Predictions, column: int) -> float:
    """The threshold with the highest F1 score, the lowest of equals; a half where none can be
    chosen. It lies between two probabilities, so that no image's call depends on rounding."""
    positive = int(validation.is_of(column).sum())
    if positive in (0, len(validation.labels)):
        return HALF
    thresholds, sensitivity, specificity = _thresholds(validation, column)
    hits = sensitivity * positive
    called = hits + (1 - specificity) * (len(validation.labels) - positive)
    best = int((2 * hits / (positive + called)).argmax())
    return float((thresholds[best] + (thresholds[best - 1] if best else 0)) / 2)


def _points(validation: Predictions, column: int) -> Sequence[OperatingPoint]:
    """Where sensitivity and specificity together are highest (Youden), and the highest threshold
    that keeps the sensitivity."""
    positive = validation.is_of(column)
    if positive.all() or not positive.any():
        return ()
    thresholds, sensitivity, specificity = _thresholds(validation, column)
    name = validation.classes[column]
    best = int((sensitivity + specificity).argmax())
    kept = int(np.flatnonzero(sensitivity >= SENSITIVITY)[-1])
    rules = ((best, "highest sensitivity + specificity on val"), (kept, f"sensitivity of {SENSITIVITY:.0%} on val"))
    return [
        OperatingPoint(name, rule, float(thresholds[row]), float(sensitivity[row]), float(specificity[row]))
        for row, rule in rules
    ]
