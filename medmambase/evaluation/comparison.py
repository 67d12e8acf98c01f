"""Test whether one network is better than another on the same images.

Of two: DeLong's paired test for the AUC of each class, McNemar's exact test for what is called
right, and for every figure a bootstrap of the difference, which draws patients where they are
known. Of several seeds: each figure's mean over the seeds of one side less that of the other. To
the bootstrap's variance comes that of the means over seeds (Welch), so that what one lucky seed won
is no difference.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy  # which imports its parts when they are first used: they are slow to import

from medmambase.evaluation import delong
from medmambase.evaluation.intervals import CONFIDENCE, Draws, evaluate_with_intervals
from medmambase.evaluation.judged import weighted_figures
from medmambase.evaluation.predictions import MetricsError, Predictions
from medmambase.evaluation.recorded import Interval
from medmambase.plural import count_of

SEEDS = 3  # trainings a side that say something of the settings, and not of one network
# How far apart two networks can be, where that is not 1.
_MOST = {"mcc": 2.0, "kappa": 2.0, "brier": 2.0}


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
    """How many images only one of two networks calls right, each class of them where they may have
    several, and the probability of a share as uneven, or more, if neither were better."""

    only_first: int
    only_second: int
    p: float


def matched(sides: Sequence[Sequence[Predictions]]) -> tuple[list[list[Predictions]], list[str]]:
    """Return predictions with images, classes and patients as ``compare`` wants them, and notes.

    Tables of other programs may have rows or classes in another order, and no patients: rows and
    classes are put into the order of the first table, and patients are taken from the table that
    names those of most images. What does not belong together stays as it is, and ``compare``
    refuses it. Raises MetricsError for a table with two rows for one image, and for tables that
    contradict each other about whose images are one patient's.
    """
    first = sides[0][0]
    for one in (one for side in sides for one in side):
        if one.task != first.task:
            several, single = (one, first) if one.task.multi_label else (first, one)
            raise MetricsError(
                f"in {several.source or 'one table'} an image may have several classes, and in "
                f"{single.source or 'another'} it has one; only networks that answer the same question can be compared"
            )
        name, count = max(Counter(one.names).items(), key=lambda pair: pair[1], default=("", 0))
        if count > 1:
            raise MetricsError(
                f"{count} rows of {one.source or 'one table'} have the path {name!r}, so it is not known which of them "
                f"is which image of another table; give each image a path of its own"
            )
    ties = sum(_ties(one) for side in sides for one in side if one.classes != first.classes)
    found = [[_in_order_of(first, one) for one in side] for side in sides]
    every = [one for side in found for one in side]
    same = [one for one in every if one.names == first.names]
    naming = max(same, key=lambda one: (_named(one), one.patients))  # whichever table comes first
    for one in same:
        _agreeing(naming, one)
    notes = []
    if not _named(naming):
        notes.append(
            "no table names the patients, so each image is treated as a separate patient: if a patient has several "
            "images, the intervals are too narrow"
        )
    else:
        if missing := sum(not _named(one) for one in every):
            tables = count_of(missing, "table names", "tables name")
            notes.append(f"{tables} no patients: those of another table are used")
        if fewer := sum(0 < _named(one) < _named(naming) for one in every):
            tables = count_of(fewer, "table names", "tables name")
            notes.append(f"{tables} the patients of fewer images: those of another table are used")
        if unknown := len(naming.names) - _named(naming):
            notes.append(
                f"{count_of(unknown, 'image has', 'images have')} no known patient: each counts as a separate patient"
            )
    if ties:
        notes.append(
            f"{count_of(ties, 'image has', 'images have')} two highest probabilities in a table with another order of "
            f"classes: the class that comes first in the first table counts as predicted"
        )
    leaked = int(np.any([one.leaked for one in same], axis=0).sum())
    if leaked:
        notes.append(
            f"included: {count_of(leaked, 'test image that has', 'test images that have')} a duplicate, or an image of "
            f"the same patient, in train or val; the report of a run leaves such images out of its first figures"
        )
    found = [[replace(one, patients=naming.patients) if one.names == first.names else one for one in side]
             for side in found]  # fmt: skip  # one sentence
    return found, notes


def _named(predictions: Predictions) -> int:
    """How many images have a patient who is known."""
    return sum(map(bool, predictions.patients))


def _agreeing(one: Predictions, other: Predictions) -> None:
    """Raise MetricsError where two images are of one patient in one table and of two in the other.
    Names may differ, as pseudonyms do."""
    rows = zip(one.names, one.patients, other.patients, strict=True)
    first: dict[tuple[int, str], tuple[str, str, str]] = {}  # a table and its patient -> where we met it first
    for row in (row for row in rows if row[1] and row[2]):
        image, *patients = row
        for table, patient in enumerate(patients):
            met = first.setdefault((table, patient), row)
            if met[1:] != row[1:]:
                raise MetricsError(
                    f"the tables contradict each other about patients: {image!r} is of {patients[0]!r} in "
                    f"{one.source or 'one'} and of {patients[1]!r} in {other.source or 'another'}, and {met[0]!r} of "
                    f"{met[1]!r} and {met[2]!r}; correct the table that is wrong, or leave its patients out"
                )


def _ties(predictions: Predictions) -> int:
    """How many images have several highest probabilities, of which one is called."""
    if predictions.task.multi_label:
        return 0
    p = predictions.probabilities
    return int(((p == p.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())


def _in_order_of(first: Predictions, other: Predictions) -> Predictions:
    """The same predictions with rows and classes in the order of ``first``, if that is all that
    differs."""
    if other.classes != first.classes and sorted(other.classes) == sorted(first.classes):
        place = np.array([first.classes.index(name) for name in other.classes], dtype=np.int64)
        columns, several = place.argsort(), other.task.multi_label
        other = replace(
            other,
            classes=first.classes,
            labels=other.labels[:, columns] if several else place[other.labels],
            probabilities=other.probabilities[:, columns],
            calls=other.calls[:, columns] if several else other.calls,
        )
    if other.names != first.names and sorted(other.names) == sorted(first.names):
        order, own = (sorted(range(len(one.names)), key=one.names.__getitem__) for one in (first, other))
        rows = np.empty(len(own), dtype=np.int64)
        rows[order] = own
        other = other.rows(rows)
    return other


def same_images(sides: Sequence[Sequence[Predictions]]) -> None:
    """Raise MetricsError unless all are predictions of the same images, with the same truth, in the
    same order."""
    first = sides[0][0]
    for other in (one for side in sides for one in side):
        here, there = first.source or "one table", other.source or "another"
        if other.classes != first.classes:
            raise MetricsError(
                f"the classes are {', '.join(map(repr, first.classes))} in {here}, and "
                f"{', '.join(map(repr, other.classes))} in {there}; only networks with the same classes can be compared"
            )
        if other.names != first.names:
            parts = ((here, {*first.names} - {*other.names}), (there, {*other.names} - {*first.names}))
            told = (
                " and ".join(
                    f"{min(only)!r}{f' and {len(only) - 1} more are' if len(only) > 1 else ' is'} in {table} only"
                    for table, only in parts
                    if only
                )
                or f"{there} has them in another order than {here}"
            )
            raise MetricsError(
                f"the test images differ: {told}; networks are compared on the same test images: train with the same "
                f"--split-seed, or with the --splits of one run"
            )
        if not np.array_equal(other.labels, first.labels):
            row = int((other.labels != first.labels).reshape(len(first.names), -1).any(axis=1).argmax())
            one, two = first.in_words(first.labels, row), first.in_words(other.labels, row)
            raise MetricsError(
                f"the true class of {first.names[row]!r} is {one!r} in {here} and {two!r} in {there}; correct the "
                f"label that is wrong"
            )
    if not first.names:
        raise MetricsError("there are no test images to compare the networks on")


def conclusion(found: Mapping[str, Difference], of: str = "images") -> str:
    """Say whether B is better than A on these images, or ``of`` these patients, by the balanced
    accuracy, and which side is one set of predictions only: of a run, or of a cross-validation's
    networks, or in a table of which nobody knows how many trainings there were."""
    one = found.get("balanced_accuracy")
    if one is None or one.interval is None:
        return (
            "It cannot be said whether A or B is better: there is no interval for the difference of their balanced "
            "accuracies."
        )
    low, high = one.interval.low, one.interval.high
    between = f"{abs(one.difference):.3f} (95 % interval of B - A: {low:+.3f} to {high:+.3f})"
    once = [side for side, values in (("A", one.firsts), ("B", one.seconds)) if len(values) == 1]
    here = f" on these {of}" if once else ""
    said = f"No difference can be told from chance{here}: the balanced accuracies differ by {between}."
    if not low <= 0 <= high:
        better, other = ("B", "A") if low > 0 else ("A", "B")
        said = (
            f"{better} is better than {other}{here}, more than chance explains: its balanced accuracy is higher by "
            f"{between}."
        )
    if not once:
        return said
    about = "Each side" if len(once) > 1 else once[0]
    return (
        f"{said} {about} is one set of predictions only, and another training may change the result; compare {SEEDS} "
        f"seeds of each."
    )


def compare(
    firsts: Sequence[Predictions], seconds: Sequence[Predictions], between: str = "seeds"
) -> dict[str, Difference]:
    """Compare every figure, as ``flat`` names it, that both sides have. ``between``: what
    the runs of a side vary in. Raises MetricsError where the images are not the same."""
    same_images([firsts, seconds])
    sides, clusters = (firsts, seconds), firsts[0].clusters
    ones = np.ones((1, len(clusters)))
    plain = [[weighted_figures(one, ones) for one in side] for side in sides]
    replicates: dict[str, list[np.ndarray]] = {name: [] for name in plain[0][0]}
    for weights in Draws(clusters):
        first, second = ([weighted_figures(one, weights) for one in side] for side in sides)
        for name, found in replicates.items():
            found.append(np.mean([one[name] for one in second], axis=0) - np.mean([one[name] for one in first], axis=0))
    differences = {}
    for name, found in replicates.items():
        of_first, of_second = (np.array([one[name][0] for one in side]) for side in plain)
        if not (np.isnan(of_first).any() or np.isnan(of_second).any()):
            interval, p = _surely(of_first, of_second, np.concatenate(found), len(np.unique(clusters)), between)
            if interval:  # of few patients it may reach beyond what a difference can be
                most = _MOST.get(name, 1.0)
                interval = replace(interval, low=max(interval.low, -most), high=min(interval.high, most))
            means = float(of_first.mean()), float(of_second.mean())
            differences[name] = Difference(*means, interval, p, tuple(of_first.tolist()), tuple(of_second.tolist()))
    return differences


def mcnemar(first: Predictions, second: Predictions) -> McNemar:
    """Run McNemar's exact test. Raises MetricsError where the images are not the same."""
    same_images([[first], [second]])
    right, other = first.right, second.right
    only_first, only_second = int((right & ~other).sum()), int((~right & other).sum())
    both = only_first + only_second
    return McNemar(only_first, only_second, float(scipy.stats.binomtest(only_first, both).pvalue) if both else 1.0)


