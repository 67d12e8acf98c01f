"""Choose the backend that runs an operator, and say why.

``triton`` runs our kernels on an NVIDIA GPU; ``cpu`` runs our vector code on the processor;
``torch`` is the portable backend, plain PyTorch operations on any device; ``reference`` is the
definition itself, a slow loop in float64. The backend argument comes before ``use_backend``, that
before the environment variable MEDMAMBASE_BACKEND, that before the automatic choice. An explicit
wish that cannot be met raises; only the automatic choice falls back, and says so once.

Backend ``x`` is the folder ``_x``: its ``availability.py`` answers for it (see ``Availability``),
and each of its operators has a file with ``forward``, ``backward`` and ``kept_shape``. Nothing of
a backend is imported before it is asked for.
"""

import functools
import importlib
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, cast

import torch

from medmambase_kernels.arguments import check_device, check_dtype, check_tensor

BACKENDS = ("triton", "cpu", "torch", "reference")  # the automatic choice takes the first that can
_ENVIRONMENT = "MEDMAMBASE_BACKEND"


class Availability(Protocol):
    """What the ``availability.py`` of a backend says. Importing it must cost nothing.

    DEVICES: types of the devices it is made for; empty: every device. OPERATORS: the operators
    that it has, which need not be all.
    """

    DEVICES: tuple[str, ...]
    OPERATORS: tuple[str, ...]

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """What keeps it from running on ``device`` with ``dtype``, as one clause; None: nothing."""

    def prepare(self) -> None:
        """What must be done before one of its operators is imported."""


class _Wish(threading.local):
    """What ``use_backend`` asked for in this thread. (A ContextVar cannot be read inside
    torch.compile.)"""

    name: str | None = None
    origin: str = ""


_wish = _Wish()


class BackendError(RuntimeError):
    """A backend that was asked for cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Choice:
    """The backend's name and, in one clause, why it was taken. ``loss``: what an automatic choice
    gave up, to be said once; "" if nothing."""

    name: str
    reason: str
    loss: str = ""


@contextmanager
def use_backend(name: str, origin: str = "use_backend") -> Iterator[None]:
    """Within ``with use_backend(name):`` every operator of this thread runs on that backend;
    "auto" leaves the choice open. ``origin``: who asked for it, as messages name it, such as the
    flag of a command.

    Raises BackendError for a name that does not exist, TypeError for an origin that is no text;
    whether the backend can run is known when an operator is called.
    """
    if not isinstance(origin, str):
        raise TypeError(f"origin is {origin!r}; it must be a text, such as '--backend'")
    if name != "auto":
        _known(name, origin)
    before = _wish.name, _wish.origin
    _wish.name, _wish.origin = name, origin
    try:
        yield
    finally:
        _wish.name, _wish.origin = before


def describe_backend(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, operator: str | None = None
) -> str:
    """One line: which backend runs on ``device`` with ``dtype`` inputs, and why.

    Args:
        device, dtype: of the operator's first argument. operator: its name, such as
        "selective_scan"; None: any that every backend has.

    Raises:
        BackendError: an explicit wish cannot be met. TypeError, ValueError: a device, a dtype or an
        operator that does not exist.
    """
    check_device("device", device)
    check_dtype("dtype", dtype)
    known = tuple(dict.fromkeys(each for name in BACKENDS for each in availability(name).OPERATORS))
    if operator is not None and operator not in known:
        raise ValueError(f"operator is {operator!r}; it must be None or one of {_listed(known)}")
    choice = _decide(operator, torch.device(device), dtype, *_explicit(None))
    return f"{choice.name}: {choice.reason}"


def check_backend(backend: object) -> None:
    """Check a backend argument, before an operator is called with it. Raises BackendError for a
    name that does not exist."""
    if backend is not None and backend != "auto":
        _known(backend, "the backend argument")


def choose(operator: str | None, device: torch.device, dtype: torch.dtype, argument: str | None) -> Choice:
    """The backend for ``operator`` (None: any) on tensors of ``dtype`` on ``device``. Raises
    BackendError if an explicit wish cannot be met."""
    wish, origin = _explicit(argument)
    return _decided(operator, device, dtype, wish, origin)


def _decided(operator: str | None, device: torch.device, dtype: torch.dtype, wish: str | None, origin: str) -> Choice:
    return _decide_once(operator, device, dtype, wish, origin)


_decided._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as torch.compiler.assume_constant_result, which imports the compiler


@functools.cache
def _decide_once(
    operator: str | None, device: torch.device, dtype: torch.dtype, wish: str | None, origin: str
) -> Choice:
    choice = _decide(operator, device, dtype, wish, origin)
    if choice.loss:
        _announce(choice.loss)
    return choice


def _decide(operator: str | None, device: torch.device, dtype: torch.dtype, wish: str | None, origin: str) -> Choice:
    if device.type == "cpu" and dtype == torch.float64 and wish in (None, "cpu"):
        where = "the tensors are on the CPU" if wish is None else f"'cpu' was asked for by {origin}"
        return Choice("torch", f"{where}, whose vector code is float32: float64 is for checking")
    if wish is None:
        return _automatic(operator, device, dtype)
    obstacle = _obstacle(wish, operator, device, dtype)
    if obstacle is not None:
        raise BackendError(
            f"backend {wish!r} was asked for ({origin}), but {obstacle}; ask for 'torch', or for none to choose "
            f"automatically"
        )
    return Choice(wish, f"asked for by {origin}")


def _automatic(operator: str | None, device: torch.device, dtype: torch.dtype) -> Choice:
    """The first backend made for the device that can run. One that is made for every device can
    always."""
    missed: list[str] = []
    for name in BACKENDS:
        made_for = availability(name).DEVICES
        if made_for and device.type not in made_for:
            continue
        obstacle = _obstacle(name, operator, device, dtype)
        if obstacle is None:
            break
        missed.append(f"backend {name!r} cannot run: {obstacle}")
    else:
        raise BackendError(f"no backend runs {operator} on {device}: {'; '.join(missed)}")
    why = "; ".join(missed) or f"the tensors are on {'the CPU' if device.type == 'cpu' else device}"
    # float64 is only ever wanted for checking: nobody is slower than they hoped.
    lost = missed and dtype != torch.float64 and (device.type != "cuda" or torch.cuda.is_available())
    return Choice(name, why, f"{name!r} on {device}, which is much slower: {why}" if lost else "")


def _obstacle(name: str, operator: str | None, device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps a backend from running an operator, if anything."""
    known = availability(name)
    if operator is not None and operator not in known.OPERATORS:
        return f"it has no {operator}, only {', '.join(known.OPERATORS)}"
    return known.obstacle(device, dtype)


