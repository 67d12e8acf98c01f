"""``medmambase-compare A B``: test whether one network is better than another on the same images.

Each of A and B is a run, or several runs that differ in their seeds.
"""

import argparse
import glob
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medmambase.commands import compare_flags, compared_runs, console, guard
from medmambase.commands.compared_runs import name_of, table_of
from medmambase.commands.next_steps import pasted, say_next
from medmambase.commands.trained_again import other_seeds
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.evaluation import comparison
from medmambase.evaluation.by_patient import of_patients
from medmambase.evaluation.comparison import Difference
from medmambase.evaluation.predictions import Predictions, read_predictions
from medmambase.evaluation.report.compare_page import Compared, p_value, write_compare_page
from medmambase.evaluation.report.results import calibration_of
from medmambase.files import write_json
from medmambase.plural import count_of
from medmambase.run_folder import PREDICTIONS, TEST

SHOWN = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "AUC", "macro/f1": "mean F1",
    "macro/ap": "mean AP", "mcc": "MCC", "kappa": "kappa", "subset_accuracy": "subset accuracy",
    "hamming_loss": "Hamming loss", "brier": "Brier score", "ece": "calibration error",
}  # fmt: skip  # figures and their names
# What the file of --json holds, in words.
UNITS = {
    "figures": "from 0 to 1; mcc and kappa from -1 to 1, brier from 0 to 2 (of two classes half the sum, from 0 to "
    "1); of brier, ece and hamming_loss lower is better",
    "figures of a class": "0/auc is that of the first of the classes, 1/auc of the second",
    "difference": "second less first", "delong": "difference of AUC (second less first), its standard error, p",
    "mcnemar": "images that only one of the two calls right, p",
    "by_patient": "the same counted in patients, each by the mean of the calibrated probabilities of its images",
}  # fmt: skip  # a list
TESTS = {
    "figures": "Student's t of the difference; its variance is that of a bootstrap, and, of several runs, that "
    "between the runs of a side (Welch)",
    "delong": "DeLong's paired test, two-sided; every image as a separate patient, but in by_patient",
    "mcnemar": "McNemar's exact test, two-sided; every image as a separate patient, but in by_patient",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 1 the predictions cannot be compared, 2
    usage, 3 data, 4 environment, 130 interrupted."""
    options = compare_flags.parse(arguments)
    return console.guarded("medmambase-compare", lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    for flag, path in (("-o", options.output), ("--json", options.json)):
        if path:
            guard.check_file(flag, path)
    first, second = _sides(options)
    compared_runs.refuse_twice((first, second))
    (firsts, seconds), notes = comparison.matched([[_read(path) for path in side] for side in (first, second)])
    differing = compared_runs.differences((first, second))
    varied = compared_runs.vary_in((first, second))
    found = comparison.compare(firsts, seconds, varied)
    images, every = len(firsts[0].names), firsts[0].patients
    patients = len(set(every)) if all(every) else None  # of an image whose patient is not known nobody knows
    print(f"A: {', '.join(map(str, first))}\nB: {', '.join(map(str, second))}\n{compared_runs.in_words(differing)}")
    of, over = f" of {count_of(patients, 'patient')}" if patients else "", ", over patients" if any(every) else ""
    print(f"{count_of(images, 'test image')}{of}; intervals at 95 %{over}")
    notes += compared_runs.same_training((first, second), (firsts, seconds))
    notes += [*compared_runs.same_across((first, second), (firsts, seconds)), *_seeds(len(firsts), len(seconds))]
    notes += compared_runs.calibrated_alone((first, second))
    for note in notes:
        print(f"note: {note}")
    _print_figures(found)
    if max(len(firsts), len(seconds)) > 1:
        print(f"\nspread between {varied} (standard deviation):")
        for name in ("subset_accuracy" if "subset_accuracy" in found else "accuracy", "balanced_accuracy", "auc"):
            one = found.get(name)
            sides = ["n/a", "n/a"] if one is None else [_spread(values) for values in (one.firsts, one.seconds)]
            print(f"  {SHOWN[name]:18} A {sides[0]}   B {sides[1]}")
    tests, conclusion = _tests(firsts, seconds, "images"), comparison.conclusion(found)
    by_patient = _by_patient((first, second), (firsts, seconds), varied)
    names = [list(map(name_of, side)) for side in (first, second)]
    if options.json:
        write_json(options.json, {
            "first": names[0], "second": names[1], "images": images, "patients": patients,
            "classes": firsts[0].classes, "differ_in": differing, "tests": TESTS,
            "units": UNITS | {"intervals": "patients" if any(every) else "images"},
            "figures": _as_json(found), "pairs": tests, "notes": notes, "conclusion": conclusion,
            "by_patient": by_patient and asdict(by_patient) | {"figures": _as_json(by_patient.figures)},
        })  # fmt: skip  # the file's content
    print(f"\n{conclusion}")
    if by_patient:
        print(f"Counted in patients: {by_patient.conclusion}")
    if options.output:
        told = [compared_runs.in_words(differing), *notes]
        whole = Compared(images, 0, found, tests, conclusion)
        page = write_compare_page(options.output, names, patients, told, whole, by_patient, SHOWN)
        print(f"page: {page.resolve()}")
    say_next(*_steps(first, second, differing))
    return 0


def _print_figures(found: Mapping[str, Difference]) -> None:
    print(f"\n{'':18}{'A':>8}{'B':>8}{'B - A':>9}   {'interval':17}  p")
    for name, words in SHOWN.items():
        one = found.get(name)
        if one is not None:
            between = f"{one.interval.low:+.3f} to {one.interval.high:+.3f}" if one.interval else "n/a"
            print(f"{words:18}{one.first:8.3f}{one.second:8.3f}{one.difference:+9.3f}   {between:17}  {p_value(one.p)}")


def _as_json(found: Mapping[str, Difference]) -> dict[str, dict[str, Any]]:
    return {name: asdict(one) | {"difference": one.difference} for name, one in found.items()}


def _by_patient(
    sides: Sequence[Sequence[Path]], predictions: Sequence[Sequence[Predictions]], varied: str
) -> Compared | None:
    """Compare the runs counted in patients, print and return what was found; None where no patient
    has several images, or none has a class."""
    found = [
        [of_patients(one, calibration_of(table_of(path))) for path, one in zip(*side, strict=True)]
        for side in zip(sides, predictions, strict=True)
    ]
    one = found[0][0]
    if one is None:
        return None
    left_out = f"{count_of(one.left_out, 'patient')} left out, whose images have different labels"
    if not one.predictions.names:
        print(f"\nno figures counted in patients: {left_out}")
        return None
    firsts, seconds = ([patients.predictions for patients in side if patients] for side in found)
    differences = comparison.compare(firsts, seconds, varied)
    told = f", {left_out}" if one.left_out else ""
    print(
        f"\ncounted in patients ({len(one.images)}{told}), by the mean of the calibrated probabilities of each one's "
        f"images:"
    )
    _print_figures(differences)
    tests = _tests(firsts, seconds, "patients")
    return Compared(len(one.images), one.left_out, differences, tests, comparison.conclusion(differences, "patients"))


def _steps(
    first: Sequence[Path], second: Sequence[Path], differing: dict[str, tuple[list[str], list[str]]] | None
) -> list[tuple[str, str]]:
    """What can be done next: of one run on each side, train each with two other seeds, unless they
    are two seeds of the same settings themselves, or one training."""
    steps = []
    if len(first) == len(second) == 1 and (differing is None or differing.keys() - {"seed"}):
        for side, run in (("A", first[0]), ("B", second[0])):
            if commands := other_seeds(run, comparison.SEEDS - 1):
                steps.append((f"train {side} with other seeds, and compare them all", "\n  ".join(commands)))
    return steps or [("see all metrics of one of them", pasted("medmambase-evaluate", first[0]))]


def _seeds(first: int, second: int) -> list[str]:
    """Say what the intervals leave out, where a side has one run only."""
    if max(first, second) == 1:
        return ["there is one run on each side: the intervals do not include the variation between seeds"]
    if min(first, second) == 1:
        return ["one side has only one run: its intervals do not include the variation between seeds"]
    return []


def _tests(firsts: Sequence[Predictions], seconds: Sequence[Predictions], of: str) -> list[dict[str, Any]]:
    """Print and return DeLong's and McNemar's test for each pair of runs, ``of`` images or of
    patients. Both treat every row as independent of the others: every image as a separate
    patient."""
    told: list[dict[str, Any]] = []
    classes = firsts[0].classes
    columns = firsts[0].task.told_apart(len(classes))
    print(f"\neach pair of runs{'; these two tests treat every image as a separate patient' * (of == 'images')}:")
    for number, (one, other) in enumerate(zip(firsts, seconds, strict=False), start=1):
        called = comparison.mcnemar(one, other)
        areas = {classes[column]: comparison.delong_test(one, other, column) for column in columns}
        print(
            f"  pair {number}  McNemar: correct only in A {called.only_first}, only in B {called.only_second}, p "
            f"{p_value(called.p)}"
        )
        for name, (difference, error, p) in areas.items():
            if not math.isnan(difference):  # as a class without images has it
                print(f"          DeLong, {name}: AUC {difference:+.3f} (standard error {error:.3f}), p {p_value(p)}")
        told.append(
            {
                "mcnemar": asdict(called),
                "delong": {
                    name: [None if math.isnan(value) else value for value in values] for name, values in areas.items()
                },
            }
        )
    return told


def _sides(options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    if options.against:
        return _matching(options.runs), _matching(options.against)
    if len(options.runs) != 2:
        raise ConfigError(
            f"two runs are compared, and {count_of(len(options.runs), 'was', 'were')} given; give two, or several on "
            f"each side: medmambase-compare A1 A2 A3 --against B1 B2 B3"
        )
    return _matching(options.runs[:1]), _matching(options.runs[1:])


def _matching(patterns: Sequence[str]) -> list[Path]:
    """Return paths as they are, and expand patterns that are no path: no console on Windows does
    that."""
    found = []
    for pattern in patterns:
        matching = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))  # noqa: PTH207  # a pattern may begin at the root, which Path.glob refuses
        if not matching:
            raise ConfigError(
                f"{pattern}: no run has this name, and nothing matches it as a pattern; give run folders, or "
                f"{PREDICTIONS} files"
            )
        found += matching
    return [Path(path) for path in found]


def _read(path: Path) -> Predictions:
    table = table_of(path)
    if not table.is_file():
        raise DataError(
            f"{path}: has no {TEST}/{PREDICTIONS}; give the folders of runs that had test images, or tables"
        )
    return read_predictions(table)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.stdev(values):.3f} ({len(values)} runs)" if len(values) > 1 else "(one run)"


if __name__ == "__main__":
    sys.exit(main())
