"""What the facts mean: a line for each, the command that mends it where something is to be mended,
and the last line. Pure functions of Facts.

Last stop before: facts.py. Next stop: medmambase/commands/doctor.py, which prints.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from medmambase.doctor import torch_build
from medmambase.doctor.facts import Facts
from medmambase.doctor.torch_build import Machine, SetupError

CAPABILITY_LEAST = (8, 0)  # below, the engines choose PyTorch's own operations
TOLERANCE = 1e-5
_REDIST = "winget install Microsoft.VCRedist.2015+.x64"
_PYTHON = "winget install Python.Python.3.12"
# The Triton that each torch is built and tested with.
_PAIRS = {
    "2.7": "3.3",
    "2.8": "3.4",
    "2.9": "3.5",
    "2.10": "3.6",
    "2.11": "3.6",
    "2.12": "3.7",
    "2.13": "3.7",
    "2.14": "3.8",
    "2.15": "3.9",
}
_GB = 1e9
_LONG = 200  # characters of a cache folder, from which on its files come near to Windows' 260


class Level(IntEnum):
    """How much a finding matters; the largest decides the last line."""

    OK = 0
    NOTE = 1  # good to know; nothing is slower for it
    SLOWER = 2
    BROKEN = 3


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, how much it matters, what mends it (a command,
    or what to do), and why it matters in few words."""

    title: str
    text: str
    level: Level = Level.OK
    mend: str = ""
    why: str = ""


def findings(f: Facts) -> list[Finding]:
    """In the order in which one thing needs the one before."""
    return [
        _system(f), _python(f), _headers(f), _runtime(f), _card(f), _driver(f), _torch(f), _build(f), _capability(f),
        _triton(f), _pair(f), _vectors(f), _shadow(f), _temp(f), _cache(f), _long_paths(f), _memory(f), _disk(f),
        _engine(f), _kernel(f), _scan(f), _speed(f),
    ]  # fmt: skip  # a list


def verdict(f: Facts, found: Iterable[Finding]) -> tuple[Level, str]:
    """The last line."""
    worst = max(
        found, key=lambda finding: finding.level
    )  # the first of the worst: what comes later may only follow from it
    if worst.level == Level.BROKEN:
        return worst.level, f"NOT READY: {worst.why}; {worst.mend}"
    if worst.level == Level.SLOWER:
        return worst.level, f"READY (slower, {worst.why})" + (f"; to mend it: {worst.mend}" if worst.mend else "")
    return worst.level, f"READY ({f.trial.engine}{f' on {f.card_name}' if f.trial.sees_gpu and f.card_name else ''})"


def _system(f: Facts) -> Finding:
    text = f"{f.system} {f.release}, {f.architecture}"
    if f.architecture in torch_build.ARCHITECTURES.get(f.system, ()):
        return Finding("system", text)
    try:
        torch_build.choose_torch(_machine(f), None)
    except SetupError as error:
        advice = str(error).splitlines()[0].partition(". ")[2]
        return Finding("system", text, Level.BROKEN, advice, f"PyTorch has no wheel for {f.system} on {f.architecture}")
    return Finding("system", text)


def _python(f: Facts) -> Finding:
    text = f"{'.'.join(map(str, f.python))}{f', {f.python_kind}' if f.python_kind else ''}"
    if f.python[:2] > torch_build.PYTHON_NEWEST:
        newest = ".".join(map(str, torch_build.PYTHON_NEWEST))
        return Finding(
            "Python",
            text,
            Level.NOTE if f.torch else Level.BROKEN,
            f"use Python 3.11 to {newest}",
            "PyTorch has no wheel for this Python",
        )
    return Finding("Python", text)


