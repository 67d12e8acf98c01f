"""``medmambase-check data/``: check images before training on them.

The same files are read in the same way, and the same is found, as by ``medmambase-train``; see
``data/audit.py``.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from medmambase import run_folder
from medmambase.commands import check_flags, console
from medmambase.commands.next_steps import pasted, say_next
from medmambase.config import TrainConfig
from medmambase.data.decoded.image_set import modalities
from medmambase.data.manifest.folders import DataError, Manifest
from medmambase.data.manifest.name_patterns import propose
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.evaluation.report import of_a_run
from medmambase.evaluation.report.check_page import write_check_page
from medmambase.plural import count_of
from medmambase.privacy import without_paths
from medmambase.settings import Settings
from medmambase.settings_file import flag
from medmambase.training import session

CLEAN, FOUND = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 no problems found, 1 problems,
    duplicates or several modalities found, 2 usage, 3 data, 4 environment, 130 interrupted."""
    folder: Path | None = None

    def act() -> int:
        nonlocal folder
        settings = check_flags.parse(arguments)
        source = Path(settings.data or "")
        duplicates = partial(
            session.duplicates, config=settings.training, in_chans=settings.in_chans, cached=Path(settings.runs),
            progress=console.progress,
        )  # fmt: skip  # one argument list
        # The same splits as a training would have, but an overlap is told here, not refused.
        manifest = read_manifest(
            source,
            seed=settings.seed_of_splits,
            runs=Path(settings.runs),
            group_regex=settings.group_regex,
            group_column=settings.group_column,
            allow_leak=True,
            splits=Path(settings.splits) if settings.splits else None,
            class_names=settings.class_names,
            labels=settings.labels,
            frames=settings.frames,
            duplicates=duplicates if settings.keep_duplicates_together else None,
        )
        console.say(f"reading {count_of(len(manifest.samples), 'image')} of {source}")
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
        listed = ", ".join(f"{kind} ({count_of(count, 'image')})" for kind, count in counted.most_common(8))
        say(f"{title + ':':10} {listed}{f', and {len(counted) - 8} more {title}' if len(counted) > 8 else ''}")
    session.write_intake(intake, manifest, folder)
    of_a_run.draw_duplicates(intake.images, found, folder)
    if not len(intake.images.labels):
        raise DataError(f"{settings.data}: no image can be read; see {folder / run_folder.DATA_REPORT}")
    mixed = bool(modalities(intake.images))
    bad = bool(intake.bad or found.exact or found.near or found.conflicts or found.patients or mixed)
    steps = _steps(settings, manifest, intake)
    told = [(without_paths(words), without_paths(command)) for words, command in steps]
    page = write_check_page(folder, told, mixed)
    found_what = "problems found" if bad else "no problems found"
    if bad and not (intake.bad or found.across or found.conflicts or found.patients or mixed):
        found_what = "duplicates found, but none in two splits or classes"
    say(f"\n{found_what}; details are in {folder}")
    say(f"report: {page.resolve()}")
    say_next(*steps)
    return FOUND if bad else CLEAN


def _steps(settings: Settings, manifest: Manifest, intake: session.Intake) -> list[tuple[str, str]]:
    """What can be done next: patients first, then what was found, then the training."""
    data, steps = settings.data or "", []
    # Images, classes and splits are to be those that were checked.
    names = ("group_regex", "group_column", "class_names", "labels", "frames", "splits")
    given = {name: settings.value(name) for name in names}
    if settings.split_seed is not None or settings.seed_of_splits != TrainConfig().seed:
        given["split_seed"] = settings.seed_of_splits
    words = [str(word) for name, value in given.items() if value is not None for word in (flag(name), value)]
    if settings.keep_duplicates_together:
        words.append(flag("keep_duplicates_together"))
    proposal = None if settings.group_regex or settings.group_column else propose(manifest.samples)
    if proposal:
        what, how = "a patient", "if so, check again by patient"
        if proposal.clips:
            what, how = "the clip of a frame", "if nothing names the patients, check again by clip"
        steps.append(
            (
                f"{proposal.images} of {count_of(len(manifest.samples), 'name')} seem to contain {what} "
                f"({proposal.found} in {proposal.example}; {proposal.patients} in all); {how}",
                pasted("medmambase-check", data, *words, "--group-regex", proposal.regex),
            )
        )
    if intake.bad:
        steps.append(("repair or delete the files that cannot be read; otherwise they are skipped", ""))
    if modalities(intake.images):
        steps.append(("remove the images whose modality does not belong to this task; otherwise they are learned", ""))
    if intake.audit.across or intake.audit.conflicts:
        steps.append(
            (
                "look at the duplicates in the report; delete copies, and correct contradictory labels; a split that "
                "is drawn with --keep-duplicates-together separates none of them",
                "",
            )
        )
    elif intake.audit.exact or intake.audit.near:
        apart = ", and another split may separate them, unless it is drawn with --keep-duplicates-together"
        apart = "" if settings.keep_duplicates_together else apart
        steps.append(
            (
                "each group of duplicates lies in one split and one class, so no test image is known from training; "
                f"delete copies all the same: in the test set they count twice{apart}",
                "",
            )
        )
    by_group = ["--group-regex", proposal.regex] if proposal else []
    steps.append(("train on these images", pasted("medmambase-train", data, *words, *by_group)))
    return steps


if __name__ == "__main__":
    sys.exit(main())
