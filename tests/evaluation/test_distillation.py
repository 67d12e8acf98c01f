"""How far a distilled network is from those that it has learned from: against a hand's
computation."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from medmambase.evaluation.distillation import measure
from medmambase.evaluation.predictions import MetricsError, Predictions


def random(seed: int, count: int) -> Predictions:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet((1, 1), count)
    labels = (np.random.default_rng(5).random(count) < 0.5).astype(np.int64)
    return Predictions(tuple(f"{n:02}.png" for n in range(count)), labels, p, ("a", "b"), tuple("pqrs" * (count // 4)))


def test_loss_agreement_and_figures_are_those_of_the_images_that_it_was_measured_on() -> None:
    teachers, distilled = random(0, 40), random(1, 40).rows(range(39, 19, -1))
    found = measure(teachers, distilled)
    theirs = teachers.rows(range(39, 19, -1))
    each = [entropy(p, q) for p, q in zip(theirs.probabilities, distilled.probabilities, strict=True)]
    assert found["images"] == 20 and found["loss"] == pytest.approx(np.mean(each))
    assert found["agreement"] == pytest.approx(np.mean(theirs.predicted == distilled.predicted))
    auc = found["figures"]["auc"]
    assert auc["networks"] == pytest.approx(roc_auc_score(theirs.labels, theirs.probabilities[:, 1]))
    assert auc["distilled"] == pytest.approx(roc_auc_score(distilled.labels, distilled.probabilities[:, 1]))
    assert auc["low"] < auc["distilled"] - auc["networks"] < auc["high"]


def test_one_that_says_the_same_has_no_loss_and_none_that_is_sure_has_an_infinite_one() -> None:
    one = random(0, 8)
    same = measure(one, one)
    assert same["loss"] == 0 and same["agreement"] == 1 and same["figures"]["auc"]["low"] is None
    sure = replace(one, probabilities=np.eye(2)[1 - one.predicted])
    assert 1 < measure(one, sure)["loss"] < np.inf
    with pytest.raises(MetricsError, match=r"the networks have not predicted 4 images, such as 00\.png"):
        measure(one.rows([4, 5, 6, 7]), one)
