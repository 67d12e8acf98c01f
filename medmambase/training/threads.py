"""Choose how many threads train on a CPU: all of them, or one, whichever is faster here and now.

Each parallel part of a step ends with its slowest thread. Where other programs want the processors
too, one of many threads always waits for its turn, and one thread alone may be many times as fast.

PyTorch's own sums depend in their last bits on the number of threads, so the number belongs to the
state of a training: an epoch that is resumed goes on with the number it began with.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from medmambase.distributed import Ranks
from medmambase.training.dry_run import Rehearsal

_CLEARLY = 0.8  # of the time: what is hardly faster is not worth other last bits
_PART = 20  # a look may take the twentieth part of the time since the last one


@dataclass
class Crew:
    """The ``count`` of threads that train: 1, or ``all`` that torch has; 0 where a GPU does.

    ``chooses``: whether 1 and all differ on any of the processes, and so are measured.
    """

    all: int
    ranks: Ranks
    chooses: bool
    count: int = 0
    _rehearsal: Callable[[], Rehearsal] | None = None
    _told: list[str] = field(default_factory=list)
    _spent: float = 0.0
    _since: float = 0.0

    def begin(self, recorded: int, rehearsal: Callable[[], Rehearsal]) -> Rehearsal:
        """Take the number of threads that a resumed training has ``recorded``, else (0) the faster
        one. Returns the dry run with it; ``rehearsal`` is also called later."""
        self._rehearsal = rehearsal
        if not self.all:
            return rehearsal()
        self.count = 1 if recorded == 1 else self.all
        torch.set_num_threads(self.count)
        self._since = time.perf_counter()
        if recorded not in (0, self.count):
            self._told.append(
                f"note: this epoch began with {recorded} threads and goes on with {self.count}; its results may "
                f"differ in their last digits"
            )
        return rehearsal() if recorded or not self.chooses else self._look(rehearsal)

    def again(self) -> None:
        """Look again at the end of an epoch, unless that would take too long a part of the
        time."""
        worth = time.perf_counter() - self._since >= _PART * self._spent
        if self._rehearsal and self.chooses and self.ranks.sum(torch.tensor([float(worth)])).item() == self.ranks.count:
            self._look(self._rehearsal)

    def told(self) -> list[str]:
        """Return the lines for a person that are new."""
        lines, self._told = self._told, []
        return lines

    def _look(self, rehearsal: Callable[[], Rehearsal]) -> Rehearsal:
        began, found = time.perf_counter(), []
        for count in (self.all, 1):  # both on every process, which compute a batch together
            torch.set_num_threads(count)
            found.append(rehearsal())
        own = torch.tensor([each.seconds for each in found], dtype=torch.float64)
        together, alone = (self.ranks.sum(own) / self.ranks.count).tolist()
        before, first = self.count, not self._spent
        one = alone < _CLEARLY * together if before == self.all else together >= _CLEARLY * alone
        self.count = 1 if one else self.all
        torch.set_num_threads(self.count)
        if first or self.count != before:
            why = "; something else keeps this machine busy, or the network is small" if one else ""
            self._told.append(
                f"threads: {self.count} of {self.all}: a batch takes {alone:.2g} s with one and {together:.2g} s with "
                f"all{why}"
            )
        self._since = time.perf_counter()
        self._spent = self._since - began
        return found[one]


@contextmanager
def crew_of(device: torch.device, ranks: Ranks) -> Iterator[Crew]:
    """Let a training on ``device`` choose its threads; afterwards torch has as many as before."""
    present = torch.get_num_threads()
    own = present if device.type == "cpu" else 0
    try:
        yield Crew(own, ranks, ranks.sum(torch.tensor([float(own > 1)])).item() > 0)
    finally:
        torch.set_num_threads(present)
