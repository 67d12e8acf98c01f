"""End a command with one line and an exit code, however it fails.

Standard library only: the doctor runs where PyTorch does not load. ``console.py`` adds the errors
of everything else.
"""

import errno
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from medmambase.lines import one_line
from medmambase.training.interrupt import Terminated, ends_at_once, termination_raises

USAGE, ENVIRONMENT, INTERRUPTED = 2, 4, 130
_UNREAD = 141  # as where SIGPIPE ends a process
_NO_READER = (errno.EPIPE, errno.EINVAL)  # the second on Windows


class UsageError(ValueError):
    """An argument of the command is invalid; the message says what is valid."""


# What a person should do about each kind of failure is in its message; the exit code says which
# kind it was.
EXIT_CODES: dict[type[Exception], int] = {UsageError: USAGE, OSError: ENVIRONMENT}


def prepare() -> None:
    """Let a console that cannot show a file's name show a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def of_system(error: OSError, where: str, advice: str = "") -> str:
    """Write an error of the operating system, which says too little by itself, and not always
    where: ``where`` if it names no file. ``advice`` is for a full disk."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{error.filename or where}: {error.strerror or error}{advice if full else ''}"


def _sentence(error: Exception) -> str:
    return of_system(error, "this machine", "; free some space there") if isinstance(error, OSError) else str(error)


def guarded(
    program: str,
    act: Callable[[], int],
    *,
    codes: Mapping[type[Exception], int] = EXIT_CODES,
    sentence: Callable[[Exception], str] = _sentence,
    interrupted: Callable[[], str] = lambda: "interrupted",
) -> int:
    """Return the exit code of ``act``, and print one line on the error stream where it fails.

    ``codes``: the exit code of each error that is expected, the first that fits; others are raised.
    ``sentence``: the line of an error. ``interrupted``: the line after Ctrl-C, and where the system
    asks the process to end.
    """
    prepare()
    try:
        with termination_raises():
            code = act()
            if sys.stdout is not None:
                sys.stdout.flush()  # while what goes wrong can still be told
            return code
    except KeyboardInterrupt as error:
        by = f"interrupted by {error}" if isinstance(error, Terminated) else "interrupted"
        with ends_at_once():
            print(f"\n{interrupted().replace('interrupted', by, 1)}", file=sys.stderr)
        return code_of(error)
    except tuple(codes) as error:
        if _nobody_reads(error):
            return _UNREAD
        print(f"{program}: {one_line(sentence(error))}", file=sys.stderr)
        return next(code for kind, code in codes.items() if isinstance(error, kind))


def _nobody_reads(error: Exception) -> bool:
    """Return whether it is the output that ``error`` broke at, since it has no reader any more, as
    behind ``| head``; what is left of it is then dropped."""
    if not (isinstance(error, OSError) and error.errno in _NO_READER and error.filename is None and sys.stdout):
        return False
    try:
        print(flush=True)  # the pipe may be another, such as that to a worker
    except OSError as again:
        if again.errno in _NO_READER:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return True
    return False


def code_of(interruption: KeyboardInterrupt) -> int:
    """Return the exit code after Ctrl-C, 130; 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + interruption.number if isinstance(interruption, Terminated) else INTERRUPTED


def check_file(flag: str, path: Path) -> None:
    """Check that a file can be made at ``path``, which ``flag`` gave. Raises UsageError."""
    if path.is_dir():
        raise UsageError(f"{flag} {path} cannot be written: it is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{flag} {path} cannot be written: its folder does not exist; give a file in one that does")