@functools.cache
def availability(name: str) -> Availability:
    """What a backend says of itself."""
    return cast(Availability, importlib.import_module(f"medmambase_kernels._{name}.availability"))


@functools.cache
def engine(operator: str, name: str) -> ModuleType:
    """The module of ``operator`` in a backend, imported on first use. Raises BackendError if its
    packages do not load."""
    availability(name).prepare()
    try:
        return importlib.import_module(f"medmambase_kernels._{name}.{operator}")
    except ImportError as error:
        raise BackendError(
            f"backend {name!r} does not load: {error}; reinstall it, or ask for backend 'torch'"
        ) from error


def triton_kernels(name: object, x: torch.Tensor) -> ModuleType | None:
    """Find the Triton kernels of a computation that is no operator, such as "augment".

    Args:
        name: of their file. x: the tensor that they would take, of any shape, dtype and device.

    Returns:
        Their module, or None where backend "triton" is not the one that is chosen for x.

    Raises:
        BackendError: backend "triton" was asked for and cannot run, or has no file of that name.
        TypeError: a name that is no text, or an x that is no tensor.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; it must be that of a file of kernels, such as 'augment'")
    check_tensor("x", x)
    return engine(name, "triton") if choose(None, x.device, x.dtype, None).name == "triton" else None


def run(operator: str, name: str, step: str, *arguments: Any) -> Any:
    """Call a backend's ``step``, "forward" or "backward", on the device of the first argument and
    in the backend's own precision.

    Autocast is switched off inside: it would round the backend's float32 products to 16 bits.
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


def _explicit(argument: str | None) -> tuple[str | None, str]:
    for wish, origin in (
        (argument, "the backend argument"),
        (_wish.name, _wish.origin),
        (os.environ.get(_ENVIRONMENT) or None, _ENVIRONMENT),
    ):
        if wish is not None and wish != "auto":
            _known(wish, origin)
            return wish, origin
    return None, ""


def _known(name: object, origin: str) -> None:
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name!r} (from {origin}); the backends are {_listed(BACKENDS)}")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))


@functools.cache
def _announce(loss: str) -> None:
    """Say once what an automatic choice gave up: a silent fallback is the commonest reason for a
    slow training."""
    warnings.warn(f"medmambase falls back to backend {loss}", RuntimeWarning, stacklevel=2)
