"""Compute metrics from labels and probabilities.

Every figure is computed for images that carry weights, of many weightings at once: weights of 1
give the figure itself, and the weights of a bootstrap its replicates, so that the two cannot differ
in what they mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, StrictFloat, with_config

from medmambase.evaluation.predictions import MetricsError, checked
from medmambase.evaluation.recorded import MOST, ONE_CLASS, ClassMetrics, Count, Figures, Interval, Share
from medmambase.model.task import SINGLE_LABEL
from medmambase.validation import OBJECT

OVERALL = ("accuracy", "balanced_accuracy", "auc", "mcc", "kappa", "brier", "ece")
_CACHED = 100_000  # weights that are looked at together: less than a processor's cache
BINS = 15  # of confidence, equally wide, for the calibration error

Correlation = Annotated[StrictFloat, Field(ge=-1, le=1)] | None
Distance = Annotated[StrictFloat, Field(ge=0, le=2)] | None


@with_config(OBJECT)
@dataclass(frozen=True)
class Metrics(Figures):
    """What a set of predictions is worth; None where a figure is undefined.

    ``balanced_accuracy``: mean sensitivity of the classes that occur. ``auc``: mean one-vs-rest AUC
    of the classes that have one; with two classes the AUC of the second. ``mcc``: Matthews'
    correlation, -1 to 1, 0 where all images are or are called one class. ``kappa``: Cohen's, -1 to
    1. ``brier``: mean squared distance of the probabilities from the truth, of two classes that of
    the second, 0 to 1, of more the sum over them, 0 to 2. ``ece``: mean distance between confidence
    and accuracy in 15 equal bins. ``macro`` and ``weighted``: means of the classes' figures, plain
    and by support.
    ``confusion[truth][predicted]`` counts images. ``intervals``: figure, as ``flat`` names it ->
    its Interval; empty where none were asked for.
    ``patients``: how many there are, where they are known of all images; ``patient_known``: of how
    many images they are known, where that is some. ``without_leaked``: the same without images that
    have a duplicate, or images of their patient, in train or val; None where none has.
    ``by_patient``: the same counted in patients, whose number is then its ``images``; None where no
    patient has several images. ``patients_left_out``: how many are not counted there, because their
    images have different labels, where that is some.
    """

    accuracy: Share
    balanced_accuracy: Share
    auc: Share
    mcc: Correlation
    kappa: Correlation
    brier: Distance
    ece: Share
    macro: dict[str, Share]
    weighted: dict[str, Share]
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[Count, ...], ...]
    intervals: dict[str, Interval] = field(default_factory=dict)
    patients: Count | None = None
    without_leaked: "Metrics | None" = None
    patient_known: Count | None = None
    by_patient: "Metrics | None" = None
    patients_left_out: Count | None = None

    overall: ClassVar[tuple[str, ...]] = OVERALL
    most: ClassVar[Mapping[str, float]] = MOST

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(map(sum, self.confusion))

    @property
    def only_called(self) -> str | None:
        """The class that every image was called; None where several were, or there is no image."""
        called = [index for index, column in enumerate(zip(*self.confusion, strict=True)) if any(column)]
        return self.per_class[called[0]].name if len(called) == 1 else None

    def _check_confusion(self) -> None:
        classes = len(self.per_class)
        if (
            not classes
            or {len(row) for row in self.confusion} != {classes}
            or [sum(row) for row in self.confusion] != [one.support for one in self.per_class]
        ):
            raise MetricsError(
                f"the confusion matrix does not fit {classes} classes and their support; wanted a row a class that "
                f"sums to it"
            )


def evaluate(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Compute every figure of one set of predictions, without intervals; the predicted class is the
    most probable one, the first of equals.

    labels (n,) integers; probabilities (n, classes), rows that sum to 1; n may be 0. Raises
    MetricsError for other input.
    """
    labels, probabilities = checked(labels, probabilities, classes)
    ones = np.ones((1, len(labels)))
    found = weighted_figures(labels, probabilities, ones)
    plain: dict[str, Any] = {name: None if np.isnan(value[0]) else float(value[0]) for name, value in found.items()}
    confusion = confusions(labels, SINGLE_LABEL.called(probabilities), len(classes), ones)[0].astype(np.int64)
    return Metrics(
        **{name: plain[name] for name in OVERALL},
        macro={name: plain[f"macro/{name}"] for name in ONE_CLASS},
        weighted={name: plain[f"weighted/{name}"] for name in ONE_CLASS},
        per_class=tuple(
            ClassMetrics(
                name, int(confusion[index].sum()), **{figure: plain[f"{index}/{figure}"] for figure in ONE_CLASS}
            )
            for index, name in enumerate(classes)
        ),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def weighted_figures(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute every figure, as ``Metrics.flat`` names it, for b weightings of the n images: weights
    (b, n), at least 0, -> (b,) each; NaN where undefined."""
    count = probabilities.shape[1]
    confusion = confusions(labels, SINGLE_LABEL.called(probabilities), count, weights)
    total, hits = weights.sum(axis=1), np.diagonal(confusion, axis1=1, axis2=2)
    support, called = confusion.sum(axis=2), confusion.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        curves = [areas(labels == index, probabilities[:, index], weights) for index in range(count)]
        of_class = shares(confusion) | {
            "f1": 2 * hits / (support + called),
            "auc": np.stack([auc for auc, _ in curves], axis=1),
            "ap": np.stack([ap for _, ap in curves], axis=1),
        }
        even = np.ones_like(support)
        means = {
            name: (mean_over_classes(value, even), mean_over_classes(value, support))
            for name, value in of_class.items()
        }
        accuracy = hits.sum(axis=1) / total
        chance = (support * called).sum(axis=1) / total**2
        spread = np.sqrt((total**2 - (support**2).sum(axis=1)) * (total**2 - (called**2).sum(axis=1)))
        surplus = hits.sum(axis=1) * total - (support * called).sum(axis=1)
        found = {
            "accuracy": accuracy,
            "balanced_accuracy": means["sensitivity"][0],
            # Of two classes both columns tell the same story; the second is by custom the disease.
            "auc": of_class["auc"][:, 1] if count == 2 else means["auc"][0],
            "mcc": np.where(spread > 0, surplus / spread, np.where(total > 0, 0.0, np.nan)),
            "kappa": (accuracy - chance) / np.where(chance < 1, 1 - chance, np.nan),
            "brier": brier(labels, probabilities, weights),
            "ece": np.abs(calibration_gaps(labels, probabilities, weights)).sum(axis=1),
        }
    found |= {f"macro/{name}": plain for name, (plain, _) in means.items()} | {
        f"weighted/{name}": by for name, (_, by) in means.items()
    }
    return found | {f"{index}/{name}": value[:, index] for index in range(count) for name, value in of_class.items()}


def confusions(labels: np.ndarray, called: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """Count images by true and by called class: labels and called (n,) int64, weights (b, n) ->
    (b, truth, called)."""
    pairs = labels * classes + called
    counted = [np.bincount(pairs, row, minlength=classes * classes) for row in weights]
    return np.stack(counted).reshape(-1, classes, classes)


def shares(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Compute sensitivity, specificity, PPV and NPV of each class from (b, truth, called): (b,
    classes) each, NaN where undefined."""
    hits, support, called = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2), confusion.sum(axis=1)
    total = support.sum(axis=1, keepdims=True)
    rest, wrong = total - support, called - hits
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "sensitivity": hits / support,
            "specificity": (rest - wrong) / rest,
            "ppv": hits / called,
            "npv": (rest - wrong) / (total - called),
        }


