"""Decode images each time they are used: for sets larger than memory, with nothing kept on disk."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from medmambase.config import Preprocessing
from medmambase.data.manifest.folders import Sample
from medmambase.data.manifest.published import pixels_of, room_of
from medmambase.data.reading.images import Facts, ImageError, load
from medmambase.machine import cores

_AHEAD = 256  # images decoded before they are asked for: several batches, and a few MB


def threads() -> int:
    """Return how many threads decode images: one for each processor, eight at most."""
    return min(8, cores())


class OnDemand:
    """A stand-in for the torch.uint8 (n, c, s, s) tensor of decoded images, indexed like it along
    its first axis.

    ``grey`` says whether every image has equal channels. Asking raises ImageError for a file that
    has gone or changed since it was first read: the figures of a run whose data moves under it
    would mean nothing.
    """

    def __init__(
        self, samples: Sequence[Sample], facts: Sequence[Facts], preprocessing: Preprocessing, channels: int, grey: bool
    ) -> None:
        self.samples, self.facts, self.preprocessing, self.channels, self.grey = (
            samples,
            facts,
            preprocessing,
            channels,
            grey,
        )
        self.pool = ThreadPoolExecutor(threads(), thread_name_prefix="decode")
        self.order: Iterator[int] = iter(())
        self.ready: deque[tuple[int, Future[Tensor]]] = deque()

    @property
    def shape(self) -> torch.Size:
        """(n, c, s, s)."""
        return torch.Size((len(self.samples), self.channels, self.preprocessing.size, self.preprocessing.size))

    def __getitem__(self, rows: Tensor | Sequence[int] | slice) -> Tensor:
        """torch.uint8 (k, c, s, s): the images of these rows."""
        asked = [self._decoding(row) for row in torch.arange(len(self.samples))[rows].tolist()]
        return (
            torch.stack([image.result() for image in asked])
            if asked
            else torch.empty((0, *self.shape[1:]), dtype=torch.uint8)
        )

    def expect(self, order: Tensor) -> None:
        """Announce what will be asked for next, torch.int64 (k,): threads decode it while the
        network is busy. Asking for something else only costs time."""
        for _, image in self.ready:
            image.cancel()
        self.ready.clear()
        self.order = iter(order.tolist())
        self._go_on()

    def rows(self, rows: Sequence[int]) -> "OnDemand":
        """These images, in this order, not yet decoded."""
        return OnDemand(
            [self.samples[row] for row in rows],
            [self.facts[row] for row in rows],
            self.preprocessing,
            self.channels,
            self.grey,
        )

    def to_grey(self) -> "OnDemand":
        """The first channel alone."""
        return OnDemand(self.samples, self.facts, self.preprocessing, 1, True)

    def _decoding(self, row: int) -> Future[Tensor]:
        if not self.ready or self.ready[0][0] != row:
            return self.pool.submit(self._decode, row)
        _, image = self.ready.popleft()
        self._go_on()
        return image

    def _go_on(self) -> None:
        while len(self.ready) < _AHEAD and (row := next(self.order, None)) is not None:
            self.ready.append((row, self.pool.submit(self._decode, row)))

    def _decode(self, row: int) -> Tensor:
        sample = self.samples[row]
        with room_of(sample):
            pixels = None if sample.row is None else pixels_of(sample)
            image, facts = load(sample.path, self.preprocessing, pixels, sample.frame or 0)
        if facts.digest != self.facts[row].digest:
            raise ImageError(
                sample.path,
                "has changed since it was first read; leave the data alone during a run, and start the run again",
            )
        return image[: self.channels]
