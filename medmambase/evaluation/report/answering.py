"""Measure on test images what comes of not answering: how often an image is called unlike the
training images, how often the sets of classes hold the true one, and how accuracy rises where the
least sure images are left to a person."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from medmambase.evaluation.calibration import Calibration, with_temperature
from medmambase.evaluation.intervals import Draws, calls_with_intervals
from medmambase.evaluation.predictions import MetricsError, Predictions, read_predictions
from medmambase.evaluation.report import performance_figures, results
from medmambase.files import write_json, write_text
from medmambase.inference.conformal import Sets
from medmambase.inference.limits import Limits
from medmambase.run_folder import ANSWERED, ANSWERING, CONFORMAL, DISTANCES, PREDICTIONS, TEST, VAL, folds_of
from medmambase.tables import of_cell, table

SHARES = tuple(share / 10 for share in range(10, 0, -1))  # of the images that are answered
_COLUMNS = ("path", "distance")


def write(
    folder: Path, predictions: Predictions, limits: Limits, temperature: float, distances: np.ndarray | None = None
) -> None:
    """Write what comes of not answering into a folder of results. ``limits``: those of the network,
    ``temperature``: its own, ``distances`` (n,) from the training images, None to read those that
    were written there. Raises MetricsError and OSError."""
    if distances is None:
        distances = read_distances(folder / DISTANCES, predictions)
    else:
        write_distances(folder / DISTANCES, predictions, distances)
    found = figures(predictions, limits, distances, temperature)
    write_json(folder / ANSWERING, found)
    if found["curve"]:
        performance_figures.answered(found["curve"], folder / ANSWERED)


def write_again(run: Path, calibration: Calibration | None) -> None:
    """Write anew, from the tables of predictions alone, what ``run`` learned of sets of classes and
    what comes of not answering on its test images; ``calibration``: what it learned on its
    validation images. Raises MetricsError, DataError and OSError."""
    validation, temperature = run / VAL / PREDICTIONS, calibration.temperature if calibration else 1.0
    if calibration is not None and validation.is_file():
        found = read_predictions(validation)
        if not found.task.multi_label:
            sets = Sets.of(found.probabilities, found.labels, found.patients, temperature)
            write_json(run / CONFORMAL, sets.to_dict())
    if not folds_of(run):
        write(run / TEST, read_predictions(run / TEST / PREDICTIONS), Limits.read(run), temperature)


def write_distances(path: Path, predictions: Predictions, distances: np.ndarray) -> None:
    """Write how far each image is from the training images, as a share of the threshold. Raises
    OSError."""
    write_text(path, table(_COLUMNS, zip(predictions.names, distances.tolist(), strict=True)))


def read_distances(path: Path, predictions: Predictions) -> np.ndarray | None:
    """Read what was written, in the order of ``predictions``; None where there is no such file.
    Raises MetricsError naming it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = {of_cell(row["path"]): float(row["distance"]) for row in csv.DictReader(file, strict=True)}
        return np.array([found[name] for name in predictions.names])
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise MetricsError(f"{path}: has no {error}; restore it, or delete it") from error
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise MetricsError(f"{path}: cannot be read ({error}); restore it, or delete it") from error


def figures(
    predictions: Predictions, limits: Limits, distances: np.ndarray | None, temperature: float
) -> dict[str, Any]:
    """Return the figures of test images, those that are not leaked, as JSON-ready values: each part
    None where it cannot be known. ``limits``: those of the one network; ``distances`` (n,)."""
    leaked = predictions.leaked
    kept = np.arange(len(leaked)) if leaked.all() else np.flatnonzero(~leaked)
    shown = predictions.rows(kept)
    draws = Draws(shown.clusters)
    single = not shown.task.multi_label and bool(len(kept))
    right = shown.predicted == shown.labels if single else None
    unlike = None if distances is None or not len(kept) else distances[kept] > 1
    return {
        "unlike": None if unlike is None else _unlike(unlike, right, limits, draws),
        "sets": _sets(shown, limits.sets[0], draws) if single and len(limits.sets) == 1 else None,
        "curve": _curve(with_temperature(shown, temperature), draws) if single else None,
    }


def _unlike(unlike: np.ndarray, right: np.ndarray | None, limits: Limits, draws: Draws) -> dict[str, Any]:
    every = np.ones(len(unlike), dtype=bool)
    return {
        "images": int(unlike.sum()),
        "share": _share(every, unlike, draws),
        "promised": limits.false_alarms,
        "accuracy": None if right is None else _share(unlike, right, draws),
        "accuracy_of_others": None if right is None else _share(~unlike, right, draws),
    }


def _sets(shown: Predictions, sets: Sets, draws: Draws) -> dict[str, Any]:
    held = sets.holds(shown.probabilities)
    sizes, every = held.sum(axis=1), np.ones(len(held), dtype=bool)
    return {
        "wanted": sets.wanted,
        "promised": sets.bound.level,
        "counted": sets.bound.counted,
        "units": sets.bound.units,
        "short": sets.bound.falls_short(sets.wanted),
        "coverage": _share(every, held[np.arange(len(held)), shown.labels], draws),
        "size": float(sizes.mean()),
        "sizes": np.bincount(sizes, minlength=held.shape[1] + 1)[1:].tolist(),
    }


def _curve(shown: Predictions, draws: Draws) -> list[dict[str, Any]]:
    """Accuracy where the given shares of the images are answered, the surest ones."""
    confidence, right = shown.probabilities.max(axis=1), shown.predicted == shown.labels
    order, points = np.argsort(-confidence, kind="stable"), []
    for share in SHARES:
        count = max(1, round(share * len(order)))
        answered = confidence >= confidence[order[count - 1]]  # those that are as sure as the last one, too
        points.append(
            {
                "share": float(answered.mean()),
                "images": int(answered.sum()),
                "confidence": float(confidence[answered].min()),
                "accuracy": _share(answered, right, draws),
            }
        )
    return points


def _share(basis: np.ndarray, event: np.ndarray, draws: Draws) -> dict[str, float | None]:
    """The share of the images in ``basis`` of which ``event`` is true, with its interval."""
    figure, interval = calls_with_intervals([(basis, event)], draws)[0]["sensitivity"]
    return results.ends(figure, interval)
