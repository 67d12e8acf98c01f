"""Define the flags of ``medmambase-check``."""

import argparse
from collections.abc import Sequence

from medmambase.commands.flags import Parser, new_parser
from medmambase.settings import TYPES, Settings, from_text, resolve
from medmambase.settings_file import flag

SETTINGS = {
    "group_regex": 'regular expression that finds the patient in an image\'s path, such as "(patient\\d+)"',
    "group_column": "the CSV column that names the patient",
    "class_names": "other names for classes: 0=malignant,1=benign",
    "labels": "columns of a CSV that hold 0 or 1, one for each class, where an image may have several: cyst,stone",
    "frames": "which frames of a file that has several are images: first, middle, all, or a number of them (first)",
    "plain_patients": "name patients in the report's files as the data does, instead of by pseudonyms",
    "image_size": "has no effect: images are always compared at the same size",
    "seed": "random seed for splits that the data does not define (0)",
    "split_seed": "random seed of splits alone, as in medmambase-train (default: that of --seed)",
    "splits": "a table (columns path,split) that puts each image into a split",
    "keep_duplicates_together": "draw splits that do not separate duplicates, as medmambase-train does",
    "runs": "folder in which the report folder is created (runs)",
    "name": "name of the report folder (default: the name of the data, with -check)",
}
METAVARS = {
    "group_regex": "REGEX", "group_column": "COLUMN", "class_names": "CLASS=NAME,...", "labels": "COLUMN,...",
    "frames": "first|middle|all|N", "splits": "FILE", "runs": "FOLDER", "name": "NAME",
}  # fmt: skip  # of those that are no numbers


def parser() -> Parser:
    """Return the parser of all flags."""
    found = new_parser(
        "medmambase-check",
        description="Check images before training: find files that cannot be read, duplicates, duplicates of "
        "different classes, patients in two splits.",
        epilog="exit code: 0 no problems found, 1 problems, duplicates or several DICOM modalities found, 2 usage, "
        "3 data, 4 environment",
    )
    found.add_argument(
        "data",
        metavar="DATA",
        help="anything that medmambase-train accepts: a folder, a CSV, a MedMNIST .npz, FETAL_PLANES_DB",
    )
    for name, words in SETTINGS.items():
        if TYPES[name] is bool:
            found.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None, help=words)
        else:
            found.add_argument(flag(name), metavar=METAVARS.get(name, "N"), help=words)
    return found


def parse(words: Sequence[str] | None) -> Settings:
    """Read the flags; None: those of the command line. Raises SystemExit for --help, --version and
    wrong flags, and ConfigError for a wrong value."""
    given = {name: value for name, value in vars(parser().read(words)).items() if value is not None}
    return resolve({name: from_text(name, value) if isinstance(value, str) else value for name, value in given.items()})
