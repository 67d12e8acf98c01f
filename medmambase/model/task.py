"""Decide what a network's logits mean: the loss by which they learn labels, the probabilities that
they become, and the call that follows. An image has one class, or any number of classes.

Whoever needs one of the three asks the task of the network: ``task_of(network.config)``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy  # which imports its parts when they are first used: they are slow to import
import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase.config import AnyConfig

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEAST = np.finfo(np.float64).tiny
_MOST_OFF = 0.01  # of a sum of probabilities: a softmax in bfloat16 misses 1 by some thousandths
HALF = 0.5  # from which probability on a class is called, where no threshold was chosen


class Task(ABC):
    """What labels, logits (..., classes), probabilities (..., classes) and calls mean. Calls have
    the form of labels."""

    multi_label: bool
    wanted: str  # what a row of probabilities has to be, in words

    @abstractmethod
    def class_weights(self, labels: Tensor, classes: int, balanced: bool) -> Tensor:
        """Return the weights of the loss, torch.float32: ones, or where ``balanced`` such that each
        class has the same part in it."""

    @abstractmethod
    def weight_of(self, labels: Tensor, weights: Tensor) -> float:
        """Return what the summed loss of images with these ``labels`` is divided by to be their
        mean. ``weights``: those of ``class_weights``."""

    @abstractmethod
    def table(self, weights: Tensor, smoothing: float) -> Tensor:
        """Return for each label what the loss multiplies the logarithms of probabilities by."""

    @abstractmethod
    def targets(self, table: Tensor, labels: Tensor) -> Tensor:
        """Return the rows of ``table`` for images with these ``labels``."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of images: logits (b, classes) -> ()."""

    @abstractmethod
    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Count images of which everything is called right: torch.float32 ()."""

    @abstractmethod
    def guessing(self, classes: int) -> tuple[str, float]:
        """Return how a network guesses that has learned nothing, and its loss."""

    @abstractmethod
    def activate(self, logits: Tensor) -> Tensor:
        """Turn logits into probabilities, on their device and in their dtype."""

    @abstractmethod
    def mean(self, logits: Tensor) -> Tensor:
        """Return logits (b, classes) of the mean of the probabilities of n networks (n, b,
        classes)."""

    @abstractmethod
    def apply_temperature(self, probabilities: Floats, temperature: float) -> Floats:
        """Divide the logits of probabilities by ``temperature``: above 1 they become less sure.
        The order of probabilities stays the same, but for ties in the last digit."""

    @abstractmethod
    def losses(self, probabilities: Floats, labels: Ints, temperature: float) -> Floats:
        """Return the loss of each image, (n,), at a temperature."""

    @abstractmethod
    def nll(self, probabilities: Floats, labels: Ints) -> Floats:
        """Return the negative log-likelihood of each image, (n,): of several classes their mean."""

    @abstractmethod
    def called(self, probabilities: Floats, thresholds: Floats | float = HALF) -> Ints:
        """Return what is called; ``thresholds``: from which probability on, one for each class,
        where classes do not exclude each other."""

    @abstractmethod
    def is_of(self, labels: Ints, column: int) -> npt.NDArray[np.bool_]:
        """Return which labels, or calls, of n images hold a class: (n,)."""

    @abstractmethod
    def told_apart(self, classes: int) -> Sequence[int]:
        """Return the classes whose curves and thresholds say everything."""

    @abstractmethod
    def well_formed(self, probabilities: Floats) -> npt.NDArray[np.bool_]:
        """Return which rows can be probabilities: (n,)."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into probabilities, torch.float64 on the CPU."""
        return self.activate(logits.cpu().double())


class _SingleLabel(Task):
    """Each image has one class: labels (n,), a softmax, cross-entropy, and the most probable class,
    the first of equals."""

    multi_label = False
    wanted = "values from 0 that sum to 1 (a softmax)"

    def class_weights(self, labels: Tensor, classes: int, balanced: bool) -> Tensor:
        """(classes,): a weight for the images of each class, of mean 1 over all images; a class
        without images weighs nothing."""
        if not balanced:
            return torch.ones(classes)
        counts = labels.bincount(minlength=classes).double()
        return torch.where(counts > 0, len(labels) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0).float()

    def weight_of(self, labels: Tensor, weights: Tensor) -> float:
        return weights[labels].double().sum().item()

    def table(self, weights: Tensor, smoothing: float) -> Tensor:
        """(classes, classes): the loss is torch's cross_entropy, with its weights and smoothed
        labels, in a third of its launches."""
        return ((1 - smoothing) * weights.diag() + smoothing / len(weights) * weights).neg()

    def targets(self, table: Tensor, labels: Tensor) -> Tensor:
        return table[labels]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (targets * F.log_softmax(logits, 1)).sum()

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(1) == labels).sum(dtype=torch.float32)

    def guessing(self, classes: int) -> tuple[str, float]:
        return f"guessing among {classes} classes", math.log(classes)

    def activate(self, logits: Tensor) -> Tensor:
        return F.softmax(logits, -1)

    def mean(self, logits: Tensor) -> Tensor:
        # Added as logarithms: a probability that float32 cannot hold is then none that is 0.
        return torch.logsumexp(F.log_softmax(logits, -1), 0) - math.log(len(logits))

    def apply_temperature(self, probabilities: Floats, temperature: float) -> Floats:
        warmer: Floats = scipy.special.softmax(_logarithms(probabilities) / temperature, axis=-1)
        return warmer

    def losses(self, probabilities: Floats, labels: Ints, temperature: float) -> Floats:
        logarithms: Floats = scipy.special.log_softmax(_logarithms(probabilities) / temperature, axis=1)
        return -logarithms[np.arange(len(labels)), labels]

    def nll(self, probabilities: Floats, labels: Ints) -> Floats:
        likelihood: Floats = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-300)
        return -np.log(likelihood)

    def called(self, probabilities: Floats, thresholds: Floats | float = HALF) -> Ints:
        return probabilities.argmax(axis=-1)

    def is_of(self, labels: Ints, column: int) -> npt.NDArray[np.bool_]:
        return labels == column

    def told_apart(self, classes: int) -> Sequence[int]:
        """Of two classes the second, by custom the disease: the first is what it is not."""
        return [1] if classes == 2 else range(classes)

    def well_formed(self, probabilities: Floats) -> npt.NDArray[np.bool_]:
        with np.errstate(invalid="ignore"):  # infinities may cancel to NaN, which is no better than 0.01 either
            good: npt.NDArray[np.bool_] = (probabilities >= 0).all(axis=1) & (
                abs(probabilities.sum(axis=1) - 1) <= _MOST_OFF
            )
        return good


