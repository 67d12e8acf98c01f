"""Say how good a network is on its test images: a few figures, guessing beside them, one sentence.

The images that count are those that are not leaked. Guessing is what needs no look at an image: a
class drawn at random, or always the most frequent class.
"""

from dataclasses import dataclass

from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.multilabel import MultiLabelMetrics
from medmambase.evaluation.recorded import Interval
from medmambase.evaluation.report.summary import figure


@dataclass(frozen=True)
class Card:
    """A figure with its interval, and what guessing gives; None where one of them is unknown.

    ``figure`` is its name in ``Metrics.flat``, ``name`` that for a person.
    """

    figure: str
    name: str
    value: float | None
    interval: Interval | None
    guessing: float | None


@dataclass(frozen=True)
class Headline:
    """``metrics`` are those without leaked images; ``leaked`` is how many of ``images`` were left
    out. ``sentence`` compares the network with guessing."""

    metrics: AnyMetrics
    images: int
    leaked: int
    cards: tuple[Card, ...]
    sentence: str


def headline(metrics: AnyMetrics) -> Headline:
    """Return what is said first of test figures with intervals."""
    if isinstance(metrics, MultiLabelMetrics):
        return _of_several(metrics)
    clean = metrics.clean
    present = [one.support for one in clean.per_class if one.support]
    guessing = {
        "balanced_accuracy": 1 / len(present) if present else None,
        "auc": 0.5 if clean.auc is not None else None,
        "accuracy": max(present) / sum(present) if present else None,
    }
    names = {
        "balanced_accuracy": "balanced accuracy",
        "auc": "AUC" if len(clean.per_class) == 2 else "AUC (macro)",
        "accuracy": "accuracy",
    }
    cards = tuple(
        Card(key, name, clean.flat()[key], clean.intervals.get(key), guessing[key]) for key, name in names.items()
    )
    alike = f"The network calls every image {clean.only_called}. " if clean.only_called and len(present) > 1 else ""
    told = _sentence(cards[0], len(present), clean.counted)
    return Headline(clean, metrics.images, metrics.images - clean.images, cards, alike + told)


def _of_several(metrics: MultiLabelMetrics) -> Headline:
    """The same of images that may have several classes. Guessing: a number at random for the AUC
    and the average precision, and for the F1 score every class called."""
    clean = metrics.clean
    common = [one.support / clean.images for one in clean.per_class if one.support]
    guessing = {"auc": 0.5 if clean.auc is not None else None, "ap": None, "f1": None}
    if common:
        guessing["ap"] = sum(common) / len(common)
        guessing["f1"] = sum(2 * share / (1 + share) for share in common) / len(common)
    names = {"auc": "AUC (macro)", "ap": "average precision (macro)", "f1": "F1 score (macro)"}
    cards = tuple(
        Card(key, name, clean.flat()[key], clean.intervals.get(key), guessing[key]) for key, name in names.items()
    )
    if clean.images and cards[0].value is None:
        told = "Whether this is better than guessing cannot be told: no class is both there and absent in test images."
    else:
        told = _compared(cards[0], clean.counted, "the macro AUC", "which guessing gives")
    return Headline(clean, metrics.images, metrics.images - clean.images, cards, told)


def _sentence(card: Card, classes: int, counted: str) -> str:
    """Compare the balanced accuracy with guessing."""
    if classes == 1 and card.value is not None and card.guessing is not None:
        return "Whether this is better than guessing cannot be told: all test images are of one class."
    return _compared(card, counted, "the balanced accuracy", f"which guessing among {classes} classes gives")


def _compared(card: Card, counted: str, name: str, guessed: str) -> str:
    if card.value is None or card.guessing is None:
        return "Nothing can be said: no test image is left."
    guess = f"{figure(card.guessing)}, {guessed}"
    sure = card.interval
    if sure is None:
        of = "" if counted == "images" else " of different patients"
        return f"Whether this is better than guessing cannot be told: too few test images{of} for an interval."
    between = f"the 95 % interval of {name}, {figure(sure.low)} to {figure(sure.high)},"
    if sure.low > card.guessing:
        return f"Better than guessing by {figure(card.value - card.guessing)}: {between} lies above {guess}."
    if sure.high < card.guessing:
        return (
            f"Worse than guessing by {figure(card.guessing - card.value)}: {between} lies below {guess}. Are the "
            f"labels of training and test images the same?"
        )
    return f"This cannot be told from guessing: {between} holds {guess}."
