"""Write everything that is said of predictions: the files of ``test/``, which can all be made again
from its ``predictions.csv``.

A training does so when it ends, and ``medmambase-evaluate`` at any time.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medmambase.evaluation.by_patient import evaluate_both, of_patients
from medmambase.evaluation.calibration import Calibration, OperatingPoint, apply_operating_point, with_temperature
from medmambase.evaluation.intervals import Draws, calls_with_intervals, confidence_with_intervals
from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.medmnist import as_medmnist
from medmambase.evaluation.predictions import MetricsError, Predictions, write_predictions
from medmambase.evaluation.recorded import Interval
from medmambase.evaluation.report import figures, performance_figures
from medmambase.files import read_json, write_bytes, write_json
from medmambase.run_folder import (
    ACCESS_LOG,
    ACCESS_LOG_BEFORE,
    BY_PATIENT,
    CALIBRATED,
    CALIBRATION,
    CONFUSION,
    EVALUATIONS,
    MEDMNIST,
    METRICS,
    PR,
    PREDICTIONS,
    RELIABILITY,
    ROC,
    TEST,
    VAL,
)
from medmambase.tables import line, of_cell, table

_ACCESS_COLUMNS = ("when", "data", "images", "command")
_ADDED = ("patient_known", "by_patient", "patients_left_out")  # to the files of the first versions


def write(folder: Path, predictions: Predictions, calibration: Calibration | None, published: bool) -> AnyMetrics:
    """Write every file of a folder of results, each beside its place and then moved there;
    ``published``: the MedMNIST evaluator's figures too. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / PREDICTIONS, predictions)
    return write_figures(folder, predictions, calibration, published)


def write_figures(
    folder: Path, predictions: Predictions, calibration: Calibration | None, published: bool
) -> AnyMetrics:
    """Write all but the predictions themselves."""
    draws = Draws(predictions.clusters)
    metrics = evaluate_both(predictions, calibration, draws)
    write_json(folder / METRICS, metrics.to_dict())
    if calibration is not None:
        write_json(folder / CALIBRATED, on_test(predictions, metrics, calibration, draws))
    if published:
        write_json(folder / MEDMNIST, as_medmnist(predictions.labels, predictions.probabilities))
    figures.confusion(metrics, folder / CONFUSION)
    if len(predictions.labels):
        performance_figures.roc(predictions, metrics, folder / ROC)
        performance_figures.pr(predictions, metrics, folder / PR)
        temperature = calibration.temperature if calibration else None
        performance_figures.calibration(predictions, temperature, folder / RELIABILITY)
    patients = of_patients(predictions, calibration)
    if patients is not None and metrics.by_patient is not None:
        _write_patients(folder / BY_PATIENT, patients.predictions, metrics.by_patient)
    return metrics


def _write_patients(folder: Path, patients: Predictions, metrics: AnyMetrics) -> None:
    """Write a table with a row for each patient, and the pictures of their figures."""
    folder.mkdir(exist_ok=True)
    write_predictions(folder / PREDICTIONS, replace(patients, patients=patients.names))
    figures.confusion(metrics, folder / CONFUSION, of="patients")
    performance_figures.roc(patients, metrics, folder / ROC)
    performance_figures.pr(patients, metrics, folder / PR)


def on_test(
    predictions: Predictions, metrics: AnyMetrics, calibration: Calibration, draws: Draws | None = None
) -> dict[str, Any]:
    """Apply the calibration learned on val to the test set: calibration errors before and after the
    temperature, and each operating point's figures, all with intervals; those of patients where
    they are known."""
    draws = draws or Draws(predictions.clusters)
    before = {name: (metrics.flat()[name], metrics.intervals.get(name)) for name in ("brier", "ece")}
    after = confidence_with_intervals(with_temperature(predictions, calibration.temperature), draws)
    found = {
        "temperature": calibration.temperature,
        "before": {name: ends(*one) for name, one in before.items()},
        "after": {name: ends(*one) for name, one in after.items()},
        "points": _points_on(predictions, calibration.points, draws),
    } | ({"thresholds": calibration.thresholds} if calibration.thresholds else {})
    patients = of_patients(predictions, calibration) if calibration.by_patient else None
    if patients is not None and patients.predictions.names:
        own = Draws(patients.predictions.clusters)
        found["by_patient"] = _points_on(patients.predictions, calibration.by_patient, own)
    return found


