"""``medmambase-compare A B``: test whether one network is better than another on the same images.

Each of A and B is a run, or several runs that differ in their seeds.
"""

import argparse
import glob
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from medmambase.commands import compare_flags, console
from medmambase.commands.next_steps import pasted, say_next
from medmambase.config import ConfigError
from medmambase.evaluation import comparison
from medmambase.evaluation.predictions import Predictions, read_predictions
from medmambase.files import write_json
from medmambase.run_folder import PREDICTIONS, SPLITS, TEST

SHOWN = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "AUC", "macro/f1": "mean F1",
    "macro/ap": "mean AP", "mcc": "MCC", "kappa": "kappa", "brier": "Brier score", "ece": "calibration error",
}  # fmt: skip  # figures and their names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 1 the predictions cannot be compared, 2
    usage, 3 data, 4 environment, 130 interrupted."""
    options = compare_flags.parse(arguments)
    return console.guarded("medmambase-compare", lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    first, second = _sides(options)
    firsts, seconds = ([_read(path) for path in side] for side in (first, second))
    found = comparison.compare(firsts, seconds)
    images, patients = len(firsts[0].names), len(set(firsts[0].clusters.tolist()))
    print(f"A: {', '.join(map(str, first))}\nB: {', '.join(map(str, second))}")
    print(
        f"{images} test images{f' of {patients} patients' if patients < images else ''}; intervals at 95 "
        f"%{', by patients' if patients < images else ''}\n"
    )
    print(f"{'':18}{'A':>8}{'B':>8}{'B - A':>9}   {'interval':17}  p")
    for name, words in SHOWN.items():
        one = found.get(name)
        if one is not None:
            between = f"{one.interval.low:+.3f} to {one.interval.high:+.3f}" if one.interval else "n/a"
            print(f"{words:18}{one.first:8.3f}{one.second:8.3f}{one.difference:+9.3f}   {between:17}  {_p(one.p)}")
    if max(len(firsts), len(seconds)) > 1:
        print("\nspread between seeds (standard deviation):")
        for name in ("accuracy", "balanced_accuracy", "auc"):
            sides = (
                [_spread(values) for values in (found[name].firsts, found[name].seconds)]
                if name in found
                else ["n/a", "n/a"]
            )
            print(f"  {SHOWN[name]:18} A {sides[0]}   B {sides[1]}")
        if min(len(firsts), len(seconds)) == 1:
            print("one side has only one run: its intervals do not include the variation between seeds")
    else:
        print("\none run on each side: another seed may change the result; give several runs of each to find out")
    tests = _tests(firsts, seconds)
    if options.json:
        write_json(options.json, {
            "first": list(map(str, first)), "second": list(map(str, second)), "images": images, "patients": patients,
            "figures": {name: asdict(one) | {"difference": one.difference} for name, one in found.items()},
            "pairs": tests,
        })  # fmt: skip  # the file's content
    print(f"\n{comparison.conclusion(found)}")
    again = first[0] / SPLITS
    if max(len(firsts), len(seconds)) == 1 and again.is_file():
        say_next(("train again with another seed on the same splits", pasted("medmambase-train", again, "--seed", "1")))
    else:
        say_next(("all figures of one of them again", pasted("medmambase-evaluate", first[0])))
    return 0


def _tests(firsts: Sequence[Predictions], seconds: Sequence[Predictions]) -> list[dict[str, object]]:
    """Print and return DeLong's and McNemar's test for each pair of runs. Both treat every image as
    a separate patient."""
    told: list[dict[str, object]] = []
    classes = firsts[0].classes
    columns = [1] if len(classes) == 2 else range(len(classes))
    print("\neach pair of runs; these two tests treat every image as a separate patient:")
    for number, (one, other) in enumerate(zip(firsts, seconds, strict=False), start=1):
        called = comparison.mcnemar(one, other)
        areas = {classes[column]: comparison.delong_test(one, other, column) for column in columns}
        print(
            f"  pair {number}  McNemar: correct only in A {called.only_first}, only in B {called.only_second}, p "
            f"{_p(called.p)}"
        )
        for name, (difference, error, p) in areas.items():
            if not math.isnan(difference):  # as a class without images has it
                print(f"          DeLong, {name}: AUC {difference:+.3f} (standard error {error:.3f}), p {_p(p)}")
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
            f"got {len(options.runs)} runs; give two, or several of each: medmambase-compare A1 A2 A3 "
            f"--against B1 B2 B3"
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
                f"{pattern}: no run has this name, and no file matches it as a pattern; give run folders, or files "
                f"of predictions"
            )
        found += matching
    return [Path(path) for path in found]


def _read(path: Path) -> Predictions:
    return read_predictions(path if path.is_file() else path / TEST / PREDICTIONS)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.stdev(values):.3f} of {len(values)}" if len(values) > 1 else "one run"


def _p(p: float | None) -> str:
    return "n/a" if p is None or math.isnan(p) else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


if __name__ == "__main__":
    sys.exit(main())
