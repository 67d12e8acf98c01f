"""Let code that is written for a GPU run on a CPU: ``torch.cuda.device`` takes CPU devices and does
nothing for them, since VMamba enters it with the device of whatever tensor it has; and where that
is asked for, "cuda" means the CPU.
"""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What scripts call around their work on a GPU, and what needs nothing on a CPU.
_IDLE = ("synchronize", "set_device", "reset_peak_memory_stats", "reset_max_memory_allocated")
_NUMBERED = {Tensor.to: 1, torch._C._nn._parse_to: 0}  # where x.to(...) and module.to(...) have the device
_ORIGINAL = torch.cuda.device


class DeviceOrNothing(_ORIGINAL):  # type: ignore[misc,unused-ignore]  # torch's own context
    """``torch.cuda.device``, without effect for a CPU device."""

    def __init__(self, device: Any) -> None:
        self.elsewhere = isinstance(device, str | torch.device) and torch.device(device).type == "cpu"
        if not self.elsewhere:
            super().__init__(device)

    def __enter__(self) -> Any:
        return None if self.elsewhere else super().__enter__()  # type: ignore[no-untyped-call]  # torch's own

    def __exit__(self, *error: Any) -> Any:
        return None if self.elsewhere else super().__exit__(*error)


class NoDevice(DeviceOrNothing):
    """``torch.cuda.device``, without effect."""

    def __init__(self, device: Any) -> None:
        super().__init__("cpu")


class CudaMeansCpu(TorchFunctionMode):
    """Makes, moves and keeps on the CPU whatever torch is asked to have on "cuda"."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As torch calls it for each of its functions."""
        if func is Tensor.cuda:
            return args[0].to("cpu")
        if func is Tensor.pin_memory:  # torch pins memory for a GPU alone
            return args[0]
        i = _NUMBERED.get(func)
        if i is not None and len(args) > i and type(args[i]) is int:  # the number of a GPU
            args = (*args[:i], "cpu", *args[i + 1 :])
        named = dict(kwargs or {})
        if type(named.get("device")) is int:
            named["device"] = "cpu"
        return func(*map(_on_cpu, args), **{name: _on_cpu(value) for name, value in named.items()})


def admitted(cuda_means_cpu: bool) -> ExitStack:
    """Put ``DeviceOrNothing`` in the place of torch's context and, if asked for, let "cuda" mean
    the CPU in this thread, until what is returned is closed."""
    stack, load = ExitStack(), torch.load
    _replace(stack, torch.cuda, "device", NoDevice if cuda_means_cpu else DeviceOrNothing)
    if cuda_means_cpu:

        @functools.wraps(load)
        def load_on_cpu(f: Any, map_location: Any = None, *rest: Any, **named: Any) -> Any:
            if isinstance(map_location, dict):
                where: Any = {name: _on_cpu(place) for name, place in map_location.items()}
            else:
                where = "cpu" if map_location is None else _on_cpu(map_location)
            return load(f, where, *rest, **named)

        _replace(stack, torch, "load", load_on_cpu)
        for name in _IDLE:
            _replace(stack, torch.cuda, name, _idle(getattr(torch.cuda, name)))
        stack.enter_context(CudaMeansCpu())
    return stack


def _replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


def _idle(function: Callable[..., Any]) -> Callable[..., None]:
    """A function for each, since torch.compile tells torch's functions apart."""

    @functools.wraps(function)
    def nothing(*rest: Any, **named: Any) -> None:
        return None

    return nothing
