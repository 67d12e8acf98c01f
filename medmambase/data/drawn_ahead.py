"""Draw pictures ahead of their use, in other processes: batch after batch, the same whoever draws
them.

Nothing here imports PyTorch, so that such a process is there in a moment and takes little memory.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medmambase.data.phantom.scenes import draw
from medmambase.data.reading.fitted import in_channels
from medmambase.machine import cores

_AHEAD = 3  # batches for each process: one in work, and some so that no step waits for a slow one


@dataclass(frozen=True)
class Drawing:
    """Everything that decides what is drawn, but for the number of a picture and its size."""

    seed: int
    scenes: tuple[str, ...]
    speckle: bool
    structure: bool
    channels: int


class Request(NamedTuple):
    """As many ``pictures`` as said, from number ``first`` on, with sides of ``size`` pixels."""

    first: int
    pictures: int
    size: int


class Drawn(NamedTuple):
    """Pictures as a network takes them: ``images`` uint8 (b, c, s, s), ``structures`` float32 (b,
    structures) of 0 and 1, ``echo`` and ``edges`` float32 (b, s, s) from 0 to 1."""

    images: npt.NDArray[np.uint8]
    structures: npt.NDArray[np.float32]
    echo: npt.NDArray[np.float32]
    edges: npt.NDArray[np.float32]


class DrawingError(Exception):
    """A process that draws has ended; the message says what to do."""


def drawn(drawing: Drawing, request: Request) -> Drawn:
    """Draw the pictures of a request."""
    found = draw(
        drawing.seed, range(request.first, request.first + request.pictures), size=request.size, scenes=drawing.scenes,
        speckle=drawing.speckle, structure=drawing.structure,
    )  # fmt: skip  # what decides
    images = np.stack([in_channels(pixels, drawing.channels) for pixels in found.images]).transpose(0, 3, 1, 2)
    return Drawn(np.ascontiguousarray(images), found.structures, found.echo, found.edges)


def drawn_ahead(drawing: Drawing, requests: Iterable[Request], workers: int) -> Generator[Drawn, None, None]:
    """Yield the pictures of each request, in their order; with ``workers`` that many processes draw
    the next ones meanwhile. Raises DrawingError where one of them ends."""
    if not workers:
        yield from (drawn(drawing, request) for request in requests)
        return
    # Started anew on every system: a copy of a process that has threads may hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    # Processes are started in a thread, where no signal is raised: one that was left in the middle
    # would end in a traceback of its own.
    starter = ThreadPoolExecutor(1)
    waiting: deque[Future[Drawn]] = deque()
    try:
        for request in requests:
            waiting.append(starter.submit(pool.submit, drawn, drawing, request).result())
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DrawingError(
            "a process that draws pictures has ended; draw in this one with --workers 0 (workers=0), or, in a script "
            'of yours, call pretrain below: if __name__ == "__main__":'
        ) from error
    finally:
        try:
            starter.shutdown()
        finally:
            pool.shutdown(cancel_futures=True)


def processes(wish: int | None) -> int:
    """Return how many processes draw: as many as wished, else half of the processors, eight at
    most, so that the others train."""
    return wish if wish is not None else max(1, min(8, cores() // 2))


def _begin() -> None:
    """Leave Ctrl-C and the like to the process that trains, which saves first; but end with it,
    however it ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        with suppress(AttributeError, ValueError):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(0)
