"""Count patients in the place of images.

What a network says of a patient is the mean of the calibrated probabilities of the patient's
images, and the patient's class is that of these images. A patient whose images are of several
classes has none, and is left out: to predict such a patient once for each class would need to know
the class of each image beforehand. An image of which nobody knows the patient counts as a patient
of its own, as it does for the intervals.
Where an image may have several classes, the images of a patient show different ones as a rule:
there nothing is counted in patients but the intervals.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medmambase.evaluation.intervals import Draws, evaluate_with_intervals
from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.metrics import Interval, Metrics
from medmambase.evaluation.multilabel import MultiLabelMetrics
from medmambase.evaluation.predictions import Predictions

# The formulas are those of rows that stand alone, and a row is a patient.
_METHODS = {"Wilson": "Wilson, of patients"}


@dataclass(frozen=True)
class Patients:
    """``predictions``: a row for each patient, named like the patient, or like the image where that
    is not known; no row belongs to another, so its ``patients`` are empty. ``images`` (n,) int64:
    how many of each. ``known``: how many rows are of known patients. ``left_out``: patients whose
    images are of several classes."""

    predictions: Predictions
    images: npt.NDArray[np.int64]
    known: int
    left_out: int


def of_patients(predictions: Predictions, temperature: float | None = None) -> Patients | None:
    """Put the images of each patient together; None where no patient has several, and where an
    image may have several classes.

    ``temperature``: that of the network, where the probabilities are not calibrated yet. A row is
    leaked if an image of the patient is. The order is that of the first image of each patient, by
    its name, so that pseudonyms change nothing.
    """
    if not any(predictions.patients) or predictions.task.multi_label:
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
    each = ordered.probabilities
    if temperature is not None:
        each = predictions.task.apply_temperature(each, temperature)
    sums = np.zeros((len(images), len(predictions.classes)))
    np.add.at(sums, place, each)
    leaked, several = np.zeros(len(images), dtype=bool), np.zeros(len(images), dtype=bool)
    np.logical_or.at(leaked, place, ordered.leaked)
    last = np.zeros(len(images), dtype=np.int64)
    last[place] = np.arange(len(place))  # of each patient the last image
    differs = ordered.labels != ordered.labels[last[place]]
    np.logical_or.at(several, place, differs)
    kept = np.flatnonzero(~several)
    names, means = tuple(every[row][1] for row in kept), sums / images[:, None]
    found = Predictions(names, ordered.labels[last[kept]], means[kept], predictions.classes, leaked=leaked[kept])
    return Patients(found, images[kept], sum(every[row][0] for row in kept), int(several.sum()))


def evaluate_both(predictions: Predictions, temperature: float | None = None, draws: Draws | None = None) -> AnyMetrics:
    """Compute what ``evaluate_with_intervals`` does, and beside each the same of patients:
    ``by_patient``, of all images and of those that are not leaked."""
    metrics, clean = evaluate_with_intervals(predictions, draws), predictions.clean
    if isinstance(metrics, MultiLabelMetrics):
        return metrics
    without = metrics.without_leaked
    if without is not None and clean is not None:
        metrics = replace(metrics, without_leaked=_beside(without, clean, temperature))
    return _beside(metrics, predictions, temperature)


def _beside(metrics: Metrics, predictions: Predictions, temperature: float | None) -> Metrics:
    found = of_patients(predictions, temperature)
    if found is None:
        return metrics
    left_out = found.left_out or None
    if not found.predictions.names:
        return replace(metrics, patients_left_out=left_out)
    # Of patients none is left out for one leaked image: that image is, before the mean is taken.
    figures = evaluate_with_intervals(replace(found.predictions, leaked=np.zeros(0, dtype=bool)))
    assert isinstance(figures, Metrics)
    rows = len(found.predictions.names)
    figures = replace(
        figures,
        intervals={name: _named(one) for name, one in figures.intervals.items()},
        patients=rows if found.known == rows else None,
        patient_known=found.known if 0 < found.known < rows else None,
    )
    return replace(metrics, by_patient=figures, patients_left_out=left_out)


def _named(interval: Interval) -> Interval:
    """The interval with the name of its method that says what was counted."""
    return replace(interval, method=_METHODS.get(interval.method, interval.method.replace("images", "patients")))
