"""Define the flags of ``medmambase-table``: every setting of a run, the networks, and how many
seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmambase.commands.flags import Parser, new_parser, positive
from medmambase.commands.setting_flags import converted, read
from medmambase.commands.train_flags import add_run_settings
from medmambase.packaged import START
from medmambase.settings import from_text
from medmambase.training.table.settings import KNOWN, MODELS, SEEDS

OTHER = {
    "model": None,
    "se": None,
    "start": "weights that the networks of ours start from: drawn, those that come with this version (for nano and "
    f"micro); none; or auto, drawn for those that there are weights for (default: {START})",
    "freeze": None,
    "soft_labels": None,
    "folds": None,
    "fold": None,
    "recipe": "training recipe of all networks; readme: the original's set-up (default: of each network its own)",
    "name": "what the names of all folders begin with (default: the name of DATA)",
    "runs": "folder in which the folders of all runs, and that of the table, are created (default: runs)",
    "seed": "random seed of each network's first run, the next one of the next (default: 0)",
    "split_seed": "random seed of the splits, which are the same for all (default: that of --seed)",
}


@dataclass(frozen=True)
class Given:
    """What was given: the networks, how many seeds, the settings, and the file of ``--config``."""

    models: tuple[str, ...]
    seeds: int
    settings: dict[str, Any]
    config: Path | None


def parser() -> Parser:
    """Return a parser of all flags."""
    found = new_parser(
        "medmambase-table",
        usage="medmambase-table DATA [--models NAME ...] [--seeds 3] [settings]",
        description="Train several networks on the same images, with several seeds each, and print a table: accuracy "
        "on training, validation and test images with intervals, and whether the last network differs from the "
        "others.",
        epilog="Each training is a run of its own, and the same command goes on where an earlier one was ended. The "
        "table is also written as Markdown, LaTeX and CSV. Values in brackets are those of the default recipe. "
        "Exit codes: 0 done, 1 a training failed, 2 usage, 3 data, 4 environment, 130 interrupted, 143 or 129 ended by "
        "the system (saved: start it again).",
    )
    found.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="images in any form that medmambase-train accepts; without splits of their own they are divided once, for "
        "all networks",
    )
    found.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help=f"networks, of which the last is compared with each of the others: {', '.join(KNOWN)} (medmamba and "
        f"medmambase are as large as tiny) (default: {' '.join(MODELS)})",
    )
    found.add_argument("--seeds", type=positive, metavar="N", help=f"runs of each network ({SEEDS})")
    found.add_argument("--config", type=Path, metavar="FILE", help="read settings from a TOML file")
    add_run_settings(found, OTHER)
    return found


def parse(words: Sequence[str]) -> Given:
    """Read the flags. Raises ConfigError for an invalid value, and SystemExit, with code 2 and one
    line, for an unknown flag."""
    given = read(parser(), words)
    models, seeds, config = (given.pop(name, None) for name in ("models", "seeds", "config"))
    return Given(tuple(models or MODELS), seeds or SEEDS, converted(given, from_text), config)
