"""Describe this machine: the device that computes, and the versions that a result may depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from medmambase.config import ConfigError

_PACKAGES = ("medmambase", "medmambase-kernels", "torch", "triton", "triton-windows", "numpy", "pillow", "scikit-learn")


def choose_device(wish: str | torch.device | None, argument: str = "device") -> torch.device:
    """Return the requested device, or the GPU if there is one, else the CPU. Raises ConfigError,
    naming ``argument``, where it cannot be used."""
    try:
        found = torch.device(wish or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=found).item()  # the number must come back: there are devices without any
    except (RuntimeError, AssertionError) as error:  # torch raises either, with or without CUDA in its build
        raise ConfigError(
            f"{argument} {wish} cannot be used ({str(error).splitlines()[0]}); leave it out to choose automatically"
        ) from error
    return found


def device_name(device: torch.device) -> str:
    """Name a device for a person: the GPU's name, or how many threads the CPU has."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def environment(device: torch.device) -> dict[str, str]:
    """List the versions that a result may depend on; nothing that names the person or the
    machine."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if device.type == "cuda":
        found |= {"GPU": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda)}
    return found