def _headers(f: Facts) -> Finding:
    """What the first launch of a Triton kernel compiles a small module with: Windows has a compiler
    in triton-windows, Linux needs one."""
    if not _wants_triton(f):
        return Finding("Python.h", "not needed without an NVIDIA card")
    if not f.headers:
        if f.system == "Windows":
            mend = (
                f"install the full Python, not the embeddable one ({_PYTHON}), make a virtual environment with "
                f"it, and install medmambase there"
            )
        else:
            mend = "sudo apt install python3-dev"
        return Finding(
            "Python.h",
            "missing",
            Level.BROKEN,
            mend,
            "this Python has no Python.h, which the first launch on the GPU compiles with",
        )
    if f.system == "Linux" and not f.compiler:
        return Finding(
            "Python.h",
            "there, but no C compiler",
            Level.BROKEN,
            "sudo apt install gcc",
            "Triton on Linux needs a C compiler",
        )
    return Finding("Python.h", f"there{f', and {f.compiler}' if f.system == 'Linux' else ''}")


def _runtime(f: Facts) -> Finding:
    if f.system != "Windows":
        return Finding("C++ runtime", "only Windows lacks one at times")
    if f.runtime_missing:
        return Finding(
            "C++ runtime",
            f"Windows does not find {', '.join(f.runtime_missing)}",
            Level.BROKEN,
            _REDIST,
            "the Visual C++ runtime is missing",
        )
    return Finding("C++ runtime", "Visual C++ 2015-2022 is there")


def _card(f: Facts) -> Finding:
    if f.card is None:
        return Finding("card", "no NVIDIA card that a driver knows")
    return Finding("card", f"{f.card_name or 'NVIDIA'}, compute capability {_dotted(f.card.capability)}")


def _driver(f: Facts) -> Finding:
    """A torch built for a newer CUDA than the driver runs sees no card."""
    if f.card is None:
        return Finding("driver", "none needed")
    text = f"{f.driver}, runs CUDA {_dotted(f.card.cuda)}"
    built = _numbers(f.trial.cuda)
    if f.card.cuda and built and built[0] > f.card.cuda[0] and not f.trial.sees_gpu:
        blackwell = (f.card.capability or (0, 0)) >= (10, 0)
        mend = "update the driver from https://www.nvidia.com/drivers" if blackwell else _install_torch(f)
        return Finding(
            "driver",
            text,
            Level.SLOWER,
            mend,
            f"the driver is too old for this torch, which is built for CUDA {f.trial.cuda}",
        )
    return Finding("driver", text)


def _torch(f: Facts) -> Finding:
    if f.torch is None:
        return Finding("torch", "missing", Level.BROKEN, _install_torch(f), "PyTorch is not installed")
    if not torch_build.new_enough(f.torch):
        return Finding(
            "torch", f.torch, Level.BROKEN, _install_torch(f), f"PyTorch {f.torch} is too old, 2.7 or newer is wanted"
        )
    if not f.trial.torch:
        return Finding(
            "torch",
            f"{f.torch} does not load: {f.trial.failed}",
            Level.BROKEN,
            _install_torch(f),
            "PyTorch does not load",
        )
    return Finding("torch", f.trial.torch)


def _build(f: Facts) -> Finding:
    """Whether this torch can use the card."""
    if f.card is None or not f.trial.torch:
        return Finding("torch's build", f"CUDA {f.trial.cuda}" if f.trial.cuda else "CPU")
    if f.trial.cuda is None and f.trial.hip is None:
        return Finding(
            "torch's build",
            "CPU, beside an NVIDIA card",
            Level.SLOWER,
            _install_torch(f),
            "this torch is a CPU build and leaves the card idle",
        )
    text = f"CUDA {f.trial.cuda}"
    if not f.trial.sees_gpu:
        return Finding(
            "torch's build",
            f"{text}, sees no card",
            Level.SLOWER,
            "restart the machine, then update the driver",
            "torch does not see the card",
        )
    capability = f.card.capability
    newest = max(
        (int(number) for build in f.trial.builds if (number := build.removeprefix("sm_")).isdigit()), default=None
    )
    if capability and newest and capability[0] > newest // 10:
        return Finding(
            "torch's build",
            f"{text}, up to sm_{newest}",
            Level.BROKEN,
            _install_torch(f),
            f"this torch has no code for compute capability {_dotted(capability)}",
        )
    return Finding("torch's build", text)


