"""Compute a 95 % confidence interval for each figure, by patients where they are known.

Where every image stands alone: shares are Wilson's, the AUC of a class is DeLong's, the rest comes
from a bootstrap of images. Where patients have several images: the bootstrap draws patients, all
images of one together. Images of one patient resemble each other, so that intervals that count
images are too narrow.

A share gets its interval from the bootstrap's variance: as many images that stand alone as would
have that variance (Korn and Graubard, Survey Methodology 1998), put into Wilson's formula. The
percentiles of a bootstrap would be [1, 1] where all images are right, and are too narrow where a
class has few patients.
The calibration error is a sum of distances, which chance only lengthens, so that replicates lie
above the figure. It may be as low as makes what was found too large for chance if all gaps shrink
alike, and as high as if no gap could change its sign.
The other figures take the bootstrap's percentiles, moved by its bias (Efron, 1981) and widened as
Student's distribution is wider than the normal one (Hesterberg, The American Statistician 2015).

Where all images of each class are right, or all are wrong, as where a network calls every image the
same, a mean over the classes is the same whatever is drawn: its interval reaches from the mean of
the classes' lower ends to that of their upper ends, which may be too wide, but never too narrow.
Where that is so of some classes, the bootstrap knows the others alone: it is widened by what the
share of each of them may be below 1 or above 0, as independent errors add up (Zou and Donner,
Statistics in Medicine 2008).
An F1 score that does not vary is a share's: with J the part of the images that are or were called
the class of which both is true, it is 2 J / (1 + J).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy  # which imports its parts when they are first used: they are slow to import

from medmambase.evaluation import delong
from medmambase.evaluation.judged import AnyMetrics, brier, calibration_gaps, evaluate, weighted_figures
from medmambase.evaluation.metrics import confusions, shares
from medmambase.evaluation.predictions import Predictions
from medmambase.evaluation.recorded import Interval, range_of

CONFIDENCE = 0.95
REPLICATES = 2000
SHARES = ("sensitivity", "specificity", "ppv", "npv")
MEANS = ("macro", "weighted")
_SEED = 0  # the same predictions have the same intervals
_CHUNK = 2_000_000  # weights at a time: some tens of MB
_KEPT = 40_000_000  # counts of two bytes that are kept: 20,000 patients; for more they are drawn again
_FEWEST = 0.5  # the part of the replicates in which a figure must be defined
_Z = 1.959963984540054  # scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)


def evaluate_with_intervals(predictions: Predictions, draws: "Draws | None" = None) -> AnyMetrics:
    """Compute every figure with its interval, and the same without leaked images. An interval that
    cannot be known is left out. ``draws``: the bootstrap's, where these images have them already.
    """
    metrics = evaluate(predictions)
    named, images = sum(map(bool, predictions.patients)), len(predictions.patients)
    clean = predictions.clean
    known: dict[str, Any] = {
        "intervals": _intervals(predictions, metrics, draws or Draws(predictions.clusters)),
        "patients": len(set(predictions.patients)) if images and named == images else None,
        "patient_known": named if 0 < named < images else None,
        "without_leaked": None if clean is None else evaluate_with_intervals(clean),
    }
    return replace(metrics, **known)


class Draws:
    """The replicates of a bootstrap over ``clusters`` (n,), int64 from 0: iterate for how often
    each image occurs, (some replicates, n) float64, in parts; each time the same.

    To draw takes longer than to compute with what was drawn, so it is kept where it is not too
    much.
    """

    def __init__(self, clusters: np.ndarray) -> None:
        self.clusters = clusters
        self.count = int(clusters.max(initial=-1)) + 1
        self._kept: list[np.ndarray] = []

    @property
    def alone(self) -> bool:
        """Whether every image is a cluster of its own."""
        return self.count == len(self.clusters)

    def __iter__(self) -> Iterator[np.ndarray]:
        for counts in self._kept or self._drawn():
            yield counts.astype(np.float64)[:, self.clusters]

    def _drawn(self) -> Iterator[np.ndarray]:
        rng, even = np.random.default_rng(_SEED), np.full(self.count, 1 / self.count)
        size, kept = max(1, _CHUNK // max(1, len(self.clusters))), list[np.ndarray]()
        for start in range(0, REPLICATES, size):
            counts = rng.multinomial(self.count, even, size=min(size, REPLICATES - start))
            if REPLICATES * self.count <= _KEPT:
                kept.append(counts.astype(np.uint16))
            yield counts
        self._kept = kept


def calls_with_intervals(
    calls: Sequence[tuple[np.ndarray, np.ndarray]], draws: Draws
) -> list[dict[str, tuple[float | None, Interval | None]]]:
    """Compute sensitivity, specificity, PPV and NPV, each with its interval, of answers yes or no:
    pairs of what is true and what was called, (n,) bool each, all of the same images."""
    plain = [shares(confusions(*_whole(call), 2, np.ones((1, len(draws.clusters))))) for call in calls]
    drawn: list[list[dict[str, np.ndarray]]] = [[] for _ in calls]
    if not draws.alone:
        for weights in draws:
            for call, parts in zip(calls, drawn, strict=True):
                parts.append(shares(confusions(*_whole(call), 2, weights)))
    found = []
    for (truth, called), figures, parts in zip(calls, plain, drawn, strict=True):
        of_call: dict[str, tuple[float | None, Interval | None]] = {}
        for name, basis in (("sensitivity", truth), ("specificity", ~truth), ("ppv", called), ("npv", ~called)):
            figure = float(figures[name][0, 1])
            if math.isnan(figure):
                of_call[name] = None, None
            else:
                replicates = np.concatenate([part[name][:, 1] for part in parts]) if parts else np.zeros(0)
                of_call[name] = figure, _of_share(figure, replicates, basis, draws)
        found.append(of_call)
    return found


def confidence_with_intervals(
    predictions: Predictions, draws: Draws
) -> dict[str, tuple[float | None, Interval | None]]:
    """Compute the Brier score and the calibration error, each with its interval."""
    if not len(predictions.labels):
        return {"brier": (None, None), "ece": (None, None)}
    ones = np.ones((1, len(predictions.labels)))
    score = float(brier(predictions, ones)[0])
    error = float(np.abs(calibration_gaps(predictions, ones)).sum(axis=1)[0])
    replicates = np.concatenate([brier(predictions, weights) for weights in draws])
    return {
        "brier": (score, _percentiles("brier", score, replicates, draws.count, _drawn(draws))),
        "ece": (error, _calibration(predictions, error, draws)),
    }


def _whole(call: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return call[0].astype(np.int64), call[1].astype(np.int64)


def _drawn(draws: Draws) -> str:
    return "images" if draws.alone else "patients"


def _of_share(figure: float, replicates: np.ndarray, basis: np.ndarray, draws: Draws) -> Interval | None:
    """The interval of a share of the images in ``basis`` (n,) bool."""
    images = int(basis.sum())
    if draws.alone:
        return _wilson(figure, images, "Wilson")
    return _share(figure, replicates, images, _count(draws.clusters[basis]))


def _intervals(predictions: Predictions, metrics: AnyMetrics, draws: Draws) -> dict[str, Interval]:
    probabilities, clusters = predictions.probabilities, draws.clusters
    if not len(clusters):
        return {}
    alone = draws.alone
    parts = [weighted_figures(predictions, weights) for weights in draws]
    replicates = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    flat = metrics.flat()
    found: dict[str, Interval | None] = {}
    for name, figure in flat.items():
        if figure is None:
            continue
        if name == "ece":
            found[name] = _calibration(predictions, figure, draws)
            continue
        basis = _basis(name, predictions)
        if name in ("accuracy", "subset_accuracy") or (
            name.rpartition("/")[2] in SHARES and name.partition("/")[0].isdigit()
        ):
            found[name] = _of_share(figure, replicates[name], basis, draws)
        elif alone and (column := _column(name, predictions)) is not None:
            low, high = delong.interval(predictions.is_of(column), probabilities[:, column], CONFIDENCE)
            found[name] = Interval(low, high, "DeLong")
        else:
            found[name] = _percentiles(name, figure, replicates[name], _count(clusters[basis]), _drawn(draws))
        if found[name] is None and (column := _column(name, predictions)) is not None:
            positive = predictions.is_of(column)
            low, high = delong.extreme(figure, _count(clusters[positive]), _count(clusters[~positive]), CONFIDENCE)
            found[name] = Interval(low, high, "Newcombe, of patients")
        if found[name] is None and name.endswith("/f1") and name.partition("/")[0].isdigit():
            found[name] = _f1(figure, replicates[name], basis, draws)
    for name, figure in flat.items():
        mean, _, of = name.partition("/")
        if mean in MEANS and figure is not None:
            own = {index: value for index in range(len(predictions.classes))
                   if (value := flat[f"{index}/{of}"]) is not None}  # fmt: skip  # one sentence
            # A class that is not drawn leaves the mean of the others, which is another figure.
            constant = {index for index, value in own.items() if of in SHARES and value in (0.0, 1.0)}
            weights = [metrics.per_class[index].support if mean == "weighted" else 1 for index in own]
            ends, one = [found[f"{index}/{of}"] for index in own], found[name]
            if one is None or (mean == "macro" and len(constant) == len(own)) or len(own) == 1:
                found[name] = _mean_of_ends(ends, weights)
            elif constant:
                parts_of = [(own[index], end, weight / sum(weights))
                            for index, end, weight in zip(own, ends, weights, strict=True)
                            if index in constant and end]  # fmt: skip  # one sentence
                found[name] = _with_constant(one, figure, parts_of)
    for name, other in _same(predictions).items():
        value, same = flat[name], flat[other]
        if value is not None and same is not None and math.isclose(value, same, abs_tol=1e-9):
            found[name] = found[other]
    return {name: one for name in flat if (one := found.get(name)) is not None}


def _same(predictions: Predictions) -> dict[str, str]:
    """Which figures are by definition another one, whose interval they have: of two classes one is
    found wherever the other is not, if each image has one of them."""
    if predictions.task.multi_label:
        return {name: f"macro/{name}" for name in ("auc", "ap", "f1")}
    always = {"balanced_accuracy": "macro/sensitivity", "weighted/sensitivity": "accuracy"}
    of_two = dict.fromkeys(("0/auc", "1/auc", "macro/auc", "weighted/auc"), "auc")
    return always | (of_two if len(predictions.classes) == 2 else {"auc": "macro/auc"})


def _f1(figure: float, replicates: np.ndarray, basis: np.ndarray, draws: Draws) -> Interval | None:
    """The interval of an F1 score that does not vary, by the share that it depends on alone."""
    share = _of_share(figure / (2 - figure), replicates, basis, draws)
    if share is None:
        return None
    return Interval(2 * share.low / (1 + share.low), 2 * share.high / (1 + share.high), share.method)


def _mean_of_ends(ends: Sequence[Interval | None], weights: Sequence[int]) -> Interval | None:
    """From the mean of the lower ends to that of the upper ends; None where one is not known."""
    there = [one for one in ends if one is not None]
    if len(there) < len(ends):
        return None
    if len(there) == 1:
        return there[0]
    low, high = (
        math.fsum(end * weight for end, weight in zip(side, weights, strict=True)) / sum(weights)
        for side in ([one.low for one in there], [one.high for one in there])
    )
    return Interval(max(low, 0.0), min(high, 1.0), "mean of the classes' ends")


def _with_constant(drawn: Interval, figure: float, constant: Sequence[tuple[float, Interval, float]]) -> Interval:
    """The interval of a mean of which the bootstrap has drawn only what varies. ``constant``: of
    each class whose share is all 0 or 1 that share, its interval, and its part in the mean."""
    below = [min(drawn.low - figure, 0.0), *(part * (1 - end.low) for share, end, part in constant if share == 1)]
    above = [max(drawn.high - figure, 0.0), *(part * end.high for share, end, part in constant if share == 0)]
    return Interval(
        max(figure - math.hypot(*below), 0.0), min(figure + math.hypot(*above), 1.0), f"{drawn.method}, widened"
    )


def _column(name: str, predictions: Predictions) -> int | None:
    """Of which class a figure is the area below the ROC curve."""
    if name == "auc":
        apart = predictions.task.told_apart(len(predictions.classes))
        return apart[0] if len(apart) == 1 and len(predictions.classes) == 2 else None
    number, _, figure = name.partition("/")
    return int(number) if figure == "auc" and number.isdigit() else None


def _basis(name: str, predictions: Predictions) -> np.ndarray:
    """(n,) bool: the images that a figure is counted over."""
    number, _, figure = name.partition("/")
    every = np.ones(len(predictions.labels), dtype=bool)
    if not number.isdigit():
        return every
    own, called = predictions.is_of(int(number)), predictions.is_called(int(number))
    return {"sensitivity": own, "specificity": ~own, "ppv": called, "npv": ~called, "f1": own | called, "ap": own}.get(
        figure, every
    )


def _count(clusters: np.ndarray) -> int:
    return len(np.unique(clusters))


def _wilson(share: float, images: float, method: str) -> Interval:
    """Wilson's interval; ``images`` may be broken."""
    square = _Z * _Z
    middle = (share + square / (2 * images)) / (1 + square / images)
    reach = _Z / (1 + square / images) * math.sqrt(share * (1 - share) / images + square / (4 * images * images))
    # Rounding must not put the end beyond the share of none, or all.
    return Interval(
        0.0 if share == 0 else max(0.0, middle - reach), 1.0 if share == 1 else min(1.0, middle + reach), method
    )


