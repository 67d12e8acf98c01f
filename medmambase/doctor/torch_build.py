"""Choose the torch that fits a machine, by its system, its Python and its NVIDIA card.

Standard library only: tools/environment.py asks before anything is installed, and the doctor where
torch does not load.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass

TORCH = "2.13.0"
TRITON = "3.7.1"  # the one that torch 2.13 is built and tested with
TORCH_LEAST = (2, 7)
PYTHON_NEWEST = (3, 14)  # the newest with a wheel of TORCH
ARCHITECTURES = {
    "Windows": ("win-amd64",),
    "Linux": ("x86_64", "aarch64"),
    "Darwin": ("arm64",),
}  # those with a wheel of TORCH
WHEELS = "https://download.pytorch.org/whl/"


class SetupError(Exception):
    """Raised where the environment cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Card:
    """The strongest NVIDIA card: the newest CUDA that its driver runs, and its compute capability;
    None where the driver does not say."""

    cuda: tuple[int, int] | None
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Machine:
    """What the choice of torch depends on. ``system`` as platform.system() says it;
    ``architecture`` is the interpreter's on Windows."""

    system: str
    architecture: str
    python: tuple[int, int]
    card: Card | None


@dataclass(frozen=True)
class Choice:
    """The arguments for ``pip install`` (none: torch is there already), and the reason."""

    arguments: tuple[str, ...]
    reason: str


def new_enough(torch: str | None) -> bool:
    """Whether a torch of this version (None: there is none) can be used as it is."""
    numbers = re.match(r"(\d+)\.(\d+)", torch or "")
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= TORCH_LEAST


def choose_torch(machine: Machine, found: str | None) -> Choice:
    """Choose the torch for this machine. ``found``: the version that the environment has already.
    Raises SetupError where no wheel fits."""
    if new_enough(found):
        return Choice((), f"{found} is installed already and is kept")
    _must_have_wheels(machine)
    pinned, linux = f"torch=={TORCH}", machine.system == "Linux"
    if machine.system == "Darwin":
        return Choice((pinned,), "macOS: the build for Apple silicon")
    if machine.card is None and linux:
        # Plain `torch` is the CUDA build on Linux, several GB. The wheel may also lie in a folder
        # known to pip: then a second index that does not answer must cost one short wait. So its
        # dependencies come later, with the project's, from the first.
        arguments = (
            f"{pinned}+cpu",
            "--no-deps",
            "--extra-index-url",
            WHEELS + "cpu",
            "--retries",
            "1",
            "--timeout",
            "30",
        )
        return Choice(arguments, "no NVIDIA card found: the CPU build, about 200 MB")
    if machine.card is None:
        return Choice((pinned,), "no NVIDIA card found: the CPU build, about 130 MB")
    build, reason = _cuda_build(machine.card)
    if linux and build == "cu130":
        return Choice((pinned,), reason)  # PyPI's own build on Linux
    return Choice((pinned, "--index-url", WHEELS + build), reason)


def _must_have_wheels(machine: Machine) -> None:
    otherwise = "Or use a Python that can import torch 2.7 or newer already: then that torch is taken as it is."
    if machine.architecture not in ARCHITECTURES.get(machine.system, ()):
        wanted = {
            "Windows": "the 64-bit Windows installer (x64, also on ARM) from python.org",
            "Darwin": "an arm64 Python on a Mac with Apple silicon",
        }
        advice = wanted.get(machine.system, "64-bit Linux on x86_64 or aarch64, Windows, or macOS on Apple silicon")
        raise SetupError(
            f"torch {TORCH} has no wheel for {machine.system} on {machine.architecture}. Use {advice}.\n{otherwise}"
        )
    if machine.python > PYTHON_NEWEST:
        got, newest = (".".join(map(str, version)) for version in (machine.python, PYTHON_NEWEST))
        raise SetupError(
            f"torch {TORCH} has no wheel for Python {got}. Run this with Python 3.11 to {newest}.\n{otherwise}"
        )


def _cuda_build(card: Card) -> tuple[str, str]:
    """CUDA 13 needs a driver that runs it and dropped cards before Turing (7.5); the CUDA 12.6
    build knows none from Blackwell (10.0) on."""
    driver = f"driver for CUDA {card.cuda[0]}.{card.cuda[1]}" if card.cuda else "driver of unknown CUDA version"
    modern = card.cuda is not None and card.cuda >= (13, 0)
    if card.capability and card.capability < (7, 5):
        return "cu126", "NVIDIA card older than Turing: the CUDA 12.6 build, a few GB"
    if card.capability and card.capability >= (10, 0) and not modern:
        return (
            "cu130",
            f"NVIDIA card of the Blackwell generation or newer: the CUDA 13.0 build, a few GB. Its {driver} is too "
            f"old: update it, or torch uses the CPU",
        )
    if modern:
        return "cu130", f"NVIDIA card, {driver}: the CUDA 13.0 build, a few GB"
    return "cu126", f"NVIDIA card, {driver}: the CUDA 12.6 build, a few GB"


def choose_triton(machine: Machine, torch: str, test: bool) -> str | None:
    """Choose the Triton made for TORCH, where pip would take a newer one; None where none is needed
    or another torch is in use."""
    if not torch.startswith(TORCH.rpartition(".")[0] + "."):
        return None
    if machine.system == "Windows" and machine.architecture == "win-amd64":
        return f"triton-windows=={TRITON}.*"
    return f"triton=={TRITON}" if machine.system == "Linux" and test else None


def read_card(overview: str, capabilities: str) -> Card:
    """Read the card from nvidia-smi's overview and its ``compute_cap`` query."""
    cuda = re.search(r"CUDA[\w ]*Version:\s*(\d+)\.(\d+)", overview)
    found = [
        (int(major), int(minor)) for major, minor in re.findall(r"^\s*(\d+)\.(\d+)\s*$", capabilities, re.MULTILINE)
    ]
    return Card((int(cuda[1]), int(cuda[2])) if cuda else None, max(found, default=None))


def find_card() -> Card | None:
    """Find the machine's NVIDIA card; None where nvidia-smi is missing, fails, or lists none."""
    if not re.search(r"^GPU \d+:", nvidia_smi("-L") or "", re.MULTILINE):
        return None
    return read_card(nvidia_smi() or "", nvidia_smi("--query-gpu=compute_cap", "--format=csv,noheader") or "")


def driver_and_clock(uuid: str) -> tuple[str | None, float | None]:
    """Ask for the driver's version and the highest clock in Hz of the card of that UUID (of torch's
    device properties); None where nvidia-smi does not say."""
    query = ("--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader,nounits", f"--id=GPU-{uuid}")
    found = re.match(r"\s*(\S+), (\d+(?:\.\d+)?)\s*$", nvidia_smi(*query) or "", re.MULTILINE)
    return (found[1], 1e6 * float(found[2])) if found else (None, None)


def nvidia_smi(*arguments: str) -> str | None:
    """Run NVIDIA's program, which WSL keeps outside of PATH; None where it is missing or fails."""
    program = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    return output([program, *arguments]) if program else None


def this_machine() -> Machine:
    """Describe the machine and the interpreter that run this."""
    architecture = sysconfig.get_platform() if os.name == "nt" else platform.machine()
    return Machine(platform.system(), architecture, (sys.version_info[0], sys.version_info[1]), find_card())


def output(command: Sequence[str]) -> str | None:
    """Return what a command prints; None where it does not run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