def _capability(f: Facts) -> Finding:
    if not f.trial.sees_gpu or f.trial.capability is None or f.trial.hip:
        return Finding("kernels", "for a card only" if not f.trial.sees_gpu else "for AMD's cards: not tested")
    if f.trial.capability < CAPABILITY_LEAST:
        return Finding(
            "kernels",
            f"need compute capability 8.0, here {_dotted(f.trial.capability)}",
            Level.SLOWER,
            "",
            "the card is older than compute capability 8.0",
        )
    return Finding("kernels", f"run from compute capability 8.0 on, here {_dotted(f.trial.capability)}")


def _triton(f: Facts) -> Finding:
    if len(f.tritons) > 1:
        names = " ".join(f.tritons)
        mend = f"pip uninstall -y {names}, then pip install {_triton_wish(f)}"
        return Finding(
            "Triton",
            " and ".join(f.tritons),
            Level.BROKEN,
            mend,
            "several packages called triton overwrite each other's files",
        )
    if not f.tritons:
        level = Level.SLOWER if _wants_triton(f) else Level.OK
        return Finding(
            "Triton",
            "missing" if level else "not needed without an NVIDIA card",
            level,
            f"pip install {_triton_wish(f)}" if level else "",
            "Triton is missing",
        )
    ((name, version),) = f.tritons.items()
    return Finding("Triton", f"{name} {version}")


def _pair(f: Facts) -> Finding:
    made_for = _PAIRS.get(_minor(f.torch))
    if len(f.tritons) != 1 or made_for is None:
        return Finding("torch and Triton", "no pair that is known")
    (version,) = f.tritons.values()
    if _minor(version) != made_for:
        text = f"torch {_minor(f.torch)} is tested with Triton {made_for}, here {version}"
        return Finding("torch and Triton", text, Level.NOTE, f"pip install {_triton_wish(f)}")
    return Finding("torch and Triton", "made for each other")


def _vectors(f: Facts) -> Finding:
    if f.llvmlite:
        return Finding("CPU engine", f"llvmlite {f.llvmlite}")
    return Finding(
        "CPU engine",
        "llvmlite is missing",
        Level.NOTE if f.trial.sees_gpu else Level.SLOWER,
        "pip install llvmlite",
        "llvmlite is missing",
    )


def _shadow(f: Facts) -> Finding:
    if f.shadows:
        names = " and ".join(f.shadows)
        return Finding(
            "this folder",
            f"has {names}",
            Level.BROKEN,
            f"rename {names}",
            f"{names} in this folder would be imported in place of the package",
        )
    return Finding("this folder", "hides no package")


def _temp(f: Facts) -> Finding:
    if not f.temp.writable:
        return Finding(
            "TEMP",
            f"{f.temp.path} cannot be written to",
            Level.BROKEN,
            "free space there, or set TEMP to a folder of yours",
            "TEMP cannot be written to",
        )
    if f.system == "Windows" and not f.temp.path.isascii():
        return Finding("TEMP", f"{f.temp.path}: medmambase gives Triton's compilers another name for it", Level.NOTE)
    return Finding("TEMP", f.temp.path)


def _cache(f: Facts) -> Finding:
    if not f.cache.writable:
        mend = "free space there, or set TRITON_CACHE_DIR to a folder of yours"
        return Finding(
            "kernel cache",
            f"{f.cache.path} cannot be written to",
            Level.BROKEN if _wants_triton(f) else Level.NOTE,
            mend,
            "the kernel cache cannot be written to",
        )
    if f.system == "Windows" and not f.cache.path.isascii():
        return Finding("kernel cache", f"{f.cache.path}: medmambase gives Triton another name for it", Level.NOTE)
    if f.system == "Windows" and len(f.cache.path) > _LONG:
        return Finding(
            "kernel cache",
            f"{f.cache.path}: {len(f.cache.path)} characters",
            Level.NOTE,
            "set TRITON_CACHE_DIR to a shorter folder",
        )
    return Finding("kernel cache", f.cache.path)


def _long_paths(f: Facts) -> Finding:
    if f.long_paths is False:
        key = r"HKLM:\SYSTEM\CurrentControlSet\Control\FileSystem"
        mend = f"as administrator, in PowerShell: Set-ItemProperty {key} LongPathsEnabled 1"
        return Finding("long paths", "off: deep folders of images and caches fail at 260 characters", Level.NOTE, mend)
    return Finding("long paths", "on" if f.long_paths else "no limit here")


