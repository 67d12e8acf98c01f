"""Read any data source as images with classes, patients and splits."""

from pathlib import Path

from medmambase import run_folder
from medmambase.data.manifest.class_names import renamed
from medmambase.data.manifest.csv_table import read_rows, read_table
from medmambase.data.manifest.folders import DataError, Manifest, scan_folder
from medmambase.data.manifest.framed import framed
from medmambase.data.manifest.given_splits import data_of_splits, with_splits
from medmambase.data.manifest.groups import grouped, told_by_files
from medmambase.data.manifest.joined import Duplicates
from medmambase.data.manifest.published import FETAL_PLANES, is_fetal_planes, read_fetal_planes, read_medmnist
from medmambase.data.manifest.splits import complete

WANTED = (
    "give a folder that holds train/, val/ and test/ or one folder for each class, a CSV "
    "(path,label,patient,split), or a MedMNIST .npz"
)


def read_manifest(
    source: Path,
    *,
    seed: int,
    runs: Path | None = None,
    group_regex: str | None = None,
    group_column: str | None = None,
    folds: int = 0,
    fold: int = 0,
    allow_leak: bool = False,
    splits: Path | None = None,
    class_names: str | None = None,
    labels: str | None = None,
    duplicates: Duplicates | None = None,
    frames: str | None = None,
) -> Manifest:
    """Read a folder, a CSV, a MedMNIST ``.npz`` or FETAL_PLANES_DB (its folder or its CSV), and
    give every image a split.

    ``group_regex`` finds the patient in an image's path below the root: by its first group, or as a
    whole; ``group_column`` names the column of a CSV that tells it; of an image for which neither
    does, its DICOM file tells it. ``folds``, ``fold``, ``allow_leak``, ``duplicates``: as
    ``splits.complete`` has them.
    ``splits``: a table that divides the images; the ``splits.csv`` of a run may also be given as
    the source, and stands for what that run was trained on.
    ``runs``: the folder that new runs go to, which is no data. ``class_names``: as
    ``class_names.renamed`` takes them. ``labels``: the columns of a CSV that are a class each, as
    ``csv_table.read_table`` takes them. ``frames``: which are images of files that have several, as
    ``frames.chosen`` takes them; None for the first, or those of the run whose ``splits.csv`` is
    the source.
    Raises DataError, and ConfigError for ``class_names``.
    """
    found = read_images(
        source, runs=runs, group_regex=group_regex, group_column=group_column, splits=splits, class_names=class_names,
        labels=labels, frames=frames,
    )  # fmt: skip  # one argument list
    return complete(found, seed, folds=folds, fold=fold, allow_leak=allow_leak, duplicates=duplicates)


def read_images(
    source: Path,
    *,
    runs: Path | None = None,
    group_regex: str | None = None,
    group_column: str | None = None,
    splits: Path | None = None,
    class_names: str | None = None,
    labels: str | None = None,
    frames: str | None = None,
) -> Manifest:
    """Like ``read_manifest``, but keep the source's own splits; without any, every image is
    "train". Raises DataError, and ConfigError for ``class_names``."""
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder; {WANTED}")
    if group_regex is not None and group_column is not None:
        raise DataError(
            f"--group-regex is {group_regex!r} and --group-column {group_column!r}; patients are found by only one of "
            f"them; leave out the other"
        )
    data = data_of_splits(source)
    if data is not None:
        class_names = class_names or run_folder.setting_of(source.parent, "class_names")
        labels = labels or run_folder.setting_of(source.parent, "labels")
        frames = frames or run_folder.setting_of(source.parent, "frames")
        source, splits = data, splits or source
    found = _read(source, runs, group_column, labels)
    if class_names is not None:
        found = renamed(found, class_names)
    found = told_by_files(found) if group_regex is None else grouped(found, group_regex)
    found = framed(found, frames or "first")
    return found if splits is None else with_splits(found, splits)


def _read(source: Path, runs: Path | None, group_column: str | None, labels: str | None) -> Manifest:
    table = source / FETAL_PLANES if (source / FETAL_PLANES).is_file() else source
    if table.is_file() and table.suffix.casefold() in (".csv", ".tsv", ".txt"):
        names, rows = read_rows(table)
        if group_column is None and labels is None and is_fetal_planes(names):
            return read_fetal_planes(table, names, rows)
        return read_table(table, names, rows, group_column, labels)
    if group_column is not None:
        raise DataError(
            f"{source}: --group-column names a column of a CSV, and this is not a CSV; give a CSV, or find the patient "
            f"with --group-regex"
        )
    if labels is not None:
        raise DataError(
            f"{source}: --labels names columns of a CSV, and this is not a CSV; give a CSV, or leave it out"
        )
    if source.is_dir():
        return scan_folder(source, runs)
    if source.suffix.casefold() == ".npz":
        return read_medmnist(source)
    raise DataError(f"{source}: this is a file of another kind; {WANTED}")
