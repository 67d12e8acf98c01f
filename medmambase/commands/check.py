"""``medmambase-check data/``: check images before training on them.

The same files are read in the same way, and the same is found, as by ``medmambase-train``; see
``data/audit.py``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medmambase import run_folder
from medmambase.commands import console
from medmambase.data.manifest.folders import DataError, Manifest
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.evaluation.report import of_a_run
from medmambase.settings import TYPES, Settings, flag, from_text, resolve
from medmambase.training import session

CLEAN, FOUND = 0, 1
SETTINGS = {
    "group_regex": 'regular expression that finds the patient in an image\'s path, such as "(patient\\d+)"',
    "group_column": "the CSV column that names the patient",
    "plain_patients": "name patients in the report's files as the data does, instead of by pseudonyms",
    "image_size": "width and height, in pixels, at which images are compared (128)",
    "seed": "random seed for splits that the data does not define (0)",
    "runs": "folder in which the report folder is created (runs)",
    "name": "name of the report folder (default: the name of the data, with -check)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 no problems found, 1 problems found,
    2 usage, 3 data, 4 environment, 130 interrupted."""
    folder: Path | None = None

    def act() -> int:
        nonlocal folder
        options = vars(_parser().parse_args(arguments))
        settings = resolve(
            {
                name: from_text(name, value) if isinstance(value, str) else value
                for name, value in options.items()
                if value is not None
            }
        )
        source = Path(settings.data or "")
        # The same splits as a training would have, but an overlap is told here, not refused.
        manifest = read_manifest(
            source,
            seed=settings.training.seed,
            runs=Path(settings.runs),
            group_regex=settings.group_regex,
            group_column=settings.group_column,
            allow_leak=True,
        )
        name = settings.name or f"{source.resolve().stem if source.is_file() else source.resolve().name}-check"
        folder = run_folder.create(Path(settings.runs), name)
        return _check(settings, manifest, folder)

    return console.guarded("medmambase-check", act, where=lambda: folder)


def _check(settings: Settings, manifest: Manifest, folder: Path) -> int:
    called = Pseudonyms.new(settings.plain_patients)
    say = run_folder.logged(folder / run_folder.CHECK_LOG, console.say, called.shown, manifest.root)
    intake = session.take_in(
        manifest, settings.training, settings.in_chans, Path(settings.runs), console.progress, called
    )
    session.say_intake(intake, manifest, folder, say)
    found = intake.audit
    for title, counted in (("sizes", found.sizes), ("modes", found.modes)):
        listed = ", ".join(f"{count} of {kind}" for kind, count in counted.most_common(8))
        say(f"{title + ':':10} {listed}{f', {len(counted) - 8} more kinds' if len(counted) > 8 else ''}")
    session.write_intake(intake, manifest, folder)
    of_a_run.draw_duplicates(intake.images, found, folder)
    if not len(intake.images.labels):
        raise DataError(f"{settings.data}: no image can be read; see {folder / run_folder.DATA_REPORT}")
    bad = bool(intake.bad or found.exact or found.near or found.conflicts or found.patients)
    say(f"\n{'problems found' if bad else 'no problems found'}; details are in {folder}")
    return FOUND if bad else CLEAN


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "medmambase-check",
        description="Check images before training: find files that cannot be read, duplicates, duplicates of "
        "different classes, patients in two splits.",
        epilog="exit code: 0 no problems found, 1 problems found, 2 usage, 3 data, 4 environment",
        allow_abbrev=False,
    )
    found.add_argument(
        "data",
        metavar="DATA",
        help="anything that medmambase-train accepts: a folder, a CSV, a MedMNIST .npz, FETAL_PLANES_DB",
    )
    for name, words in SETTINGS.items():
        if TYPES[name] is bool:
            found.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None, help=words)
        else:
            found.add_argument(flag(name), metavar="X", help=words)
    return found


if __name__ == "__main__":
    sys.exit(main())
