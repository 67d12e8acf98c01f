"""Measure the operators: equality with the definition first, then times beside the floors of the
device and the original's way of computing the same.

On a GPU a time is between two CUDA events, with the L2 cache overwritten before, which also lets
the host run ahead: what is timed is the GPU, not Python. ``call_ms`` is the wall clock of a call by
itself, Python and launches included. On a CPU both are the same clock. Peak memory is given on a
GPU only: the standard library knows no resident size on Windows, and a peak since the start of the
process says nothing about one call.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medmambase_kernels.bench.cases import OPERATORS, Case, Computation, from_projection, operator, original
from medmambase_kernels.bench.floors import Card, Work
from medmambase_kernels.bench.original import Scan, loop_scan

PASSES = ("forward", "forward+backward")
# Largest difference over the largest magnitude: float32 arithmetic throughout, so that half
# precision differs by its last rounding.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# The original rounds delta, B and C to half precision where our operators do not, and adds a
# thousand steps in another order.
_AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}
_LONGEST_DEFINITION = 256
_SECONDS, _MOST, _LEAST = 2.0, 20, 3  # of repetitions, where nobody asked for a number
_BRIEF = 0.3  # seconds for what we are compared with: a loop of a thousand steps would take most of a run
# 4 GB written: a millisecond on the fastest card, longer than Python needs for a call.
_FLUSHES, _FLUSH_BYTES = 16, 2**28


@dataclass(frozen=True)
class Times:
    """Milliseconds of each repetition."""

    all: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of all repetitions, in milliseconds."""
        return statistics.median(self.all)

    @property
    def spread(self) -> float:
        """The interquartile range, in milliseconds."""
        if len(self.all) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.all, n=4, method="inclusive")
        return high - low


