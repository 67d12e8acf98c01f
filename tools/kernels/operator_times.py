"""Predict how long an operator takes on a GPU, without one: its launches, each by sm_model.py or
by the bytes it moves, PyTorch's kernels around them, and the cost of a launch. Nothing is measured.

    a scan's kernel         a program's start, and for each turn of its hot loops the predicted
                            cycles, with as many programs on a multiprocessor as registers, shared
                            memory and the grid allow, wave after wave; at least its bytes' time;
                            the branch that keeps a state is taken once a chunk
    any other kernel        its bytes, at the rate of a stream
    PyTorch's kernels       likewise; where axes change their order, so long for each element
    a launch                so long each, whoever makes it

What a call costs in Python is left out: a GPU's clock does not see it where the host runs ahead.
"""

import importlib
import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import kernel_launches
import machine_code
from compiled_kernel import Usage, compile_launch
from kernel_launches import Launch, launches_of
from medmambase_kernels._triton import launch_table
from medmambase_kernels.bench.cases import OPERATORS, Case
from sm_model import H200, Multiprocessor, predict

LAUNCH = 2.5e-6  # s a kernel, ours or PyTorch's; fitted by eye on twelve times of an H200
TURNED = 10e-12  # s an element of a copy by PyTorch whose axes change their order; fitted on the same
STREAM = 3.0e12  # bytes/s of a kernel that only moves data; assumed, 0.7 of the memory's rate
START = 2500  # cycles from a program's start to its loop; assumed
_REGISTERS, _REGISTER_UNIT = 65536, 256  # of a multiprocessor; allocated to a warp
_SHARED, _SHARED_RESERVED = 233472, 1024  # bytes of a multiprocessor; that each program takes besides
_PROGRAMS = 32  # on a multiprocessor at once
ARCH = 90  # the generation that the model is of


@dataclass(frozen=True)
class Work:
    """What one call launches: kernels of ours, in order; of PyTorch's how many, and the seconds
    that they take beyond their launches; and what the launch table chose, forward first."""

    ours: tuple[Launch, ...]
    pytorch: int
    pytorch_s: float
    chosen: tuple[Any, ...] = ()


@dataclass(frozen=True)
class PredictedTime:
    """PREDICTED milliseconds of one call: in our kernels, in PyTorch's, and in launching both; of
    each of ours its name, its programs and its milliseconds; and how many are PyTorch's."""

    kernels_ms: float
    pytorch_ms: float
    launches_ms: float
    ours: tuple[tuple[str, int, float], ...]
    pytorch: int

    @property
    def ms(self) -> float:
        """All of it."""
        return self.kernels_ms + self.pytorch_ms + self.launches_ms


