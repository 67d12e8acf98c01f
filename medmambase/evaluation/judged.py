"""Compute the figures of predictions, of one class an image or of several."""

from typing import Any

import numpy as np

from medmambase.evaluation import metrics, multilabel
from medmambase.evaluation.metrics import Metrics
from medmambase.evaluation.multilabel import MultiLabelMetrics
from medmambase.evaluation.predictions import Predictions

AnyMetrics = Metrics | MultiLabelMetrics


def evaluate(predictions: Predictions) -> AnyMetrics:
    """Compute every figure, without intervals."""
    if predictions.task.multi_label:
        return multilabel.evaluate(predictions)
    return metrics.evaluate(predictions.labels, predictions.probabilities, predictions.classes)


def weighted_figures(predictions: Predictions, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute every figure, as ``flat`` names it, for b weightings of the n images: weights (b, n)
    -> (b,) each; NaN where undefined."""
    if predictions.task.multi_label:
        return multilabel.weighted_figures(predictions, weights)
    return metrics.weighted_figures(predictions.labels, predictions.probabilities, weights)


def brier(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """Compute the Brier score for weights (b, n) -> (b,)."""
    own = multilabel.brier if predictions.task.multi_label else metrics.brier
    return own(predictions.labels, predictions.probabilities, weights)


def calibration_gaps(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """Compute the gaps of which the calibration error is the sum: weights (b, n) -> (b, bins)."""
    own = multilabel.calibration_gaps if predictions.task.multi_label else metrics.calibration_gaps
    return own(predictions.labels, predictions.probabilities, weights)


def from_dict(values: dict[str, Any]) -> AnyMetrics:
    """Read what ``to_dict`` of either kind returned. Raises MetricsError for any other shape."""
    return (MultiLabelMetrics if "task" in values else Metrics).from_dict(values)
