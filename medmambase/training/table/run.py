"""Train what stands in a table, line by line, and write the table."""

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from medmambase import run_folder
from medmambase.config import ConfigError
from medmambase.data.decoded.image_set import Progress, no_progress
from medmambase.data.manifest.folders import DataError
from medmambase.evaluation.predictions import read_predictions
from medmambase.evaluation.report import run_files
from medmambase.evaluation.report.run_files import ReportError
from medmambase.evaluation.report.table import Entry, Row, as_csv, as_latex, as_markdown, rows_of
from medmambase.files import write_text
from medmambase.model import opponents
from medmambase.settings import MAY_CHANGE, Settings, of_run
from medmambase.training.run import is_finished, latest, name_of, started, train_run
from medmambase.training.table.settings import Line

Say = Callable[[str], object]


def table_run(
    lines: Sequence[Line], command: str, say: Say, progress: Progress = no_progress
) -> tuple[Path, list[Row], list[tuple[Path, ...]]]:
    """Train all that is not trained yet, one after the other, and write the table as Markdown,
    LaTeX and CSV. Returns its folder, its rows, and the runs of each.

    A training is a run of its own, named by the data and the network; one with the same settings
    that is there already is taken, and goes on where it was ended. So the same call goes on, and
    prints the same table. ``command``: how it was started; ``say`` gets lines for a person.

    Raises what ``training.run.started`` and ``train_run`` raise; ConfigError under torchrun;
    DataError where there are no test images, or not the same.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("torchrun has started this; a table trains its networks in one process")
    every = [(line, settings) for line in lines for settings in line.trainings]
    for line in lines:
        if (opponent := line.trainings[0].opponent) is not None:
            opponents.check_installed(opponent, to_start=True)
    runs = []
    for number, (line, settings) in enumerate(every, start=1):
        say(f"{number} of {len(every)}: {line.name}, seed {settings.training.seed}")
        runs.append(_run(replace(settings, name=f"{name_of(settings)}-{line.name}"), command, say, progress))
    of_lines = [tuple(run for run, (owner, _) in zip(runs, every, strict=True) if owner is line) for line in lines]
    rows, notes = rows_of([_entry(line.name, own) for line, own in zip(lines, of_lines, strict=True)])
    for words in notes:
        say(f"note: {words}")
    first = lines[0].trainings[0]
    folder = Path(first.runs) / run_folder.legal_name(f"{name_of(first)}-{run_folder.TABLE}")
    for name, text in (
        (run_folder.TABLE_MARKDOWN, as_markdown(rows)),
        (run_folder.TABLE_LATEX, as_latex(rows)),
        (run_folder.TABLE_CSV, as_csv(rows)),
    ):
        write_text(folder / name, text)
    return folder, rows, of_lines


def _run(settings: Settings, command: str, say: Say, progress: Progress) -> Path:
    """Train, unless a run of these settings is finished; return its folder."""
    begun = latest(settings)
    if begun and is_finished(begun):
        say(f"run folder: {begun}, which is finished")
        return begun
    if begun:
        changes = {name: value for name in MAY_CHANGE if (value := settings.value(name)) is not None}
        settings = of_run(begun, changes)
    with started(settings, begun, progress) as run:
        train_run(run, command, say, progress)
    return run.folder


def _entry(name: str, runs: Sequence[Path]) -> Entry:
    """What the finished runs of a line have found. Raises DataError, ReportError or
    MetricsError."""
    configs: list[run_files.Config] = []
    train: list[float] = []
    for run in runs:
        config = run_files.read(run / run_folder.DESCRIPTION, run_files.Config)
        if config is None:
            raise ReportError(f"{run} has no {run_folder.DESCRIPTION}; restore it")
        configs.append(config)
        train.append(_train_accuracy(run, config.best_epoch))
    val, test = (
        tuple(
            read_predictions(run / split / run_folder.PREDICTIONS)
            for run in runs
            if (run / split / run_folder.PREDICTIONS).is_file()
        )
        for split in (run_folder.VAL, run_folder.TEST)
    )
    if len(test) < len(runs):
        raise DataError(f"{runs[0]}: had no test images, which a table compares networks on; give data with some")
    return Entry(name, configs[0].parameters, tuple(train), val if len(val) == len(runs) else (), test)


def _train_accuracy(run: Path, best_epoch: int | None) -> float:
    """The training accuracy of the epoch whose network was kept, as it was measured then."""
    path = run / run_folder.HISTORY
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {int(row["epoch"]): float(row["train_accuracy"]) for row in csv.DictReader(file)}
        return rows[best_epoch or 0]
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise ReportError(f"{path}: does not tell the accuracy of epoch {best_epoch} ({error}); restore it") from error
