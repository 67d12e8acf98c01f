"""``medmambase-pretrain images/``: images without labels in, weights to start from out."""

import sys
from collections.abc import Sequence
from pathlib import Path

from medmambase import privacy, run_folder
from medmambase.commands import console, resume
from medmambase.commands.next_steps import pasted, say_next
from medmambase.commands.pretrain_flags import parse
from medmambase.data.manifest.folders import Manifest
from medmambase.pretraining.run import latest, pretrain_run, started
from medmambase.pretraining.settings import PretrainSettings, of_run, resolve
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
        say_next(*_steps(settings, run, begun.plan.manifest))
        return 0

    def advice(error: Exception) -> str:
        return resume.advice("medmambase-pretrain", run, _saved, error)

    def interrupted() -> str:
        return resume.interrupted("medmambase-pretrain", run, _saved)

    return console.guarded("medmambase-pretrain", act, where=lambda: run, advice=advice, interrupted=interrupted)


def _steps(settings: PretrainSettings, run: Path, manifest: Manifest | None) -> list[tuple[str, str]]:
    """What can be done next: to train from the weights and from none, and to compare. On the images
    of the pretraining only where some of them were left out, or there is nothing to test on."""
    apart = settings.data if settings.data and manifest and manifest.method else None
    splits = ("--splits", settings.splits) if apart and settings.splits else ()
    train = ("medmambase-train", apart or "DATA", *splits)
    which = ", on other images in val and test than these" if settings.data and not apart else ""
    return [
        (f"train from these weights{which}", pasted(*train, "--start", run, "--name", "started")),
        ("train from none", pasted(*train, "--start", "none", "--name", "anew")),
        ("test the difference", pasted("medmambase-compare", "runs/anew-*", "--against", "runs/started-*")),
    ]


def _saved(run: Path) -> str | None:
    step = checkpoint.progress_in(run / run_folder.LAST).get("step")
    return f"step {step}" if isinstance(step, int) and step else None


if __name__ == "__main__":
    sys.exit(main())
