"""How fast a device could be at most: the work that an operator cannot avoid, and how much of it a
GPU does in a second.

Counted from the definition, not from a kernel: a time below a floor is a fault of the measurement.
For each state element of a scan

    forward   5 instructions, of them 1 exponential; 7 operations:
              delta A, exp, a h, + (delta u) B, + C h
    backward  4 + 9 instructions, of them 1 exponential; 20 operations:
              the first four again, since no state is kept; + C dy, dC, dB, d(delta u), a h, times
              dh, ddelta, dA, and a dh

and one exponential more for each step and channel, the softplus's. For each element of a map

    gate         2, and 2 backward: a sum and a product; two products that are added
    norm         9: sum, sum of squares, two multiply-adds, SiLU (4), product
                 19 backward: the multiply-adds, SiLU and its derivative (6), dz (2), dn, dw, db,
                 times w, its two sums, dy (3)
    convolution  4 and the taps inside the map: a multiply-add for each, SiLU (4)
                 8 and twice the taps backward: SiLU and its derivative (6), their product, db
    causal       the same of a sequence

where a multiply-add is one instruction and two operations, and a sigmoid takes one exponential. A
multiprocessor of a GPU starts 16 exponentials and 128 lanes of instructions a clock (compute
capability 8.0 to 12.0; 8.0 and 9.0 do as many float32 operations). An exponential counts as one
operation, though a CPU needs a dozen.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

EXPONENTIALS_A_CLOCK = 16
LANES_A_CLOCK = 128


@dataclass(frozen=True)
class Work:
    """What a pass has to do at least: exponentials, instructions (of one lane), floating-point
    operations, bytes to and from memory."""

    exponentials: float
    instructions: float
    operations: float
    bytes: float


@dataclass(frozen=True)
class Floors:
    """Milliseconds below which no program can stay, for each of a GPU's limits; None where the
    device does not say what it can do."""

    exp: float | None
    issue: float | None
    bytes: float | None

    @property
    def bound(self) -> float | None:
        """The highest of them: what a program could reach if the three overlapped perfectly. None
        if one of them is not known."""
        return (
            None
            if self.exp is None or self.issue is None or self.bytes is None
            else max(self.exp, self.issue, self.bytes)
        )


@dataclass(frozen=True)
class Card:
    """A GPU: multiprocessors, their highest clock in Hz, bytes of memory a second; None where
    PyTorch does not know."""

    name: str
    processors: int
    clock: float | None
    bandwidth: float | None

    def floors(self, work: Work) -> Floors:
        """The floors of ``work`` on this card, in milliseconds."""
        clocks = None if self.clock is None else self.clock * self.processors
        return Floors(
            None if clocks is None else 1e3 * work.exponentials / (EXPONENTIALS_A_CLOCK * clocks),
            None if clocks is None else 1e3 * work.instructions / (LANES_A_CLOCK * clocks),
            None if self.bandwidth is None else 1e3 * work.bytes / self.bandwidth,
        )


def card(properties: Any, clock: float | None = None) -> Card:
    """The card that ``torch.cuda.get_device_properties`` describes; ``clock`` in Hz where PyTorch
    is too old to name it (as 2.7 is)."""
    kilohertz, memory, bits = (
        getattr(properties, name, 0) for name in ("clock_rate", "memory_clock_rate", "memory_bus_width")
    )
    # Two transfers in each clock of the memory, as every maker counts them.
    bandwidth = 2 * 1e3 * memory * bits / 8 or None
    return Card(properties.name, properties.multi_processor_count, 1e3 * kilohertz or clock, bandwidth)


def matmul_peak(size: int = 2048, repeat: int = 5) -> float:
    """Measure a CPU's peak: the GFLOP/s of the fastest of some float32 products of two (size, size)
    matrices on this process's threads."""
    a, b = torch.rand(2, size, size)
    torch.mm(a, b)
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times) / 1e9


def scan_work(rows: int, state: int, moved: float, backward: bool) -> Work:
    """Count a scan of ``rows`` steps times channels (over all images and directions) of ``state``
    states, that moves so many bytes."""
    passes, states = 1 + backward, rows * state
    return Work(passes * (states + rows), states * (18 if backward else 5), states * (27 if backward else 7), moved)


def gate_work(elements: int, moved: float, backward: bool) -> Work:
    """Count a squeeze-and-excitation gate over a map of so many elements; its small matrices are
    left out."""
    return Work(0, elements * (4 if backward else 2), elements * (6 if backward else 2), moved)


def norm_work(elements: int, moved: float, backward: bool) -> Work:
    """Count LayerNorm times the SiLU of a gate over a map of so many elements."""
    return Work(
        elements * (1 + backward), elements * (28 if backward else 9), elements * (37 if backward else 12), moved
    )


def convolution_work(batch: int, height: int, width: int, channels: int, moved: float, backward: bool) -> Work:
    """Count a depthwise 3x3 convolution and SiLU over a map; taps outside the map cost nothing."""
    elements, taps = (batch * channels * area for area in (height * width, (3 * height - 2) * (3 * width - 2)))
    return Work(
        elements * (1 + backward),
        3 * taps + 12 * elements if backward else taps + 4 * elements,
        6 * taps + 13 * elements if backward else 2 * taps + 4 * elements,
        moved,
    )


def causal_work(batch: int, length: int, channels: int, taps: int, moved: float, backward: bool) -> Work:
    """Count a causal convolution and SiLU over sequences; taps before the first step cost
    nothing."""
    elements = batch * length * channels
    missing = sum(taps - 1 - step for step in range(min(length, taps)))
    inside = elements * taps - batch * channels * missing
    return Work(
        elements * (1 + backward),
        3 * inside + 12 * elements if backward else inside + 4 * elements,
        6 * inside + 13 * elements if backward else 2 * inside + 4 * elements,
        moved,
    )
