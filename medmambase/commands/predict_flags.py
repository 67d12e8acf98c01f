"""Define the flags of ``medmambase-predict``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmambase.commands.flags import add_device, new_parser, positive


def parser() -> argparse.ArgumentParser:
    """Return the parser of all flags."""
    found = new_parser(
        "medmambase-predict",
        description="Predict every image below a folder. A file that cannot be read becomes a row with the reason. "
        "For research only, not for diagnosis.",
        epilog="columns: path, predicted, probability, prob_<class> for each class, error. Exit code: 0 ok, 2 usage, "
        "3 data, 4 environment, 130 interrupted",
    )
    found.add_argument("run", type=Path, metavar="RUN", help="a run folder, or the folder of a network")
    found.add_argument("images", type=Path, metavar="IMAGES", help="an image, or a folder with images at any depth")
    found.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT.csv",
        help="the CSV file to write; an existing file is replaced",
    )
    found.add_argument(
        "--calibrated",
        action="store_true",
        help="calibrate the probabilities with the temperature fitted on the run's validation images",
    )
    found.add_argument("--batch-size", type=positive, default=16, help="images per batch (%(default)s)")
    add_device(found)
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; None: those of the command line. Raises SystemExit for --help, --version and
    wrong flags."""
    return parser().parse_args(words)
