"""Define the flags of ``medmambase-evaluate``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmambase.commands.flags import Parser, add_device, add_frames, new_parser, positive


def parser() -> Parser:
    """Return the parser of all flags."""
    found = new_parser(
        "medmambase-evaluate",
        description="Compute the metrics, figures and report of a run again from its predictions.csv; or, with DATA, "
        "test its network on other images.",
        epilog="exit code: 0 ok, 1 the recorded metrics did not match the predictions, 2 usage, 3 data, 4 environment",
    )
    found.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a run folder; or a predictions.csv, to print its metrics",
    )
    found.add_argument(
        "data",
        type=Path,
        nargs="?",
        metavar="DATA",
        help="labelled images in any form that medmambase-train accepts: their test split, or else all of them (of "
        "the run's own data its test images)",
    )
    found.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write all metrics and intervals to FILE, as in test/metrics.json of a run",
    )
    found.add_argument(
        "--name", help="with DATA: name of the folder of results below RUN/evaluations (default: the name of DATA)"
    )
    found.add_argument(
        "--group-regex",
        metavar="REGEX",
        help="with DATA: regular expression for the patient in a path; intervals count patients",
    )
    found.add_argument("--group-column", metavar="COLUMN", help="with DATA: the CSV column that names the patient")
    found.add_argument(
        "--class-names",
        metavar="CLASS=NAME,...",
        help="with DATA: the network's names for its classes, where they differ: 0=malignant,1=benign",
    )
    found.add_argument(
        "--labels",
        metavar="COLUMN,...",
        help="with DATA: columns of a CSV that hold 0 or 1, one for each class, where an image may have several",
    )
    add_frames(found, "with DATA: ")
    found.add_argument("--batch-size", type=positive, default=32, help="with DATA: images per batch (%(default)s)")
    add_device(found)
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; None: those of the command line. Raises SystemExit for --help, --version and
    wrong flags."""
    return parser().read(words)
