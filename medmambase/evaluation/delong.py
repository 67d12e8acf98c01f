"""Compute the area under the ROC curve, its interval, and the test of whether two areas differ:
DeLong, DeLong and Clarke-Pearson, Biometrics 1988."""

import math

import numpy as np
import scipy  # which imports its parts when they are first used: they are slow to import


def areas(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the AUC of each of k scorings of the same images, ties counting half, and their
    covariance.

    positive (n,) bool; scores (k, n). Returns (k,) and (k, k); NaN without images on one side,
    covariance NaN with fewer than two on either.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan)
    below, above = _placements(positive, scores)
    if min(m, n) < 2:
        return below.mean(axis=1), np.full((len(scores), len(scores)), np.nan)
    return below.mean(axis=1), np.atleast_2d(np.cov(below)) / m + np.atleast_2d(np.cov(above)) / n


def _placements(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each scoring, and each image, the share of the other side's images on which it is right:
    (k, m) of the positive images, (k, n) of the others."""
    ours, theirs = scores[:, positive], scores[:, ~positive]
    m, n = ours.shape[1], theirs.shape[1]
    # A rank among all, less that among one's own, counts the others that lie below (Sun and Xu,
    # 2014): no m x n comparisons.
    every = scipy.stats.rankdata(np.concatenate([ours, theirs], axis=1), axis=1)
    below = (every[:, :m] - scipy.stats.rankdata(ours, axis=1)) / n
    return below, 1 - (every[:, m:] - scipy.stats.rankdata(theirs, axis=1)) / m


def interval(positive: np.ndarray, scores: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the interval (low, high) of the AUC of one scoring (n,), on the logit scale, where an
    area near 1 is about as uncertain on both sides.

    Where DeLong knows no variance (no pair out of order, or every one, or one image on a side) by
    ``extreme``.
    """
    (auc,), ((variance,),) = areas(positive, scores[None])
    if not 0 < auc < 1 or not variance > 0:
        return extreme(auc, int(positive.sum()), int((~positive).sum()), confidence)
    return _on_the_logit_scale(auc, variance, confidence)


def mean_interval(positive: np.ndarray, scores: np.ndarray, confidence: float = 0.95) -> tuple[float, float] | None:
    """Compute the interval (low, high) of the mean AUC of several questions about the same images,
    also on the logit scale; None where no question has an AUC, or nothing varies.

    positive (n, questions) bool and scores (n, questions). A question that all images, or none,
    answer with yes is left out of the mean. An image moves the mean by what it moves each AUC, so
    questions whose answers go together do not count as so many independent ones. What a single
    image of a side says of an AUC is taken to vary as much as it can.
    """
    known = [place for place in range(positive.shape[1]) if 0 < positive[:, place].sum() < len(positive)]
    moves, auc = np.zeros(len(positive)), 0.0
    for place in known:
        yes = positive[:, place]
        below, above = (placed[0] for placed in _placements(yes, scores[None, :, place]))
        area = float(below.mean())
        auc += area / len(known)
        for side, placed in ((yes, below), (~yes, above)):
            count = len(placed)
            alone = math.sqrt(area * (1 - area))
            moves[side] += ((placed - area) / math.sqrt(count * (count - 1)) if count > 1 else alone) / len(known)
    variance = float(moves @ moves)
    return _on_the_logit_scale(auc, variance, confidence) if 0 < auc < 1 and variance > 0 else None


def _on_the_logit_scale(auc: float, variance: float, confidence: float) -> tuple[float, float]:
    reach = scipy.stats.norm.ppf((1 + confidence) / 2) * math.sqrt(variance) / (auc * (1 - auc))
    middle = math.log(auc / (1 - auc))
    return 1 / (1 + math.exp(reach - middle)), 1 / (1 + math.exp(-reach - middle))


def extreme(auc: float, m: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Low and high of an AUC of which only its value is known, from m positive and n negative
    images: the areas that a score test does not refuse, with the variance that Hanley and McNeil
    give for each of them (Newcombe, Statistics in Medicine 2006, method 5).
    """
    square, half = float(scipy.stats.norm.ppf((1 + confidence) / 2)) ** 2, (m + n) / 2 - 1

    def lowest(area: float) -> float:
        def refused(theta: float) -> float:
            variance = theta * (1 - theta) * (1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (m * n)
            return (area - theta) ** 2 - square * variance

        return float(scipy.optimize.brentq(refused, 0, min(area, 1 - 1e-12))) if area > 0 else 0.0

    return lowest(auc), 1 - lowest(1 - auc)


def paired(positive: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Test whether two scorings (n,) of the same images have the same AUC: second minus first, its
    standard error and the two-sided p-value.

    Scorings that rank alike differ by nothing, with p = 1. NaN where DeLong cannot tell: fewer than
    two images on a side, or one scoring all right and the other all wrong.
    """
    (one, other), covariance = areas(positive, np.stack([first, second]))
    difference, variance = float(other - one), float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if math.isnan(variance):
        return difference, math.nan, math.nan
    error = math.sqrt(max(variance, 0.0))
    if error == 0:
        return difference, error, 1.0 if difference == 0 else math.nan
    return difference, error, float(2 * scipy.stats.norm.sf(abs(difference) / error))
