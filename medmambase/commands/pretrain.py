"""``medmambase-pretrain images/``: images without labels in, weights to start from out."""

import sys
from collections.abc import Sequence
from pathlib import Path

from medmambase import privacy, run_folder
from medmambase.commands import console
from medmambase.commands.next_steps import pasted, say_next
from medmambase.commands.pretrain_flags import parse
from medmambase.commands.setting_flags import AUTO
from medmambase.commands.train import CAN_GO_ON
from medmambase.data.drawn_ahead import DrawingError
from medmambase.pretraining.run import latest, pretrain_run, started
from medmambase.pretraining.settings import of_run, resolve
from medmambase.training import checkpoint


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
            console.say(f"{resumed} is finished: nothing is left to do; leave out --resume auto to pretrain anew")
            return 0
        settings = of_run(resumed, given) if resumed else resolve(given, file)
        with started(settings, resumed) as begun:
            run = begun.folder
            pretrain_run(begun, privacy.command("medmambase-pretrain", words), console.say, console.progress)
        images = settings.data or "DATA"
        splits = ("--splits", settings.splits) if settings.splits else ()
        say_next(
            ("train from these weights", pasted("medmambase-train", images, *splits, "--start", run)),
            ("train from none, to compare", pasted("medmambase-train", images, *splits, "--start", "none")),
        )
        return 0

    def advice(error: Exception) -> str:
        can = isinstance(error, (*CAN_GO_ON, DrawingError))
        return f"; then continue with {_resume(run)}" if run and can and _done(run) else ""

    return console.guarded(
        "medmambase-pretrain", act, where=lambda: run, advice=advice, interrupted=lambda: _interrupted(run)
    )


def _interrupted(run: Path | None) -> str:
    if run is None or not (run / run_folder.CONFIG).is_file():
        return "interrupted before a run folder was created"
    if not _done(run):
        return f"interrupted before the first step was saved; delete {run}, or start it again with {_resume(run)}"
    return f"interrupted: saved up to step {_done(run)}; continue with {_resume(run)}"


def _done(run: Path) -> int:
    """How many steps are saved."""
    step = checkpoint.progress_in(run / run_folder.LAST).get("step")
    return step if isinstance(step, int) else 0


def _resume(run: Path) -> str:
    return pasted("medmambase-pretrain", "--resume", run)


if __name__ == "__main__":
    sys.exit(main())
