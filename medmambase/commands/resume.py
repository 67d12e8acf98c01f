"""Go on with a run: which one ``--resume`` asks for, and what is said of one that ended early; the
same for each command that has this flag."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from medmambase import distributed, run_folder
from medmambase.commands import console
from medmambase.commands.next_steps import pasted
from medmambase.commands.setting_flags import AUTO, Auto
from medmambase.data.drawn_ahead import DrawingError
from medmambase.data.reading.images import ImageError
from medmambase.evaluation.drawing import FigureError
from medmambase.evaluation.report.report import ReportError

S = TypeVar("S")
Saved = Callable[[Path], str | None]  # what is saved in a run, such as "epoch 2"; None where nothing is

# What has nothing to do with the settings, so that the run can go on once it is put right.
CAN_GO_ON = (
    ImageError, run_folder.RunFolderError, distributed.RankError, FigureError, ReportError, DrawingError, OSError,
)  # fmt: skip  # one list


def to_do(
    parsed: tuple[dict[str, Any], Path | None, Path | Auto | None],
    resolve: Callable[[Mapping[str, Any], Path | None], S],
    latest: Callable[[S], Path | None],
    of_run: Callable[[Path, Mapping[str, Any]], S],
    verb: str,
    again: Collection[str] = (),
    results: Callable[[Path], object] = lambda run: None,
) -> tuple[Path | None, S] | None:
    """Return the run to go on with (None: a new one) and its settings; None where that is finished,
    which it then says: what is tested twice is no longer new.

    ``parsed``: as ``parse_settings`` returns it; ``verb``: what the command does, such as "train";
    ``again``: settings for whose sake a finished run is written again; ``results`` tells those of a
    finished one. Raises what the functions raise.
    """
    given, file, wish = parsed
    run = wish if isinstance(wish, Path) or wish is None else latest(resolve(given, file))
    if run is None:
        return None, resolve(given, file)
    settings = of_run(run, given)
    if run_folder.is_finished(run) and (wish == AUTO or not given.keys() & {*again}):
        flag = "--resume auto" if wish == AUTO else "--resume"
        console.say(f"{run} is finished: nothing is left to do; leave out {flag} to {verb} anew")
        results(run)
        return None
    return run, settings


def advice(program: str, run: Path | None, saved: Saved, error: Exception) -> str:
    """Return what the line of an error ends with: how the run continues, where it can."""
    resumable = run and isinstance(error, CAN_GO_ON) and saved(run)
    return f"; then continue with {_command(program, run)}" if run and resumable else ""


def interrupted(program: str, run: Path | None, saved: Saved) -> str:
    """Return the line after Ctrl-C: what is saved, and how the run continues."""
    if run is None or not (run / run_folder.CONFIG).is_file():
        return "interrupted before a run folder was created"
    if (done := saved(run)) is None:
        again = _command(program, run)
        return f"interrupted before the first step was saved; delete {run}, or start it again with {again}"
    return f"interrupted: saved up to {done}; continue with {_command(program, run)}"


def _command(program: str, run: Path) -> str:
    return pasted(program, "--resume", run)
