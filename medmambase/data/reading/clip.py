"""Read several frames of one file, which is opened and decoded once."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from medmambase.config import Preprocessing
from medmambase.data.reading.images import Facts, ImageError, decode_frames, load


def load_frames(
    path: Path, preprocessing: Preprocessing, frames: Sequence[int]
) -> Iterator[tuple[torch.Tensor, Facts] | ImageError]:
    """Yield what ``load`` returns for each of these frames, from 0 and in their order, or why one
    cannot be read. One frame at a time is in memory at full size."""
    for found in decode_frames(path, preprocessing.high_depth, frames):
        yield found if isinstance(found, ImageError) else load(path, preprocessing, found)


class Clip:
    """Chosen frames of a file for threads that ask for them nearly in order: whoever is first
    decodes, and only what was passed over is kept."""

    def __init__(self, path: Path, preprocessing: Preprocessing, frames: Sequence[int]) -> None:
        self.path, self.frames = path, tuple(frames)
        self._lock = threading.Lock()
        self._left = zip(frames, load_frames(path, preprocessing, frames), strict=True)
        self._ready: dict[int, tuple[torch.Tensor, Facts] | ImageError] = {}

    def take(self, frame: int) -> tuple[torch.Tensor, Facts]:
        """Return what ``load`` returns for one of the frames; each can be taken once. Raises
        ImageError."""
        with self._lock:
            while frame not in self._ready:
                number, found = next(self._left)
                self._ready[number] = found
            taken = self._ready.pop(frame)
        if isinstance(taken, ImageError):
            raise taken
        return taken
