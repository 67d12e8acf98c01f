"""Capture the launches of CPU kernels and replay them: on a small input Python takes longer to say
what to do than the processor to do it.

Within ``with Capture() as capture`` every launch of a CPU kernel is kept as well as run, with
its memory, and so is every ``capture.call``. ``replay`` then does the same on the same memory:
the caller writes the next input where the first one stood, and reads the result where the first
one came. What else is computed in between is computed once, as constants made from weights are.
"""

import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

Step = TypeVar("Step", bound=Callable[[], object])


class _Current(threading.local):
    """What captures in this thread."""

    capture: "Capture | None" = None


_current = _Current()


class Capture:
    """Capture steps while it is open, and replay them in their order. Not for two threads at once,
    neither to capture nor to replay."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")

    @staticmethod
    def current() -> "Capture | None":
        """The one that is open in this thread, if any is."""
        return _current.capture

    def __enter__(self) -> Self:
        if _current.capture is not None:
            raise RuntimeError("a capture is open in this thread already; close it first")
        _current.capture = self
        return self

    def __exit__(self, *_: object) -> None:
        _current.capture = None

    def add(self, step: Step) -> Step:
        """Keep a step that was taken, and return it."""
        self._steps.append(step)
        return step

    def last(self) -> Callable[[], object] | None:
        """The step that was taken last."""
        return self._steps[-1] if self._steps else None

    def call(self, function: Callable[..., Any], shape: tuple[int, ...], *arguments: Any) -> Tensor:
        """``function(*arguments, out=...)`` into new float32 memory of ``shape``: now, and at every
        replay. Returns that memory. Raises TypeError for what is no function."""
        if not callable(function):
            raise TypeError(f"function is {function!r}; it must be one that takes the arguments and out=")
        out = torch.empty(shape, dtype=torch.float32, device="cpu")

        def step() -> None:
            function(*arguments, out=out)

        step()
        self.add(step)
        return out

    def scratch(self, floats: int) -> Tensor:
        """Memory that steps write before they read it, shared by all."""
        if len(self._scratch) < floats:
            self._scratch = torch.empty(floats, dtype=torch.float32, device="cpu")
        return self._scratch

    def replay(self) -> None:
        """Take all steps again."""
        for step in self._steps:
            step()