def _memory(f: Facts) -> Finding:
    if f.memory is None:
        return Finding("memory", "not known")
    if f.memory < 4 * _GB:
        return Finding("memory", f"{f.memory / _GB:.0f} GB", Level.NOTE, "train with --cache off --batch-size 8", "")
    return Finding("memory", f"{f.memory / _GB:.0f} GB")


def _disk(f: Facts) -> Finding:
    if f.disk < _GB:
        return Finding(
            "disk",
            f"{f.disk / _GB:.1f} GB free here",
            Level.BROKEN,
            "free 1 GB or go to another folder",
            "this disk is full",
        )
    return Finding("disk", f"{f.disk / _GB:.0f} GB free here")


def _engine(f: Facts) -> Finding:
    if not f.trial.engine:
        return Finding("engine", "not tried")
    if f.trial.engine == "torch":
        return Finding("engine", f"torch: {f.trial.reason}", Level.SLOWER, "", f.trial.reason)
    return Finding("engine", f"{f.trial.engine}: {f.trial.reason}")


def _kernel(f: Facts) -> Finding:
    if f.trial.kernel_s is not None:
        return Finding("a small kernel", f"compiled and run in {f.trial.kernel_s:.1f} s")
    if not f.trial.engine:
        return Finding("a small kernel", "not tried")
    return Finding("a small kernel", f.trial.failed, Level.BROKEN, _to_report(f), "the smallest kernel does not run")


def _scan(f: Facts) -> Finding:
    if f.trial.error is None:
        level = Level.BROKEN if f.trial.kernel_s is not None else Level.OK
        return Finding("the scan", f.trial.failed or "not tried", level, _to_report(f), "the scan does not run")
    text = f"differs from float64 by {f.trial.error:.1e}, gradients included"
    if not f.trial.error <= TOLERANCE:  # also what is no number
        return Finding("the scan", text, Level.BROKEN, _to_report(f), "the scan is wrong on this machine")
    return Finding("the scan", text)


def _speed(f: Facts) -> Finding:
    if f.trial.scan_ms is None:
        level = Level.BROKEN if f.trial.error is not None else Level.OK
        return Finding(
            "its speed", f.trial.failed or "not tried", level, _to_report(f), "the scan does not run to its end"
        )
    return Finding("its speed", f"16 x 96 x 256, forward and backward: {f.trial.scan_ms:.1f} ms")


def _to_report(f: Facts) -> str:
    clear = f"delete {f.cache.path} and try again; if it stays, " if f.trial.engine == "triton" else ""
    return (
        f"{clear}report it with doctor.json (medmambase-doctor --json doctor.json), and meanwhile set "
        f"MEDMAMBASE_BACKEND=torch"
    )


def _wants_triton(f: Facts) -> bool:
    return (
        f.card is not None
        and (f.card.capability is None or f.card.capability >= CAPABILITY_LEAST)
        and f.system in ("Windows", "Linux")
    )


def _machine(f: Facts) -> Machine:
    return Machine(f.system, f.architecture, f.python[:2], f.card)


def _install_torch(f: Facts) -> str:
    """The command that brings the torch for this machine."""
    try:
        arguments = torch_build.choose_torch(_machine(f), None).arguments
    except SetupError as error:
        return str(error).splitlines()[0]
    return "pip install --force-reinstall " + " ".join(arguments)


def _triton_wish(f: Facts) -> str:
    version = _PAIRS.get(_minor(f.torch), torch_build.TRITON.rpartition(".")[0])
    return f'"triton-windows=={version}.*"' if f.system == "Windows" else f'"triton=={version}.*"'


def _minor(version: str | None) -> str:
    return ".".join(map(str, _numbers(version)))


def _numbers(version: str | None) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(found[1]), int(found[2])) if found else ()


def _dotted(version: tuple[int, int] | None) -> str:
    return ".".join(map(str, version)) if version else "unknown"
