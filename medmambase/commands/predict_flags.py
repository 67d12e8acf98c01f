"""Define the flags of ``medmambase-predict``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmambase.commands.flags import Parser, add_device, add_frames, new_parser, positive


def parser() -> Parser:
    """Return the parser of all flags."""
    found = new_parser(
        "medmambase-predict",
        description="Predict every image below a folder. A file that cannot be read becomes a row with the reason. "
        "For research only, not for diagnosis.",
        epilog="Columns: path, predicted, probability, prob_<class> for each class, error, patient, note, unlike, "
        "set; with --at also called, threshold; with --by-patient (or --by-file): patient (or path), predicted, "
        "probability, prob_<class>, images, unread, noted, unlike. A frame is path#number. "
        "Exit code: 0 ok, 2 usage, 3 data, also if nothing could be read, 4 environment, 130 interrupted",
    )
    found.add_argument(
        "run", type=Path, metavar="RUN", help="the folder of a run, of a cross-validation or of a network"
    )
    found.add_argument("images", type=Path, metavar="IMAGES", help="an image, or a folder with images at any depth")
    found.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT.csv",
        help="the CSV file to write; an existing file is replaced (default: print the first 20 rows)",
    )
    found.add_argument(
        "--calibrated",
        action="store_true",
        help="calibrate the probabilities with the temperature that was fitted on the run's validation images",
    )
    found.add_argument(
        "--at",
        metavar="CLASS:sensitivity=X",
        help="also say which images reach the threshold that has this sensitivity (or specificity=X) on the run's "
        "validation images; with --calibrated it is a threshold of calibrated probabilities",
    )
    found.add_argument(
        "--by-patient",
        choices=("mean", "max"),
        help="one row for each patient: the mean, or the largest, of the probabilities of the patient's images",
    )
    found.add_argument(
        "--by-file",
        choices=("mean", "max"),
        help="one row for each file: the mean, or the largest, of the probabilities of its frames",
    )
    add_frames(found)
    found.add_argument(
        "--group-regex",
        metavar="REGEX",
        help='regular expression that finds the patient in an image\'s path, such as "(patient\\d+)" (default: the '
        "PatientID of DICOM files)",
    )
    found.add_argument(
        "--digits", type=positive, metavar="N", help="round probabilities to N decimals (default: all digits in a file)"
    )
    found.add_argument("--batch-size", type=positive, default=16, help="images per batch (%(default)s)")
    add_device(found)
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; None: those of the command line. Raises SystemExit for --help, --version and
    wrong flags."""
    chosen = parser()
    options = chosen.read(words, "give the folder that holds the images, or one image at a time")
    if options.by_file and options.by_patient:
        chosen.error("--by-file and --by-patient both say what has a row; give one of them")
    return options
