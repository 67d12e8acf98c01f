"""Let a training finish its step when it is asked to end: by Ctrl-C, by the system (SIGTERM,
SIGHUP), or by Windows, whose console closes or whose user logs off.

The loop then saves and ends. Whoever asks a second time gets the end at once. A signal that is
ignored, as in a script's background job or under nohup, stays ignored.
"""

import _thread
import ctypes
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

# A closer second one is the same request: under torchrun a process gets it from the terminal and
# again from torchrun, and a cluster may send two kinds at once.
_SECOND = 0.5
# How a system asks a process to end; Windows has no SIGHUP.
_SYSTEM = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
# What Windows tells a console's processes: Ctrl-Break, and three that end the process as soon as
# their handler returns, or after some 5 s: the window closes, the user logs off, the system ends.
_BREAK, _CLOSES = 1, (2, 5, 6)
_GRACE = 60.0  # seconds: longer than Windows waits
_MOMENT = 0.01  # seconds: such a function has ended by then, or it is raised once more

Handler = Callable[[int, FrameType | None], object]


class Terminated(KeyboardInterrupt):
    """The system asked this process to end, by the signal ``number``.

    A KeyboardInterrupt, because whoever cleans up after Ctrl-C has the same to do here.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def of_signal(number: int) -> KeyboardInterrupt:
    """Return the exception of a signal: Terminated where the system sent it, else that of
    Ctrl-C."""
    return Terminated(number) if number in _SYSTEM else KeyboardInterrupt()


@contextmanager
def termination_raises() -> Iterator[None]:
    """Let SIGTERM, SIGHUP and Windows' console raise Terminated, as Ctrl-C raises
    KeyboardInterrupt."""
    with _handled(_SYSTEM, _raise), _console(), _never_lost():
        yield


@contextmanager
def first_interrupt_waits() -> Iterator[Callable[[], int]]:
    """Delay the first Ctrl-C, SIGTERM or SIGHUP: the yielded function then returns its number, and
    0 before. A second one raises KeyboardInterrupt or Terminated at once.

    Elsewhere than in the main thread, where no signal arrives, nothing is changed; nor is a signal
    that is ignored, or SIGTERM and SIGHUP where a program that calls this one handles them.
    """
    came: list[tuple[float, int]] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append((time.monotonic(), number))
        _leave_a_closed_terminal()
        if came[-1][0] - came[0][0] >= _SECOND:
            raise of_signal(number)

    with _handled((signal.SIGINT, *_SYSTEM), handle), _console(), _never_lost():
        yield lambda: came[0][1] if came else 0


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Let a further Ctrl-C end this process without a traceback, as the system's signals do where
    they are not handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _never_lost() -> Iterator[None]:
    """Raise an interruption again, a moment later, where it was raised in a finaliser or in a
    callback of a weak reference: Python leaves none of these by an exception, but prints it with
    its traceback and goes on as if nobody had asked."""
    before = sys.unraisablehook

    def again(found: "sys.UnraisableHookArgs") -> None:
        lost = found.exc_value
        if not isinstance(lost, KeyboardInterrupt):
            return before(found)
        number = lost.number if isinstance(lost, Terminated) else signal.SIGINT
        timer = threading.Timer(_MOMENT, _thread.interrupt_main, (number,))  # does nothing where none is handled
        timer.daemon = True
        timer.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _raise(number: int, frame: FrameType | None) -> None:
    _leave_a_closed_terminal()
    raise Terminated(number)


@contextmanager
def _handled(numbers: Sequence[int], handle: Handler) -> Iterator[None]:
    """Handle those of the signals that are this program's own to handle."""
    before: dict[int, object] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                present = signal.getsignal(number)
                own = present in (signal.SIG_DFL, _raise) or number == signal.SIGINT
                if own and present not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as signal.signal gave it


def _leave_a_closed_terminal() -> None:
    """Where the terminal is gone, which is what SIGHUP tells, print nowhere: a line for nobody
    would be an error, and keep the training from being saved."""
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


def console_asks(event: int, wait: Callable[[float], object] = time.sleep) -> bool:
    """Do what Windows' console tells of as if SIGTERM came. Returns False for an event that is
    somebody else's, such as Ctrl-C.

    Called in a thread of Windows' own, while the main one goes on; where Windows ends the process
    once this returns, it ``wait``s.
    """
    if event != _BREAK and event not in _CLOSES:
        return False
    _thread.interrupt_main(signal.SIGTERM)
    if event in _CLOSES:
        wait(_GRACE)
    return True


@contextmanager
def _console() -> Iterator[None]:
    """Hear what Windows' console tells of, where SIGTERM is handled."""
    if sys.platform != "win32" or signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN, None):
        yield
        return
    routine = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint32)(lambda event: int(console_asks(event)))
    kernel = ctypes.WinDLL("kernel32")
    kernel.SetConsoleCtrlHandler(routine, 1)
    try:
        yield
    finally:
        kernel.SetConsoleCtrlHandler(routine, 0)
