"""Put together what the folds of a cross-validation have predicted, each of images that it has not
learned from: every image once, or all folds the same test images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from medmambase.data.manifest.folders import Sample
from medmambase.evaluation.calibration import with_temperature
from medmambase.evaluation.metrics import OVERALL, evaluate
from medmambase.evaluation.predictions import MetricsError, Predictions, read_predictions
from medmambase.evaluation.report.results import read_calibration
from medmambase.run_folder import PREDICTIONS, TEST


@dataclass(frozen=True)
class Division:
    """How a cross-validation divides its ``samples``: the ``method`` in words, and which fold each
    image is held out of, by its name. None: an image of the data's own test split, which all folds
    are tested on; the others are then validated on. ``notes``: what else a reader must know of it,
    and the folds do not say by themselves."""

    samples: tuple[Sample, ...]
    method: str
    fold_of: Mapping[str, int | None]
    notes: tuple[str, ...] = ()

    @property
    def together(self) -> bool:
        """Whether all folds are tested on the same images."""
        return None in self.fold_of.values()


@dataclass(frozen=True)
class Fold:
    """What the network of one fold is worth on the images that it is tested on: ``figures`` as
    ``Metrics`` names them, of ``images`` of ``patients`` (None where not all are known), those left
    out that are leaked."""

    name: str
    images: int
    patients: int | None
    temperature: float | None
    figures: dict[str, float | None]


def calibrated(run: Path, images: str = TEST) -> Predictions:
    """Read what a run has predicted of its test images, or of its validation images (VAL),
    calibrated with the temperature that it has learned on the latter. Raises MetricsError."""
    predictions, calibration = read_predictions(run / images / PREDICTIONS), read_calibration(run)
    return predictions if calibration is None else with_temperature(predictions, calibration.temperature)


def of_fold(run: Path) -> tuple[Predictions, Fold]:
    """Read what the run of a fold has predicted of its test images, and what that is worth. Raises
    MetricsError."""
    predictions, calibration = calibrated(run), read_calibration(run)
    temperature = None if calibration is None else calibration.temperature
    shown = predictions if predictions.clean is None else predictions.clean
    metrics = evaluate(shown.labels, shown.probabilities, shown.classes)
    known = bool(shown.patients) and all(shown.patients)
    patients = len(set(shown.patients)) if known else None
    figures = {name: getattr(metrics, name) for name in OVERALL}
    return predictions, Fold(run.name, metrics.images, patients, temperature, figures)


def pooled(folds: Sequence[Predictions], divided: Division) -> Predictions:
    """Put the predictions of all folds into one table, in the order of the names: of an image that
    several have predicted the mean of their probabilities. Raises MetricsError where the folds have
    not the same classes, or one was tested on an image that it was not to be tested on."""
    classes = folds[0].classes
    for number, one in enumerate(folds):
        if one.classes != classes:
            raise MetricsError(
                f"fold {number} knows the classes {', '.join(one.classes)}, and fold 0 {', '.join(classes)}; restore "
                f"its {PREDICTIONS}, or start a new cross-validation"
            )
        own = None if divided.together else number
        strange = [name for name in one.names if divided.fold_of.get(name, -1) != own]
        if strange:
            raise MetricsError(
                f"fold {number} was tested on {strange[0]}, which is not one of its test images: the images have "
                f"changed since the cross-validation began, or its {PREDICTIONS} is damaged; restore that, or start a "
                f"new one"
            )
    every = Predictions(
        tuple(name for one in folds for name in one.names), np.concatenate([one.labels for one in folds]),
        np.concatenate([one.probabilities for one in folds]), classes,
        tuple(patient for one in folds for patient in one.patients), np.concatenate([one.leaked for one in folds]),
    )  # fmt: skip  # one part a line would say no more
    names, first, place, count = np.unique(
        np.array(every.names, dtype=object), return_index=True, return_inverse=True, return_counts=True
    )
    sums = np.zeros((len(names), len(classes)))
    np.add.at(sums, place, every.probabilities)
    leaked = np.zeros(len(names), dtype=bool)
    np.logical_or.at(leaked, place, every.leaked)
    return replace(every.rows(first), probabilities=sums / count[:, None], leaked=leaked)


def over_folds(folds: Sequence[Fold], together: bool) -> dict[str, Any]:
    """Return the figures of each fold, and of each figure the mean and the standard deviation over
    the folds that have it, as JSON-ready values; ``together``: whether all are tested on the same
    images."""
    each = {name: [v for one in folds if (v := one.figures[name]) is not None] for name in OVERALL}
    return {
        "together": together,
        "folds": [asdict(one) for one in folds],
        "mean": {name: fmean(values) if values else None for name, values in each.items()},
        "spread": {name: stdev(values) if len(values) > 1 else None for name, values in each.items()},
    }
