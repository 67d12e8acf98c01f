"""What every command does on a console: text that any code page takes, lines that are also kept,
progress, and one line for what went wrong."""

import argparse
import errno
import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from medmambase import distributed, run_folder
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.images import ImageError
from medmambase.evaluation.drawing import FigureError
from medmambase.evaluation.predictions import MetricsError
from medmambase.evaluation.report import report
from medmambase.model.network import MedMambaSE
from medmambase.model.weights import WeightsError
from medmambase.training import checkpoint, loop
from medmambase_kernels import BackendError

# What a person should do about each kind of failure is in its message; the exit code says which
# kind it was.
EXIT_CODES: dict[type[Exception], int] = {
    loop.TrainingError: 1, ConfigError: 2, DataError: 3, ImageError: 3, MetricsError: 3, WeightsError: 3,
    checkpoint.CheckpointError: 3, BackendError: 4, run_folder.RunFolderError: 4, distributed.RankError: 4,
    FigureError: 4, report.ReportError: 4, torch.OutOfMemoryError: 4, OSError: 4,
}  # fmt: skip  # a table
INTERRUPTED = 130


def prepare() -> None:
    """A console that cannot show a file's name shows a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def guarded(program: str, act: Callable[[], int]) -> int:
    """The exit code of ``act``, and one line on the error stream where it cannot end well."""
    prepare()
    try:
        return act()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except tuple(EXIT_CODES) as error:
        print(f"{program}: {sentence(error, None)}", file=sys.stderr)
        return exit_code(error)


def positive(text: str) -> int:
    """For argparse: a whole number, at least 1."""
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return number


def device(wish: str | None) -> torch.device:
    """The one wished for, or the GPU if there is one. Raises ConfigError where it cannot be
    used."""
    try:
        found = torch.device(wish or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=found).item()  # the number must come back: there are devices without any
    except (RuntimeError, AssertionError) as error:  # torch raises either, with or without CUDA in its build
        raise ConfigError(
            f"--device {wish} cannot be used ({str(error).splitlines()[0]}); leave it out to choose automatically"
        ) from error
    return found


def network_of(run: Path) -> MedMambaSE:
    """The network of a run's folder, or of a network's own. Raises WeightsError, and DataError
    where there is no such folder."""
    if not run.is_dir():
        raise DataError(f"{run}: there is no such folder; give the folder of a run, such as runs/data-001")
    return MedMambaSE.load(run / "best" if (run / "best").is_dir() else run)


def exit_code(error: Exception) -> int:
    """Of one of EXIT_CODES."""
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))


def sentence(error: Exception, run: Path | None) -> str:
    """One line; an error of the operating system says too little by itself, and not always
    where."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        text = too_much(error)
    elif isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = error.filename or run or "medmambase"
        advice = "; free some space there, or choose another place with --runs" if full else ""
        text = f"{where}: {error.strerror or error}{advice}"
    return " ".join(text.splitlines())


def too_much(error: Exception) -> str:
    """The line for memory that does not suffice."""
    return (
        f"there is too little memory ({str(error).splitlines()[0]}); halve --batch-size and double --accumulate, "
        f"or add --recompute"
    )


def logger(path: Path) -> Callable[[str], None]:
    """A function that prints a line and keeps it in the file."""

    def say(line: str) -> None:
        tqdm.write(line)
        with path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(line + "\n")

    return say


def progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """A bar, where somebody watches."""
    return tqdm(items, description, total, leave=False, disable=None)