class _MultiLabel(Task):
    """Each image has any number of classes: labels (n, classes) of 0 and 1, a sigmoid a class,
    binary cross-entropy, and every class whose probability reaches its threshold."""

    multi_label = True
    wanted = "values from 0 to 1 (a sigmoid for each class)"

    def class_weights(self, labels: Tensor, classes: int, balanced: bool) -> Tensor:
        """(2, classes): a weight for images without and with each class, of mean 1 over all images;
        of a class that all images have, or none, it is 1."""
        if not balanced:
            return torch.ones(2, classes)
        present = labels.double().sum(0)
        counts = torch.stack([len(labels) - present, present])
        return torch.where((counts > 0).all(0), len(labels) / (2 * counts.clamp(min=1)), 1.0).float()

    def weight_of(self, labels: Tensor, weights: Tensor) -> float:
        return weights.gather(0, labels).double().sum().item()

    def table(self, weights: Tensor, smoothing: float) -> Tensor:
        """(2, classes, 2): for images without and with each class, the factors of the logarithms
        that it is there, and that it is not."""
        there = torch.tensor([[0.0], [1.0]]) * (1 - smoothing) + smoothing / 2
        return torch.stack([weights * there, weights * (1 - there)], -1).neg()

    def targets(self, table: Tensor, labels: Tensor) -> Tensor:
        return table[labels, torch.arange(labels.shape[1], device=labels.device)]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (targets * torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], -1)).sum()

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        return ((logits >= 0) == labels.bool()).all(1).sum(dtype=torch.float32)

    def guessing(self, classes: int) -> tuple[str, float]:
        return "guessing each class", math.log(2)

    def activate(self, logits: Tensor) -> Tensor:
        return F.sigmoid(logits)

    def mean(self, logits: Tensor) -> Tensor:
        there, not_there = torch.logsumexp(F.logsigmoid(logits), 0), torch.logsumexp(F.logsigmoid(-logits), 0)
        return there - not_there

    def apply_temperature(self, probabilities: Floats, temperature: float) -> Floats:
        warmer: Floats = scipy.special.expit(_log_odds(probabilities) / temperature)
        return warmer

    def losses(self, probabilities: Floats, labels: Ints, temperature: float) -> Floats:
        """The mean over the classes."""
        odds = _log_odds(probabilities) / temperature
        wrong: Floats = np.logaddexp(0, np.where(labels == 1, -odds, odds)).mean(axis=1)
        return wrong

    def nll(self, probabilities: Floats, labels: Ints) -> Floats:
        return self.losses(probabilities, labels, 1.0)

    def called(self, probabilities: Floats, thresholds: Floats | float = HALF) -> Ints:
        return (probabilities >= thresholds).astype(np.int64)

    def is_of(self, labels: Ints, column: int) -> npt.NDArray[np.bool_]:
        return labels[:, column] == 1

    def told_apart(self, classes: int) -> Sequence[int]:
        return range(classes)

    def well_formed(self, probabilities: Floats) -> npt.NDArray[np.bool_]:
        good: npt.NDArray[np.bool_] = np.all((probabilities >= 0) & (probabilities <= 1), axis=1)
        return good


SINGLE_LABEL, MULTI_LABEL = _SingleLabel(), _MultiLabel()


def task_of(config: AnyConfig) -> Task:
    """Return the task of a network."""
    return MULTI_LABEL if config.multi_label else SINGLE_LABEL


def task_of_labels(labels: npt.NDArray[np.generic] | Tensor) -> Task:
    """Return the task that labels belong to: (n,) numbers of classes, or (n, classes) of 0 and
    1."""
    return MULTI_LABEL if labels.ndim == 2 else SINGLE_LABEL


def _logarithms(probabilities: Floats) -> Floats:
    """The logits of a softmax, up to a constant that does not change it."""
    logits: Floats = np.log(np.maximum(probabilities, _LEAST))
    return logits


def _log_odds(probabilities: Floats) -> Floats:
    """The logits of a sigmoid."""
    odds: Floats = np.log(np.maximum(probabilities, _LEAST)) - np.log(np.maximum(1 - probabilities, _LEAST))
    return odds
