"""Define the flags of ``medmambase-crossval``: every setting of a run, and how many folds are
trained at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmambase.commands.flags import Parser, new_parser, positive
from medmambase.commands.setting_flags import converted, read
from medmambase.commands.train_flags import add_run_settings
from medmambase.settings import FOLDS, from_text

OTHER = {
    "demo": None,
    "fold": None,
    "splits": None,
    "soft_labels": None,
    "folds": f"number of folds, stratified and grouped by patient ({FOLDS})",
    "name": "name of the folder (default: the name of DATA)",
    "runs": "folder in which the folder is created (default: runs)",
}


def parser() -> Parser:
    """Return a parser of all flags."""
    found = new_parser(
        "medmambase-crossval",
        usage="medmambase-crossval DATA [--folds 5] [--jobs N] [settings], or --config settings.toml [settings]",
        description="Train a network for each fold of the images, test it on that fold, and write one report: every "
        "image is predicted by a network that has not learned from it.",
        epilog="The same command goes on where an earlier one was ended, and the result has the same bytes. All "
        "networks together predict with the folder as RUN: medmambase-predict runs/data-001 images/. "
        "Exit codes: 0 done, 1 a fold failed, 2 usage, 3 data, 4 environment, 130 interrupted, 143 or 129 ended by the "
        "system (saved: start it again).",
    )
    found.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="images in any form that medmambase-train accepts; if they have a test split, all folds are tested on it",
    )
    found.add_argument("--config", type=Path, metavar="FILE", help="read settings from a TOML file")
    found.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="folds that are trained at the same time, each in a process of its own, which holds all images in memory "
        "(default: one for each processor, or for each GPU)",
    )
    found.add_argument(
        "--distil",
        action="store_true",
        help="also train one network that learns from all others, and say how far it is from them",
    )
    add_run_settings(found, OTHER)
    return found


def parse(words: Sequence[str]) -> tuple[dict[str, Any], Path | None, int | None, bool]:
    """Return the settings given as flags, the file of ``--config``, ``--jobs`` and ``--distil``.
    Raises ConfigError for an invalid value, and SystemExit, with code 2 and one line, for an
    unknown flag."""
    given = read(parser(), words)
    config, jobs, distil = given.pop("config", None), given.pop("jobs", None), given.pop("distil")
    return converted(given, from_text), config, jobs, distil
