"""Compute the figures of the MedMNIST benchmark, as its own evaluator does."""

from statistics import fmean

import numpy as np


def as_medmnist(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Compute ACC and AUC as the evaluator of the MedMNIST benchmark does, arguments as
    ``evaluate``'s; None where a class has no image.

    Of two classes the second is predicted above 0.5; of more, the AUC is the plain mean of every
    class's against all others.
    """
    classes = probabilities.shape[1]
    if len(np.unique(labels)) != classes:
        return {"ACC": None, "AUC": None}
    from sklearn.metrics import (
        accuracy_score,
        roc_auc_score,
    )  # slow to import, and importing this package must stay cheap

    predicted = probabilities[:, 1] > 0.5 if classes == 2 else probabilities.argmax(axis=1)
    counted = [1] if classes == 2 else range(classes)
    areas = [float(roc_auc_score(labels == label, probabilities[:, label])) for label in counted]
    return {"ACC": float(accuracy_score(labels, predicted)), "AUC": fmean(areas)}
