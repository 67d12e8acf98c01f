"""The first lines of the report: the figures that count, what guessing gives, and one sentence."""

from dataclasses import replace

import numpy as np
import pytest

from medmambase.evaluation.metrics import Metrics, evaluate
from medmambase.evaluation.recorded import Interval
from medmambase.evaluation.report.headline import headline

LABELS = np.repeat([0, 1], [6, 4])


def found(low: float, high: float, *, classes: int = 2, labels: np.ndarray = LABELS, right: int = 8) -> Metrics:
    """Test figures with this interval of the balanced accuracy, ``right`` images right."""
    called = np.where(np.arange(len(labels)) < right, labels, 1 - labels)
    metrics = evaluate(labels, np.eye(classes)[called], [f"class {number}" for number in range(classes)])
    return replace(metrics, intervals={"balanced_accuracy": Interval(low, high, "test")})


@pytest.mark.parametrize(
    ("low", "high", "right", "sentence"),
    [
        (
            0.501,
            0.9,
            8,
            "Better than guessing by 0.250: the 95 % interval of the balanced accuracy, 0.501 to 0.900, lies above ",
        ),
        (
            0.5,
            0.9,
            8,
            "This cannot be told from guessing: the 95 % interval of the balanced accuracy, 0.500 to 0.900, holds ",
        ),
        (0.3, 0.5, 8, "This cannot be told from guessing: "),
        (0.1, 0.499, 2, "Worse than guessing by 0.333: "),
    ],
)
def test_one_sentence_compares_the_interval_with_guessing(low: float, high: float, right: int, sentence: str) -> None:
    said = headline(found(low, high, right=right)).sentence
    assert said.startswith(sentence)
    assert "0.500, which guessing among 2 classes gives" in said


def test_without_an_interval_or_a_second_class_nothing_is_claimed() -> None:
    assert "too few test images" in headline(replace(found(0.6, 0.9), intervals={})).sentence
    alone = found(0.6, 0.9, labels=np.zeros(5, dtype=np.int64), right=5)
    assert "all test images are of one class" in headline(alone).sentence
    empty = evaluate(np.array([]), np.zeros((0, 2)), ["a", "b"])
    nothing = headline(empty)
    assert "no test image is left" in nothing.sentence
    assert all(card.value is None and card.guessing is None for card in nothing.cards)


def test_guessing_is_that_of_the_classes_that_occur() -> None:
    cards = {card.name: card for card in headline(found(0.6, 0.9, classes=3)).cards}
    assert cards["balanced accuracy"].guessing == 0.5
    assert cards["AUC (macro)"].guessing == 0.5
    assert cards["accuracy"].guessing == 0.6
    assert cards["balanced accuracy"].interval == Interval(0.6, 0.9, "test")
    assert "guessing among 2 classes" in headline(found(0.6, 0.9, classes=3)).sentence


def test_figures_without_leaked_images_are_those_that_count() -> None:
    clean = found(0.1, 0.9, labels=LABELS[4:])
    told = headline(replace(found(0.8, 0.9), without_leaked=clean))
    assert (told.metrics, told.images, told.leaked) == (clean, 10, 4)
    assert replace(clean, without_leaked=clean).clean is clean is clean.clean
    assert told.cards[0].value == clean.balanced_accuracy
    assert told.sentence.startswith("This cannot be told from guessing")
    assert [card.guessing for card in told.cards] == [0.5, 0.5, pytest.approx(4 / 6)]
