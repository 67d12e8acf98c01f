"""Define the flags of ``medmambase-compare``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmambase.commands.flags import Parser, new_parser


def parser() -> Parser:
    """Return the parser of all flags."""
    found = new_parser(
        "medmambase-compare",
        usage="medmambase-compare A B, or medmambase-compare A1 A2 A3 --against B1 B2 B3",
        description="Compare two networks on the same test images: every metric with the interval of its difference, "
        "DeLong's and McNemar's tests.",
        epilog="Each RUN is a run folder or a predictions.csv. With several seeds on each side, the answer is about "
        "the networks, not about two training runs.",
    )
    found.add_argument("runs", nargs="+", metavar="RUN", help='a run folder, or a quoted pattern: "runs/plain-*"')
    found.add_argument("--against", nargs="+", metavar="RUN", help="the runs of side B")
    found.add_argument(
        "-o", "--output", type=Path, metavar="PAGE.html", help="also write the results to a page that works offline"
    )
    found.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a JSON file")
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; None: those of the command line. Raises SystemExit for --help, --version and
    wrong flags."""
    return parser().read(words)