class _PyTorchKernels(TorchDispatchMode):
    """Counts the kernels that PyTorch would launch, and adds up their times; on meta tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.count, self.seconds = 0, 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not _is_free(function):
            made = [t for t in _tensors(result) if t.numel()]
            if made:
                self.count += 1
                self.seconds += _seconds_of_pytorch(_tensors((args, kwargs or {})), made)
        return result


def _is_free(function: Any) -> bool:
    """Whether an operation launches nothing: a view, or memory that nobody fills."""
    name = function._schema.name.split("::")[1]
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
    return views or name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift")


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    return [t for value in values for t in _tensors(value)] if isinstance(values, Sequence | type({}.values())) else []


def _seconds_of_pytorch(given: Sequence[Tensor], made: Sequence[Tensor]) -> float:
    largest = max(made, key=Tensor.numel)
    turned = any(t.dim() == largest.dim() and t.shape == largest.shape and _order(t) != _order(largest) for t in given)
    moved = sum(t.numel() * t.element_size() for t in (*given, *made))
    return max(TURNED * largest.numel() if turned else 0.0, moved / STREAM)


def _order(t: Tensor) -> list[int]:
    """Axes longer than 1, in the order in which they lie in memory."""
    return sorted((i for i in range(t.dim()) if t.shape[i] > 1), key=t.stride, reverse=True)


def work_of(case: Case, passes: str, machine: Multiprocessor = H200, instead: Any = None) -> Work:
    """Run an operator's launchers on tensors without storage, as one call would.

    Args:
        case: one of medmambase_kernels.bench.
        passes: "forward", "forward keeping states", as where a backward pass is to follow, or
            "forward+backward".
        instead: a row for the launch table to give in place of the one of its kind that it chose.
    """
    call, chosen = _call(case, passes), []

    def choosing(choose: Callable[..., Any]) -> Callable[..., Any]:
        def choice(*args: Any, **options: Any) -> Any:
            chosen.append(choose(*args, **options))
            return instead if type(instead) is type(chosen[-1]) else chosen[-1]

        return choice

    with _as_on(machine) as stack, _PyTorchKernels() as pytorch:
        for name, choose in list(vars(launch_table).items()):
            if name.rpartition("_")[2] in ("forward", "backward"):
                stack.enter_context(mock.patch.object(launch_table, name, choosing(choose)))
        ours = launches_of(call, str(case.dtype).removeprefix("torch."))
    return Work(tuple(ours), pytorch.count, pytorch.seconds, tuple(chosen))


def _call(case: Case, passes: str) -> Callable[[], object]:
    entry = OPERATORS[case.operator]
    with torch.device("meta"):
        drawn = entry.draw(case, lambda *shape: torch.empty(shape))
        tensors = tuple((drawn if entry.prepare is None else entry.prepare(case, drawn)).values())
    tensors = tuple(t.contiguous() if entry.prepare is not None else t for t in tensors)
    engine = importlib.import_module(f"medmambase_kernels._triton.{case.operator}")
    options: dict[str, tuple[object, ...]] = {
        "selective_scan": (None, True, case.dtype),  # no initial state, softplus
        "selective_scan_2d": (torch.float32, False),
        "squeeze_excite": (None, None, None, 1.0),  # x alone
        "gated_norm": (1e-5,),
        "depthwise_silu": (),
        "causal_conv1d": (None, True),  # no initial states, SiLU
    }
    given = (*tensors, *options[case.operator])

    def call() -> None:
        *results, kept = engine.forward(*given, passes != "forward")
        if passes == "forward+backward":
            engine.backward(*(torch.empty_like(t) for t in results), *given, kept)

    return call


def _as_on(machine: Multiprocessor) -> ExitStack:
    """Let the launchers see a GPU of so many multiprocessors; a tensor without storage is on
    none."""
    stack = ExitStack()
    for name in ("scan", "selective_scan", "selective_scan_2d", *kernel_launches.MODULES):
        module = importlib.import_module(f"medmambase_kernels._triton.{name}")
        if hasattr(module, "processors"):
            stack.enter_context(mock.patch.object(module, "processors", lambda _: machine.count))
    return stack


def turns(launch: Launch) -> tuple[int, ...]:
    """How often a program of a scan's kernel takes each of its hot loops, the longest loop first;
    empty for other kernels.

    A loop over the last, odd steps is not counted.
    """
    constants, sizes = launch.constants, launch.sizes

    def number(name: str, default: int = 0) -> int:
        value = constants.get(name, sizes.get(name, default))
        return value if isinstance(value, int) else default

    if not launch.states:
        return ()
    if launch.kernel == "carry":
        return (number("chunks"),)
    unit = number("STEPS") if constants.get("EVEN") else 1
    length = number("length") * unit if "length" in sizes else number("height") * number("width")
    steps = min(length, number("CHUNK"))
    if launch.kernel == "adjoint_ends":
        return (-(-steps // number("STEPS")),)
    if launch.kernel == "forward":
        whole = number("MODE") == 0
        return (-(-(length if whole else steps) // number("STEPS")),) * number("PAIR", 1)
    if launch.kernel == "backward":
        items = -(-(number("items") - number("start")) // launch.programs)
        once = items * -(-(steps if constants["CHUNKED"] else length) // number("STEPS"))
        return (once, once)
    return ()


def turns_a_branch(launch: Launch) -> int:
    """Of how many turns of a scan's hot loop one takes the branch in it: the one that a state to be
    kept is of."""
    constants = launch.constants
    if launch.kernel != "forward" or not constants.get("SAVE") or constants.get("MODE") != 0:
        return 1
    chunk, steps = constants["CHUNK"], constants["STEPS"]
    return chunk // steps if isinstance(chunk, int) and isinstance(steps, int) else 1


def resident(usage: Usage, warps: int) -> int:
    """Programs that fit on a multiprocessor at once."""
    registers = -(-usage.registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT * warps
    return max(1, min(_PROGRAMS, _REGISTERS // registers, _SHARED // (usage.shared + _SHARED_RESERVED)))


def seconds_of(
    launches: Sequence[Launch], cached: Path | None = None, machine: Multiprocessor = H200
) -> tuple[float, ...]:
    """Predict the seconds of launches that differ in their grids and sizes alone, without the cost
    of a launch: it is compiled once."""
    usage = compile_launch(launches[0], ARCH, cached) if turns(launches[0]) else None
    return tuple(_seconds(launch, usage, machine) for launch in launches)


def _seconds(launch: Launch, usage: Usage | None, machine: Multiprocessor) -> float:
    repeats = turns(launch)
    if usage is None or not repeats or not usage.loops:
        return launch.bytes / STREAM
    hot, every = usage.loops[: len(repeats)], turns_a_branch(launch)
    warps = launch.options.get("num_warps", 4)
    fit, share = resident(usage, warps if isinstance(warps, int) else 4), math.ceil(launch.programs / machine.count)

    def wave(programs: int) -> float:
        if programs == 0:
            return 0.0
        return START + sum(n * turn(loop, programs) for n, loop in zip(repeats, hot, strict=True))

    def turn(loop: machine_code.Loop, programs: int) -> float:
        cycles = _cycles(loop.code, programs, machine)
        return cycles if every == 1 else (cycles + (every - 1) * _cycles(loop.shortest, programs, machine)) / every

    cycles = share // fit * wave(fit) + wave(share % fit)
    return max(cycles / machine.clock, launch.bytes / (machine.hbm_bytes * machine.count * machine.clock))


@cache
def _cycles(code: tuple[Any, ...], warps: int, machine: Multiprocessor) -> float:
    return predict(code, warps, machine).cycles


def predict_all(works: Sequence[Work], jobs: int, cached: Path | None = None) -> list[PredictedTime]:
    """Predict the time of each call. Launches that one compilation serves are compiled once, in so
    many processes."""
    groups: dict[str, list[Launch]] = {}
    for launch in (launch for work in works for launch in work.ours):
        groups.setdefault(launch.specialisation, []).append(launch)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.map(seconds_of, groups.values(), [cached] * len(groups))
    seconds = {id(launch): s for group, times in zip(groups.values(), found, strict=True)
               for launch, s in zip(group, times, strict=True)}  # fmt: skip  # one table
    return [_total(work, [seconds[id(launch)] for launch in work.ours]) for work in works]


def _total(work: Work, seconds: Sequence[float]) -> PredictedTime:
    launches = LAUNCH * (len(work.ours) + work.pytorch)
    each = tuple((launch.name, launch.programs, 1e3 * s) for launch, s in zip(work.ours, seconds, strict=True))
    return PredictedTime(1e3 * sum(seconds), 1e3 * work.pytorch_s, 1e3 * launches, each, work.pytorch)
