"""Define the flags of ``medmambase-serve``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmambase.commands.flags import Parser, add_device, new_parser, positive

PORT = 8765
MOST = 100  # MB of an image


def parser() -> Parser:
    """Return the parser of all flags."""
    found = new_parser(
        "medmambase-serve",
        description="Serve a page on which images are dropped: for each its class, the calibrated probabilities, and "
        "what the network looks at. Nothing is written to disk, and nothing leaves this computer. Ctrl-C ends it. For "
        "research only, not for diagnosis.",
        epilog="exit code: 0 ended by Ctrl-C, 2 usage, 3 data, 4 environment",
    )
    found.add_argument(
        "run", type=Path, metavar="RUN", help="the folder of a run, of a cross-validation or of a network"
    )
    found.add_argument("--open", action="store_true", help="open the page in the browser")
    found.add_argument("--port", type=_port, default=PORT, help="0 takes any that is free (%(default)s)")
    found.add_argument(
        "--at",
        metavar="CLASS:sensitivity=X",
        help="begin with the operating point that has this sensitivity (or specificity=X) on the run's validation "
        "images",
    )
    found.add_argument(
        "--max-mb", type=positive, default=MOST, metavar="MB", help="the largest image that is taken (%(default)s)"
    )
    found.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (%(default)s: this computer alone reaches it)"
    )
    found.add_argument(
        "--allow-network",
        action="store_true",
        help="let --host be an address that others reach: whoever does can use the page, unencrypted and without a "
        "password",
    )
    add_device(found)
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; None: those of the command line. Raises SystemExit for --help, --version and
    wrong flags."""
    return parser().read(words, "images are dropped on the page")


def _port(text: str) -> int:
    number = int(text) if text.strip().isdecimal() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 65535")
    return number
