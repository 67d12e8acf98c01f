"""Train the folds of a cross-validation, several at a time, each in a process of its own."""

import builtins
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from medmambase import run_folder
from medmambase.lines import one_line
from medmambase.machine import LESS_MEMORY, cores
from medmambase.privacy import without_paths
from medmambase.settings import MAY_CHANGE, Settings
from medmambase.training.interrupt import termination_raises

FOLD = "medmambase.training.crossval.fold"
_PAUSE = 0.1  # seconds between two looks at the processes
_TRACEBACK = "Traceback (most recent call last):"
_ERROR = re.compile(r"(?:\w+\.)*[A-Z]\w*(?:: |$)")  # what Python writes before the message of an error
_MEMORY = re.compile("out of memory|can't allocate memory|^MemoryError", re.IGNORECASE)

Ended = Callable[[Path, str | None], object]  # a fold, and what kept it from ending well


@dataclass(frozen=True)
class _Work:
    fold: Path
    place: int
    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def ask_to_end(self) -> None:
        """Close its input; ``fold.py`` then saves and ends."""
        if self.process.stdin:
            self.process.stdin.close()

    def wait(self) -> None:
        """Wait for the end, and forget what it said."""
        self.process.wait()
        self.said.close()

    def problem(self) -> str | None:
        """Why it has failed, if it has: the message of its last error, without what follows that;
        the last line of what it said where there is none."""
        code = self.process.returncode
        if not code:
            return None
        if code == -getattr(signal, "SIGKILL", 0):
            return "the system killed its process, as it does where memory is full; fewer --jobs need less"
        self.said.seek(0)
        said = self.said.read().decode("utf-8", "replace").strip()
        lines = said.rpartition(_TRACEBACK)[2].splitlines()
        if not lines:
            return f"its process ended with exit code {code}"
        line = next(filter(_ERROR.match, lines), lines[-1])
        reason = one_line(_ERROR.sub("", line, count=1) or line)
        if _MEMORY.search(line):
            return f"not enough memory ({reason}); fewer --jobs need less, or {LESS_MEMORY}"
        if not _is_unexpected(line):
            return reason
        try:
            run_folder.write_text(self.fold / run_folder.FAILURE, f"{without_paths(said)}\n")
        except run_folder.RunFolderError:  # a full disk: the reason is told all the same
            return one_line(line)
        return f"{one_line(line)} ({self.fold / run_folder.FAILURE} says where in the program)"


def _is_unexpected(line: str) -> bool:
    """Whether a line tells of an error that is not ours, and not one of the system: these say by
    themselves what is wrong with files or settings."""
    package, *inner = line.partition(":")[0].split(".")
    kind = getattr(builtins, package, None)
    if inner or not (isinstance(kind, type) and issubclass(kind, Exception)):
        return bool(inner and _ERROR.match(line)) and not package.startswith("medmambase")
    return not issubclass(kind, OSError)


def places(settings: Settings, device: torch.device, jobs: int | None) -> list[str | None]:
    """Return where folds are trained at the same time: a device for each of so many ``jobs``, None
    for that of the settings. ``jobs`` None: one for each fold and core, or for each GPU."""
    spread = device.type == "cuda" and settings.device is None
    gpus = torch.cuda.device_count() if spread else 1
    most = min(settings.folds, cores() if device.type == "cpu" else gpus) if jobs is None else jobs
    return [f"cuda:{job % gpus}" if spread and gpus > 1 else None for job in range(min(most, settings.folds))]


def train_folds(
    folds: Sequence[Path], settings: Settings, at: Sequence[str | None], command: str, ended: Ended
) -> None:
    """Train each fold in a process of its own, as many at a time as there are places ``at`` which
    to train; one that fails does not keep the others. ``ended`` is told of each.

    Ctrl-C, and the system's request to end, let every process save and end, and then raise
    KeyboardInterrupt.
    """
    waiting, free = list(folds), list(range(len(at)))
    with termination_raises(), _at_work() as working:
        while waiting or working:
            while waiting and free:
                place = free.pop(0)
                working.append(_start(waiting.pop(0), place, settings, at, command))
            time.sleep(_PAUSE)
            for work in [work for work in working if work.process.poll() is not None]:
                problem = work.problem()
                working.remove(work)
                free.append(work.place)
                work.ask_to_end()
                work.wait()
                ended(work.fold, problem)


@contextmanager
def _at_work() -> Iterator[list[_Work]]:
    """Ask what is still at work to end, and wait for it."""
    working: list[_Work] = []
    try:
        yield working
    finally:
        for work in working:
            work.ask_to_end()
        for work in working:
            work.wait()


def _start(fold: Path, place: int, settings: Settings, at: Sequence[str | None], command: str) -> _Work:
    changed = {name: settings.value(name) for name in MAY_CHANGE} | ({"device": at[place]} if at[place] else {})
    told = json.dumps(changed)  # None too: a device that was asked for before is asked for no more
    # It imports what this process does, and nothing that happens to lie in the current folder.
    words = [sys.executable, "-P", "-m", FOLD, str(fold), told, command]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "PYTHONIOENCODING": "utf-8",
    }
    if len(at) > 1:  # they share the processors
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // len(at))))
    (fold / run_folder.FAILURE).unlink(missing_ok=True)
    said = tempfile.TemporaryFile()  # noqa: SIM115  # it is closed when the process has ended
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, env=environment, bufsize=0
    )
    return _Work(fold, place, process, said)
