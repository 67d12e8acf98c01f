"""Collect the facts about a machine and its Python; findings.py judges them.

Standard library only, and PyTorch is imported in another process: it may be missing, broken, or end
the process.
"""

import ctypes
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from medmambase.doctor import torch_build
from medmambase.doctor.torch_build import Card

TRITONS = (
    "triton",
    "triton-windows",
    "triton-xpu",
    "triton-rocm",
    "pytorch-triton",
    "pytorch-triton-rocm",
    "pytorch-triton-xpu",
)  # each is a module called triton
RUNTIME = (
    "vcruntime140.dll",
    "vcruntime140_1.dll",
    "msvcp140.dll",
    "msvcp140_atomic_wait.dll",
)  # PyTorch's and Triton's libraries need them
_SHADOWED = ("torch", "triton", "numpy", "llvmlite")
_PATIENCE = 600  # seconds; the first launches compile their kernels


@dataclass(frozen=True)
class Folder:
    """A folder that Triton's compilers write to."""

    path: str
    writable: bool


@dataclass(frozen=True)
class Trial:
    """The outcome of a trial run in a process of its own, as far as it came; ``failed``: why it
    came no further.

    ``kernel_s``: seconds until the smallest kernel was compiled and had run. ``error``: of the scan
    and its gradients, largest difference from float64 over the largest magnitude. ``scan_ms``:
    forward and backward of 16 sequences of 256 steps and 96 channels.
    """

    torch: str = ""
    cuda: str | None = None
    hip: str | None = None
    sees_gpu: bool = False
    builds: tuple[str, ...] = ()
    capability: tuple[int, int] | None = None
    backend: str = ""
    reason: str = ""
    kernel_s: float | None = None
    error: float | None = None
    scan_ms: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Facts:
    """A machine and its Python. Sizes are in bytes, versions as the installed packages state them;
    None: not there, or unknown. ``kernels``: the version of medmambase-kernels."""

    system: str
    release: str
    architecture: str
    python: tuple[int, int, int]
    python_kind: str
    python_folder: str
    headers: bool
    compiler: str | None
    medmambase: str | None
    kernels: str | None
    torch: str | None
    tritons: dict[str, str]
    llvmlite: str | None
    shadows: tuple[str, ...]
    runtime_missing: tuple[str, ...]
    card: Card | None
    card_name: str
    driver: str
    temp: Folder
    cache: Folder
    long_paths: bool | None
    memory: int | None
    disk: int
    trial: Trial = field(default_factory=Trial)


def look() -> Facts:
    """Look at this machine and this Python; takes seconds, and compiles a kernel."""
    found = {name: _version(name) for name in TRITONS}
    machine = torch_build.this_machine()
    name, driver = _card()
    torch = _version("torch")
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    return Facts(
        machine.system, platform.version() if machine.system == "Windows" else platform.release(),
        machine.architecture, sys.version_info[:3], _kind(), sys.prefix,
        (Path(sysconfig.get_path("include")) / "Python.h").is_file(),
        shutil.which(os.environ.get("CC") or "gcc") or shutil.which("clang"),
        _version("medmambase"), _version("medmambase-kernels"), torch,
        {name: version for name, version in found.items() if version}, _version("llvmlite"),
        tuple(_shadows(Path.cwd())), tuple(_missing()), machine.card, name, driver,
        _folder(Path(tempfile.gettempdir())), _folder(cache), _long_paths(), _memory(),
        shutil.disk_usage(Path.cwd()).free, _trial() if torch else Trial(),
    )  # fmt: skip  # in the order of the fields


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _kind() -> str:
    """Name where this Python comes from, as far as it matters."""
    base = Path(sys.base_prefix)
    if list(base.glob("python*._pth")):
        return "embeddable"
    if "WindowsApps" in base.parts:
        return "Microsoft Store"
    return "conda" if (base / "conda-meta").is_dir() else ""


def _shadows(folder: Path) -> list[str]:
    """Find the files in a folder that a script in it would import in place of a package."""
    found = [folder / f"{name}.py" for name in _SHADOWED] + [folder / name / "__init__.py" for name in _SHADOWED]
    installed = {
        Path(spec.origin).resolve() for name in _SHADOWED if (spec := importlib.util.find_spec(name)) and spec.origin
    }
    return [
        path.name if path.parent == folder else path.parent.name
        for path in found
        if path.is_file() and path.resolve() not in installed
    ]


def _missing() -> list[str]:
    """Find the libraries of the Visual C++ runtime that Windows cannot load."""
    if sys.platform != "win32":
        return []
    missing = []
    for name in RUNTIME:
        try:
            ctypes.WinDLL(name)
        except OSError:
            missing.append(name)
    return missing


def _card() -> tuple[str, str]:
    """Return the name and the driver's version of the first NVIDIA card."""
    said = torch_build.nvidia_smi("--query-gpu=name,driver_version", "--format=csv,noheader") or ""
    name, _, driver = said.strip().partition("\n")[0].partition(", ")
    return name, driver.strip()


def _folder(path: Path) -> Folder:
    """Try to make a file there, or in the nearest folder above that exists."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            return Folder(str(path), True)
    except OSError:
        return Folder(str(path), False)


def _long_paths() -> bool | None:
    """Whether Windows allows paths of more than 260 characters."""
    if sys.platform != "win32":
        return None
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    except OSError:
        return False


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        *(
            (name, ctypes.c_ulonglong)
            for name in ("total", "free", "total_page", "free_page", "total_virtual", "free_virtual", "extended")
        ),
    )


def _memory() -> int | None:
    """Return the machine's memory in bytes."""
    if sys.platform == "win32":
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        return int(status.total) if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _trial() -> Trial:
    """Run doctor_trial.py in a process of its own; what it printed counts, however it ended."""
    command = [sys.executable, "-X", "utf8", "-m", "medmambase.commands.doctor_trial"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as late:
        return read_trial(_text(late.stdout), f"it did not finish within {_PATIENCE} s")
    return read_trial(done.stdout, _last_line(done.stderr) or f"exit code {done.returncode}" if done.returncode else "")


def read_trial(printed: str, failed: str) -> Trial:
    """Read the trial from the JSON lines that it printed."""
    found: dict[str, Any] = {}
    for line in printed.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    known = {each.name for each in fields(Trial)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if name in known
    }
    return Trial(**{"failed": failed, **values})


def _text(output: str | bytes | None) -> str:
    return output.decode("utf-8", errors="replace") if isinstance(output, bytes) else output or ""


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
