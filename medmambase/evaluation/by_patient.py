"""Count patients in the place of images.

What a network says of a patient is the mean of the calibrated probabilities of the patient's
images, and the patient's label is that of these images: a class, or where an image may have several
an answer for each of them. A patient whose images have different labels has none, and is left out:
to predict such a patient once for each label would need to know the label of each image beforehand.
An image of which nobody knows the patient counts as a patient of its own, as it does for the
intervals.
Where an image may have several classes, a patient is called each class whose mean reaches the
threshold of the images, which is calibrated as the probabilities are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medmambase.evaluation.intervals import Draws, evaluate_with_intervals
from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.predictions import Predictions
from medmambase.evaluation.recorded import Interval
from medmambase.model.task import Floats

# The formulas are those of rows that stand alone, and a row is a patient.
_METHODS = {"Wilson": "Wilson, of patients"}


class Learned(Protocol):
    """What of a ``Calibration`` is asked here: the temperature, and the threshold of each class."""

    @property
    def temperature(self) -> float: ...

    def thresholds_of(self, classes: Sequence[str]) -> Floats: ...


@dataclass(frozen=True)
class Patients:
    """``predictions``: a row for each patient, named like the patient, or like the image where that
    is not known; no row belongs to another, so its ``patients`` are empty. ``images`` (n,) int64:
    how many of each. ``known``: how many rows are of known patients. ``left_out``: patients whose
    images have different labels."""

    predictions: Predictions
    images: npt.NDArray[np.int64]
    known: int
    left_out: int


def of_patients(predictions: Predictions, learned: Learned | None = None) -> Patients | None:
    """Put the images of each patient together; None where no patient has several.

    ``learned``: what the network has learned on validation images, where the probabilities are not
    calibrated yet. A row is leaked if an image of the patient is. The order is that of the first
    image of each patient, by its name, so that pseudonyms change nothing.
    """
    if not any(predictions.patients):
        return None
    order = np.array(sorted(range(len(predictions.names)), key=predictions.names.__getitem__), dtype=np.int64)
    ordered = predictions.rows(order)
    # An image of nobody known stands alone, also where a patient is called like it.
    keys = [(bool(patient), patient or name) for name, patient in zip(ordered.names, ordered.patients, strict=True)]
    every = list(dict.fromkeys(keys))
    place_of = {key: place for place, key in enumerate(every)}
    place = np.array([place_of[key] for key in keys], dtype=np.int64)
    images = np.bincount(place)
    if images.max() < 2:
        return None
    task, each = predictions.task, ordered.probabilities
    if learned is not None:
        each = task.apply_temperature(each, learned.temperature)
    sums = np.zeros((len(images), len(predictions.classes)))
    np.add.at(sums, place, each)
    leaked, several = np.zeros(len(images), dtype=bool), np.zeros(len(images), dtype=bool)
    np.logical_or.at(leaked, place, ordered.leaked)
    last = np.zeros(len(images), dtype=np.int64)
    last[place] = np.arange(len(place))  # of each patient the last image
    differs = ordered.labels != ordered.labels[last[place]]
    np.logical_or.at(several, place, differs.reshape(len(place), -1).any(axis=1))
    kept = np.flatnonzero(~several)
    names, means = tuple(every[row][1] for row in kept), (sums / images[:, None])[kept]
    found = Predictions(names, ordered.labels[last[kept]], means, predictions.classes, leaked=leaked[kept])
    if task.multi_label:
        found = replace(found, calls=task.called(means, _thresholds(predictions, learned)))
    return Patients(found, images[kept], sum(every[row][0] for row in kept), int(several.sum()))


def _thresholds(predictions: Predictions, learned: Learned | None) -> Floats:
    """From which mean on a patient is called each class (classes,). Where nothing else is known,
    halfway between the images that are called it and those that are not."""
    if learned is not None:
        return predictions.task.apply_temperature(learned.thresholds_of(predictions.classes), learned.temperature)
    called = predictions.predicted == 1
    lowest = np.where(called, predictions.probabilities, 1.0).min(axis=0, initial=1.0)
    return (lowest + np.where(called, 0.0, predictions.probabilities).max(axis=0, initial=0.0)) / 2


def evaluate_both(predictions: Predictions, learned: Learned | None = None, draws: Draws | None = None) -> AnyMetrics:
    """Compute what ``evaluate_with_intervals`` does, and beside each the same of patients:
    ``by_patient``, of all images and of those that are not leaked."""
    metrics, clean = evaluate_with_intervals(predictions, draws), predictions.clean
    without = metrics.without_leaked
    if without is not None and clean is not None:
        metrics = _with(metrics, without_leaked=_beside(without, clean, learned))
    return _beside(metrics, predictions, learned)


def _with(metrics: AnyMetrics, **changes: Any) -> AnyMetrics:
    """The same figures with others beside them, which are of the same kind."""
    return replace(metrics, **changes)


def _beside(metrics: AnyMetrics, predictions: Predictions, learned: Learned | None) -> AnyMetrics:
    found = of_patients(predictions, learned)
    if found is None:
        return metrics
    left_out = found.left_out or None
    if not found.predictions.names:
        return replace(metrics, patients_left_out=left_out)
    # Of patients none is left out for one leaked image: that image is, before the mean is taken.
    figures = evaluate_with_intervals(replace(found.predictions, leaked=np.zeros(0, dtype=bool)))
    rows = len(found.predictions.names)
    figures = replace(
        figures,
        intervals={name: _named(one) for name, one in figures.intervals.items()},
        patients=rows if found.known == rows else None,
        patient_known=found.known if 0 < found.known < rows else None,
    )
    return _with(metrics, by_patient=figures, patients_left_out=left_out)


def _named(interval: Interval) -> Interval:
    """The interval with the name of its method that says what was counted."""
    return replace(interval, method=_METHODS.get(interval.method, interval.method.replace("images", "patients")))