@dataclass(frozen=True)
class Verdict:
    """Whether an operator equals the definition: its largest error and where, or what it raised."""

    operator: str
    dtype: str
    error: float
    where: str
    tolerance: float

    @property
    def passed(self) -> bool:
        """False also for an error that is not a number."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Row:
    """One line of the table; times in ms, memory in MB (10^6 bytes), None where there is no such
    figure on this device.

    ``same_work_ms``: our time for what ``eager`` and ``mamba`` do, theirs being the ratio's
    numerator. ``failed``: a result was wrong, or a backend raised.
    """

    operator: str
    stage: int
    channels: int
    height: int
    width: int
    batch: int
    dtype: str
    passes: str
    ms: float | None = None
    spread_ms: float | None = None
    repetitions: int = 0
    call_ms: float | None = None
    peak_mb: float | None = None
    exp_floor_ms: float | None = None
    issue_floor_ms: float | None = None
    bytes_floor_ms: float | None = None
    of_floor: float | None = None
    gflops: float | None = None
    of_peak: float | None = None
    same_work_ms: float | None = None
    eager_ms: float | None = None
    eager_spread_ms: float | None = None
    eager_repetitions: int = 0
    eager_ratio: float | None = None
    eager_peak_mb: float | None = None
    mamba_ms: float | None = None
    mamba_spread_ms: float | None = None
    mamba_repetitions: int = 0
    mamba_ratio: float | None = None
    mamba_peak_mb: float | None = None
    note: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Measured:
    """Times, the wall clock of a call and the peak of memory above what was there before, in ms and
    MB."""

    times: Times
    call_ms: float | None
    peak_mb: float | None


@dataclass(frozen=True)
class Bench:
    """Where and how to measure. ``repeat`` None takes up to 20 repetitions in 2 s, at least 3.
    ``gflops``: the CPU's own peak.

    ``most_states``: up to how many state elements (b k d n l) the original's loop runs; it keeps
    about 40 bytes of each.
    """

    device: torch.device
    backend: str | None = None
    repeat: int | None = None
    card: Card | None = None
    gflops: float | None = None
    most_states: float = 0
    mamba: Scan | None = None

    def measure(self, work: Callable[[], object], *, brief: bool = False) -> Measured:
        """``work`` warmed up (the first call may compile), then timed, then run once more for its
        memory; ``brief`` leaves out ``call_ms``."""
        estimate = min(_wall(work, self.device, 2).all) / 1e3
        repeat = self.repeat or max(_LEAST, min(_MOST, int((_BRIEF if brief else _SECONDS) / max(estimate, 1e-9))))
        if self.device.type != "cuda":
            return Measured(_wall(work, self.device, repeat), None, None)
        with torch.cuda.device(self.device):
            call_ms = None if brief else _wall(work, self.device, repeat).median
            return Measured(_events(work, self.device, repeat), call_ms, _peak(work, self.device))

    def rows(self, case: Case) -> Iterator[Row]:
        """Forward, then forward and backward, of one case."""
        ours, whole = operator(case, self.device, self.backend), from_projection(case, self.device, self.backend)
        for passes in PASSES:
            row = Row(
                case.operator,
                case.stage,
                case.channels,
                case.height,
                case.width,
                case.batch,
                name_of(case.dtype),
                passes,
            )
            try:
                row = replace(row, **self._figures(case, ours, whole, passes == PASSES[1]))
            except torch.OutOfMemoryError:
                row = replace(row, note="out of memory")
            except Exception as error:  # noqa: BLE001  # whatever a backend raises costs this line, not the others
                row = replace(row, note=f"{type(error).__name__}: {one_line(error)}", failed=True)
            yield row

    def _figures(self, case: Case, ours: Computation, whole: Computation, backward: bool) -> dict[str, Any]:
        measured = self.measure(_pass(ours, backward))
        ms, found = measured.times.median, work_of(case, ours, backward)
        row: dict[str, Any] = {
            "ms": ms, "spread_ms": measured.times.spread, "repetitions": len(measured.times.all),
            "call_ms": measured.call_ms, "peak_mb": measured.peak_mb,
        }  # fmt: skip  # one line of the table
        if self.card is not None:
            floors = self.card.floors(found)
            row |= {"exp_floor_ms": floors.exp, "issue_floor_ms": floors.issue, "bytes_floor_ms": floors.bytes}
            row |= {"of_floor": None if floors.bound is None else floors.bound / ms}
        else:
            row["gflops"] = found.operations / ms / 1e6
            row["of_peak"] = None if self.gflops is None else found.operations / ms / 1e6 / self.gflops
        theirs: dict[str, Scan] = (
            {"eager": loop_scan} if self.most_states and case.rows * case.state <= self.most_states else {}
        )
        if self.mamba is not None and case.rows:
            theirs["mamba"] = self.mamba
        same = ms
        if theirs and OPERATORS[case.operator].whole is not None:  # the original projects inside: so do we, here
            same = self.measure(_pass(whole, backward)).times.median
        row["same_work_ms"] = same if theirs else None
        notes = []
        for name, scan in theirs.items():
            try:
                row |= self._compare(name, case, whole, original(case, self.device, scan), backward, same)
            except RuntimeError as error:  # out of memory, say
                notes.append(f"{name}: {one_line(error)}")
                row["failed"] = isinstance(error, DisagreementError) or row.get("failed", False)
        return row | {"note": "; ".join(notes)}

    def _compare(
        self, name: str, case: Case, whole: Computation, theirs: Computation, backward: bool, same: float
    ) -> dict[str, Any]:
        error = max(map(relative_error, _results(whole, backward), _results(theirs, backward)))
        if not error <= _AGREEMENT[case.dtype]:
            raise DisagreementError(f"differs from ours by {error:.1e}, not compared")
        other = self.measure(_pass(theirs, backward), brief=True)
        found = {
            "ms": other.times.median,
            "spread_ms": other.times.spread,
            "repetitions": len(other.times.all),
            "peak_mb": other.peak_mb,
        }
        return {f"{name}_{figure}": value for figure, value in found.items()} | {
            f"{name}_ratio": other.times.median / same
        }


class DisagreementError(RuntimeError):
    """Two computations of the same work have different results: neither time may stand beside the
    other."""


def name_of(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| / max |expected|; infinite where either is not finite, or the shapes
    differ."""
    if actual.shape != expected.shape:
        return math.inf
    if actual.numel() == 0:
        return 0.0
    difference = (actual.double() - expected.double()).abs().max().item()
    return difference / max(expected.double().abs().max().item(), 1e-30) if math.isfinite(difference) else math.inf


