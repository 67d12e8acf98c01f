"""Where the knowledge of a network ends: whether an image is unlike those that it was trained on,
and which classes it may be of.

Several networks that predict together vote, each by what it has learned on its own validation
images: an image is unlike where more than half of them call it so, and a class is in the set where
at least half of their sets hold it. Whatever the networks have in common, the share of images for
which this goes wrong is at most twice that of a single network (Gasparin and Ramdas, 2024); mostly
it is no larger.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from medmambase.data.manifest.folders import DataError
from medmambase.inference.conformal import Floats, Sets
from medmambase.inference.unlike import Detector
from medmambase.inference.watch import Seen
from medmambase.model.task import SINGLE_LABEL
from medmambase.run_folder import CONFORMAL, UNLIKE, folds_of


@dataclass(frozen=True, eq=False)
class Limits:
    """Those of one network, or of several: each has one of the ``detectors`` and of the ``sets``;
    empty where a network has none."""

    detectors: tuple[Detector, ...] = ()
    sets: tuple[Sets, ...] = ()

    @classmethod
    def read(cls, run: Path) -> Self:
        """Read those of a run, or of all folds of a cross-validation. Raises DataError."""
        runs = folds_of(run) or (run,)
        detectors = [found for one in runs if (found := Detector.read(one / UNLIKE)) is not None]
        sets = [own for one in runs if (own := Sets.read(one / CONFORMAL)) is not None]
        return cls(
            tuple(detectors) if len(detectors) == len(runs) else (), tuple(sets) if len(sets) == len(runs) else ()
        )

    def distance(self, seen: Seen) -> Floats | None:
        """Return how far images are from the training images, (n,): above 1 they are unlike these;
        None where that is not known."""
        if not self.detectors:
            return None
        found = [
            one.distance(features, seen.pictures) for one, features in zip(self.detectors, seen.features, strict=True)
        ]
        return np.sort(found, axis=0)[(len(found) - 1) // 2]  # which more than half exceed, or reach

    def holds(self, seen: Seen, probabilities: Floats) -> npt.NDArray[np.bool_] | None:
        """Return which classes are in the sets, bool (n, classes): the most probable one of
        ``probabilities`` (n, classes) always is. None where there are no sets."""
        if not self.sets:
            return None
        votes = sum(
            one.holds(SINGLE_LABEL.probabilities(torch.from_numpy(logits)).numpy()).astype(np.int64)
            for one, logits in zip(self.sets, seen.logits, strict=True)
        )
        found = np.asarray(2 * votes >= len(self.sets))
        found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
        return found

    def check(self, widths: tuple[int, ...]) -> None:
        """Raise DataError where these are not the limits of networks with so many features each."""
        own = tuple(len(one.features.mean) for one in self.detectors)
        if self.detectors and own != widths:
            raise DataError(
                f"{UNLIKE} is for {_numbers(own)} features, and the network has {_numbers(widths)}; it belongs to "
                f"another one: restore it, or delete it"
            )

    @property
    def false_alarms(self) -> float | None:
        """The largest share of images like the validation images that are called unlike."""
        if not self.detectors:
            return None
        of_one = max(one.thresholds.promised for one in self.detectors)
        return of_one if len(self.detectors) == 1 else min(2 * of_one, 1.0)

    @property
    def coverage(self) -> float | None:
        """The least share of images like the validation images whose sets hold the true class."""
        if not self.sets:
            return None
        of_one = min(one.bound.level for one in self.sets)
        return of_one if len(self.sets) == 1 else max(2 * of_one - 1, 0)

    def told(self) -> tuple[str, ...]:
        """Say in sentences what is promised of images like the validation images, and what is
        missing."""
        if self.false_alarms is not None:
            short = self.detectors[0].thresholds.features.falls_short(1 - self.detectors[0].thresholds.false_alarms / 2)
            rate = f"{self.false_alarms:.1%}"
            of_flag = f"unlike: at most {rate} of images like the validation images are called so"
            if short:
                meant = self.detectors[0].thresholds.false_alarms
                of_flag = (
                    f"unlike: {meant:.1%} of images like the validation images are meant to be called so, and at most "
                    f"{rate} is promised (for each of two thresholds {short})"
                )
        else:
            of_flag = (
                f"nothing tells which images are unlike the training images: no {UNLIKE} of this version (it had too "
                f"few images, or an earlier version trained it: then train again)"
            )
        if self.coverage is not None:
            short = self.sets[0].bound.falls_short(self.sets[0].wanted)
            of_sets = (
                f"set: holds the true class of at least {self.coverage:.1%} of images like the validation images"
                f"{_why(short)}"
            )
        else:
            of_sets = (
                f"there are no sets of classes: no {CONFORMAL} (an earlier version trained it, it had no validation "
                f"images, or an image may have several classes)"
            )
        return of_flag, of_sets


def learn(
    training: Seen, validation: Seen, predictions: Floats, labels: npt.NDArray[np.int64], patients: tuple[str, ...],
    temperature: float,
) -> Limits:  # fmt: skip  # one argument list
    """Learn the limits of one network: from what was seen of training and of validation images, and
    from the ``predictions`` (n, classes) for the latter, which are not calibrated, their ``labels``
    and ``patients``, "" where nobody knows. Where an image may have several classes there are no
    sets."""
    detector = Detector.of(training, validation, patients)
    sets = (Sets.of(predictions, labels, patients, temperature),) if labels.ndim == 1 and len(labels) else ()
    return Limits(() if detector is None else (detector,), sets)


def _numbers(widths: tuple[int, ...]) -> str:
    return ", ".join(map(str, widths))


def _why(short: str) -> str:
    return f" ({short})" if short else ""
