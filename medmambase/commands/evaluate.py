"""``medmambase-evaluate RUN``: compute every metric of a run again from its predictions; with DATA,
test its network on other images."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medmambase import privacy, run_folder
from medmambase.commands import console, evaluate_flags, guard
from medmambase.commands.next_steps import pasted, say_next
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.data.manifest.sources import read_images
from medmambase.evaluation import calibration
from medmambase.evaluation.by_patient import evaluate_both
from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.medmnist import as_medmnist
from medmambase.evaluation.predictions import read_predictions
from medmambase.evaluation.report import answering, of_a_run, report, results
from medmambase.evaluation.report.headline import headline
from medmambase.evaluation.report.summary import about_patients, benchmark, summary
from medmambase.files import read_json, write_json
from medmambase.inference import held_out
from medmambase.inference.limits import Limits
from medmambase.inference.loading import load_ensemble, load_network, run_of
from medmambase.inference.probabilities import choose_precision
from medmambase.inference.watch import Watch
from medmambase.run_folder import (
    CALIBRATED,
    CALIBRATION,
    DATA_REPORT,
    EVALUATIONS,
    MEDMNIST,
    METRICS,
    PREDICTIONS,
    TEST,
    VAL,
)
from medmambase.settings_file import flag
from medmambase.training import session

DIFFERENT = 1
NO_PATIENTS = (
    "the table has no patients, so each image is treated as a separate patient: if a patient has several images, "
    "the intervals are too narrow"
)
_MOST_DIFFERENCES = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 1 recorded metrics did not match the
    predictions, 2 usage, 3 data, 4 environment, 130."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = evaluate_flags.parse(words)

    def act() -> int:
        _check_flags(options)
        if options.run.is_file():
            return _of_table(options)
        if options.data is None:
            return _again(options)
        return _try(options, words)

    return console.guarded("medmambase-evaluate", act)


def _check_flags(options: argparse.Namespace) -> None:
    """Refuse what says something about other images where none are evaluated."""
    if options.json:
        guard.check_file("--json", options.json)
    if options.data is not None and options.run.is_file():
        raise ConfigError(
            f"DATA is {options.data}, but {options.run} is a table of predictions, and only a network can be tested "
            f"on images; give the folder of its run, or leave out DATA"
        )
    of_data = ("name", "group_regex", "group_column", "class_names", "labels", "frames")
    for name in of_data if options.data is None else ():
        if (value := getattr(options, name)) is not None:
            about = "names the folder of results on" if name == "name" else "describes"
            raise ConfigError(
                f"{flag(name)} is {value!r}, but it {about} the images of DATA, and the predictions of {options.run} "
                f"are evaluated; give the folder of a run and DATA, or leave it out"
            )


def _of_table(options: argparse.Namespace) -> int:
    """Print the metrics of a table of predictions."""
    predictions = read_predictions(options.run)
    metrics = evaluate_both(predictions, results.calibration_of(options.run))
    _tell(metrics, options.json, "" if any(predictions.patients) else NO_PATIENTS)
    say_next(("compare with another network", pasted("medmambase-compare", options.run, "other.csv")))
    return 0


def _again(options: argparse.Namespace) -> int:
    """Compute metrics, figures and report again from the predictions."""
    run: Path = options.run
    test, val = run / TEST, run / VAL / PREDICTIONS
    if not (test / PREDICTIONS).is_file() and run_folder.folds_of(run):
        raise DataError(
            f"{run}: this cross-validation has not ended, and the results of all folds together come last; start the "
            f"command that began it again, which goes on, or give the folder of a fold"
        )
    if not (test / PREDICTIONS).is_file():
        raise DataError(
            f"{test / PREDICTIONS}: there is no such file; give the folder of a run that had test images, or add DATA "
            f"to test its network on"
        )
    predictions = read_predictions(test / PREDICTIONS)
    found = calibration.fit(read_predictions(val)) if val.is_file() else results.read_calibration(run)
    names = (METRICS, CALIBRATED, MEDMNIST)
    recorded = {name: _recorded(test / name) for name in names}
    if found is not None:
        write_json(run / CALIBRATION, found.to_dict())
    metrics = results.write_figures(test, predictions, found, published=recorded[MEDMNIST] is not None)
    answering.write_again(run, found)
    _tell(metrics, options.json)
    print(f"report: {report.write_report(run).resolve()}")
    after = {name: _recorded(test / name) for name in names}
    before = recorded
    for name in (METRICS, CALIBRATED):
        if (old := recorded[name]) and (new := after[name]):
            before = before | {name: results.with_methods_of(new, old)}
    changed = [
        f"{name}: {what}"
        for name in names
        if before[name] is not None
        for what in results.differences(before[name] or {}, after[name] or {})
    ]
    if changed:
        print(
            f"\nthe recorded metrics did not match the predictions and have been corrected: "
            f"{', '.join(changed[:_MOST_DIFFERENCES])}"
        )
        if len(changed) > _MOST_DIFFERENCES:
            print(f"and {len(changed) - _MOST_DIFFERENCES} more")
    elif before[METRICS] is not None:
        how = "to the last digit" if before == after else "up to rounding"
        print(f"every metric matches the recorded one, {how}")
        if before != recorded:
            print("what an earlier version computed otherwise, or not at all, is now as this version computes it")
    say_next(("test the network on other images", pasted("medmambase-evaluate", run, "other")))
    return DIFFERENT if changed else 0


def _tell(metrics: AnyMetrics, file: Path | None, note: str = "") -> None:
    """Print the metrics and a note, without one what is known of patients; write the metrics to the
    file of --json too, if there is one."""
    print(f"{summary(metrics)}\n{headline(metrics).sentence}")
    if said := note or about_patients(headline(metrics).metrics):
        print(f"note: {said}")
    if file:
        write_json(file, metrics.to_dict())


def _recorded(path: Path) -> dict[str, object] | None:
    try:
        values = read_json(path) if path.is_file() else None
    except (OSError, ValueError):
        return {}  # not JSON any more: everything in it differs
    return values if isinstance(values, dict) or values is None else {}


def _try(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Test the run's network on images of DATA; write the results to a new folder."""
    run, source = options.run, options.data
    folds = run_folder.folds_of(run)
    network, device = load_ensemble(run) if folds else load_network(run), console.device(options.device)
    found = read_images(
        source,
        group_regex=options.group_regex,
        group_column=options.group_column,
        frames=options.frames,
        class_names=options.class_names,
        labels=options.labels,
    )
    tried = held_out.examine(run, network, found, console.progress, options.class_names)
    for note in tried.notes:
        print(f"note: {note}")
    folder = run_folder.create(run / EVALUATIONS, options.name or source.resolve().stem)
    skipped, notes = session.skipped(tried.bad, found.root), list(map(privacy.without_paths, tried.notes))
    run_folder.write_json(folder / DATA_REPORT, {"root": found.root.name, "skipped": skipped, "notes": notes})
    for error in tried.bad:
        print(f"skipped: {error}")
    command = privacy.command("medmambase-evaluate", words)
    results.note_access(run, privacy.last_name(str(source)), len(tried.images.labels), command)
    dtype, _ = choose_precision("auto", device)
    limits, learned, watch = Limits.read(run_of(run)), results.read_calibration(run), Watch(network.to(device))
    limits.check(watch.widths)
    with watch:
        predictions = of_a_run.predicted(network, tried.images, tried.seen, options.batch_size, dtype)
    published = source.suffix.casefold() == ".npz"
    metrics = of_a_run.test(folder, predictions, tried.images, learned, published)
    temperature = learned.temperature if learned else 1.0
    answering.write(folder, predictions, limits, temperature, limits.distance(watch.take()))
    print()
    _tell(metrics, options.json)
    if published:
        print(benchmark(as_medmnist(predictions.labels, predictions.probabilities)))
    print(f"\nresults: {folder.resolve()}")
    print(f"report: {report.write_report(run_of(run), folder).resolve()}")
    say_next(
        (
            "see what the network looks at there",
            pasted("medmambase-explain", *(folds[:1] or [run]), source if source.is_dir() else "images"),
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
