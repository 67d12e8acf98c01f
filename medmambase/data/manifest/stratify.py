"""Cut patients into parts of like size and like share of each class.

One patient after the other, those whose images are most unevenly divided among the classes first,
goes to the part that leaves each class most evenly spread over the parts. scikit-learn's
StratifiedGroupKFold does the same, and to the last digit: the parts are the same ones. But it
computes the spread of every class for every part and patient with NumPy, whose calls take most of
its time where every image has a patient of its own.
"""

import math
from collections.abc import Sequence

import numpy as np

_SEQUENTIAL = 8  # NumPy adds so many numbers, and more, in another order than one after the other
_CLOSE, _NEAR = 1e-5, 1e-8  # relative and absolute: np.isclose's


def stratified_parts(labels: Sequence[int], patients: Sequence[str], parts: int, seed: int) -> list[int]:
    """Return the part, from 0 on, of each image: ``labels`` and ``patients`` of n images -> n.

    Patients of equal worth are taken in an order that ``seed`` shuffles.
    """
    _, label_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    names, patient_of = np.unique(np.array(patients), return_inverse=True)
    counts = np.zeros((len(names), len(sizes)))
    np.add.at(counts, (patient_of, label_of), parts)
    order = np.arange(len(names))
    np.random.RandomState(seed).shuffle(order)
    counts = counts[order]
    taken = np.argsort(-np.std(counts, axis=1), kind="stable")
    filling = _Parts(parts, (sizes * parts).tolist())
    part_of = np.zeros(len(names), dtype=np.int64)
    for row, images in zip(taken.tolist(), counts[taken].tolist(), strict=True):
        part_of[order[row]] = filling.add(images)
    return part_of[patient_of].tolist()


class _Parts:
    """Parts that are being filled: the images of each class in each, as a share of the class."""

    def __init__(self, parts: int, sizes: list[int]) -> None:
        self.parts, self.sizes = parts, sizes
        self.images = [[0.0] * parts for _ in sizes]
        self.share = [[0.0] * parts for _ in sizes]
        self.spread = [0.0] * len(sizes)
        self.filled = [0.0] * parts

    def add(self, images: list[float]) -> int:
        """Put the images of a patient, one number a class, into the best part; return which."""
        own = [label for label, count in enumerate(images) if count]
        best, least, fewest, best_spread = 0, math.inf, math.inf, self.spread
        for part in range(self.parts):
            spread = self.spread.copy()
            for label in own:
                share = self.share[label].copy()
                share[part] = (self.images[label][part] + images[label]) / self.sizes[label]
                spread[label] = self._spread(share)
            mean = self._mean(spread)
            close = abs(mean - least) <= _NEAR + _CLOSE * least < math.inf
            if mean < least or (close and self.filled[part] < fewest):
                best, least, fewest, best_spread = part, mean, self.filled[part], spread
        self.spread = best_spread
        for label in own:
            self.images[label][best] += images[label]
            self.share[label][best] = self.images[label][best] / self.sizes[label]
            self.filled[best] += images[label]
        return best

    def _spread(self, share: list[float]) -> float:
        """The standard deviation of a class's shares, as NumPy computes it down a column."""
        if len(self.sizes) == 1:  # such a column lies in memory like a row
            return float(np.std(share))
        total = 0.0  # not sum(), which rounds otherwise
        for one in share:
            total += one
        mean, squares = total / self.parts, 0.0
        for one in share:
            squares += (one - mean) * (one - mean)
        return math.sqrt(squares / self.parts)

    def _mean(self, spread: list[float]) -> float:
        if len(spread) >= _SEQUENTIAL:
            return float(np.mean(spread))
        total = 0.0
        for one in spread:
            total += one
        return total / len(spread)
