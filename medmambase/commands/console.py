"""Print on a console of any code page, keep lines in a file too, show progress, and say in one line
what went wrong."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from medmambase.commands import guard
from medmambase.config import ConfigError
from medmambase.data.drawn_ahead import DrawingError
from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.images import ImageError
from medmambase.distributed import RankError
from medmambase.evaluation.drawing import FigureError
from medmambase.evaluation.predictions import MetricsError
from medmambase.evaluation.report.report import ReportError
from medmambase.inference.probabilities import InferenceError
from medmambase.machine import LESS_MEMORY, choose_device
from medmambase.model.weights import WeightsError
from medmambase.run_folder import RunFolderError
from medmambase.training.checkpoint import CheckpointError
from medmambase.training.loop import TrainingError
from medmambase_kernels import BackendError, ExportError

EXIT_CODES: dict[type[Exception], int] = {
    TrainingError: 1, InferenceError: 1, ExportError: 1, ConfigError: 2, DataError: 3, ImageError: 3, MetricsError: 3,
    WeightsError: 3, CheckpointError: 3, BackendError: 4, RunFolderError: 4, RankError: 4, FigureError: 4,
    ReportError: 4, DrawingError: 4, torch.OutOfMemoryError: 4, MemoryError: 4, **guard.EXIT_CODES,
}  # fmt: skip  # a table


def guarded(
    program: str,
    act: Callable[[], int],
    *,
    where: Callable[[], Path | None] = lambda: None,
    advice: Callable[[Exception], str] = lambda error: "",
    interrupted: Callable[[], str] = lambda: "interrupted",
) -> int:
    """Return the exit code of ``act``, and print one line on the error stream where it fails.

    ``where``: the run's folder, once there is one, for an error that names no file. ``advice`` is
    added to the line of an error; ``interrupted`` is the line after Ctrl-C.
    """

    def line(error: Exception) -> str:
        return f"{sentence(error, where())}{advice(error)}"

    try:
        return guard.guarded(program, act, codes=EXIT_CODES, sentence=line, interrupted=interrupted)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # for a CPU's memory torch has no error of its own
            raise
        print(f"{program}: {too_much(error)}", file=sys.stderr)
        return EXIT_CODES[torch.OutOfMemoryError]


def device(wish: str | None) -> torch.device:
    """Return the device of ``--device``. Raises ConfigError where it cannot be used."""
    return choose_device(wish, "--device")


def sentence(error: Exception, run: Path | None) -> str:
    """Write an error in one line; ``run`` is the place of one that names no file."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return too_much(error)
    if isinstance(error, OSError):
        advice = "; free some space there, or choose another place with --runs"
        return guard.of_system(error, str(run or "medmambase"), advice)
    return str(error)


def too_much(error: Exception) -> str:
    """Return the line that says that memory is not enough."""
    first = next(iter(str(error).splitlines()), "no more is available")
    return f"not enough memory ({first}); {LESS_MEMORY}"


def say(line: str) -> None:
    """Print a line, above the bar where there is one."""
    tqdm.write(line)


def progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Show a progress bar in a terminal."""
    return tqdm(items, description, total, leave=False, disable=None)