def delong_test(first: Predictions, second: Predictions, column: int) -> tuple[float, float, float]:
    """Compare the AUC of one class: second minus first, its standard error and p; see
    ``delong.paired``. Raises MetricsError where the images are not the same."""
    same_images([[first], [second]])
    return delong.paired(first.is_of(column), first.probabilities[:, column], second.probabilities[:, column])


def mean_accuracy(runs: Sequence[Predictions]) -> tuple[float, Interval | None]:
    """The mean accuracy of runs that differ in their seeds, on the same images, with an interval
    that counts the images (patients, where they are known) and the seeds. Of one run, and of runs
    that call alike, it is that of ``evaluate_with_intervals``. Raises MetricsError where the images
    are not the same."""
    same_images([runs])
    clusters, right = runs[0].clusters, np.array([one.right for one in runs], dtype=np.float64)
    accuracy = float(right.mean())
    if len(runs) > 1:
        drawn = np.concatenate([weights @ right.mean(axis=0) / weights.sum(axis=1) for weights in Draws(clusters)])
        found, _ = _surely(np.zeros(1), right.mean(axis=1), drawn, len(np.unique(clusters)))
        if found is not None:
            method = "bootstrap, and the variance between seeds"  # there are no sides
            return accuracy, replace(found, low=max(0.0, found.low), high=min(1.0, found.high), method=method)
    return accuracy, evaluate_with_intervals(runs[0]).intervals.get("accuracy")


def _surely(
    first: np.ndarray, second: np.ndarray, replicates: np.ndarray, clusters: int, between: str = "seeds"
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
    several = [side for side, values in (("A", first), ("B", second)) if len(values) > 1]
    method = f"bootstrap, and the variance between {between} of {' and '.join(several)}" if several else "bootstrap"
    return Interval(difference - reach, difference + reach, method), float(
        2 * scipy.stats.t.sf(abs(difference) / math.sqrt(variance), freedom)
    )
