"""Define the flags of ``medmambase-export``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmambase.commands.flags import Parser, new_parser

FORMATS = ("onnx", "pt2")


def parser() -> Parser:
    """Return the parser of all flags."""
    found = new_parser(
        "medmambase-export",
        description="Write the network of a run as a file that other programs read without medmambase: uint8 images "
        "in, calibrated probabilities out. The file is run on the run's test images, and stays only if it gives the "
        "same answers. For research only, not for diagnosis.",
        epilog="exit code: 0 ok, 1 the network cannot be exported or the file would differ, 2 usage, also if a package "
        "is missing, 3 data, 4 environment, 130 interrupted",
    )
    found.add_argument(
        "run", type=Path, metavar="RUN", help="the folder of a run, of a cross-validation or of a network"
    )
    found.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the file to write; an existing file is replaced (default: model.onnx or model.pt2 in RUN)",
    )
    found.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="onnx, for onnxruntime and its like, which needs pip install medmambase[onnx]; or pt2, for "
        "torch.export.load (%(default)s)",
    )
    found.add_argument(
        "--images",
        type=Path,
        metavar="DATA",
        help="images to compare the file on, in any form that medmambase-train accepts (default: the run's own test "
        "images)",
    )
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; None: those of the command line. Raises SystemExit for --help, --version and
    wrong flags."""
    return parser().read(words)
