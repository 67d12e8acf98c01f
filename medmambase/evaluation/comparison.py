"""Test whether one network is better than another on the same images.

Of two: DeLong's paired test for the AUC of each class, McNemar's exact test for what is called
right, and for every figure a bootstrap of the difference, which draws patients where they are
known. Of several seeds: each figure's mean over the seeds of one side less that of the other. To
the bootstrap's variance comes that of the means over seeds (Welch), so that what one lucky seed won
is no difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # which imports its parts when they are first used: they are slow to import

from medmambase.evaluation import delong
from medmambase.evaluation.intervals import CONFIDENCE, Draws
from medmambase.evaluation.metrics import Interval, weighted_figures
from medmambase.evaluation.predictions import MetricsError, Predictions


@dataclass(frozen=True)
class Difference:
    """A figure of both sides (means over the seeds), the difference with its interval and p-value,
    and each seed's figures."""

    first: float
    second: float
    interval: Interval | None
    p: float | None
    firsts: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Second less first."""
        return self.second - self.first


@dataclass(frozen=True)
class McNemar:
    """How many images only one of two networks calls right, and the probability of a share as
    uneven, or more, if neither were better."""

    only_first: int
    only_second: int
    p: float


def same_images(sides: Sequence[Sequence[Predictions]]) -> None:
    """Raise MetricsError unless all are predictions of the same images, with the same truth, in the
    same order."""
    first = sides[0][0]
    for other in (one for side in sides for one in side):
        if other.classes != first.classes:
            raise MetricsError(
                f"the classes are {', '.join(other.classes)} and {', '.join(first.classes)}; wanted predictions of "
                f"the same classes"
            )
        if other.names != first.names:
            only = sorted(set(other.names) ^ set(first.names))
            told = (
                f"{only[0]!r} and {len(only) - 1} more are in one of them only" if only else "they are in another order"
            )
            raise MetricsError(
                f"the images differ: {told}; wanted predictions of the same test images: train with the same "
                f"--split-seed, or with the --splits of one run"
            )
        if not np.array_equal(other.labels, first.labels):
            row = int((other.labels != first.labels).argmax())
            raise MetricsError(f"the truth of {first.names[row]!r} differs; wanted predictions of the same test images")
    if not first.names:
        raise MetricsError("there are no images to compare on")


def conclusion(found: Mapping[str, Difference]) -> str:
    """Say in a sentence whether B is better than A, by the balanced accuracy."""
    one = found.get("balanced_accuracy")
    if one is None or one.interval is None:
        return "Whether A or B is better cannot be said: their balanced accuracy has no interval of its difference."
    low, high = one.interval.low, one.interval.high
    between = f"{abs(one.difference):.3f} (95 % interval of B - A: {low:+.3f} to {high:+.3f})"
    if low <= 0 <= high:
        return f"No difference can be told from chance: the balanced accuracies differ by {between}."
    better, other = ("B", "A") if low > 0 else ("A", "B")
    return f"{better} is better than {other}, more than chance explains: its balanced accuracy is higher by {between}."


def compare(firsts: Sequence[Predictions], seconds: Sequence[Predictions]) -> dict[str, Difference]:
    """Compare every figure, as ``Metrics.flat`` names it, that both sides have. Raises MetricsError
    where the images are not the same."""
    same_images([firsts, seconds])
    sides, clusters = (firsts, seconds), firsts[0].clusters
    ones = np.ones((1, len(clusters)))
    plain = [[_figures(one, ones) for one in side] for side in sides]
    replicates: dict[str, list[np.ndarray]] = {name: [] for name in plain[0][0]}
    for weights in Draws(clusters):
        first, second = ([_figures(one, weights) for one in side] for side in sides)
        for name, found in replicates.items():
            found.append(np.mean([one[name] for one in second], axis=0) - np.mean([one[name] for one in first], axis=0))
    differences = {}
    for name, found in replicates.items():
        of_first, of_second = (np.array([one[name][0] for one in side]) for side in plain)
        if not (np.isnan(of_first).any() or np.isnan(of_second).any()):
            interval, p = _surely(of_first, of_second, np.concatenate(found), len(np.unique(clusters)))
            means = float(of_first.mean()), float(of_second.mean())
            differences[name] = Difference(*means, interval, p, tuple(of_first.tolist()), tuple(of_second.tolist()))
    return differences


def mcnemar(first: Predictions, second: Predictions) -> McNemar:
    """Run McNemar's exact test. Raises MetricsError where the images are not the same."""
    same_images([[first], [second]])
    right, other = first.predicted == first.labels, second.predicted == second.labels
    only_first, only_second = int((right & ~other).sum()), int((~right & other).sum())
    both = only_first + only_second
    return McNemar(only_first, only_second, float(scipy.stats.binomtest(only_first, both).pvalue) if both else 1.0)


def delong_test(first: Predictions, second: Predictions, column: int) -> tuple[float, float, float]:
    """Compare the AUC of one class: second minus first, its standard error and p; see
    ``delong.paired``. Raises MetricsError where the images are not the same."""
    same_images([[first], [second]])
    return delong.paired(first.labels == column, first.probabilities[:, column], second.probabilities[:, column])


def _figures(predictions: Predictions, weights: np.ndarray) -> dict[str, np.ndarray]:
    return weighted_figures(predictions.labels, predictions.probabilities, weights)


def _surely(
    first: np.ndarray, second: np.ndarray, replicates: np.ndarray, clusters: int
) -> tuple[Interval | None, float | None]:
    """The interval of a difference of means, which is close to normal, and the p-value that belongs
    to it, by Student's distribution.

    ``first``, ``second``: the figures of each seed. None where nothing varies, or too little is
    there; of predictions that are alike p is 1.
    """
    difference, there = float(second.mean() - first.mean()), replicates[~np.isnan(replicates)]
    if clusters < 2 or len(there) < len(replicates) / 2:
        return None, None
    of_seeds = [(value.var(ddof=1) / len(value), len(value) - 1) for value in (first, second) if len(value) > 1]
    parts = [
        (part, freedom)
        for part, freedom in [(there.var() * clusters / (clusters - 1), clusters - 1), *of_seeds]
        if part > 1e-24
    ]
    if not parts:
        return None, 1.0 if abs(difference) < 1e-12 else None
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)  # Welch and Satterthwaite
    reach = math.sqrt(variance) * float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    method = f"bootstrap{', and the variance between seeds' if of_seeds else ''}"
    return Interval(difference - reach, difference + reach, method), float(
        2 * scipy.stats.t.sf(abs(difference) / math.sqrt(variance), freedom)
    )
