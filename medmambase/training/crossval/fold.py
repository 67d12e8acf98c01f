"""Train one fold of a cross-validation, in a process that ``processes.py`` starts for it:
``python -m medmambase.training.crossval.fold FOLDER SETTINGS COMMAND``.

It goes on from wherever the fold stands. It ends when its input does, after saving as a training
does when the system asks it to: so it neither outlives the process that started it, however that
one ended, nor has to be sent a signal, which Windows does not know.
"""

import _thread
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from medmambase.data.decoded.image_set import no_progress
from medmambase.settings import of_run
from medmambase.training.interrupt import termination_raises
from medmambase.training.run import started, train_run

INTERRUPTED = 130
# Seconds to wait for the process of an earlier call, which is killed, to save what it has done.
PATIENCE = 120.0


def main(arguments: Sequence[str]) -> int:
    """Train the fold in the folder ``arguments[0]``. Returns 0, or 130 where it was asked to end;
    an error is a traceback, of which the last line is for a person.

    ``arguments[1]``: the settings that may differ from the fold's own, as JSON; ``[2]``: the
    command to be kept in the fold's folder.
    """
    folder, changed, command = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    try:
        with termination_raises():
            threading.Thread(target=_end_with, args=(own_input(),), daemon=True).start()
            with started(of_run(Path(folder), json.loads(changed)), Path(folder), patience=PATIENCE) as run:
                train_run(run, command, _silent, no_progress)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def own_input() -> int:
    """Take the input of this process for itself: return it under a number of its own, and put an
    empty one in its place.

    On Windows, whoever looks at a pipe waits as long as somebody reads from it: a library that is
    loaded, or a compiler that is started and has inherited the input, would wait for the end.
    """
    taken, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return taken


def _end_with(file: int) -> None:
    """Ask this process to end as soon as ``file`` does."""
    while os.read(file, 1):
        pass
    _thread.interrupt_main(signal.SIGTERM)


def _silent(line: str) -> None:
    """Print nothing: the fold's folder keeps its log."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
