"""Put the predictions of each patient's images together, to one prediction a patient."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from medmambase.inference.predictor import Prediction
from medmambase.inference.probable import Probable

Rule = Literal["mean", "max"]


@dataclass
class PatientPrediction(Probable):
    """What is predicted for a patient, or for an image of which nobody said whose it is: then
    ``alone``, and ``name`` is the image's.

    ``images`` were predicted, and ``unread`` could not be. ``probabilities``: float64 (classes,),
    the mean or the largest of those of the images (the largest need not sum to 1); None without
    images. ``noted``: images with a note; ``unlike``: images unlike those that the network was
    trained on.
    """

    name: str
    alone: bool
    classes: tuple[str, ...]
    images: int = 0
    unread: int = 0
    noted: int = 0
    unlike: int = 0
    probabilities: npt.NDArray[np.float64] | None = field(default=None, compare=False)
    thresholds: npt.NDArray[np.float64] | None = field(default=None, compare=False)

    def add(self, one: Prediction, rule: Rule) -> None:
        """Add the prediction of an image."""
        if one.probabilities is None:
            self.unread += 1
            return
        self.images += 1
        self.noted += bool(one.note)
        self.unlike += bool(one.unlike)
        self.thresholds = one.thresholds
        if self.probabilities is None:
            self.probabilities = one.probabilities.copy()
        elif rule == "mean":
            self.probabilities += (one.probabilities - self.probabilities) / self.images
        else:
            self.probabilities = np.maximum(self.probabilities, one.probabilities)


def by_patient(
    predictions: Iterable[Prediction],
    rule: Rule,
    patient_of: Callable[[Prediction], str],
    name_of: Callable[[Prediction], str],
) -> list[PatientPrediction]:
    """Return a prediction for each patient, in the order in which they are first met. Of any number
    of images only these are kept. ``patient_of`` an image is "" where nobody knows; ``name_of``
    names the image."""
    found: dict[tuple[bool, str], PatientPrediction] = {}
    for one in predictions:
        patient = patient_of(one)
        key = (not patient, patient or name_of(one))
        found.setdefault(key, PatientPrediction(key[1], key[0], one.classes)).add(one, rule)
    return list(found.values())
