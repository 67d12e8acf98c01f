"""``medmambase-crossval data/``: a network for each fold of the images, and one report on all."""

import sys
from collections.abc import Sequence
from pathlib import Path

from medmambase import privacy, run_folder
from medmambase.commands import console
from medmambase.commands.crossval_flags import parse
from medmambase.commands.next_steps import pasted, say_next
from medmambase.settings import of_crossval
from medmambase.training.crossval.run import crossval_run, is_done, latest, started


def predicted_by(folder: Path) -> str:
    """Return the line that predicts with a folder's network or networks as the report has measured
    them."""
    return pasted("medmambase-predict", folder, "images", "-o", "out.csv", "--calibrated")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 1 a fold failed, 2 usage, 3 data, 4
    environment, 130 interrupted, 143 or 129 ended by the system."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    folder: Path | None = None

    def act() -> int:
        nonlocal folder
        given, file, jobs, distil = parse(words)
        settings = of_crossval(given, file)
        resumed = latest(settings)
        if resumed and is_done(resumed, distil):
            console.say(f"{resumed} is finished: nothing is left to do; give another --name to train anew")
            return 0
        with started(settings, resumed, console.progress) as begun:
            folder = begun.folder
            crossval_run(begun, privacy.command("medmambase-crossval", words), jobs, distil, console.say)
        first, one = run_folder.folds_of(folder)[0], folder / run_folder.DISTILLED
        say_next(
            ("classify images with all networks", predicted_by(folder)),
            *[
                ("classify images with the one distilled from them", predicted_by(one)),
                ("test it on other images", pasted("medmambase-evaluate", one, "other")),
            ]
            * distil,
            *[("see what the network of a fold looks at", pasted("medmambase-explain", first, "images"))]
            * (settings.opponent is None),
            ("compare with another cross-validation", pasted("medmambase-compare", folder, "other")),
        )
        return 0

    def interrupted() -> str:
        saved = f"what the folds have done is saved in {folder}" if folder else "before a folder was created"
        return f"interrupted: {saved}; the same command goes on"

    return console.guarded("medmambase-crossval", act, where=lambda: folder, interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main())
