"""Describe this machine: the device that computes, and the versions that a result may depend on."""

import ctypes
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from medmambase.config import ConfigError

_PACKAGES = (
    "medmambase", "medmambase-kernels", "torch", "triton", "triton-windows", "llvmlite", "numpy", "pillow",
    "scikit-learn",
)  # fmt: skip  # one list


# What to do where memory does not suffice.
LESS_MEMORY = "halve --batch-size and double --accumulate, or add --recompute"


def choose_device(wish: str | torch.device | None, argument: str = "device") -> torch.device:
    """Return the requested device, or the GPU if there is one, else the CPU. Raises ConfigError,
    naming ``argument``, where it cannot be used."""
    try:
        found = torch.device(wish or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=found).item()  # the number must come back: there are devices without any
    # torch raises either of the first two, with or without CUDA in its build, and the last for
    # devices that another package brings.
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        why = f"{error}\n".splitlines()[0].partition(". ")[0]
        if why.startswith("Expected one of"):  # all types of devices that any build could have
            why = "PyTorch knows no such device"
        elif isinstance(error, NotImplementedError):
            why = "this PyTorch cannot compute there"
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
        raise ConfigError(
            f"{argument} {wish} cannot be used ({why}); give {' or '.join(['cpu', *gpus])}, or leave it out to choose "
            f"automatically"
        ) from error
    return found


def device_name(device: torch.device) -> str:
    """Name a device for a person: the GPU's name, or how many threads the CPU has."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' * (threads != 1)})" if device.type == "cpu" else str(device)


def cores() -> int:
    """Count the processors that this process may use: those it is bound to, and no more than its
    container is given time to keep busy."""
    if sys.platform == "linux":
        return max(1, min(len(os.sched_getaffinity(0)), _quota(Path("/sys/fs/cgroup"))))
    return os.cpu_count() or 1


def _quota(control: Path) -> int:
    """How many processors Linux lets a container keep busy, by the files of its control group, of
    version 2 or 1; more than there are where nothing limits it."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((control / name).read_text(encoding="ascii") for name in names).split()
            time, period = map(int, words)
        except (OSError, ValueError):  # another version, or "max"
            continue
        if time > 0 and period > 0:  # -1 is no limit
            return -(-time // period)
    return sys.maxsize


def load() -> float | None:
    """Return how many processors all programs together keep busy, more than there are where some
    wait: on Linux and macOS the mean of the last minute, on Windows of a fifth of a second; None
    where the system does not say."""
    if sys.platform == "win32":
        before = _windows_times()
        time.sleep(0.2)
        idle, total = (now - then for then, now in zip(before, _windows_times(), strict=True))
        return (os.cpu_count() or 1) * (1 - idle / total) if total else None
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _windows_times() -> tuple[int, int]:
    """Return how long all processors have been idle, and how long they have been there, in units
    of 100 ns since Windows started."""
    idle, kernel, user = (ctypes.c_uint64() for _ in range(3))
    if sys.platform == "win32":
        ctypes.WinDLL("kernel32").GetSystemTimes(ctypes.byref(idle), ctypes.byref(kernel), ctypes.byref(user))
    return idle.value, kernel.value + user.value  # the kernel's time contains the idle one


def environment(device: torch.device) -> dict[str, str]:
    """List the versions that a result may depend on; nothing that names the person or the
    machine."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["vectors"] = torch.backends.cpu.get_cpu_capability()  # which instructions of the processor torch uses
    if device.type == "cuda":
        found |= {"GPU": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda)}
    return found