def brier(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the Brier score for weights (b, n) -> (b,)."""
    score: np.ndarray = weights @ _squared_distance(labels, probabilities) / weights.sum(axis=1)
    return score


def areas(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the area below the ROC curve (ties count half), and average precision, of n images
    that are positive or not, for weights (b, n) -> (b,) each; NaN without images on one side.

    Only where an image of the class stands does either sum grow, so that the rest is a cumulative
    sum alone; as many weightings are looked at together as a processor's cache holds.
    """
    auc, ap = np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    if not positive.any():
        return auc, ap
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of runs of equal scores, the highest first
    places = np.flatnonzero(positive[order])
    runs, counts = np.unique(np.searchsorted(ends, places), return_counts=True)  # that hold one of ours
    last = counts.cumsum() - 1
    for start in range(0, len(weights), size := max(1, _CACHED // len(order))):
        ordered = weights[start : start + size].take(order, axis=1)
        reached = np.pad(ordered.cumsum(axis=1).take(ends, axis=1), ((0, 0), (1, 0)))
        true = ordered.take(places, axis=1).cumsum(axis=1).take(last, axis=1)
        ours, through = np.diff(true, axis=1, prepend=0), reached.take(runs + 1, axis=1)
        theirs, false = through - reached.take(runs, axis=1) - ours, through - true
        all_ours = true[:, -1]
        all_theirs = reached[:, -1] - all_ours
        pairs = (ours * (all_theirs[:, None] - false + theirs / 2)).sum(axis=1)
        auc[start : start + size] = pairs / (all_ours * all_theirs)
        # Zeros where none of ours stands: a sum's last digit depends on how many terms it has.
        terms = np.zeros((len(ordered), len(ends)))
        # Where nothing was called, nothing is counted.
        terms[:, runs] = ours * (true / np.maximum(through, np.finfo(float).tiny))
        ap[start : start + size] = terms.sum(axis=1) / all_ours
    return auc, ap


def mean_over_classes(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute means over the classes (b, classes) whose figure is defined -> (b,)."""
    there = ~np.isnan(values)
    return (np.where(there, values, 0) * weights).sum(axis=1) / (weights * there).sum(axis=1)


def _squared_distance(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    distance = (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2
    return distance[:, 1] if probabilities.shape[1] == 2 else distance.sum(axis=1)


def calibration_gaps(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute by how much confidence exceeds accuracy in each bin, times the bin's share of the
    images: weights (b, n) -> (b, BINS)."""
    surplus = probabilities.max(axis=1) - (SINGLE_LABEL.called(probabilities) == labels)
    in_bin = np.eye(BINS)[confidence_bins(probabilities)]
    gaps: np.ndarray = weights @ (surplus[:, None] * in_bin) / weights.sum(axis=1, keepdims=True)
    return gaps


def confidence_bins(probabilities: np.ndarray) -> np.ndarray:
    """Find the bin of each image's highest probability, (n,) int64, 0 to BINS - 1; a border belongs
    to the bin below it."""
    return (
        np.clip(np.ceil(probabilities.max(axis=1) * BINS).astype(np.int64) - 1, 0, BINS - 1)
        if len(probabilities)
        else np.zeros(0, dtype=np.int64)
    )
