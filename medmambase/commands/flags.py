"""Make the parsers of all commands: --version, flags that several commands have, types of values.

Like every ``*_flags.py`` it imports neither PyTorch nor NumPy, which take seconds to load: --help,
--version and a wrong flag are answered at once.
"""

import argparse

from medmambase import __version__


def new_parser(
    program: str,
    description: str,
    epilog: str,
    *,
    usage: str | None = None,
    kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """Return a parser with ``--help`` and ``--version``, which takes no shortened flags."""
    found = kind(program, usage, description, epilog, allow_abbrev=False)
    found.add_argument("--version", action="version", version=f"medmambase {__version__}", help="print the version")
    return found


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")


def positive(text: str) -> int:
    """Convert an argument to a whole number of at least 1, for argparse."""
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number
