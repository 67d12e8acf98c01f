"""``medmambase-train data/``: images in, a trained network and a report out."""

import sys
from collections.abc import Sequence
from pathlib import Path

from medmambase import distributed, privacy, run_folder
from medmambase.commands import console
from medmambase.commands.next_steps import pasted, say_next
from medmambase.commands.train_flags import AUTO, parse
from medmambase.commands.trained_again import trained_again
from medmambase.data.reading.images import ImageError
from medmambase.evaluation.drawing import FigureError
from medmambase.evaluation.report.report import ReportError
from medmambase.settings import of_run, resolve
from medmambase.training import checkpoint
from medmambase.training.run import latest, started, train_run

# What has nothing to do with the settings, so that the run can go on once it is put right.
CAN_GO_ON = (ImageError, run_folder.RunFolderError, distributed.RankError, FigureError, ReportError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 1 training failed, 2 usage, 3 data, 4
    environment, 130 interrupted, 143 or 129 ended by the system."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    run: Path | None = None

    def act() -> int:
        nonlocal run
        given, file, wish = parse(words)
        resumed = wish if isinstance(wish, Path) or wish is None else latest(resolve(given, file))
        if wish == AUTO and resumed and run_folder.is_finished(resumed):
            console.say(f"{resumed} is finished: nothing is left to do; leave out --resume auto to train anew")
            return 0
        settings = of_run(resumed, given) if resumed else resolve(given, file)
        with started(settings, resumed, console.progress) as begun:
            run = begun.folder
            train_run(begun, privacy.command("medmambase-train", words), console.say, console.progress)
        if begun.ranks.first:
            images = run / run_folder.PHANTOM if settings.demo else Path(settings.data or "")
            images = images if images.is_dir() else Path("images")
            say_next(
                ("classify images", pasted("medmambase-predict", run, images, "-o", "out.csv")),
                ("see what the network looks at in them", pasted("medmambase-explain", run, images)),
                *trained_again(run),
            )
        return 0

    def advice(error: Exception) -> str:
        resumable = run and isinstance(error, CAN_GO_ON) and checkpoint.position(run / run_folder.LAST)
        return f"; then continue with {_resume(run)}" if run and resumable else ""

    return console.guarded(
        "medmambase-train", act, where=lambda: run, advice=advice, interrupted=lambda: _interrupted(run)
    )


def _interrupted(run: Path | None) -> str:
    if run is None or not (run / run_folder.CONFIG).is_file():
        return "interrupted before a run folder was created"
    position = checkpoint.position(run / run_folder.LAST)
    if position is None:
        return f"interrupted before the first step was saved; delete {run}, or start it again with {_resume(run)}"
    epoch, step = position
    done = f"step {step} of epoch {epoch}" if step else f"epoch {epoch - 1}"
    return f"interrupted: saved up to {done}; continue with {_resume(run)}"


def _resume(run: Path) -> str:
    return pasted("medmambase-train", "--resume", run)


if __name__ == "__main__":
    sys.exit(main())
