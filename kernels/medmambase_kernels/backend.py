"""Which engine runs, and why: decided here and nowhere else.

``triton`` runs our kernels on an NVIDIA GPU; ``cpu`` runs our vector code on the processor;
``torch`` is the portable engine, plain PyTorch operations on any device; ``reference`` is the
definition itself, a slow loop in float64. The wish of an argument comes before ``use_backend``,
that before the environment variable MEDMAMBASE_BACKEND, that before the automatic choice. A wish
that cannot be met raises; only the automatic choice falls back. Next stop: the engine's file.
"""

import functools
import importlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from medmambase_kernels._triton.ascii_folders import use_ascii_folders

BACKENDS = ("triton", "cpu", "torch", "reference")
_ENVIRONMENT = "MEDMAMBASE_BACKEND"
_PROCESS = os.getpid()  # that imported this


class _Wish(threading.local):
    """What ``use_backend`` asked for in this thread. (A ContextVar cannot be read inside
    torch.compile.)"""

    name: str | None = None


_wish = _Wish()


class BackendError(RuntimeError):
    """An engine that was asked for cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Choice:
    """The engine's name and, in one clause, why it was taken."""

    name: str
    reason: str


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within ``with use_backend(name):`` every operator of this thread runs on that engine; "auto"
    leaves the choice open.

    Raises BackendError for a name that does not exist; whether the engine can run is known when an
    operator is called.
    """
    if name != "auto":
        _known(name, "use_backend")
    before = _wish.name
    _wish.name = name
    try:
        yield
    finally:
        _wish.name = before


def describe_backend(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """One line: which engine an operator on ``device`` with ``dtype`` inputs would run on, and
    why."""
    choice = choose(torch.device(device), dtype, None)
    return f"{choice.name}: {choice.reason}"


def choose(device: torch.device, dtype: torch.dtype, argument: str | None) -> Choice:
    """The engine for tensors of ``dtype`` on ``device``. Raises BackendError if an explicit wish
    cannot be met."""
    wish, origin = _explicit(argument)
    if wish is None:
        return _automatic(device, dtype)
    if wish == "cpu" and dtype == torch.float64:
        return Choice(
            "torch",
            f"asked for by {origin}, whose vector code is float32: float64 is for checking, and runs as plain PyTorch",
        )
    obstacle = _obstacle(device, dtype) if wish == "triton" else _obstacle_to_vectors(device) if wish == "cpu" else None
    if obstacle is not None:
        raise BackendError(
            f"backend {wish!r} was asked for ({origin}), but {obstacle}; ask for 'torch', or for none to choose "
            f"automatically"
        )
    return Choice(wish, f"asked for by {origin}")


def engine(operator: str, name: str) -> ModuleType:
    """The module of ``operator``'s engine, imported on first use. Raises BackendError if its
    packages do not load."""
    if name == "triton":
        use_ascii_folders()
    try:
        return importlib.import_module(f"medmambase_kernels._{name}.{operator}")
    except ImportError as error:
        raise BackendError(
            f"backend {name!r} does not load: {error}; reinstall it, or ask for backend 'torch'"
        ) from error


def run(operator: str, name: str, step: str, *arguments: Any) -> Any:
    """Call an engine's ``step``, "forward" or "backward", on the device of the first argument and
    in the engine's own precision.

    Autocast is switched off inside: it would round the engine's float32 products to 16 bits.
    """
    device, call = arguments[0].device, getattr(engine(operator, name), step)
    # A context costs 5 to 10 us of Python, as much as a small kernel: none is entered that would
    # change nothing.
    rounds = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    if not rounds and not elsewhere:
        return call(*arguments)
    autocast = torch.autocast(device.type, enabled=False) if rounds else nullcontext()
    with autocast, torch.cuda.device(device) if elsewhere else nullcontext():
        return call(*arguments)


def forked() -> bool:
    """Whether this process was forked from the one that imported the package, so that threads it
    had started are gone."""
    return os.getpid() != _PROCESS


def _explicit(argument: str | None) -> tuple[str | None, str]:
    for wish, origin in (
        (argument, "the backend argument"),
        (_wish.name, "use_backend"),
        (os.environ.get(_ENVIRONMENT) or None, _ENVIRONMENT),
    ):
        if wish is not None and wish != "auto":
            _known(wish, origin)
            return wish, origin
    return None, ""


def _known(name: str, origin: str) -> None:
    if name not in BACKENDS:
        raise BackendError(
            f"there is no backend {name!r} (from {origin}); the backends are {', '.join(map(repr, BACKENDS))}"
        )


def _automatic(device: torch.device, dtype: torch.dtype) -> Choice:
    if device.type == "cpu":
        if dtype == torch.float64:  # only ever wanted for checking: nobody is slower than they hoped
            return Choice("torch", "the tensors are on the CPU, and the vector code is float32")
        obstacle = _obstacle_to_vectors(device)
        if obstacle is None:
            return Choice("cpu", "the tensors are on the CPU")
        _announce(f"the CPU, several times slower than its vector code: {obstacle}")
        return Choice("torch", f"the portable engine runs everywhere, and {obstacle}")
    obstacle = _obstacle(device, dtype)
    if obstacle is None:
        return Choice("triton", f"the tensors are on {device} and Triton is installed")
    if device.type == "cuda" and torch.cuda.is_available() and dtype != torch.float64:
        _announce(f"the GPU, many times slower than Triton: {obstacle}")
    return Choice("torch", f"the portable engine runs on every device, and {obstacle}")


def _obstacle_to_vectors(device: torch.device) -> str | None:
    """What keeps our vector code from running, if anything."""
    return f"the tensors are on {device}" if device.type != "cpu" else _vectors_missing()


def _vectors_missing() -> str | None:
    return _look_for_vectors()


_vectors_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as torch.compiler.assume_constant_result, which imports the compiler


@functools.cache
def _look_for_vectors() -> str | None:
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed (pip install llvmlite)"
    try:
        importlib.import_module("medmambase_kernels._cpu.compiler").check()
    except (
        ImportError,
        OSError,
        RuntimeError,
        AttributeError,
    ) as error:  # a broken or ancient llvmlite; a processor that its LLVM does not know
        return f"llvmlite does not work here: {error}"
    return None


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps Triton from running, if anything."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton, on Windows triton-windows)"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the Triton kernels take float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None  # Triton's interpreter runs the kernels on any device
    if device.type != "cuda":
        return f"the tensors are on {device}, and Triton needs a CUDA GPU"
    if not torch.cuda.is_available():
        return f"{device} was named, but this torch ({torch.__version__}) sees no CUDA GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return None


@functools.cache
def _announce(where_and_why: str) -> None:
    """Say once what an automatic choice gave up: a silent fallback is the commonest reason for a
    slow training."""
    warnings.warn(f"medmambase runs its portable engine on {where_and_why}", RuntimeWarning, stacklevel=2)
