"""Handle Ctrl-C: the first one stops after the current step, a second one stops at once.

The loop then saves and ends.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# A closer second one is the same Ctrl-C: under torchrun a process gets it from the terminal and
# again from torchrun.
_SECOND = 0.5


@contextmanager
def first_interrupt_waits() -> Iterator[Callable[[], bool]]:
    """Delay the first Ctrl-C: it only makes the yielded function return true; a second one raises
    KeyboardInterrupt at once.

    Elsewhere than in the main thread, where no signal arrives, and where Ctrl-C is ignored, nothing
    is changed.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) in (
        signal.SIG_IGN,
        None,
    ):
        yield lambda: False
        return
    came: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(time.monotonic())
        if came[-1] - came[0] >= _SECOND:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
