"""Make the parsers of all commands: --version, flags that several commands have, types of values.

Like every ``*_flags.py`` it imports neither PyTorch nor NumPy, which take seconds to load: --help,
--version and a wrong flag are answered at once.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import NoReturn

from medmambase import __version__
from medmambase.config import check_frames


class Parser(argparse.ArgumentParser):
    """Report what is wrong with the arguments in one line: the usage of many flags would only hide
    it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}; {self.prog} --help lists everything\n")

    def read(self, words: Sequence[str] | None, advice: str = "leave it out") -> argparse.Namespace:
        """Read the arguments; None: those of the command line. ``advice``: what to do about one too
        many. Raises SystemExit for --help, --version, and, with code 2 and one line, for what is
        wrong."""
        given = sys.argv[1:] if words is None else list(words)
        self.refuse_unknown(given)
        if rest := self.parse_known_args(given)[1]:
            short = rest[0].startswith("-")
            self.error(f"there is no flag {rest[0]}" if short else f"{rest[0]!r} is one argument too many; {advice}")
        return self.parse_args(given)

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Raise SystemExit for a flag that does not exist, and name the nearest; before anything
        that is missing, since it may have been meant for that."""
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in words:
            flag = word.partition("=")[0]
            if flag == "--":
                return
            if flag.startswith("--") and flag not in known:
                near = difflib.get_close_matches(flag, known, n=1)  # one that has something in common, or none
                self.error(f"there is no flag {flag}{f'; the nearest is {near[0]}' if near else ''}")


def new_parser(program: str, description: str, epilog: str, *, usage: str | None = None) -> Parser:
    """Return a parser with ``--help`` and ``--version``, which takes no shortened flags."""
    found = Parser(program, usage, description, epilog, allow_abbrev=False)
    found.add_argument("--version", action="version", version=f"medmambase {__version__}", help="print the version")
    return found


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")


def add_frames(parser: argparse.ArgumentParser, when: str = "") -> None:
    """Add ``--frames``; ``when`` it has an effect."""
    parser.add_argument(
        "--frames",
        type=_frames,
        metavar="first|middle|all|N",
        help=f"{when}which frames of a file that has several are images: first, middle, all, or N evenly spaced ones "
        "(default: first)",
    )


def _frames(text: str) -> str:
    try:
        return check_frames(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {error}") from error


def positive(text: str) -> int:
    """Convert an argument to a whole number of at least 1, for argparse."""
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number
