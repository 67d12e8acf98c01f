"""Define the flags of ``medmambase-doctor``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmambase.commands.flags import Parser, new_parser


def parser() -> Parser:
    """Return the parser of all flags."""
    found = new_parser(
        "medmambase-doctor",
        description="Examine this machine: Python, PyTorch, Triton, card, driver, folders; then run a small "
        "kernel, and compare the scan with float64.",
        epilog="exit code: 0 ready, 2 usage, 4 not ready",
    )
    found.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write everything to FILE (doctor.json) for a bug report, without your user name and paths",
    )
    found.add_argument("--paths", action="store_true", help="with --json: keep user name and paths")
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; None: those of the command line. Raises SystemExit for --help, --version and
    wrong flags."""
    return parser().read(words)
