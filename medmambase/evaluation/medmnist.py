"""Compute the figures of the MedMNIST benchmark, as its own evaluator does."""

from statistics import fmean

import numpy as np

from medmambase.model.task import SINGLE_LABEL


def as_medmnist(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Compute ACC and AUC as the evaluator of the MedMNIST benchmark does, arguments as
    ``evaluate``'s; None where a class has no image.

    Of two classes the second is predicted above 0.5; of more, the AUC is the plain mean of every
    class's against all others. Where an image may have several classes, ``labels`` are (n,
    classes), ACC is the share of all answers that are right at 0.5, and AUC the mean of the
    classes'; None where a class is in every image or in none.
    """
    classes, several = probabilities.shape[1], labels.ndim == 2
    there = {len(np.unique(column)) for column in labels.T} if several else {len(np.unique(labels))}
    if there != {2 if several else classes}:
        return {"ACC": None, "AUC": None}
    from sklearn.metrics import (
        accuracy_score,
        roc_auc_score,
    )  # slow to import, and importing this package must stay cheap

    if several:
        areas = [float(roc_auc_score(*pair)) for pair in zip(labels.T, probabilities.T, strict=True)]
        return {"ACC": float((labels == (probabilities > 0.5)).mean()), "AUC": fmean(areas)}
    predicted = probabilities[:, 1] > 0.5 if classes == 2 else SINGLE_LABEL.called(probabilities)
    counted = [1] if classes == 2 else range(classes)
    areas = [float(roc_auc_score(labels == label, probabilities[:, label])) for label in counted]
    return {"ACC": float(accuracy_score(labels, predicted)), "AUC": fmean(areas)}