def _share(share: float, replicates: np.ndarray, images: int, patients: int) -> Interval | None:
    """Wilson's interval for as many images that stand alone as would vary like the replicates; None
    with fewer than two patients."""
    if patients < 2:
        return None
    variance = float(np.nanvar(replicates)) * patients / (patients - 1)
    # All right or all wrong: nothing varies, and no patient tells more than one image would.
    alone = share * (1 - share) / variance if 0 < share < 1 and variance > 0 else float(patients)
    wide = _Z / float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, patients - 1))
    return _wilson(share, min(alone, images) * wide * wide, "Wilson, of patients")


def _calibration(predictions: Predictions, error: float, draws: Draws) -> Interval | None:
    """The calibration error's; see above. None with fewer than two clusters."""
    count = draws.count
    if count < 2:
        return None
    gaps = calibration_gaps(predictions, np.ones((1, len(predictions.labels))))
    chance = np.concatenate([calibration_gaps(predictions, weights) for weights in draws]) - gaps
    rare = float(scipy.stats.norm.cdf(-_widened(count)))

    def too_rare(part: float) -> float:
        return float(np.mean(np.abs(part * gaps + chance).sum(axis=1) >= error)) - rare

    low = 0.0 if error == 0 or too_rare(0) >= 0 else error * float(scipy.optimize.bisect(too_rare, 0, 1, xtol=1e-4))
    high = error - float(np.quantile((chance * np.sign(gaps)).sum(axis=1), rare))
    return Interval(
        min(low, error),
        min(max(high, error), 1.0),
        f"bootstrap of {_drawn(draws)}, gaps scaled",
    )


def _widened(clusters: int) -> float:
    """The normal quantile, as much larger as a bootstrap of few clusters is too narrow."""
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, clusters - 1)) * math.sqrt(clusters / (clusters - 1))


def _percentiles(name: str, figure: float, replicates: np.ndarray, clusters: int, what: str) -> Interval | None:
    """The bootstrap's percentiles; None where there are fewer than two clusters, the figure is
    mostly undefined or does not vary at all."""
    there = replicates[~np.isnan(replicates)]
    if clusters < 2 or len(there) < _FEWEST * len(replicates) or np.ptp(there) == 0:
        return None
    wide = _widened(clusters)
    below = (np.sum(there < figure) + np.sum(there == figure) / 2) / len(there)
    bias = 2 * float(scipy.stats.norm.ppf(np.clip(below, 0.5 / len(there), 1 - 0.5 / len(there))))
    low, high = np.quantile(there, scipy.stats.norm.cdf([bias - wide, bias + wide]))
    least, most = range_of(name)
    return Interval(
        float(np.clip(low, least, min(figure, most))),
        float(np.clip(high, max(figure, least), most)),
        f"bootstrap of {what}",
    )
