"""Take the random numbers of one picture, which are drawn at once, one after another."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
NUMBERS = 1024  # twice what the longest scene takes


class Chances:
    """The numbers that decide what is in a picture: ``NUMBERS`` uniform ones, in their order.

    Floats of Python, since a call of NumPy for each would take most of the time of a picture.
    Raises IndexError for more numbers than there are.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._numbers = rng.random(NUMBERS).tolist()
        self.taken = 0

    def unit(self) -> float:
        """From 0 to 1."""
        number: float = self._numbers[self.taken]
        self.taken += 1
        return number

    def between(self, low: float, high: float) -> float:
        number: float = self._numbers[self.taken]
        self.taken += 1
        return low + (high - low) * number

    def chance(self, share: float) -> bool:
        """True in ``share`` of all cases."""
        return self.unit() < share

    def whole(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return low + int((high - low + 1) * self.unit())

    def side(self) -> int:
        """-1 or 1."""
        return 1 if self.unit() < 0.5 else -1

    def angle(self) -> float:
        return 2 * math.pi * self.unit()

    def one_of(self, values: Sequence[T]) -> T:
        return values[int(len(values) * self.unit())]
