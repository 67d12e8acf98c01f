"""``medmambase-train data/``: images in, a trained network and a report out."""

import sys
from collections.abc import Sequence
from pathlib import Path

from medmambase import privacy, run_folder
from medmambase.commands import console, resume
from medmambase.commands.next_steps import pasted, say_next
from medmambase.commands.train_flags import parse
from medmambase.commands.trained_again import trained_again
from medmambase.data.manifest.folders import SPLIT_NAMES
from medmambase.evaluation.report.headline import headline
from medmambase.evaluation.report.summary import summary
from medmambase.settings import Settings, of_run, resolve
from medmambase.training import checkpoint
from medmambase.training.python_api import Run
from medmambase.training.run import latest, started, train_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 1 training failed, 2 usage, 3 data, 4
    environment, 130 interrupted, 143 or 129 ended by the system."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    run: Path | None = None

    def act() -> int:
        nonlocal run
        if (to_do := resume.to_do(parse(words), resolve, latest, of_run, "train", results=_results)) is None:
            return 0
        resumed, settings = to_do
        with started(settings, resumed, console.progress) as begun:
            run = begun.folder
            train_run(begun, privacy.command("medmambase-train", words), console.say, console.progress)
        if begun.ranks.first:
            what, images = to_classify(run, settings)
            say_next(
                (what, pasted("medmambase-predict", run, images, "-o", "out.csv")),
                *(
                    [("see what the network looks at in them", pasted("medmambase-explain", run, images))]
                    if settings.opponent is None
                    else []
                ),
                *trained_again(run),
            )
        return 0

    def advice(error: Exception) -> str:
        return resume.advice("medmambase-train", run, _saved, error)

    def interrupted() -> str:
        return resume.interrupted("medmambase-train", run, _saved)

    return console.guarded("medmambase-train", act, where=lambda: run, advice=advice, interrupted=interrupted)


def _results(run: Path) -> None:
    """Print the figures that a finished run has kept."""
    if metrics := Run(run).metrics:
        console.say(f"{summary(metrics)}\n{headline(metrics).sentence}")
    console.say(f"report: {(run / run_folder.REPORT).resolve()}")


def to_classify(run: Path, settings: Settings) -> tuple[str, Path]:
    """Return what to classify with a new network, in words and as a path: its test images where
    they lie in a folder of their own, since most of the others it has learned from. Where a table
    divides the images, it may have learned from any."""
    if settings.demo:
        return "classify the images of the demo, most of which it has learned from", run / run_folder.PHANTOM
    data = Path(settings.data or "")
    inside = sorted(data.iterdir()) if settings.data and not settings.splits and data.is_dir() else []
    for folder in inside:
        if folder.is_dir() and SPLIT_NAMES.get(folder.name.casefold()) == "test":
            return "classify the test images", folder
    return "classify new images", Path("path/to/new/images")


def _saved(run: Path) -> str | None:
    position = checkpoint.position(run / run_folder.LAST)
    if position is None:
        return None
    epoch, step = position
    return f"step {step} of epoch {epoch}" if step else f"epoch {epoch - 1}"


if __name__ == "__main__":
    sys.exit(main())
