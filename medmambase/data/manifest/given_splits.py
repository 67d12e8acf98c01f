"""Give images the splits that a table names, such as the ``splits.csv`` of a run: so that several
trainings have the same test images, whatever else differs between them."""

from dataclasses import replace
from pathlib import Path

from medmambase import run_folder
from medmambase.data.manifest.csv_table import read_splits
from medmambase.data.manifest.folders import DataError, Manifest
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.files import as_written
from medmambase.plural import count_of


def data_of_splits(table: Path) -> Path | None:
    """Return what was trained on, if ``table`` is the ``splits.csv`` in the folder of a run; else
    None. Raises DataError where the run's data are not there any more, or not known."""
    run = table.parent
    if table.name != run_folder.SPLITS or not (run / run_folder.CONFIG).is_file():
        return None
    data = run_folder.data_of(run)
    if data is None or not data.exists():
        what = "does not say where its images lie" if data is None else f"was trained on {data}, which is not there"
        raise DataError(f"{table}: the run {what}; give the images, and the table with --splits {table}")
    return data


def with_splits(found: Manifest, table: Path) -> Manifest:
    """Return the images that ``table`` names, with its splits; also with its patients, where
    nothing else tells whose an image is. Images that it does not name are left out, which a note
    says. Raises DataError."""
    rows = read_splits(table)
    # A run's own table names images as its files do: without folders above the data.
    placed = Pseudonyms(None).of_manifest(found).samples
    samples, named = [], set()
    for sample, shorter in zip(found.samples, placed, strict=True):
        # As a table is written and read.
        own, short = (as_written(one.name).strip().replace("\\", "/") for one in (sample, shorter))
        name = own if own in rows else short
        if name not in rows and sample.frame is not None:  # a table may name files, whatever frames are chosen
            name = next((file for one in (own, short) if (file := one.rpartition("#")[0]) in rows), name)
        if name in rows:
            split, patient = rows[name]
            samples.append(replace(sample, split=split, patient=sample.patient or patient))
            named.add(name)
    if not samples:
        raise DataError(
            f"{table}: names {count_of(len(rows), 'image')}, such as {next(iter(rows))}, and none of them is in "
            f"{found.root}, "
            f"which has {found.samples[0].name}; give a table for these images"
        )
    notes = found.notes
    if left := len(found.samples) - len(samples):
        notes += (f"{count_of(left, 'image is', 'images are')} not named in {table.name}: left out",)
    if missing := sorted(rows.keys() - named):
        gone = count_of(len(missing), "image that is", "images that are")
        notes += (f"{gone} named in {table.name} cannot be found, such as {missing[0]}",)
    method = f"using the splits of {table.name}"
    return replace(found, samples=tuple(samples), notes=notes, method=method)
