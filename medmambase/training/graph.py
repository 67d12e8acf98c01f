"""Replay whole training steps as CUDA graphs: with small batches a step is bound by the launches of
its thousand kernels, which a graph makes all at once.

An epoch has batches of two sizes at most (``batches.py``); each gets a graph. In the dry run a step
is captured with one batch, then replayed with another and compared with the same step without a
graph: only if every weight, statistic and moment has the same bits are graphs used. So they change
no result, and a training may be resumed with or without them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from medmambase.model.cuda_graph import CudaGraphs
from medmambase.training.checkpoint import Learning
from medmambase.training.dry_run import Rehearsal, clock
from medmambase.training.optimise import set_rate
from medmambase.training.step import Batch, Outcome, Step

_SIZES = 2  # of the batches of an epoch


class Capturing(Protocol):
    """What captures a function and returns how to replay it: ``CudaGraphs``."""

    def capture(self, compute: Callable[[], Tensor], /) -> tuple[Callable[[], None], Tensor]:
        """See ``CudaGraphs.capture``."""


class GraphedStep:
    """A captured step for batches of one size. Making one changes weights, statistics and
    moments."""

    def __init__(self, step: Step, batch: Batch, graphs: Capturing) -> None:
        self._inputs = Batch(*(t.clone() for t in batch.to(step.device)))
        self._replay, self._found = graphs.capture(partial(step.whole, self._inputs))

    def __call__(self, batch: Batch) -> Tensor:
        """Take the step of a batch. Returns what ``Step.whole`` returns; the next call writes over
        it."""
        for mine, theirs in zip(self._inputs, batch, strict=True):
            mine.copy_(theirs)
        self._replay()
        return self._found


@dataclass(frozen=True)
class Graphs:
    """The graphs of a training, by the size of their batches; none where steps are taken without
    them, and then ``why``, in one clause.

    ``seconds``, of a step, and ``bytes`` of all graphs are those measured in the dry run.
    ``given_up``: whether there could have been some, which is then told.
    """

    step: Step
    of_size: Mapping[int, GraphedStep]
    why: str = ""
    seconds: float = 0.0
    bytes: int = 0
    given_up: bool = True

    def take(self, batches: Sequence[Tensor], epoch: int, whole: float, interrupted: Callable[[], int]) -> Outcome:
        """Take a step as ``Step.take`` does, by a graph where there is one for it."""
        graphed = self.of_size.get(len(batches[0])) if len(batches) == 1 else None
        if graphed is None:
            return self.step.take(batches, epoch, whole, interrupted)
        loss, hits, norm = graphed(self.step.batch(batches[0], epoch, whole)).tolist()
        return Outcome(loss, hits, float(bool(interrupted())), norm)

    def told(self) -> list[str]:
        """Return the lines for a person."""
        if not self.of_size:
            return [f"CUDA graphs: off: {self.why}"] if self.given_up else []
        sizes = " and ".join(str(size) for size in self.of_size)
        return [f"CUDA graphs: on, for batches of {sizes} images"]

    def rehearsed(self, eager: Rehearsal) -> Rehearsal:
        """Return what the dry run found, with the time and the memory that steps have now."""
        if not self.of_size:
            return eager
        return replace(eager, seconds=self.seconds, bytes=eager.bytes + self.bytes)


def capture_steps(step: Step, batches: Sequence[Tensor], graphs: Callable[[], Capturing] | None = None) -> Graphs:
    """Capture a step for each size of ``batches``, those of an epoch, if the setting, the device
    and the training allow it and replays prove exact. Weights, statistics and moments are then what
    they were, and so are random numbers.

    ``graphs`` makes what captures; None: CUDA graphs of the network's device.
    """
    off = partial(Graphs, step, {})
    if step.config.graphs == "off":
        return off("so it was set", given_up=False)
    if graphs is None and step.device.type != "cuda":
        return off("they need an NVIDIA GPU", given_up=False)
    for hindered, why in (
        (step.ranks.count > 1, "several processes exchange gradients within a step"),
        (step.config.accumulate > 1, "--accumulate adds the gradients of several batches"),
        (step.config.recompute, "--recompute reads the state of the random numbers"),
    ):
        if hindered:
            return off(why)
    own = Learning(step.network, step.learning.optimizer, None)
    before, held = _copies(own), _held(step.device)
    found: dict[int, GraphedStep] = {}
    seconds: list[float] = []
    cuda = step.device.type == "cuda"
    with torch.random.fork_rng(devices=[step.device] if cuda else [], device_type="cuda"):
        try:
            capturing = CudaGraphs(step.device) if graphs is None else graphs()
            for size in sorted({len(rows) for rows in batches}, reverse=True)[:_SIZES]:
                some = [rows for rows in batches if len(rows) == size]
                # Captured with another batch, epoch, weight and rate than it is compared with: if
                # it kept one of them, that would show.
                set_rate(own.optimizer, step.config.lr / 2)
                found[size] = GraphedStep(step, step.batch(some[0], 0, size + 1.0), capturing)
                _put_back(own, before)
                different, lasted = _compared(step, own, before, found[size], some[-1])
                if different is not None:
                    return off(f"the replay of a step differs from the step in {different}")
                seconds.append(lasted)
        except RuntimeError as error:  # whatever CUDA, cuDNN or the memory of the GPU has against it
            return off(f"a step cannot be captured ({str(error).splitlines()[0][:200]})")
        finally:
            _put_back(own, before)
            step.network.zero_grad(set_to_none=True)
    return Graphs(step, found, seconds=seconds[0], bytes=_held(step.device) - held)


def _held(device: torch.device) -> int:
    """Return the bytes of a GPU's memory that this process needs."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _copies(learning: Learning[Any]) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in learning.tensors().items()}


def _put_back(learning: Learning[Any], before: Mapping[str, Tensor]) -> None:
    """Give weights, statistics and moments their values back where they lie: a graph goes on to
    read and write there. Moments that came into being since begin at zero."""
    with torch.no_grad():
        for name, t in learning.tensors().items():
            if name in before:
                t.copy_(before[name])
            else:
                t.zero_()


def _compared(
    step: Step, learning: Learning[Any], before: Mapping[str, Tensor], graphed: GraphedStep, rows: Tensor
) -> tuple[str | None, float]:
    """Take a step with and without its graph. Returns the first tensor of which not every bit is
    the same, and the seconds of the replay."""
    batch = step.batch(rows, 1, step.weight_of(rows))

    def result(take: Callable[[], Tensor]) -> tuple[dict[str, Tensor], float]:
        set_rate(learning.optimizer, step.config.lr)
        torch.manual_seed(step.config.seed)
        found, seconds = clock(step.device, take)
        left = _copies(learning) | {"its loss, hits or norm": found.clone()}
        _put_back(learning, before)
        return left, seconds

    expected, _ = result(lambda: step.whole(batch.to(step.device)))
    actual, seconds = result(lambda: graphed(batch))
    return next((name for name, t in expected.items() if not torch.equal(t, actual[name])), None), seconds