def check(cases: Sequence[Case], device: torch.device, backend: str | None = None) -> Verdict:
    """Compare an operator, results and all gradients, with the float64 definition on some cases of
    one dtype. Whatever a backend raises is a verdict too."""
    name, dtype = cases[0].operator, cases[0].dtype
    worst, where = 0.0, "y"
    for case in cases:
        try:
            computation = operator(case, device, backend)
            results = _results(computation, backward=True)
        except Exception as error:  # noqa: BLE001  # a kernel that does not compile costs its own figures, not the other operators'
            raised = f"{type(error).__name__}: {one_line(error)}"
            return Verdict(name, name_of(dtype), math.inf, raised, TOLERANCE[dtype])
        expected = _results(exact(case, device), backward=True)
        labels = ("y", *(f"gradient of {a}" for a in computation.named))
        for label, one, other in zip(labels, results, expected, strict=True):
            error_here = relative_error(one, other)
            if not error_here <= worst:
                worst, where = error_here, f"{label}, map {case.height} x {case.width}, {case.channels} channels"
    return Verdict(name, name_of(dtype), worst, where, TOLERANCE[dtype])


def exact(case: Case, device: torch.device) -> Computation:
    """Make the results that ``case`` is held to: the definition's.

    Where a scan is longer than 256 steps, the definition's gradients take gigabytes: there it is
    the portable backend in float64, which tests hold to the definition within 1e-11.
    """
    if not case.rows or case.height * case.width <= _LONGEST_DEFINITION:
        return operator(case, device, "reference")
    portable = operator(case, device, "torch")
    wide = {name: t.detach().double().requires_grad_() for name, t in portable.named.items()}
    return Computation(lambda *tensors: portable.function(*tensors).to(case.dtype), wide)


def work_of(case: Case, computation: Computation, backward: bool) -> Work:
    """Count what a case has to do at least. Every input, result and gradient crosses the memory bus
    once, whatever the caches keep between the passes."""
    entry = OPERATORS[case.operator]
    moved = sum(t.numel() * t.element_size() for t in (*computation.arguments, computation.named[entry.result]))
    return entry.work(case, (1 + backward) * moved, backward)


def one_line(error: Exception) -> str:
    """The message of an error as a note in a table."""
    return " ".join(str(error).split())[:200]


def _pass(computation: Computation, backward: bool) -> Callable[[], object]:
    if not backward:
        return computation.forward
    dy = torch.ones_like(computation.forward())
    return lambda: computation.backward(dy)


def _results(computation: Computation, backward: bool) -> tuple[Tensor, ...]:
    y = computation.forward()
    return (
        computation.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
        if backward
        else (y,)
    )


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _wall(work: Callable[[], object], device: torch.device, repeat: int) -> Times:
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        _synchronise(device)
        times.append(1e3 * (time.perf_counter() - began))
    return Times(tuple(times))


def _events(work: Callable[[], object], device: torch.device, repeat: int) -> Times:
    cache = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeat)]
    for begin, end in marks:
        for _ in range(_FLUSHES):
            cache.zero_()
        begin.record()
        work()
        end.record()
    _synchronise(device)
    return Times(tuple(begin.elapsed_time(end) for begin, end in marks))


def _peak(work: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    _synchronise(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6
