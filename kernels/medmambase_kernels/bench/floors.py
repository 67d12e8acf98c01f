"""How fast a device could be at most: what an operator cannot avoid doing, and how much of it a GPU
or a processor does in a second.

Counted from the definition, not from a kernel: a time below a floor is a fault of the measurement.
For each state element of a scan

    forward     delta A, exp, a h, + (delta u) B, + C h                            5 instructions,
    of them 1 exponential; 7 operations backward    the first four again, since no state is kept; +
    C dy, dC, dB,      4 + 9 instructions, of them 1 exponential; 20 operations
                d(delta u), a h, times dh, ddelta, dA, and a dh

and one exponential more for each step and channel, the softplus's. A GPU's multiprocessor starts 16
exponentials and 128 lanes of instructions a clock (compute capability 8.0 to 12.0; 8.0 and 9.0 do
as many float32 operations). An exponential counts as one operation, though a CPU needs a dozen.
Last stop before: bench_cases.py. Next stop: bench.py.
"""

import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

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


def nvidia_smi(properties: Any) -> tuple[str | None, float | None]:
    """The driver's version and the highest clock in Hz, where the program that knows them is
    there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, None
    query = [
        program,
        "--query-gpu=driver_version,clocks.max.sm",
        "--format=csv,noheader,nounits",
        f"--id=GPU-{getattr(properties, 'uuid', '')}",
    ]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=30, check=True
        )
        driver, clock = done.stdout.strip().splitlines()[0].split(", ")
        return driver, 1e6 * float(clock)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None, None


def scan_work(rows: int, state: int, moved: float, backward: bool) -> Work:
    """A scan of ``rows`` steps and channels (over all images and directions), each with ``state``
    states, that moves so many bytes."""
    passes, states = 1 + backward, rows * state
    return Work(passes * (states + rows), states * (18 if backward else 5), states * (27 if backward else 7), moved)


def gate_work(elements: int, moved: float, backward: bool) -> Work:
    """A squeeze-and-excitation gate over so many elements: a sum and a product, and backward two
    products added; its small matrices are left out."""
    return Work(0, elements * (4 if backward else 2), elements * (6 if backward else 2), moved)
