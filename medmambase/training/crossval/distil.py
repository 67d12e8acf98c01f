"""Distil the networks of a cross-validation into one, which predicts in the time of one.

Each training image is learned half by its class and half by what the network says of it that has
not learned from it: a network that has learned an image by heart only repeats its class. On the
images that the distilled network is measured on it has not learned; whether the others have is told
with the figures.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from medmambase import run_folder
from medmambase.data.manifest.csv_table import read_splits
from medmambase.data.manifest.folders import Manifest
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.evaluation import distillation, pooling
from medmambase.evaluation.predictions import read_predictions, write_predictions
from medmambase.run_folder import TEST, VAL
from medmambase.settings import Settings
from medmambase.tables import table
from medmambase.training import session

COLUMNS = ("path", "split")


def prepare(folder: Path, settings: Settings, first: Manifest, divided: pooling.Division, called: Pseudonyms) -> Path:
    """Write what the distilled network learns from, and begin its run; return the run's folder. Its
    validation images are those of the first fold: by its table, which one of before does not have,
    else as ``first`` has them."""
    folds = run_folder.folds_of(folder)
    own = {name: fold for name, fold in divided.fold_of.items() if fold is not None}
    kept = VAL if divided.together else TEST
    found = [pooling.calibrated(fold, kept) for fold in folds]
    soft = pooling.pooled(found, replace(divided, fold_of=own))
    write_predictions(folder / run_folder.SOFT_LABELS, soft)
    validation = {sample.name for sample in first.split("val")}
    if (given := folds[0] / run_folder.SPLITS_OF_FOLD).is_file():
        validation = {name for name, (split, _) in read_splits(given).items() if split == VAL}
    rows = sorted(
        (name, "test" if fold is None else "val" if name in validation else "train")
        for name, fold in divided.fold_of.items()
    )
    run = folder / run_folder.DISTILLED
    if not (run / run_folder.CONFIG).is_file():
        run_folder.write_text(folder / run_folder.SPLITS_OF_DISTILLED, table(COLUMNS, rows))
        run.mkdir(exist_ok=True)
        session.write_settings(run, settings_of(folder, settings), called)
    return run


def settings_of(folder: Path, settings: Settings) -> Settings:
    """Return the settings of the distilled network's run."""
    return replace(
        settings, folds=0, fold=0, keep_duplicates_together=False, splits=str(folder / run_folder.SPLITS_OF_DISTILLED),
        soft_labels=str(folder / run_folder.SOFT_LABELS),
    )  # fmt: skip  # what differs


def measured(folder: Path, together: bool) -> dict[str, Any]:
    """Compare the distilled network with those of the folds: on the test images, which none of them
    has learned from, where the data have some; else on its own validation images, each predicted by
    the network that has not learned from it. Raises MetricsError."""
    on = TEST if together else VAL
    teachers = read_predictions(folder / TEST / run_folder.PREDICTIONS)
    own = pooling.calibrated(folder / run_folder.DISTILLED, on)
    return {"on": on} | distillation.measure(teachers, own)
