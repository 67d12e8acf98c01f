"""Define the flags of ``medmambase-explain``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmambase.commands.flags import Parser, add_device, new_parser, positive

MOST = 96  # images that are looked at; more would change the means little


def parser() -> Parser:
    """Return the parser of all flags."""
    found = new_parser(
        "medmambase-explain",
        description="Draw what a network looks at: where the evidence for the class lies, which places each of the "
        "four scans takes in, and how squeeze-and-excitation weights the channels; and test whether the evidence map "
        "can be trusted.",
        epilog="exit code: 0 ok, 2 usage, 3 data, 4 environment, 130 interrupted",
    )
    found.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    found.add_argument(
        "images",
        type=Path,
        metavar="IMAGES",
        help="an image, a frame of one (clip.gif#07), or a folder with images at any depth; images below a folder "
        "named after a class count as images of that class",
    )
    found.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for the pictures; those of an earlier call are replaced (default: a new one in RUN/explanations)",
    )
    found.add_argument("--most", type=positive, default=MOST, help="maximum number of images to explain (%(default)s)")
    add_device(found)
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; None: those of the command line. Raises SystemExit for --help, --version and
    wrong flags."""
    return parser().read(words, "give the folder that holds the images, or one image at a time")
