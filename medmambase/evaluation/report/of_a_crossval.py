"""Write what a finished cross-validation is judged by: the predictions of all folds together, their
figures and pictures, and the report."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medmambase.config import ConfigError, Preprocessing
from medmambase.data.decoded.image_set import decode
from medmambase.data.decoded.originals import originals
from medmambase.data.manifest.folders import Sample
from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.pooling import Division, Fold, over_folds
from medmambase.evaluation.predictions import Predictions
from medmambase.evaluation.report import performance_figures, results
from medmambase.evaluation.report.run_files import Config, DataReport, ReportError, read, read_object
from medmambase.files import write_json
from medmambase.inference.appearance import Appearance
from medmambase.privacy import without_paths
from medmambase.run_folder import (
    APPEARANCE,
    DATA_REPORT,
    DESCRIPTION,
    ENVIRONMENT,
    FOLDS,
    MISTAKES,
    TEST,
)

# Of what a fold says of itself, what is the same for all.
SHARED = ("model", "training", "preprocessing", "classes", "device", "engine", "precision", "parameters", "start")


def write(
    folder: Path,
    runs: Sequence[Path],
    predictions: Predictions,
    folds: Sequence[Fold],
    divided: Division,
    published: bool,
) -> AnyMetrics:
    """Write everything but the report into ``folder``, from the finished ``runs`` of the folds.

    ``predictions``: what they have predicted together; ``folds``: what each is worth; of a
    ``published`` MedMNIST set its own evaluator's figures are written too. Raises ReportError for
    files of a fold that are missing or damaged, DataError, OSError.
    """
    for name, values in gathered(runs, divided, folds).items():
        write_json(folder / name, values)
    metrics = results.write(folder / TEST, predictions, None, published)
    _draw_mistakes(folder, predictions, divided.samples, _preprocessing(runs[0]))
    return metrics


def gathered(runs: Sequence[Path], divided: Division, folds: Sequence[Fold]) -> dict[str, dict[str, Any]]:
    """Return the content of each JSON file, by its name, that the folds' own files give. Raises
    ReportError and DataError for those that are missing or damaged."""
    _preprocessing(runs[0])  # what is wrong with it is said before anything is computed
    described = read_object(runs[0] / DESCRIPTION) or {}
    best = [read(run / DESCRIPTION, Config) for run in runs]
    told = over_folds(folds, divided.together)
    for row, config in zip(told["folds"], best, strict=True):
        row["best_epoch"] = config.best_epoch if config else None
    looks = [look for run in runs if (look := Appearance.read(run / APPEARANCE)) is not None]
    return {
        DESCRIPTION: {name: described[name] for name in SHARED if name in described},
        ENVIRONMENT: read_object(runs[0] / ENVIRONMENT) or {},
        DATA_REPORT: _data_report(runs, divided),
        FOLDS: told,
    } | ({APPEARANCE: Appearance.of_all(looks).to_dict()} if looks else {})


def _preprocessing(run: Path) -> Preprocessing:
    described = read(run / DESCRIPTION, Config)
    if described is None:
        raise ReportError(f"{run / DESCRIPTION}: is not there, and describes the network; restore it")
    try:
        return Preprocessing.from_dict(described.preprocessing)
    except ConfigError as error:
        raise ReportError(f"{run / DESCRIPTION}: preprocessing: {error}; restore the file") from error


def _data_report(runs: Sequence[Path], divided: Division) -> dict[str, Any]:
    """What the data reports of all folds say together: of each fold the images that are held out
    of it, and those of a test split that the data have."""
    found = [read(run / DATA_REPORT, DataReport) for run in runs]
    reports = [one for one in found if one is not None]
    if len(reports) < len(found):
        raise ReportError(f"{runs[found.index(None)]} has no {DATA_REPORT}; restore it")
    first = reports[0]
    shared = list(map(without_paths, divided.notes))
    shared += [note for note in first.notes if note not in shared and all(note in one.notes for one in reports)]
    own = [f"{run.name}: {note}" for run, one in zip(runs, reports, strict=True) for note in one.notes
           if note not in shared]  # fmt: skip  # one sentence
    findings = [f"{run.name}: {one.audit.counted}; its own report lists them"
                for run, one in zip(runs, reports, strict=True) if one.audit.counted]  # fmt: skip  # the same
    held_out = "val" if divided.together else "test"
    counts = {run.name: one.counts.get(held_out, {}) for run, one in zip(runs, reports, strict=True)}
    return {
        "root": first.root, "method": divided.method,
        "counts": counts | ({"test": first.counts.get("test", {})} if divided.together else {}),
        "skipped": [asdict(one) for one in first.skipped], "notes": shared + own,
        "audit": {"findings": findings, "exact": list(first.audit.exact), "near": list(first.audit.near)},
    }  # fmt: skip  # the file's content


def _draw_mistakes(
    folder: Path, predictions: Predictions, samples: Sequence[Sample], preprocessing: Preprocessing
) -> None:
    """Draw the most confident mistakes; those whose file cannot be read any more are left out."""
    sample_of = {sample.name: sample for sample in samples}
    wrong = {predictions.names[row]: row for row in performance_figures.worst(predictions)}
    images, _ = decode([sample_of[name] for name in wrong if name in sample_of], preprocessing)
    if images.samples:
        rows = [wrong[sample.name] for sample in images.samples]
        pictures = originals(images, range(len(rows)))
        performance_figures.mistakes(pictures, predictions.rows(rows), folder / TEST / MISTAKES)
