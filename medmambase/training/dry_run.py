"""Try two batches before the first epoch, to find out whether memory is enough, how long an epoch
takes, and whether the first loss is that of guessing.

Afterwards weights, BatchNorm's statistics, gradients and random numbers are
what they were.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


@dataclass(frozen=True)
class Rehearsal:
    """The mean loss of the first batch, seconds for a batch, and bytes for a step; ``of_bytes`` is
    the GPU's memory, None elsewhere."""

    loss: float
    seconds: float
    bytes: int
    of_bytes: int | None

    def line(self, guessing: tuple[str, float], batches: int) -> str:
        """Return one line for the log; an epoch has ``batches`` batches. ``guessing``: how one does
        it, and the loss that it has."""
        memory = f"{self.bytes / 1e9:.2f} GB" + (f" of {self.of_bytes / 1e9:.0f} GB" if self.of_bytes else "")
        minutes, seconds = divmod(round(self.seconds * batches), 60)
        lasts = f"{minutes} min {seconds} s" if minutes else f"{max(seconds, 1)} s"
        how, loss = guessing
        return (
            f"first loss {self.loss:.3f} ({how}: {loss:.3f}); a step needs about {memory}; an epoch takes about {lasts}"
        )


def rehearse(
    network: nn.Module, learn: Callable[[Tensor], float], batches: Sequence[Tensor], moments: int
) -> Rehearsal:
    """Measure the loss, time and memory of two batches. ``learn(rows)`` adds the gradients of a
    batch and returns its mean loss. Of ``batches`` the first two are used; a single one is used
    twice.

    Memory is the GPU's peak, elsewhere what is kept for backward, with the weights, their
    gradients, and the ``moments`` that the optimiser keeps of each.
    """
    device = next(network.parameters()).device
    learned = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else [], device_type="cuda"):
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = learn(batches[0])
        _, seconds = clock(device, lambda: learn(batches[min(1, len(batches) - 1)]))
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
    if cuda:
        return Rehearsal(
            loss,
            seconds,
            torch.cuda.max_memory_allocated(device) + moments * learned,
            torch.cuda.mem_get_info(device)[1],
        )
    return Rehearsal(loss, seconds, sum(kept.values()) + (1 + moments) * learned, None)


def clock(device: torch.device, call: Callable[[], Result]) -> tuple[Result, float]:
    """Return what ``call`` returns, and how many seconds it keeps ``device`` busy."""
    _wait(device)
    began = time.perf_counter()
    result = call()
    _wait(device)
    return result, time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