def _points_on(predictions: Predictions, points: Sequence[OperatingPoint], draws: Draws) -> list[dict[str, Any]]:
    """Operating points with their figures on ``predictions``."""
    calls = [apply_operating_point(predictions, point) for point in points]
    return [
        asdict(point) | {"test": {name: ends(*one) for name, one in answered.items()}}
        for point, answered in zip(points, calls_with_intervals(calls, draws), strict=True)
    ]


def ends(figure: float | None, interval: Interval | None) -> dict[str, float | None]:
    """A figure with the ends of its interval, each None where it is unknown."""
    return {
        "figure": figure,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
    }


def read_calibration(run: Path) -> Calibration | None:
    """Read what a run learned on its validation images; None where it has no such file. Raises
    MetricsError naming it."""
    path = run / CALIBRATION
    try:
        return Calibration.from_dict(read_json(path)) if path.is_file() else None
    except (OSError, ValueError, TypeError) as error:  # MetricsError is a ValueError
        raise MetricsError(f"{path}: {error}; medmambase-evaluate writes it again from {VAL}/{PREDICTIONS}") from error


def calibration_of(table: Path) -> Calibration | None:
    """Read what the run has learned whose test predictions, or those of an evaluation of it, the
    file ``table`` holds; None where there is none: as of another program, or of a cross-validation,
    which are taken as they are. Raises MetricsError."""
    folder = table.resolve().parent
    run = folder.parent.parent if folder.parent.name == EVALUATIONS else folder.parent
    if table.name != PREDICTIONS or (folder.name != TEST and folder.parent.name != EVALUATIONS):
        return None
    return read_calibration(run)


def note_access(run: Path, data: str, images: int, command: str) -> None:
    """Add a line to the run's access log: test images were looked at. Raises OSError."""
    path = _access_log(run)
    before = path.read_bytes() if path.is_file() else table(_ACCESS_COLUMNS, ()).encode("utf-8")
    added = line((datetime.now(UTC).isoformat(timespec="seconds"), data, images, command))
    write_bytes(path, before + added.encode("utf-8", "backslashreplace"))  # a damaged line costs no result


def accesses(run: Path) -> list[dict[str, str]]:
    """Read the run's access log, the oldest line first. Raises MetricsError naming the file."""
    path = _access_log(run)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [{name: of_cell(row.get(name) or "") for name in _ACCESS_COLUMNS} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MetricsError(f"{path}: cannot be read ({error})") from error


def _access_log(run: Path) -> Path:
    before = run / ACCESS_LOG_BEFORE
    return before if before.is_file() else run / ACCESS_LOG


def differences(before: dict[str, Any], after: dict[str, Any], below: Sequence[str] = ()) -> list[str]:
    """List the values of one file that differ from those of another, by their names.

    Numbers are alike to a millionth: another processor, system or version of NumPy rounds
    otherwise.
    """
    found = []
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, (*below, name))
        elif one != other and not _nearly(one, other):
            found.append("/".join((*below, name)))
    return found


def with_methods_of(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics ``before`` with each interval as in ``after`` that has another method
    there, or that only one of them has, and with what an earlier version did not compute at all."""
    found = {name: after[name] for name in _ADDED if name in after} | before
    old, new = before.get("intervals"), after.get("intervals")
    if isinstance(old, dict) and isinstance(new, dict):
        same = {name for name in old if _method(old, name) == _method(new, name)}
        found["intervals"] = {name: old[name] if name in same else new[name] for name in new}
    for name in ("by_patient", "without_leaked"):
        inner, other = before.get(name), after.get(name)
        if isinstance(inner, dict) and isinstance(other, dict):
            found[name] = with_methods_of(other, inner)
    return found


def _method(intervals: dict[str, Any], name: str) -> object:
    one = intervals.get(name)
    return one.get("method") if isinstance(one, dict) else None


def _nearly(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_nearly, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return bool(one == other)
