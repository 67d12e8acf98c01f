"""Train what stands in a table, line by line, and write the table."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medmambase import run_folder
from medmambase.config import ConfigError
from medmambase.data.decoded.image_set import Progress, no_progress
from medmambase.data.manifest.folders import DataError
from medmambase.data.manifest.multi_label import refuse
from medmambase.data.manifest.sources import read_images
from medmambase.evaluation.predictions import read_predictions
from medmambase.evaluation.report import run_files
from medmambase.evaluation.report.results import read_calibration
from medmambase.evaluation.report.run_files import ReportError
from medmambase.evaluation.report.table import Entry, Row, as_csv, as_latex, as_markdown, rows_of
from medmambase.model import opponents
from medmambase.settings import MAY_CHANGE, Settings, is_run_of, of_run
from medmambase.training.plan import Say
from medmambase.training.run import name_of, started, train_run
from medmambase.training.table.settings import Line


def table_run(
    lines: Sequence[Line], command: str, say: Say, progress: Progress = no_progress
) -> tuple[Path, list[Row], list[tuple[Path, ...]]]:
    """Train all that is not trained yet, one after the other, and write the table as Markdown,
    LaTeX and CSV. Returns its folder, its rows, and the runs of each.

    A training is a run of its own, named by the data and the network; one with the same settings
    that is there already is taken, and goes on where it was ended. So the same call goes on, and
    gives the same table in the same folder. ``command``: how it was started; ``say`` gets lines for
    a person.

    Raises what ``training.run.started`` and ``train_run`` raise; ConfigError under torchrun;
    DataError after the first training where there are no test images, and MetricsError where those
    of two runs differ.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("torchrun has started this; a table trains its networks in one process")
    first = lines[0].trainings[0]
    if first.data and Path(first.data).is_file():
        refuse(
            read_images(Path(first.data), group_column=first.group_column, labels=first.labels),
            "a table compares networks of one class an image; train them one by one with medmambase-train",
        )
    every = [(line, settings) for line in lines for settings in line.trainings]
    for line in lines:
        if (opponent := line.trainings[0].opponent) is not None:
            opponents.check_installed(opponent, to_start=True)
    runs = []
    for number, (line, settings) in enumerate(every, start=1):
        say(f"{number} of {len(every)}: {line.name}, seed {settings.training.seed}")
        run = _run(replace(settings, name=f"{name_of(settings)}-{line.name}"), command, say, progress)
        if not (run / run_folder.TEST / run_folder.PREDICTIONS).is_file():  # told before the others are trained
            raise DataError(f"{run}: had no test images, which a table compares networks on; give data with some")
        runs.append(run)
    of_lines = [tuple(run for run, (owner, _) in zip(runs, every, strict=True) if owner is line) for line in lines]
    rows, notes = rows_of([_entry(line.name, own) for line, own in zip(lines, of_lines, strict=True)])
    written = {
        run_folder.TABLE_MARKDOWN: as_markdown(rows, notes),
        run_folder.TABLE_LATEX: as_latex(rows, notes),
        run_folder.TABLE_CSV: as_csv(rows),
    }
    return _write(Path(first.runs), f"{name_of(first)}-{run_folder.TABLE}", written), rows, of_lines


def _write(runs: Path, name: str, written: Mapping[str, str]) -> Path:
    """Write a table to a folder of its own, and return that: the one in which it lies already, or a
    new one, so that no other table is replaced."""
    for folder in run_folder.existing(runs, name):
        if all(_bytes(folder / file) == text.encode("utf-8") for file, text in written.items()):
            return folder
    folder = run_folder.create(runs, name)
    for file, text in written.items():
        run_folder.write_text(folder / file, text)
    return folder


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _run(settings: Settings, command: str, say: Say, progress: Progress) -> Path:
    """Train, unless a run of these settings is finished; return its folder."""
    found = run_folder.existing(Path(settings.runs), name_of(settings))
    anew = "train anew, choose another --name"
    begun = run_folder.latest(found, lambda folder: is_run_of(folder, settings), anew)
    if begun and run_folder.is_finished(begun):
        say(f"run folder: {begun}, which is finished")
        return begun
    if begun:
        changes = {name: value for name in MAY_CHANGE if (value := settings.value(name)) is not None}
        settings = of_run(begun, changes)
    with started(settings, begun, progress) as run:
        train_run(run, command, say, progress)
    return run.folder


def _entry(name: str, runs: Sequence[Path]) -> Entry:
    """What the finished runs of a line have found. Raises ReportError or MetricsError."""
    configs: list[run_files.Config] = []
    train: list[float] = []
    for run in runs:
        config = run_files.read(run / run_folder.DESCRIPTION, run_files.Config)
        if config is None:
            raise ReportError(f"{run} has no {run_folder.DESCRIPTION}; restore it")
        configs.append(config)
        train.append(_train_accuracy(run, config.best_epoch))
    validated = [path for run in runs if (path := run / run_folder.VAL / run_folder.PREDICTIONS).is_file()]
    val = map(read_predictions, validated if len(validated) == len(runs) else ())
    test = (read_predictions(run / run_folder.TEST / run_folder.PREDICTIONS) for run in runs)
    learned = map(read_calibration, runs)
    return Entry(name, configs[0].parameters, tuple(train), tuple(val), tuple(test), tuple(learned))


def _train_accuracy(run: Path, best_epoch: int | None) -> float:
    """The training accuracy of the epoch whose network was kept, as it was measured then."""
    path = run / run_folder.HISTORY
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {int(row["epoch"]): float(row["train_accuracy"]) for row in csv.DictReader(file)}
        return rows[best_epoch or 0]
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise ReportError(f"{path}: does not tell the accuracy of epoch {best_epoch} ({error}); restore it") from error
