"""``medmambase-pretrain images/``: images without labels in, weights to start from out."""

import sys
from collections.abc import Sequence
from pathlib import Path

from medmambase import privacy, run_folder
from medmambase.commands import console, resume
from medmambase.commands.next_steps import pasted, say_next
from medmambase.commands.pretrain_flags import parse
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
        if (to_do := resume.to_do(parse(words), resolve, latest, of_run, "pretrain")) is None:
            return 0
        resumed, settings = to_do
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
        return resume.advice("medmambase-pretrain", run, _saved, error)

    def interrupted() -> str:
        return resume.interrupted("medmambase-pretrain", run, _saved)

    return console.guarded("medmambase-pretrain", act, where=lambda: run, advice=advice, interrupted=interrupted)


def _saved(run: Path) -> str | None:
    step = checkpoint.progress_in(run / run_folder.LAST).get("step")
    return f"step {step}" if isinstance(step, int) and step else None


if __name__ == "__main__":
    sys.exit(main())
