"""One prediction for each patient, from those of the images."""

from pathlib import Path

import numpy as np
import pytest

from medmambase.inference.patients import Rule, by_patient
from medmambase.inference.predictor import Prediction

CLASSES = ("a", "b")


def image(name: str, b: float | None, patient: str = "", note: str = "") -> Prediction:
    probabilities = None if b is None else np.array([1 - b, b])
    return Prediction(0, Path(name), CLASSES, probabilities, "broken" if b is None else None, patient, note)


@pytest.mark.parametrize(("rule", "wanted"), [("mean", [0.5, 0.5]), ("max", [0.8, 0.9])])
def test_the_images_of_a_patient_make_one_prediction(rule: Rule, wanted: list[float]) -> None:
    images = [
        image("1", 0.2, "p"), image("2", 0.7, "q", "a note"), image("3", 0.4, "p"), image("4", None, "p"),
        image("5", 0.9, "p"), image("6", 0.1), image("q", 0.3), image("7", None),
    ]  # fmt: skip  # a table
    p, q, six, other, seven = by_patient(iter(images), rule, lambda one: one.patient, lambda one: str(one.path))
    assert p.by_class == pytest.approx(dict(zip(CLASSES, wanted, strict=True)), abs=1e-12)
    assert (p.name, p.images, p.unread, p.noted, p.alone) == ("p", 3, 1, 0, False)
    assert (q.name, q.label, q.probability, q.noted) == ("q", "b", 0.7, 1)
    # An image of nobody known stands alone, also where a patient is called like it.
    assert (six.name, six.label, six.alone) == ("6", "a", True) and (other.name, other.alone) == ("q", True)
    assert (seven.images, seven.unread, seven.label, seven.probability, seven.by_class) == (0, 1, None, None, {})
    assert images[0].by_class["b"] == 0.2
