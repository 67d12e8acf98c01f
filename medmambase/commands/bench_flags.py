"""Define the flags of ``medmambase-bench``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from medmambase.commands.flags import Parser, add_device, new_parser
from medmambase.config import PRESETS
from medmambase.settings import Engine

# What the kernels' bench can measure, written here again because it imports PyTorch; a test
# compares them.
OPERATORS = ("selective_scan", "selective_scan_2d", "squeeze_excite", "gated_norm", "depthwise_silu", "causal_conv1d")
DTYPES = ("float32", "bfloat16", "float16")
SIZES = (128, 224)


def parser() -> Parser:
    """Return the parser of all flags."""
    found = new_parser(
        "medmambase-bench",
        description="Check the operators against their definition, then time them, on the GPU if there is one, else "
        "on the CPU.",
        epilog="exit codes: 0 ok, 1 a check failed (what failed is not timed), 2 usage, 4 environment",
    )
    add_device(found)
    found.add_argument(
        "--backend", choices=get_args(Engine), help="the backend to measure (default: the fastest that runs here)"
    )
    found.add_argument(
        "--operator",
        nargs="*",
        choices=OPERATORS,
        default=OPERATORS,
        help="which operators to time (default: all; without a name: none)",
    )
    found.add_argument(
        "--size", nargs="+", type=int, choices=SIZES, help="width and height of the image in pixels (default: both)"
    )
    found.add_argument(
        "--stages",
        nargs="+",
        type=int,
        choices=(1, 2, 3, 4),
        help="stages of the network tiny, 96 to 768 channels wide (default: all)",
    )
    found.add_argument("--batch", nargs="+", type=_at_least(1), help="images at a time (default: 1 16 64)")
    found.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        help="dtypes of the inputs (default: float32, on a GPU bfloat16 as well)",
    )
    found.add_argument(
        "--repeat",
        type=_at_least(3),
        help="how often to repeat each measurement (default: up to 20 times in 2 seconds, at least 3)",
    )
    found.add_argument(
        "--compare", type=_at_least(0.0), metavar="M",
        help="also time the original code in eager PyTorch, up to M million state elements (batch x directions x "
        "channels x states x length), which take about 40 bytes each (default: 32 on a CPU, 512 on a GPU; 0: never)",
    )  # fmt: skip  # one argument list
    found.add_argument(
        "--network",
        nargs="?",
        const="tiny",
        choices=PRESETS,
        help="also time a training step and a prediction of this network, once its operators equal their definitions "
        "on its maps (without a name: tiny)",
    )
    found.add_argument(
        "--sweep",
        action="store_true",
        help="time the other launches of the Triton scans instead, beside those that the launch table picks; not with "
        "--network or --compare",
    )
    found.add_argument(
        "--quick", action="store_true", help="measure a few small cases, which takes seconds on a laptop"
    )
    found.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to FILE")
    return found


def _at_least(least: float) -> Any:
    def read(text: str) -> int | float:
        try:
            number: int | float = int(text) if isinstance(least, int) else float(text)
        except ValueError:
            number = -1
        if not number >= least:
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted a number that is at least {least}")
        return number

    return read


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; None: those of the command line. Raises SystemExit for --help, --version and
    wrong flags."""
    return parser().read(words)
