"""Compute the figures of images that may have several classes: of each class, their means, and of
all classes of an image together.

As in ``metrics.py``, every figure is computed for images that carry weights, of many weightings at
once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import with_config

from medmambase.evaluation.metrics import BINS, areas, confusions, mean_over_classes, shares
from medmambase.evaluation.predictions import MetricsError, Predictions
from medmambase.evaluation.recorded import ONE_CLASS, ClassMetrics, Count, Figures, Interval, Share
from medmambase.validation import OBJECT

OVERALL = ("auc", "ap", "f1", "balanced_accuracy", "subset_accuracy", "hamming_loss", "brier", "ece")

Table = tuple[tuple[Count, Count], tuple[Count, Count]]


@with_config(OBJECT)
@dataclass(frozen=True)
class MultiLabelMetrics(Figures):
    """What a set of predictions of several classes an image is worth; None where a figure is
    undefined.

    A class is called where its probability reaches its threshold, which was chosen on validation
    images. ``auc``, ``ap`` and ``f1``: means of the classes that have one.
    ``balanced_accuracy``: mean over the classes of (sensitivity + specificity) / 2.
    ``subset_accuracy``: share of images of which every class is called right. ``hamming_loss``:
    share of calls that are wrong, over images and classes. ``brier``: mean squared distance of the
    probabilities from the truth, and ``ece``: mean distance between a probability and how often it
    came true in 15 equal bins, both over images and classes.
    ``confusion``: of each class ((true negatives, false positives), (false negatives, true
    positives)). All others: as of ``Metrics``.
    """

    images: Count
    auc: Share
    ap: Share
    f1: Share
    balanced_accuracy: Share
    subset_accuracy: Share
    hamming_loss: Share
    brier: Share
    ece: Share
    macro: dict[str, Share]
    weighted: dict[str, Share]
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[Table, ...]
    intervals: dict[str, Interval] = field(default_factory=dict)
    patients: Count | None = None
    without_leaked: "MultiLabelMetrics | None" = None
    patient_known: Count | None = None
    by_patient: "MultiLabelMetrics | None" = None
    patients_left_out: Count | None = None
    task: Literal["multi-label"] = "multi-label"
    overall: ClassVar[tuple[str, ...]] = OVERALL

    @property
    def accuracy(self) -> float | None:
        """The subset accuracy, as of images with one class the accuracy."""
        return self.subset_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values, as ``Metrics`` does; ``task`` comes last."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if name != "task"} | {"task": self.task}

    def _check_confusion(self) -> None:
        sums = [(sum(there), sum(absent) + sum(there)) for absent, there in self.confusion]
        if not sums or sums != [(one.support, self.images) for one in self.per_class]:
            raise MetricsError(
                f"the confusion matrices do not fit {len(self.per_class)} classes and their support in {self.images} "
                f"images; wanted one a class that sums to them"
            )


def evaluate(predictions: Predictions) -> MultiLabelMetrics:
    """Compute every figure, without intervals."""
    ones = np.ones((1, len(predictions.labels)))
    found = weighted_figures(predictions, ones)
    plain: dict[str, Any] = {name: None if np.isnan(value[0]) else float(value[0]) for name, value in found.items()}
    tables = [one[0].astype(np.int64).tolist() for one in _tables(predictions, ones)]
    return MultiLabelMetrics(
        images=len(predictions.labels),
        **{name: plain[name] for name in OVERALL},
        macro={name: plain[f"macro/{name}"] for name in ONE_CLASS},
        weighted={name: plain[f"weighted/{name}"] for name in ONE_CLASS},
        per_class=tuple(
            ClassMetrics(name, sum(tables[index][1]), **{figure: plain[f"{index}/{figure}"] for figure in ONE_CLASS})
            for index, name in enumerate(predictions.classes)
        ),
        confusion=tuple(((one[0][0], one[0][1]), (one[1][0], one[1][1])) for one in tables),
    )


def weighted_figures(predictions: Predictions, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute every figure, as ``MultiLabelMetrics.flat`` names it, for b weightings of the n
    images: weights (b, n), at least 0, -> (b,) each; NaN where undefined."""
    labels, calls, probabilities = predictions.labels, predictions.predicted, predictions.probabilities
    tables, total = _tables(predictions, weights), weights.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        curves = [areas(labels[:, i] == 1, probabilities[:, i], weights) for i in range(len(tables))]
        called_right = [shares(one) for one in tables]
        of_class = {
            name: np.stack([one[name][:, 1] for one in called_right], axis=1)
            for name in ("sensitivity", "specificity", "ppv", "npv")
        }
        support = np.stack([one[:, 1].sum(axis=1) for one in tables], axis=1)
        f1 = [2 * one[:, 1, 1] / (one[:, 1].sum(axis=1) + one[:, :, 1].sum(axis=1)) for one in tables]
        of_class |= {
            "f1": np.stack(f1, axis=1),
            "auc": np.stack([auc for auc, _ in curves], axis=1),
            "ap": np.stack([ap for _, ap in curves], axis=1),
        }
        even = np.ones_like(support)
        macro = {name: mean_over_classes(value, even) for name, value in of_class.items()}
        by_size = {name: mean_over_classes(value, support) for name, value in of_class.items()}
        found = {
            "auc": macro["auc"],
            "ap": macro["ap"],
            "f1": macro["f1"],
            "balanced_accuracy": mean_over_classes((of_class["sensitivity"] + of_class["specificity"]) / 2, even),
            "subset_accuracy": weights @ (labels == calls).all(axis=1) / total,
            "hamming_loss": weights @ (labels != calls).mean(axis=1) / total,
            "brier": brier(labels, probabilities, weights),
            "ece": np.abs(calibration_gaps(labels, probabilities, weights)).sum(axis=1),
        }
    found |= {f"macro/{name}": value for name, value in macro.items()}
    found |= {f"weighted/{name}": value for name, value in by_size.items()}
    return found | {
        f"{index}/{name}": value[:, index] for index in range(len(tables)) for name, value in of_class.items()
    }


def brier(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the Brier score, the mean over images and classes, for weights (b, n) -> (b,)."""
    score: np.ndarray = weights @ ((probabilities - labels) ** 2).mean(axis=1) / weights.sum(axis=1)
    return score


def calibration_gaps(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute by how much probabilities exceed how often they came true in each bin, times the
    bin's share of all: weights (b, n) -> (b, BINS)."""
    bins, surplus = probability_bins(probabilities), probabilities - labels
    in_bin = np.stack([(surplus * (bins == one)).mean(axis=1) for one in range(BINS)], axis=1)
    gaps: np.ndarray = weights @ in_bin / weights.sum(axis=1, keepdims=True)
    return gaps


def probability_bins(probabilities: np.ndarray) -> np.ndarray:
    """Find the bin of each probability, int64 of the same shape, 0 to BINS - 1; a border belongs to
    the bin below it."""
    return np.clip(np.ceil(probabilities * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _tables(predictions: Predictions, weights: np.ndarray) -> Sequence[np.ndarray]:
    """Of each class how often it is there and is called: (b, 2, 2)."""
    pairs = zip(predictions.labels.T, predictions.predicted.T, strict=True)
    return [confusions(truth, called, 2, weights) for truth, called in pairs]
